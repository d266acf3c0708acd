"""PostgreSQL goes and comes back under the load of many creates: what was answered 2xx is there, whole, afterwards."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select, text

from app.embedded import Postgres
from app.storage import migrate
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest
from tests.faults import wait_until
from tests.house import Installation, installation

pytestmark = pytest.mark.slow
PATH = "/v1/erasure-requests"
CLIENTS = 16


@dataclass(frozen=True)
class Told:
    """What one create was told: a status and an id, or that its connection broke."""

    user_id: str
    status: int | None
    request_id: str | None = None
    retry_after: str | None = None


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, Postgres]]:
    home: Path = tmp_path_factory.mktemp("restarted")
    with Postgres(home / "postgres") as server:
        migrate.upgrade(server.url)
        more = {"daily_erasures": 10**6, "limit_per_caller": "9999999/second"}
        with installation(home, server.url, "redis://127.0.0.1:1/0", processes=("api",), model=False, **more) as made:
            yield made, server
        server.remove()


def create(client: httpx.Client) -> Told:
    user_id = uuid4().hex
    try:
        answer = client.post(PATH, json={"user_id": user_id}, headers={"Idempotency-Key": user_id})
    except httpx.TransportError:
        return Told(user_id, None)
    created = answer.json().get("id") if answer.is_success else None
    return Told(user_id, answer.status_code, created, answer.headers.get("Retry-After"))


class Load:
    """Clients that create one request after the other until they are told to stop."""

    def __init__(self, house: Installation) -> None:
        self.house, self.told, self.over = house, list[Told](), threading.Event()

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._running = [self._pool.submit(self._keep_creating) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._pool.shutdown()
        for work in self._running:
            work.result()

    def wait_for(self, status: int, times: int) -> None:
        """Until so many more were told so."""
        before = self.count(status)
        wait_until(lambda: self.count(status) >= before + times, 30, f"{times} more answers {status}")

    def count(self, status: int) -> int:
        return sum(one.status == status for one in self.told)

    def _keep_creating(self) -> None:
        with self.house.client() as client:
            while not self.over.is_set():
                self.told.append(create(client))
                if self.told[-1].status != 202:
                    time.sleep(0.05)  # a portal waits longer


def test_a_restart_under_load_loses_nothing_that_was_accepted(house: tuple[Installation, Postgres]) -> None:
    door, server = house
    with Load(door) as load:
        load.wait_for(202, 5 * CLIENTS)
        server.kill()
        load.wait_for(503, CLIENTS)
        server.start()
        load.wait_for(202, 2 * CLIENTS)
    told, counts = load.told, Counter(one.status for one in load.told)
    assert set(counts) <= {202, 503, None}, counts
    assert all(one.retry_after for one in told if one.status == 503)
    with door.client() as client:
        wait_until(lambda: create(client).status == 202, 10, "creates go on")
    with transaction(door.engine) as tx:
        rows = {str(i) for i in tx.scalars(select(ErasureRequest.id))}
        assert {one.request_id for one in told if one.status == 202} <= rows
        halves = """
            SELECT r.id FROM erasure_requests r
            WHERE 1 <> (SELECT count(*) FROM keystore.request_keys k WHERE k.request_id = r.id)
               OR 1 <> (SELECT count(*) FROM events e WHERE e.request_id = r.id)
               OR 1 <> (SELECT count(*) FROM audit_entries a WHERE a.request_id = r.id)
               OR 1 <> (SELECT count(*) FROM idempotency_keys i WHERE i.request_id = r.id)
            UNION ALL SELECT request_id FROM keystore.request_keys k
            WHERE NOT EXISTS (SELECT FROM erasure_requests r WHERE r.id = k.request_id)
        """
        assert tx.scalars(text(halves)).all() == []
        assert tx.scalar(text("SELECT sum(count) FROM intake_counts")) == len(rows)


def test_who_was_told_503_repeats_and_finds_one_request(house: tuple[Installation, Postgres]) -> None:
    door, server = house
    body, key = {"user_id": uuid4().hex}, {"Idempotency-Key": uuid4().hex}
    server.kill()
    with door.client() as client:
        away = client.post(PATH, json=body, headers=key)
        server.start()
        answers: list[httpx.Response] = []

        def accepted() -> bool:
            answers.append(client.post(PATH, json=body, headers=key))
            return answers[-1].is_success

        wait_until(accepted, 20, "the create is accepted")
        again = client.post(PATH, json=body, headers=key)
    assert (away.status_code, away.headers["Retry-After"]) == (503, "2")
    assert again.json()["id"] == answers[-1].json()["id"]


def test_creates_go_on_without_redis(house: tuple[Installation, Postgres]) -> None:
    """The broker's address of this house leads nowhere."""
    door, _ = house
    with door.client() as client:
        told = create(client)
    assert told.status == 202
    assert UUID(told.request_id or "")


def test_a_server_that_is_told_to_stop_answers_those_who_wait(house: tuple[Installation, Postgres]) -> None:
    door, _ = house
    with Load(door) as load:
        load.wait_for(202, 2 * CLIENTS)
        door.processes["api"].terminate()
        door.processes["api"].wait(20)
        load.over.set()
        door.start("api")
    told = load.told
    door.wait_for_api()
    assert {one.status for one in told} <= {202, None}
    with transaction(door.engine) as tx:
        rows = {str(i) for i in tx.scalars(select(ErasureRequest.id))}
    assert {one.request_id for one in told if one.status == 202} <= rows
