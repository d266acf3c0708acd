"""One step through EK-FAC taken for the curvature itself: the classical influence function, and the retained form.

The engine lets EK-FAC only precondition; these peers solve with it alone, as the attribution literature does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from workers.unlearning.model import Model, Recipe, Weights
from workers.unlearning.objective import Cost, Objective, require_finite

from .student import Purse, dealer

if TYPE_CHECKING:
    Operator = Callable[[Tensor], Tensor]


class Factors(Protocol):
    """EK-FAC factors of a data term, summed over the samples they were fitted on."""

    @property
    def samples(self) -> int:
        """How many those were."""

    def inverse(self, *, shift: float, scale: float = 1.0) -> Operator:
        """Return v ↦ (scale·EKFAC + shift·I)⁻¹ v."""


def ekfac_influence(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    budget: float | None = None,
    damping: float = 0.01,
    curvature_samples: int | None = None,
    factors: Factors | None = None,
) -> dict[str, Tensor]:
    """θ + (EKFAC_D + l2 + damping·|D|)⁻¹ Σ_S ∇ℓ: the influence function as most papers compute it.

    Koh & Liang 2017, eq. 1-2 (curvature of *all* data; damping 0.01 in the mean convention, their §4.2) with the EK-FAC
    of Grosse 2023, eq. 13-20. The per-sample weight decay of S leaves with its loss; `l2_total` stays.

    All or nothing: there is no half-way result. Costs what the fit charges, plus |S|.

    Args:
        bed: the recipe.
        weights: as deployed.
        forget_ids: S.
        retain_ids: R.
        seed: of the subsample for the curvature.
        cost: where work is counted.
        budget: equivalents to spend.
        damping: per sample of D, beyond the weight decay.
        curvature_samples: fit on that many random samples of D and scale up; None is all of them.
        factors: fitted before (at registration, say) on D or a sample of it: nothing is fitted or charged then.

    Raises:
        BudgetSpent: the work cost more than the budget; what was done is charged only where it was affordable.
    """
    model, purse = Model(bed, weights), Purse(cost, budget)
    everyone = [*retain_ids, *forget_ids]
    pull = _pull_of(model, forget_ids, purse)
    shift = bed.l2_per_sample * len(everyone) + bed.l2_total + damping * len(everyone)
    inverse = _inverse(model, everyone, shift, purse, seed, curvature_samples, factors)
    return _moved(model, inverse(pull))


def ekfac_step(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    budget: float | None = None,
    damping: float = 0.0,
    curvature_samples: int | None = None,
    factors: Factors | None = None,
    residual: Tensor | None = None,
) -> dict[str, Tensor]:
    """θ + (EKFAC_R + l2 + damping·|R|)⁻¹ (r0 − ∇J_R(θ)): the engine's system, solved with EK-FAC alone.

    Arguments as in `ekfac_influence`, with R for D. At the registered weights r0 − ∇J_R is Σ_S ∇ℓ, which is what a
    missing `residual` means (cost |S|). On later deletions pass r0 = ∇J_D(θ0) from the registration (cost |R|): the
    step then corrects what earlier ones left.
    """
    model, purse = Model(bed, weights), Purse(cost, budget)
    pull = _pull_of(model, forget_ids, purse) if residual is None else _shortfall(model, retain_ids, residual, purse)
    shift = bed.l2_per_sample * len(retain_ids) + bed.l2_total + damping * len(retain_ids)
    inverse = _inverse(model, retain_ids, shift, purse, seed, curvature_samples, factors)
    return _moved(model, inverse(pull))


def _pull_of(model: Model, ids: Sequence[int], purse: Purse) -> Tensor:
    """Σ ∇(ℓ_i + ½ l2_per_sample |θ|²): what leaves the objective with these samples."""
    purse.pay(len(ids), 1)
    return Objective(model, ids).gradient(model.theta_P) - model.recipe.l2_total * model.theta_P


def _shortfall(model: Model, retain_ids: Sequence[int], residual: Tensor, purse: Purse) -> Tensor:
    purse.pay(len(retain_ids), 1)
    return residual.to(model.theta_P) - Objective(model, retain_ids).gradient(model.theta_P)


def _inverse(
    model: Model,
    ids: Sequence[int],
    shift: float,
    purse: Purse,
    seed: int,
    samples: int | None,
    factors: Factors | None,
) -> Operator:
    known = factors or _fitted(model, ids, purse, seed, samples)
    return known.inverse(shift=shift, scale=len(ids) / known.samples)


def _fitted(model: Model, ids: Sequence[int], purse: Purse, seed: int, samples: int | None) -> Factors:
    from workers.unlearning.ekfac import fit  # noqa: PLC0415 - only these two peers need it

    order = torch.randperm(len(ids), generator=dealer(seed)).tolist()[:samples]
    objective = Objective(model, [ids[i] for i in sorted(order)], cost=Cost())
    factors = fit(objective, model.theta_P)
    purse.pay(1, objective.cost.forward_backwards)
    return factors


def _moved(model: Model, step: Tensor) -> dict[str, Tensor]:
    require_finite("an EK-FAC step", step)
    return model.state(model.theta_P + step)
