"""Decisions over HTTP and at the command line, against a real API process and PostgreSQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy import text

from app import keymaking
from app.domain import deadlines
from app.storage.sessions import transaction
from tests.house import Installation

pytestmark = pytest.mark.slow
PATH = "/v1/erasure-requests"
NOBODY = UUID(int=0)
REFUSAL = {"ground": "art17_3_b_legal_obligation"}
CANARY = "canary-user-0007"


def caller(house: Installation, *scopes: str) -> httpx.Client:
    with transaction(house.engine) as tx:
        _, secret = keymaking.create(tx, name=f"with {scopes}", scopes=list(scopes))
    return httpx.Client(
        base_url=f"http://127.0.0.1:{house.port}", headers={"Authorization": f"Bearer {secret}"}, timeout=30
    )


@pytest.fixture
def portal(front_door: Installation) -> httpx.Client:
    return caller(front_door, "requests:write", "requests:read")


@pytest.fixture
def officer(front_door: Installation) -> httpx.Client:
    return caller(front_door, "requests:decide")


def demand(portal: httpx.Client, **more: object) -> str:
    answer = portal.post(f"{PATH}", json={"user_id": str(uuid4()), **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def let_wait(house: Installation, *ids: str) -> None:
    """Bring requests where the planner would: to people who must agree."""
    with transaction(house.engine) as tx:
        waits = text("UPDATE erasure_requests SET status = 'pending', approvals_needed = 1 WHERE id = ANY (:ids)")
        tx.execute(waits, {"ids": list(map(UUID, ids))})


def test_an_officer_decides_about_every_clients_requests_and_a_portal_about_none(
    front_door: Installation, portal: httpx.Client, officer: httpx.Client
) -> None:
    request_id, until = demand(portal), (datetime.now(UTC) + timedelta(days=30)).isoformat()
    bodies = {
        "approve": None,
        "hold": {"ground": "legal_hold", "until": until},
        "release": None,
        "refuse": REFUSAL,
        "extend": {"further_months": 2, "reason": "number"},
        "retry": None,
    }
    for act, body in bodies.items():
        assert portal.post(f"{PATH}/{request_id}:{act}", json=body).status_code == 403, act
    assert officer.post(f"{PATH}/{request_id}:hold", json=bodies["hold"]).json()["status"] == "on_hold"
    assert officer.post(f"{PATH}/{request_id}:release").json()["status"] == "received"
    extended = officer.post(f"{PATH}/{request_id}:extend", json=bodies["extend"]).json()
    assert extended["deadline"] > until
    assert officer.post(f"{PATH}/{request_id}:approve").status_code == 409
    assert officer.post(f"{PATH}/{request_id}:retry").status_code == 409
    refused = officer.post(f"{PATH}/{request_id}:refuse", json={**REFUSAL, "explanation": "Tax law."}).json()
    assert (refused["status"], refused["reason"]) == ("rejected", "refused: art17_3_b_legal_obligation")
    told = portal.get(f"{PATH}/{request_id}/decisions").json()["items"]
    assert [one["kind"] for one in told] == ["held", "released", "extended", "refused"]
    assert told[3]["explanation"] == "Tax law."
    stranger = caller(front_door, "requests:write", "requests:read")
    for path in ("decisions", "notices", "notices/refusal"):
        assert stranger.get(f"{PATH}/{request_id}/{path}").status_code == 404
    assert stranger.post(f"{PATH}/{request_id}/notices/refusal:sent").status_code == 404


def test_an_officer_takes_a_request_back_for_the_person_whichever_portal_made_it(
    front_door: Installation, portal: httpx.Client, officer: httpx.Client
) -> None:
    request_id = demand(portal)
    stranger = caller(front_door, "requests:write", "requests:read")
    assert stranger.post(f"{PATH}/{request_id}:cancel").status_code == 404
    assert officer.post(f"{PATH}/{request_id}:cancel").json()["status"] == "cancelled"
    [decided] = portal.get(f"{PATH}/{request_id}/decisions").json()["items"]
    assert decided["kind"] == "cancelled"
    own = demand(portal)
    assert portal.post(f"{PATH}/{own}:cancel").json()["status"] == "cancelled"
    [by_portal] = portal.get(f"{PATH}/{own}/decisions").json()["items"]
    assert decided["client_id"] is None
    assert by_portal["client_id"] is not None


def test_who_decided_is_told_to_an_office_and_else_only_to_oneself(
    front_door: Installation, portal: httpx.Client, officer: httpx.Client
) -> None:
    request_id = demand(portal)
    body = {"ground": "legal_hold", "until": (datetime.now(UTC) + timedelta(days=30)).isoformat()}
    assert officer.post(f"{PATH}/{request_id}:hold", json=body).status_code == 200
    [to_portal] = portal.get(f"{PATH}/{request_id}/decisions").json()["items"]
    [to_officer] = officer.get(f"{PATH}/{request_id}/decisions").json()["items"]
    assert to_portal["client_id"] is None
    assert to_officer["client_id"] is not None
    assert to_portal | {"client_id": to_officer["client_id"]} == to_officer


def test_an_officer_finds_what_waits_for_people(
    front_door: Installation, portal: httpx.Client, officer: httpx.Client
) -> None:
    waits, other = demand(portal), demand(portal)
    let_wait(front_door, waits)
    answer = officer.get(PATH, params={"status": "pending", "limit": 1000})
    found = {item["id"] for item in answer.json()["items"]}
    assert waits in found
    assert other not in found
    assert officer.get(f"{PATH}/{waits}").json()["approvals_needed"] == 1


def test_a_portal_vouches_for_its_own_people_only(front_door: Installation, portal: httpx.Client) -> None:
    request_id = demand(portal, identity_level="none")
    assert portal.get(f"{PATH}/{request_id}").json()["status"] == "awaiting_identity"
    stranger = caller(front_door, "requests:write")
    assert stranger.post(f"{PATH}/{request_id}:confirm-identity", json={"level": "high"}).status_code == 404
    shown = portal.post(f"{PATH}/{request_id}:confirm-identity", json={"level": "high"}).json()
    assert (shown["status"], shown["identity_level"]) == ("received", "high")
    assert portal.post(f"{PATH}/{request_id}:confirm-identity", json={"level": "high"}).status_code == 409


@pytest.mark.parametrize("wrong", ["\x00", "\x1b", "\x85", "\ud800"])
def test_remarks_hold_words_and_nothing_that_can_not_be_kept(
    portal: httpx.Client, officer: httpx.Client, wrong: str
) -> None:
    request_id, until = demand(portal), (datetime.now(UTC) + timedelta(days=30)).isoformat()
    bodies = [
        ("refuse", "explanation", REFUSAL),
        ("refuse", "data_class", REFUSAL),
        ("hold", "explanation", {"ground": "legal_hold", "until": until}),
        ("extend", "explanation", {"further_months": 2, "reason": "number"}),
    ]
    for act, field, body in bodies:
        content = json.dumps({**body, field: f"a{wrong}b"})
        answer = officer.post(
            f"{PATH}/{request_id}:{act}", content=content, headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text
    said = "Two lines,\r\nwith\ta tab – and a “dash”."
    assert officer.post(f"{PATH}/{request_id}:refuse", json={**REFUSAL, "explanation": said}).status_code == 200
    assert said in officer.get(f"{PATH}/{request_id}/notices/refusal").text


def test_who_may_only_read_everybodys_requests_changes_none_of_another_client(
    front_door: Installation, portal: httpx.Client, officer: httpx.Client
) -> None:
    waits, unknown = demand(portal), demand(portal, identity_level="none")
    auditor = caller(front_door, "requests:write", "requests:read_all")
    assert auditor.get(f"{PATH}/{waits}").status_code == 200
    assert auditor.post(f"{PATH}/{waits}:cancel").status_code == 404
    assert auditor.post(f"{PATH}/{waits}/notices/receipt:sent").status_code == 404
    assert auditor.post(f"{PATH}/{unknown}:confirm-identity", json={"level": "high"}).status_code == 404
    assert officer.post(f"{PATH}/{unknown}:confirm-identity", json={"level": "high"}).status_code == 200
    assert officer.post(f"{PATH}/{waits}/notices/receipt:sent").status_code == 200
    both = caller(front_door, "requests:write", "requests:decide")
    assert both.post(f"{PATH}/{waits}:cancel").json()["status"] == "cancelled"


def test_a_notice_is_read_sent_and_written_down(portal: httpx.Client, officer: httpx.Client) -> None:
    request_id = demand(portal, reference="T-7")
    officer.post(f"{PATH}/{request_id}:refuse", json={**REFUSAL, "explanation": "Tax law."})
    owed = portal.get(f"{PATH}/{request_id}/notices").json()["items"]
    assert [one["kind"] for one in owed] == ["receipt", "refusal"]
    assert "not lawful until" in owed[1]["problem"]
    english, german = (
        portal.get(f"{PATH}/{request_id}/notices/refusal"),
        officer.get(f"{PATH}/{request_id}/notices/refusal", params={"language": "de"}),
    )
    assert english.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "Tax law." in english.text
    assert "Aufsichtsbehörde" in german.text
    sent = portal.post(f"{PATH}/{request_id}/notices/refusal:sent").json()["items"][1]
    assert sent["problem"] is None
    assert sent["sent_at"]
    again = portal.post(f"{PATH}/{request_id}/notices/refusal:sent").json()["items"][1]
    assert again == sent
    assert portal.get(f"{PATH}/{request_id}/decisions").json()["items"][0]["notified_at"] == sent["sent_at"]
    assert portal.get(f"{PATH}/{request_id}/notices/completion").status_code == 404
    assert portal.get(f"{PATH}/{request_id}/notices/refusal", params={"language": "fr"}).status_code == 422


def test_many_are_decided_at_once_each_with_its_outcome(
    front_door: Installation, portal: httpx.Client, officer: httpx.Client
) -> None:
    ids = [demand(portal) for _ in range(3)]
    let_wait(front_door, *ids[:2])
    told = officer.post(f"{PATH}:approve", json={"ids": [*ids, str(NOBODY)]}).json()
    assert told["decided"] == 2
    assert [one["status"] for one in told["items"]] == ["approved", "approved", None, None]
    assert "received" in told["items"][2]["problem"]
    assert "no erasure request" in told["items"][3]["problem"]
    refused = officer.post(f"{PATH}:refuse", json={"ids": ids, **REFUSAL}).json()
    assert [one["status"] for one in refused["items"]] == ["rejected"] * 3
    assert officer.post(f"{PATH}:retry", json={"ids": ids}).json()["decided"] == 0
    assert portal.post(f"{PATH}:approve", json={"ids": ids}).status_code == 403
    assert officer.post(f"{PATH}:approve", json={"ids": [str(NOBODY)] * 1001}).status_code == 422


@pytest.mark.parametrize(
    ("act", "body", "field"),
    [
        ("refuse", {"ground": "because"}, "ground"),
        ("refuse", {}, "ground"),
        ("refuse", {"ground": "art12_5_excessive"}, "explanation"),
        ("refuse", {**REFUSAL, "models": ["nobody-knows"]}, "models"),
        ("refuse", {**REFUSAL, "models": []}, "models"),
        ("refuse", {**REFUSAL, CANARY: 1}, "(unknown field)"),
        ("hold", {"ground": "legal_hold", "until": "2020-01-01T00:00:00Z"}, "until"),
        ("hold", {"ground": "legal_hold", "until": "2030-01-01T00:00:00"}, "until"),
        ("hold", {"ground": "legal_hold", "until": CANARY}, "until"),
        ("extend", {"further_months": 3, "reason": "number"}, "further_months"),
        ("extend", {"further_months": 1, "reason": "laziness"}, "reason"),
        ("extend", {"further_months": 1, "reason": "number", "notified_at": "2020-01-01T00:00:00Z"}, "notified_at"),
        ("confirm-identity", {"level": "certain"}, "level"),
        ("notices/receipt:sent", {"sent_at": "2999-01-01T00:00:00Z"}, "sent_at"),
    ],
)
def test_a_bad_decision_names_the_field_and_echoes_nothing(
    portal: httpx.Client, officer: httpx.Client, act: str, body: dict[str, object], field: str
) -> None:
    request_id = demand(portal)
    separator = "/" if "/" in act else ":"
    answer = officer.post(f"{PATH}/{request_id}{separator}{act}", json=body)
    assert answer.status_code == 422, answer.text
    assert field in [problem["field"] for problem in answer.json()["errors"]]
    assert CANARY not in answer.text


def test_the_command_line_tells_the_controllers_days(front_door: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = ZoneInfo("America/Los_Angeles")
    monkeypatch.setitem(front_door.environment, "EXPUNGE_TIME_ZONE", zone.key)
    run = lambda *arguments, **more: front_door.cli("requests", *arguments, **more)  # noqa: E731
    before = deadlines.due(datetime.now(UTC), zone)
    made = run("create", stdin=f"{uuid4()}\n").stdout
    days = {f"{due:%F}" for due in (before, deadlines.due(datetime.now(UTC), zone))}
    request_id = made.split()[0]
    assert made.split()[-1] in days
    assert any(f"received, due {day}\n" in run("show", request_id).stdout for day in days)
    [row] = [line for line in run("list", "--limit", "1000").stdout.splitlines() if request_id in line]
    assert row.split()[-2] in days
    extended = run("extend", request_id, "--months", "1", "--reason", "number").stdout.splitlines()[0].split()[-1]
    with transaction(front_door.engine) as tx:
        deadline = tx.scalar(text("SELECT deadline FROM erasure_requests WHERE id = :id"), {"id": request_id})
    assert extended == f"{deadline.astimezone(zone):%F}"
    listed = run("notices", request_id).stdout
    assert any(day in listed for day in days)


def test_the_command_line_shows_how_a_request_stands(front_door: Installation, portal: httpx.Client) -> None:
    request_id = demand(portal, identity_level="high")
    let_wait(front_door, request_id)
    run = lambda *arguments: front_door.cli("requests", *arguments).stdout  # noqa: E731
    shown = run("show", request_id)
    for said in ("identity: high (needed: low)", "models: all", "approvals: 0 of 1 needed"):
        assert said in shown
    assert "overdue" not in shown
    run("approve", request_id)
    with transaction(front_door.engine) as tx:
        late = text("UPDATE erasure_requests SET deadline = now() - interval '1 day' WHERE id = :id")
        tx.execute(late, {"id": request_id})
    shown = run("show", request_id)
    assert "approvals: 1 of 1 needed" in shown
    assert ", overdue" in shown


def test_the_command_line_writes_down_the_day_on_which_a_person_was_told(
    front_door: Installation, portal: httpx.Client
) -> None:
    run = lambda *arguments: front_door.cli("requests", *arguments)  # noqa: E731
    told, other, today = demand(portal), demand(portal), f"{datetime.now(UTC):%F}"
    extend = ("extend", told, "--months", "1", "--reason", "number", "--notified")
    assert "--notified" in run(*extend, "2999-01-01").stderr
    assert "not lawful" not in run(*extend, today).stdout
    assert portal.get(f"{PATH}/{told}/decisions").json()["items"][0]["notified_at"][:10] == today
    run("notices", other, "--sent", "receipt", "--on", today)
    [receipt] = portal.get(f"{PATH}/{other}/notices").json()["items"]
    assert receipt["sent_at"][:10] == today
    for wrong, named in (
        (("--sent", "receipt", "--kind", "receipt"), "--sent"),
        (("--on", today), "--on"),
        (("--sent", "receipt", "--on", "2999-01-01"), "--on"),
        (("--sent", "receipt", "--on", "2020-01-01"), "sent_at"),
    ):
        bad = run("notices", other, *wrong)
        assert (bad.returncode, bad.stderr.startswith(f"error {named}")) == (1, True), bad.stderr


def test_the_command_line_decides_too(front_door: Installation, portal: httpx.Client) -> None:
    held, refused, unknown = demand(portal), demand(portal), demand(portal, identity_level="none")
    run = lambda *arguments: front_door.cli("requests", *arguments)  # noqa: E731
    assert "on_hold" in run("hold", held, "--ground", "legal_hold", "--until", "2999-01-01").stdout
    assert "received" in run("release", held).stdout
    assert "not lawful" in run("extend", held, "--months", "2", "--reason", "complexity").stdout
    assert "received" in run("confirm-identity", unknown, "--level", "high").stdout
    let_wait(front_door, held)
    approved = run("approve", held, refused)
    assert approved.returncode == 1
    assert f"{held} approved" in approved.stdout
    assert "only one that is pending" in approved.stdout
    assert "rejected" in run("refuse", refused, "--ground", "not_controller").stdout
    notice = run("notices", refused, "--kind", "refusal", "--language", "de")
    assert "Verantwortliche" in notice.stdout
    assert "refusal" in run("notices", refused, "--sent", "refusal").stdout
    bad = run("refuse", held, "--ground", "art12_5_excessive")
    assert (bad.returncode, "Traceback" in bad.stderr) == (1, False)
    assert "explanation" in bad.stderr
