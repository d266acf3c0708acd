"""One bed made ready: the deployed model, its references and factors, and how any candidate is measured against it.

ρ is the mean distance of a candidate from the retrainings on the forgotten samples over the mean distance between two
retrainings: 1 is as near as retrainings are to each other. `after` is ρ after one further ordinary epoch on the
retained samples, for a retraining as for a candidate: a suppressed memory comes back there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from torch import Tensor

from benchmarks.beds.common import Bed, state
from workers.unlearning import ekfac
from workers.unlearning.model import Model
from workers.unlearning.objective import Objective
from workers.unlearning.references import cross_fit
from workers.unlearning.renewal import ordinary_epoch
from workers.unlearning.report import UpdateReport
from workers.unlearning.verification import Verdict, verify

Weights = dict[str, Tensor]
DEPLOYED_SEED, AFTER_SEED = 0, 91
RETRAINED_SEEDS = (1, 2, 3)
FOLDS, REPEATS = 5, 4


class Ready:
    """A bed with its deployed model, cross-fitted references and EK-FAC factors."""

    def __init__(self, bed: Bed, *, repeats: int = REPEATS, step: Callable[[], None] = lambda: None) -> None:
        self.bed = bed
        started = time.perf_counter()
        self.deployed = state(bed.train(bed.training_ids, seed=DEPLOYED_SEED))
        self.training_seconds = time.perf_counter() - started
        step()
        self.references = cross_fit(bed, bed.members, bed.strangers, folds=FOLDS, repeats=repeats, directory=None)
        step()
        self.factors = self.fitted(self.deployed, bed.training_ids)

    def fitted(self, weights: Weights, sample_ids: Sequence[int]) -> ekfac.Ekfac:
        """Fit EK-FAC factors with two cotangents per sample."""
        model = Model(self.bed, weights)
        return ekfac.fit(Objective(model, sample_ids), model.theta_P, draws=2)

    def retrained(self, gone: Sequence[int]) -> list[Weights]:
        """Train again without these members, once per seed."""
        kept = self.bed.without(gone)
        return [state(self.bed.train(kept, seed=seed)) for seed in RETRAINED_SEEDS]


@dataclass(frozen=True)
class Yardstick:
    """The retrainings without some members, and distances to them."""

    ready: Ready
    gone: tuple[int, ...]
    retrained: list[Weights]

    @property
    def forgotten(self) -> list[int]:
        """Sample ids of the members that are gone."""
        return [i for member in self.gone for i in self.ready.bed.members[member]]

    @property
    def kept(self) -> list[int]:
        """Training rows of the members that stay."""
        return self.ready.bed.without(self.gone)

    def floor(self) -> float:
        """Return the mean distance between two retrainings on the forgotten samples."""
        return statistics.fmean(self.ready.bed.apart(a, b, self.forgotten) for a, b in permutations(self.retrained, 2))

    def measured(self, weights: Weights) -> dict[str, Any]:
        """Return ρ now and after an epoch, and what the candidate does to everybody else."""
        bed, floor = self.ready.bed, self.floor()
        after = ordinary_epoch(bed, weights, self.kept, seed=AFTER_SEED)
        right = [bed.accuracy(one, self.kept) for one in self.retrained]
        held_out = [bed.accuracy(one, bed.test_ids) for one in self.retrained]
        return {
            "rho": self._rho(weights, floor),
            "after": self._rho(after, floor),
            "loss": bed.mean_loss(weights, self.forgotten),
            "held_out": bed.accuracy(weights, bed.test_ids) - statistics.fmean(held_out),
            "retained": bed.accuracy(weights, self.kept),
            "retained_range": [min(right), max(right)],
        }

    def _rho(self, weights: Weights, floor: float) -> float:
        far = (self.ready.bed.apart(one, weights, self.forgotten) for one in self.retrained)
        return statistics.fmean(far) / floor

    def judged(self, weights: Weights, report: UpdateReport) -> Verdict:
        """Run the gates with the judges' references and the resurrection test."""
        bed = self.ready.bed
        stay = [ids for number, ids in enumerate(bed.members) if number not in self.gone]
        return verify(
            bed,
            self.ready.deployed,
            weights,
            users=[bed.members[member] for member in self.gone],
            retained_users=stay,
            retained_ids=self.kept,
            strangers=bed.strangers,
            update=report,
            references=self.ready.references,
            after_epoch=ordinary_epoch(bed, weights, self.kept, seed=AFTER_SEED),
        )
