"""How often a caller may call: in one process, in two that share a Redis, and while Redis is dead, frozen or back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import redis

from app import keymaking
from app.api.auth import Scope
from app.api.limits import Limits
from app.domain.identifiers import api_key_digest, new_api_key
from app.embedded import Valkey
from app.storage.sessions import transaction
from tests.faults import wait_until
from tests.house import Installation, installation, settings_for
from tests.services import new_database

pytestmark = pytest.mark.slow
MODELS, LIVE, LOG = "/v1/models", "/health/live", "/log/checkpoint"
LIMIT = 40


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("limits")) as server:
        yield server


@pytest.fixture(scope="module")
def house(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory, valkey: Valkey
) -> Iterator[Installation]:
    """An API behind a proxy on this host; tests choose their address by the proxy's header."""
    home: Path = tmp_path_factory.mktemp("limited")
    rules = {
        "limit_per_caller": f"{LIMIT}/hour",
        "limit_per_address": f"{3 * LIMIT}/hour",
        "limit_public": f"{LIMIT}/hour",
        "limit_failures": "10/hour",
    }
    trust = {"trusted_proxies": (ip_network("127.0.0.0/8"),)}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, valkey.url, processes=("api",), model=False, **rules, **trust) as found,
    ):
        yield found


@pytest.fixture
def address() -> str:
    """One that no other test calls from."""
    raw = uuid4().bytes
    return f"2001:db8:{raw[0]:x}{raw[1]:02x}:{raw[2]:x}{raw[3]:02x}::1"


@pytest.fixture
def key(house: Installation) -> str:
    with transaction(house.engine) as tx:
        return keymaking.create(tx, name=uuid4().hex, scopes=[Scope.MODELS_READ])[1]


_http = httpx.Client(timeout=30)


def call(house: Installation, path: str, address: str, key: str = "") -> httpx.Response:
    headers = {"X-Forwarded-For": address} | ({"Authorization": f"Bearer {key}"} if key else {})
    return _http.get(f"http://127.0.0.1:{house.port}{path}", headers=headers)


def test_whoever_calls_too_often_is_told_when_to_come_again(house: Installation, address: str, key: str) -> None:
    statuses = [call(house, MODELS, address, key).status_code for _ in range(LIMIT + 5)]
    assert statuses == [200] * LIMIT + [429] * 5
    answer = call(house, MODELS, address, key)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"].endswith("/too-many-requests")
    assert 0 < int(answer.headers["Retry-After"]) <= 3600
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_key_has_one_limit_wherever_it_calls_from(house: Installation, key: str) -> None:
    statuses = [call(house, MODELS, f"2001:db8:{place:x}::1", key).status_code for place in range(1, LIMIT + 6)]
    assert statuses == [200] * LIMIT + [429] * 5


def test_an_address_has_one_limit_whatever_keys_it_shows(house: Installation, address: str) -> None:
    with transaction(house.engine) as tx:
        made = [keymaking.create(tx, name=uuid4().hex, scopes=[Scope.MODELS_READ])[1] for _ in range(4)]
    answers = [call(house, MODELS, address, key).status_code for key in made for _ in range(LIMIT - 5)]
    assert answers.count(200) == 3 * LIMIT


def test_the_public_log_has_a_limit_of_its_own(house: Installation, address: str, key: str) -> None:
    statuses = [call(house, LOG, address).status_code for _ in range(LIMIT + 1)]
    assert statuses == [404] * LIMIT + [429]
    assert call(house, MODELS, address, key).status_code == 200


def test_whether_the_process_lives_may_be_asked_without_end(house: Installation, address: str) -> None:
    assert {call(house, LIVE, address).status_code for _ in range(4 * LIMIT)} == {200}


def assert_ended(guesses: list[int]) -> None:
    """Ten are looked up, and then one a second."""
    assert guesses[:10] == [401] * 10
    assert guesses[10:].count(429) >= len(guesses) - 13
    assert set(guesses[10:]) <= {401, 429}


def test_a_new_key_is_heard_within_a_second_although_its_neighbours_fail(
    house: Installation, address: str, key: str
) -> None:
    assert_ended([call(house, MODELS, address, new_api_key(os.urandom(32))).status_code for _ in range(15)])
    time.sleep(1.1)
    assert call(house, MODELS, address, key).status_code == 200


def test_guessing_ends_after_ten_and_good_callers_of_that_address_are_heard(
    house: Installation, address: str, key: str
) -> None:
    assert call(house, MODELS, address, key).status_code == 200
    guesses = [call(house, MODELS, address, new_api_key(os.urandom(32))).status_code for _ in range(15)]
    assert_ended(guesses)
    assert call(house, MODELS, address, "exk_nonsense").status_code == 429
    assert call(house, MODELS, address).status_code == 429
    assert call(house, MODELS, address, key).status_code == 200, "a neighbour's guesses lock nobody out who was in"
    assert call(house, MODELS, "2001:db8:ffff:1::1", key).status_code == 200


def test_a_bad_key_does_not_become_good_by_reading_what_is_public(house: Installation, address: str) -> None:
    guess = new_api_key(os.urandom(32))
    assert call(house, "/health/ready", address, guess).status_code == 200
    assert_ended([call(house, MODELS, address, guess).status_code for _ in range(15)])


def test_neighbours_in_one_ipv6_network_are_one_caller(house: Installation, address: str) -> None:
    spray = [address.removesuffix("1") + f"{place:x}:{place:x}" for place in range(1, 16)]
    guesses = [call(house, MODELS, one, new_api_key(os.urandom(32))).status_code for one in spray]
    assert_ended(guesses)


def test_while_redis_is_frozen_dead_or_back_nobody_waits(house: Installation, address: str, valkey: Valkey) -> None:
    def slow(seconds: float) -> float:
        """The second slowest: who waits for Redis does so at every call, a busy machine at one."""
        took, until = [], time.monotonic() + seconds
        with transaction(house.engine) as tx:
            key = keymaking.create(tx, name=uuid4().hex, scopes=[Scope.MODELS_READ])[1]
        for place in range(LIMIT):
            began = time.monotonic()
            assert call(house, MODELS, f"2001:db8:{uuid4().bytes[0]:x}:{place:x}::9", key).status_code == 200
            took.append(time.monotonic() - began)
            time.sleep(max(0.0, min(seconds / LIMIT, until - time.monotonic())))
        return sorted(took)[-2]

    usual = slow(1.5)
    assert valkey.pid
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        frozen = slow(3)
    finally:
        os.kill(valkey.pid, signal.SIGCONT)
    valkey.kill()
    dead = slow(3)
    valkey.start()
    back = slow(3)
    assert max(frozen, dead, back) < max(0.4, 5 * usual), (usual, frozen, dead, back)


class Two:
    """Two processes' limits, with a clock of theirs and one Redis."""

    def __init__(self, tmp_path: Path, redis_url: str, **rules: str) -> None:
        self.now = 1_000_000 * 3600.0
        settings = settings_for(tmp_path, "", redis_url, **rules)
        self.first, self.second = (Limits(settings, clock=lambda: self.now) for _ in range(2))

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(limits.make_rounds()) for limits in (self.first, self.second)]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def admitted(self, calls: int, *, pause_seconds: float = 0.0) -> int:
        """How many of so many calls got in, made in turn to both processes."""
        good = 0
        for place in range(calls):
            limits = (self.first, self.second)[place % 2]
            good += limits.callers.spend("somebody") == 0
            await asyncio.sleep(pause_seconds)
        return good


def test_two_processes_let_in_what_one_may(tmp_path: Path, valkey: Valkey) -> None:
    both = Two(tmp_path, valkey.url, limit_per_caller="100/hour")

    async def story() -> int:
        async with both.working():
            return await both.admitted(400, pause_seconds=0.005)

    admitted = asyncio.run(story())
    assert 100 <= admitted <= 120, "a tenth is told at once, so each may be late by about that"


def test_a_flood_within_one_round_gets_each_process_once_at_most(tmp_path: Path, valkey: Valkey) -> None:
    both = Two(tmp_path, valkey.url, limit_per_caller="100/hour")

    async def story() -> int:
        async with both.working():
            return await both.admitted(10_000)

    assert asyncio.run(story()) <= 200


def test_without_redis_each_process_has_the_limit_for_itself(tmp_path: Path) -> None:
    for url in ("", "redis://127.0.0.1:1/0"):
        both = Two(tmp_path, url, limit_per_caller="100/hour")

        async def story(both: Two = both) -> int:
            async with both.working():
                return await both.admitted(1000, pause_seconds=0.001)

        assert asyncio.run(story()) == 200


def test_the_next_window_begins_with_nothing_spent(tmp_path: Path, valkey: Valkey) -> None:
    both = Two(tmp_path, valkey.url, limit_per_caller="100/hour")

    async def story() -> tuple[float, int]:
        async with both.working():
            await both.admitted(400, pause_seconds=0.002)
            both.now += 3599.0
            rest = both.first.callers.spend("somebody")
            both.now += 1.0
            return rest, await both.admitted(90)

    rest, admitted = asyncio.run(story())
    assert rest == pytest.approx(1.0)
    assert admitted == 90


def test_a_redis_that_lost_its_memory_takes_nothing_from_anybody(tmp_path: Path, valkey: Valkey) -> None:
    both = Two(tmp_path, valkey.url, limit_per_caller="100/hour")

    async def story() -> int:
        async with both.working():
            first = await both.admitted(50, pause_seconds=0.01)
            await asyncio.to_thread(valkey.kill)
            await asyncio.to_thread(valkey.start)
            await asyncio.sleep(3)
            return first + await both.admitted(40, pause_seconds=0.01)

    assert asyncio.run(story()) == 90


def test_redis_learns_neither_addresses_nor_keys(house: Installation, valkey: Valkey, key: str) -> None:
    call(house, MODELS, "203.0.113.77", key)
    server = redis.Redis.from_url(valkey.url)
    wait_until(lambda: bool(server.keys("LIMITS*")), 10, "the round tells redis")
    names = b"\n".join(server.keys("*"))
    assert b"203.0.113" not in names
    assert key.encode() not in names
    assert api_key_digest(key).hex().encode() not in names
    assert all(0 < server.ttl(name) <= 7200 for name in server.keys("LIMITS*"))


def test_memory_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.limits._MOST_CALLERS", 100)
    limits = Limits(settings_for(tmp_path, "", limit_per_address="5/hour"))
    for place in range(1000):
        assert limits.addresses.spend(f"10.0.0.{place}") == 0
    assert len(limits.addresses._counts) == 100
