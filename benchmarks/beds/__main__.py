"""What there is to forget in each bed: `python -m benchmarks.beds NAME ...`.

Forgets one person at a time by retraining, with seeds 1, 2, 3: the floor is the mean distance between two retrainings
on that person's rows, and ρ before the mean distance of the original from the retrainings divided by it. Where ρ before
is near 1, nothing that a benchmark reports about forgetting means anything.
"""

import argparse
import random
import statistics
import time
from itertools import permutations

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from . import BEDS
from .common import Bed, state

SEEDS = (1, 2, 3)
Weights = dict[str, Tensor]


def main() -> None:
    """Measure the named beds, or all."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BEDS))
    arguments.add_argument("--people", type=int, default=1, help="of each kind")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    console = Console(width=200)
    for name in given.names or BEDS:
        bed = BEDS[name]()
        started = time.process_time()
        original = state(bed.train(bed.training_ids, seed=0))
        console.print(described(bed, original, time.process_time() - started))
        console.print(forgotten(bed, original, given.people))


def described(bed: Bed, original: Weights, seconds: float) -> str:
    """Say how large the bed is and how well its model fits."""
    outside = [i for ids in bed.strangers for i in ids]
    shares = [bed.accuracy(original, ids) for ids in (bed.training_ids, bed.test_ids, outside)]
    return (
        f"{bed.name}: {len(bed.targets)} rows, {len(bed.training_ids)} trained on, {len(bed.members)} members, "
        f"{len(bed.strangers)} strangers, P = {sum(t.numel() for t in original.values())}, {bed.epochs} epochs, "
        f"{seconds:.1f} CPU s, loss {bed.mean_loss(original, bed.training_ids):.2g}, "
        "accuracy trained / test / strangers " + " / ".join(f"{share:.3f}" for share in shares)
    )


def forgotten(bed: Bed, original: Weights, people: int) -> Table:
    """Retrain without one person at a time."""
    table = Table("kind", "member", "rows", "floor", "ρ before", "loss before", "loss retrained", title=bed.name)
    chosen = random.Random(0).sample(bed.ordinary, people)
    for kind, some in (("ordinary", chosen), ("memorised", bed.memorised[:people])):
        for one in some:
            ids = bed.members[one]
            retrained = [state(bed.train(bed.without([one]), seed=seed)) for seed in SEEDS]
            floor = statistics.fmean(bed.apart(a, b, ids) for a, b in permutations(retrained, 2))
            rho = statistics.fmean(bed.apart(each, original, ids) for each in retrained) / floor
            losses = bed.mean_loss(original, ids), statistics.fmean(bed.mean_loss(each, ids) for each in retrained)
            cells = (f"{floor:.3g}", f"{rho:.2f}", f"{losses[0]:.3g}", f"{losses[1]:.3g}")
            table.add_row(kind, str(one), str(len(ids)), *cells)
    return table


if __name__ == "__main__":
    main()
