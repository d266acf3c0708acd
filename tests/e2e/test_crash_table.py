"""A worker is killed -9 around the COMMIT of every step; the next worker leaves what one straight run leaves.

The straight run's database is cloned before each step, so that a row of the table costs only the steps after its crash.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
import torch
from sqlalchemy import make_url, text

from app.domain.lifecycle import JOB_OPEN, JobStatus
from app.storage import jobs
from app.storage.sessions import transaction
from tests import command_line, toy
from tests.crashing import BEFORE, MOMENTS
from tests.e2e.conftest import Registered
from tests.house import Installation
from tests.pipeline import Bench
from tests.services import new_database
from workers import erase
from workers.lease import Lease

pytestmark = pytest.mark.slow

PEOPLE = [3, 4]
NOBODY = 99_999
ENDPOINTS = 2
AFTER_STEP = {
    "locate": JobStatus.LOCATED,
    "unlearn": JobStatus.UNLEARNED,
    "verify": JobStatus.VERIFIED,
    "publish": JobStatus.PUBLISHED,
    "certify": JobStatus.CERTIFIED,
}
FIRST_STATUS = {step.__name__: status for status, step in erase.STEPS.items()}
ROWS = [(step, moment) for step in AFTER_STEP for moment in MOMENTS]

FACTS = {
    "events": "SELECT request_id, job_id, type, detail FROM events ORDER BY id",
    "requests": "SELECT id, status, reason, closed_at IS NULL FROM erasure_requests ORDER BY sequence",
    "jobs": "SELECT id, status, rung, error, lease_until FROM jobs ORDER BY created_at",
    "targets": "SELECT request_id, job_id, result, sample_ids FROM targets ORDER BY request_id",
    "versions": "SELECT number, origin, job_id, retired_at IS NULL FROM model_versions ORDER BY number",
    "live": "SELECT number FROM model_versions JOIN models ON current_version_id = model_versions.id",
    "tombstones": "SELECT job_id, ordinal, sample_ids FROM forgotten_samples ORDER BY job_id, ordinal",
    "postings": "SELECT subject_key, split, sample_ids FROM postings ORDER BY subject_key, split",
    "keys": "SELECT request_id FROM keystore.request_keys WHERE purpose = 'working'",
    "certificates": "SELECT request_id, count(*) FROM certificates GROUP BY request_id ORDER BY request_id",
    "entries": "SELECT type, request_id, fields - 'cert' - 'model' FROM audit_entries ORDER BY type, request_id",
    "promises": "SELECT endpoint_id, request_id, count(*) FROM webhook_deliveries GROUP BY 1, 2 ORDER BY 1, 2",
}
"""What must be the same however often a worker died on the way; times and random ids are left out."""


@dataclass(frozen=True)
class Straight:
    """An undisturbed run: the databases it can be taken up from, and what it left."""

    registered: Registered
    templates: dict[str, str]
    request_ids: list[UUID]
    nobody_id: UUID
    job_id: UUID
    left: dict[str, Any]
    trail: list[tuple[str, str]]


@dataclass(frozen=True)
class Aftermath:
    """What a crash and the next worker left."""

    returncode: int
    before_crash: JobStatus
    after_crash: JobStatus
    orphans: list[int]
    left: dict[str, Any]
    trail: list[tuple[str, str]]
    weights: torch.Tensor


def facts(bench: Bench) -> dict[str, Any]:
    with bench.ctx.engine.connect() as connection:
        return {name: [tuple(row) for row in connection.execute(text(query))] for name, query in FACTS.items()}


@pytest.fixture(scope="module")
def straight(registered: Registered) -> Iterator[Straight]:
    """Two people and a stranger in one job, carried through step by step."""
    with ExitStack() as stack:
        house = stack.enter_context(registered.cloned())
        bench = Bench(house)
        add_endpoints(house)
        request_ids = [bench.demand(person) for person in PEOPLE]
        nobody_id = bench.demand(NOBODY)
        (job_id,) = bench.plan()
        with transaction(bench.ctx.engine) as tx:
            job = jobs.claim(tx, job_id, lease=bench.ctx.settings.lease, max_attempts=5)
        assert job is not None
        lease, templates = Lease(bench.ctx, job), {}  # without heartbeat: its connection would be in the cloning's way
        for step in erase.STEPS.values():
            house.engine.dispose()
            copy = stack.enter_context(new_database(registered.server, database_name(house.settings.database_url)))
            templates[step.__name__] = database_name(copy)
            with bench.sequencing():
                assert erase.advance(bench.ctx, lease)
        assert not erase.advance(bench.ctx, lease)
        yield Straight(registered, templates, request_ids, nobody_id, job_id, facts(bench), bench.trail())


@pytest.fixture(scope="module")
def table(straight: Straight) -> Iterator[dict[tuple[str, str], Future[Aftermath]]]:
    """All rows, two at a time: most of a row is waiting for processes that import torch."""
    with ThreadPoolExecutor(2) as pool:
        yield {(step, moment): pool.submit(crash_and_go_on, straight, step, moment) for step, moment in ROWS}


def add_endpoints(house: Installation) -> None:
    statement = (
        "INSERT INTO webhook_endpoints (id, client_id, every_client, url)"
        " SELECT gen_random_uuid(), client_id, true, :url FROM api_keys"
        " WHERE 'requests:read_all' = ANY (scopes) LIMIT 1"
    )
    with house.engine.begin() as connection:
        for number in range(ENDPOINTS):
            connection.execute(text(statement), {"url": f"https://portal-{number}.example/hook"})


def database_name(url: str) -> str:
    return str(make_url(url).database)


def crash_and_go_on(straight: Straight, step: str, moment: str) -> Aftermath:
    """One row: a worker that dies at STEP, then one that doesn't."""
    with straight.registered.cloned("redis://unused", template=straight.templates[step]) as house:
        bench = Bench(house)
        bench.expire_leases()
        bench.trust_log()
        with bench.sequencing():
            before = JobStatus(bench.job(straight.job_id).status)
            words = (step, moment, str(straight.job_id))
            crashed = command_line.run("tests.crashing", *words, environment=house.environment)
            after = JobStatus(bench.job(straight.job_id).status)
            bench.expire_leases()
            erase.run(bench.ctx, straight.job_id)
        return Aftermath(
            returncode=crashed.returncode,
            before_crash=before,
            after_crash=after,
            orphans=house.torch_processes(),
            left=facts(bench),
            trail=bench.trail(),
            weights=bench.live_weights(),
        )


@pytest.mark.parametrize(("step", "moment"), ROWS)
def test_a_worker_killed_at_a_commit_costs_at_most_its_step(
    straight: Straight, table: dict[tuple[str, str], Future[Aftermath]], step: str, moment: str
) -> None:
    aftermath = table[step, moment].result()
    assert aftermath.returncode == -signal.SIGKILL
    assert aftermath.before_crash == FIRST_STATUS[step]
    assert aftermath.before_crash in JOB_OPEN
    assert aftermath.after_crash == (FIRST_STATUS[step] if moment == BEFORE else AFTER_STEP[step])
    assert aftermath.trail == straight.trail
    assert aftermath.left == straight.left
    assert torch.allclose(aftermath.weights, on_paper(), rtol=0, atol=1e-4)
    assert aftermath.orphans == []


def test_the_straight_run_that_the_table_is_compared_with_is_complete(straight: Straight) -> None:
    """One end, one certificate, one promise per endpoint for each request; so every row has that, too."""
    ended = {row[0]: row[1] for row in straight.left["requests"]}
    assert ended == {**dict.fromkeys(straight.request_ids, "completed"), straight.nobody_id: "no_data"}
    assert {row[0]: row[1] for row in straight.left["certificates"]} == dict.fromkeys(ended, 1)
    assert Counter(row[1] for row in straight.left["promises"]) == dict.fromkeys(ended, ENDPOINTS)
    assert {row[2] for row in straight.left["promises"]} == {1}
    assert [what for kind, what in straight.trail if kind == "job"] == [
        "job.queued",
        "job.located",
        "job.unlearned",
        "job.verified",
        "job.published",
        "job.certified",
    ]
    assert [what for _, what in straight.trail].count("request.completed") == len(PEOPLE)


def on_paper() -> torch.Tensor:
    return toy.solved(i for p in range(toy.MEMBERS) if p not in PEOPLE for i in toy.samples_of(p))
