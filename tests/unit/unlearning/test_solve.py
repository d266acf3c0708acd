"""Conjugate gradients against a dense solve."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.unlearning.errors import NonFinite
from workers.unlearning.solve import NoConvergence, conjugate_gradients


def _system(size: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=draw, dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64), torch.randn(size, generator=draw, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_it_solves_every_positive_definite_system(size: int, seed: int) -> None:
    A, b = _system(size, seed)
    found = conjugate_gradients(lambda v: A @ v, b, tolerance=1e-10, max_iterations=20 * size)
    torch.testing.assert_close(found.point_P, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-6)
    assert found.relative_residual == pytest.approx(float((b - A @ found.point_P).norm() / b.norm()), abs=1e-12)


def test_the_exact_inverse_as_preconditioner_needs_one_iteration() -> None:
    A, b = _system(30, 0)
    inverse = torch.linalg.inv(A)
    found = conjugate_gradients(
        lambda v: A @ v, b, tolerance=1e-8, max_iterations=5, precondition=lambda r: inverse @ r
    )
    assert found.iterations == 1


def test_a_missed_tolerance_raises_and_hands_over_where_it_stopped() -> None:
    A, b = _system(30, 1)
    with pytest.raises(NoConvergence, match="after 2 iterations") as missed:
        conjugate_gradients(lambda v: A @ v, b, tolerance=1e-12, max_iterations=2)
    stopped = missed.value.solution
    assert stopped.relative_residual == pytest.approx(float((b - A @ stopped.point_P).norm() / b.norm()))


def test_an_operator_that_lies_about_itself_is_found_out_by_the_final_residual() -> None:
    A, b = _system(10, 2)
    calls = 0

    def drifting(v: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return A @ v * (1 + 0.3 * (calls > 5))

    with pytest.raises(NoConvergence):
        conjugate_gradients(drifting, b, tolerance=1e-6, max_iterations=50)


def test_nan_in_a_product_stops_the_solve() -> None:
    with pytest.raises(NonFinite):
        conjugate_gradients(lambda v: v * math.nan, torch.ones(3).double(), tolerance=1e-3, max_iterations=9)


def test_a_zero_right_hand_side_has_the_zero_solution() -> None:
    found = conjugate_gradients(lambda v: v, torch.zeros(4).double(), tolerance=1e-3, max_iterations=9)
    assert found.iterations == 0
    assert not found.point_P.any()
