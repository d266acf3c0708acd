"""Plain first-order peers: fine-tuning on R, distillation to references, NegGrad+."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle
from typing import Literal, Unpack

import torch
from torch import Tensor

from workers.unlearning.model import Model, Recipe, Weights
from workers.unlearning.objective import Cost

from .likeness import divergence
from .student import BudgetSpent, Pacing, Purse, Student, Teacher, dealer, epochs_of, shuffled

FINE_TUNE = Pacing(epochs=10, lr=0.01, batch_size=128, optimiser="sgd", momentum=0.0)
DISTIL = Pacing(epochs=1, lr=1e-3, batch_size=32, optimiser="adam", momentum=0.0)
NEG_GRAD_PLUS = Pacing(epochs=10, lr=0.01, batch_size=128, optimiser="sgd", momentum=0.0)


def fine_tune(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    budget: float | None = None,
    **pacing: Unpack[Pacing],
) -> dict[str, Tensor]:
    """Go on training on R alone: the baseline that everything must beat.

    Defaults: `finetune` of github.com/meghdadk/SCRUB, large_scale_unlearning.ipynb @ 812dd5d (SGD, lr 0.01, 10 epochs,
    no momentum, batches of 128), but with the bed's own weight decay. Costs |R| per epoch.
    """
    del forget_ids  # every peer takes the same arguments; this one never looks at S
    pacing = FINE_TUNE | pacing
    student = Student(bed, weights, purse=Purse(cost, budget), pacing=pacing, samples=len(retain_ids))
    with suppress(BudgetSpent):
        for ids in epochs_of(
            retain_ids, epochs=pacing["epochs"], batch_size=pacing["batch_size"], draw=dealer(2 * seed)
        ):
            student.pay(len(ids), 1)
            student.step(student.loss(ids))
    return student.weights()


def distil(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    targets: Tensor,
    budget: float | None = None,
    retained: Literal["labels", "self"] = "labels",
    forget_weight: float = 1.0,
    **pacing: Unpack[Pacing],
) -> dict[str, Tensor]:
    """Pull S to its references while R is held in place, all by first-order steps (Hinton 2015; cf. ReGUn 2603.11210).

    Mini-batches are drawn from S ∪ R together. Costs |D| per epoch, and |R|/3 once where R is held by its outputs.

    Args:
        bed: the recipe.
        weights: as deployed.
        forget_ids: S.
        retain_ids: R.
        seed: of the order.
        cost: where work is counted.
        targets: for every forget id in order, log-probabilities (or real outputs) of models that never saw it.
        budget: equivalents to spend.
        retained: hold R by its "labels" (the bed's loss and weight decay), or by the deployed model's own outputs
            ("self", without weight decay unless given: the deployed weights are then a stationary point for R).
        forget_weight: of a sample of S against one of R.
        pacing: see Pacing.
    """
    pacing = (DISTIL if retained == "labels" else DISTIL | Pacing(weight_decay=0.0)) | pacing
    purse = Purse(cost, budget)
    student = Student(bed, weights, purse=purse, pacing=pacing, samples=len(retain_ids))
    pull = _Pull(student, Teacher(Model(bed, weights), purse), dict(zip(forget_ids, targets, strict=True)))
    hold = {"labels": pull.to_labels, "self": pull.to_itself}[retained]
    with suppress(BudgetSpent):
        for ids in epochs_of(
            [*retain_ids, *forget_ids],
            epochs=pacing["epochs"],
            batch_size=pacing["batch_size"],
            draw=dealer(2 * seed),
        ):
            kept, gone = [i for i in ids if i not in pull.references], [i for i in ids if i in pull.references]
            student.pay(len(ids), 1)
            student.step((hold(kept) + forget_weight * pull.to_references(gone)) / len(ids))
    return student.weights()


def neg_grad_plus(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    budget: float | None = None,
    alpha: float = 0.95,
    forget_batch_size: int | None = None,
    **pacing: Unpack[Pacing],
) -> dict[str, Tensor]:
    """Descend α·(loss on R) − (1 − α)·(loss on S), a mini-batch of each per step (Kurmanji 2023, NegGrad+).

    As `train_negrad` of github.com/meghdadk/SCRUB, thirdparty/repdistiller/helper/loops.py @ 98ffb11: one epoch is one
    pass over R; the mini-batches of S are shuffled once per epoch and cycled. Defaults are the paper's small-scale ones
    as reported second-hand (α 0.95, SGD, lr 0.01, 10 epochs; large-scale: α 0.9999, 5 epochs); its weight decay of 0.1
    was that of its training, so the bed's stands here. Batches of 128. Costs |R| plus the S mini-batches per epoch.
    """
    pacing = NEG_GRAD_PLUS | pacing
    student = Student(bed, weights, purse=Purse(cost, budget), pacing=pacing, samples=len(retain_ids))
    order, forget_order = dealer(2 * seed), dealer(2 * seed + 1)
    size = forget_batch_size or pacing["batch_size"]
    with suppress(BudgetSpent):
        for _ in range(pacing["epochs"]):
            forget = cycle(list(shuffled(forget_ids, batch_size=size, draw=forget_order)))
            for kept in shuffled(retain_ids, batch_size=pacing["batch_size"], draw=order):
                gone = next(forget)
                student.pay(len(kept) + len(gone), 1)
                student.step(alpha * student.loss(kept) - (1 - alpha) * student.loss(gone))
    return student.weights()


class _Pull:
    """Sums of losses that hold or pull the outputs of some samples; none of them, zero."""

    def __init__(self, student: Student, teacher: Teacher, references: dict[int, Tensor]) -> None:
        self.references = references
        self._student = student
        self._teacher = teacher

    def to_labels(self, ids: list[int]) -> Tensor:
        return len(ids) * self._student.loss(ids) if ids else torch.zeros(())

    def to_itself(self, ids: list[int]) -> Tensor:
        return self._towards(self._teacher.outputs(ids), ids) if ids else torch.zeros(())

    def to_references(self, ids: list[int]) -> Tensor:
        return self._towards(torch.stack([self.references[i] for i in ids]), ids) if ids else torch.zeros(())

    def _towards(self, reference: Tensor, ids: list[int]) -> Tensor:
        outputs, targets = self._student.run(ids)
        bed = self._student.model.recipe
        return divergence(bed, outputs, reference.to(outputs.dtype), targets=targets).sum()
