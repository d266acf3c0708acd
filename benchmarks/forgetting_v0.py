"""How near one influence step comes to a retraining, on the wage panel: `make bench-forgetting_v0`.

Eight sets of real people are forgotten: ordinary and memorised ones, alone and four at a time. Each set is also
retrained without, with three other seeds. ρ is the mean squared difference of the outputs on the forgotten samples
between the unlearned model and a retraining, divided by the same between two retrainings: 1 is as near as retrainings
are to each other. ρ before the update says how much there was to forget; where it is near 1 already, ρ proves nothing.

Memorised are the people whose loss rises most when a model is trained without them (measured with two models, each
trained on half of the people; Feldman 2020); ordinary are those in the middle of that order.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # examples/ is no installed package

from benchmarks.report import Figure, write  # noqa: E402 - after the path
from examples.wage_panel import manifest_rows  # noqa: E402 - after the path
from examples.wage_panel import network as recipe  # noqa: E402 - after the path
from workers.unlearning import Update, Verdict, forget, residual, retrain, verify  # noqa: E402
from workers.unlearning.evidence import low_tail  # noqa: E402
from workers.unlearning.model import Model  # noqa: E402
from workers.unlearning.objective import Objective  # noqa: E402

RESULT = Path(__file__).parent / "results" / "forgetting_v0.json"
DEPLOYED_SEED = 0
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One forgotten set: how it went and how far from retraining it ended."""

    kind: str
    rho: float
    rho_before: float
    seconds: float
    share_of_training: float
    loss_before: float
    loss_after: float
    loss_retrained: float
    verdict: Verdict
    retrainings_passed: int


class Panel:
    """The people of the manifest and the deployed model."""

    def __init__(self) -> None:
        people: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row in manifest_rows():
            people[row.split, row.user_id].append(row.sample_id)
        self.members = [ids for (split, _), ids in people.items() if split == "train"]
        self.strangers = [ids for (split, _), ids in people.items() if split == "heldout"]
        started = time.perf_counter()
        self.deployed = retrain(recipe, samples(self.members), seed=DEPLOYED_SEED).weights
        self.training_seconds = time.perf_counter() - started
        self.training_passes = recipe.last_training_passes
        self.residual = residual(recipe, self.deployed, samples(self.members))

    def without(self, gone: Sequence[int]) -> list[list[int]]:
        """Return the members that stay."""
        return [ids for number, ids in enumerate(self.members) if number not in gone]


def main() -> None:
    """Measure, print, write the result file."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--output", type=Path, default=RESULT)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    panel = Panel()
    with Progress() as progress:
        task = progress.add_task("forgetting and retraining", total=2 + 8 * (given.seeds + 1))
        sets = choose(panel, lambda: progress.advance(task))
        cases = [measure(panel, *each, given.seeds, lambda: progress.advance(task)) for each in sets]
    rows = figures(panel, cases, given.seeds)
    told = [{**asdict(case), "verdict": case.verdict.as_dict()} for case in cases]
    write("forgetting_v0", rows, path=given.output, cases=told)


def choose(panel: Panel, step: Callable[[], None]) -> list[tuple[str, list[int]]]:
    """Return eight sets of members by how much the model owes to them."""
    order = list(range(len(panel.members)))
    random.Random(0).shuffle(order)
    rise = torch.zeros(len(order), dtype=torch.float64)
    inside = losses(panel.deployed, panel.members)
    for half in (order[::2], order[1::2]):
        other = retrain(recipe, samples([panel.members[i] for i in half]), seed=1).weights
        step()
        unseen = [i for i in order if i not in half]
        rise[unseen] = losses(other, [panel.members[i] for i in unseen]) - inside[unseen]
    ranked = rise.argsort(descending=True).tolist()
    middle = ranked[len(ranked) // 4 : 3 * len(ranked) // 4]
    random.Random(1).shuffle(middle)
    alone = [("ordinary", [middle[i]]) for i in range(3)] + [("memorised", [ranked[i]]) for i in (2, 12)]
    return [*alone, ("four ordinary", middle[3:7]), ("four ordinary", middle[7:11]), ("four memorised", ranked[4:8])]


def measure(panel: Panel, kind: str, gone: list[int], seeds: int, step: Callable[[], None]) -> Case:
    """Forget one set and compare with retrainings without it."""
    forgotten, kept = [panel.members[i] for i in gone], panel.without(gone)
    ids = samples(forgotten)
    started = time.perf_counter()
    update = forget(recipe, panel.deployed, forget_ids=ids, retain_ids=samples(kept), residual=panel.residual)
    seconds = time.perf_counter() - started
    verdict = judged(panel, forgotten, kept, update, exact=False)
    step()
    retrained = []
    for seed in range(1, seeds + 1):
        retrained.append(retrain(recipe, samples(kept), seed=seed))
        step()
    z = [outputs(one.weights, ids) for one in retrained]
    floor = statistics.fmean(distance(a, b) for a, b in combinations(z, 2))

    def rho(weights: Weights) -> float:
        return statistics.fmean(distance(outputs(weights, ids), one) for one in z) / floor

    return Case(
        kind=kind,
        rho=rho(update.weights),
        rho_before=rho(panel.deployed),
        seconds=seconds,
        share_of_training=update.report.share_of_training(panel.training_passes) or 0.0,
        loss_before=float(losses(panel.deployed, forgotten).mean()),
        loss_after=float(losses(update.weights, forgotten).mean()),
        loss_retrained=statistics.fmean(float(losses(one.weights, forgotten).mean()) for one in retrained),
        verdict=verdict,
        retrainings_passed=sum(judged(panel, forgotten, kept, one, exact=True).level == "A0" for one in retrained),
    )


def judged(panel: Panel, forgotten: list[list[int]], kept: list[list[int]], update: Update, *, exact: bool) -> Verdict:
    """Run the gates."""
    return verify(
        recipe,
        panel.deployed,
        update.weights,
        users=forgotten,
        retained_users=kept,
        retained_ids=samples(kept),
        strangers=panel.strangers,
        update=update.report,
        exact=exact,
    )


def figures(panel: Panel, cases: list[Case], seeds: int) -> list[Figure]:
    """Reduce the cases to the figures we promise something about, and one line per case."""
    inside, outside = losses(panel.deployed, panel.members), losses(panel.deployed, panel.strangers)
    power = float((low_tail(inside, outside) <= 0.01).double().mean())
    rows = [
        bounded("training, seconds", panel.training_seconds, at_most=10),
        Figure("power of the user test before deletion", round(power, 3), "≥ 0.8", power >= 0.8),
        Figure("loss of members / of strangers before", f"{float(inside.mean()):.3f} / {float(outside.mean()):.3f}"),
    ]
    for kind in dict.fromkeys(case.kind for case in cases):
        of_kind = [case for case in cases if case.kind == kind]
        before = statistics.fmean(case.rho_before for case in of_kind)
        mean = statistics.fmean(case.rho for case in of_kind)
        rows.append(bounded(f"ρ, {kind} (mean of {len(of_kind)}; before {before:.2f})", mean, at_most=1.2))
    rows.append(bounded("slowest update, seconds", max(c.seconds for c in cases), at_most=5))
    rows.append(bounded("largest share of a retraining", max(c.share_of_training for c in cases), at_most=0.25))
    passed, again = sum(c.verdict.level == "A2" for c in cases), sum(c.retrainings_passed for c in cases)
    rows.append(Figure("verdicts A2", f"{passed} of {len(cases)}", "all", passed == len(cases)))
    total = seeds * len(cases)
    rows.append(Figure("genuine retrainings with verdict A0", f"{again} of {total}", "all", again == total))
    return [*rows, *map(case_line, cases)]


def case_line(case: Case) -> Figure:
    """Tell one case in a row."""
    told = f"{case.loss_before:.3f} → {case.loss_after:.3f}, retrained {case.loss_retrained:.3f}; {reason(case)}"
    return Figure(f"{case.kind}: ρ {case.rho:.2f}, before {case.rho_before:.2f}; mean loss", told)


def reason(case: Case) -> str:
    """Tell the verdict, and the gate that stopped it."""
    stopped = [gate.name for gate in case.verdict.gates if gate.outcome != "passed"]
    return " ".join([case.verdict.outcome, *stopped])


def bounded(name: str, value: float, *, at_most: float) -> Figure:
    """Promise an upper bound."""
    return Figure(name, round(value, 3), f"≤ {at_most}", value <= at_most)


def samples(people: Sequence[Sequence[int]]) -> list[int]:
    """Return everybody's sample ids."""
    return [i for ids in people for i in ids]


def losses(weights: Weights, people: Sequence[Sequence[int]]) -> Tensor:
    """Return each person's mean loss."""
    model = Model(recipe, weights)
    each = Objective(model, samples(people)).losses(model.theta_P)
    return torch.stack([part.mean() for part in each.split([len(ids) for ids in people])])


def outputs(weights: Weights, ids: Sequence[int]) -> Tensor:
    """Return the predictions."""
    model = Model(recipe, weights)
    return Objective(model, ids).outputs(model.theta_P)[0]


def distance(a: Tensor, b: Tensor) -> float:
    """Return the mean squared difference."""
    return float((a - b).square().mean())


if __name__ == "__main__":
    main()
