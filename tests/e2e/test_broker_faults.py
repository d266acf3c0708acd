"""PostgreSQL remembers, Redis rings: what befalls the broker or a worker changes when a request ends, not how."""

from __future__ import annotations

import json
import os
import signal
import time
from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
import torch
from celery import Celery
from sqlalchemy import func, select

from app import queue
from app.settings import Settings
from app.storage.tables import Certificate, Event, Job, Pulse, Target
from tests.e2e.conftest import Grounds
from tests.faults import process_tree, wait_until

pytestmark = pytest.mark.slow

REQUEST_TRAIL = ["request.received", "request.queued", "request.in_progress"]
JOB_TRAIL = ["job.queued", "job.located", "job.unlearned", "job.verified", "job.published", "job.certified"]
RECOVERY_SECONDS = 60.0
UNLEARN_1, UNLEARN_2 = "worker-unlearn", "worker-unlearn-2"


@pytest.fixture(autouse=True)
def _whole(grounds: Grounds) -> Iterator[None]:
    grounds.everything_runs()
    yield
    grounds.everything_runs()


def job_of(grounds: Grounds, request_id: UUID) -> UUID:
    """The job that serves a request; waits for dispatch to plan it."""
    query = select(Target.job_id).where(Target.request_id == request_id)
    planned: UUID = wait_until(lambda: grounds.rows(query), 30, "the request is planned")[0].job_id
    return planned


def torch_child(grounds: Grounds, job_id: UUID) -> int:
    """Wait until the job is in its unlearning step; returns the torch process."""
    located = select(Job.status).where(Job.id == job_id, Job.status == "located")
    wait_until(lambda: grounds.rows(located), 30, "the samples are located")
    return wait_until(grounds.house.torch_processes, 30, "the torch process runs")[0]


def fence(grounds: Grounds, job_id: UUID) -> int:
    token: int = grounds.rows(select(Job.fence).where(Job.id == job_id))[0].fence
    return token


def trail(grounds: Grounds, **of: UUID) -> list[str]:
    return [row.type for row in grounds.rows(select(Event.type).filter_by(**of).order_by(Event.id))]


def assert_forgotten_as_if_nothing_had_happened(grounds: Grounds, request_id: UUID) -> None:
    """The straight run's trail, one certificate, and weights as if all who asked had never been there."""
    assert trail(grounds, request_id=request_id) == [*REQUEST_TRAIL, "request.completed"]
    assert trail(grounds, job_id=job_of(grounds, request_id)) == JOB_TRAIL
    assert len(grounds.rows(select(Certificate.id).where(Certificate.request_id == request_id))) == 1
    on_paper = grounds.bench.retrained(without=sorted(grounds.asked))
    assert torch.allclose(grounds.bench.live_weights(), on_paper, rtol=0, atol=1e-4)


def wait_for_pulses(grounds: Grounds, since: datetime) -> None:
    """Until a consumer of each queue has heard through the broker."""
    heard = select(Pulse.queue).where(Pulse.heard_at > since)
    wait_until(
        lambda: {row.queue for row in grounds.rows(heard)} == set(queue.QUEUES),
        RECOVERY_SECONDS,
        "every queue has a consumer that hears",
        every_seconds=0.2,
    )


def database_time(grounds: Grounds) -> datetime:
    now: datetime = grounds.rows(select(func.now().label("now")))[0].now
    return now


def test_requests_are_accepted_without_broker_and_workers_and_done_when_those_come_back(grounds: Grounds) -> None:
    for name in ("worker-io", UNLEARN_1):
        grounds.house.processes[name].kill()
        grounds.house.processes[name].wait()
    grounds.valkey.kill()
    request_id, nobody = grounds.demand(), grounds.demand_of_nobody()
    wait_until(lambda: grounds.house.show(request_id)["status"] == "queued", 10, "dispatch has planned it")
    grounds.everything_runs()
    assert grounds.house.wait_until_ended(request_id)["status"] == "completed"
    assert grounds.house.wait_until_ended(nobody)["status"] == "no_data"
    assert_forgotten_as_if_nothing_had_happened(grounds, request_id)


def test_half_open_connections_to_the_broker_cost_less_than_a_minute(grounds: Grounds) -> None:
    """Bytes vanish without a reset, as behind a NAT that forgot: every process must notice by itself."""
    wait_for_pulses(grounds, database_time(grounds))
    frozen_at, began = database_time(grounds), time.monotonic()
    assert grounds.proxy.connections >= 3  # dispatch and both workers
    grounds.proxy.freeze()
    request_id = grounds.demand_of_nobody()
    assert grounds.house.show(request_id)["status"] in {"received", "queued"}
    ended = grounds.house.wait_until_ended(request_id, RECOVERY_SECONDS)
    assert ended["status"] == "no_data"
    wait_for_pulses(grounds, frozen_at)
    assert time.monotonic() - began < RECOVERY_SECONDS
    assert trail(grounds, request_id=request_id) == [*REQUEST_TRAIL, "request.no_data"]


def test_a_message_that_was_wiped_with_the_broker_is_sent_again(grounds: Grounds) -> None:
    grounds.house.processes[UNLEARN_1].kill()
    grounds.house.processes[UNLEARN_1].wait()
    request_id = grounds.demand_of_nobody()
    job_id = job_of(grounds, request_id)
    broker = redis.Redis.from_url(grounds.valkey.url)
    wait_until(lambda: any(str(job_id) in m for m in messages(broker)), 20, "the job is rung")
    grounds.valkey.kill()
    grounds.valkey.start()
    assert not any(str(job_id) in m for m in messages(broker))
    grounds.everything_runs()
    assert grounds.house.wait_until_ended(request_id)["status"] == "no_data"
    assert trail(grounds, request_id=request_id) == [*REQUEST_TRAIL, "request.no_data"]


def messages(broker: redis.Redis) -> list[str]:
    """What waits in the unlearning queue, in clear: kombu wraps the arguments in base64."""
    return [b64decode(json.loads(raw)["body"]).decode() for raw in broker.lrange(queue.UNLEARN, 0, -1)]


def test_a_worker_killed_amid_unlearning_is_made_good_in_less_than_a_minute(grounds: Grounds) -> None:
    """With the lease that is the default, not the short one of the tests."""
    house = grounds.house
    short = house.environment["EXPUNGE_LEASE_SECONDS"]
    house.environment["EXPUNGE_LEASE_SECONDS"] = str(Settings.model_fields["lease_seconds"].default)
    house.processes[UNLEARN_1].kill()
    house.processes[UNLEARN_1].wait()
    house.start(UNLEARN_1)
    request_id = grounds.demand()
    job_id = job_of(grounds, request_id)
    child, holder = torch_child(grounds, job_id), fence(grounds, job_id)
    house.processes[UNLEARN_1].kill()
    killed_at = time.monotonic()
    wait_until(lambda: child not in house.torch_processes(), 10, "the orphan has left")
    house.processes[UNLEARN_1].wait()
    house.environment["EXPUNGE_LEASE_SECONDS"] = short
    house.start(UNLEARN_1)
    assert house.wait_until_ended(request_id)["status"] == "completed"
    seconds = time.monotonic() - killed_at
    print(f"recovered in {seconds:.1f} s")
    assert seconds < RECOVERY_SECONDS
    assert fence(grounds, job_id) > holder
    assert house.torch_processes() == []
    assert_forgotten_as_if_nothing_had_happened(grounds, request_id)


def test_a_worker_that_was_paused_past_its_lease_finds_its_result_rejected(grounds: Grounds) -> None:
    """Its torch process goes on and answers; the answer is there when the worker wakes, and comes too late."""
    house = grounds.house
    request_id = grounds.demand()
    job_id = job_of(grounds, request_id)
    child, holder = torch_child(grounds, job_id), fence(grounds, job_id)
    assert child in process_tree(house.processes[UNLEARN_1].pid)
    os.kill(house.processes[UNLEARN_1].pid, signal.SIGSTOP)
    try:
        house.start(UNLEARN_2)
        assert house.wait_until_ended(request_id)["status"] == "completed"
        assert fence(grounds, job_id) > holder
    finally:
        os.kill(house.processes[UNLEARN_1].pid, signal.SIGCONT)
    wait_until(lambda: lost_leases(house.log, job_id) == [holder], 15, "the paused worker has noticed")
    house.processes.pop(UNLEARN_2).kill()
    assert house.processes[UNLEARN_1].poll() is None
    assert house.torch_processes() == []
    assert_forgotten_as_if_nothing_had_happened(grounds, request_id)


def lost_leases(log: Path, job_id: UUID) -> list[int]:
    """Fencing tokens with which a worker found itself overtaken."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line["fence"] for line in lines if line["event"] == "lease lost" and line["job"] == str(job_id)]


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "unpickled"))


def test_hand_made_messages_change_nothing_and_kill_nobody(grounds: Grounds, tmp_path: Path) -> None:
    forger = Celery("forger", broker=grounds.valkey.url)
    forger.conf.accept_content = ["json", "pickle"]
    house, trap = grounds.house, tmp_path / "trap"
    pids = {name: process.pid for name, process in house.processes.items()}
    before = everything(grounds)
    for name in queue.QUEUES:
        forger.send_task(queue.ERASE, args=[str(uuid4())], queue=name)
        forger.send_task(queue.NOTIFY, args=[str(uuid4())], queue=name)
        forger.send_task(queue.ERASE, args=["../../etc/passwd"], queue=name)
        forger.send_task(queue.ERASE, args=[], kwargs={"settings": {}}, queue=name)
        forger.send_task("os.system", args=["true"], queue=name)
        forger.send_task(queue.ERASE, args=[Trap(trap)], queue=name, serializer="pickle")
    broker = redis.Redis.from_url(grounds.valkey.url)
    wait_until(lambda: not any(broker.llen(name) for name in queue.QUEUES), 20, "all messages are taken")
    wait_for_pulses(grounds, database_time(grounds))
    assert everything(grounds) == before
    assert not trap.exists()
    assert {name: process.pid for name, process in house.processes.items() if process.poll() is None} == pids
    assert house.wait_until_ended(grounds.demand_of_nobody())["status"] == "no_data"


def everything(grounds: Grounds) -> tuple[Any, ...]:
    jobs = grounds.rows(select(Job.id, Job.status, Job.fence).order_by(Job.created_at))
    return list(jobs), list(grounds.rows(select(Event.id, Event.type).order_by(Event.id))), grounds.bench.live().id
