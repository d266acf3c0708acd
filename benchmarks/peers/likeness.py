"""How far outputs are from reference outputs, and targets drawn at random: classification, sequences, regression.

Integer targets mean classes along the outputs' last dimension: softmax, KL. Real targets mean squared error with unit
variance, where KL(reference ‖ outputs) = ½|outputs − reference|². A bed with another likelihood (Bernoulli, or a
loss averaged over positions) brings its own `divergence`. Negative labels are padding and count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from workers.unlearning.errors import UnlearningError
from workers.unlearning.model import Recipe


class NotCarriedOver(UnlearningError, NotImplementedError):
    """The peer's idea has no counterpart for outputs and targets of this kind."""


@runtime_checkable
class Compares(Protocol):
    """A bed that knows better how to compare outputs with reference outputs."""

    def divergence(self, outputs: Tensor, reference: Tensor, targets: Tensor, /) -> Tensor:
        """Return KL(reference ‖ outputs) per sample, shape (N,)."""


def divergence(bed: Recipe, outputs: Tensor, reference: Tensor, *, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T²·KL(reference/T ‖ outputs/T) per sample, summed over positions, shape (N,) (Hinton 2015).

    Args:
        bed: asked first, if it `Compares`; T is then 1.
        outputs: of the student.
        reference: outputs of the same shape; log-probabilities will do, since their softmax is themselves.
        targets: tell by their type which likelihood it is.
        temperature: T; no effect on squared differences.

    Raises:
        NotCarriedOver: integer targets without classes in the last dimension.
    """
    if isinstance(bed, Compares):
        return bed.divergence(outputs, reference, targets)
    if targets.is_floating_point():
        return 0.5 * (outputs - reference).square().flatten(1).sum(1)
    _classes(outputs, targets)
    student, teacher = ((z / temperature).log_softmax(-1) for z in (outputs, reference))
    each = (teacher.exp() * (teacher - student)).sum(-1) * (targets >= 0)
    return temperature**2 * each.reshape(len(targets), -1).sum(1)


def random_targets(
    bed: Recipe, outputs: Tensor, targets: Tensor, *, donors: Sequence[int], draw: torch.Generator
) -> Tensor:
    """Draw labels uniformly over all classes, or real targets from the donors'; negative labels (padding) stay.

    Raises:
        NotCarriedOver: integer targets without classes in the last dimension.
    """
    if targets.is_floating_point():
        chosen = torch.randint(len(donors), (len(targets),), generator=draw).tolist()
        return bed.fetch([donors[i] for i in chosen])[1]
    drawn = torch.randint(_classes(outputs, targets), targets.shape, generator=draw)
    return torch.where(targets < 0, targets, drawn.to(targets.dtype))


def error(bed: Recipe, outputs: Tensor, targets: Tensor) -> float:
    """Return the share of wrong labels, or the mean loss where targets are real."""
    if targets.is_floating_point():
        return float(bed.loss(outputs, targets).mean())
    _classes(outputs, targets)
    return float((outputs.argmax(-1) != targets)[targets >= 0].double().mean())


def _classes(outputs: Tensor, targets: Tensor) -> int:
    if outputs.dim() != targets.dim() + 1 or outputs.shape[-1] < 2:
        raise NotCarriedOver(
            f"integer targets {tuple(targets.shape)} do not index the last dimension of outputs {tuple(outputs.shape)}"
        )
    return outputs.shape[-1]
