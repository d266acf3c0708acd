"""The statistics of the gates against scipy and against plain enumeration; scipy serves tests only."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from workers.unlearning.evidence import at_least, auc, chance_of, delong, holm, wilson


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
