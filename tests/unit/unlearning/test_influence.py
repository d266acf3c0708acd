"""The step against closed forms and true optima; its refusals; what it reports."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.unit.unlearning.problems import PROBLEMS, dense_ggn, dense_gradient
from workers.unlearning import (
    NothingToForget,
    NotTrainable,
    Settings,
    UpdateReport,
    forget,
    residual,
    retrain,
)
from workers.unlearning.stability import StepControl
from workers.unlearning.testing import Classification, Ridge

SHARP = Settings(tolerance=1e-13)
FAR = Settings(tolerance=1e-13, control=StepControl(max_function_step=float("inf")))  # ten of eleven samples may go


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(2, 40),
    features=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    share=st.floats(0.0, 1.0),
    l2_per_sample=st.floats(0.0, 0.1),
    l2_total=st.floats(0.05, 2.0),
)
def test_one_step_on_ridge_regression_is_retraining_for_every_k(
    samples: int, features: int, seed: int, share: float, l2_per_sample: float, l2_total: float
) -> None:
    ridge = Ridge(samples=samples, features=features, seed=seed, l2_per_sample=l2_per_sample, l2_total=l2_total)
    k = 1 + round(share * (samples - 2))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()
    update = forget(ridge, ridge.solved(range(samples)), forget_ids=order[:k], retain_ids=order[k:], settings=FAR)
    torch.testing.assert_close(update.weights["weight"], ridge.solved(order[k:])["weight"], rtol=0, atol=1e-10)


def test_a_chain_of_single_deletions_ends_where_retraining_ends() -> None:
    ridge = Ridge(samples=30, features=5, seed=3)
    weights = ridge.solved(range(30))
    for gone in range(20):
        weights = forget(ridge, weights, forget_ids=[gone], retain_ids=range(gone + 1, 30), settings=SHARP).weights
    torch.testing.assert_close(weights["weight"], ridge.solved(range(20, 30))["weight"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [0, 3, 1024])
def test_the_preconditioner_changes_the_work_and_not_the_result(groups: int) -> None:
    ridge = Ridge(samples=40, features=6, seed=0)
    settings = Settings(tolerance=1e-13, groups=groups)
    update = forget(ridge, ridge.solved(range(40)), forget_ids=[0, 9], retain_ids=RIDGE_REST, settings=settings)
    torch.testing.assert_close(update.weights["weight"], ridge.solved(RIDGE_REST)["weight"], rtol=0, atol=1e-10)


RIDGE_REST = [i for i in range(40) if i not in {0, 9}]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_step_solves_the_dense_system_of_the_retained_samples(problem: str) -> None:
    """At any weights: Δ = (H_R + l2·I)⁻¹ (r0 − ∇J_R), H_R from full jacobians, r0 what the optimiser left."""
    toy = PROBLEMS[problem]()
    everyone = list(range(len(toy._targets)))
    rest = everyone[:-2]
    anything = StepControl(accept_above=-1e9, max_function_step=1e9)
    update = forget(
        toy,
        toy.weights,
        forget_ids=everyone[-2:],
        retain_ids=rest,
        residual=residual(toy, toy.weights, everyone),
        settings=Settings(tolerance=1e-11, control=anything),
    )
    l2 = toy.l2_per_sample * len(rest) + toy.l2_total
    right = dense_gradient(toy, everyone) - dense_gradient(toy, rest)
    left = dense_ggn(toy, len(rest))
    step = torch.linalg.solve(left + l2 * torch.eye(len(left), dtype=torch.float64), right)
    names = [name for name, _ in toy.build().named_parameters()]
    moved = torch.cat([(update.weights[name] - toy.weights[name]).flatten() for name in names])
    torch.testing.assert_close(moved, step, rtol=1e-6, atol=1e-9)


def test_polished_logistic_regression_reaches_the_retrained_optimum() -> None:
    recipe = Classification(users=20, each=4, hidden=0)
    everyone, rest = recipe.samples_of(*range(20)), recipe.samples_of(*range(2, 20))
    trained = retrain(recipe, everyone, seed=0).weights
    target = retrain(recipe, rest, seed=1).weights["weight"]
    settings = Settings(tolerance=1e-8, steps=8, tries=12, stationarity=1e-12)
    update = forget(recipe, trained, forget_ids=recipe.samples_of(0, 1), retain_ids=rest, settings=settings)
    start, end = (float((w - target).norm()) for w in (trained["weight"], update.weights["weight"]))
    assert end < 1e-3 * start


def test_the_given_weights_are_never_written_to() -> None:
    ridge = Ridge(samples=20, features=3, seed=0)
    weights = ridge.solved(range(20))
    before = weights["weight"].clone()
    update = forget(ridge, weights, forget_ids=[1], retain_ids=range(2, 20))
    assert torch.equal(weights["weight"], before)
    assert update.weights["weight"].data_ptr() != weights["weight"].data_ptr()


def test_two_runs_give_the_same_bits() -> None:
    toy = PROBLEMS["convolution"]()
    first, second = (forget(toy, toy.weights, forget_ids=[0], retain_ids=range(1, 14)) for _ in range(2))
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert first.report == second.report


def _memorised(**changes: Any) -> UpdateReport:  # Any: settings
    """Report on a user whom an over-fitted network knows by heart: the undamped step is far too long."""
    recipe = Classification(users=10, each=4, hidden=24, l2_total=0.01)
    everyone = recipe.samples_of(*range(10))
    trained = retrain(recipe, everyone, seed=0).weights
    settings = Settings(tolerance=1e-2, **changes)
    return forget(recipe, trained, forget_ids=recipe.samples_of(0), retain_ids=everyone[4:], settings=settings).report


def test_a_step_that_ends_damped_is_reported_incomplete() -> None:
    report = _memorised(tries=6)
    assert not report.trials[0].accepted
    assert not report.complete
    assert "damped" in str(report.reason)


def test_when_no_step_is_accepted_the_weights_stay_and_the_report_says_so() -> None:
    report = _memorised(tries=1)
    assert report.reason == "no step was accepted in 1 tries"
    assert report.step_norm == 0


def test_a_solve_that_ran_out_of_products_is_reported_incomplete() -> None:
    ridge = Ridge(samples=60, features=20, seed=0, l2_total=1e-3)
    settings = Settings(tolerance=1e-12, max_products=2, groups=0)
    report = forget(ridge, ridge.solved(range(60)), forget_ids=[0], retain_ids=range(1, 60), settings=settings).report
    assert not report.complete
    assert "relative residual" in str(report.reason)


def test_a_step_beyond_the_trust_region_is_not_taken() -> None:
    ridge = Ridge(samples=20, features=3, seed=0)
    settings = Settings(tries=1, control=StepControl(max_function_step=1e-12))
    update = forget(ridge, ridge.solved(range(20)), forget_ids=[0], retain_ids=range(1, 20), settings=settings)
    assert not update.report.complete
    assert torch.equal(update.weights["weight"], ridge.solved(range(20))["weight"])


def test_the_report_is_strict_json_and_reads_back() -> None:
    report = _memorised(tries=2)
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert UpdateReport.from_dict(values) == report


def test_cost_is_counted_per_sample_of_the_retained_set() -> None:
    """One value and one gradient, one sketch at 2, products at 2 each: every term is a multiple of |R|."""
    ridge = Ridge(samples=33, features=4, seed=0)
    report = forget(ridge, ridge.solved(range(33)), forget_ids=[0], retain_ids=range(1, 33)).report
    passes = report.forward_backwards / 32 if report.forward_backwards else 0
    products = report.trials[0].iterations + 3  # the residual, the predicted decrease, the total step
    assert passes == pytest.approx(2 * products + 2 + 1 + 2 / 3)
    assert report.share_of_training(100) == pytest.approx(passes / 100)


def test_progress_runs_from_zero_to_one_without_stepping_back() -> None:
    seen: list[float] = []
    ridge = Ridge(samples=40, features=6, seed=0)
    forget(ridge, ridge.solved(range(40)), forget_ids=[0], retain_ids=range(1, 40), progress=seen.append)
    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] == 1


@pytest.mark.parametrize(
    ("gone", "rest", "fact"),
    [
        ([], [1, 2], "0 samples to forget"),
        ([1], [], "0 to retain"),
        ([1], [1, 2], "1 sample ids"),
        ([1, 1], [2], "1 sample ids"),
    ],
)
def test_sets_that_make_no_sense_are_refused(gone: list[int], rest: list[int], fact: str) -> None:
    ridge = Ridge(samples=5, features=2, seed=0)
    with pytest.raises(NothingToForget, match=fact):
        forget(ridge, ridge.solved(range(5)), forget_ids=gone, retain_ids=rest)


def test_batch_statistics_are_recomputed_unless_the_caller_leaves_them() -> None:
    class Normed(Classification):
        def build(self) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 3)).double()

    recipe = Normed(users=4)
    weights = recipe.build().state_dict()
    gone, rest = recipe.samples_of(0), recipe.samples_of(1, 2, 3)
    anew = forget(recipe, weights, forget_ids=gone, retain_ids=rest)
    assert anew.report.recomputed_buffers == ("0.running_mean", "0.running_var", "0.num_batches_tracked")
    torch.testing.assert_close(anew.weights["0.running_mean"], recipe.inputs_NF[rest].mean(0))
    left = ("0.running_mean", "0.running_var")
    report = forget(recipe, weights, forget_ids=gone, retain_ids=rest, settings=Settings(frozen_buffers=left)).report
    assert report.frozen_buffers == left
    assert report.recomputed_buffers == ()


def test_a_recipe_without_train_cannot_be_retrained() -> None:
    with pytest.raises(NotTrainable):
        retrain(Ridge(samples=3, features=1, seed=0), [0, 1], seed=0)


def test_retraining_leaves_the_callers_randomness_alone() -> None:
    recipe = Classification(users=3, each=2, hidden=0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    retrain(recipe, recipe.samples_of(0, 1), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_retraining_is_repeatable_by_its_seed() -> None:
    recipe = Classification(users=4, each=3, hidden=4)
    first, again, other = (retrain(recipe, recipe.samples_of(0, 1), seed=seed).weights for seed in (1, 1, 2))
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])
