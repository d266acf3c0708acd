"""The page of one request: what it shows, what it lets whom do, and that its certificate can be checked there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from expunge_verify import cli as verifier
from expunge_verify.leaf import SCHEMA
from fastapi import Request
from fastapi.testclient import TestClient
from sqlalchemy import event, select, text

from app import certificates, decisions
from app.dashboard import request_words
from app.dashboard.actions import Offer, offered
from app.dashboard.visits import Visit
from app.domain.decisions import ExtensionReason, Ground, HoldGround, IdentityLevel, Kind
from app.domain.lifecycle import REQUEST_ENDED, JobStatus, RequestStatus
from app.domain.people import Role
from app.errors import Conflict
from app.main import create_app
from app.storage import audit, requests
from app.storage.sessions import transaction
from app.storage.tables import Certificate, Decision, InternalEntry, Person
from tests import toy
from tests.dashboard import COOKIE, Guest, enter, text_of
from tests.faults import wait_until
from tests.house import Installation
from tests.pipeline import Bench

pytestmark = pytest.mark.slow
SCRIPT = "<script>alert(1)</script>"
_PEOPLE = iter(range(100_000, 200_000))


def button(page: Any) -> set[str]:
    """Which forms a page has, by the last part of their addresses; notices left out."""
    found = re.findall(r'<form method="post" action="/admin/requests/[0-9a-f-]{36}/([a-z-]+)"', page.text)
    return set(found)


def demand(house: Installation, **more: Any) -> UUID:
    return house.demand(next(_PEOPLE), **more)


def put(house: Installation, request_id: UUID, status: str, **columns: Any) -> None:
    """Let a request stand somewhere, without its history."""
    ended = status in {str(one) for one in REQUEST_ENDED}
    gone = ("subject_key", "suppression_key", "sealed_user_id", "dedupe_key")
    values: dict[str, Any] = {"status": status, **(dict.fromkeys(gone) if ended else {}), **columns}
    closing = ", closed_at = now()" if ended else ""
    said = ", ".join(f"{name} = :{name}" for name in values)
    with transaction(house.engine) as tx:
        tx.execute(text(f"UPDATE erasure_requests SET {said}{closing} WHERE id = :id"), {**values, "id": request_id})


def begin(house: Installation, request_id: UUID) -> None:
    """Let the log say that the work has begun."""
    with transaction(house.engine) as tx:
        tx.execute(
            text(
                "INSERT INTO audit_entries (type, at, request_id, fields) VALUES ('erasure.started', now(), :id, '{}')"
            ),
            {"id": request_id},
        )


@pytest.fixture(scope="module")
def officer(front_door: Installation) -> Guest:
    return enter(front_door, Role.OFFICER, name="Olga Officer")


class Elsewhere(Exception):
    """Rolls back what was only tried."""


def accepted(house: Installation, request_id: UUID, guest: Guest) -> set[str]:
    """Which use cases really accept a request as it stands, each tried and taken back."""
    now, settings = text_now(house), house.settings
    by = {"by": guest.client_id, "now": now}
    both = {**by, "settings": settings}
    until = now + timedelta(days=10)
    whole = decisions.Refusal(ground=Ground.LEGAL_OBLIGATION)
    longer = decisions.Extension(further_months=1, reason=ExtensionReason.NUMBER)
    tries = {
        "approve": partial(decisions.approve, **by),
        "refuse": lambda tx, i: decisions.refuse(tx, i, whole, **both),
        "refuse in part": lambda tx, i: decisions.refuse(tx, i, replace(whole, data_class="invoices"), **both),
        "hold": partial(decisions.hold, ground=HoldGround.LEGAL_HOLD, until=until, **both),
        "release": partial(decisions.release, **both),
        "extend": lambda tx, i: decisions.extend(tx, i, longer, **both),
        "cancel": partial(decisions.cancel, **both),
        "retry": partial(decisions.retry, **both),
        "confirm-identity": lambda tx, i: decisions.confirm_identity(tx, i, IdentityLevel.HIGH, seen_by=None, **both),
    }
    return {name for name, act in tries.items() if takes(house, act, request_id)}


def takes(house: Installation, act: Any, request_id: UUID) -> bool:
    try:
        with transaction(house.engine) as tx:
            act(tx, request_id)
            raise Elsewhere  # noqa: TRY301 - rolls the transaction back
    except Elsewhere:
        return True
    except Conflict:
        return False


def text_now(house: Installation) -> Any:
    with transaction(house.engine) as tx:
        return tx.scalar(text("SELECT now()"))


def offer_of(house: Installation, request_id: UUID, guest: Guest) -> Offer:
    with transaction(house.engine) as tx:
        visit = Visit(
            Request({"type": "http"}), tx, tx.get_one(Person, guest.person_id), text_now(house), house.settings
        )
        return offered(visit, requests.get(tx, request_id))


CASES = [
    (status, kind)
    for status in RequestStatus
    for kind in ("plain", "begun", "repeated", "service's own", "late", "extended")
    if not (status in REQUEST_ENDED and kind in {"repeated", "late", "begun"})
]


@pytest.mark.parametrize(("status", "kind"), CASES)
def test_a_page_offers_exactly_what_the_use_cases_accept(
    front_door: Installation, officer: Guest, status: RequestStatus, kind: str
) -> None:
    request_id = demand(front_door)
    columns: dict[str, Any] = {"approvals_needed": 1}
    if kind == "repeated":
        columns |= {"subject_key": None, "suppression_key": None}
    if kind == "service's own":
        columns |= {"origin": "suppression"}
    if kind == "late":
        columns |= {"received_at": text_now(front_door) - timedelta(days=70)}
    if kind == "extended":
        done = officer.post(f"/requests/{request_id}/extend", months="1", reason="number")
        assert done.status_code == 303, done.text
    put(front_door, request_id, status, **columns)
    if kind == "begun":
        begin(front_door, request_id)
    really, offer = accepted(front_door, request_id, officer), offer_of(front_door, request_id, officer)
    if status in REQUEST_ENDED:
        really -= {"cancel"}  # a second time is accepted and changes nothing: nobody needs a button for it
    assert offer.actions == {name.partition(" ")[0] for name in really}
    if "refuse" in offer:
        assert offer.is_whole == ("refuse" in really)


def test_a_hold_that_was_passed_on_is_released_where_it_was_decided(front_door: Installation, officer: Guest) -> None:
    person = next(_PEOPLE)
    first, second = front_door.demand(person), front_door.demand(person, reference="again")
    day = (text_now(front_door) + timedelta(days=9)).date().isoformat()
    assert officer.post(f"/requests/{first}/hold", ground="legal_hold", until=day).status_code == 303
    assert front_door.show(second)["status"] == "on_hold"
    assert "release" in offer_of(front_door, first, officer)
    assert "release" not in offer_of(front_door, second, officer)
    assert accepted(front_door, second, officer) & {"release"} == set()


def test_who_agreed_or_asked_is_not_offered_to_approve(front_door: Installation) -> None:
    one, other = enter(front_door, Role.OFFICER), enter(front_door, Role.OFFICER)
    request_id = demand(front_door)
    put(front_door, request_id, "pending", approvals_needed=2, client_id=other.client_id)
    assert one.post(f"/requests/{request_id}/approve", explanation="").status_code == 303
    for guest in (one, other):
        assert "approve" not in button(guest.get(f"/requests/{request_id}"))
        assert "approve" not in accepted(front_door, request_id, guest)
    third = enter(front_door, Role.OFFICER)
    assert "approve" in button(third.get(f"/requests/{request_id}"))


@pytest.mark.parametrize("role", [Role.VIEWER, Role.AUDITOR, Role.ADMIN, Role.ENGINEER])
def test_a_hand_made_post_of_who_may_not_is_refused(front_door: Installation, role: Role) -> None:
    guest, request_id = enter(front_door, role), demand(front_door)
    put(front_door, request_id, "needs_attention")
    allowed = {"retry"} if role is Role.ENGINEER else set()
    assert button(guest.get(f"/requests/{request_id}")) == set()  # without a model nothing can be tried again
    names = {"approve", "refuse", "hold", "release", "extend", "cancel", "retry", "confirm-identity"}
    answers = {name: guest.post(f"/requests/{request_id}/{name}", sure="yes").status_code for name in names}
    answers["sent"] = guest.post(f"/requests/{request_id}/notices/receipt/sent", day="2026-01-01").status_code
    assert {name for name, code in answers.items() if code != 403} == allowed
    assert front_door.show(request_id)["status"] == "needs_attention"


def test_every_action_does_by_a_post_what_it_says(front_door: Installation, officer: Guest) -> None:
    def press(request_id: UUID, name: str, **form: Any) -> str:
        answer = officer.post(f"/requests/{request_id}/{name}", **form)
        assert answer.status_code == 303, (name, text_of(answer))
        assert answer.headers["location"].startswith(f"/admin/requests/{request_id}?done=")
        return str(front_door.show(request_id)["status"])

    tomorrow = (text_now(front_door) + timedelta(days=1)).date().isoformat()
    request_id = demand(front_door)
    assert press(request_id, "hold", ground="clarification", until=tomorrow, explanation="ask\r\nback") == "on_hold"
    assert press(request_id, "release", explanation="") == "received"
    before = front_door.show(request_id)["deadline"]
    assert press(request_id, "extend", months="2", reason="complexity", explanation="many", told="") == "received"
    assert front_door.show(request_id)["deadline"] > before
    put(front_door, request_id, "pending", approvals_needed=1)
    assert press(request_id, "approve", explanation="fine") == "approved"
    assert (
        press(request_id, "refuse", ground="art17_3_e_legal_claims", scope="data", data_class="invoices") == "approved"
    )
    assert press(request_id, "cancel", sure="yes") == "cancelled"
    refused = demand(front_door)
    assert press(refused, "refuse", ground="art17_1_no_ground", scope="whole", explanation="") == "rejected"
    unknown = demand(front_door)
    put(front_door, unknown, "awaiting_identity")
    assert press(unknown, "confirm-identity", level="high") == "received"
    page = text_of(officer.get(f"/requests/{request_id}"))
    for said in ("Olga Officer", "In their words: many", "Data that stay: invoices", "The request was taken back"):
        assert said in page


def test_a_stale_button_says_why_and_does_nothing(front_door: Installation, officer: Guest) -> None:
    request_id = demand(front_door)
    assert "cancel" in button(officer.get(f"/requests/{request_id}"))
    put(front_door, request_id, "in_progress")
    answer = officer.post(f"/requests/{request_id}/cancel", sure="yes")
    assert answer.status_code == 409
    assert "the request is in_progress; only one that still waits can be cancelled" in text_of(answer)
    assert front_door.show(request_id)["status"] == "in_progress"


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("refuse", {"ground": "art12_5_unfounded", "scope": "whole"}, "needs an explanation"),
        ("refuse", {"ground": "art12_5_unfounded", "scope": "models"}, "choose the models"),
        ("refuse", {"ground": "art12_5_unfounded", "scope": "data"}, "say which data stay"),
        ("refuse", {"ground": "because", "scope": "whole"}, "ground"),
        ("hold", {"ground": "legal_hold", "until": "2001-01-01"}, "lies in the future"),
        ("hold", {"ground": "legal_hold", "until": "9999-12-31"}, "until"),
        ("extend", {"months": "3", "reason": "number"}, "months"),
        ("extend", {"months": "1", "reason": "number", "told": "2001-01-01"}, "between receipt and now"),
        ("extend", {"months": "1", "reason": "number", "explanation": "\x00"}, "explanation"),
        ("cancel", {}, "tick the box"),
        ("notices/receipt/sent", {"day": "2199-01-01"}, "between the receipt of the request and now"),
        ("notices/receipt/sent", {"day": "yesterday"}, "day"),
    ],
)
def test_a_wrong_form_names_the_field_and_changes_nothing(
    front_door: Installation, officer: Guest, name: str, form: dict[str, str], said: str
) -> None:
    request_id = demand(front_door)
    answer = officer.post(f"/requests/{request_id}/{name}", **form)
    assert answer.status_code == 422, text_of(answer)
    assert said in text_of(answer)
    shown = front_door.show(request_id)
    assert (shown["status"], len(history(front_door, request_id))) == ("received", 0)


def history(house: Installation, request_id: UUID) -> list[Decision]:
    with transaction(house.engine) as tx:
        return list(tx.scalars(select(Decision).where(Decision.request_id == request_id)))


def test_what_people_write_is_text(front_door: Installation) -> None:
    guest = enter(front_door, Role.OFFICER, name=f"Eve {SCRIPT}")
    request_id = demand(front_door, reference=SCRIPT)
    put(front_door, request_id, "pending", approvals_needed=2, models=[SCRIPT])
    guest.post(f"/requests/{request_id}/approve", explanation=SCRIPT)
    guest.post(f"/requests/{request_id}/refuse", ground="art17_1_no_ground", scope="whole", explanation=SCRIPT)
    for path in ("", "/progress", "/notices/refusal", "/notices/refusal?language=de"):
        page = guest.get(f"/requests/{request_id}{path}")
        assert page.status_code == 200
        assert SCRIPT not in page.text
    assert guest.get(f"/requests/{request_id}").text.count("&lt;script&gt;alert(1)") >= 4


def test_notices_are_read_in_both_languages_and_marked_as_sent(front_door: Installation, officer: Guest) -> None:
    request_id = demand(front_door)
    officer.post(f"/requests/{request_id}/refuse", ground="art17_1_no_ground", scope="whole", explanation="None, sorry")
    page = officer.get(f"/requests/{request_id}")
    assert "the refusal is not lawful until the person is told" in text_of(page)
    assert "None, sorry" in text_of(officer.get(f"/requests/{request_id}/notices/refusal?language=en"))
    german = text_of(officer.get(f"/requests/{request_id}/notices/refusal?language=de"))
    assert "beschweren" in german
    assert officer.get(f"/requests/{request_id}/notices/completion").status_code == 404
    today = text_now(front_door).date().isoformat()
    assert officer.post(f"/requests/{request_id}/notices/refusal/sent", day=today).status_code == 303
    page = officer.get(f"/requests/{request_id}")
    assert "not lawful" not in text_of(page)
    assert "The person was told by Olga Officer" in text_of(page)
    viewer = enter(front_door, Role.VIEWER)
    assert "Mark as sent" not in viewer.get(f"/requests/{request_id}/notices/receipt").text


def test_a_page_looks_again_only_while_the_service_is_at_it(front_door: Installation, officer: Guest) -> None:
    request_id = demand(front_door)
    for status in RequestStatus:
        put(front_door, request_id, status)
        is_live = status in {"received", "approved", "queued", "in_progress"}
        page, part = (officer.get(f"/requests/{request_id}{path}") for path in ("", f"/progress?was={status}"))
        assert [f"was={status}" in one.text for one in (page, part)] == [is_live, is_live], status
        assert part.text.count("hx-swap-oob") == 0
        if status in REQUEST_ENDED:
            break
    moved = officer.get(f"/requests/{request_id}/progress?was=queued")
    assert set(re.findall(r'id="([a-z]+)"[^>]* hx-swap-oob="true"|hx-swap-oob="true"', moved.text)) >= {
        "state",
        "actions",
    }
    assert "<html" not in moved.text


def test_every_word_of_the_machine_is_said_in_plain_words() -> None:
    assert set(request_words.STATES) == {str(one) for one in RequestStatus}
    kinds = [*(f"request.{one}" for one in RequestStatus), *(f"job.{one}" for one in JobStatus)]
    kinds += [f"decision.{one}" for one in Kind]
    assert [kind for kind in kinds if request_words.of_event(kind) == kind.replace(".", ": ").replace("_", " ")] == []
    assert [kind for kind in SCHEMA if request_words.of_entry(kind) == kind.replace(".", ": ").replace("_", " ")] == []
    assert set(request_words.GROUNDS) == set(Ground)
    assert request_words.of_event("nobody.knows_this") == "nobody: knows this"


@contextmanager
def inside(bench: Bench) -> Iterator[tuple[TestClient, list[str]]]:
    """The application in this process, and the statements that it sends."""
    app, said = create_app(bench.ctx.settings), []

    def hear(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as http:
        engine = app.state.context.engine
        event.listen(engine, "before_cursor_execute", hear)
        yield http, said


class Desk:
    """A browser in this process."""

    def __init__(self, bench: Bench, http: TestClient, *roles: Role) -> None:
        self.guest = enter(bench.house, *roles)
        self._http = http
        self._headers = {"Cookie": f"{COOKIE}={self.guest.cookie}", "Sec-Fetch-Site": "same-origin"}

    def get(self, path: str) -> Any:
        return self._http.get(f"/admin/requests/{path}", headers=self._headers)

    def post(self, path: str, **form: str) -> Any:
        return self._http.post(f"/admin/requests/{path}", data=form, headers=self._headers)


def alter(bench: Bench, request_id: UUID) -> None:
    """Change one character of what was signed, as whoever holds the database can."""
    with transaction(bench.ctx.engine) as tx:
        envelope = tx.scalar(text("SELECT envelope FROM certificates WHERE request_id = :id"), {"id": request_id})
        payload = envelope["payload"]
        place = len(payload) // 2
        other = "A" if payload[place] != "A" else "B"
    become(bench, request_id, {**envelope, "payload": payload[:place] + other + payload[place + 1 :]})


def become(bench: Bench, request_id: UUID, envelope: Any) -> None:
    """Put something else into a certificate's place."""
    with transaction(bench.ctx.engine) as tx:
        tx.execute(text("ALTER TABLE certificates DISABLE TRIGGER USER"))
        tx.execute(
            text("UPDATE certificates SET envelope = CAST(:new AS jsonb) WHERE request_id = :id"),
            {"new": json.dumps(envelope), "id": request_id},
        )


def test_a_completed_request_shows_its_history_its_model_and_a_certificate_that_is_checked(bench: Bench) -> None:
    forgotten, other, nobody = bench.demand(3, reference="ticket 1"), bench.demand(5), bench.demand(99_999)
    bench.run_all()
    wait_until(bench.is_published, 20, "the log is published")
    with inside(bench) as (http, said):
        desk = Desk(bench, http, Role.OFFICER)
        page = desk.get(str(forgotten))
        assert page.status_code == 200
        few, told = len(said), text_of(page)
        for words in (
            "The request came in", "The new weights passed verification", "It was completed", "entry 2",
            "A certificate was issued", "The erasure began", "A2: verified by tests", "1 → 2",
            "This version serves 2 people at once", "One person's test can catch a gross failure",
            "Not tested: distance to a true retraining", "recognised 100% of 300 people", "loss, retained samples",
        ):  # fmt: skip
            assert words in told, words
        assert told.index("The request came in") < told.index("The erasure began") < told.index("It was completed")
        assert "waits for its place" not in told
        assert page.text.count('class="line-bad"') == 4  # two people, before and after
        assert 'role="img" aria-label="before: strangers in the middle at' in page.text
        assert "GDPR-compliant" not in told
        assert toy.user_id(3) not in page.text
        assert button(page) == set()
        unknown = text_of(desk.get(str(nobody)))
        assert "The model was not trained on samples of this person" in unknown
        assert "A2" not in unknown  # the report is about other people

        checked = desk.get(f"{forgotten}/certificate/verify")
        assert "Verified: everything that was looked at fits" in text_of(checked)
        assert [line for line in re.findall(r'<span class="tag ([a-z]*)">', checked.text) if line == "bad"] == []
        for words in (
            "signed by key",
            "the log has it as entry",
            "is in the tree of",
            "signed by log",
            "exactly these",
        ):
            assert words in text_of(checked)
        assert "made by the service that is being checked" in text_of(checked)
        alter(bench, forgotten)
        bad = desk.get(f"{forgotten}/certificate/verify")
        assert bad.status_code == 200
        assert "NOT verified: Signature of the issuer, Entry in the public log" in text_of(bad)
        assert "It is not shown: its signature is not by this service" in text_of(bad)
        printed = desk.get(f"{forgotten}/certificate.html")
        assert (printed.status_code, "is not what was issued" in text_of(printed)) == (409, True)
        become(bench, forgotten, [])
        assert "NOT verified: Signature" in text_of(desk.get(f"{forgotten}/certificate/verify"))
        statuses = [desk.get(f"{forgotten}/certificate.{end}").status_code for end in ("html", "tlog-proof", "tsr")]
        assert statuses == [409, 409, 409], "no page of ours fails over what somebody left in our tables"
        assert "Verified: everything" in text_of(desk.get(f"{other}/certificate/verify"))

        with transaction(bench.ctx.engine) as tx:
            many = "INSERT INTO events (type, request_id) SELECT 'notice.unheard_of', :id FROM generate_series(1, 300)"
            tx.execute(text(many), {"id": other})
        said.clear()
        assert text_of(desk.get(str(other))).count("notice: unheard of") == 300
        assert len(said) == few <= 22


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("UPDATE log_tiles SET hashes = ''", "NOT verified: Inclusion in the log"),
        ("UPDATE log_checkpoints SET size = 1", "NOT verified: Inclusion in the log"),
        ("UPDATE log_keys SET vkey = 'x+00000000+AAAA'", "NOT verified: Inclusion in the log"),
        ("UPDATE audit_entries SET leaf_index = NULL WHERE leaf_index > 2", "Not verified: something could not be"),
    ],
)
def test_a_part_of_the_log_that_is_gone_is_not_a_matter_of_seconds(bench: Bench, loss: str, said: str) -> None:
    """Whoever took it away would like the page to say that it will come."""
    request_id = bench.demand(3)
    bench.run_all()
    wait_until(bench.is_published, 20, "the log is published")
    with inside(bench) as (http, _), transaction(bench.ctx.engine) as tx:
        assert "Verified: everything" in text_of(Desk(bench, http, Role.VIEWER).get(f"{request_id}/certificate/verify"))
        tx.execute(text("SET LOCAL session_replication_role = replica"))
        tx.execute(text("UPDATE certificates SET issued_at = issued_at - interval '3 minutes'"))
        tx.execute(text(loss))
        tx.commit()
        page = Desk(bench, http, Role.VIEWER).get(f"{request_id}/certificate/verify")
    assert page.status_code == 200
    assert said in text_of(page)
    assert "in a few seconds" not in text_of(page)


def test_files_of_a_certificate_are_the_ones_that_the_verifier_takes(bench: Bench, tmp_path: Any) -> None:
    request_id = bench.demand(4)
    with inside(bench) as (http, _):
        desk, viewer = Desk(bench, http, Role.AUDITOR), Desk(bench, http, Role.VIEWER)
        assert desk.get(f"{request_id}/certificate").status_code == 404
        bench.run_all()
        wait_until(bench.is_published, 20, "the log is published")
        command = re.search(r"expunge-verify (certificate [^<]*)</pre>", desk.get(f"{request_id}/certificate").text)
        assert command is not None
        for ending in ("json", "tlog-proof"):
            answer = desk.get(f"{request_id}/certificate.{ending}")
            name = re.search('filename="(.*)"', answer.headers["content-disposition"])
            assert name is not None
            (tmp_path / name[1]).write_bytes(answer.content)
        words = [str(tmp_path / w) if w.startswith("certificate-") else w for w in command[1].split()]
        assert verifier.main(words) == 0
        printed = desk.get(f"{request_id}/certificate.html")
        assert printed.status_code == 200
        policy = printed.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} < set(policy)
        assert not any(part.startswith("script-src") for part in policy)
        assert desk.get(f"{request_id}/certificate.tsr").status_code == 404
        assert viewer.get(f"{request_id}/receipt").status_code == 403
        assert desk.get(f"{request_id}/receipt").status_code == 200
    with transaction(bench.ctx.engine) as tx:
        found = tx.scalars(select(InternalEntry).where(InternalEntry.what == "receipt.taken")).all()
    assert [(one.person_id, one.request_id) for one in found] == [(desk.guest.person_id, request_id)]


def test_a_certificate_that_the_log_has_not_published_is_looked_at_again(
    front_door: Installation, officer: Guest
) -> None:
    request_id = demand(front_door)
    said = certificates.statement(subjects=[("toy", "sha256:" + "0" * 64)], predicate={"log": {}})
    envelope = certificates.sign(front_door.settings.key("signing_key"), said)
    with transaction(front_door.engine) as tx:
        tx.add(Certificate(request_id=request_id, envelope=envelope))
        digest = {"cert": certificates.digest(envelope)}
        audit.enter(tx, "certificate.issued", digest, at=text_now(front_door), request_id=request_id)
    put(front_door, request_id, "no_data")
    page = officer.get(f"/requests/{request_id}/certificate/verify")
    assert "the log will show it in a few seconds" in text_of(page)
    assert f'hx-get="/admin/requests/{request_id}/certificate/verify" hx-trigger="every 2s"' in page.text
    assert officer.get(f"/requests/{request_id}/certificate.tlog-proof").status_code == 404
    history = officer.get(f"/requests/{request_id}")
    assert "waits for its place" in text_of(history)
    assert 'hx-select="#history"' in history.text


def test_an_engineer_tries_again_and_decides_nothing(bench: Bench) -> None:
    request_id = bench.demand(7)
    (job_id,) = bench.plan()
    bench.fail(job_id)
    with inside(bench) as (http, _):
        engineer, officer = Desk(bench, http, Role.ENGINEER), Desk(bench, http, Role.OFFICER)
        assert button(engineer.get(str(request_id))) == {"retry"}
        assert button(officer.get(str(request_id))) == {"retry", "refuse", "extend", "cancel"}
        assert "a drill" in text_of(officer.get(str(request_id)))
        assert engineer.post(f"{request_id}/refuse", ground="not_controller", scope="whole").status_code == 403
        assert engineer.post(f"{request_id}/retry").status_code == 303
        assert bench.request(request_id).status == "queued"
        assert button(engineer.get(str(request_id))) == set()
        assert engineer.post(f"{request_id}/retry").status_code == 409
