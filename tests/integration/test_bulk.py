"""Bulk calls: an outcome for each item in its place, one transaction, nothing echoed."""

import json
import time
from codecs import BOM_UTF8
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import func, select, text

from app import keymaking
from app.api.auth import Scope
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest, RequestKey
from tests.house import Installation

pytestmark = pytest.mark.slow
PATH = "/v1/erasure-requests:batch"
LINES = {"Content-Type": "application/x-ndjson"}
CANARY = "canary-user-0002"


def people(count: int) -> list[dict[str, object]]:
    return [{"user_id": uuid4().hex, "reference": f"B-{n}"} for n in range(count)]


def lines(items: list[dict[str, object]]) -> bytes:
    return b"\n".join(json.dumps(item).encode() for item in items)


def test_each_item_has_its_outcome_in_its_place(front_door: Installation) -> None:
    [old, *new] = people(3)
    bad = {"user_id": CANARY, "models": ["nobody-registered-this"]}
    with front_door.client() as client:
        known = client.post("/v1/erasure-requests", json=old).json()["id"]
        answer = client.post(PATH, json={"items": [new[0], bad, old, {"user_id": 7}, new[1], new[0]]})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert [item["outcome"] for item in told["items"]] == [
        "accepted",
        "invalid",
        "known",
        "invalid",
        "accepted",
        "known",
    ]
    assert told["items"][2]["id"] == known
    assert told["items"][5]["id"] == told["items"][0]["id"]
    assert [told["items"][n]["errors"][0]["field"] for n in (1, 3)] == ["models", "user_id"]
    assert told["counts"] == {"accepted": 2, "known": 2, "invalid": 2, "refused": 0}
    assert CANARY not in answer.text


def test_accepted_items_are_requests_like_any_other(front_door: Installation) -> None:
    with front_door.client() as client:
        told = client.post(PATH, json={"items": [{"user_id": uuid4().hex, "reference": "T-9"}]}).json()
        shown = client.get(f"/v1/erasure-requests/{told['items'][0]['id']}").json()
        events = client.get(f"/v1/erasure-requests/{shown['id']}/events").json()["items"]
    assert (shown["status"], shown["reference"], shown["batch_id"]) == ("received", "T-9", told["batch_id"])
    assert [event["type"] for event in events] == ["request.received"]
    with transaction(front_door.engine) as tx:
        row = tx.get_one(ErasureRequest, UUID(shown["id"]))
        assert row.sealed_user_id
        assert row.subject_key
        assert row.suppression_key
        assert tx.scalar(select(func.count()).where(RequestKey.request_id == row.id)) == 1
        entered = text("SELECT count(*) FROM audit_entries WHERE request_id = :i AND type = 'request.received'")
        assert tx.scalar(entered, {"i": row.id}) == 1


def test_lines_are_read_one_by_one_and_a_broken_one_is_only_itself(front_door: Installation) -> None:
    good = people(2)
    broken = [b'{"user_id": "' + CANARY.encode(), b'{"user_id": "a", "user_id": "b"}', b'["' + CANARY.encode() + b'"]']
    body = b"\n".join([lines(good[:1]), *broken, b'{"user_id": "\\ud800"}', lines(good[1:]), b""])
    with front_door.client() as client:
        answer = client.post(PATH, content=body, headers=LINES)
    assert answer.status_code == 200, answer.text
    assert [i["outcome"] for i in answer.json()["items"]] == ["accepted", *["invalid"] * 4, "accepted"]
    assert CANARY not in answer.text


def test_ten_thousand_fit_into_one_call_and_one_more_does_not(front_door: Installation) -> None:
    with transaction(front_door.engine) as tx:
        tx.execute(text("UPDATE clients SET daily_erasures = 1000000"))
    with front_door.client() as client:
        answer = client.post(PATH, content=lines(people(10_000)), headers=LINES)
        over = client.post(PATH, content=lines(people(10_001)), headers=LINES)
    assert answer.json()["counts"]["accepted"] == 10_000
    assert len({item["id"] for item in answer.json()["items"]}) == 10_000
    assert over.status_code == 422
    with transaction(front_door.engine) as tx:
        of_batch = select(func.count()).where(ErasureRequest.batch_id == UUID(answer.json()["batch_id"]))
        assert tx.scalar(of_batch) == 10_000
        # more than settings.four_eyes_above
        needed = select(ErasureRequest.approvals_needed).where(ErasureRequest.batch_id == answer.json()["batch_id"])
        assert set(tx.scalars(needed)) == {2}


def test_items_are_counted_before_they_are_read(front_door: Installation) -> None:
    with front_door.client() as client:
        start = time.monotonic()
        answer = client.post(PATH, content=b"x\n" * (4 << 20), headers=LINES)
        took = time.monotonic() - start
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == "items"
    assert took < 10


def test_of_an_item_with_very_many_mistakes_not_each_is_told(front_door: Installation) -> None:
    with front_door.client() as client:
        answer = client.post(PATH, json={"items": [{f"f{n}": n for n in range(50_000)}, *people(1)]})
    assert [item["outcome"] for item in answer.json()["items"]] == ["invalid", "accepted"]
    assert len(answer.content) < 1000


def test_a_byte_order_mark_is_no_part_of_the_first_line(front_door: Installation) -> None:
    with front_door.client() as client:
        answer = client.post(PATH, content=BOM_UTF8 + lines(people(2)), headers=LINES)
    assert answer.json()["counts"]["accepted"] == 2


def test_a_number_that_nobody_reads_is_named_or_only_its_line_is_wrong(front_door: Installation) -> None:
    bad = b'{"user_id": ' + b"9" * 5000 + b"}"
    with front_door.client() as client:
        whole = client.post(
            PATH, content=b'{"items": [' + bad + b"]}", headers={"Content-Type": "application/json"}
        ).json()
        by_line = client.post(PATH, content=bad + b"\n" + lines(people(1)), headers=LINES).json()
    assert (whole["status"], whole["errors"][0]["field"]) == (422, "items")
    assert "number" in whole["detail"]
    assert [item["outcome"] for item in by_line["items"]] == ["invalid", "accepted"]


def test_calls_that_are_small_one_by_one_need_people_when_they_are_many(front_door: Installation) -> None:
    with transaction(front_door.engine) as tx:
        _, secret = keymaking.create(tx, name=uuid4().hex, scopes=list(Scope))
    url, caller = f"http://127.0.0.1:{front_door.port}", {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=url, headers=caller, timeout=30) as client:
        for _ in range(3):
            client.post("/v1/erasure-requests", json=people(1)[0])  # singles are not counted
        batches = [client.post(PATH, json={"items": people(count)}).json() for count in (600, 400, 1)]
    with transaction(front_door.engine) as tx:
        of = {UUID(batch["batch_id"]): n for n, batch in enumerate(batches)}
        needed = select(ErasureRequest.batch_id, ErasureRequest.approvals_needed)
        rows = tx.execute(needed.where(ErasureRequest.batch_id.in_(of)).distinct())
        assert sorted((of[batch_id], people_needed) for batch_id, people_needed in rows) == [(0, 0), (1, 0), (2, 2)]


def test_one_key_is_one_call(front_door: Installation) -> None:
    items, key = people(3), {"Idempotency-Key": uuid4().hex}
    with front_door.client() as client:
        first = client.post(PATH, json={"items": [*items, {"user_id": ""}]}, headers=key)
        again = client.post(PATH, json={"items": [*items, {"user_id": ""}]}, headers=key)
        other = client.post(PATH, json={"items": items}, headers=key)
        single = client.post("/v1/erasure-requests", json=items[0], headers=key)
    assert again.json() == first.json()
    assert first.json()["counts"]["accepted"] == 3
    assert (other.status_code, single.status_code) == (422, 422)
    assert other.json()["errors"][0]["field"] == single.json()["errors"][0]["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"items": []}', "application/json", 422),
        (b'{"items": {}}', "application/json", 422),
        (b'{"items": [{"user_id": "a", "user_id": "b"}]}', "application/json", 400),
        (b'{"items": [], "more": 1}', "application/json", 422),
        (b"", "application/x-ndjson", 422),
        (b"user_id\na", "text/csv", 415),
        (b"x" * (9 << 20), "application/x-ndjson", 413),
    ],
)
def test_a_call_that_can_not_be_read_is_refused_whole(
    front_door: Installation, content: bytes, kind: str, status: int
) -> None:
    with front_door.client() as client:
        answer = client.post(PATH, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_strangers_and_readers_are_refused(front_door: Installation) -> None:
    reader = front_door.cli("keys", "create", uuid4().hex, "--scope", "requests:read").stdout.strip()
    url = f"http://127.0.0.1:{front_door.port}{PATH}"
    asked = [httpx.post(url, json={"items": [{}]}, headers={"Authorization": f"Bearer {k}"}) for k in ("x", reader)]
    assert [answer.status_code for answer in asked] == [401, 403]
