"""Digits: scikit-learn's 1797 scans dealt to 60 pseudo-people, some of whom label wrongly; an MLP that learns it all.

The people are invented, the scans are real. Each draws from three digits of their own, and a share of their labels is
replaced by a wrong one: none for half of them, one in twenty for a quarter, two in five for the last quarter.
"""

import random

import torch
from torch import Tensor, nn

from .common import Bed, DataAbsent, split

PEOPLE, DIGITS_EACH = 60, 3
FLIPPED = (0.0, 0.0, 0.05, 0.4)  # share of wrong labels by person, in turn
FEW, MANY = 0.02, 0.3
DEAL_SEED = 60  # people and labels are part of the data set, the split is not


class Digits(Bed):
    """64 pixels in, ten digits out.

    Args:
        split_seed: deals people and rows.
    """

    name = "digits"
    epochs = 240
    lr = 1e-2
    batch_size = 64

    def __init__(self, *, split_seed: int = 0) -> None:
        inputs, true = scans()
        people, targets = deal(true, seed=DEAL_SEED)
        super().__init__(inputs, targets, split(people, seed=split_seed))
        wrong = [float((targets[ids] != true[ids]).double().mean()) for ids in self.members]
        self.memorised = [i for i in _ranked(wrong) if wrong[i] >= MANY]
        self.ordinary = [i for i, share in enumerate(wrong) if share <= FEW]

    def build(self) -> nn.Module:
        """Return 64-128-10 with ReLU units, 9 600 weights."""
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def scans() -> tuple[Tensor, Tensor]:
    """Return pixels in [0, 1] and the digits.

    Raises:
        DataAbsent: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # noqa: PLC0415 - publishes no types; only this bed needs it
    except ImportError as absent:
        raise DataAbsent("scikit-learn, which carries the digits, is not installed") from absent
    data = load_digits()
    return torch.tensor(data.data).float() / 16, torch.tensor(data.target).long()


def deal(true: Tensor, *, seed: int) -> tuple[list[int], Tensor]:
    """Return each scan's person and label."""
    draw = random.Random(seed)
    habits = [draw.sample(range(10), DIGITS_EACH) for _ in range(PEOPLE)]
    people, labels = [], []
    for digit in true.tolist():
        fans = [person for person in range(PEOPLE) if digit in habits[person]]
        person = draw.choice(fans)
        wrong = draw.random() < FLIPPED[person % len(FLIPPED)]
        people.append(person)
        labels.append(draw.choice([other for other in range(10) if other != digit]) if wrong else digit)
    return people, torch.tensor(labels)


def _ranked(shares: list[float]) -> list[int]:
    return sorted(range(len(shares)), key=lambda i: -shares[i])
