"""Everything is killed while 200 requests are on their way; every one of them ends rightly, exactly once.

The house is real: api, dispatch, io worker and two unlearning workers as processes, a durable PostgreSQL and a broker
of their own. Faults come at seeded times, each while work is pending; what died is started again a moment later.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import torch
from sqlalchemy import func, select, text

from app.embedded import Postgres, Valkey
from app.storage import migrate, versions
from app.storage.sessions import transaction
from app.storage.tables import Certificate, ErasureRequest, Event, Job, ModelVersion, WebhookDelivery
from tests import toy
from tests.e2e.listener import Listener
from tests.faults import process_tree, wait_until
from tests.house import Installation, installation
from tests.pipeline import Bench

pytestmark = pytest.mark.slow

SEED = 20_261
PROCESSES = ("api", "dispatch", "worker-io", "worker-unlearn", "worker-unlearn-2")
FAULTS = (*PROCESSES, "api", "dispatch", "busy worker", "busy worker", "broker", "broker", "postgres", "postgres")
CLIENTS = 8
BATCH = 100
"""Requests in one job: a few jobs come one after another, each on the version that the last one made."""
SENDING_SECONDS = 30.0
FIRST_FAULT_SECONDS = 2.0
POWER_CUT_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""How long a client repeats one call."""
END_SECONDS = 90.0
"""All requests must have ended this long after the last fault was healed."""
PATH = "/v1/erasure-requests"

REQUEST_TRAILS = {
    "completed": [["request.received", "request.queued", "request.in_progress", "request.completed"]],
    "no_data": [["request.received", "request.queued", "request.in_progress", "request.no_data"]],
    "cancelled": [
        ["request.received", "decision.cancelled", "request.cancelled"],
        ["request.received", "request.queued", "decision.cancelled", "request.cancelled"],
    ],
}
RUNG = ["job.located", "job.unlearned"]
PUBLISHED = ["job.verified", "job.published", "job.certified"]
JOB_TRAILS = {
    None: [["job.queued", "job.empty"]],
    "unlearned": [["job.queued", *RUNG, *PUBLISHED]],
    "retrained": [["job.queued", *RUNG, *RUNG, *PUBLISHED], ["job.queued", *RUNG, *PUBLISHED]],
}
"""By the origin of the version that the job made: what was not proven was retrained, or the job began with that."""


@dataclass(frozen=True)
class Errand:
    """One thing a portal has to do: pass on a person's demand, and perhaps take it back."""

    person: int
    after_seconds: float
    takes_back: bool
    idempotency_key: str


@dataclass(frozen=True)
class Receipt:
    """What the portal was told: an accepted request's id, and whether taking it back was confirmed."""

    person: int
    request_id: UUID
    taken_back: bool


@dataclass(frozen=True)
class Story:
    """What happened, for the tests below to judge."""

    bench: Bench
    listener: Listener
    receipts: list[Receipt]
    pending: list[tuple[str, int]]
    """Fault, and how many requests were open when it hit."""
    seconds_to_end: float
    orphans: list[int]

    @property
    def of_person(self) -> dict[int, list[Receipt]]:
        found = defaultdict(list)
        for receipt in self.receipts:
            found[receipt.person].append(receipt)
        return found

    def rows(self, query: Any) -> Sequence[Any]:
        with transaction(self.bench.ctx.engine) as tx:
            return tx.execute(query).all()

    def statuses(self) -> dict[UUID, str]:
        return {row.id: row.status for row in self.rows(select(ErasureRequest.id, ErasureRequest.status))}

    def completed_people(self) -> set[int]:
        statuses = self.statuses()
        return {r.person for r in self.receipts if statuses[r.request_id] == "completed"}


def errands() -> list[Errand]:
    """200: 100 members, 20 of them twice, 20 members who change their mind, 30 strangers, 30 whom nobody knows."""
    dice = random.Random(SEED)
    members = dice.sample(range(toy.MEMBERS), 120)
    changing = set(members[100:])
    unknown = [*range(toy.MEMBERS, toy.MEMBERS + 30), *range(99_000, 99_030)]
    people = [*members, *members[:20], *unknown]
    dice.shuffle(people)
    pause = SENDING_SECONDS / len(people)
    return [Errand(p, number * pause, p in changing, f"errand-{number}") for number, p in enumerate(people)]


def insist(call: Callable[[], httpx.Response]) -> httpx.Response:
    """Repeat a call as a portal must: when nobody answers, and when the answer is 503."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            answer = call()
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code != 503:
            return answer
        assert time.monotonic() < until, "no answer for a minute"
        time.sleep(0.3)


def run_errand(house: Installation, errand: Errand, began: float) -> Receipt:
    time.sleep(max(0.0, began + errand.after_seconds - time.monotonic()))
    body, key = {"user_id": toy.user_id(errand.person)}, {"Idempotency-Key": errand.idempotency_key}
    with house.client() as client:
        accepted = insist(lambda: client.post(PATH, json=body, headers=key))
        assert accepted.status_code in {200, 202}, accepted.text
        request_id = UUID(accepted.json()["id"])
        if not errand.takes_back:
            return Receipt(errand.person, request_id, taken_back=False)
        answer = insist(lambda: client.post(f"{PATH}/{request_id}:cancel"))
        assert answer.status_code in {200, 409}, answer.text
        return Receipt(errand.person, request_id, taken_back=answer.status_code == 200)


class Chaos:
    """The hand that kills."""

    def __init__(self, house: Installation, postgres: Postgres, valkey: Valkey) -> None:
        self.house, self.servers = house, {"postgres": postgres, "broker": valkey}
        self.pending: list[tuple[str, int]] = []

    def reign(self, began: float) -> None:
        """Let all faults come, in an order and at times that the seed decides."""
        dice = random.Random(SEED)
        names = dice.sample(FAULTS, len(FAULTS))
        times = sorted(dice.uniform(FIRST_FAULT_SECONDS, SENDING_SECONDS) for _ in names)
        for name, at in zip(names, times, strict=True):
            time.sleep(max(0.0, began + at - time.monotonic()))
            victim = self._victim(name)
            self.pending.append((name, self._open_requests()))
            self._strike(victim)

    def _victim(self, name: str) -> str:
        if name != "busy worker":
            return name
        return wait_until(self._busy_worker, 30, "a worker is in a torch step") or ""

    def _busy_worker(self) -> str | None:
        at_work = set(self.house.torch_processes())
        workers = [name for name in self.house.processes if name.startswith("worker-unlearn")]
        return next((w for w in workers if at_work & set(process_tree(self.house.processes[w].pid))), None)

    def _open_requests(self) -> int:
        with transaction(self.house.engine) as tx:
            return tx.scalar(select(func.count()).where(ErasureRequest.closed_at.is_(None))) or 0

    def _strike(self, victim: str) -> None:
        if victim not in self.servers:
            self.house.processes[victim].kill()  # only the worker itself: its torch child must notice
            return
        self.servers[victim].kill()
        time.sleep(POWER_CUT_SECONDS)
        self.servers[victim].start()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Build the house, let portals and chaos loose on it, wait for the end."""
    directory: Path = tmp_path_factory.mktemp("chaos")
    with (
        Postgres(directory / "postgres") as postgres,
        Valkey(directory / "valkey") as valkey,
        Listener("127.0.0.1") as listener,
    ):
        migrate.upgrade(postgres.url)
        with installation(
            directory,
            postgres.url,
            valkey.url,
            processes=PROCESSES,
            batch_requests=BATCH,
            webhook_allow=(ip_network("127.0.0.1/32"),),
        ) as house:
            yield told(house, listener, Chaos(house, postgres, valkey))


def told(house: Installation, listener: Listener, chaos: Chaos) -> Story:
    with house.client() as client:
        assert client.post("/v1/webhook-endpoints", json={"url": listener.url}).status_code == 201
    with house.kept_running(), ThreadPoolExecutor(CLIENTS) as portals:
        began = time.monotonic()
        answers = [portals.submit(run_errand, house, errand, began) for errand in errands()]
        chaos.reign(began)
        receipts = [answer.result() for answer in answers]
        healed = time.monotonic()
        wait_until(lambda: all_ended(house), END_SECONDS, "every request has ended", every_seconds=0.5)
        seconds_to_end = time.monotonic() - healed
        wait_until(lambda: all_told(house), END_SECONDS, "every promise is kept", every_seconds=0.5)
        orphans = house.torch_processes()
    return Story(Bench(house), listener, receipts, chaos.pending, seconds_to_end, orphans)


def all_ended(house: Installation) -> bool:
    with transaction(house.engine) as tx:
        return not tx.scalar(select(func.count()).where(ErasureRequest.closed_at.is_(None)))


def all_told(house: Installation) -> bool:
    """Whether every delivery was made; retries come at once, since the published schedule waits up to five minutes."""
    with transaction(house.engine) as tx:
        late = text("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE next_attempt_at > now() + '3 s'")
        tx.execute(late)
        return not tx.scalar(select(func.count()).where(WebhookDelivery.next_attempt_at.is_not(None)))


def test_every_fault_hit_while_work_was_pending(story: Story) -> None:
    assert Counter(name for name, _ in story.pending) == Counter(FAULTS)
    assert all(count > 0 for _, count in story.pending), story.pending


def test_what_was_accepted_is_there_and_nothing_else(story: Story) -> None:
    assert len(story.receipts) == 200
    assert set(story.statuses()) == {receipt.request_id for receipt in story.receipts}


def test_every_request_ends_as_it_should(story: Story) -> None:
    statuses = story.statuses()
    for person, receipts in story.of_person.items():
        ends = Counter(statuses[request_id] for request_id in {r.request_id for r in receipts})
        if any(r.taken_back for r in receipts):
            assert ends == {"cancelled": 1}
        elif person < toy.MEMBERS:  # a second demand that came after the end finds nothing any more
            assert ends["completed"] == 1
            assert set(ends) <= {"completed", "no_data"}
        else:
            assert set(ends) == {"no_data"}
    assert set(statuses.values()) == set(REQUEST_TRAILS)


def test_each_trail_is_that_of_a_straight_run(story: Story) -> None:
    statuses, trails = story.statuses(), defaultdict(list)
    for event in story.rows(
        select(Event.request_id, Event.type).where(Event.request_id.is_not(None)).order_by(Event.id)
    ):
        trails[event.request_id].append(event.type)
    wrong = {i: trails[i] for i, status in statuses.items() if trails[i] not in REQUEST_TRAILS[status]}
    assert not wrong


def test_each_job_goes_each_step_once(story: Story) -> None:
    trails = defaultdict(list)
    for event in story.rows(select(Event.job_id, Event.type).where(Event.job_id.is_not(None)).order_by(Event.id)):
        trails[event.job_id].append(event.type)
    made = dict(story.rows(select(ModelVersion.job_id, ModelVersion.origin)))
    jobs = [row.id for row in story.rows(select(Job.id))]
    assert {job_id: trails[job_id] for job_id in jobs if trails[job_id] not in JOB_TRAILS[made.get(job_id)]} == {}
    assert len(made) > 2


def test_each_request_with_an_end_in_a_model_has_one_certificate(story: Story) -> None:
    ended = {i for i, status in story.statuses().items() if status != "cancelled"}
    counts = Counter(row.request_id for row in story.rows(select(Certificate.request_id)))
    assert counts == dict.fromkeys(ended, 1)


def test_the_live_weights_are_those_of_training_without_the_certified_people(story: Story) -> None:
    gone = story.completed_people()
    assert len(gone) >= 100
    assert torch.allclose(story.bench.live_weights(), story.bench.retrained(without=sorted(gone)), rtol=0, atol=1e-4)


def test_no_version_after_a_certificate_holds_the_certified_person(story: Story) -> None:
    statuses = story.statuses()
    person_of = {r.request_id: r.person for r in story.receipts if statuses[r.request_id] == "completed"}
    issued = {
        row.request_id: row.issued_at for row in story.rows(select(Certificate.request_id, Certificate.issued_at))
    }
    with transaction(story.bench.ctx.engine) as tx:
        lineage = tx.scalars(select(ModelVersion).order_by(ModelVersion.number)).all()
        gone = {version.number: versions.forgotten(tx, version) for version in lineage}
    assert all(set(toy.samples_of(person)) <= gone[lineage[-1].number] for person in person_of.values())
    resurrected = [
        (version.number, request_id)
        for version in lineage
        for request_id, person in person_of.items()
        if version.published_at > issued[request_id] and not gone[version.number].issuperset(toy.samples_of(person))
    ]
    assert not resurrected


def test_each_end_is_told_and_a_repeated_message_has_its_old_id(story: Story) -> None:
    statuses = story.statuses()
    promised = {
        str(row.id): str(row.request_id) for row in story.rows(select(WebhookDelivery.id, WebhookDelivery.request_id))
    }
    assert sorted(promised.values()) == sorted(str(i) for i in statuses)
    told = {(message.id, message.request_id) for message in story.listener.messages}
    assert told == set(promised.items())
    assert {(m.request_id, m.data["status"]) for m in story.listener.messages} == {
        (str(i), status) for i, status in statuses.items()
    }
    bodies = defaultdict(set)
    for message in story.listener.messages:
        bodies[message.id].add(message.body)
    assert {len(versions) for versions in bodies.values()} == {1}


def test_it_is_over_soon_and_no_torch_process_is_left(story: Story) -> None:
    assert story.seconds_to_end < END_SECONDS
    assert story.orphans == []
