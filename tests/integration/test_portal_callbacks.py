"""Portals are told, each in its dialect: a whole pipeline, heard by strict receivers of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import event as sql_event
from sqlalchemy import select, text

from app import catalog, keymaking, portals
from app.domain.lifecycle import RequestStatus
from app.errors import NotFound
from app.main import create_app
from app.storage import deliveries, keys, moves
from app.storage.portals import forget_told, promise
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest, PortalCallback, PortalRequest, WebhookDelivery
from tests import toy
from tests.e2e.listener import Listener, Message
from tests.house import installation
from tests.opendsr import DOMAIN, Authority, Controller
from tests.pipeline import Bench, in_this_process, register
from tests.sombra import es384
from workers import erase, notify

pytestmark = pytest.mark.slow
AUTHORITY = Authority()
SOMBRA = ec.generate_private_key(ec.SECP384R1())
PATHS = {"1": "/opendsr/v1/opengdpr_requests", "2": "/opendsr/v2/requests", "3": "/opendsr/v3/requests"}
NAMES = {"1": "OpenGDPR", "2": "OpenDSR", "3": "OpenDSR"}
NOBODY = 99_000


@dataclass
class Stage:
    """An installation driven by hand, its API in this process, and the portals' receiver."""

    bench: Bench
    client: TestClient
    listener: Listener

    def url(self, path: str) -> str:
        return f"http://127.0.0.2:{self.listener.port}{path}"

    def deliver(self) -> None:
        """What dispatch and the io worker do, until nothing is due."""
        for _ in range(100):
            with transaction(self.bench.ctx.engine) as tx:
                due = deliveries.to_ring(tx, limit=100)
            if not due:
                return
            for delivery_id in due:
                notify.deliver(self.bench.ctx, delivery_id)
        raise AssertionError("deliveries never end")

    def heard(self, path: str) -> list[Message]:
        return [message for message in self.listener.messages if message.path == path]

    def ask(self, version: str, person: int, *callbacks: str, **more: Any) -> str:
        """Send an OpenDSR demand; returns its number."""
        user_id, ticket = toy.user_id(person), str(uuid4())
        body = {
            "subject_request_id": ticket,
            "subject_request_type": "erasure",
            "submitted_time": "2027-02-03T09:12:00",
            "subject_identities": {"controller_customer_id": {"value": user_id}},
            "status_callback_urls": [self.url(path) for path in callbacks],
            **more,
        }
        answer = self.client.post(PATHS[version], json=body)
        assert answer.status_code == 201, answer.text
        self.controller_id = answer.json()["controller_id"]
        return ticket

    def told(self, version: str, path: str) -> list[dict[str, Any]]:
        """Everything that an OpenDSR controller accepted on a path, in order of arrival."""
        pem = self.client.get(f"/opendsr/v{version}/certificate.pem").content
        controller = Controller(AUTHORITY.root, name=NAMES[version], controller_id=self.controller_id)
        return [controller.heard(m.headers, m.body, pem=pem, url=self.url(path)) for m in self.heard(path)]

    def rows(self) -> str:
        """Every row of every table, as text."""
        with transaction(self.bench.ctx.engine) as tx:
            tables = tx.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
            return "\n".join(row for name in tables for row in tx.scalars(text(f'SELECT t::text FROM "{name}" t')))


@pytest.fixture
def stage(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(erase, "run_step", in_this_process)  # the same code, without a process per step
    key, certificate = AUTHORITY.issue(tmp_path / "certificate")
    sombra = tmp_path / "sombra.pem"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    sombra.write_bytes(SOMBRA.public_key().public_bytes(serialization.Encoding.PEM, form))
    with ExitStack() as stack:
        listener = stack.enter_context(Listener("127.0.0.2"))
        house = stack.enter_context(
            installation(
                tmp_path,
                database_url,
                "",
                model=False,
                webhook_allow=(ip_network("127.0.0.2/32"),),
                opendsr_domain=DOMAIN,
                opendsr_key=key,
                opendsr_certificate=certificate,
                transcend_key=sombra,
                transcend_audience="acme",
                transcend_client="portal",
                transcend_url=f"http://127.0.0.2:{listener.port}/sombra",
                transcend_api_key=SecretStr("transcend-secret"),
                fides_url=f"http://127.0.0.2:{listener.port}/api/v1",
            )
        )
        bench = Bench(house)
        stack.enter_context(bench.sequencing())
        register(bench)
        client = stack.enter_context(TestClient(create_app(bench.ctx.settings)))
        client.headers["Authorization"] = f"Bearer {house.key}"
        yield Stage(bench, client, listener)


def states(told: list[dict[str, Any]]) -> list[str]:
    return [one["extensions"][DOMAIN]["state"] for one in told]


def test_every_change_of_a_whole_pipeline_is_heard_in_order_in_every_version(stage: Stage) -> None:
    asked = {version: stage.ask(version, person, f"/v{version}") for person, version in enumerate(PATHS, 3)}
    stage.deliver()
    stage.bench.run_all()
    stage.deliver()
    for version, ticket in asked.items():
        told = stage.told(version, f"/v{version}")
        assert states(told) == ["received", "queued", "in_progress", "completed"]
        assert [one["request_status"] for one in told] == ["pending", "in_progress", "in_progress", "completed"]
        assert [one["extensions"][DOMAIN]["sequence"] for one in told] == [1, 2, 3, 4]
        assert {one["subject_request_id"] for one in told} == {ticket}
        assert told[-1]["extensions"][DOMAIN]["models"] == [{"id": "toy", "state": "certified", "result": "forgotten"}]
        shown = stage.client.get(f"{PATHS[version]}/{ticket}").json()
        assert {**shown, "status_callback_url": "", "extensions": {}} == {
            **told[-1],
            "status_callback_url": "",
            "extensions": {},
        }


def test_an_extension_is_heard_with_the_new_day(stage: Stage) -> None:
    ticket = stage.ask("2", 3, "/hook")
    [item] = stage.client.get("/v1/erasure-requests", params={"reference": ticket}).json()["items"]
    months = {"further_months": 2, "reason": "complexity"}
    done = stage.client.post(f"/v1/erasure-requests/{item['id']}:extend", json=months)
    assert done.status_code == 200, done.text
    stage.deliver()
    before, after = stage.told("2", "/hook")
    assert states([before, after]) == ["received", "received"]
    assert before["expected_completion_time"] < after["expected_completion_time"]
    assert after["expected_completion_time"][:10] == done.json()["deadline"][:10]


def test_many_portals_are_promised_word_by_as_many_statements_as_one(stage: Stage) -> None:
    tickets = [stage.ask("2", person, f"/{person}", f"/{person}/again") for person in range(3, 9)]
    with transaction(stage.bench.ctx.engine) as tx:
        rows = {row.external_id: row.request_id for row in tx.scalars(select(PortalRequest))}
    statements: list[str] = []
    sql_event.listen(stage.bench.ctx.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    counts = []
    for some in (tickets[:1], tickets):
        statements.clear()
        with transaction(stage.bench.ctx.engine) as tx:
            ids = [rows[ticket] for ticket in some]
            promise(tx, ids, status=RequestStatus.RECEIVED, at=stage.bench.now())
        counts.append(len([one for one in statements if "portal" in one or "webhook_deliveries" in one]))
    assert counts[0] == counts[1]
    stage.deliver()
    for person in range(3, 9):
        for path in (f"/{person}", f"/{person}/again"):
            told = stage.told("2", path)
            assert [one["extensions"][DOMAIN]["sequence"] for one in told] == ([1, 2, 3] if person == 3 else [1, 2])
            assert {one["subject_request_id"] for one in told} == {tickets[person - 3]}


def test_a_group_is_listed_by_as_many_statements_as_one_request_of_it(stage: Stage) -> None:
    statements: list[str] = []
    app: Any = stage.client.app
    sql_event.listen(app.state.context.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    counts = []
    for size in (1, 9):
        tickets = {stage.ask("3", NOBODY + person, group_id=f"group-{size}") for person in range(size)}
        statements.clear()
        listed = stage.client.get(PATHS["3"], params={"group_id": f"group-{size}"}).json()
        assert {one["subject_request_id"] for one in listed} == tickets
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_all_callbacks_of_a_request_hear_and_each_is_told_its_own_url(stage: Stage) -> None:
    stage.ask("2", NOBODY, "/a?token=1", "/b")
    stage.bench.run_all()
    stage.deliver()
    for path in ("/a?token=1", "/b"):
        told = stage.told("2", path)
        assert states(told) == ["received", "queued", "in_progress", "no_data"]
        assert told[-1]["results_count"] == 0


def test_what_failed_is_sent_again_and_its_sequence_says_that_it_is_old(stage: Stage) -> None:
    stage.listener.answers[:] = [500]
    stage.ask("2", 3, "/hook")
    stage.deliver()
    stage.bench.run_all()
    stage.deliver()
    with transaction(stage.bench.ctx.engine) as tx:
        tx.execute(text("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE next_attempt_at > now()"))
    stage.deliver()
    told = stage.told("2", "/hook")
    assert [one["extensions"][DOMAIN]["sequence"] for one in told] == [1, 2, 3, 4, 1]
    assert told[0] == told[-1]


def test_a_cancelled_and_a_refused_request_are_both_cancelled_and_the_extension_tells_them_apart(stage: Stage) -> None:
    taken_back, refused = stage.ask("2", 3, "/taken-back"), stage.ask("2", 4, "/refused")
    stage.client.delete(f"{PATHS['2']}/{taken_back}")
    listed = stage.client.get("/v1/erasure-requests", params={"reference": refused}).json()["items"]
    ground = {"ground": "art17_3_e_legal_claims", "explanation": "A claim is before the court."}
    done = stage.client.post(f"/v1/erasure-requests/{listed[0]['id']}:refuse", json=ground)
    assert done.status_code == 200, done.text
    stage.deliver()
    withdrawn, told = stage.told("2", "/taken-back")[-1], stage.told("2", "/refused")[-1]
    assert (withdrawn["request_status"], told["request_status"]) == ("cancelled", "cancelled")
    assert withdrawn["extensions"][DOMAIN]["state"] == "cancelled"
    assert told["extensions"][DOMAIN]["state"] == "rejected"
    assert told["extensions"][DOMAIN]["refused_on"] == "art17_3_e_legal_claims"
    assert "court" not in json.dumps(told)


def test_a_rollback_is_heard_by_opendsr_and_no_more_by_ketch(stage: Stage) -> None:
    stage.ask("2", 3, "/opendsr")
    assert stage.client.post("/portals/ketch", json=ketch(stage, 4)).status_code == 200
    stage.bench.run_all()
    stage.deliver()
    with transaction(stage.bench.ctx.engine) as tx:
        undo(tx, stage.bench)
    stage.bench.run_all()
    stage.deliver()
    assert states(stage.told("2", "/opendsr"))[3:] == ["completed", "queued", "in_progress", "completed"]
    assert [event(m)["status"] for m in stage.heard("/ketch")][-1] == "completed"
    assert len([m for m in stage.heard("/ketch") if event(m)["status"] == "completed"]) == 1


def undo(tx: Any, bench: Bench) -> None:
    catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)


def event(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(message.body)["event"]
    return found


def ketch(stage: Stage, person: int, **more: Any) -> dict[str, Any]:
    identity = {"identitySpace": "account_id", "identityFormat": "raw", "identityValue": toy.user_id(person)}
    callback = {"url": stage.url("/ketch"), "headers": {"Authorization": "ketch-secret", "X-Tenant": "axonic"}}
    return {
        "apiVersion": "dsr/v1",
        "kind": "DeleteRequest",
        "metadata": {"uid": str(uuid4()), "tenant": "axonic"},
        "request": {"identities": [identity], "callbacks": [callback], "subject": {"firstName": "Ann"}, **more},
    }


@pytest.mark.parametrize("headers", [{"X-API-Key": "KEY"}, {"Authorization": "Bearer KEY"}, {"Authorization": "BASIC"}])
def test_ketch_is_answered_at_once_and_told_with_its_own_headers(stage: Stage, headers: dict[str, str]) -> None:
    body, key = ketch(stage, 3), stage.bench.house.key
    del stage.client.headers["Authorization"]
    auth = ("ketch", key) if headers.get("Authorization") == "BASIC" else None
    shown = {} if auth else {name: value.replace("KEY", key) for name, value in headers.items()}
    answer = stage.client.post("/portals/ketch", json=body, headers=shown, auth=auth)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["kind"], told["metadata"], told["response"]["status"]) == (
        "DeleteResponse",
        body["metadata"],
        "pending",
    )
    again = stage.client.post("/portals/ketch", json=body, headers=shown, auth=auth)
    assert again.json() == told
    stage.bench.run_all()
    stage.deliver()
    heard = stage.heard("/ketch")
    assert [event(m)["status"] for m in heard] == ["pending", "in_progress", "in_progress", "completed"]
    assert event(heard[-1])["reason"] == "executed"
    for message in heard:
        assert (message.headers["authorization"], message.headers["x-tenant"]) == ("ketch-secret", "axonic")
        assert json.loads(message.body)["metadata"] == body["metadata"]
        assert not [name for name in message.headers if "signature" in name]


def test_ketch_hears_errors_in_its_shape(stage: Stage) -> None:
    refused = stage.client.post("/portals/ketch", json=ketch(stage, 3, identities=[]))
    forbidden = stage.client.post("/portals/ketch", json=ketch(stage, 3), headers={"Authorization": "Bearer exk_no"})
    for answer, status, word in ((refused, 400, "invalid"), (forbidden, 401, "forbidden")):
        assert (answer.status_code, answer.json()["kind"]) == (status, "Error")
        assert (answer.json()["error"]["code"], answer.json()["error"]["status"]) == (status, word)
    assert "account_id" in refused.json()["error"]["message"]


def transcend(value: str, **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A job of Transcend and its headers."""
    now = int(datetime.now(UTC).timestamp())
    claims = {"value": value, "scope": "coreIdentifier", "aud": "acme", "iat": now, "exp": now + 60, **more}
    request = {"link": f"https://app.transcend.io/privacy-requests/incoming-requests/{uuid4()}"}
    body = {"type": "ERASURE", "coreIdentifier": {"value": value}, "extras": {"request": request}}
    return body, {"x-sombra-token": es384(SOMBRA, claims), "x-transcend-nonce": f"nonce-{uuid4()}", "Authorization": ""}


def test_transcends_job_is_resolved_once_with_its_nonce(stage: Stage) -> None:
    body, headers = transcend(toy.user_id(3))
    answers = [stage.client.post("/portals/transcend", json=body, headers=headers) for _ in range(2)]
    assert [a.status_code for a in answers] == [200, 200]
    stage.bench.run_all()
    stage.deliver()
    [message] = stage.heard("/sombra/v1/data-silo")
    assert (message.method, json.loads(message.body)) == ("PUT", {"status": "READY"})
    assert message.headers["x-transcend-nonce"] == headers["x-transcend-nonce"]
    assert message.headers["authorization"] == "Bearer transcend-secret"


def test_a_job_that_transcend_sends_again_with_another_nonce_is_resolved_under_both(stage: Stage) -> None:
    body, headers = transcend(toy.user_id(3))
    second = {**headers, "x-transcend-nonce": f"nonce-{uuid4()}"}
    for attempt in (headers, second):
        assert stage.client.post("/portals/transcend", json=body, headers=attempt).status_code == 200
    stage.bench.run_all()
    stage.deliver()
    nonces = {message.headers["x-transcend-nonce"] for message in stage.heard("/sombra/v1/data-silo")}
    assert nonces == {headers["x-transcend-nonce"], second["x-transcend-nonce"]}
    assert len(everything(stage, ErasureRequest)) == 1


def everything(stage: Stage, table: type) -> list[Any]:
    with transaction(stage.bench.ctx.engine) as tx:
        return list(tx.scalars(select(table)).all())


def test_a_person_whom_no_model_knows_is_204_and_kept_from_coming_back(stage: Stage) -> None:
    body, headers = transcend(toy.user_id(NOBODY))
    assert stage.client.post("/portals/transcend", json=body, headers=headers).status_code == 204
    stage.bench.run_all()
    stage.deliver()
    [request] = everything(stage, ErasureRequest)
    assert request.status == "no_data"
    assert stage.heard("/sombra/v1/data-silo") == []


@pytest.mark.parametrize(
    "forged",
    [
        {"x-sombra-token": ""},
        {"x-sombra-token": es384(ec.generate_private_key(ec.SECP384R1()), {"value": "u", "scope": "coreIdentifier"})},
        {"aud": "another organisation"},
        {"exp": 1},
        {"scope": "enrichment"},
    ],
)
def test_a_job_that_is_not_proven_is_401_and_leaves_no_trace(stage: Stage, forged: dict[str, Any]) -> None:
    claims = {name: value for name, value in forged.items() if name != "x-sombra-token"}
    body, headers = transcend(toy.user_id(3), **claims)
    headers |= {name: value for name, value in forged.items() if name == "x-sombra-token"}
    refused = stage.client.post("/portals/transcend", json=body, headers=headers)
    assert refused.status_code == 401
    assert everything(stage, ErasureRequest) == []


def test_a_job_whose_body_names_another_person_than_its_token_is_refused(stage: Stage) -> None:
    body, headers = transcend(toy.user_id(3))
    refused = stage.client.post(
        "/portals/transcend", json={**body, "coreIdentifier": {"value": toy.user_id(4)}}, headers=headers
    )
    assert refused.status_code == 422
    assert everything(stage, ErasureRequest) == []


def fides(person: int, **more: Any) -> dict[str, Any]:
    return {
        "privacy_request_id": f"pri_{uuid4()}",
        "direction": "two_way",
        "callback_type": "pre",
        "policy_action": "erasure",
        "identity": {"external_id": toy.user_id(person), "email": "ann@example.org"},
        **more,
    }


def test_fides_waits_and_is_resumed_at_the_end_with_the_token_it_gave(stage: Stage) -> None:
    body = fides(3)
    resume = {"reply-to": f"/privacy-request/{body['privacy_request_id']}/resume", "reply-to-token": "jwe-secret"}
    answer = stage.client.post("/portals/fides", json=body, headers=resume)
    assert (answer.status_code, answer.json()) == (200, {"halt": True})
    stage.deliver()
    assert stage.listener.messages == []
    stage.bench.run_all()
    stage.deliver()
    [message] = stage.heard(f"/api/v1/privacy-request/{body['privacy_request_id']}/resume")
    assert (message.headers["authorization"], message.body) == ("Bearer jwe-secret", b"{}")


def test_fides_token_is_not_sent_elsewhere_and_other_policies_are_not_ours(stage: Stage) -> None:
    elsewhere = {"reply-to": "https://attacker.example/resume", "reply-to-token": "jwe-secret"}
    assert stage.client.post("/portals/fides", json=fides(3), headers=elsewhere).status_code == 422
    other = stage.client.post("/portals/fides", json=fides(3, policy_action="access"), headers=elsewhere)
    assert (other.status_code, other.json()) == (200, {"halt": False})
    assert everything(stage, ErasureRequest) == []
    listening = stage.client.post("/portals/fides", json=fides(3, direction="one_way"))
    assert listening.json() == {"halt": False}
    assert len(everything(stage, ErasureRequest)) == 1


def test_callers_secrets_are_sealed_and_gone_once_the_end_was_told(stage: Stage) -> None:
    stage.ask("2", 3, "/secret-path")
    stage.client.post("/portals/ketch", json=ketch(stage, 4))
    body, headers = transcend(toy.user_id(5))
    stage.client.post("/portals/transcend", json=body, headers=headers)
    secrets = ("secret-path", "ketch-secret", headers["x-transcend-nonce"], "/ketch")
    assert not [secret for secret in secrets if secret in stage.rows() or secret.encode().hex() in stage.rows()]
    tidy(stage)
    assert all(callback.sealed for callback in everything(stage, PortalCallback))
    stage.bench.run_all()
    tidy(stage)
    assert all(callback.sealed for callback in everything(stage, PortalCallback)), "the end is not told yet"
    stage.deliver()
    tidy(stage)
    assert not any(callback.sealed for callback in everything(stage, PortalCallback))


def tidy(stage: Stage) -> None:
    with transaction(stage.bench.ctx.engine) as tx:
        forget_told(tx)


def test_what_was_given_up_is_forgotten_too_and_a_rollback_later_is_told_to_nobody(stage: Stage) -> None:
    ticket = stage.ask("2", 3, "/hook")
    stage.bench.run_all()
    with transaction(stage.bench.ctx.engine) as tx:
        tx.execute(text("UPDATE webhook_deliveries SET next_attempt_at = NULL"))
    tidy(stage)
    [callback] = everything(stage, PortalCallback)
    assert callback.sealed is None
    delivery = everything(stage, WebhookDelivery)[0]
    with transaction(stage.bench.ctx.engine) as tx, pytest.raises(NotFound):
        portals.outgoing(tx, delivery, settings=stage.bench.ctx.settings)
    with transaction(stage.bench.ctx.engine) as tx:
        undo(tx, stage.bench)
    stage.bench.run_all()
    stage.deliver()
    assert stage.listener.messages == []
    shown = stage.client.get(f"{PATHS['2']}/{ticket}").json()
    assert shown["request_status"] == "completed"


def test_a_move_that_is_undone_promises_nothing(stage: Stage) -> None:
    """Word is promised in the transaction of the change: no change, no word."""
    ticket = stage.ask("2", 3, "/hook")
    [row] = everything(stage, PortalRequest)
    before = len(everything(stage, WebhookDelivery))
    with suppress(ZeroDivisionError), transaction(stage.bench.ctx.engine) as tx:
        ended: dict[str, Any] = {"then": RequestStatus.CANCELLED, "reason": "test", "ending": moves.Ending()}
        moves.move_request(tx, row.request_id, now=RequestStatus.RECEIVED, at=stage.bench.now(), **ended)
        assert tx.scalar(text("SELECT count(*) FROM webhook_deliveries")) == before + 1
        raise ZeroDivisionError
    assert (row.external_id, len(everything(stage, WebhookDelivery))) == (ticket, before)


def test_portals_are_files_in_one_list_and_the_operators_client_is_found_by_name(stage: Stage) -> None:
    with transaction(stage.bench.ctx.engine) as tx:
        found = keys.client_named(tx, "portal")
        assert found is not None
        assert portals.transcend_client(tx, stage.bench.ctx.settings) == found.id
        keymaking.create(tx, name="another", scopes=[])
        nowhere = stage.bench.ctx.settings.model_copy(update={"transcend_client": "nowhere"})
        with pytest.raises(NotFound, match="EXPUNGE_TRANSCEND_CLIENT"):
            portals.transcend_client(tx, nowhere)
    body, headers = transcend(toy.user_id(3))
    stage.client.post("/portals/transcend", json=body, headers=headers)
    [request] = everything(stage, ErasureRequest)
    assert request.client_id == found.id
    assert isinstance(found.id, UUID)
