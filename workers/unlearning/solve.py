"""Preconditioned conjugate gradients that never take their own word for the residual.

The recurrence's residual drifts from the truth in finite precision, so b − A x is computed anew at the end, and a solve
that misses its tolerance raises.

Shape suffix: P unknowns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import UnlearningError
from .model import Progress
from .objective import require_finite

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """Where conjugate gradients stopped.

    Attributes:
        point_P: the solution, shape (P,).
        iterations: products spent in the recurrence (one more measured the residual).
        relative_residual: |b − A x| / |b|, from a product of its own.
    """

    point_P: Tensor  # noqa: N815 - a shape suffix
    iterations: int
    relative_residual: float


class NoConvergence(UnlearningError):
    """A linear solve missed its tolerance; `solution` holds where it stopped."""

    def __init__(self, sentence: str, solution: Solution) -> None:
        super().__init__(sentence)
        self.solution = solution


def conjugate_gradients(
    apply: Operator,
    b_P: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
    precondition: Operator | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Solve A x = b for a symmetric positive definite A (Hestenes & Stiefel 1952).

    Args:
        apply: v ↦ A v.
        b_P: right-hand side.
        tolerance: largest accepted |b − A x| / |b|.
        max_iterations: products allowed.
        precondition: r ↦ M⁻¹ r with M symmetric positive definite and close to A; identity if None.
        progress: called with the share of iterations spent.

    Returns:
        The solution with its independently computed residual.

    Raises:
        NoConvergence: the tolerance was missed; the exception carries the Solution reached.
        NonFinite: the operator returned NaN or infinity.

    >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    >>> b = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> found = conjugate_gradients(lambda v: A @ v, b, tolerance=1e-12, max_iterations=2)
    >>> bool(torch.allclose(found.point_P, torch.linalg.solve(A, b)))
    True
    """
    size = float(b_P.norm())
    if size == 0:
        return Solution(torch.zeros_like(b_P), 0, 0.0)
    x_P, iterations = _iterate(apply, b_P, tolerance * size, max_iterations, precondition, progress)
    found = Solution(x_P, iterations, float((b_P - apply(x_P)).norm()) / size)
    if found.relative_residual > tolerance:
        raise NoConvergence(
            f"relative residual {found.relative_residual:.3g} after {iterations} iterations, {tolerance:.3g} asked",
            found,
        )
    return found


def _iterate(
    apply: Operator,
    b_P: Tensor,
    target: float,
    max_iterations: int,
    precondition: Operator | None,
    progress: Progress | None,
) -> tuple[Tensor, int]:
    """Run the recurrence until its own residual is safely below the target, or A shows no curvature left."""
    x_P, r_P = torch.zeros_like(b_P), b_P.clone()
    z_P = precondition(r_P) if precondition else r_P
    p_P, rz = z_P.clone(), float(r_P @ z_P)
    for iteration in range(1, max_iterations + 1):
        Ap_P = apply(p_P)
        curvature = float(p_P @ Ap_P)
        require_finite("a curvature product", curvature)
        if curvature <= 0:
            return x_P, iteration
        x_P = x_P + rz / curvature * p_P
        r_P = r_P - rz / curvature * Ap_P
        if progress:
            progress(iteration / max_iterations)
        if float(r_P.norm()) <= 0.9 * target:
            return x_P, iteration
        z_P = precondition(r_P) if precondition else r_P
        before, rz = rz, float(r_P @ z_P)
        p_P = z_P + rz / before * p_P
    return x_P, max_iterations
