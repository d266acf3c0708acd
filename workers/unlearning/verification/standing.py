"""Where a person stands: one number per person that is high for somebody whom the model remembers.

Raw, without references: T_u = −(mean loss over the user's samples). An easy person looks remembered, and a hard one
hides. Calibrated, with out-of-fold references, every sample is held against what models say that never saw it:

    T_u = mean_i z_i,   z_i = (φ_θ(i) − mean_r φ_r(i)) / s_i,   s_i² = (κ s² + (R − 1) v_i) / (κ + R − 1)

φ is the confidence of `scores`; r runs over the R judging repeats and never over the teachers, whose predictions made
the target; v_i is the variance of φ_r(i) over r, s² its mean over all scored samples, and κ pulls the few repeats'
noisy variances together (Smyth 2004). The pooling treats everybody alike, so that ranks among strangers stay exact.

Shape suffixes: U users, N samples, R repeats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .gate import Sides, Users, samples_of
from .scores import Answers, Scores, user_means

_PRIOR = 4.0
"""κ: what the pooled variance counts, in repeats."""


class OutOfFold(Protocol):
    """Predictions by models that never saw the person, kept per repeat."""

    @property
    def judges(self) -> Sequence[int]:
        """The repeats that no update was fitted to."""

    def of(self, sample_ids: Sequence[int], *, repeats: Sequence[int]) -> Tensor:
        """Return raw outputs, shape (repeats, samples, *outputs)."""


@dataclass(frozen=True)
class Standing:
    """T of everybody under one model, and the same by loss alone."""

    users: Tensor
    members: Tensor
    strangers: Tensor

    @property
    def sides(self) -> tuple[Tensor, Tensor, Tensor]:
        """Users, members, strangers."""
        return self.users, self.members, self.strangers

    def reversed(self) -> "Standing":
        """Turn the other tail up: high for somebody who stands out as forgotten."""
        return Standing(-self.users, -self.members, -self.strangers)


class Statistic:
    """How T is computed here: by what the references say where there are any.

    Args:
        scores: the models to be judged.
        sides: whom to place.
        references: out-of-fold predictions of everybody on the sides; None for the raw statistic.
    """

    def __init__(self, scores: Scores, sides: Sides, references: OutOfFold | None) -> None:
        self._scores = scores
        self._people: tuple[Users, Users, Users] = sides.users, sides.members, sides.strangers
        self._ids = [i for people in self._people for i in samples_of(people)]
        usable = references if references is not None and references.judges else None
        self._judged = self._by_judges(usable) if usable else None
        self.judges = len(usable.judges) if usable else 0

    @property
    def name(self) -> str:
        """Say "calibrated" or "raw"."""
        return "calibrated" if self._judged else "raw"

    def standings(self, model: str) -> tuple[Standing, Standing]:
        """Return T under this model: by confidence, which decides, and by loss, which is reported."""
        answers = self._scores.answers(model, self._ids)
        return self._standing(answers, by_loss=False), self._standing(answers, by_loss=True)

    def _standing(self, answers: Answers, *, by_loss: bool) -> Standing:
        if self._judged is None:
            z_N = -answers.losses
        else:
            z_N = _standardised(_score(answers, by_loss), torch.stack([_score(a, by_loss) for a in self._judged]))
        sizes = [sum(len(user) for user in people) for people in self._people]
        parts = zip(torch.split(z_N, sizes), self._people, strict=True)
        return Standing(*(user_means(part_N, people) for part_N, people in parts))

    def _by_judges(self, references: OutOfFold) -> list[Answers]:
        targets = self._scores.answers(self._scores.names[0], self._ids).targets
        outputs_RN = references.of(self._ids, repeats=references.judges)
        return [self._scores.judged(outputs_N, targets) for outputs_N in outputs_RN]


def _score(answers: Answers, by_loss: bool) -> Tensor:  # noqa: FBT001 - passed through
    return -answers.losses if by_loss else answers.confidence


def _standardised(score_N: Tensor, judged_RN: Tensor) -> Tensor:
    """Return z for every sample; one judge alone has no variance, and its differences stay as they are."""
    repeats, away_N = len(judged_RN), score_N - judged_RN.mean(0)
    if repeats < 2:
        return away_N
    variance_N = judged_RN.var(0)
    shrunk_N = (_PRIOR * variance_N.mean() + (repeats - 1) * variance_N) / (_PRIOR + repeats - 1)
    return away_N / shrunk_N.sqrt() if bool(shrunk_N.min() > 0) else away_N
