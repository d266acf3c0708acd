"""SalUn: random labels on S, the true ones on R, and only the weights that S pulls at hardest may move (Fan 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Unpack

import torch
from torch import Tensor

from workers.unlearning.model import Recipe, Weights
from workers.unlearning.objective import Cost

from .likeness import random_targets
from .student import BudgetSpent, Pacing, Purse, Student, dealer, shuffled

SALUN = Pacing(epochs=10, lr=0.013, batch_size=256, optimiser="sgd", momentum=0.9)


def salun(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    budget: float | None = None,
    share: float = 0.5,
    **pacing: Unpack[Pacing],
) -> dict[str, Tensor]:
    """Fit S to labels drawn anew each time, then R to its own, in every epoch; weights outside the mask stay bit-equal.

    Fan et al., ICLR 2024, eq. 3-5. Mask: the half of the weights with the largest |∇ loss on S| at the deployed weights
    (threshold at the median), as generate_mask.py of github.com/OPTML-Group/Unlearn-Saliency @ ac880a2; its later
    version (@ 2b0a8a1) keeps the *smallest* instead, which contradicts the paper and is not followed. Loop: RL.py
    @ 3152cfe, the CIFAR-10 branch (labels uniform over all classes, the true one included). Defaults: README @ f31f82e
    (lr 0.013, 10 epochs) and arg_parser.py (SGD, momentum 0.9, batches of 256); the bed's weight decay in place of the
    5e-4 of its training. In regression the targets are drawn from R's (our carrying over, not the paper's).

    Costs |S| for the mask and |D| per epoch.

    Args:
        bed: the recipe.
        weights: as deployed.
        forget_ids: S.
        retain_ids: R.
        seed: of the order and the labels.
        cost: where work is counted.
        budget: equivalents to spend.
        share: of the weights that may move.
        pacing: see Pacing.

    Raises:
        NotCarriedOver: integer targets without classes in the last dimension.
    """
    pacing = SALUN | pacing
    student = Student(bed, weights, purse=Purse(cost, budget), pacing=pacing, samples=len(retain_ids))
    order, labels = dealer(2 * seed), dealer(2 * seed + 1)
    with suppress(BudgetSpent):
        masked = _Masked(student, _salient(student, forget_ids, share, pacing["batch_size"]))
        for _ in range(pacing["epochs"]):
            for ids in shuffled(forget_ids, batch_size=pacing["batch_size"], draw=order):
                student.pay(len(ids), 1)
                outputs, targets = student.run(ids)
                drawn = random_targets(bed, outputs, targets, donors=retain_ids, draw=labels)
                masked.step(bed.loss(outputs, drawn).mean())
            for ids in shuffled(retain_ids, batch_size=pacing["batch_size"], draw=order):
                student.pay(len(ids), 1)
                masked.step(student.loss(ids))
    return student.weights()


class _Masked:
    """Steps after which the weights outside the mask are put back, whatever decay or momentum did to them."""

    def __init__(self, student: Student, mask: dict[str, Tensor]) -> None:
        self._student = student
        self._mask = mask
        self._start = {name: tensor.detach().clone() for name, tensor in student.moving.items()}

    def step(self, loss: Tensor) -> None:
        self._student.step(loss)
        with torch.no_grad():
            for name, tensor in self._student.moving.items():
                tensor.copy_(torch.where(self._mask[name], tensor, self._start[name]))


def _salient(student: Student, forget_ids: Sequence[int], share: float, batch_size: int) -> dict[str, Tensor]:
    """Mark the share of all weights with the largest |∇ loss on S|."""
    leaves = list(student.moving.values())
    total = torch.zeros_like(student.model.theta_P)
    for start in range(0, len(forget_ids), batch_size):
        ids = forget_ids[start : start + batch_size]
        student.pay(len(ids), 1)
        grads = torch.autograd.grad(len(ids) * student.loss(ids), leaves, materialize_grads=True)
        total += torch.cat([grad.reshape(-1).double() for grad in grads])
    chosen = torch.zeros_like(total).index_fill_(0, total.abs().topk(int(share * len(total))).indices, 1.0)
    return {name: piece.bool() for name, piece in student.model.unflatten(chosen).items()}
