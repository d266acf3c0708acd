"""The statistics behind the gates: ranks among strangers, paired tests, proportions and areas with their errors.

Shape suffixes: U users, m strangers.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from .report import Json

Outcome = Literal["failed", "inconclusive", "passed"]
WORST_FIRST: tuple[Outcome, ...] = ("failed", "inconclusive", "passed")
_DRAWS = 4999
"""Random choices in a rank-sum test: its least p-value is one over this plus one."""
_LEAST_PAIRS = 10
"""With fewer the mean of paired differences is not close to normal, and nothing passes on it."""
_LEAST_EQUAL_PAIRS = 29
"""Pairs that must all agree to show at level 0.05 that fewer than a tenth of pairs differ: log 0.05 / log 0.9."""


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


def delong(low_U: Tensor, high_m: Tensor) -> tuple[float, float]:
    """Return `auc` and its standard error from the placements of either side among the other (DeLong 1988)."""
    below_U, above_m = _placements(low_U, high_m), 1 - _placements(high_m, low_U)
    variance = sum(float(part.var()) / len(part) if len(part) > 1 else math.inf for part in (below_U, above_m))
    return float(below_U.mean()), math.sqrt(variance)


def _placements(values_U: Tensor, others_m: Tensor) -> Tensor:
    """Return for each value the share of the others above it, ties counting half."""
    ordered, values_U = others_m.double().sort().values, values_U.double().contiguous()
    up_to, below = (torch.searchsorted(ordered, values_U, right=right) for right in (True, False))
    return 1 - (up_to + below).double() / (2 * len(others_m))


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


def together(low_U: Tensor, strangers_m: Tensor) -> float:
    """Return P(users rank so low among the strangers, taken together | users are strangers): a rank-sum test.

    Whoever is a stranger might have been any of the pooled people, so the sum of the users' ranks (Wilcoxon 1945, ties
    at their mean) is as good as that of a random choice of so many. The choices are drawn, and the users' own counts
    as one of them, which keeps the level exactly, however few are drawn (Phipson & Smyth 2010). The users share one
    set of strangers: their p-values are dependent, and Fisher's sum of logarithms would not keep any level.

    >>> import torch
    >>> together(torch.zeros(6), torch.arange(1.0, 100.0))
    0.0002
    """
    pooled_n = torch.cat([low_U, strangers_m]).double()
    ordered_n = pooled_n.sort().values
    up_to_n, below_n = (torch.searchsorted(ordered_n, pooled_n, right=right) for right in (True, False))
    ranks_n = (up_to_n + below_n).double() / 2
    chance = torch.rand(_DRAWS, len(pooled_n), generator=torch.Generator().manual_seed(0))
    drawn = ranks_n[chance.topk(len(low_U), sorted=False).indices].sum(1)
    return (1 + int((drawn <= ranks_n[: len(low_U)].sum()).sum())) / (_DRAWS + 1)


def wilson(share: float, trials: int, *, z: float = 1.96) -> list[float]:
    """Return Wilson's 95 % interval of a proportion (Wilson 1927)."""
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def at_least(hits: int, trials: int, *, alpha: float) -> float:
    """Return Clopper and Pearson's one-sided lower bound of a proportion (1934): the p with P(X ≥ hits) = alpha.

    >>> round(at_least(10, 10, alpha=0.05), 6) == round(0.05 ** 0.1, 6)
    True
    """
    low, high = 0.0, hits / trials
    for _ in range(60):  # halving the unit interval 60 times ends below the rounding of a double
        middle = (low + high) / 2
        low, high = (middle, high) if _chance_of_hits(hits, trials, middle) < alpha else (low, middle)
    return low


def _chance_of_hits(hits: int, trials: int, p: float) -> float:
    """P(X ≥ hits) of a binomial, summed from its logarithms."""
    if hits == 0 or p <= 0.0:
        return float(hits == 0)
    logs = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        + k * math.log(p) + (trials - k) * math.log1p(-p)
        for k in range(hits, trials + 1)
    )  # fmt: skip
    return math.fsum(map(math.exp, logs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given (Holm 1979).

    >>> [round(p, 12) for p in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = worst
    return corrected


def non_inferior(worse: Tensor, *, margin: float, alpha: float) -> Json:
    """Test that the mean of paired differences lies below the margin (one-sided, Student's t).

    Differences that do not vary at all have no error to go by: they pass where there are so many that others must be
    rare.

    Args:
        worse: paired differences, positive where the candidate is worse.
        margin: tolerated mean.
        alpha: chance of passing a candidate whose true mean is the margin.

    Returns:
        The outcome with its numbers: passed where the upper bound of the mean lies within the margin and there are
        pairs enough, failed where even the lower bound lies beyond it (or is no number), inconclusive otherwise.

    >>> import torch
    >>> non_inferior(torch.tensor([0.1, -0.1] * 5), margin=1.0, alpha=0.05)["outcome"]
    'passed'
    """
    mean, pairs = float(worse.mean()), len(worse)
    error = float(worse.std(unbiased=True)) / math.sqrt(pairs) if pairs > 1 else math.inf
    reach = _student(alpha, pairs - 1) * error
    upper, lower = mean + reach, mean - reach
    enough = pairs >= (_LEAST_PAIRS if error > 0 else _LEAST_EQUAL_PAIRS)
    outcome: Outcome = "passed" if upper <= margin and enough else "inconclusive" if lower <= margin else "failed"
    return {"outcome": outcome, "mean_worsening": mean, "upper_bound": upper, "margin": margin, "pairs": pairs}


def _student(alpha: float, freedom: int) -> float:
    """Return the upper quantile of Student's t from the normal one (Abramowitz & Stegun 26.7.5); 1e-4 off at 9."""
    z, v = NormalDist().inv_cdf(1 - alpha), max(freedom, 1)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / v + second / v**2 + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / v**3
