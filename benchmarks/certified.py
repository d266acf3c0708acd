"""What a certificate of a convex head costs and buys, on scikit-learn's digits: `make bench-certified`.

A logistic regression (digits 0-4 against 5-9, 64 pixels, 1 200 rows, weight decay 1) forgets 400 rows one after the
other; every re-solve starts at the last working copy. Noise is added for (0.5, 1e-5) against "retrained, same noise",
for one release and for a release after each of the 400 deletions together. Beside it runs what the literature does: one
exact Newton step per deletion, and the data-dependent bound of Guo et al. (2020, corollary 1), summed, next to the
residual itself. Shorter: the same with ten classes, and ridge regression against its closed form.

Costs are counted in per-sample forward-backward equivalents, as a share of the same solver's from zero weights. L-BFGS
(SciPy) from zero is a second opinion on the optimum and on that cost; it stops near a gradient norm of 1e-6, not at τ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from benchmarks.report import Figure, write  # noqa: E402 - after the path
from workers.unlearning import Update  # noqa: E402
from workers.unlearning.certified import Certificate, resolve  # noqa: E402
from workers.unlearning.gaussian_dp import epsilon_of, mu_of  # noqa: E402
from workers.unlearning.model import Model  # noqa: E402
from workers.unlearning.newton import Effort  # noqa: E402
from workers.unlearning.objective import Objective  # noqa: E402
from workers.unlearning.testing import Ridge  # noqa: E402

RESULT = Path(__file__).parent / "results" / "certified.json"
TRAIN, TAU, EPSILON, DELTA = 1200, 1e-10, 0.5, 1e-5
EFFORT = Effort(groups=2048)  # more groups than rows: with one output, the sketch is the Hessian of the first point
Weights = dict[str, Tensor]


class Digits:
    """Logistic regression on 8 × 8 digits in float64, two classes or ten; shuffled rows from 1 200 on are the test."""

    l2_per_sample = 0.0
    l2_total = 1.0

    def __init__(self, *, classes: int) -> None:
        pixels, digits = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(digits))
        self.classes = classes
        self.inputs = torch.tensor(pixels[order] / 16)
        self.digits = torch.tensor(digits[order])
        self.targets = self.digits if classes == 10 else (self.digits >= 5).long()

    def build(self) -> nn.Module:
        """Return the linear head."""
        return nn.Linear(64, 10 if self.classes == 10 else 1, dtype=torch.float64)

    def fetch(self, sample_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return rows by number."""
        return self.inputs[list(sample_ids)], self.targets[list(sample_ids)]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy per sample."""
        if self.classes == 10:
            return outputs.logsumexp(-1) - outputs.gather(-1, targets[:, None])[:, 0]
        return nn.functional.softplus((1 - 2 * targets) * outputs[:, 0])

    def zero(self) -> Weights:
        """Return the weights that every solve from scratch starts at."""
        return {name: torch.zeros_like(tensor) for name, tensor in self.build().state_dict().items()}

    def accuracy(self, weights: Weights) -> float:
        """Return the accuracy on the test rows, in per cent."""
        outputs = self.inputs[TRAIN:] @ weights["weight"].T + weights["bias"]
        told = outputs.argmax(-1) if self.classes == 10 else (outputs[:, 0] > 0).long()
        return 100 * float((told == self.targets[TRAIN:]).double().mean())


@dataclass(frozen=True)
class Chain:
    """A stream of single deletions: the last working copy, and each re-solve's certificate, cost and seconds."""

    working: Update
    rest: list[int]
    certificates: list[Certificate]
    shares: list[float]
    seconds: list[float]
    from_zero: float


def main() -> None:
    """Measure, print, write the result file."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--deletions", type=int, default=400)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--output", type=Path, default=RESULT)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    two, ten, short = Digits(classes=2), Digits(classes=10), max(2, given.deletions // 40)
    with Progress() as progress:
        task = progress.add_task("deletions", total=given.deletions + short)
        chain = deleted(two, given.deletions, lambda: progress.advance(task))
        brief = deleted(ten, short, lambda: progress.advance(task))
    rows = [
        *chain_figures("two classes", two, chain),
        *noise_figures(two, chain, given.seeds),
        *guo_figures(two, chain),
        *chain_figures("ten classes", ten, brief),
        *noise_figures(ten, brief, given.seeds),
        ridge_figure(given.seeds),
    ]
    write("certified", rows, path=given.output)


def deleted(recipe: Digits, deletions: int, step: Callable[[], None]) -> Chain:
    """Delete rows in random order, each re-solve starting at the last working copy."""
    rest = np.random.default_rng(1).permutation(TRAIN).tolist()
    working = solved(recipe, recipe.zero(), rest)[0]
    from_zero = spent(working)
    certificates, shares, seconds = [], [], []
    for _ in range(deletions):
        rest = rest[1:]
        started = time.perf_counter()
        working, _, certificate = solved(recipe, working.weights, rest)
        seconds.append(time.perf_counter() - started)
        certificates.append(certificate)
        shares.append(spent(working) / from_zero)
        step()
    return Chain(working, rest, certificates, shares, seconds, from_zero)


def solved(
    recipe: Digits, weights: Weights, rest: Sequence[int], *, epsilon: float = EPSILON, seed: int | None = None
) -> tuple[Update, Update, Certificate]:
    """Re-solve at the benchmark's tolerance and δ."""
    return resolve(
        recipe, weights, retain_ids=rest, tolerance=TAU, epsilon=epsilon, delta=DELTA, seed=seed, settings=EFFORT
    )


def chain_figures(name: str, recipe: Digits, chain: Chain) -> list[Figure]:
    """Reduce a chain to its residuals, its distance from an independent optimum, and its cost."""
    worst = max(one.gradient_norm + one.rounding for one in chain.certificates)
    theta, evaluations, left = optimum(recipe, chain.rest)
    model = Model(recipe, chain.working.weights)
    apart, bound = float((model.theta_P - theta).norm()), chain.certificates[-1].distance + left
    again = solved(recipe, recipe.zero(), chain.rest)[0]
    share, n = statistics.median(chain.shares), len(chain.shares)
    passes = share * chain.from_zero
    return [
        bounded(f"{name}: worst gradient norm + rounding of {n} deletions", worst, at_most=TAU),
        Figure(
            f"{name}: distance from L-BFGS's optimum", f"{apart:.2g}", f"≤ {bound:.2g} (bounds of both)", apart <= bound
        ),
        Figure(
            f"{name}: distance from a re-solve from zero",
            f"{float((Model(recipe, again.weights).theta_P - model.theta_P).norm()):.2g}",
            f"≤ {2 * TAU / recipe.l2_total:.2g} (sensitivity)",
            bool((Model(recipe, again.weights).theta_P - model.theta_P).norm() <= 2 * TAU / recipe.l2_total),
        ),
        Figure(
            f"{name}: cost of a deletion, share of our solve from zero", f"{share:.3f} (most {max(chain.shares):.3f})"
        ),
        Figure(
            f"{name}: passes of a deletion / from zero / L-BFGS from zero",
            f"{passes:.0f} / {chain.from_zero:.0f} / {evaluations}",
        ),
        Figure(f"{name}: seconds of a deletion, median", round(statistics.median(chain.seconds), 2)),
    ]


def noise_figures(recipe: Digits, chain: Chain, seeds: int) -> list[Figure]:
    """Publish the end of the chain with noise for one release, and for one after each deletion together."""
    clean, n = recipe.accuracy(chain.working.weights), len(chain.shares)
    share = epsilon_of(mu_of(EPSILON, delta=DELTA) / n**0.5, delta=DELTA)
    rows = []
    for name, epsilon in (("one release", EPSILON), (f"each of {n} releases", share)):
        copies = [
            solved(recipe, chain.working.weights, chain.rest, epsilon=epsilon, seed=seed) for seed in range(seeds)
        ]
        certificate = copies[0][2]
        together = epsilon_of(certificate.mu * (1 if epsilon == EPSILON else n**0.5), delta=DELTA)
        losses = [clean - recipe.accuracy(published.weights) for _, published, _ in copies]
        spread = f"{statistics.fmean(losses):.3f} ± {statistics.stdev(losses):.3f}"
        label = f"{recipe.classes} classes, {name}"
        rows += [
            Figure(
                f"{label}: ε in all at δ = {DELTA:g}", round(together, 4), f"≤ {EPSILON}", together <= EPSILON + 1e-9
            ),
            Figure(f"{label}: σ", f"{certificate.sigma:.2g}"),
            Figure(
                f"{label}: accuracy lost, points of {clean:.2f} % ({seeds} seeds, {len(recipe.digits) - TRAIN} rows)",
                spread,
                "≤ 0.1",
                max(losses) <= 0.1,
            ),
        ]
    return rows


def guo_figures(recipe: Digits, chain: Chain) -> list[Figure]:
    """Run the literature's chain, one exact Newton step per deletion, with its summed bound and its true residual."""
    order = np.random.default_rng(1).permutation(TRAIN)
    x = np.hstack([recipe.inputs.numpy(), np.ones((len(recipe.inputs), 1))])
    signs = 2.0 * recipe.targets.numpy() - 1
    w, budget = dense_optimum(recipe, x, signs, order), 0.0
    for gone in range(1, len(chain.shares) + 1):
        rows, lost = order[gone:], order[gone - 1 : gone]
        step = np.linalg.solve(dense_hessian(recipe, x[rows], w), dense_slope(x[lost], signs[lost], w))
        budget += 0.25 * np.linalg.norm(x[rows], 2) * np.linalg.norm(step) * np.linalg.norm(x[rows] @ step)
        w = w + step
    rows = order[len(chain.shares) :]
    true = float(np.linalg.norm(dense_slope(x[rows], signs[rows], w) + recipe.l2_total * w))
    apart = np.linalg.norm(Model(recipe, chain.working.weights).theta_P.numpy() - dense_optimum(recipe, x, signs, rows))
    sharp = 4 / (6 * 3**0.5)  # the logistic loss's third derivative is at most 1/(6√3), not 1/4
    asked = (2 * np.log(1.5 / DELTA)) ** 0.5 * budget / EPSILON
    ours = recipe.l2_total * chain.certificates[-1].sigma * len(chain.shares) ** 0.5
    return [
        bounded("two classes: distance from a dense Newton solve (NumPy)", float(apart), at_most=2 * TAU),
        Figure("Newton steps alone: true gradient norm after the stream", f"{true:.2g}"),
        Figure("Newton steps alone: Guo's summed bound (γ = 1/4)", f"{budget:.3g}"),
        Figure(
            "Guo's bound / true norm (with the sharp γ = 1/(6√3))", f"{budget / true:.0f} ({sharp * budget / true:.0f})"
        ),
        Figure(
            "noise for releases after every deletion, in units of the gradient: Guo's / ours",
            f"{asked:.3g} / {ours:.2g}",
        ),
    ]


def dense_optimum(recipe: Digits, x: np.ndarray, signs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the two-class optimum by undamped Newton steps on dense matrices, away from the engine."""
    w = np.zeros(x.shape[1])
    for _ in range(20):
        gradient = dense_slope(x[rows], signs[rows], w) + recipe.l2_total * w
        w = w - np.linalg.solve(dense_hessian(recipe, x[rows], w), gradient)
    return w


def dense_slope(x: np.ndarray, signs: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the gradient of the summed logistic loss."""
    return -x.T @ (signs / (1 + np.exp(signs * (x @ w))))


def dense_hessian(recipe: Digits, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the Hessian of the summed logistic loss and the weight decay."""
    p = 1 / (1 + np.exp(-x @ w))
    return (x * (p * (1 - p))[:, None]).T @ x + recipe.l2_total * np.eye(x.shape[1])


def ridge_figure(seeds: int) -> Figure:
    """Re-solve ridge regression for several k and compare with its closed form."""
    n, worst = 200, 0.0
    for seed in range(seeds):
        ridge = Ridge(samples=n, features=20, seed=seed)
        for k in (1, 2, 10, 100, n - 2, n - 1):
            ids = list(range(k, n))
            start = ridge.solved(range(n))
            working, _, _ = resolve(ridge, start, retain_ids=ids, tolerance=1e-11, epsilon=EPSILON, delta=DELTA)
            apart = (working.weights["weight"] - ridge.solved(ids)["weight"]).abs().max()
            worst = max(worst, float(apart))
    return bounded(f"ridge, k = 1, 2, 10, 100, n-2, n-1 ({seeds} seeds): from the closed form", worst, at_most=1e-10)


def optimum(recipe: Digits, ids: Sequence[int]) -> tuple[Tensor, int, float]:
    """Return SciPy's L-BFGS optimum, its evaluations, and how far its own gradient norm lets it be off."""
    model = Model(recipe, recipe.zero())
    objective = Objective(model, ids)

    def both(theta: np.ndarray) -> tuple[float, np.ndarray]:
        theta_P = torch.tensor(theta)
        return objective.value(theta_P), objective.gradient(theta_P).numpy()

    options = {"gtol": TAU / 10, "ftol": 0.0, "maxiter": 20_000, "maxfun": 40_000, "maxcor": 30}
    found = minimize(both, model.theta_P.numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.tensor(found.x), int(found.nfev), float(np.linalg.norm(both(found.x)[1])) / recipe.l2_total


def spent(update: Update) -> float:
    """Return a re-solve's work in passes over what it retained."""
    return update.report.share_of_training(1) or 0.0


def bounded(name: str, value: float, *, at_most: float) -> Figure:
    """Promise an upper bound."""
    return Figure(name, float(f"{value:.3g}"), f"≤ {at_most:g}", value <= at_most)


if __name__ == "__main__":
    main()
