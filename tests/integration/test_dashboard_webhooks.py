"""The pages about webhooks: who sees what, who may change what, and that a secret is shown once."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, null, select, text

from app import keymaking, webhooks
from app.api.auth import Scope
from app.domain.people import Role
from app.domain.webhook import EVENTS, Scheme
from app.main import create_app
from app.storage import deliveries
from app.storage.deliveries import Seen
from app.storage.sessions import transaction
from app.storage.tables import (
    CallbackReceiver,
    InternalEntry,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
)
from tests.dashboard import COOKIE, enter, text_of
from tests.house import Installation

pytestmark = pytest.mark.slow
MARKUP = "<script>alert(1)</script>"
WHSEC = re.compile(r"whsec_[A-Za-z0-9+/=]{20,}")
URL = "https://hooks.example.org/in/s3cret-path?token=t0p"
COMPLETED = "erasure_request.completed"


def client_of(house: Installation, *, name: str = "", scopes: tuple[Scope, ...] = (Scope.REQUESTS_WRITE,)) -> UUID:
    with transaction(house.engine) as tx:
        row, _ = keymaking.create(tx, name=name or uuid4().hex, scopes=list(scopes))
        return row.client_id


def endpoint_of(house: Installation, *, client_id: UUID | None = None, **more: Any) -> UUID:
    """An endpoint, of a client of its own if none is given, with columns as given."""
    client_id, now = client_id or client_of(house), datetime.now(UTC)
    with transaction(house.engine) as tx:
        made, _ = webhooks.register(
            tx,
            webhooks.Wanted(URL),
            schemes=[Scheme.V1],
            client_id=client_id,
            every_client=False,
            now=now,
            settings=house.settings,
        )
        for name, value in more.items():
            setattr(made, name, value)
        return made.id


def message_to(house: Installation, endpoint_id: UUID, *, event: str = COMPLETED, **more: Any) -> UUID:
    """A promised message; settled and failed if nothing else is said."""
    columns: dict[str, Any] = {"next_attempt_at": null(), "last_outcome": "HTTP 500", "body": b'{"data":{"id":"7"}}'}
    with transaction(house.engine) as tx:
        row = WebhookDelivery(
            id=uuid4(), endpoint_id=endpoint_id, receiver=endpoint_id, event=event, **(columns | more)
        )
        return deliveries.add(tx, row).id


def read(house: Installation, table: Any, row_id: UUID) -> Any:
    with transaction(house.engine) as tx:
        return tx.get(table, row_id)


def notes(house: Installation, person_id: UUID) -> list[tuple[str, dict[str, Any]]]:
    """What a person did, as the internal log has it."""
    with transaction(house.engine) as tx:
        mine = select(InternalEntry).where(InternalEntry.person_id == person_id, InternalEntry.what != "signed_in")
        return [(entry.what, entry.detail) for entry in tx.scalars(mine.order_by(InternalEntry.id))]


def test_an_engineer_registers_an_endpoint_and_sees_its_secret_once(front_door: Installation) -> None:
    client_id, engineer = client_of(front_door), enter(front_door, Role.ENGINEER)
    form = {"client": str(client_id), "url": URL, "schemes": ["v1", "v1a"], "events": [COMPLETED, EVENTS[0]]}
    answer = engineer.post("/webhooks/new", **form)
    assert answer.status_code == 200, answer.text
    [secret] = set(WHSEC.findall(answer.text))
    assert "whpk_" in answer.text
    assert answer.headers["cache-control"] == "no-store"
    with transaction(front_door.engine) as tx:
        [endpoint] = tx.scalars(select(WebhookEndpoint).where(WebhookEndpoint.client_id == client_id)).all()
    assert (endpoint.url, endpoint.events) == (URL, [EVENTS[0], COMPLETED])
    pages = [engineer.get(path).text for path in ("/webhooks", f"/webhooks/{endpoint.id}", "/webhooks/new")]
    assert not [page for page in pages if WHSEC.search(page)]
    assert secret not in front_door.log.read_text()
    [(what, detail)] = notes(front_door, engineer.person_id)
    assert (what, detail["client"], detail["endpoint"]) == ("webhook.added", str(client_id), str(endpoint.id))
    assert secret not in str(detail)
    assert "s3cret" not in str(detail)


def test_what_may_be_the_receivers_secret_is_on_no_page(front_door: Installation) -> None:
    endpoint_id, admin = endpoint_of(front_door), enter(front_door, Role.ADMIN)
    for path in (
        "/webhooks",
        f"/webhooks/{endpoint_id}",
        f"/webhooks/deliveries/{message_to(front_door, endpoint_id)}",
    ):
        page = admin.get(path)
        assert page.status_code == 200
        assert "hooks.example.org" in page.text
        assert "s3cret-path" not in page.text
        assert "t0p" not in page.text


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://169.254.169.254/latest?typed=1", "cloud metadata"),
        ("https://10.1.2.3/typed=1", "not public"),
        ("http://portal.example/typed=1", "use https"),
        ("", "characters of RFC 3986"),
    ],
)
def test_a_forbidden_url_is_told_at_its_field_and_what_was_typed_is_kept(
    front_door: Installation, url: str, said: str
) -> None:
    client_id, engineer = client_of(front_door), enter(front_door, Role.ENGINEER)
    form = {"client": str(client_id), "url": url, "description": MARKUP, "schemes": ["v1a"], "events": [COMPLETED]}
    answer = engineer.post("/webhooks/new", **form)
    assert answer.status_code == 422
    assert said in text_of(answer)
    assert 'id="wrong-url"' in answer.text
    assert 'aria-describedby="wrong-url"' in answer.text
    assert f'value="{url}"' in answer.text
    assert 'value="&lt;script&gt;alert(1)&lt;/script&gt;"' in answer.text
    assert re.search(rf'value="{client_id}" selected', answer.text)
    assert re.search(rf'value="{re.escape(COMPLETED)}" checked', answer.text)
    assert re.search(r'value="v1a" checked', answer.text)
    with transaction(front_door.engine) as tx:
        assert not tx.scalars(select(WebhookEndpoint).where(WebhookEndpoint.client_id == client_id)).all()


def test_only_a_client_that_may_read_everybodys_requests_hears_of_them(front_door: Installation) -> None:
    engineer = enter(front_door, Role.ENGINEER)
    portal, office = client_of(front_door), client_of(front_door, scopes=(Scope.REQUESTS_READ_ALL,))
    form = {"url": URL, "schemes": ["v1"], "every_client": "true"}
    refused = engineer.post("/webhooks/new", client=str(portal), **form)
    assert refused.status_code == 422
    assert 'id="wrong-every_client"' in refused.text
    assert engineer.post("/webhooks/new", client=str(office), **form).status_code == 200


def test_a_persons_client_can_be_chosen_by_nobody(front_door: Installation) -> None:
    engineer = enter(front_door, Role.ENGINEER)
    assert str(engineer.client_id) not in engineer.get("/webhooks/new").text
    answer = engineer.post("/webhooks/new", client=str(engineer.client_id), url=URL, schemes="v1")
    assert answer.status_code == 422
    assert 'id="wrong-client"' in answer.text


ACTIONS = ("ping", "enable", "disable", "delete", "rotate", "replay")


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OFFICER, Role.AUDITOR])
def test_who_only_reads_sees_states_and_no_button_and_made_up_posts_are_refused(
    front_door: Installation, role: Role
) -> None:
    endpoint_id, guest = endpoint_of(front_door), enter(front_door, role)
    delivery_id = message_to(front_door, endpoint_id)
    before = read(front_door, WebhookEndpoint, endpoint_id)
    for path in ("/webhooks", f"/webhooks/{endpoint_id}", f"/webhooks/deliveries/{delivery_id}"):
        page = guest.get(path)
        assert page.status_code == 200
        assert not re.findall(r'action="/admin/webhooks', page.text)
    assert guest.get("/webhooks/new").status_code == 403
    paths = [f"/webhooks/{endpoint_id}/{action}" for action in ACTIONS]
    for path in (*paths, "/webhooks/new", f"/webhooks/deliveries/{delivery_id}/replay"):
        assert guest.post(path, url=URL, client=str(before.client_id), schemes="v1").status_code == 403
    after = read(front_door, WebhookEndpoint, endpoint_id)
    assert (after.disabled_at, after.ended_at) == (None, None)
    assert read(front_door, WebhookDelivery, delivery_id).next_attempt_at is None


def test_each_endpoint_says_how_it_is_answering(front_door: Installation) -> None:
    now = datetime.now(UTC)
    past = now - timedelta(hours=5)
    said = {
        endpoint_of(front_door): ("answering", "fine"),
        endpoint_of(front_door, failing_since=past, failures=7): ("7 times in a row", "failing"),
        endpoint_of(front_door, throttled_until=now + timedelta(hours=1)): ("resting", "failing"),
        endpoint_of(front_door, disabled_at=past, disabled_because="gone: 410"): ("gone: 410", "off"),
    }
    viewer = enter(front_door, Role.VIEWER)
    for endpoint_id, (words, _) in said.items():
        assert words in text_of(viewer.get(f"/webhooks/{endpoint_id}"))
    for state in ("fine", "failing", "off"):
        page = viewer.get(f"/webhooks?state={state}").text
        for endpoint_id, (_, filed) in said.items():
            assert (str(endpoint_id) in page) == (filed == state)


def test_portals_that_take_no_callbacks_are_told_without_where_they_are(front_door: Installation) -> None:
    name, now = f"portal {MARKUP}", datetime.now(UTC)
    client_id = client_of(front_door, name=name)
    with transaction(front_door.engine) as tx:
        tx.add(CallbackReceiver(id=uuid4(), client_id=client_id, failing_since=now, failed_at=now, failures=3))
    page = enter(front_door, Role.VIEWER).get("/webhooks")
    assert name in text_of(page)
    assert "3 times in a row" in text_of(page)
    assert MARKUP not in page.text


def test_switching_off_stops_what_is_on_its_way_and_on_sends_it_again(front_door: Installation) -> None:
    endpoint_id, engineer = endpoint_of(front_door), enter(front_door, Role.ENGINEER)
    delivery_id = message_to(front_door, endpoint_id, next_attempt_at=datetime.now(UTC), last_outcome=None)
    assert engineer.post(f"/webhooks/{endpoint_id}/disable").status_code == 303
    assert "switched off at the dashboard" in text_of(engineer.get(f"/webhooks/{endpoint_id}"))
    assert read(front_door, WebhookDelivery, delivery_id).next_attempt_at is None
    assert engineer.post(f"/webhooks/{endpoint_id}/replay").status_code == 409
    assert engineer.post(f"/webhooks/{endpoint_id}/enable").status_code == 303
    assert read(front_door, WebhookDelivery, delivery_id).next_attempt_at is not None
    done = [(what, detail["endpoint"]) for what, detail in notes(front_door, engineer.person_id)]
    assert done == [("webhook.disabled", str(endpoint_id)), ("webhook.enabled", str(endpoint_id))]


def test_a_ping_leads_to_its_delivery_and_a_second_one_waits(front_door: Installation) -> None:
    endpoint_id, engineer = endpoint_of(front_door), enter(front_door, Role.ENGINEER)
    answer = engineer.post(f"/webhooks/{endpoint_id}/ping")
    assert answer.status_code == 303
    page = engineer.http.get(answer.headers["location"])
    assert "A ping is on its way." in text_of(page)
    assert "on its way" in text_of(page)
    assert engineer.post(f"/webhooks/{endpoint_id}/ping").status_code == 409


def test_a_new_secret_is_shown_once_and_a_leaked_one_signs_no_more(front_door: Installation) -> None:
    endpoint_id, engineer = endpoint_of(front_door), enter(front_door, Role.ENGINEER)
    answer = engineer.post(f"/webhooks/{endpoint_id}/rotate", scheme="v1", overlap_hours="0")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    [secret] = set(WHSEC.findall(answer.text))
    page = engineer.get(f"/webhooks/{endpoint_id}").text
    assert not WHSEC.search(page)
    assert page.count("both sides share a secret") == 1
    assert secret not in front_door.log.read_text()
    assert secret not in str(notes(front_door, engineer.person_id))
    assert engineer.post(f"/webhooks/{endpoint_id}/rotate", scheme="v1", overlap_hours="73").status_code == 422


def test_a_deleted_endpoint_keeps_its_log_and_takes_nothing_any_more(front_door: Installation) -> None:
    endpoint_id, engineer = endpoint_of(front_door), enter(front_door, Role.ENGINEER)
    message_to(front_door, endpoint_id)
    assert engineer.post(f"/webhooks/{endpoint_id}/delete").status_code == 303
    assert str(endpoint_id) not in engineer.get("/webhooks").text
    page = engineer.get(f"/webhooks/{endpoint_id}")
    assert "deleted" in text_of(page)
    assert "HTTP 500" in text_of(page)
    for action in ACTIONS:
        assert engineer.post(f"/webhooks/{endpoint_id}/{action}").status_code == 404


def test_what_failed_since_a_time_is_sent_again_and_nothing_else(front_door: Installation) -> None:
    endpoint_id, engineer, now = endpoint_of(front_door), enter(front_door, Role.ENGINEER), datetime.now(UTC)
    old = message_to(front_door, endpoint_id, created_at=now - timedelta(days=5))
    new = message_to(front_door, endpoint_id)
    fine = message_to(front_door, endpoint_id, delivered_at=now)
    since = (now - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")  # of the controller's zone, which is UTC here
    answer = engineer.post(f"/webhooks/{endpoint_id}/replay", since=since)
    assert answer.headers["location"].endswith("done=replayed")
    waits = {one: read(front_door, WebhookDelivery, one).next_attempt_at is not None for one in (old, new, fine)}
    assert waits == {old: False, new: True, fine: False}
    assert engineer.post(f"/webhooks/{endpoint_id}/replay", since=since).headers["location"].endswith("replayed_none")
    assert engineer.post(f"/webhooks/{endpoint_id}/replay", since="yesterday").status_code == 422


def test_one_message_is_sent_again_and_a_portals_own_is_no_page(front_door: Installation) -> None:
    endpoint_id, engineer = endpoint_of(front_door), enter(front_door, Role.ENGINEER)
    delivery_id = message_to(front_door, endpoint_id, last_outcome="HTTP 500")
    with transaction(front_door.engine) as tx:
        attempt = {"outcome": "retry", "status_code": 500, "error": None, "duration_ms": 31}
        tx.add(WebhookAttempt(delivery_id=delivery_id, at=datetime.now(UTC), **attempt))
    shown = text_of(engineer.get(f"/webhooks/deliveries/{delivery_id}"))
    assert "failed, to be tried again 500 31 ms" in shown
    assert '"id": "7"' in shown
    assert engineer.post(f"/webhooks/deliveries/{delivery_id}/replay").status_code == 303
    assert read(front_door, WebhookDelivery, delivery_id).next_attempt_at is not None
    assert engineer.post(f"/webhooks/deliveries/{delivery_id}/replay").status_code == 409
    assert engineer.get(f"/webhooks/deliveries/{uuid4()}").status_code == 404


def test_markup_in_a_description_and_a_clients_name_is_text(front_door: Installation) -> None:
    endpoint_id, viewer = endpoint_of(front_door, description=MARKUP), enter(front_door, Role.VIEWER)
    for path in ("/webhooks", f"/webhooks/{endpoint_id}"):
        page = viewer.get(path)
        assert MARKUP not in page.text
        assert MARKUP in text_of(page)


def test_the_list_of_endpoints_goes_on_where_the_page_ended(front_door: Installation) -> None:
    made = {str(endpoint_of(front_door)) for _ in range(60)}
    viewer, seen, path = enter(front_door, Role.VIEWER), [], "/webhooks"
    while path:
        page = viewer.get(path).text
        seen += re.findall(r'<td><a href="/admin/webhooks/([0-9a-f-]{36})"', page)
        path = (re.findall(r'href="/admin([^"]*)" rel="next"', page) or [""])[0]
    assert made <= set(seen)
    assert len(seen) == len(set(seen))


_MANY = """
INSERT INTO webhook_deliveries (id, endpoint_id, receiver, event, body, created_at, attempts, next_attempt_at,
  delivered_at, last_outcome)
SELECT gen_random_uuid(), :id, :id, 'erasure_request.completed', '{}', now() - n * interval '1 minute', 1, NULL,
  CASE WHEN n <> 5 THEN now() END, 'HTTP 204'
FROM generate_series(1, 100000) n
"""


def test_a_log_of_a_hundred_thousand_is_read_by_its_index_whatever_is_asked(front_door: Installation) -> None:
    client_id = client_of(front_door)
    busy, quiet = endpoint_of(front_door, client_id=client_id), endpoint_of(front_door, client_id=client_id)
    message_to(front_door, quiet)
    with transaction(front_door.engine) as tx:
        tx.execute(text(_MANY), {"id": busy})
        tx.execute(text("ANALYZE webhook_deliveries"))
    viewer = enter(front_door, Role.VIEWER)
    for endpoint_id, state in (
        (busy, ""),
        (busy, "failed"),
        (busy, "pending"),
        (busy, "delivered"),
        (quiet, "failed"),
        (quiet, ""),
    ):
        took = []
        for _ in range(3):
            begun = time.perf_counter()
            assert viewer.get(f"/webhooks/{endpoint_id}?state={state}").status_code == 200
            took.append(time.perf_counter() - begun)
        assert min(took) < 0.2, (state, took)
        plan = plan_of(front_door, endpoint_id, state or None)
        assert most_read(plan) < 200, plan


def plan_of(house: Installation, endpoint_id: UUID, state: str | None) -> Any:
    """How PostgreSQL reads one page of an endpoint's log, with what it really read."""
    owner = read(house, WebhookEndpoint, endpoint_id).client_id
    seen = Seen(owner, endpoint_id=endpoint_id, state=state, every_client=True)
    asked: list[Any] = []
    event.listen(house.engine, "before_cursor_execute", note := lambda *told: asked.append(told[2:4]))
    with transaction(house.engine) as tx:
        deliveries.page(tx, seen, before=None, limit=51)
        event.remove(house.engine, "before_cursor_execute", note)
        [(statement, parameters)] = asked
        explained = tx.connection().exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        return explained.scalar_one()[0]["Plan"]


def most_read(plan: dict[str, Any]) -> float:
    """Of all nodes the most rows that one looked at, those that it threw away included."""
    thrown = sum(plan.get(name, 0) for name in ("Rows Removed by Filter", "Rows Removed by Index Recheck"))
    here = (plan["Actual Rows"] + thrown) * plan["Actual Loops"]
    return max([here, *(most_read(part) for part in plan.get("Plans", ()))])


def test_pages_ask_as_often_for_many_as_for_one(front_door: Installation) -> None:
    endpoint_id, viewer = endpoint_of(front_door), enter(front_door, Role.VIEWER)
    delivery_id = message_to(front_door, endpoint_id)
    pages = {"/webhooks": 5, f"/webhooks/{endpoint_id}": 6, f"/webhooks/deliveries/{delivery_id}": 4}
    with TestClient(create_app(front_door.settings), headers={"Cookie": f"{COOKIE}={viewer.cookie}"}) as client:
        statements: list[str] = []
        app: Any = client.app
        event.listen(app.state.context.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
        for _ in range(2):
            for path, most in pages.items():
                statements.clear()
                assert client.get(f"/admin{path}").status_code == 200
                assert len(statements) <= most, statements
            for _ in range(9):
                message_to(front_door, endpoint_id, next_attempt_at=datetime.now(UTC))
                endpoint_of(front_door, failing_since=datetime.now(UTC), failures=1)
