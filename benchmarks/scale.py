"""What one erasure costs as the training set, the batch of people and the network grow.

`make bench-scale`. One generated population at 2 000 and at 100 000 training rows, a person having 20: the counted cost
and the seconds of a projection beside those of a retraining (12 epochs of mini-batch Adam), and at 2 000 rows ρ against
three retrainings. At 100 000 rows nothing is cross-fitted: the one forgotten person's references are two retrainings
without that person, of which one teaches and one is held back. Then 1, 4 and 16 people at once, and the peak memory of
a process that projects a transformer of more than 100 M parameters, of which one linear layer and two norms move: with
the whole last block (7.09 M) the same run had not ended after 200 s on a shared core; no result exists for it.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from benchmarks.beds.common import Bed, Split, state  # noqa: E402 - after the path
from benchmarks.networks import Size, Texts  # noqa: E402
from benchmarks.report import Figure, write  # noqa: E402
from benchmarks.trial import Ready, Weights, Yardstick  # noqa: E402
from workers.unlearning import ekfac  # noqa: E402
from workers.unlearning.calibration import predict  # noqa: E402
from workers.unlearning.model import Model  # noqa: E402
from workers.unlearning.objective import Objective  # noqa: E402
from workers.unlearning.projection import Projection, project  # noqa: E402
from workers.unlearning.references import References  # noqa: E402
from workers.unlearning.report import UpdateReport  # noqa: E402

Json = dict[str, Any]  # Any: JSON
TRAINED, TESTED, STRANGERS = 20, 5, 20  # rows of a member that train and that test; people never seen
SMALL, LARGE = 2_000, 100_000  # training rows
PEOPLE = 6  # forgotten one by one, each from the deployed model, at 2 000 rows
BATCHES = (1, 4, 16)
TEXTS = Size(people=16, texts=4, length=32)
MOST_SMALL, MOST_LARGE, MOST_GIGABYTES = 0.05, 0.005, 8.0


class Population(Bed):
    """Generated people: rows share their person's offset, half of the labels are the person's own choice.

    The common rule is drawn first, so that populations of any size follow the same one.

    Args:
        members: people with `TRAINED` training rows each.
        seed: of the draw.
    """

    name = "population"
    epochs = 12
    lr = 3e-3
    batch_size = 64

    def __init__(self, members: int, *, seed: int = 0) -> None:
        people, each, features, classes = members + STRANGERS, TRAINED + TESTED, 12, 3
        draw = torch.Generator().manual_seed(seed)
        rule = torch.randn(features, classes, generator=draw)
        offsets = torch.randn(people, 1, features, generator=draw)
        x = 1.5 * offsets + 0.5 * torch.randn(people, each, features, generator=draw)
        own = torch.randint(0, classes, (people, 1), generator=draw).expand(people, each)
        personal = torch.rand(people, each, generator=draw) < 0.5
        targets = torch.where(personal, own, (x @ rule).argmax(-1))
        rows = [list(range(person * each, (person + 1) * each)) for person in range(people)]
        held_back = [row for ids in rows[:members] for row in ids[TRAINED:]]
        who = Split([ids[:TRAINED] for ids in rows[:members]], held_back, rows[members:])
        super().__init__(x.flatten(0, 1), targets.flatten(), who)

    def build(self) -> nn.Module:
        """Return a perceptron of 1 027 weights."""
        return nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 3))


class Adapted(Texts):
    """The transformer of the GPU benchmark with less of its last block moving."""

    def moves(self, name: str, /) -> bool:
        """Let the projection after the last attention and the last block's norms move."""
        last = f"blocks.{self.size.depth - 1}."
        return name.startswith((f"{last}mixed.", f"{last}before.", f"{last}between."))


@dataclass(frozen=True)
class Spent:
    """One projection: what it made and what it took."""

    weights: Weights
    report: UpdateReport
    share: float
    seconds: float


def main() -> None:
    """Run everything on one thread and write the result."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["memory"]:
        sys.stdout.write(json.dumps(transformer(TEXTS)))
        return
    ready = Ready(Population(SMALL // TRAINED))
    single, batches = small(ready), batched(ready)
    many = large(Population(LARGE // TRAINED))
    sys.stderr.write(json.dumps([single, batches, many]) + "\n")  # minutes of work, should the rest be cut off
    memory = apart()
    rows = [*of_rows(single, many), *of_batches(batches), *of_memory(memory)]
    write("scale", rows, small=single, large=many, batches=batches, memory=memory)


def projected(
    bed: Bed, weights: Weights, gone: tuple[int, ...], *, references: References, factors: ekfac.Ekfac
) -> Spent:
    """Forget these members by one projection; the share is of a retraining on the others."""
    kept, started = bed.without(gone), time.perf_counter()
    update = project(
        bed,
        weights,
        forget_ids=[i for member in gone for i in bed.members[member]],
        retain_ids=kept,
        references=references,
        factors=factors,
        law=bed.law,
    )
    seconds = time.perf_counter() - started
    return Spent(update.weights, update.report, update.report.share_of_training(bed.epochs) or math.nan, seconds)


def small(ready: Ready) -> list[Json]:
    """Forget some people, each from the deployed model, and compare each with three retrainings."""
    return [erased(ready, (member,)) for member in range(PEOPLE)]


def batched(ready: Ready) -> list[Json]:
    """Forget the first few people at once."""
    return [erased(ready, tuple(range(many))) for many in BATCHES]


def erased(ready: Ready, gone: tuple[int, ...]) -> Json:
    """Project, then retrain three times: cost, seconds side by side, ρ before and after."""
    spent = projected(ready.bed, ready.deployed, gone, references=ready.references, factors=ready.factors)
    started = time.perf_counter()
    yardstick = Yardstick(ready, gone, ready.retrained(gone))
    retraining = (time.perf_counter() - started) / len(yardstick.retrained)
    found = yardstick.measured(spent.weights)
    return {
        "people": len(gone),
        "share": spent.share,
        "forward_backwards": spent.report.forward_backwards,
        "complete": spent.report.complete,
        "seconds": spent.seconds,
        "retraining_seconds": retraining,
        "rho_before": yardstick.measured(ready.deployed)["rho"],
        "rho": found["rho"],
        "held_out": found["held_out"],
    }


def large(bed: Bed) -> list[Json]:
    """Forget the first person three times over; the references are two retrainings without that person."""
    weights = state(bed.train(bed.training_ids, seed=0))
    model, ids = Model(bed, weights), bed.members[0]
    fit_started = time.perf_counter()
    factors = ekfac.fit(Objective(model, bed.training_ids), model.theta_P, draws=2)
    fitted, retrained = time.perf_counter(), [state(bed.train(bed.without([0]), seed=seed)) for seed in (1, 2)]
    retraining = (time.perf_counter() - fitted) / len(retrained)
    references = by_hand([predict(bed, one, ids) for one in retrained], ids)
    told = []
    for _ in range(3):
        spent = projected(bed, weights, (0,), references=references, factors=factors)
        told.append(
            {
                "share": spent.share,
                "forward_backwards": spent.report.forward_backwards,
                "complete": spent.report.complete,
                "seconds": spent.seconds,
                "retraining_seconds": retraining,
                "fit_seconds": fitted - fit_started,
                "from_held_back": bed.apart(retrained[1], spent.weights, ids),
                "deployed_from_held_back": bed.apart(retrained[1], weights, ids),
                "teacher_from_held_back": bed.apart(retrained[1], retrained[0], ids),
            }
        )
    return told


def by_hand(heard: list[Tensor], sample_ids: list[int]) -> References:
    """Make references of what retrainings said about one person; the first, third, … teach."""
    return References(torch.tensor(sample_ids), torch.stack(heard).float(), folds=2, seed=0)


def transformer(size: Size) -> Json:
    """Fit factors on all sequences and project those of one person; peak resident memory of this process so far.

    The network is untrained and its references say that every token is equally likely: this weighs the engine and says
    nothing about forgetting.
    """
    recipe = Adapted(size, torch.device("cpu"))
    torch.manual_seed(0)
    weights = recipe.build().state_dict()
    everyone = list(range(len(recipe.inputs)))
    gone, kept = everyone[: recipe.each], everyone[recipe.each :]
    before, model = gigabytes(), Model(recipe, weights)
    started = time.perf_counter()
    factors = ekfac.fit(Objective(model, everyone, batch_size=recipe.chunk), model.theta_P)
    fitted = time.perf_counter()
    silent = [torch.zeros(len(gone), size.length, size.vocabulary)]
    update = project(
        recipe,
        weights,
        forget_ids=gone,
        retain_ids=kept,
        references=by_hand(silent, gone),
        factors=factors,
        law="softmax",
        settings=Projection(batch_size=recipe.chunk),
    )
    return {
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "moving": len(model.theta_P),
        "sequences": len(everyone),
        "forgotten": len(gone),
        "complete": update.report.complete,
        "fit_seconds": fitted - started,
        "seconds": time.perf_counter() - fitted,
        "before_gigabytes": before,
        "peak_gigabytes": gigabytes(),
    }


def apart() -> Json:
    """Run `transformer` in a process of its own, so that its peak is nobody else's."""
    told = subprocess.run([sys.executable, __file__, "memory"], capture_output=True, text=True, check=True)
    found: Json = json.loads(told.stdout)
    return found


def gigabytes() -> float:
    """Return this process's peak resident memory; Linux counts it in kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def of_rows(single: list[Json], many: list[Json]) -> list[Figure]:
    """Return the rows of one person at both sizes."""
    rows = []
    for label, told, most in ((SMALL, single, MOST_SMALL), (LARGE, many, MOST_LARGE)):
        worst = max(point["share"] for point in told)
        name = f"{label} rows, one person"
        rows.append(Figure(f"{name}: counted cost, share of a retraining", round(worst, 5), f"≤ {most}", worst <= most))
        rows.append(Figure(f"{name}: seconds, projection / retraining", clock(told)))
    before, after = ([point[key] for point in single] for key in ("rho_before", "rho"))
    told_rho = f"{spread(after)}; deployed {spread(before)}"
    rows.append(Figure(f"{SMALL} rows: ρ against 3 retrainings, mean (range) of {len(single)} people", told_rho))
    growth = statistics.fmean(p["forward_backwards"] for p in many) / statistics.fmean(
        p["forward_backwards"] for p in single
    )
    rows.append(Figure(f"counted work of a projection, {LARGE} rows over {SMALL}", round(growth, 3)))
    point = many[0]
    keys = "from_held_back", "deployed_from_held_back", "teacher_from_held_back"
    far = " / ".join(f"{point[key]:.4f}" for key in keys)
    rows.append(Figure(f"{LARGE} rows: KL from the held-back retraining, projected / deployed / teacher (n = 1)", far))
    rows.append(Figure(f"{LARGE} rows: EK-FAC fit, once per version, seconds", round(point["fit_seconds"], 2)))
    return rows


def of_batches(batches: list[Json]) -> list[Figure]:
    """Return the rows of several people at once."""
    rows = []
    for point in batches:
        name = f"{SMALL} rows, {point['people']} people at once"
        rows.append(Figure(f"{name}: counted cost, share of one retraining", round(point["share"], 4)))
        rows.append(Figure(f"{name}: seconds, projection / retraining", clock([point])))
        rows.append(Figure(f"{name}: ρ; deployed", f"{point['rho']:.2f}; {point['rho_before']:.2f}"))
    return rows


def of_memory(told: Json) -> list[Figure]:
    """Return the rows of the transformer."""
    parameters, moving, peak = told["parameters"], told["moving"], told["peak_gigabytes"]
    name = f"transformer, {parameters / 1e6:.1f} M parameters, {moving / 1e6:.2f} M moving"
    within = peak <= MOST_GIGABYTES and parameters >= 1e8
    dense = f"{8 * moving**2 / 1e12:.1f} TB (P × P, float64)"
    return [
        Figure(f"{name}: peak resident GB", round(peak, 2), f"≤ {MOST_GIGABYTES:g}", within),
        Figure(f"{name}: of that, before the engine", round(told["before_gigabytes"], 2)),
        Figure(f"{name}: what a dense curvature would take", dense),
        Figure(f"{name}: seconds, EK-FAC fit on {told['sequences']} sequences", round(told["fit_seconds"], 1)),
        Figure(f"{name}: seconds, projection of {told['forgotten']} sequences", round(told["seconds"], 1)),
    ]


def clock(told: list[Json]) -> str:
    """Return median seconds side by side and their ratio."""
    ours, theirs = (statistics.median(point[key] for point in told) for key in ("seconds", "retraining_seconds"))
    return f"{ours:.3f} / {theirs:.2f} = {ours / theirs:.2%} (median of {len(told)})"


def spread(numbers: list[float]) -> str:
    """Return mean and range."""
    return f"{statistics.fmean(numbers):.2f} ({min(numbers):.2f}-{max(numbers):.2f})"


if __name__ == "__main__":
    main()
