"""Handwriting: 2720 letters of 136 kinds drawn by 100 people (Omniglot, small set 1), as an MLP and as a CNN.

Every person draws one alphabet, each letter once: a model learns a letter from at most twenty people who drew it.
"""

import numpy as np
import torch
from torch import nn

from .common import Bed, data_file, split

LETTERS = 136
INK = 15  # the darkest pixel


class Letters(Bed):
    """The drawings; which network reads them is the subclass's.

    Args:
        split_seed: deals people and rows.
    """

    def __init__(self, *, split_seed: int = 0) -> None:
        with np.load(data_file("omniglot_small1", "omniglot_small1_28x28.npz"), allow_pickle=False) as data:
            drawings, letters, people = data["X"], data["y"], data["user"]
        who = split(people.tolist(), seed=split_seed)
        super().__init__(torch.tensor(drawings)[:, None].float() / INK, torch.tensor(letters).long(), who)


class HandwritingMLP(Letters):
    """Pixels through two layers of 128 ReLU units."""

    name = "handwriting-mlp"
    epochs = 12

    def build(self) -> nn.Module:
        """Return 784-128-128-136, 135 000 weights."""
        hidden = nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, LETTERS))


class HandwritingCNN(Letters):
    """Two convolutions with pooling and a linear layer."""

    name = "handwriting-cnn"
    epochs = 12
    lr = 2e-3

    def build(self) -> nn.Module:
        """Return 16 and 32 filters of 3×3, pooled to 4×4, then linear: 75 000 weights."""
        first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3)
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 4 * 4, LETTERS))
