"""The statistics of the gates against scipy and against plain enumeration; scipy serves tests only."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from workers.unlearning.evidence import at_least, auc, chance_of, delong, holm, non_inferior, together, wilson


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("hits", "trials"), [(0, 5), (1, 30), (180, 300), (225, 300), (285, 300), (12, 12)])
def test_the_lower_bound_of_a_proportion_is_scipys(hits: int, trials: int) -> None:
    bound = stats.binomtest(hits, trials, alternative="greater").proportion_ci(0.95, method="exact").low
    assert at_least(hits, trials, alpha=0.05) == pytest.approx(bound, abs=1e-9)


def test_holm_is_the_closure_of_bonferroni() -> None:
    """The corrected p-value is the largest Bonferroni p-value of any set of hypotheses that holds this one."""
    for seed in range(20):
        p = (_draw(seed, 5).abs() / 10).clamp(max=1).tolist()
        sets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k)]
        closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(5)]
        assert holm(p) == pytest.approx(closed, abs=1e-15)


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []


def test_the_area_and_its_error_are_those_of_the_written_out_kernel() -> None:
    """DeLong's variance from the full matrix of comparisons, ties included; the area is Mann and Whitney's U/nm."""
    low, high = _draw(1, 60).mul(2).round(), _draw(2, 45).mul(2).round() + 1
    kernel = np.where(low[:, None] < high[None], 1.0, np.where(low[:, None] == high[None], 0.5, 0.0))
    error = math.sqrt(kernel.mean(1).var(ddof=1) / 60 + kernel.mean(0).var(ddof=1) / 45)
    area, found = delong(low, high)
    assert (area, found) == pytest.approx((kernel.mean(), error), abs=1e-12)
    assert area == pytest.approx(stats.mannwhitneyu(high, low).statistic / (60 * 45))
    assert area == pytest.approx(auc(low, high))


def test_delongs_error_is_the_spread_of_areas_over_draws() -> None:
    pairs = [delong(_draw(seed, 80), _draw(seed + 9999, 120) + 0.5) for seed in range(600)]
    areas, errors = np.array(pairs).T
    assert errors.mean() == pytest.approx(areas.std(), rel=0.08)


def test_wilson_and_the_shared_strangers_are_scipys() -> None:
    interval = stats.binomtest(15, 20).proportion_ci(0.95, method="wilson")
    assert wilson(0.75, 20) == pytest.approx([interval.low, interval.high], abs=1e-4)
    tail = stats.betabinom(80, 2, 199).sf(2)  # k = ⌊0.01·201⌋ = 2 ranks are flagged
    assert chance_of(3, users=80, strangers=200, level=0.01) == pytest.approx(tail, abs=1e-10)


def test_the_rank_sum_agrees_with_all_permutations() -> None:
    """Mann and Whitney's exact law without ties, and every choice of 3 of 9 people written out with them."""
    users, strangers = _draw(3, 5) - 1, _draw(4, 30)
    exact = stats.mannwhitneyu(users, strangers, alternative="less", method="exact").pvalue
    assert together(users, strangers) == pytest.approx(exact, abs=4 * math.sqrt(exact / 5000))
    low, high = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 2.0, 2.0, 3.0, 0.0, 1.0])
    ranks = stats.rankdata(torch.cat([low, high]))
    sums = [sum(chosen) for chosen in itertools.combinations(ranks, 3)]
    share = np.mean([total <= ranks[:3].sum() for total in sums])
    assert together(low, high) == pytest.approx(share, abs=4 * math.sqrt(share / 5000))


@pytest.mark.slow
def test_strangers_together_are_taken_for_members_as_seldom_as_the_level_says() -> None:
    """Six users among 60 strangers, 200 jobs: at 0.05 that is 10, give or take three errors."""
    people = _draw(5, 200, 66)
    found = sum(together(row[:6], row[6:]) <= 0.05 for row in people)
    assert found <= 10 + 3 * math.sqrt(200 * 0.05 * 0.95)


def test_paired_differences_are_bounded_by_students_t() -> None:
    for pairs in (10, 30, 300):
        worse = _draw(pairs, pairs)
        bound = float(worse.mean()) + float(stats.t.ppf(0.95, pairs - 1) * stats.sem(worse))
        assert non_inferior(worse, margin=1.0, alpha=0.05)["upper_bound"] == pytest.approx(bound, abs=1e-4)


def test_few_pairs_or_pairs_that_all_agree_are_not_certain() -> None:
    def of(worse: torch.Tensor) -> str:
        return str(non_inferior(worse, margin=0.02, alpha=0.05)["outcome"])

    assert of(torch.zeros(2)) == of(torch.zeros(28)) == "inconclusive"
    assert of(torch.zeros(29)) == "passed"
    assert of(torch.tensor([1e-9, -1e-9])) == "inconclusive"
    assert of(torch.tensor([1e-9, -1e-9] * 5)) == "passed"
    assert of(torch.tensor([5.0, 5.0])) == "failed"
