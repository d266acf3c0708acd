"""Spoken vowels: 990 utterances of 11 vowels by 15 speakers (UCI, Deterding), and an MLP that learns them by heart."""

import numpy as np
import torch
from torch import nn

from .common import Bed, data_file, split

SPREAD = 2.0  # fixed, so that no scaler remembers anyone; the ten features lie within ±5.3


class Vowels(Bed):
    """Ten log area ratios in, eleven vowels out.

    Args:
        split_seed: deals people and rows.
    """

    name = "vowel"
    epochs = 160
    lr = 1e-2

    def __init__(self, *, split_seed: int = 0) -> None:
        with np.load(data_file("vowel", "vowel.npz"), allow_pickle=False) as data:
            ratios, vowels, people = data["X"], data["y"], data["user"]
        who = split(people.tolist(), seed=split_seed)
        super().__init__(torch.tensor(ratios).float() / SPREAD, torch.tensor(vowels).long(), who)

    def build(self) -> nn.Module:
        """Return 10-64-64-11 with tanh units, 5 600 weights."""
        return nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 11))
