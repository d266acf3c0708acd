"""One person after the other is forgotten from the same model: does the distance grow, do the earlier ones return?

`make bench-stream`. Handwriting: 14 of 70 writers by the projection, its EK-FAC factors refitted on what remains after
every fifth of the ledger's 5 %. Digits and vowel (interpolating): up to 20 % of the people by renewal. At each
checkpoint ρ is taken over all samples forgotten so far against three retrainings without them, before and after one
ordinary epoch on what remains; references of a person are deleted as soon as the person is forgotten.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from benchmarks.beds import BEDS  # noqa: E402 - after the path
from benchmarks.beds.common import DataAbsent  # noqa: E402
from benchmarks.report import Figure, write  # noqa: E402
from benchmarks.trial import Ready, Weights, Yardstick  # noqa: E402
from workers.unlearning.projection import project  # noqa: E402
from workers.unlearning.renewal import renew  # noqa: E402

Json = dict[str, Any]  # Any: JSON
REFIT_AFTER = 0.05  # of the members gone since the factors were fitted


@dataclass(frozen=True)
class Stream:
    """Who goes, how, and when we look.

    Attributes:
        bed: name.
        rung: "projection" or "renewal".
        people: how many are forgotten, one by one.
        checkpoints: after how many we compare with retrainings.
        most: promised ρ at every checkpoint.
    """

    bed: str
    rung: str
    people: int
    checkpoints: tuple[int, ...]
    most: float


STREAMS = (
    Stream("handwriting-mlp", "projection", 14, (1, 4, 7, 10, 14), 1.1),
    Stream("digits", "renewal", 8, (1, 4, 8), 1.5),
    Stream("vowel", "renewal", 2, (1, 2), 1.5),
)


def main() -> None:
    """Run the streams, two at a time, and write the result."""
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        told = list(pool.map(run, STREAMS))
    rows = [row for stream, points in zip(STREAMS, told, strict=True) for row in figures(stream, points)]
    write("stream", rows, streams={stream.bed: points for stream, points in zip(STREAMS, told, strict=True)})


def run(stream: Stream) -> list[Json]:
    """Forget one person after the other; return what each checkpoint shows."""
    try:
        ready = Ready(BEDS[stream.bed](split_seed=0))
    except DataAbsent as absent:
        return [{"absent": str(absent)}]
    weights, points, cost = ready.deployed, [], 0.0
    forget = {"projection": by_projection, "renewal": by_renewal}[stream.rung]
    for number in range(stream.people):
        weights, spent = forget(ready, weights, number)
        cost += spent
        if number + 1 in stream.checkpoints:
            gone = tuple(range(number + 1))
            at = Yardstick(ready, gone, ready.retrained(gone))
            others = Yardstick(ready, gone, at.retrained[1:])
            points.append({"gone": number + 1, "cost": cost, **at.measured(weights)})
            points[-1]["retraining_after"] = others.measured(at.retrained[0])["after"]
            Console(stderr=True).print(f"{stream.bed}: {number + 1} forgotten, ρ {points[-1]['rho']:.2f}")
    return points


def by_projection(ready: Ready, weights: Weights, member: int) -> tuple[Weights, float]:
    """Forget one member by a projection, with factors no older than the ledger allows."""
    bed, kept = ready.bed, ready.bed.without(range(member + 1))
    spent = 0.0
    if member and member % max(1, round(REFIT_AFTER * len(bed.members))) == 0:
        ready.factors = ready.fitted(weights, kept)
        spent = 2 * (1 / 3 + 2 / 3 * 2) * len(kept)  # two passes, one forward and two backward each
    update = project(
        bed,
        weights,
        forget_ids=bed.members[member],
        retain_ids=kept,
        references=ready.references,
        factors=ready.factors,
        law=bed.law,
    )
    ready.references = ready.references.without(bed.members[member])
    return update.weights, (spent + (update.report.forward_backwards or 0.0)) / (bed.epochs * len(kept))


def by_renewal(ready: Ready, weights: Weights, member: int) -> tuple[Weights, float]:
    """Forget one member by a renewal."""
    bed, kept = ready.bed, ready.bed.without(range(member + 1))
    update = renew(
        bed,
        weights,
        forget_ids=bed.members[member],
        retain_ids=kept,
        references=ready.references,
        law=bed.law,
        seed=100 + member,
    )
    ready.references = ready.references.without(bed.members[member])
    return update.weights, update.report.share_of_training(bed.epochs) or 0.0


def figures(stream: Stream, points: list[Json]) -> list[Figure]:
    """Return a row per checkpoint."""
    if "absent" in points[0]:
        return [Figure(f"{stream.bed}: left out", points[0]["absent"])]
    rows = []
    name = f"{stream.bed} by {stream.rung}"
    for point in points:
        label = f"{name}, {point['gone']} gone"
        rows.append(Figure(f"{label}: ρ", round(point["rho"], 2), f"≤ {stream.most}", point["rho"] <= stream.most))
        after, floor = point["after"], point["retraining_after"]
        told = f"{after:.2f} (a retraining: {floor:.2f})"
        rows.append(Figure(f"{label}: ρ after an ordinary epoch", told, "≤ 1.5", after <= 1.5))
        least, most = point["retained_range"]
        utility = f"{100 * point['held_out']:+.1f} pp, {point['retained']:.3f} ({least:.3f}-{most:.3f})"
        rows.append(Figure(f"{label}: held-out accuracy, retained accuracy (retrainings)", utility))
    rows.append(Figure(f"{name}: cost of all {points[-1]['gone']}, retrainings", round(points[-1]["cost"], 3)))
    return rows


if __name__ == "__main__":
    main()
