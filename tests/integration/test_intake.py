"""What a create promises beyond being written down: identity, approval, a client's day, and silence about people."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import func, select, text

from app import intake, keymaking
from app.api.auth import Scope
from app.domain.decisions import IdentityLevel
from app.errors import Conflict, Invalid, TooMany
from app.intake import Batch, Demand, Filed, Filing
from app.storage import intake_counts
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest, RequestKey
from tests.house import Installation, installation
from tests.services import new_database

pytestmark = pytest.mark.slow
PATH = "/v1/erasure-requests"
CANARY = "canary-user-0003"
NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def strict_door(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An API that wants to know people well and takes few demands a day."""
    home: Path = tmp_path_factory.mktemp("strict-door")
    rules = {"identity_needed": IdentityLevel.SUBSTANTIAL, "daily_erasures": 5}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, **rules) as house,
    ):
        yield house


@pytest.fixture
def quiet(database_url: str, tmp_path: Path) -> Iterator[Installation]:
    """An installation of which nothing runs."""
    with installation(tmp_path, database_url, "", model=False, daily_erasures=20) as house:
        yield house


def key_of(house: Installation) -> tuple[UUID, dict[str, str]]:
    """A client with a day of its own."""
    with transaction(house.engine) as tx:
        row, secret = keymaking.create(tx, name=uuid4().hex, scopes=list(Scope))
        return row.client_id, {"Authorization": f"Bearer {secret}"}


def test_a_person_less_known_than_needed_is_awaited_and_a_surer_repeat_confirms_them(strict_door: Installation) -> None:
    _, caller = key_of(strict_door)
    url, body = f"http://127.0.0.1:{strict_door.port}{PATH}", {"user_id": uuid4().hex}
    first = httpx.post(url, json=body, headers=caller)
    same = httpx.post(url, json={**body, "identity_level": "low"}, headers=caller)
    surer = httpx.post(url, json={**body, "identity_level": "high"}, headers=caller)
    known = httpx.post(url, json={"user_id": uuid4().hex, "identity_level": "substantial"}, headers=caller)
    assert [a.status_code for a in (first, same, surer, known)] == [202, 200, 200, 202]
    assert [a.json()["status"] for a in (first, same)] == ["awaiting_identity"] * 2
    assert (surer.json()["id"], surer.json()["status"]) == (first.json()["id"], "received")
    assert surer.json()["identity_level"] == "high"
    assert known.json()["status"] == "received"
    events = httpx.get(f"{url}/{first.json()['id']}/events", headers=caller).json()["items"]
    assert [e["type"] for e in events][:2] == ["request.received", "request.awaiting_identity"]


def test_a_clients_day_ends_with_429_and_what_is_known_goes_on(strict_door: Installation) -> None:
    _, caller = key_of(strict_door)
    url, bodies = f"http://127.0.0.1:{strict_door.port}{PATH}", [{"user_id": uuid4().hex} for _ in range(6)]
    taken = [httpx.post(url, json=body, headers=caller) for body in bodies]
    again = httpx.post(url, json=bodies[0], headers=caller)
    assert [a.status_code for a in taken] == [202] * 5 + [429]
    assert 0 < int(taken[-1].headers["Retry-After"]) <= 24 * 3600
    assert taken[-1].headers["Content-Type"] == "application/problem+json"
    assert again.status_code == 200
    batch = httpx.post(f"{url}:batch", json={"items": [bodies[5], bodies[1]]}, headers=caller).json()
    assert [item["outcome"] for item in batch["items"]] == ["refused", "known"]
    _, other = key_of(strict_door)
    assert httpx.post(url, json={"user_id": uuid4().hex}, headers=other).status_code == 202


def test_many_at_once_can_not_overspend_a_day(strict_door: Installation) -> None:
    client_id, caller = key_of(strict_door)
    url = f"http://127.0.0.1:{strict_door.port}{PATH}"
    with httpx.Client(headers=caller, timeout=30) as client, ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda _: client.post(url, json={"user_id": uuid4().hex}).status_code, range(60)))
    assert sorted(set(codes)) == [202, 429]
    assert codes.count(202) == 5
    with transaction(strict_door.engine) as tx:
        assert tx.scalar(select(func.count()).where(ErasureRequest.client_id == client_id)) == 5


def test_large_transactions_side_by_side_can_not_overspend_a_day(quiet: Installation) -> None:
    client_id, _ = key_of(quiet)
    settings, start = quiet.settings.model_copy(update={"daily_erasures": 3500}), threading.Barrier(4)

    def file(_: int) -> int:
        filings = [Filing(Demand(user_id=uuid4().hex), client_id) for _ in range(1400)]
        start.wait(30)
        with transaction(quiet.engine) as tx:
            outcomes = intake.accept_many(tx, filings, now=NOW, settings=settings)
        return sum(isinstance(o, Filed) for o in outcomes)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(file, range(4))) == [0, 700, 1400, 1400]
    with transaction(quiet.engine) as tx:
        assert tx.scalar(select(func.count()).where(ErasureRequest.client_id == client_id)) == 3500


def test_a_client_with_a_number_of_its_own(strict_door: Installation) -> None:
    client_id, caller = key_of(strict_door)
    assert strict_door.cli("keys", "client", str(client_id), "--daily-erasures", "1").returncode == 0
    url = f"http://127.0.0.1:{strict_door.port}{PATH}"
    codes = [httpx.post(url, json={"user_id": uuid4().hex}, headers=caller).status_code for _ in range(2)]
    assert codes == [202, 429]


def test_the_next_day_counts_anew(quiet: Installation) -> None:
    client_id, _ = key_of(quiet)

    def file(count: int, at: datetime) -> list[object]:
        filings = [Filing(Demand(user_id=uuid4().hex), client_id) for _ in range(count)]
        with transaction(quiet.engine) as tx:
            return [type(o) for o in intake.accept_many(tx, filings, now=at, settings=quiet.settings)]

    assert file(21, NOW) == [Filed] * 20 + [TooMany]
    assert file(1, NOW) == [TooMany]
    assert file(20, NOW.replace(day=2)) == [Filed] * 20
    with transaction(quiet.engine) as tx:
        intake_counts.forget(tx)
        assert tx.scalar(text("SELECT count(*) FROM intake_counts")) == 2  # both lie ahead of the server's clock
        tx.execute(text("UPDATE intake_counts SET day = day - 3650"))
        intake_counts.forget(tx)
        assert tx.scalar(text("SELECT count(*) FROM intake_counts")) == 0


def test_one_transaction_sorts_out_repeats_and_mistakes(quiet: Installation) -> None:
    client_id, _ = key_of(quiet)
    twice, clash = Demand(user_id="ann"), Demand(user_id="ben")
    filings = [
        Filing(twice, client_id, "k1"),
        Filing(twice, client_id, "k1"),
        Filing(clash, client_id, "k1"),
        Filing(twice, client_id, "k2"),
        Filing(Demand(user_id=f"{CANARY}\x00"), client_id, "k3"),
        Filing(Demand(user_id=CANARY, models=["nobody-registered-this"]), client_id),
        Filing(clash, client_id, "k3"),
    ]
    with transaction(quiet.engine) as tx:
        a, b, c, d, e, f, g = intake.accept_many(tx, filings, now=NOW, settings=quiet.settings)
    assert isinstance(a, Filed)
    assert a.created
    assert [o.request.id if isinstance(o, Filed) and not o.created else None for o in (b, d)] == [a.request.id] * 2
    assert [o.field if isinstance(o, Invalid) else None for o in (c, e, f)] == ["Idempotency-Key", "user_id", "models"]
    assert isinstance(g, Filed)
    assert g.created
    assert CANARY not in f"{e}{f}{e!r}{f!r}"
    with transaction(quiet.engine) as tx:
        again = intake.accept_many(tx, filings[:4], now=NOW, settings=quiet.settings)
        assert tx.scalar(select(func.count()).select_from(RequestKey)) == 2
    assert [o.request.id if isinstance(o, Filed) else None for o in again] == [
        a.request.id,
        a.request.id,
        None,
        a.request.id,
    ]


def test_accepting_one_is_accepting_many_of_one(quiet: Installation) -> None:
    client_id, _ = key_of(quiet)
    with transaction(quiet.engine) as tx:
        demand = Demand(user_id="cleo", reference='a "quoted" \\ one', models=None)
        made = intake.accept(tx, demand, client_id=client_id, idempotency_key=None, now=NOW, settings=quiet.settings)
        [filed] = intake.accept_many(tx, [Filing(demand, client_id)], now=NOW, settings=quiet.settings)
        assert isinstance(filed, Filed)
        assert (filed.request.id, filed.created) == (made.request.id, False)
        assert tx.scalar(select(func.count()).select_from(RequestKey)) == 1  # none of the repeat, which got no row
        assert made.request.reference == 'a "quoted" \\ one'
        assert made.request.models is None


def test_approvals_come_from_policy_and_from_the_size_of_a_batch(quiet: Installation) -> None:
    client_id, _ = key_of(quiet)
    careful = quiet.settings.model_copy(update={"approval_policy": "all", "approvals_asked": 1})
    with transaction(quiet.engine) as tx:
        [alone] = intake.accept_many(tx, [Filing(Demand(user_id="dora"), client_id)], now=NOW, settings=careful)
        [of_batch] = intake.accept_many(
            tx, [Filing(Demand(user_id="emil"), client_id)], now=NOW, settings=careful, batch=Batch(uuid4(), 2)
        )
    assert isinstance(alone, Filed)
    assert isinstance(of_batch, Filed)
    assert [o.request.approvals_needed for o in (alone, of_batch)] == [1, 2]


def test_two_transactions_that_meet_in_many_demands_both_end(quiet: Installation) -> None:
    client_id, _ = key_of(quiet)
    with transaction(quiet.engine) as tx:
        tx.execute(text("UPDATE clients SET daily_erasures = 1000000"))
    people = [Demand(user_id=f"p-{n}") for n in range(300)]

    def file(backwards: bool) -> int:
        filings = [Filing(d, client_id, f"k-{d.user_id}") for d in (reversed(people) if backwards else people)]
        with transaction(quiet.engine) as tx:
            outcomes = intake.accept_many(tx, filings, now=NOW, settings=quiet.settings)
        return sum(isinstance(o, Filed) and o.created for o in outcomes)

    def tried(backwards: bool) -> int:
        try:
            return file(backwards)
        except Conflict:  # it lost the race for a key: said so, and written nothing
            return file(backwards)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(tried, [False, True, False, True])) == 300


def test_nothing_personal_leaves_when_a_flush_breaks(front_door: Installation) -> None:
    """PostgreSQL's messages quote the row that failed; ours quote nothing."""
    spoil = """
    CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN IF NEW.reference LIKE 'spoilt%' THEN RAISE EXCEPTION 'row %', NEW; END IF; RETURN NEW; END $$;
    CREATE TRIGGER spoil BEFORE INSERT ON erasure_requests FOR EACH ROW EXECUTE FUNCTION spoil()
    """
    with transaction(front_door.engine) as tx:
        tx.execute(text(spoil))
    try:
        with front_door.client() as client, ThreadPoolExecutor(16) as pool:

            def create(n: int) -> httpx.Response:
                reference = f"spoilt-{CANARY}" if n % 4 == 0 else f"good-{n}"
                body = {"user_id": f"{CANARY}-{uuid4()}", "reference": reference}
                return client.post(PATH, json=body, headers={"Connection": "close"})  # uvicorn closes it after a 500

            answers = list(pool.map(create, range(80)))
            batch = client.post(f"{PATH}:batch", json={"items": [{"user_id": CANARY, "reference": f"spoilt-{CANARY}"}]})
    finally:
        with transaction(front_door.engine) as tx:
            tx.execute(text("DROP TRIGGER spoil ON erasure_requests"))
            tx.execute(text("DROP FUNCTION spoil"))
    assert [a.status_code for a in answers] == [500 if n % 4 == 0 else 202 for n in range(80)]
    assert batch.status_code == 500
    said = "".join(a.text for a in [*answers, batch] if a.status_code >= 400) + front_door.log.read_text()
    assert CANARY not in said


def test_a_body_that_is_no_json_by_its_own_word_is_not_read(front_door: Installation) -> None:
    with front_door.client() as client:
        answer = client.post(PATH, content=json.dumps({"user_id": CANARY}), headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422
    assert CANARY not in answer.text


def test_strangers_learn_nothing_from_a_wrong_body(front_door: Installation) -> None:
    url = f"http://127.0.0.1:{front_door.port}{PATH}"
    reader = front_door.cli("keys", "create", uuid4().hex, "--scope", "requests:read").stdout.strip()
    for key, code in (("nonsense", 401), (reader, 403)):
        assert httpx.post(url, json={}, headers={"Authorization": f"Bearer {key}"}).status_code == code


@pytest.mark.parametrize("key", ["", "a b", "ü".encode(), "x" * 256])
def test_an_idempotency_key_has_a_form(front_door: Installation, key: str | bytes) -> None:
    with front_door.client() as client:
        answer = client.post(
            PATH,
            json={"user_id": uuid4().hex},
            headers=[(b"Idempotency-Key", key if isinstance(key, bytes) else key.encode())],
        )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Idempotency-Key"
