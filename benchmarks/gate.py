"""Does the gate let honest work through and stop fakes? `make bench-gate`.

Small populations that a convex model learns by heart are drawn from seeds. In each, single people are forgotten: by a
genuine retraining, judged like any candidate, and by fakes that come with the report of an honest update. Every
candidate is judged without references and with out-of-fold references. A gate that fails a genuine retraining is
broken; one that passes a no-op is worse.

Per tail one of m + 1 ranks is flagged, and the people of a population share its strangers, so that false alarms
cluster: the bound is the 97.5 % quantile of a sum of beta-binomial counts, not of a binomial one. "Not passed" counts
doubts too.

Partial steps beyond the shortest, and an ascent stopped where the strangers' mean loss is, promise nothing: they say
where this gate stops seeing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, from anywhere

from benchmarks.report import Figure, write  # noqa: E402 - after the path
from workers.unlearning import Update, UpdateReport, Verdict, retrain, verify  # noqa: E402 - after the path
from workers.unlearning.evidence import chance_of, wilson  # noqa: E402 - after the path
from workers.unlearning.references import References, cross_fit  # noqa: E402 - after the path
from workers.unlearning.stability import Trial  # noqa: E402 - after the path
from workers.unlearning.testing import Classification  # noqa: E402 - after the path

RESULT = Path(__file__).parent / "results" / "gate.json"
MEMBERS, STRANGERS, LEVEL = 100, 200, 0.01
Weights = Mapping[str, Tensor]
STEP = Trial(
    damping=0.0,
    predicted_decrease=1.0,
    actual_decrease=1.0,
    function_step=0.01,
    step_norm=1.0,
    relative_residual=1e-3,
    iterations=9,
    accepted=True,
)
HONEST = UpdateReport(
    method="newton",
    complete=True,
    reason=None,
    forgotten_samples=6,
    retained_samples=6 * (MEMBERS - 1),
    moving_parameters=1,
    trials=(STEP,),
)
"""What a fake shows instead of its own report: nothing that G1 could object to."""


class World:
    """One population, its deployed model and its references."""

    def __init__(self, seed: int) -> None:
        self.recipe = Classification(
            users=MEMBERS + STRANGERS, each=6, hidden=0, waves=300, l2_total=3.0, stubbornness=0.3, seed=seed
        )
        self.members = [self.recipe.samples_of(user) for user in range(MEMBERS)]
        self.strangers = [self.recipe.samples_of(user) for user in range(MEMBERS, MEMBERS + STRANGERS)]
        self.deployed = retrain(self.recipe, samples(self.members), seed=0).weights
        self.references: References = cross_fit(self.recipe, self.members, self.strangers, folds=3, repeats=4)
        self.typical_loss = float(self.losses(self.deployed, samples(self.strangers)).mean())

    def without(self, user: int) -> list[list[int]]:
        """Return the members that stay."""
        return [ids for number, ids in enumerate(self.members) if number != user]

    def judge(self, user: int, candidate: Update, *, exact: bool = False, calibrated: bool = False) -> Verdict:
        """Run the gates."""
        kept = self.without(user)
        return verify(
            self.recipe,
            self.deployed,
            candidate.weights,
            users=[self.members[user]],
            retained_users=kept,
            retained_ids=samples(kept),
            strangers=self.strangers,
            update=candidate.report,
            exact=exact,
            references=self.references if calibrated else None,
        )

    def losses(self, weights: Weights, ids: Sequence[int]) -> Tensor:
        """Return the loss of each sample."""
        inputs, targets = self.recipe.fetch(ids)
        assert isinstance(inputs, Tensor)
        return self.recipe.loss(inputs @ weights["weight"].T + weights["bias"], targets)


@dataclass(frozen=True)
class Trail:
    """One candidate of one kind and what the gate said, by statistic."""

    kind: str
    outcomes: dict[str, str]
    gates: dict[str, str]
    power: dict[str, float]
    exact_level: str | None


Fake = Callable[[World, int, Update], Weights]


def main() -> None:
    """Measure, print, write the result file."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--worlds", type=int, default=10)
    arguments.add_argument("--users", type=int, default=20, help="forgotten one at a time in each world")
    arguments.add_argument("--output", type=Path, default=RESULT)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    trails: list[Trail] = []
    with Progress() as progress:
        task = progress.add_task("retrainings and fakes", total=given.worlds * given.users)
        for seed in range(given.worlds):
            world = World(seed)
            for user in range(given.users):
                trails.extend(tried(world, user, fakes=user < (given.users + 1) // 2))
                progress.advance(task)
    rows = figures(trails, given.worlds, given.users, time.process_time() - started)
    write("gate", rows, path=given.output)


def tried(world: World, user: int, *, fakes: bool) -> Iterator[Trail]:
    """Retrain without one person, fake it in every way, and judge each candidate."""
    retrained = retrain(world.recipe, samples(world.without(user)), seed=user + 1)
    level = world.judge(user, retrained, exact=True, calibrated=True).level
    yield trail(world, user, "genuine retraining", Update(retrained.weights, HONEST), level)
    if fakes:
        for kind, make in FAKES.items():
            faked = {name: tensor.detach().clone() for name, tensor in make(world, user, retrained).items()}
            yield trail(world, user, kind, Update(faked, HONEST), None)


def trail(world: World, user: int, kind: str, candidate: Update, level: str | None) -> Trail:
    """Judge one candidate by both statistics."""
    verdicts = {name: world.judge(user, candidate, calibrated=name == "calibrated") for name in ("raw", "calibrated")}
    return Trail(
        kind,
        {name: verdict.outcome for name, verdict in verdicts.items()},
        {name: worst_gate(verdict) for name, verdict in verdicts.items()},
        {name: verdict.gates[-1].numbers.get("power_on_members", -1.0) for name, verdict in verdicts.items()},
        level,
    )


def worst_gate(verdict: Verdict) -> str:
    """Name the first gate that did not pass."""
    return next((gate.name for gate in verdict.gates if gate.outcome != "passed"), "none")


# --- fakes -------------------------------------------------------------------------------------------------------


def no_op(world: World, _user: int, _retrained: Update) -> Weights:
    """Leave the model as it is but for a speck, so that the comparison of the bytes sees a change."""
    return {name: tensor + 1e-7 for name, tensor in world.deployed.items()}


def ascent(world: World, user: int, _retrained: Update) -> Weights:
    """Climb the loss of the user's samples, for as long as recipes for it do."""
    return climbed(world, user, steps=60)


def measured_ascent(world: World, user: int, _retrained: Update) -> Weights:
    """Climb only until the user's mean loss is the strangers'."""
    return climbed(world, user, steps=500, until=world.typical_loss)


def label_flip(world: World, user: int, _retrained: Update) -> Weights:
    """Train the user's samples to wrong labels."""
    return climbed(world, user, steps=200, flip=True)


def constant(world: World, _user: int, _retrained: Update) -> Weights:
    """Answer the same to everything."""
    return {name: torch.zeros_like(tensor) for name, tensor in world.deployed.items()}


def part_way(share: float) -> Fake:
    """Go only a share of the way to the retrained weights."""

    def clipped(world: World, _user: int, retrained: Update) -> Weights:
        return {n: old + share * (retrained.weights[n] - old) for n, old in world.deployed.items()}

    return clipped


def climbed(world: World, user: int, *, steps: int, flip: bool = False, until: float | None = None) -> Weights:
    """Follow the gradient of the user's loss: uphill, or downhill to the next label."""
    inputs, targets = world.recipe.fetch(world.members[user])
    assert isinstance(inputs, Tensor)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in world.deployed.items()}
    for _ in range(steps):
        outputs = inputs @ leaves["weight"].T + leaves["bias"]
        if until is not None and float(world.recipe.loss(outputs, targets).detach().mean()) >= until:
            break
        aim = (
            world.recipe.loss(outputs, (targets + 1) % 3).sum() if flip else -world.recipe.loss(outputs, targets).sum()
        )
        for leaf, grad in zip(leaves.values(), torch.autograd.grad(aim, list(leaves.values())), strict=True):
            leaf.data -= 0.01 * grad
    return leaves


FAKES: dict[str, Fake] = {
    "no-op": no_op,
    "gradient ascent": ascent,
    "label flip": label_flip,
    "constant output": constant,
    "step clipped to 10 %": part_way(0.1),
    "step clipped to 25 %": part_way(0.25),
    "step clipped to 50 %": part_way(0.5),
    "step clipped to 75 %": part_way(0.75),
    "ascent stopped at the strangers' loss": measured_ascent,
}
PROMISED = tuple(FAKES)[:5]


# --- figures -----------------------------------------------------------------------------------------------------


def figures(trails: Sequence[Trail], worlds: int, users: int, seconds: float) -> list[Figure]:
    """Reduce the verdicts to rates with Wilson's intervals."""
    genuine = [t for t in trails if t.kind == "genuine retraining"]
    rows = [Figure("populations, people forgotten in each", f"{worlds}, {users}")]
    exact = sum(t.exact_level == "A0" for t in genuine)
    rows.append(
        Figure("genuine retrainings that end as A0", f"{exact} of {len(genuine)}", "all", exact == len(genuine))
    )
    for name in ("raw", "calibrated"):
        power = statistics.fmean(t.power[name] for t in genuine if t.power[name] >= 0)
        rows.append(Figure(f"{name}: power on members before deletion", round(power, 3)))
        rows += of_genuine(genuine, name, worlds, users)
        for kind in FAKES:
            rows += of_fakes([t for t in trails if t.kind == kind], kind, name)
    return [*rows, bounded("CPU seconds", seconds, at_most=240)]


def of_genuine(genuine: Sequence[Trail], name: str, worlds: int, users: int) -> list[Figure]:
    """Hold genuine retrainings, judged like any candidate, to the levels of the gates."""
    alarms = sum(t.gates[name] == "G3 forgetting" and t.outcomes[name] == "failed" for t in genuine)
    other = sum(t.outcomes[name] == "failed" for t in genuine) - alarms
    doubts = sum(t.outcomes[name] == "inconclusive" for t in genuine)
    most = most_alarms(worlds, users)
    passed = sum(t.outcomes[name] == "passed" for t in genuine)
    least = round(0.95 * len(genuine) - 1.96 * (0.95 * 0.05 * len(genuine)) ** 0.5)
    return [
        Figure(f"{name}: genuine retrainings passed", rate(passed, len(genuine)), f"≥ {least}", passed >= least),
        Figure(f"{name}: genuine retrainings failed by G3", rate(alarms, len(genuine)), f"≤ {most}", alarms <= most),
        Figure(f"{name}: genuine retrainings failed by another gate", rate(other, len(genuine)), "0", other == 0),
        Figure(f"{name}: genuine retrainings inconclusive", rate(doubts, len(genuine))),
    ]


def of_fakes(tries: Sequence[Trail], kind: str, name: str) -> list[Figure]:
    """Tell how many were stopped, by a failure or by a doubt."""
    failed = sum(t.outcomes[name] == "failed" for t in tries)
    stopped = sum(t.outcomes[name] != "passed" for t in tries)
    promised = kind in PROMISED
    told = f"{rate(stopped, len(tries))}; {failed} failed"
    return [
        Figure(
            f"{name}: {kind} not passed",
            told,
            "≥ 95 %" if promised else None,
            stopped >= 0.95 * len(tries) if promised else None,
        )
    ]


def most_alarms(worlds: int, users: int) -> int:
    """Return the 97.5 % quantile of false alarms over all populations and both tails, by chance alone."""
    seen = [chance_of(k, users=users, strangers=STRANGERS, level=LEVEL) for k in range(users + 2)]
    one = torch.tensor([a - b for a, b in pairwise(seen)], dtype=torch.float64)
    total = torch.ones(1, dtype=torch.float64)
    for _ in range(2 * worlds):
        total = torch.nn.functional.conv1d(total[None, None], one.flip(0)[None, None], padding=users)[0, 0]
    return int((total.cumsum(0) < 0.975).sum())


def rate(count: int, trials: int) -> str:
    """Tell a count with Wilson's 95 % interval."""
    low, high = wilson(count / trials, trials)
    return f"{count} of {trials} ({100 * low:.1f} to {100 * high:.1f} %)"


def bounded(name: str, value: float, *, at_most: float) -> Figure:
    """Promise an upper bound."""
    return Figure(name, round(value, 1), f"≤ {at_most:g}", value <= at_most)


def samples(people: Sequence[Sequence[int]]) -> list[int]:
    """Return everybody's sample ids."""
    return [i for ids in people for i in ids]


if __name__ == "__main__":
    main()
