"""Certificates against other people's optima and integrals; what is refused; what stays private."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from torch import Tensor, nn

from workers.unlearning import NothingToForget
from workers.unlearning.certified import Certificate, compose, resolve
from workers.unlearning.errors import NotConvex, NotCovered, Uncertifiable
from workers.unlearning.gaussian_dp import delta_of, drawn_once, epsilon_of, mu_of
from workers.unlearning.newton import Effort
from workers.unlearning.report import Update
from workers.unlearning.testing import Classification, Ridge

pytestmark = pytest.mark.slow  # seconds each: make check leaves them to make test

PEOPLE = Classification(users=20, each=4, hidden=0, features=3, l2_total=0.1)
EVERYONE = PEOPLE.samples_of(*range(20))


def certified(
    recipe: Classification, ids: list[int], tau: float = 1e-10, **options
) -> tuple[Update, Update, Certificate]:
    weights = options.pop("weights", None) or start(recipe, scale=0.0)
    return resolve(recipe, weights, retain_ids=ids, tolerance=tau, epsilon=0.5, delta=1e-5, **options)


def start(recipe: Classification, *, scale: float, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(like.shape, generator=draw, dtype=torch.float64).to(like)
        for name, like in recipe.build().state_dict().items()
    }


def flat(update: Update) -> np.ndarray:
    return np.concatenate([update.weights[name].double().numpy().ravel() for name in ("weight", "bias")])


def true_optimum(recipe: Classification, ids: list[int]) -> np.ndarray:
    """SciPy's trust-region Newton on the objective written out in NumPy: another solver, other derivatives."""
    x, y = recipe.inputs_NF[ids].numpy(), recipe.targets_N[ids].numpy()
    x1, classes = np.hstack([x, np.ones((len(x), 1))]), 3
    hot = np.eye(classes)[y]

    def pack(matrix: np.ndarray) -> np.ndarray:  # classes × (features + 1) → weight, then bias
        return np.concatenate([matrix[:, :-1].ravel(), matrix[:, -1]])

    def unpack(theta: np.ndarray) -> np.ndarray:
        return np.hstack([theta[: classes * x.shape[1]].reshape(classes, -1), theta[classes * x.shape[1] :][:, None]])

    def value(theta: np.ndarray) -> float:
        z = x1 @ unpack(theta).T
        return float((np.log(np.exp(z).sum(1)) - (z * hot).sum(1)).sum() + 0.5 * recipe.l2_total * theta @ theta)

    def slope(theta: np.ndarray) -> np.ndarray:
        z = np.exp(x1 @ unpack(theta).T)
        return pack((z / z.sum(1, keepdims=True) - hot).T @ x1) + recipe.l2_total * theta

    def bend(theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        z = np.exp(x1 @ unpack(theta).T)
        p, u = z / z.sum(1, keepdims=True), x1 @ unpack(v).T
        return pack((p * (u - (p * u).sum(1, keepdims=True))).T @ x1) + recipe.l2_total * v

    theta = optimize.minimize(value, np.zeros(classes * x1.shape[1]), jac=slope, method="L-BFGS-B").x
    for _ in range(6):  # L-BFGS stops where J no longer shows progress; dense Newton steps go on to rounding
        matrix = np.array([bend(theta, e) for e in np.eye(len(theta))])
        theta = theta - np.linalg.solve(matrix, slope(theta))
    assert np.linalg.norm(slope(theta)) < 1e-12
    return theta


@pytest.mark.parametrize("tau", [1e-2, 1e-5, 1e-10])
def test_after_deletions_the_working_copy_is_as_near_to_the_true_optimum_as_its_certificate_says(tau: float) -> None:
    trained = certified(PEOPLE, EVERYONE, tau)[0].weights
    working, _, certificate = certified(PEOPLE, EVERYONE[8:], tau, weights=trained)
    assert certificate.gradient_norm + certificate.rounding <= tau
    assert certificate.distance <= tau / PEOPLE.l2_total
    assert np.linalg.norm(flat(working) - true_optimum(PEOPLE, EVERYONE[8:])) <= certificate.distance


def test_forty_chained_deletions_leave_no_residual_behind() -> None:
    few = Classification(users=12, each=4, hidden=0, features=2, l2_total=0.1)
    ids = few.samples_of(*range(12))
    weights = certified(few, ids)[0].weights
    for gone in range(1, 41):
        working, _, certificate = certified(few, ids[gone:], weights=weights)
        weights = working.weights
        assert certificate.gradient_norm <= 1e-10
        assert certificate.releases == 1
    assert np.linalg.norm(flat(working) - true_optimum(few, ids[40:])) <= certificate.distance


@hypothesis_settings(max_examples=5, deadline=None)
@given(
    kept=st.sets(st.sampled_from(EVERYONE), min_size=1),
    digits=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    scale=st.floats(0.0, 5.0),
)
def test_wherever_they_start_two_solves_end_within_the_sensitivity(
    kept: set[int], digits: int, seed: int, scale: float
) -> None:
    ids, tau = sorted(kept), 10.0**-digits
    one, _, certificate = certified(PEOPLE, ids, tau, weights=start(PEOPLE, scale=scale, seed=seed))
    other = certified(PEOPLE, ids, tau)[0]
    assert np.linalg.norm(flat(one) - flat(other)) <= 2 * tau / PEOPLE.l2_total
    assert np.linalg.norm(flat(one) - true_optimum(PEOPLE, ids)) <= certificate.distance
    assert certificate.mu * certificate.sigma == pytest.approx(2 * tau / PEOPLE.l2_total)


@pytest.mark.parametrize("k", [1, 5, 29])
def test_ridge_regression_ends_at_its_closed_form(k: int) -> None:
    ridge = Ridge(samples=30, features=4, seed=1)
    ids = list(range(k, 30))
    working, _, certificate = resolve(
        ridge, ridge.solved(range(30)), retain_ids=ids, tolerance=1e-11, epsilon=0.5, delta=1e-5
    )
    torch.testing.assert_close(working.weights["weight"], ridge.solved(ids)["weight"], rtol=0, atol=1e-10)
    assert certificate.strong_convexity == pytest.approx(0.1 + 0.01 * (30 - k))


def test_a_start_where_plain_newton_steps_diverge_is_backtracked_to_the_optimum() -> None:
    far = certified(PEOPLE, EVERYONE, weights=start(PEOPLE, scale=300.0))[0]
    np.testing.assert_allclose(flat(far), true_optimum(PEOPLE, EVERYONE), atol=1e-9)


# --- the accounting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
def test_delta_is_the_integral_of_what_epsilon_leaves_uncovered(mu: float, epsilon: float) -> None:
    """δ(ε) = ∫ max(0, N(t; μ, 1) − e^ε N(t; 0, 1)) dt, integrated numerically from where it is positive."""
    begin = epsilon / mu + mu / 2

    def uncovered(t: float) -> float:
        return stats.norm.pdf(t, mu) - math.exp(epsilon) * stats.norm.pdf(t)

    expected = integrate.quad(uncovered, begin, begin + 40, epsabs=1e-14, limit=200)[0]
    assert delta_of(mu, epsilon=epsilon) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("mu", "epsilon"), [(0.1, 0.34), (0.2, 0.73), (0.5, 1.99)])
def test_epsilon_at_one_in_a_hundred_thousand_is_as_published(mu: float, epsilon: float) -> None:
    assert epsilon_of(mu, delta=1e-5) == pytest.approx(epsilon, abs=0.005)


@given(mu=st.floats(1e-3, 30), exponent=st.integers(2, 12))
def test_epsilon_and_mu_invert_each_other_on_the_safe_side(mu: float, exponent: int) -> None:
    delta = 10.0**-exponent
    epsilon = epsilon_of(mu, delta=delta)
    assert delta_of(mu, epsilon=epsilon) <= delta
    if epsilon > 0:
        assert mu_of(epsilon, delta=delta) == pytest.approx(mu, rel=1e-3)


def test_releases_add_up_in_quadrature() -> None:
    one = certified(PEOPLE, EVERYONE)[2]
    four = compose([one, one, one, one], delta=1e-5)
    assert (four.releases, four.mu) == (4, pytest.approx(2 * one.mu))
    assert four.epsilon == pytest.approx(epsilon_of(2 * one.mu, delta=1e-5))
    assert compose([four, four], delta=1e-5).mu == pytest.approx(math.sqrt(8) * one.mu)


# --- the noise ----------------------------------------------------------------------------------------------------


def test_the_published_copy_differs_by_noise_of_the_certified_size() -> None:
    wide = Classification(users=20, each=4, hidden=0, features=60, l2_total=1.0)
    working, published, certificate = certified(wide, EVERYONE, 1e-4)
    z = (flat(published) - flat(working)) / certificate.sigma
    assert stats.kstest(z, "norm").pvalue > 1e-4


def test_the_noise_is_fresh_unless_a_test_names_a_seed() -> None:
    noisy = [flat(certified(PEOPLE, EVERYONE, 1e-3, seed=seed)[1]).tolist() for seed in (None, None, 1, 1)]
    assert noisy[0] != noisy[1]
    assert noisy[2] == noisy[3]


def test_the_systems_noise_is_normal_and_finite() -> None:
    z = drawn_once(20_000).numpy()
    assert np.isfinite(z).all()
    assert stats.kstest(z, "norm").pvalue > 1e-6


def test_what_may_be_published_holds_no_measurement() -> None:
    _, published, certificate = certified(PEOPLE, EVERYONE)
    told = json.loads(json.dumps(certificate.as_dict(), allow_nan=False))
    assert "gradient_norm" not in told
    assert "rounding" not in told
    assert told["scope"].startswith("head: weight, bias; the frozen part is covered only if")
    assert (published.report.trials, published.report.step_norm, published.report.forward_backwards) == ((), None, None)


def test_a_given_sigma_is_kept_or_refused() -> None:
    least = certified(PEOPLE, EVERYONE, 1e-6)[2].sigma
    twice = certified(PEOPLE, EVERYONE, 1e-6, sigma=2 * least)[2]
    assert twice.epsilon < 0.5
    assert twice.mu == pytest.approx(2e-6 / PEOPLE.l2_total / (2 * least))
    with pytest.raises(Uncertifiable, match=r"too small for ε = 0\.5"):
        certified(PEOPLE, EVERYONE, 1e-6, sigma=0.9 * least)


# --- what is refused ----------------------------------------------------------------------------------------------


class Variant(Classification):
    """The same people under another module, loss or precision."""

    dtype = torch.float64

    def __init__(self, module: Callable[[], nn.Module], *, l2: float = 0.1, only: str = "") -> None:
        super().__init__(users=20, each=4, hidden=0, features=3, l2_total=l2)
        self._module, self._only = module, only

    def build(self) -> nn.Module:
        return self._module().to(self.dtype)

    def moves(self, name: str) -> bool:
        return name.startswith(self._only)

    def fetch(self, sample_ids) -> tuple[Tensor, Tensor]:
        inputs, targets = super().fetch(sample_ids)
        return inputs.to(self.dtype), targets


class Single(Variant):
    dtype = torch.float32


class Bounded(Variant):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets).tanh()


class Stretch(nn.Linear):
    """Nearly linear: a bend of one part in a million."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z + 1e-6 * z.square()


def linear() -> nn.Module:
    return nn.Linear(3, 3)


def layered(between: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 3))


@pytest.mark.parametrize(
    "module", [layered(nn.Tanh()), layered(nn.ReLU()), layered(nn.Identity()), lambda: Stretch(3, 3)]
)
def test_a_model_whose_moving_parameters_multiply_or_bend_is_refused(module: Callable[[], nn.Module]) -> None:
    recipe = Variant(module)
    with pytest.raises(NotConvex, match="not affine"):
        certified(recipe, EVERYONE, weights=recipe.build().state_dict())


def test_a_head_on_a_frozen_extractor_is_covered_and_the_scope_says_so() -> None:
    recipe = Variant(layered(nn.Tanh()), only="2.")
    weights = recipe.build().state_dict()
    working, published, certificate = certified(recipe, EVERYONE, weights=weights)
    assert certificate.moving == ("2.weight", "2.bias")
    assert all(torch.equal(update.weights["0.weight"], weights["0.weight"]) for update in (working, published))
    assert not torch.equal(working.weights["2.weight"], published.weights["2.weight"])


def test_no_weight_decay_is_refused() -> None:
    with pytest.raises(NotConvex, match="weight decay is 0"):
        certified(Variant(linear, l2=0.0), EVERYONE)


def test_a_loss_that_is_not_convex_is_refused() -> None:
    with pytest.raises(NotConvex, match="eigenvalues from -"):
        certified(Bounded(linear), EVERYONE)


def test_features_that_move_with_batch_statistics_are_refused() -> None:
    recipe = Variant(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)), only="1.")
    with pytest.raises((NotConvex, NotCovered), match=r"0\.running_mean"):
        certified(recipe, EVERYONE, weights=recipe.build().state_dict())


def test_single_precision_reaches_a_coarse_tolerance_in_the_weights_it_stores() -> None:
    recipe = Single(linear)
    working, _, certificate = certified(recipe, EVERYONE, 1e-2)
    assert working.weights["weight"].dtype == torch.float32
    assert np.linalg.norm(flat(working) - true_optimum(PEOPLE, EVERYONE)) <= certificate.distance


def test_single_precision_says_what_it_can_reach_where_the_tolerance_is_finer() -> None:
    with pytest.raises(Uncertifiable, match=r"1e-10 asked; rounding \(spacing 1\.2e-07\) alone leaves about \d"):
        certified(Single(linear), EVERYONE, 1e-10)


def test_a_solve_that_runs_out_of_steps_is_never_returned() -> None:
    with pytest.raises(Uncertifiable, match="after 1 Newton steps, 1e-10 asked"):
        certified(PEOPLE, EVERYONE, settings=Effort(newton_steps=1))


def test_noise_below_the_grid_of_the_weights_is_refused() -> None:
    recipe = Single(linear)
    with pytest.raises(Uncertifiable, match="lost in the spacing"):
        resolve(recipe, start(recipe, scale=0.0), retain_ids=EVERYONE, tolerance=1e-2, epsilon=1e9, delta=1e-5)


@pytest.mark.parametrize("ids", [[], [0, 1, 0]])
def test_samples_count_once_and_there_must_be_some(ids: list[int]) -> None:
    with pytest.raises(NothingToForget):
        certified(PEOPLE, ids)


def test_the_given_weights_are_never_written_to() -> None:
    weights = start(PEOPLE, scale=1.0)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    certified(PEOPLE, EVERYONE, weights=weights)
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize("delta", [0, -1, 1, 2, math.nan, math.inf])
def test_a_delta_outside_its_range_is_refused_and_no_search_runs_on(delta: float) -> None:
    ridge = Ridge(samples=20, features=3, seed=0)
    certificate = resolve(ridge, ridge.solved(range(20)), retain_ids=range(9), tolerance=1e-9, epsilon=1, delta=0.1)[2]
    for ask in (
        lambda: epsilon_of(0.1, delta=delta),
        lambda: mu_of(0.1, delta=delta),
        lambda: compose([certificate], delta=delta),
    ):
        with pytest.raises(Uncertifiable, match="δ"):
            ask()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_numbers_that_bound_nothing_are_refused(bad: float) -> None:
    with pytest.raises(Uncertifiable):
        delta_of(bad, epsilon=1.0)
    with pytest.raises(Uncertifiable):
        epsilon_of(bad, delta=1e-5)
    ridge = Ridge(samples=20, features=3, seed=0)
    asked = {"tolerance": 1e-9, "epsilon": 1.0, "delta": 1e-5}
    for name in asked:
        with pytest.raises(Uncertifiable):
            resolve(ridge, ridge.solved(range(20)), retain_ids=range(9), **{**asked, name: bad})
    with pytest.raises(Uncertifiable):
        resolve(ridge, ridge.solved(range(20)), retain_ids=range(9), **asked, sigma=bad)


def test_nothing_composes_to_nothing() -> None:
    with pytest.raises(Uncertifiable, match="no certificate"):
        compose([], delta=1e-5)


def test_an_epsilon_that_is_no_number_is_refused() -> None:
    for epsilon in (-1.0, math.nan, math.inf):
        with pytest.raises(Uncertifiable):
            delta_of(0.1, epsilon=epsilon)
        with pytest.raises(Uncertifiable):
            mu_of(epsilon, delta=1e-5)
