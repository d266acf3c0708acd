"""A model under a peer's hands: mini-batch steps, each paid for before it is taken.

Every peer runs the network in eval mode, as the engine does (dropout off, batch statistics frozen). Work is counted in
the unit of `workers.unlearning.objective.Cost`: 1/3 for a forward pass of a sample, 1 for forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Literal, TypedDict

import torch
from torch import Tensor

from workers.unlearning.errors import UnlearningError
from workers.unlearning.model import Model, Recipe, Weights
from workers.unlearning.objective import Cost

FORWARD = 1 / 3  # of a forward-backward, per sample


class Pacing(TypedDict, total=False):
    """How a first-order peer walks.

    Keys:
        epochs: passes over its data, if the budget lasts.
        lr: step size, on the mean loss of a mini-batch.
        batch_size: samples of R (or of the mixture) per step.
        optimiser: "sgd" or "adam" (torch's, L2 inside the gradient, as the authors' repositories use them).
        momentum: of SGD.
        weight_decay: of the mean objective. Absent or None: what the bed trains with, on the samples that stay.
    """

    epochs: int
    lr: float
    batch_size: int
    optimiser: Literal["sgd", "adam"]
    momentum: float
    weight_decay: float | None


class BudgetSpent(UnlearningError):
    """The next piece of work costs more than what is left."""


class Purse:
    """A budget in forward-backward equivalents, charged to a shared count.

    Args:
        cost: where the work is counted; what it already holds is not ours.
        budget: equivalents that this peer may spend; None is no limit.
    """

    def __init__(self, cost: Cost, budget: float | None) -> None:
        self._cost = cost
        self._left = math.inf if budget is None else budget

    def pay(self, samples: int, each: float) -> None:
        """Charge `each` equivalents for every sample, or raise BudgetSpent and charge nothing."""
        price = samples * each
        if price > self._left + 1e-9:  # thirds do not add up exactly
            raise BudgetSpent(f"{price:.6g} forward-backward equivalents needed, {self._left:.6g} left")
        self._left -= price
        self._cost.add(samples, each)


class Student:
    """Weights that move by mini-batch steps.

    Args:
        bed: the owner's recipe.
        weights: where to start; never written to.
        purse: what pays for the steps.
        pacing: a peer's defaults, overridden by the caller's settings.
        samples: |R|, by which the bed's weight decay is brought to the scale of a mean.

    Raises:
        TypeError: a setting that no peer has.
    """

    def __init__(self, bed: Recipe, weights: Weights, *, purse: Purse, pacing: Pacing, samples: int) -> None:
        unknown = pacing.keys() - Pacing.__annotations__.keys()
        if unknown:
            raise TypeError(f"no such settings: {sorted(unknown)}")
        self.model = Model(bed, weights)
        self.pay = purse.pay
        start = self.model.unflatten(self.model.theta_P)
        self.moving = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        self._optimiser = _optimiser(list(self.moving.values()), pacing, _decay(bed, pacing, samples))

    def run(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return outputs (with their graph) and targets; the caller has paid."""
        inputs, targets = self.model.recipe.fetch(ids)
        return self.model.call(self.moving, inputs), targets

    def loss(self, ids: Sequence[int]) -> Tensor:
        """Return the bed's mean loss over these samples."""
        return self.model.recipe.loss(*self.run(ids)).mean()

    def step(self, loss: Tensor) -> None:
        """Take one optimiser step down this loss."""
        leaves = list(self.moving.values())
        for leaf, grad in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
            leaf.grad = grad
        self._optimiser.step()

    def slow_to(self, lr: float) -> None:
        """Set the step size."""
        for group in self._optimiser.param_groups:
            group["lr"] = lr

    def weights(self) -> dict[str, Tensor]:
        """Return a full state dict of where the weights are now."""
        return self.model.state(self.model.flatten(self.moving))


class Teacher:
    """The deployed model's outputs, computed (and paid) once per sample, when first asked for.

    Args:
        model: as deployed.
        purse: what pays for the forward passes.
    """

    def __init__(self, model: Model, purse: Purse) -> None:
        self._model = model
        self._purse = purse
        self._known: dict[int, Tensor] = {}

    def outputs(self, ids: Sequence[int]) -> Tensor:
        """Return the outputs for these samples in order."""
        new = [i for i in ids if i not in self._known]
        if new:
            self._purse.pay(len(new), FORWARD)
            inputs, _ = self._model.recipe.fetch(new)
            with torch.no_grad():
                outputs = self._model.call(self._model.unflatten(self._model.theta_P), inputs)
            self._known.update(zip(new, outputs, strict=True))
        return torch.stack([self._known[i] for i in ids])


def dealer(seed: int) -> torch.Generator:
    """Return a stream of random numbers of its own."""
    return torch.Generator().manual_seed(seed)


def shuffled(ids: Sequence[int], *, batch_size: int, draw: torch.Generator) -> Iterator[list[int]]:
    """Yield one epoch of mini-batches in random order, the short one last."""
    order = torch.randperm(len(ids), generator=draw).tolist()
    for start in range(0, len(ids), batch_size):
        yield [ids[i] for i in order[start : start + batch_size]]


def epochs_of(ids: Sequence[int], *, epochs: int, batch_size: int, draw: torch.Generator) -> Iterator[list[int]]:
    """Yield the mini-batches of several epochs, shuffled anew in each."""
    for _ in repeat(None, epochs):
        yield from shuffled(ids, batch_size=batch_size, draw=draw)


def _decay(bed: Recipe, pacing: Pacing, samples: int) -> float:
    given = pacing.get("weight_decay")
    return bed.l2_per_sample + bed.l2_total / samples if given is None else given


def _optimiser(leaves: list[Tensor], pacing: Pacing, weight_decay: float) -> torch.optim.Optimizer:
    if pacing["optimiser"] == "adam":
        return torch.optim.Adam(leaves, lr=pacing["lr"], weight_decay=weight_decay)
    if pacing["optimiser"] == "sgd":
        return torch.optim.SGD(leaves, lr=pacing["lr"], momentum=pacing["momentum"], weight_decay=weight_decay)
    raise ValueError(f"optimiser {pacing['optimiser']!r} is neither 'sgd' nor 'adam'")
