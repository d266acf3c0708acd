"""G4 against scipy, the published arithmetic of one-run audits, and its own error rates by simulation."""

import math

import pytest
import torch
from scipy import stats

from workers.unlearning.errors import NothingToForget
from workers.unlearning.verification import ProcessThresholds, process
from workers.unlearning.verification.process import needed_per_arm


def _draw(seed: int, count: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def _shift(area: float) -> float:
    """Two normals that far apart have this area (binormal model)."""
    return float(math.sqrt(2) * stats.norm.ppf(area))


def _passes(area: float, people: int, draws: int = 300) -> float:
    arms = [(_draw(seed, people, _shift(area)), _draw(seed + 10**6, people)) for seed in range(draws)]
    return sum(process(*pair).outcome == "passed" for pair in arms) / draws


@pytest.mark.parametrize("edge", [0.45, 0.55])
def test_equivalence_is_declared_at_the_edge_of_the_band_no_oftener_than_the_level(edge: float) -> None:
    assert _passes(edge, 600) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_the_people_needed_give_the_power_asked_for() -> None:
    assert _passes(0.5, needed_per_arm(ProcessThresholds())) == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 300))


def test_people_needed_solve_the_normal_equation_of_both_tests() -> None:
    n = needed_per_arm(ProcessThresholds())

    def power(people: int) -> float:
        error = math.sqrt((2 * people + 1) / (12 * people**2))
        return float(2 * stats.norm.cdf(0.05 / error - stats.norm.ppf(0.95)) - 1)

    assert power(n) >= 0.8 > power(n - 1)
    assert 2 * power(413) == pytest.approx(1.2, abs=0.01)  # 413 per arm: 0.6 against both ends


def test_too_few_people_are_inconclusive_and_the_sentence_counts_those_missing() -> None:
    gate = process(_draw(1, 100), _draw(2, 100))
    assert gate.outcome == "inconclusive"
    assert "472 more deleted and 472 more never seen" in gate.sentence


def test_deleted_people_who_still_stand_apart_fail_in_either_direction() -> None:
    for shift in (1.0, -1.0):
        gate = process(_draw(3, 200, shift), _draw(4, 200))
        assert gate.outcome == "failed"
        assert gate.numbers["auc"] == pytest.approx(stats.norm.cdf(shift / math.sqrt(2)), abs=0.06)


@pytest.mark.parametrize(
    ("right", "guesses", "epsilon"),
    [(180, 300, 0.21), (225, 300, 0.87), (285, 300, 2.5), (60, 100, 0.05), (75, 100, 0.70), (95, 100, 2.17)],
)
def test_the_audit_of_canaries_gives_the_known_bounds(right: int, guesses: int, epsilon: float) -> None:
    gate = process(_draw(5, 50), _draw(6, 50), canary_hits=(right, guesses))
    low = stats.beta.ppf(0.05, right, guesses - right + 1)
    assert gate.numbers["epsilon_lower_bound"] == pytest.approx(math.log(low / (1 - low)), abs=1e-9)
    assert gate.numbers["epsilon_lower_bound"] == pytest.approx(epsilon, abs=0.015)


def test_canaries_guessed_too_well_fail_and_too_few_show_nothing() -> None:
    arms = _draw(7, 2000), _draw(8, 2000)
    assert process(*arms).outcome == "passed"
    assert "No canaries" in process(*arms).sentence
    assert process(*arms, canary_hits=(155, 300)).outcome == "passed"
    assert process(*arms, canary_hits=(225, 300)).outcome == "failed"
    assert process(*arms, canary_hits=(3, 5)).outcome == "inconclusive"


def test_an_empty_arm_is_refused() -> None:
    with pytest.raises(NothingToForget):
        process(torch.empty(0), _draw(9, 5))
    with pytest.raises(NothingToForget):
        process(_draw(9, 5), _draw(9, 5), canary_hits=(0, 0))


def test_identical_arms_are_not_taken_for_evidence_by_rounding() -> None:
    """Everybody has the same T: the area is ½ and its error 0, a constant statistic that could separate nobody."""
    assert process(torch.zeros(20), torch.zeros(20)).outcome == "inconclusive"
    assert process(torch.ones(20), torch.zeros(20)).outcome == "failed"
