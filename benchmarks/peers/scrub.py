"""SCRUB and SCRUB+R: a student that disobeys its teacher on S and obeys it on R (Kurmanji 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Unpack

import torch
from torch import Tensor

from workers.unlearning.model import Model, Recipe, Weights
from workers.unlearning.objective import Cost

from .likeness import divergence, error
from .student import FORWARD, BudgetSpent, Pacing, Purse, Student, Teacher, dealer, shuffled

SCRUB = Pacing(epochs=3, lr=5e-4, batch_size=256, optimiser="sgd", momentum=0.9)
DECAY_AFTER = (3, 5, 9)  # epochs after which the step size falls to a tenth (lr_decay_epochs, lr_decay_rate)


def scrub(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    budget: float | None = None,
    alpha: float = 0.001,
    gamma: float = 0.99,
    temperature: float = 4.0,
    max_epochs: int = 2,
    forget_batch_size: int = 512,
    **pacing: Unpack[Pacing],
) -> dict[str, Tensor]:
    """Alternate an epoch that raises KL(teacher ‖ student) on S with one that lowers α·KL + γ·loss on R.

    Kurmanji et al., NeurIPS 2023, eq. 3 and Algorithm 1. Loop and defaults: github.com/meghdadk/SCRUB,
    large_scale_unlearning.ipynb @ 812dd5d (γ 0.99, α 0.001, T 4, 2 max-epochs of 3, SGD 5e-4 with momentum 0.9, batches
    of 512 from S and 256 from R); the bed's weight decay in place of the 5e-4 of its training. One optimiser, with its
    momentum, serves both kinds of epoch, as there. The very first step on S has no gradient (student = teacher), so
    with S in one mini-batch the first max-epoch does nothing: try smaller mini-batches of S.

    Costs |S| per max-epoch and |R| per min-epoch, plus the teacher's |D|/3 once.

    Args:
        bed: the recipe.
        weights: as deployed: teacher and first student.
        forget_ids: S.
        retain_ids: R.
        seed: of the order.
        cost: where work is counted.
        budget: equivalents to spend.
        alpha: weight of KL on R.
        gamma: weight of the bed's loss on R.
        temperature: T of the softened KL.
        max_epochs: epochs that begin with a pass over S.
        forget_batch_size: mini-batches of S.
        pacing: see Pacing.
    """
    play = _Play(bed, weights, purse=Purse(cost, budget), pacing=SCRUB | pacing, samples=len(retain_ids))
    play.weigh(alpha=alpha, gamma=gamma, temperature=temperature)
    with suppress(BudgetSpent):
        for _ in play.epochs(forget_ids, retain_ids, max_epochs, forget_batch_size, seed):
            pass
    return play.student.weights()


def scrub_rewind(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    validation_ids: Sequence[int],
    budget: float | None = None,
    alpha: float = 0.001,
    gamma: float = 0.99,
    temperature: float = 4.0,
    max_epochs: int = 2,
    forget_batch_size: int = 512,
    **pacing: Unpack[Pacing],
) -> dict[str, Tensor]:
    """SCRUB+R: go back to the epoch whose error on S is nearest to the last student's error on never-seen samples.

    Kurmanji et al. 2023, §3.2. The validation samples should be distributed like S (same classes, same kind of user).
    Of equally near epochs the last is taken: it had the most repair on R. Errors are shares of wrong labels, as in the
    paper, mean losses in regression. Costs what `scrub` costs, |S|/3 per epoch and |validation|/3 once, paid first.
    """
    purse = Purse(cost, budget)
    play = _Play(bed, weights, purse=purse, pacing=SCRUB | pacing, samples=len(retain_ids))
    play.weigh(alpha=alpha, gamma=gamma, temperature=temperature)
    visited: list[tuple[float, dict[str, Tensor]]] = []
    with suppress(BudgetSpent):
        purse.pay(len(validation_ids), FORWARD)
        for _ in play.epochs(forget_ids, retain_ids, max_epochs, forget_batch_size, seed):
            purse.pay(len(forget_ids), FORWARD)
            visited.append((play.error(forget_ids), play.student.weights()))
    aim = play.error(validation_ids)
    nearest = min(reversed(visited), key=lambda visit: abs(visit[0] - aim), default=None)
    return play.student.weights() if nearest is None else nearest[1]


class _Play:
    """Teacher, student and the two kinds of epoch."""

    def __init__(self, bed: Recipe, weights: Weights, *, purse: Purse, pacing: Pacing, samples: int) -> None:
        self.student = Student(bed, weights, purse=purse, pacing=pacing, samples=samples)
        self._teacher = Teacher(Model(bed, weights), purse)
        self._pacing = pacing
        self._bed = bed

    def weigh(self, *, alpha: float, gamma: float, temperature: float) -> None:
        self._alpha, self._gamma, self._temperature = alpha, gamma, temperature

    def epochs(
        self, forget_ids: Sequence[int], retain_ids: Sequence[int], max_epochs: int, forget_batch_size: int, seed: int
    ) -> Iterator[int]:
        order, forget_order = dealer(2 * seed), dealer(2 * seed + 1)
        for epoch in range(1, self._pacing["epochs"] + 1):
            self.student.slow_to(self._pacing["lr"] * 0.1 ** sum(epoch > late for late in DECAY_AFTER))
            if epoch <= max_epochs:
                for ids in shuffled(forget_ids, batch_size=forget_batch_size, draw=forget_order):
                    self._disobey(ids)
            for ids in shuffled(retain_ids, batch_size=self._pacing["batch_size"], draw=order):
                self._obey(ids)
            yield epoch

    def error(self, ids: Sequence[int]) -> float:
        """Return the student's error; the caller has paid."""
        with torch.no_grad():
            return error(self._bed, *self.student.run(ids))

    def _disobey(self, ids: list[int]) -> None:
        self.student.pay(len(ids), 1)
        outputs, targets = self.student.run(ids)
        self.student.step(-self._apart(ids, outputs, targets))

    def _obey(self, ids: list[int]) -> None:
        self.student.pay(len(ids), 1)
        outputs, targets = self.student.run(ids)
        loss = self._bed.loss(outputs, targets).mean()
        self.student.step(self._gamma * loss + self._alpha * self._apart(ids, outputs, targets))

    def _apart(self, ids: list[int], outputs: Tensor, targets: Tensor) -> Tensor:
        reference = self._teacher.outputs(ids)
        return divergence(self._bed, outputs, reference, targets=targets, temperature=self._temperature).mean()
