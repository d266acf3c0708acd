"""Owners with bad luck or odd habits, as recipes that a registered model can name."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests import noisy, toy


class Crash(Exception):
    """What ends a process in the middle of a training."""


class Interrupted(noisy.Noisy):
    """Ends after some trainings, as a machine does, and counts them."""

    ends_after = 3
    trainings = 0

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Callable[[float], None]) -> nn.Module:
        if type(self).trainings == self.ends_after:
            raise Crash
        type(self).trainings += 1
        return super().train(sample_ids, seed=seed, progress=progress)


class Flat(noisy.Noisy):
    """One number per sample instead of a column of one."""

    def build(self) -> nn.Module:
        return _Flat(toy.MEMBERS + toy.STRANGERS, 1, bias=False, dtype=torch.float64)

    def loss(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        return 0.5 * (outputs - targets) ** 2


class _Flat(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]
