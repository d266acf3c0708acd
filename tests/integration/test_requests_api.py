"""Erasure requests over HTTP, against a real API process and PostgreSQL, with Redis and every worker absent."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import select, text

from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest
from tests.house import Installation

pytestmark = pytest.mark.slow
PATH = "/v1/erasure-requests"
CANARY = "canary-user-0001"
NOBODY = UUID(int=0)


def test_a_demand_is_accepted_with_location_and_deadline(front_door: Installation) -> None:
    with front_door.client() as client:
        answer = client.post(PATH, json={"user_id": str(uuid4())})
        assert answer.status_code == 202
        assert answer.headers["Location"] == f"{PATH}/{answer.json()['id']}"
        shown = client.get(answer.headers["Location"]).json()
    assert shown == answer.json()
    assert shown["status"] == "received"
    due, now = datetime.fromisoformat(shown["deadline"]), datetime.now(UTC)
    assert timedelta(days=27) < due - now < timedelta(days=33)


def test_the_same_demand_while_one_is_open_is_the_same_request(front_door: Installation) -> None:
    body = {"user_id": str(uuid4()), "reference": "T-1"}
    with front_door.client() as client:
        first, second = client.post(PATH, json=body), client.post(PATH, json=body)
        other = client.post(PATH, json={**body, "reference": "T-2"})
    assert (first.status_code, second.status_code, other.status_code) == (202, 200, 202)
    assert first.json()["id"] == second.json()["id"] != other.json()["id"]


def test_a_hundred_at_once_of_one_demand_make_one_request(front_door: Installation) -> None:
    body = {"user_id": str(uuid4())}
    with front_door.client() as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.post(PATH, json=body), range(100)))
    assert {a.status_code for a in answers} == {200, 202}
    assert len({a.json()["id"] for a in answers}) == 1
    assert sum(a.status_code == 202 for a in answers) == 1


def test_an_idempotency_key_replays_its_answer_and_refuses_another_body(front_door: Installation) -> None:
    body, key = {"user_id": str(uuid4())}, {"Idempotency-Key": str(uuid4())}
    with front_door.client() as client:
        first = client.post(PATH, json=body, headers=key)
        again = client.post(PATH, json=body, headers=key)
        other = client.post(PATH, json={"user_id": str(uuid4())}, headers=key)
        client.post(f"{PATH}/{first.json()['id']}:cancel")
        after_the_end = client.post(PATH, json=body, headers=key)
    assert first.json()["id"] == again.json()["id"] == after_the_end.json()["id"]
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"


def test_an_idempotency_key_under_a_race_gives_one_request(front_door: Installation) -> None:
    body, key = {"user_id": str(uuid4())}, {"Idempotency-Key": str(uuid4())}
    with front_door.client() as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.post(PATH, json=body, headers=key), range(50)))
    assert {a.status_code for a in answers} <= {200, 202}
    assert len({a.json()["id"] for a in answers}) == 1


def test_a_cancelled_request_keeps_nothing_about_the_person(front_door: Installation) -> None:
    with front_door.client() as client:
        made = client.post(PATH, json={"user_id": str(uuid4())}).json()
        cancelled = client.post(f"{PATH}/{made['id']}:cancel")
        again = client.post(f"{PATH}/{made['id']}:cancel")
    assert cancelled.json()["status"] == again.json()["status"] == "cancelled"
    with transaction(front_door.engine) as tx:
        row = tx.get_one(ErasureRequest, UUID(made["id"]))
        assert (row.subject_key, row.suppression_key, row.sealed_user_id, row.dedupe_key) == (None,) * 4
        assert (
            tx.execute(
                text("SELECT count(*) FROM keystore.request_keys WHERE request_id = :i"), {"i": made["id"]}
            ).scalar()
            == 0
        )


def test_the_user_id_lies_in_the_database_only_sealed(front_door: Installation) -> None:
    user_id = f"canary-{uuid4()}"
    with front_door.client() as client:
        client.post(PATH, json={"user_id": user_id}, headers={"Idempotency-Key": f"key-{user_id}"})
    with transaction(front_door.engine) as tx:
        tables = tx.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        for table in tables:
            rows = tx.execute(text(f'SELECT t::text FROM "{table}" t')).scalars().all()
            assert not any(user_id in row or user_id.encode().hex() in row for row in rows), table


def test_the_list_pages_in_order_of_arrival(front_door: Installation) -> None:
    with front_door.client() as client:
        made = [
            client.post(PATH, json={"user_id": str(uuid4()), "reference": "page-me"}).json()["id"] for _ in range(5)
        ]
        seen, cursor = [], None
        while True:
            page = client.get(
                PATH, params={"reference": "page-me", "limit": 2, **({"cursor": cursor} if cursor else {})}
            ).json()
            seen += [item["id"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    assert seen == made


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "user_id"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "  "}, "user_id"),
        ({"user_id": "x" * 257}, "user_id"),
        ({"user_id": f"{CANARY}\x00"}, "user_id"),
        ({"user_id": CANARY, CANARY: []}, "(unknown field)"),
        ({"user_id": CANARY, "models": []}, "models"),
        ({"user_id": CANARY, "models": ["nobody-registered-this"]}, "models"),
        ({"user_id": CANARY, "models": "all"}, "models"),
        ({"user_id": CANARY, "models": [CANARY.upper()]}, "models.0"),
        ({"user_id": CANARY, "reference": "line\nbreak"}, "reference"),
        ([CANARY], "body"),
    ],
)
def test_bad_input_names_the_field_and_echoes_nothing(front_door: Installation, body: object, field: str) -> None:
    with front_door.client() as client:
        answer = client.post(PATH, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert field in [problem["field"] for problem in answer.json()["errors"]]
    assert CANARY.lower() not in answer.text.lower()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"\xff\xfe", 400),
        (b'{"user_id": "' + CANARY.encode() + b'", }', 400),
        (b'{"user_id": "' + b"x" * 1_000_000 + b'"}', 413),
        (b'{"user_id": "\\ud800"}', 422),
        (b'{"user_id": "alice", "user_id": "bob"}', 400),
        (b"[" * 50_000, 400),
    ],
)
def test_a_malformed_body_is_a_problem_document(front_door: Installation, content: bytes, status: int) -> None:
    with front_door.client() as client:
        answer = client.post(PATH, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status
    assert CANARY not in answer.text


@pytest.mark.parametrize(
    "path", [f"{PATH}/{NOBODY}", f"{PATH}/{NOBODY}/events", f"{PATH}/{NOBODY}/certificate", "/nowhere"]
)
def test_what_is_not_there_is_a_404_problem(front_door: Installation, path: str) -> None:
    with front_door.client() as client:
        answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_without_a_key_or_with_a_wrong_or_revoked_one_nothing_is_said(front_door: Installation) -> None:
    url = f"http://127.0.0.1:{front_door.port}{PATH}"
    made = front_door.cli("keys", "create", "short-lived", "--scope", "requests:read")
    secret = made.stdout.strip()
    assert httpx.get(url, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    assert httpx.post(url, json={"user_id": "u"}, headers={"Authorization": f"Bearer {secret}"}).status_code == 403
    key_id = made.stderr.split()[1]
    assert front_door.cli("keys", "revoke", key_id).returncode == 0
    for header in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Bearer {secret}"}):
        answer = httpx.get(url, headers=header)
        assert answer.status_code == 401
        assert secret not in answer.text


def test_a_key_is_stored_as_a_digest_only(front_door: Installation) -> None:
    with transaction(front_door.engine) as tx:
        rows = tx.execute(text("SELECT k::text FROM api_keys k")).scalars().all()
    assert rows
    assert not any(front_door.key in row for row in rows)


def test_ready_tells_that_nobody_works(front_door: Installation) -> None:
    with front_door.client() as client:
        client.post(PATH, json={"user_id": str(uuid4())})
        ready = client.get("/health/ready").json()
    assert ready["accepting"] is True
    assert ready["working"] is False
    assert ready["queues"] == {"unlearn": False, "io": False}
    assert ready["oldest_open_seconds"] >= 0


def test_a_commit_that_fails_is_never_answered_with_a_2xx(front_door: Installation) -> None:
    refuse = """
    CREATE FUNCTION refuse_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON erasure_requests DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW EXECUTE FUNCTION refuse_commit()
    """
    user_id = str(uuid4())
    with transaction(front_door.engine) as tx:
        before = len(tx.scalars(select(ErasureRequest.id)).all())
        tx.execute(text(refuse))
    try:
        with front_door.client() as client:
            answer = client.post(PATH, json={"user_id": user_id})
    finally:
        with transaction(front_door.engine) as tx:
            tx.execute(text("DROP TRIGGER refuse ON erasure_requests"))
            tx.execute(text("DROP FUNCTION refuse_commit"))
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert user_id not in answer.text
    with transaction(front_door.engine) as tx:
        assert len(tx.scalars(select(ErasureRequest.id)).all()) == before


def test_history_can_be_added_to_but_not_changed(front_door: Installation) -> None:
    for statement in ("UPDATE events SET type = 'x'", "DELETE FROM events", "TRUNCATE events", "TRUNCATE suppressions"):
        with front_door.engine.connect() as connection, pytest.raises(Exception, match="append-only"):
            connection.execute(text(statement))


def test_the_api_starts_without_torch_celery_or_redis() -> None:
    code = (
        "import app.main, sys; app.main.create_app(); print({'torch', 'celery', 'redis', 'kombu'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
