"""Promised messages on their way: turns, leases, rests, the log of attempts, and endpoints that are given up.

The database and the receivers are real; dispatch and worker are driven by hand, ring by ring.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import SecretStr
from sqlalchemy import func, select, text, update
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from app import keymaking, metrics, portals, supervisor, webhooks
from app.domain import webhook
from app.domain.lifecycle import RequestStatus
from app.domain.portals import ketch
from app.domain.portals.base import Asked, Callback, Hears
from app.domain.webhook import Outcome, Scheme
from app.queue import IO
from app.storage import deliveries, moves, receivers, totals
from app.storage import portals as callbacks
from app.storage import webhooks as stored
from app.storage.sessions import transaction
from app.storage.tables import (
    CallbackReceiver,
    Client,
    ErasureRequest,
    Event,
    PortalCallback,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookSecret,
)
from tests.faults import wait_until
from tests.house import installation
from tests.receivers import Answer, Receiver, garbage, hang, reset, status
from workers import notify
from workers.context import Context

pytestmark = pytest.mark.slow
LOOPBACK = (ip_network("127.0.0.0/8"),)
COMPLETED = "erasure_request.completed"
OK = status(204)


@dataclass(frozen=True)
class Clock(Context):
    """A context that lives at another time."""

    ahead: timedelta = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Office:
    """A house without processes, and the hands that dispatch and the io worker have."""

    ctx: Clock
    client_id: UUID

    def other(self) -> Office:
        """Another client of the same house."""
        with transaction(self.ctx.engine) as tx:
            client = Client(name=uuid4().hex)
            tx.add(client)
            tx.flush()
            return replace(self, client_id=client.id)

    def endpoint(self, url: str, *, schemes: tuple[Scheme, ...] = (Scheme.V1,)) -> tuple[UUID, webhooks.NewSecret]:
        with transaction(self.ctx.engine) as tx:
            made, secrets = webhooks.register(
                tx,
                webhooks.Wanted(url),
                schemes=schemes,
                client_id=self.client_id,
                every_client=False,
                now=self.ctx.now(),
                settings=self.ctx.settings,
            )
            return made.id, secrets[0]

    def request(self) -> UUID:
        with transaction(self.ctx.engine) as tx:
            now = self.ctx.now()
            row = ErasureRequest(client_id=self.client_id, received_at=now, deadline=now)
            tx.add(row)
            tx.flush()
            return row.id

    def promise(self, request_id: UUID, event: str = COMPLETED) -> None:
        with transaction(self.ctx.engine) as tx:
            moves.record(tx, event, request_id=request_id)
            stored.promise(tx, [request_id], event=event, at=self.ctx.now())

    def ask(self, *urls: str, person: str = "") -> UUID:
        """A portal's demand, whose callbacks are promised word of it at once."""
        remarks = {"tenant": "axonic"}
        heard = [Callback(url=url, hears=Hears.EVERY_CHANGE, remarks=remarks) for url in urls]
        number, ctx = uuid4().hex, self.ctx
        asked = Asked(external_id=number, user_id=person or number, reference=None, callbacks=heard)
        with transaction(ctx.engine) as tx:
            told: dict[str, Any] = {"demand": {"id": number}, "client_id": self.client_id}
            done = portals.accept(tx, ketch.PORTALS[0], asked, **told, now=ctx.now(), settings=ctx.settings)
            return UUID(done.story.request_id)

    def tell(self, request_id: UUID) -> None:
        """Promise a portal's callbacks word of one more change."""
        with transaction(self.ctx.engine) as tx:
            callbacks.promise(tx, [request_id], status=RequestStatus.RECEIVED, at=self.ctx.now())

    def rung(self) -> list[WebhookDelivery]:
        """Whose turn it is, as dispatch would have it in two rounds."""
        return [self.one(WebhookDelivery, id=delivery_id) for delivery_id in self.ring() + self.ring()]

    def ring(self, limit: int = 100) -> list[UUID]:
        with transaction(self.ctx.engine) as tx:
            return list(deliveries.to_ring(tx, limit=limit))

    def deliver(self, *, ahead: timedelta = timedelta(0)) -> None:
        """One round of dispatch, and whatever the workers do about it."""
        for delivery_id in self.ring():
            notify.deliver(replace(self.ctx, ahead=ahead), delivery_id)

    def wait_for_nothing(self) -> None:
        """Let every pause, rest and ring be over."""
        with transaction(self.ctx.engine) as tx:
            tx.execute(text("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE next_attempt_at > now()"))
            tx.execute(text("UPDATE webhook_deliveries SET rung_at = now() - interval '1 hour' WHERE rung_at <= now()"))
            tx.execute(text("UPDATE webhook_endpoints SET throttled_until = now()"))
            tx.execute(text("UPDATE callback_receivers SET throttled_until = now()"))

    def all(self, table: type, **where: Any) -> list[Any]:
        with transaction(self.ctx.engine) as tx:
            query = select(table).filter_by(**where)
            return list(tx.scalars(query.order_by(table.number if table is WebhookDelivery else table.id)).all())

    def one(self, table: type, **where: Any) -> Any:
        [found] = self.all(table, **where)
        return found

    def set(self, table: type, row_id: UUID, **values: Any) -> None:
        with transaction(self.ctx.engine) as tx:
            tx.execute(update(table).where(table.id == row_id).values(values))


@pytest.fixture
def office(database_url: str, tmp_path: Path) -> Iterator[Office]:
    with installation(tmp_path, database_url, "", model=False, webhook_allow=LOOPBACK, webhook_seconds=0.5) as house:
        with transaction(house.engine) as tx:
            client_id = tx.scalars(select(Client.id)).first() or keymaking.operator(tx)
        yield Office(Clock(settings=house.settings, engine=house.engine), client_id)


# --- attempts and their log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "outcome", "code", "error", "last"),
    [
        (status(200, body=b"CANARY"), "delivered", 200, None, "status 200"),
        (status(400, "X-Canary: CANARY", body=b"CANARY"), "retry", 400, None, "status 400"),
        (status(302, "Location: http://127.0.0.1/CANARY"), "retry", 302, None, "status 302"),
        (status(410), "gone", 410, None, "status 410"),
        (reset, "retry", None, "ConnectionResetError", "ConnectionResetError"),
        (garbage, "retry", None, "RemoteProtocolError", "RemoteProtocolError"),
        (hang, "retry", None, "TimeoutError", "TimeoutError"),
    ],
)
def test_an_attempt_is_logged_with_its_status_and_without_a_word_of_the_answer(
    office: Office, answer: Answer, outcome: str, code: int | None, error: str | None, last: str
) -> None:
    with Receiver(answer) as receiver:
        office.endpoint(receiver.url)
        office.promise(office.request())
        office.deliver()
        assert len(receiver.received) == 1
    attempt, delivery = office.one(WebhookAttempt), office.one(WebhookDelivery)
    assert (attempt.outcome, attempt.status_code, attempt.error) == (outcome, code, error)
    assert (delivery.attempts, delivery.last_outcome) == (1, last)
    assert abs(attempt.at - datetime.now(UTC)) < timedelta(seconds=20)
    assert 0 <= attempt.duration_ms < 2000
    assert (delivery.next_attempt_at is not None) == (outcome == "retry")
    assert (delivery.delivered_at is not None) == (outcome == "delivered")
    with transaction(office.ctx.engine) as tx:
        for table in ("webhook_attempts", "webhook_deliveries", "webhook_endpoints", "events"):
            assert not tx.scalar(text(f"SELECT count(*) FROM {table} t WHERE t::text ILIKE '%canary%'"))
        assert totals.read(tx)["webhook", outcome].value == 1


def test_ten_failures_on_the_published_schedule_and_it_is_given_up(office: Office) -> None:
    with Receiver(status(500)) as receiver:
        office.endpoint(receiver.url)
        office.promise(office.request())
        for pause in webhook.SCHEDULE[1:]:
            office.deliver()
            waits = office.one(WebhookDelivery).next_attempt_at - datetime.now(UTC)
            assert 0.8 * pause - timedelta(seconds=5) <= waits <= 1.2 * pause
            office.wait_for_nothing()
        office.deliver()
        delivery = office.one(WebhookDelivery)
        assert (delivery.attempts, delivery.next_attempt_at) == (10, None)
        assert delivery.last_outcome == "given up: status 500"
        assert set(receiver.ids) == {str(delivery.id)}
        assert len({message.body for message in receiver.received}) == 1
    assert len(office.all(WebhookAttempt)) == len(receiver.received) == 10


def test_a_message_that_cannot_be_written_is_an_attempt_too_and_does_not_come_for_ever(office: Office) -> None:
    with Receiver(OK) as receiver:
        office.endpoint(receiver.url)
        office.promise(office.request())
        other = base64.b64encode(bytes(range(32))).decode()
        settings = office.ctx.settings.model_copy(update={"wrapping_key": SecretStr(other)})
        [delivery_id] = office.ring()
        notify.deliver(replace(office.ctx, settings=settings), delivery_id)
        assert receiver.received == []
    delivery = office.one(WebhookDelivery)
    assert (delivery.attempts, delivery.last_outcome, delivery.lease_until) == (1, "InvalidTag", None)
    assert delivery.next_attempt_at > datetime.now(UTC)


def test_no_transaction_is_open_while_a_receiver_thinks(office: Office) -> None:
    with Receiver(hang) as receiver:
        office.endpoint(receiver.url)
        office.promise(office.request())
        [delivery_id] = office.ring()
        worker = threading.Thread(target=notify.deliver, args=(office.ctx, delivery_id))
        worker.start()
        wait_until(lambda: receiver.received, 5, "the attempt is under way")
        held = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type = 'client backend'"
        )
        with transaction(office.ctx.engine) as tx:
            assert tx.scalar(held) == 0
        worker.join()


# --- once, and again after a crash ----------------------------------------------------------------------------------


def test_two_rings_send_one_message(office: Office) -> None:
    answered = threading.Event()

    def slow(connection: socket.socket) -> None:
        answered.wait(10)
        OK(connection)

    patient = replace(office.ctx, settings=office.ctx.settings.model_copy(update={"webhook_seconds": 15}))
    with Receiver(slow) as receiver:
        office.endpoint(receiver.url)
        office.promise(office.request())
        [delivery_id] = office.ring()
        worker = threading.Thread(target=notify.deliver, args=(patient, delivery_id))
        worker.start()
        wait_until(lambda: receiver.received, 5, "the attempt is under way")
        for _ in range(3):
            notify.deliver(patient, delivery_id)
        answered.set()
        worker.join()
        notify.deliver(patient, delivery_id)
        assert len(receiver.received) == 1


def test_an_attempt_whose_worker_died_is_made_again_under_the_same_id_when_its_lease_is_over(office: Office) -> None:
    with Receiver(OK) as receiver:
        office.endpoint(receiver.url)
        office.promise(office.request())
        [delivery_id] = office.ring()
        with transaction(office.ctx.engine) as tx:
            dead = deliveries.claim(tx, delivery_id)
        assert dead is not None
        office.wait_for_nothing()
        assert office.ring() == []
        office.set(WebhookDelivery, delivery_id, lease_until=datetime.now(UTC) - timedelta(seconds=1))
        office.deliver()
        assert receiver.ids == [str(delivery_id)]
        # The dead one was only asleep: what it has to say comes too late.
        with transaction(office.ctx.engine) as tx:
            now = office.ctx.now()
            deliveries.settle(tx, dead, deliveries.Settled(now, Outcome.RETRY, 500, None, 1, "late", None, now))
    delivery = office.one(WebhookDelivery)
    assert (delivery.last_outcome, delivery.next_attempt_at, delivery.attempts) == ("status 204", None, 1)


def test_a_ring_that_nobody_answers_is_rung_again_after_a_while(office: Office) -> None:
    office.endpoint("https://portal.example/")
    office.promise(office.request())
    [delivery_id] = office.ring()
    assert office.ring() == []
    office.set(WebhookDelivery, delivery_id, rung_at=datetime.now(UTC) - deliveries.RING)
    assert office.ring() == [delivery_id]


# --- turns ----------------------------------------------------------------------------------------------------------


def test_thirty_messages_for_one_receiver_do_not_keep_another_waiting(office: Office) -> None:
    crowded, _ = office.endpoint("https://crowded.example/")
    for _ in range(30):
        office.promise(office.request())
    quiet, _ = office.endpoint("https://quiet.example/")
    with transaction(office.ctx.engine) as tx:
        tx.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == crowded).values(events=["ping"]))
    office.promise(office.request())
    rung = office.ring(limit=2)
    assert {office.one(WebhookDelivery, id=i).endpoint_id for i in rung} == {crowded, quiet}
    rest = office.ring()
    assert len(rung + rest) == deliveries.SLOTS + 1
    assert office.ring() == []


def test_a_receiver_that_fails_has_one_slot_and_all_of_them_share_eight(office: Office) -> None:
    owners = [office.other() for _ in range(4)]
    failing = [owner.endpoint(f"https://dead-{number}.example/")[0] for number, owner in enumerate(owners * 3)]
    well, _ = office.endpoint("https://well.example/")
    for endpoint_id in failing:
        office.set(WebhookEndpoint, endpoint_id, failures=1)
    for owner in (*owners, office):
        for _ in range(6):
            owner.promise(owner.request())
    rung = [office.one(WebhookDelivery, id=i).endpoint_id for i in office.ring() + office.ring()]
    assert rung.count(well) == deliveries.SLOTS
    assert len(rung) == deliveries.SLOTS + 8
    assert max(rung.count(endpoint_id) for endpoint_id in failing) == 1


def test_a_client_with_fifty_receivers_has_half_of_a_workers_slots(office: Office) -> None:
    for number in range(50):
        office.endpoint(f"https://dead-{number}.example/")
    for _ in range(3):
        office.promise(office.request())
    quiet = office.other()
    quiet.endpoint("https://quiet.example/")
    quiet.promise(quiet.request())
    receivers = {e.id: e.client_id for e in office.all(WebhookEndpoint)}
    rung = [receivers[office.one(WebhookDelivery, id=i).endpoint_id] for i in office.ring() + office.ring()]
    assert (rung.count(office.client_id), rung.count(quiet.client_id)) == (deliveries.CLIENT_SLOTS, 1)


def test_receivers_that_fail_leave_their_clients_others_room(office: Office) -> None:
    for number in range(12):
        endpoint_id, _ = office.endpoint(f"https://dead-{number}.example/")
        office.set(WebhookEndpoint, endpoint_id, failures=1)
    office.promise(office.request())
    well, _ = office.endpoint("https://well.example/")
    office.promise(office.request())
    rung = [office.one(WebhookDelivery, id=i).endpoint_id for i in office.ring() + office.ring()]
    assert (rung.count(well), len(rung)) == (1, 5)


def test_no_more_is_rung_than_a_worker_attempts_at_once(office: Office) -> None:
    for _ in range(4):
        owner = office.other()
        for number in range(3):
            owner.endpoint(f"https://portal-{number}.example/")
        for _ in range(4):
            owner.promise(owner.request())
    assert len(office.ring()) == deliveries.ALL_SLOTS
    assert office.ring() == []
    assert f"--concurrency {deliveries.ALL_SLOTS} " in " ".join(supervisor.worker_command(IO))


def test_of_one_receiver_that_fails_one_message_is_under_way(office: Office) -> None:
    endpoint_id, _ = office.endpoint("https://dead.example/")
    office.set(WebhookEndpoint, endpoint_id, failures=1)
    for _ in range(6):
        office.promise(office.request())
    assert len(office.ring() + office.ring()) == 1


def test_a_worker_goes_on_with_a_receiver_that_answers_and_stops_at_the_first_failure(office: Office) -> None:
    with Receiver(OK) as receiver:
        office.endpoint(receiver.url)
        for _ in range(9):
            office.promise(office.request())
        notify.deliver(office.ctx, office.all(WebhookDelivery)[0].id)
        assert len(receiver.received) == 9
        receiver.answer = status(500)
        for _ in range(9):
            office.promise(office.request())
        notify.deliver(office.ctx, office.all(WebhookDelivery)[9].id)
        assert len(receiver.received) == 10


def test_messages_about_one_request_set_out_in_order_and_a_failed_one_does_not_hold_up_the_next(
    office: Office,
) -> None:
    with Receiver(status(500)) as receiver:
        office.endpoint(receiver.url)
        about, other = office.request(), office.request()
        office.promise(about, "erasure_request.needs_attention")
        office.promise(about)
        office.promise(other)
        first, second, third = office.all(WebhookDelivery)
        assert set(office.ring()) == {first.id, third.id}
        notify.deliver(office.ctx, first.id)
        office.set(WebhookEndpoint, first.endpoint_id, failures=0)
        assert office.ring() == [second.id]
        receiver.answer = OK
        notify.deliver(office.ctx, second.id)
        office.wait_for_nothing()
        notify.deliver(office.ctx, first.id)
    told = [json.loads(message.body) for message in receiver.received]
    arrived = [(m["data"]["sequence"], m["type"]) for m in told if m["data"]["id"] == str(about)]
    old, new = (1, "erasure_request.needs_attention"), (2, COMPLETED)
    assert arrived == [old, new, old]  # what arrives last is not what happened last, and its sequence says so


# --- rest -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "least", "most"),
    [
        (status(429), 60, 60),
        (status(429, "Retry-After: 5"), 60, 60),
        (status(429, "Retry-After: 100"), 100, 100),
        (status(429, "Retry-After: 99999"), 120, 120),
        (status(502), 60, 60),
        (status(504), 60, 60),
        (hang, 60, 60),
        (status(500), None, None),
        (status(503), None, None),
        (reset, None, None),
    ],
)
def test_who_asks_for_less_or_hangs_is_left_alone_for_a_minute_or_two(
    office: Office, answer: Answer, least: int | None, most: int | None
) -> None:
    with Receiver(answer) as receiver, Receiver(OK) as other:
        endpoint_id, _ = office.endpoint(receiver.url)
        office.promise(office.request())
        office.deliver()
        endpoint = office.one(WebhookEndpoint, id=endpoint_id)
        office.endpoint(other.url)
        office.promise(office.request())
        rung = office.ring()
        assert (endpoint_id in {office.one(WebhookDelivery, id=i).endpoint_id for i in rung}) == (least is None)
        for delivery_id in rung:
            notify.deliver(office.ctx, delivery_id)
        assert len(other.received) == 1
        assert len(receiver.received) == (1 if least else 2)
    if least is None or most is None:
        assert endpoint.throttled_until is None
        return
    rest = endpoint.throttled_until - datetime.now(UTC)
    assert timedelta(seconds=least - 5) < rest <= timedelta(seconds=most)
    assert office.all(WebhookDelivery)[0].next_attempt_at >= endpoint.throttled_until - timedelta(milliseconds=1)


def test_a_receiver_that_takes_its_time_is_told_and_then_left_alone_for_a_minute(office: Office) -> None:
    def late(connection: socket.socket) -> None:
        threading.Event().wait(5.2)
        OK(connection)

    patient = replace(office.ctx, settings=office.ctx.settings.model_copy(update={"webhook_seconds": 15}))
    with Receiver(late) as receiver:
        endpoint_id, _ = office.endpoint(receiver.url)
        for _ in range(2):
            office.promise(office.request())
        notify.deliver(patient, office.all(WebhookDelivery)[0].id)
        assert len(receiver.received) == 1
        assert office.ring() == []
    endpoint, told = office.one(WebhookEndpoint, id=endpoint_id), office.all(WebhookDelivery)[0]
    assert (told.last_outcome, endpoint.failures) == ("status 204", 0)
    assert timedelta(seconds=50) < endpoint.throttled_until - datetime.now(UTC) <= timedelta(seconds=60)


def test_a_name_that_leads_inside_and_one_that_nobody_knows_look_the_same_to_their_owner(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names(host: str, *_: Any, **__: Any) -> list[Any]:
        if host != "wiki.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", names)
    for url in ("https://wiki.example/", "https://nothing.example/"):
        office.endpoint(url)
    office.promise(office.request())
    seen = []
    for delivery_id in office.ring():
        notify.deliver(office.ctx, delivery_id)
        attempt = office.one(WebhookAttempt, delivery_id=delivery_id)
        delivery = office.one(WebhookDelivery, id=delivery_id)
        waits = delivery.next_attempt_at is not None
        seen.append((attempt.outcome, attempt.error, attempt.status_code, delivery.last_outcome, waits))
    assert seen == [("retry", "address refused or unknown", None, "address refused or unknown", True)] * 2


def test_a_worker_that_was_rung_before_a_rest_began_keeps_it(office: Office) -> None:
    with Receiver(OK) as receiver:
        endpoint_id, _ = office.endpoint(receiver.url)
        office.promise(office.request())
        [delivery_id] = office.ring()
        office.set(WebhookEndpoint, endpoint_id, throttled_until=datetime.now(UTC) + timedelta(seconds=60))
        notify.deliver(office.ctx, delivery_id)
        assert receiver.received == []
        office.wait_for_nothing()
        office.deliver()
        assert len(receiver.received) == 1


# --- portals' callbacks ---------------------------------------------------------------------------------------------


def test_a_callback_has_ten_attempts_on_the_published_schedule_and_then_its_client_sees_it_failed(
    office: Office,
) -> None:
    with Receiver(status(500)) as portal:
        office.ask(portal.url)
        for pause in webhook.SCHEDULE[1:]:
            office.deliver()
            waits = office.one(WebhookDelivery).next_attempt_at - datetime.now(UTC)
            assert 0.8 * pause - timedelta(seconds=5) <= waits <= 1.2 * pause
            office.wait_for_nothing()
        office.deliver()
        office.wait_for_nothing()
        office.deliver()
        assert len(portal.received) == 10
    with transaction(office.ctx.engine) as tx:
        seen = deliveries.Seen(office.client_id, state="failed")
        [failed] = deliveries.page(tx, seen, before=None, limit=10)
        assert (failed.attempts, failed.last_outcome) == (10, "given up: status 500")
        others = deliveries.Seen(office.other().client_id)
        assert deliveries.page(tx, others, before=None, limit=10) == []


@pytest.mark.parametrize("answer", [status(429), hang])
def test_a_portal_that_asks_for_less_or_hangs_rests_and_the_other_one_of_its_client_does_not(
    office: Office, answer: Answer
) -> None:
    with Receiver(answer) as dead, Receiver(OK) as well:
        office.ask(dead.url)
        office.deliver()
        for _ in range(3):
            office.ask(dead.url + "/another-path", well.url)
        office.deliver()
        office.deliver()
        assert (len(dead.received), len(well.received)) == (1, 3)
        office.wait_for_nothing()
        office.deliver()
        assert len(dead.received) == 2


def test_a_portal_that_fails_has_one_slot_and_the_other_one_of_its_client_all_of_its_own(office: Office) -> None:
    with Receiver(status(500)) as dead:
        office.ask(dead.url)
        office.deliver()
        for _ in range(9):
            office.ask(dead.url, "https://well.example/")
    [failing] = office.all(CallbackReceiver, failures=1)
    turns = [delivery.receiver for delivery in office.rung()]
    assert (turns.count(failing.id), len(turns)) == (1, 1 + deliveries.SLOTS)


def test_portals_that_fail_share_eight_slots_with_endpoints_that_fail_whosever_they_are(office: Office) -> None:
    """Nine clients whose portals hang would otherwise hold all that a worker has."""
    for number in range(9):
        owner = office.other()
        for _ in range(4):
            owner.ask(f"https://dead-{number}.example/", f"https://dead-too-{number}.example/")
    for dead in office.all(CallbackReceiver):
        office.set(CallbackReceiver, dead.id, failures=1)
    well, _ = office.endpoint("https://well.example/")
    for _ in range(4):
        office.promise(office.request())
    turns = [delivery.endpoint_id for delivery in office.rung()]
    assert (turns.count(well), turns.count(None)) == (deliveries.SLOTS, 8)


def test_a_worker_that_was_rung_before_a_portals_rest_began_keeps_it(office: Office) -> None:
    with Receiver(OK) as portal:
        office.ask(portal.url)
        [delivery_id] = office.ring()
        row = office.one(CallbackReceiver)
        office.set(CallbackReceiver, row.id, throttled_until=datetime.now(UTC) + timedelta(seconds=60))
        notify.deliver(office.ctx, delivery_id)
        assert portal.received == []


def test_a_success_ends_the_series_of_a_portals_failures(office: Office) -> None:
    with Receiver(status(500)) as portal:
        office.ask(portal.url)
        office.deliver()
        assert office.one(CallbackReceiver).failures == 1
        portal.answer = OK
        office.wait_for_nothing()
        office.deliver()
    row = office.one(CallbackReceiver)
    assert (row.failures, row.failing_since, row.throttled_until) == (0, None, None)


def test_gone_ends_one_callback_and_no_other_of_the_same_portal(office: Office) -> None:
    with Receiver(status(410)) as portal:
        gone = office.ask(portal.url)
        office.tell(gone)
        office.deliver()
        portal.answer = OK
        office.wait_for_nothing()
        office.tell(gone)
        office.ask(portal.url)
        office.deliver()
        assert len(portal.received) == 2
    about = [d.last_outcome for d in office.all(WebhookDelivery, request_id=gone)]
    assert about == ["status 410", "given up: the receiver answered 410 Gone"]
    ended = office.one(PortalCallback, request_id=gone)
    assert (ended.sealed, ended.done_at is not None) == (None, True)


def test_after_five_days_of_nothing_but_failures_what_waits_for_a_portal_is_given_up_and_the_next_is_tried_once(
    office: Office,
) -> None:
    with Receiver(status(500)) as portal:
        for day in (0, 0, 0, 1, 2, 3, 4):
            office.wait_for_nothing()
            office.ask(portal.url)
            office.deliver(ahead=timedelta(days=day))
        assert None not in {d.next_attempt_at for d in office.all(WebhookDelivery)}
        office.wait_for_nothing()
        office.deliver(ahead=timedelta(days=5))
        told = office.all(WebhookDelivery)
        assert {d.next_attempt_at for d in told} == {None}
        [row] = office.all(CallbackReceiver)
        because = f"given up: every attempt since {row.failing_since:%Y-%m-%d %H:%M} UTC failed"
        assert {d.last_outcome.split(",")[0] for d in told} == {because}
        before = len(portal.received)
        office.ask(portal.url)
        for _ in range(3):
            office.wait_for_nothing()
            office.deliver(ahead=timedelta(days=6))
        assert len(portal.received) == before + 1
        portal.answer = OK
        office.ask(portal.url)
        office.deliver(ahead=timedelta(days=6))
        assert office.one(CallbackReceiver).failures == 0


def test_what_we_cannot_write_says_nothing_about_the_portal(office: Office) -> None:
    office.ask("https://portal.example/")
    other = base64.b64encode(bytes(range(32))).decode()
    settings = office.ctx.settings.model_copy(update={"wrapping_key": SecretStr(other)})
    [delivery_id] = office.ring()
    notify.deliver(replace(office.ctx, settings=settings), delivery_id)
    assert (office.one(WebhookAttempt).error, office.one(CallbackReceiver).failures) == ("InvalidTag", 0)


def test_portals_are_told_apart_without_their_names_and_fifty_of_a_client_are_enough(office: Office) -> None:
    for number in range(receivers.MOST_ORIGINS + 3):
        office.ask(f"https://name-{number}.example/a", f"https://name-{number}.example:443/b")
    rows = office.all(CallbackReceiver)
    assert len(rows) == receivers.MOST_ORIGINS + 1
    assert len({d.receiver for d in office.all(WebhookDelivery)}) == len(rows)
    with transaction(office.ctx.engine) as tx:
        assert "name-" not in "".join(tx.scalars(text("SELECT t::text FROM callback_receivers t")))
        with_log = deliveries.Seen(office.client_id)
        assert len(deliveries.page(tx, with_log, before=None, limit=1000)) == 2 * (receivers.MOST_ORIGINS + 3)
    office.other().ask("https://name-0.example/a")
    assert len({d.receiver for d in office.all(WebhookDelivery)}) == len(rows) + 1


def test_how_a_portal_answered_is_forgotten_with_the_last_word_to_it(office: Office) -> None:
    with Receiver(OK) as portal:
        told = office.ask(portal.url)
        office.deliver()
    [row] = office.all(WebhookDelivery)
    long_ago = datetime.now(UTC) - timedelta(days=91)
    office.set(WebhookDelivery, row.id, created_at=long_ago)
    office.set(CallbackReceiver, row.receiver, created_at=long_ago)
    for forgotten in (False, True):
        with transaction(office.ctx.engine) as tx:
            webhooks.tidy(tx, settings=office.ctx.settings)
        assert office.all(WebhookDelivery) == []
        assert len(office.all(CallbackReceiver)) == (0 if forgotten else 1), "it may still be told of this request"
        office.set(PortalCallback, office.one(PortalCallback, request_id=told).id, sealed=None)


# --- given up -------------------------------------------------------------------------------------------------------


def fail_daily(office: Office, days: range) -> None:
    """An attempt at noon of each day, as far as the clock of the worker goes."""
    for day in days:
        office.wait_for_nothing()
        office.promise(office.request())
        office.deliver(ahead=timedelta(days=day))


def test_five_days_of_nothing_but_failures_and_the_owner_is_told(office: Office) -> None:
    with Receiver(status(500)) as receiver:
        endpoint_id, _ = office.endpoint(receiver.url)
        for _ in range(3):  # several within a day: the clock begins
            office.promise(office.request())
        office.deliver()
        fail_daily(office, range(1, 5))
        assert office.one(WebhookEndpoint, id=endpoint_id).disabled_at is None
        fail_daily(office, range(5, 6))
        endpoint = office.one(WebhookEndpoint, id=endpoint_id)
        before = len(receiver.received)
        office.wait_for_nothing()
        office.deliver()
        assert len(receiver.received) == before
    assert endpoint.disabled_at is not None
    assert f"every attempt since {endpoint.failing_since:%Y-%m-%d %H:%M} UTC failed" in endpoint.disabled_because
    assert {d.next_attempt_at for d in office.all(WebhookDelivery)} == {None}
    event = office.one(Event, type="webhook.disabled")
    assert event.detail == {"endpoint": str(endpoint_id), "reason": endpoint.disabled_because}
    with transaction(office.ctx.engine) as tx:
        assert totals.read(tx)["webhook_endpoint_disabled", ""].value == 1
    told = metrics.exposition(metrics.House(office.ctx.engine), now=office.ctx.now(), processes=None)
    assert b"\nexpunge_webhook_endpoints_disabled_total 1.0\n" in told


def test_one_success_in_between_begins_the_five_days_anew(office: Office) -> None:
    with Receiver(status(500)) as receiver:
        endpoint_id, _ = office.endpoint(receiver.url)
        for _ in range(3):
            office.promise(office.request())
        office.deliver()
        fail_daily(office, range(1, 5))
        receiver.answer = OK
        fail_daily(office, range(4, 5))
        receiver.answer = status(500)
        fail_daily(office, range(5, 8))
        endpoint = office.one(WebhookEndpoint, id=endpoint_id)
    assert endpoint.disabled_at is None
    assert endpoint.failing_since - datetime.now(UTC) > timedelta(days=4)


def test_gone_disables_at_once_and_what_is_undelivered_waits_for_the_owner(office: Office) -> None:
    with Receiver(status(410)) as receiver:
        endpoint_id, _ = office.endpoint(receiver.url)
        for _ in range(3):
            office.promise(office.request())
        notify.deliver(office.ctx, office.all(WebhookDelivery)[0].id)
        endpoint = office.one(WebhookEndpoint, id=endpoint_id)
        assert endpoint.disabled_because == "the receiver answered 410 Gone"
        assert [d.last_outcome for d in office.all(WebhookDelivery)] == ["status 410", *[deliveries.PARKED] * 2]
        receiver.answer = OK
        with transaction(office.ctx.engine) as tx:
            row = stored.need(tx, endpoint_id, client_id=office.client_id)
            assert webhooks.switch_on(tx, row, now=office.ctx.now()) == 2
        office.deliver()
        assert len(receiver.received) == 3


def test_a_ping_reaches_a_disabled_endpoint_and_is_tried_once(office: Office) -> None:
    with Receiver(OK) as receiver:
        endpoint_id, secret = office.endpoint(receiver.url)
        office.promise(office.request())
        for answer, outcome in ((OK, "status 204"), (status(500), "given up: status 500")):
            receiver.answer = answer
            with transaction(office.ctx.engine) as tx:
                row = stored.need(tx, endpoint_id, client_id=office.client_id)
                webhooks.switch_off(tx, row, now=office.ctx.now())
                sent = webhooks.ping(tx, row, now=office.ctx.now())
            office.deliver()
            delivery = office.one(WebhookDelivery, id=sent.id)
            assert (delivery.last_outcome, delivery.next_attempt_at) == (outcome, None)
        assert secret.shared is not None
        for message in receiver.received:
            told = Webhook(secret.shared).verify(message.body, message.headers)
            assert (told["type"], told["data"]) == ("ping", {"endpoint_id": str(endpoint_id)})
    assert len(receiver.received) == 2
    assert office.one(WebhookEndpoint, id=endpoint_id).failures == 0


# --- signatures -----------------------------------------------------------------------------------------------------


def accepted_by(secret: str, receiver: Receiver) -> bool:
    message = receiver.received[-1]
    try:
        Webhook(secret).verify(message.body, message.headers)
    except WebhookVerificationError:
        return False
    return True


def test_while_secrets_overlap_both_are_accepted_and_afterwards_the_new_one(office: Office) -> None:
    with Receiver(OK) as receiver:
        endpoint_id, old = office.endpoint(receiver.url)
        with transaction(office.ctx.engine) as tx:
            row = stored.need(tx, endpoint_id, client_id=office.client_id)
            overlap = timedelta(hours=24)
            new = webhooks.rotate(
                tx, row, Scheme.V1, overlap=overlap, now=office.ctx.now(), settings=office.ctx.settings
            )
        assert old.shared is not None
        assert new.shared is not None
        office.promise(office.request())
        office.deliver()
        assert accepted_by(old.shared, receiver)
        assert accepted_by(new.shared, receiver)
        office.set(WebhookSecret, old.row.id, expires_at=datetime.now(UTC))
        office.promise(office.request())
        office.deliver()
        assert not accepted_by(old.shared, receiver)
        assert accepted_by(new.shared, receiver)


def test_both_schemes_sign_and_the_public_key_checks_the_second(office: Office) -> None:
    with Receiver(OK) as receiver:
        endpoint_id, shared = office.endpoint(receiver.url, schemes=(Scheme.V1, Scheme.V1A))
        office.promise(office.request())
        office.deliver()
        assert shared.shared is not None
        assert accepted_by(shared.shared, receiver)  # the official one skips v1a
        message = receiver.received[0]
    public = office.one(WebhookSecret, endpoint_id=endpoint_id, scheme="v1a").public
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public.removeprefix("whpk_")))
    [signature] = [s for s in message.headers["webhook-signature"].split(" ") if s.startswith("v1a,")]
    signed = f"{message.headers['webhook-id']}.{message.headers['webhook-timestamp']}.".encode() + message.body
    raw = base64.b64decode(signature.removeprefix("v1a,"))
    key.verify(raw, signed)
    with pytest.raises(InvalidSignature):
        key.verify(raw, signed + b" ")


# --- clearing away --------------------------------------------------------------------------------------------------


def test_old_deliveries_go_with_their_attempts_and_what_is_under_way_stays(office: Office) -> None:
    with Receiver(OK) as receiver:
        office.endpoint(receiver.url)
        office.promise(office.request())
        office.deliver()
        old = office.one(WebhookDelivery)
        office.promise(office.request())
    waiting = office.all(WebhookDelivery)[1]
    for delivery in (old, waiting):
        office.set(WebhookDelivery, delivery.id, created_at=datetime.now(UTC) - timedelta(days=91))
    office.promise(office.request())
    with transaction(office.ctx.engine) as tx:
        webhooks.tidy(tx, settings=office.ctx.settings)
        assert tx.scalar(select(func.count()).select_from(WebhookAttempt)) == 0
    first, _ = office.all(WebhookDelivery)
    assert first.id == waiting.id


def test_secrets_that_no_longer_sign_and_promises_to_closed_endpoints_are_cleared_away(office: Office) -> None:
    endpoint_id, secret = office.endpoint("https://portal.example/", schemes=(Scheme.V1, Scheme.V1A))
    office.promise(office.request())
    office.set(WebhookSecret, secret.row.id, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    office.set(WebhookEndpoint, endpoint_id, disabled_at=datetime.now(UTC))  # in the moment of the promise
    assert office.ring() == []
    with transaction(office.ctx.engine) as tx:
        webhooks.tidy(tx, settings=office.ctx.settings)
    assert office.one(WebhookSecret).scheme == "v1a"
    assert (office.one(WebhookDelivery).last_outcome, office.one(WebhookDelivery).next_attempt_at) == (
        deliveries.PARKED,
        None,
    )


def test_somebody_elses_row_of_the_same_id_is_never_touched(office: Office) -> None:
    """A ring for a delivery that is none does nothing."""
    notify.deliver(office.ctx, uuid4())
    assert office.all(WebhookAttempt) == []
