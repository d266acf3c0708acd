"""Where a job begins: counts in, a rung out."""

import pytest

from app.domain.ledger import Ledger, decide


@pytest.mark.parametrize(("gone", "rung"), [(0, "influence"), (20, "influence"), (21, "retrain"), (100, "retrain")])
def test_beyond_a_fifth_of_the_people_a_job_begins_with_retraining(gone, rung):
    assert decide(Ledger(trained_on=100, forgotten_since=gone)).rung == rung


@pytest.mark.parametrize(("failures", "rung"), [(0, "influence"), (1, "influence"), (2, "retrain"), (7, "retrain")])
def test_two_refusals_of_the_gates_in_a_row_begin_with_retraining(failures, rung):
    start = decide(Ledger(trained_on=100, forgotten_since=1, failures=failures))
    assert start.rung == rung
    assert (start.reason is None) == (rung == "influence")


@pytest.mark.parametrize(("since", "fresh"), [(5, False), (6, True)])
def test_beyond_a_twentieth_the_curvature_is_fitted_anew(since, fresh):
    start = decide(Ledger(trained_on=100, forgotten_since=since, fitted_on=100, forgotten_since_fit=since))
    assert (start.rung, start.refresh_factors) == ("influence", fresh)


def test_what_was_never_fitted_is_not_fitted_anew():
    assert not decide(Ledger(trained_on=100, forgotten_since=19, forgotten_since_fit=19)).refresh_factors


def test_the_reason_says_how_many_are_gone():
    reason = decide(Ledger(trained_on=40, forgotten_since=9)).reason
    assert reason == "22.5 % of the people are gone since the last training: retraining"


def test_a_manifest_without_people_has_nobody_to_lose():
    assert decide(Ledger(trained_on=0, forgotten_since=0)).rung == "influence"
    assert decide(Ledger(trained_on=0, forgotten_since=1)).reason == (
        "all of the people are gone since the last training: retraining"
    )
