"""A preconditioner from a random sketch of the curvature: one pass over the data, then cheap to apply.

The samples are dealt into m groups. Each group's rows of Λ^½J are summed with random signs into one row, so that the m
rows U satisfy E[UᵀU] = G (a CountSketch; Clarkson & Woodruff 2013). UᵀU + λI is inverted through an m×m matrix. It only
ever preconditions: a poor sketch costs products, never correctness. On the wage panel's network (4 353 weights, λ = 1)
it took 353 products down to 44 (m = 1000) where a diagonal took 400 and did not arrive.

Shape suffixes: m groups, N samples of a chunk, O numbers in one sample's output, P moving parameters.
"""

import torch
from torch import Tensor

from .cotangents import cotangents, each_input, pulled_back, square_root
from .model import Inputs
from .objective import Objective
from .solve import Operator

LARGEST_SKETCH = 1 << 26  # numbers in U: half a gigabyte in float64


def sketched_inverse(objective: Objective, theta_P: Tensor, *, groups: int, shift: float, seed: int) -> Operator | None:
    """Return r ↦ (UᵀU + shift·I)⁻¹ r, or None where there is none to be had.

    None without weight decay, without groups, for wide outputs whose curvature has no known root (see `cotangents`),
    and for modules that `torch.vmap` cannot batch (recurrent nets): the solve then takes more products.

    Args:
        objective: whose GGN is sketched.
        theta_P: where it is linearised.
        groups: m; cut down to the number of samples and to a bounded memory.
        shift: λ > 0, weight decay plus damping.
        seed: of dealing and signs.
    """
    groups = min(groups, len(objective), LARGEST_SKETCH // len(theta_P))
    if groups == 0 or shift <= 0:
        return None
    try:
        rows_mP = _sketch(objective, theta_P, groups, torch.Generator().manual_seed(seed))
    except RuntimeError:  # vmap's only way to say that an operation cannot be batched
        return None
    if rows_mP is None:
        return None
    gram_mm = rows_mP @ rows_mP.T
    gram_mm.diagonal().add_(shift)
    factor_mm = torch.linalg.cholesky(gram_mm)
    return lambda r_P: (r_P - rows_mP.T @ _solve(factor_mm, rows_mP @ r_P)) / shift


def _sketch(objective: Objective, theta_P: Tensor, groups: int, generator: torch.Generator) -> Tensor | None:
    """Deal each chunk into its share of the groups and sum signed rows group by group."""
    rows, per_group = [], -(-len(objective) // groups)
    for inputs, targets in objective.chunks():
        cotangents_N = _signed_roots(objective, theta_P, inputs, targets, generator)
        if cotangents_N is None:
            return None
        shape = (max(1, len(targets) // per_group), min(per_group, len(targets)))
        dealt = torch.randperm(len(targets), generator=generator)[: shape[0] * shape[1]].to(targets.device)
        rows.append(_summed_rows(objective, theta_P, inputs, cotangents_N, dealt.reshape(shape)))
    objective.cost.add(len(objective), 2)
    return torch.cat(rows)


def _summed_rows(objective: Objective, theta_P: Tensor, inputs: Inputs, cotangents_N: Tensor, dealt: Tensor) -> Tensor:
    """Return Jᵀ(signed roots) of each group; `dealt` holds the samples of a group in each row."""
    groups = each_input(inputs, lambda tensor: tensor[dealt.to(tensor.device)])
    return pulled_back(objective, theta_P, groups, cotangents_N[dealt], objective.model.names)


def _signed_roots(
    objective: Objective, theta_P: Tensor, inputs: Inputs, targets: Tensor, generator: torch.Generator
) -> Tensor | None:
    """Return Λ^½ ε with random signs ε, shaped like the outputs; None where Λ has no root to be had."""
    with torch.no_grad():
        outputs = objective.model.call(objective.model.unflatten(theta_P), inputs)
    root = square_root(objective, outputs, targets)
    return None if root is None else next(cotangents(root, outputs, draws=1, generator=generator))


def _solve(factor_mm: Tensor, right_m: Tensor) -> Tensor:
    return torch.cholesky_solve(right_m[:, None], factor_mm)[:, 0]
