"""The toy model with trainings that say of strangers what their seed likes, so that references scatter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests import toy

SCATTER = 0.2


def scattered(weight: Tensor, *, seed: int) -> Tensor:
    """The weights with a random draw for everybody who has none."""
    noise = SCATTER * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(weight == 0, noise, weight)


class Noisy(toy.Toy):
    """Ridge regression that leaves the weights of people it never saw where a random start put them."""

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Callable[[float], None]) -> nn.Module:
        module = super().train(sample_ids, seed=seed, progress=progress)
        with torch.no_grad():
            module.weight.copy_(scattered(module.weight, seed=seed))
        return module


class Paced(Noisy):
    """The same with a pace, which unlocks the resurrection test."""

    lr = 1e-4
    batch_size = 64
    epochs = 2.0


class Counting(toy.Toy):
    """The toy model with a sum over samples in a buffer, which no step can take anybody out of."""

    def build(self) -> nn.Module:
        return _WithSum()

    def train(self, sample_ids: Sequence[int], /, *, seed: int, progress: Callable[[float], None]) -> nn.Module:
        module = super().train(sample_ids, seed=seed, progress=progress)
        module.get_buffer("seen").fill_(len(sample_ids))
        return module


class _WithSum(nn.Linear):
    def __init__(self) -> None:
        super().__init__(toy.MEMBERS + toy.STRANGERS, 1, bias=False, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("seen").add_(len(inputs))
        return super().forward(inputs)


recipe = Noisy()
REFERENCE = "tests.noisy:recipe"


class Renewable(Noisy):
    """A module that exact products can't read, with a pace at which it can be renewed."""

    lr = 0.02
    batch_size = 32
    l2_per_sample = l2_total = 0.0  # Adam would take it out on the weights of strangers, which no sample holds
    epochs = 500.0

    def build(self) -> nn.Module:
        return _Opaque(toy.MEMBERS + toy.STRANGERS, 1, bias=False, dtype=torch.float64)


class _Same(torch.autograd.Function):
    """Identity without a forward-mode derivative, as an owner's own kernel may be."""

    @staticmethod
    def forward(_: object, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(_: object, slope: Tensor) -> Tensor:
        return slope


class _Opaque(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = _Same.apply(super().forward(inputs))
        return found
