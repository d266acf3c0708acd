"""The statistics behind the gates: a conformal rank, a paired non-inferiority test, a proportion with its interval.

Shape suffixes: U users, m strangers.
"""

import math
from statistics import NormalDist
from typing import Literal

from torch import Tensor

from .report import Json

Outcome = Literal["passed", "failed", "inconclusive"]


def low_tail(values_U: Tensor, strangers_m: Tensor) -> Tensor:
    """Return (1 + #{strangers ≤ value}) / (m + 1) for each value: small where a value is lower than strangers are.

    >>> import torch
    >>> low_tail(torch.tensor([0.0, 9.0]), torch.arange(1.0, 100.0)).tolist()
    [0.01, 0.1]
    """
    return (1 + (strangers_m[None, :] <= values_U[:, None]).sum(1)).double() / (len(strangers_m) + 1)


def auc(low_U: Tensor, high_m: Tensor) -> float:
    """Return the chance that a draw from the first lies below a draw from the second, ties counting half."""
    less, equal = low_U[:, None] < high_m[None, :], low_U[:, None] == high_m[None, :]
    return float((less.double() + 0.5 * equal.double()).mean())


def chance_of(flagged: int, *, users: int, strangers: int, level: float) -> float:
    """Return P(at least `flagged` of `users` fully forgotten users have p ≤ level) among the same strangers.

    They share one set of strangers, so the count is beta-binomial, wider than a binomial: with k = ⌊level·(m+1)⌋, the
    share of people below the k-th stranger is Beta(k, m+1-k).

    >>> round(chance_of(1, users=1, strangers=99, level=0.01), 12)
    0.01
    """
    k = math.floor(level * (strangers + 1) + 1e-9)
    if flagged == 0 or k == 0:
        return 1.0
    below = (_beta_binomial(x, users, k, strangers + 1 - k) for x in range(flagged))
    return max(0.0, 1.0 - sum(below))


def _beta_binomial(x: int, n: int, a: float, b: float) -> float:
    def log_beta(p: float, q: float) -> float:
        return math.lgamma(p) + math.lgamma(q) - math.lgamma(p + q)

    return math.comb(n, x) * math.exp(log_beta(x + a, n - x + b) - log_beta(a, b))


def wilson(share: float, trials: int, *, z: float = 1.96) -> list[float]:
    """Return Wilson's 95 % interval of a proportion (Wilson 1927)."""
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def non_inferior(worse: Tensor, *, margin: float, alpha: float) -> Json:
    """Test that the mean of paired differences lies below the margin (one-sided, normal approximation).

    Args:
        worse: paired differences, positive where the candidate is worse.
        margin: tolerated mean.
        alpha: chance of passing a candidate whose true mean is the margin.

    Returns:
        The outcome with its numbers: passed where the upper bound of the mean lies within the margin, failed where even
        the lower bound lies beyond it (or is no number), inconclusive between.

    >>> import torch
    >>> non_inferior(torch.tensor([0.1, -0.1, 0.1, -0.1]), margin=1.0, alpha=0.05)["outcome"]
    'passed'
    """
    mean = float(worse.mean())
    error = float(worse.std(unbiased=True)) / math.sqrt(len(worse)) if len(worse) > 1 else math.inf
    reach = NormalDist().inv_cdf(1 - alpha) * error
    upper, lower = mean + reach, mean - reach
    outcome: Outcome = "passed" if upper <= margin else "inconclusive" if lower <= margin else "failed"
    return {"outcome": outcome, "mean_worsening": mean, "upper_bound": upper, "margin": margin, "pairs": len(worse)}
