"""Selective synaptic dampening: shrink the weights that matter more to S than to all training data (Foster 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.unlearning.model import Model, Recipe, Weights
from workers.unlearning.objective import Cost

from .student import Purse


def ssd(
    bed: Recipe,
    weights: Weights,
    *,
    forget_ids: Sequence[int],
    retain_ids: Sequence[int],
    seed: int,
    cost: Cost,
    budget: float | None = None,
    alpha: float = 10.0,
    dampening: float = 1.0,
    fisher_batch_size: int = 128,
) -> dict[str, Tensor]:
    """Multiply every weight with F_S > α·F_D by min(λ·F_D / F_S, 1); leave the others as they are.

    Foster et al., AAAI 2024, eq. 5-7; α 10, λ 1 (paper; forget_random_main.py @ 1a7db5b). F is the diagonal of the
    empirical Fisher matrix. github.com/if-loops/selective-synaptic-dampening, ssd.py @ 77161cc, squares the gradient of
    the *mean* loss of a mini-batch (of 128, the last one short) and averages over mini-batches; that is the default
    here. `fisher_batch_size=1` is the Fisher diagonal of the paper's text. Where |S| < 128 the two differ most: S is
    then one small mini-batch against larger ones of D.

    No optimiser, no randomness: `seed` is not used. Costs |S| + |D|. All or nothing: there is no half-way result.

    Args:
        bed: the recipe.
        weights: as deployed.
        forget_ids: S.
        retain_ids: R; D = R then S, in this order, as there.
        seed: unused.
        cost: where work is counted.
        budget: equivalents to spend.
        alpha: how much more a weight must matter to S.
        dampening: λ.
        fisher_batch_size: samples whose gradients are averaged before squaring.

    Raises:
        BudgetSpent: |S| + |D| is more than the budget.
    """
    del seed
    model = Model(bed, weights)
    Purse(cost, budget).pay(2 * len(forget_ids) + len(retain_ids), 1)
    on_forget = _fisher_diagonal(model, forget_ids, fisher_batch_size)
    on_all = _fisher_diagonal(model, [*retain_ids, *forget_ids], fisher_batch_size)
    factor = (dampening * on_all / on_forget).clamp(max=1.0)
    return model.state(torch.where(on_forget > alpha * on_all, model.theta_P * factor, model.theta_P))


def _fisher_diagonal(model: Model, ids: Sequence[int], batch_size: int) -> Tensor:
    """Average the squared gradient of mini-batches' mean loss, in float64."""
    starts = range(0, len(ids), batch_size)
    total = torch.zeros_like(model.theta_P)
    for start in starts:
        inputs, targets = model.recipe.fetch(ids[start : start + batch_size])
        leaves = {name: tensor.requires_grad_() for name, tensor in model.unflatten(model.theta_P.clone()).items()}
        loss = model.recipe.loss(model.call(leaves, inputs), targets).mean()
        grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        total += torch.cat([grad.reshape(-1).double() for grad in grads]).square()
    return total / len(starts)
