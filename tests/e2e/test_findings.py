"""What the fault tests found, so that it stays mended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import func, select, text

from app import decisions, keymaking
from app.domain.lifecycle import RequestStatus
from app.storage import jobs
from app.storage.sessions import transaction
from app.storage.tables import Suppression
from tests import toy
from tests.e2e.conftest import Grounds, Registered
from tests.pipeline import Bench

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(registered: Registered) -> Iterator[Bench]:
    with registered.cloned() as house:
        bench = Bench(house)
        with bench.sequencing():
            yield bench


def test_who_took_the_request_back_is_not_in_the_ledger(bench: Bench) -> None:
    """Else the next version trained on them is refused, or unlearns somebody who asked to stay."""
    request_id = bench.demand(3)
    bench.plan()
    assert bench.request(request_id).status == RequestStatus.QUEUED
    with transaction(bench.ctx.engine) as tx:
        decisions.cancel(tx, request_id, by=keymaking.operator(tx), now=bench.now(), settings=bench.ctx.settings)
        assert tx.scalar(select(func.count()).select_from(Suppression)) == 0


def test_a_job_that_nobody_answered_is_rung_again_after_five_seconds(bench: Bench) -> None:
    bench.demand(3)
    (job_id,) = bench.plan()
    with transaction(bench.ctx.engine) as tx:
        assert jobs.to_ring(tx, max_attempts=5, limit=10) == [job_id]
        tx.execute(text("UPDATE jobs SET rung_at = rung_at - interval '6 s'"))
        assert jobs.to_ring(tx, max_attempts=5, limit=10) == [job_id]


def test_a_field_that_is_named_like_a_person_is_not_repeated(grounds: Grounds) -> None:
    with grounds.house.client() as client:
        answer = client.post("/v1/erasure-requests", json={"user_id": "u", toy.user_id(1): True})
    assert answer.status_code == 422
    assert toy.user_id(1) not in answer.text
