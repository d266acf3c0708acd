"""Webhook endpoints, secrets and the delivery log over HTTP: what an owner can do, and that it is only the owner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import func, insert, select, update

from app import decisions, keymaking, webhooks
from app.api.auth import Scope
from app.domain import webhook
from app.storage import webhooks as stored
from app.storage.sessions import transaction
from app.storage.tables import ApiKey, Client, WebhookDelivery, WebhookEndpoint, WebhookSecret
from tests.house import Installation

pytestmark = pytest.mark.slow
PATH = "/v1/webhook-endpoints"
URL = "https://portal.example/hooks/7?key=SECRET"
NOBODY = UUID(int=0)


def caller(house: Installation, *scopes: Scope, name: str = "") -> httpx.Client:
    """A new client with a key of its own."""
    with transaction(house.engine) as tx:
        _, key = keymaking.create(tx, name=name or uuid4().hex, scopes=list(scopes))
    return httpx.Client(
        base_url=f"http://127.0.0.1:{house.port}", headers={"Authorization": f"Bearer {key}"}, timeout=30
    )


@pytest.fixture
def portal(front_door: Installation) -> Iterator[httpx.Client]:
    """A portal without endpoints yet."""
    scopes = (Scope.WEBHOOKS_WRITE, Scope.REQUESTS_WRITE, Scope.REQUESTS_READ)
    with caller(front_door, *scopes) as client:
        yield client


def made(portal: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = portal.post(PATH, json={"url": URL, **body})
    assert answer.status_code == 201, answer.text
    endpoint: dict[str, Any] = answer.json()
    return endpoint


def demand_and_cancel(portal: httpx.Client) -> str:
    request_id: str = portal.post("/v1/erasure-requests", json={"user_id": uuid4().hex}).json()["id"]
    assert portal.post(f"/v1/erasure-requests/{request_id}:cancel").status_code == 200
    return request_id


def log(portal: httpx.Client, **query: Any) -> dict[str, Any]:
    answer = portal.get("/v1/webhook-deliveries", params=query)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def settle(house: Installation, endpoint_id: str, *, delivered: bool) -> None:
    """Let everything that is promised to an endpoint be over."""
    with transaction(house.engine) as tx:
        theirs = WebhookDelivery.endpoint_id == UUID(endpoint_id)
        over = {"next_attempt_at": None, "attempts": 10, "delivered_at": datetime.now(UTC) if delivered else None}
        tx.execute(update(WebhookDelivery).where(theirs, WebhookDelivery.next_attempt_at.is_not(None)).values(over))


# --- endpoints ------------------------------------------------------------------------------------------------------


def test_an_endpoint_is_shown_without_its_secrets_and_without_its_path(portal: httpx.Client) -> None:
    created = made(portal, events=["erasure_request.on_hold", "erasure_request.completed"], description="billing")
    assert created["secret"].startswith("whsec_")
    assert created["public_key"] is None
    shown = portal.get(f"{PATH}/{created['id']}").json()
    assert shown == {name: value for name, value in created.items() if name not in {"secret", "public_key"}}
    assert (shown["host"], shown["description"], shown["every_client"]) == ("portal.example", "billing", False)
    assert shown["events"] == ["erasure_request.on_hold", "erasure_request.completed"]
    assert [item["id"] for item in portal.get(PATH).json()["items"]] == [created["id"]]
    for answer in (portal.get(PATH), portal.get(f"{PATH}/{created['id']}")):
        assert created["secret"] not in answer.text
        assert "SECRET" not in answer.text


@pytest.mark.parametrize("events", [["erasure_request.finished"], ["ping"], [], ["erasure_request.completed", "x"]])
def test_an_unknown_event_is_refused_with_the_list_of_those_there_are(portal: httpx.Client, events: list[str]) -> None:
    refused = portal.post(PATH, json={"url": URL, "events": events})
    assert refused.status_code == 422
    [problem] = refused.json()["errors"]
    assert problem["field"] == "events"
    assert all(event in problem["problem"] for event in webhook.EVENTS)
    assert "finished" not in refused.text
    endpoint = made(portal)
    assert portal.patch(f"{PATH}/{endpoint['id']}", json={"events": events}).status_code == 422


def test_every_status_of_a_request_and_two_things_more_can_be_heard_of(portal: httpx.Client) -> None:
    assert made(portal, events=list(webhook.EVENTS))["events"] == list(webhook.EVENTS)
    names = ("awaiting_identity", "pending", "on_hold", "rejected", "partially_completed", "deadline_extended")
    assert {f"erasure_request.{name}" for name in names} <= set(webhook.EVENTS)


def test_what_a_change_leaves_out_stays_and_null_takes_back(portal: httpx.Client) -> None:
    endpoint = made(portal, events=["erasure_request.completed"], description="billing")
    path = f"{PATH}/{endpoint['id']}"
    moved = portal.patch(path, json={"url": "https://other.example/"}).json()
    assert (moved["host"], moved["events"], moved["description"]) == (
        "other.example",
        ["erasure_request.completed"],
        "billing",
    )
    emptied = portal.patch(path, json={"events": None, "description": None}).json()
    assert (emptied["host"], emptied["events"], emptied["description"]) == ("other.example", None, None)


@pytest.mark.parametrize("body", [{"url": "http://portal.example/"}, {"url": "https://10.0.0.1/"}, {"activ": True}])
def test_a_change_is_held_to_the_rules_of_a_new_endpoint(portal: httpx.Client, body: dict[str, Any]) -> None:
    endpoint = made(portal)
    assert portal.patch(f"{PATH}/{endpoint['id']}", json=body).status_code == 422
    assert portal.get(f"{PATH}/{endpoint['id']}").json()["host"] == "portal.example"


def test_an_ended_endpoint_is_gone_with_its_secrets_but_its_log_stays(
    front_door: Installation, portal: httpx.Client
) -> None:
    endpoint = made(portal)
    request_id = demand_and_cancel(portal)
    assert portal.delete(f"{PATH}/{endpoint['id']}").status_code == 204
    assert portal.get(f"{PATH}/{endpoint['id']}").status_code == 404
    assert portal.get(PATH).json()["items"] == []
    [delivery] = log(portal, request_id=request_id)["items"]
    assert (delivery["state"], delivery["next_attempt_at"]) == ("failed", None)
    assert portal.post(f"/v1/webhook-deliveries/{delivery['id']}:replay").status_code == 404
    with transaction(front_door.engine) as tx:
        assert not tx.scalars(select(WebhookSecret.id).where(WebhookSecret.endpoint_id == UUID(endpoint["id"]))).all()


def test_an_endpoint_that_is_switched_off_hears_nothing_and_takes_up_what_it_missed_before(
    portal: httpx.Client,
) -> None:
    endpoint = made(portal)
    path = f"{PATH}/{endpoint['id']}"
    before = demand_and_cancel(portal)
    off = portal.patch(path, json={"active": False}).json()
    assert off["disabled_because"] == "switched off by its owner"
    meanwhile = demand_and_cancel(portal)
    assert [item["state"] for item in log(portal, request_id=before)["items"]] == ["failed"]
    on = portal.patch(path, json={"active": True}).json()
    assert (on["disabled_at"], on["resumed"]) == (None, 1)
    assert [item["state"] for item in log(portal, request_id=before)["items"]] == ["pending"]
    assert log(portal, request_id=meanwhile)["items"] == []
    assert portal.patch(path, json={"active": True}).json()["resumed"] == 0


def test_what_is_older_than_two_weeks_is_not_taken_up(front_door: Installation, portal: httpx.Client) -> None:
    endpoint = made(portal)
    demand_and_cancel(portal)
    portal.patch(f"{PATH}/{endpoint['id']}", json={"active": False})
    with transaction(front_door.engine) as tx:
        old = {"created_at": datetime.now(UTC) - timedelta(days=15)}
        theirs = WebhookDelivery.endpoint_id == UUID(endpoint["id"])
        tx.execute(update(WebhookDelivery).where(theirs).values(old))
    assert portal.patch(f"{PATH}/{endpoint['id']}", json={"active": True}).json()["resumed"] == 0


def test_a_client_has_so_many_endpoints_and_no_more(portal: httpx.Client) -> None:
    for _ in range(webhooks.MOST_ENDPOINTS):
        made(portal)
    assert portal.post(PATH, json={"url": URL}).status_code == 409


def test_another_clients_endpoints_secrets_and_deliveries_are_as_good_as_none(
    front_door: Installation, portal: httpx.Client
) -> None:
    endpoint = made(portal)
    request_id = demand_and_cancel(portal)
    [delivery] = log(portal, request_id=request_id)["items"]
    secret = endpoint["secrets"][0]["id"]
    with caller(front_door, *Scope) as other:
        path, deliveries = f"{PATH}/{endpoint['id']}", f"/v1/webhook-deliveries/{delivery['id']}"
        answers = [
            other.get(path),
            other.patch(path, json={"active": False}),
            other.delete(path),
            other.post(f"{path}:ping"),
            other.post(f"{path}:replay", json={}),
            other.post(f"{path}/secrets:rotate", json={}),
            other.delete(f"{path}/secrets/{secret}"),
            other.get(deliveries),
            other.post(f"{deliveries}:replay"),
        ]
        absent = other.get(f"{PATH}/{NOBODY}")
        assert [answer.status_code for answer in answers] == [404] * len(answers)
        assert answers[0].json() == absent.json()
        assert log(other, request_id=request_id)["items"] == []
        assert log(other, endpoint_id=endpoint["id"])["items"] == []
    assert portal.get(path).json()["disabled_at"] is None


def test_a_client_hears_of_its_own_requests_and_an_office_of_all(
    front_door: Installation, portal: httpx.Client
) -> None:
    ours = made(portal)
    with (
        caller(front_door, Scope.WEBHOOKS_WRITE) as stranger,
        caller(front_door, Scope.WEBHOOKS_WRITE, Scope.REQUESTS_DECIDE) as office,
    ):
        made(stranger)
        made(office, url="https://quiet.example/")  # it may hear of everybody, and does not ask to
        theirs = made(office, every_client=True)
        assert (ours["every_client"], theirs["every_client"]) == (False, True)
        request_id = demand_and_cancel(portal)
        assert [item["endpoint_id"] for item in log(portal, request_id=request_id)["items"]] == [ours["id"]]
        assert [item["endpoint_id"] for item in log(office, request_id=request_id)["items"]] == [theirs["id"]]
        assert log(stranger)["items"] == []
        office.delete(f"{PATH}/{theirs['id']}")


def keys_of_one_client(house: Installation, *scopes: tuple[Scope, ...]) -> list[httpx.Client]:
    """Several keys of a new client."""
    with transaction(house.engine) as tx:
        first, key = keymaking.create(tx, name=uuid4().hex, scopes=list(scopes[0]))
        keys = [key] + [
            keymaking.create(tx, name=uuid4().hex, scopes=list(more), client_id=first.client_id)[1]
            for more in scopes[1:]
        ]
    base = f"http://127.0.0.1:{house.port}"
    return [httpx.Client(base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=30) for key in keys]


@pytest.mark.parametrize("scope", [Scope.REQUESTS_READ_ALL, Scope.REQUESTS_DECIDE])
@pytest.mark.parametrize("how", ["revoked_at", "expires_at"])
def test_an_endpoint_hears_of_everybody_only_while_its_client_may(
    front_door: Installation, portal: httpx.Client, scope: Scope, how: str
) -> None:
    [office] = keys_of_one_client(front_door, (Scope.WEBHOOKS_WRITE, Scope.REQUESTS_WRITE, scope))
    endpoint = made(office, every_client=True)
    with transaction(front_door.engine) as tx:
        owner = tx.get_one(WebhookEndpoint, UUID(endpoint["id"])).client_id
    assert told_to(front_door, endpoint, demand_and_cancel(portal)) == 1
    own = office.post("/v1/erasure-requests", json={"user_id": uuid4().hex}).json()["id"]
    with transaction(front_door.engine) as tx:
        tx.execute(update(ApiKey).where(ApiKey.client_id == owner).values({how: datetime.now(UTC)}))
    assert told_to(front_door, endpoint, demand_and_cancel(portal)) == 0
    with transaction(front_door.engine) as tx:
        tx.execute(update(Client).where(Client.id == owner).values(token_scopes=[scope], oidc_subject=uuid4().hex))
    assert told_to(front_door, endpoint, demand_and_cancel(portal)) == 1
    with transaction(front_door.engine) as tx:
        tx.execute(update(Client).where(Client.id == owner).values(token_scopes=[Scope.REQUESTS_READ]))
        decisions.cancel(tx, UUID(own), by=owner, now=datetime.now(UTC), settings=front_door.settings)
    assert told_to(front_door, endpoint, own) == 1  # its own client's


def told_to(house: Installation, endpoint: dict[str, Any], request_id: str) -> int:
    """How many messages about a request were promised to an endpoint."""
    with transaction(house.engine) as tx:
        mine = (WebhookDelivery.endpoint_id == UUID(endpoint["id"])) & (WebhookDelivery.request_id == UUID(request_id))
        return tx.scalar(select(func.count()).select_from(WebhookDelivery).where(mine)) or 0


def test_hearing_of_everybody_is_asked_for_and_needs_the_right(portal: httpx.Client) -> None:
    refused = portal.post(PATH, json={"url": URL, "every_client": True})
    assert refused.status_code == 403
    assert "every_client" in refused.json()["detail"]
    assert "requests:read_all" in refused.json()["detail"]


def test_an_endpoint_that_hears_of_everybody_is_hidden_from_who_may_not_and_the_rest_works(
    front_door: Installation, portal: httpx.Client
) -> None:
    office, small = keys_of_one_client(
        front_door, (Scope.WEBHOOKS_WRITE, Scope.REQUESTS_READ_ALL), (Scope.WEBHOOKS_WRITE, Scope.REQUESTS_WRITE)
    )
    hidden = made(office, every_client=True)
    request_id = demand_and_cancel(portal)
    [delivery] = log(office, request_id=request_id)["items"]
    path, deliveries = f"{PATH}/{hidden['id']}", f"/v1/webhook-deliveries/{delivery['id']}"
    answers = [
        small.get(path),
        small.patch(path, json={"url": "https://elsewhere.example/"}),
        small.delete(path),
        small.post(f"{path}:ping"),
        small.post(f"{path}:replay", json={}),
        small.post(f"{path}/secrets:rotate", json={}),
        small.delete(f"{path}/secrets/{hidden['secrets'][0]['id']}"),
        small.get(deliveries),
        small.post(f"{deliveries}:replay"),
    ]
    assert [answer.status_code for answer in answers] == [404] * len(answers)
    assert small.get(PATH).json()["items"] == log(small)["items"] == []
    own = made(small)
    demand_and_cancel(small)
    assert {item["endpoint_id"] for item in log(small)["items"]} == {own["id"]}
    assert small.post(f"{PATH}/{own['id']}:ping").status_code == 202
    assert office.delete(path).status_code == 204
    assert log(small, endpoint_id=hidden["id"])["items"] == []
    assert small.get(PATH).json()["items"][0]["id"] == own["id"]
    assert len(log(office, request_id=request_id)["items"]) == 1


def test_twenty_at_once_make_no_more_endpoints_than_one_by_one(front_door: Installation, portal: httpx.Client) -> None:
    for _ in range(webhooks.MOST_ENDPOINTS - 2):
        made(portal)
    with ThreadPoolExecutor(20) as crowd:
        codes = list(crowd.map(lambda _: portal.post(PATH, json={"url": URL}).status_code, range(20)))
    assert sorted(codes) == [201] * 2 + [409] * 18


def test_ended_endpoints_are_bounded_until_they_are_forgotten(front_door: Installation, portal: httpx.Client) -> None:
    endpoint = made(portal)
    with transaction(front_door.engine) as tx:
        owner = tx.get_one(WebhookEndpoint, UUID(endpoint["id"])).client_id
        old = {"client_id": owner, "url": URL, "ended_at": datetime.now(UTC) - timedelta(days=2)}
        tx.execute(insert(WebhookEndpoint), [{"id": uuid4(), **old} for _ in range(webhooks.MOST_ENDED)])
    assert portal.post(PATH, json={"url": URL}).status_code == 409
    with transaction(front_door.engine) as tx:
        webhooks.tidy(tx, settings=front_door.settings)
    made(portal)


def test_another_path_on_the_same_host_does_not_end_a_rest_and_another_host_does(
    front_door: Installation, portal: httpx.Client
) -> None:
    endpoint = made(portal)
    path, rests = f"{PATH}/{endpoint['id']}", datetime.now(UTC) + timedelta(minutes=1)
    failing = {"failures": 2, "failing_since": rests, "failed_at": rests, "throttled_until": rests}
    with transaction(front_door.engine) as tx:
        tx.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == UUID(endpoint["id"])).values(failing))
    for url in ("https://portal.example/?a", "https://PORTAL.example:444/?b"):
        same = portal.patch(path, json={"url": url}).json()
        assert (same["failures"], same["throttled_until"] is None) == (2, False)
    other = portal.patch(path, json={"url": "https://other.example/"}).json()
    assert (other["failures"], other["throttled_until"]) == (0, None)


def test_an_endpoint_is_read_while_somebody_changes_it(front_door: Installation, portal: httpx.Client) -> None:
    endpoint = made(portal)
    with transaction(front_door.engine) as tx:
        stored.need_held(
            tx, UUID(endpoint["id"]), client_id=tx.get_one(WebhookEndpoint, UUID(endpoint["id"])).client_id
        )
        assert portal.get(f"{PATH}/{endpoint['id']}", timeout=3).status_code == 200


# --- what is told ---------------------------------------------------------------------------------------------------


def bodies(house: Installation, request_id: str) -> list[dict[str, Any]]:
    with transaction(house.engine) as tx:
        query = select(WebhookDelivery).where(WebhookDelivery.request_id == UUID(request_id))
        found = tx.scalars(query.order_by(WebhookDelivery.number)).all()
        return [{"event": delivery.event, **json.loads(delivery.body)} for delivery in found]


def test_an_endpoint_hears_of_what_it_asked_for_and_of_nothing_else(
    front_door: Installation, portal: httpx.Client
) -> None:
    made(portal, events=["erasure_request.on_hold"])
    assert bodies(front_door, demand_and_cancel(portal)) == []
    made(portal, events=["erasure_request.cancelled"])
    [told] = bodies(front_door, demand_and_cancel(portal))
    assert told["type"] == told["event"] == "erasure_request.cancelled"


def test_an_endpoint_that_does_not_say_hears_of_outcomes(front_door: Installation, portal: httpx.Client) -> None:
    made(portal)
    with caller(front_door, *Scope) as office:
        request_id = portal.post("/v1/erasure-requests", json={"user_id": uuid4().hex}).json()["id"]
        until = (datetime.now(UTC) + timedelta(days=9)).isoformat()
        path = f"/v1/erasure-requests/{request_id}"
        assert office.post(f"{path}:hold", json={"ground": "legal_hold", "until": until}).status_code == 200
    assert bodies(front_door, request_id) == []
    portal.post(f"{path}:cancel")
    assert [told["status"] for told in (b["data"] for b in bodies(front_door, request_id))] == ["cancelled"]


def test_decisions_are_told_in_order_with_a_growing_sequence_and_no_word_about_the_person(
    front_door: Installation, portal: httpx.Client
) -> None:
    made(portal, events=list(webhook.EVENTS))
    user_id = f"canary-{uuid4().hex}"
    with caller(front_door, *Scope) as office:
        request_id = portal.post("/v1/erasure-requests", json={"user_id": user_id}).json()["id"]
        path = f"/v1/erasure-requests/{request_id}"
        until = (datetime.now(UTC) + timedelta(days=9)).isoformat()
        steps = [
            (":hold", {"ground": "legal_hold", "until": until, "explanation": f"about {user_id}"}),
            (":release", {}),
            (":extend", {"further_months": 2, "reason": "complexity"}),
            (":refuse", {"ground": "art17_3_e_legal_claims", "explanation": f"{user_id} owes us"}),
        ]
        for step, body in steps:
            answer = office.post(path + step, json=body)
            assert answer.status_code == 200, answer.text
    told = bodies(front_door, request_id)
    assert [message["type"].removeprefix("erasure_request.") for message in told] == [
        "on_hold",
        "received",
        "deadline_extended",
        "rejected",
    ]
    sequences = [message["data"]["sequence"] for message in told]
    assert sequences == sorted(set(sequences))
    assert all(message["data"].keys() == {"id", "status", "sequence", "checkpoint"} for message in told)
    assert user_id not in str(told)


# --- secrets --------------------------------------------------------------------------------------------------------


def live(house: Installation, endpoint_id: str) -> list[WebhookSecret]:
    with transaction(house.engine) as tx:
        query = select(WebhookSecret).where(WebhookSecret.endpoint_id == UUID(endpoint_id))
        return list(tx.scalars(query.order_by(WebhookSecret.created_at)).all())


def test_a_secret_is_rotated_with_an_overlap(front_door: Installation, portal: httpx.Client) -> None:
    endpoint = made(portal)
    new = portal.post(f"{PATH}/{endpoint['id']}/secrets:rotate", json={"overlap_hours": 48})
    assert new.status_code == 201
    assert new.json()["secret"].startswith("whsec_")
    assert new.json()["secret"] != endpoint["secret"]
    newest, older = portal.get(f"{PATH}/{endpoint['id']}").json()["secrets"]
    assert (newest["id"], newest["expires_at"]) == (new.json()["id"], None)
    ends = datetime.fromisoformat(older["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=47.9) < ends < timedelta(hours=48)


def test_a_leaked_secret_signs_no_more_at_once(front_door: Installation, portal: httpx.Client) -> None:
    endpoint = made(portal)
    new = portal.post(f"{PATH}/{endpoint['id']}/secrets:rotate", json={"overlap_hours": 0}).json()
    assert [one["id"] for one in portal.get(f"{PATH}/{endpoint['id']}").json()["secrets"]] == [new["id"]]


@pytest.mark.parametrize("hours", [-1, 72.1, 1000])
def test_secrets_overlap_for_three_days_at_most(portal: httpx.Client, hours: float) -> None:
    endpoint = made(portal)
    refused = portal.post(f"{PATH}/{endpoint['id']}/secrets:rotate", json={"overlap_hours": hours})
    assert refused.status_code == 422


def test_secrets_do_not_pile_up(portal: httpx.Client) -> None:
    path = f"{PATH}/{made(portal)['id']}/secrets:rotate"
    codes = [portal.post(path, json={}).status_code for _ in range(webhooks.MOST_SECRETS)]
    assert codes == [201] * (webhooks.MOST_SECRETS - 1) + [409]
    assert portal.post(path, json={"overlap_hours": 0}).status_code == 201


def test_of_a_key_pair_the_public_half_is_shown_and_the_private_never(
    front_door: Installation, portal: httpx.Client
) -> None:
    both = made(portal, schemes=["v1", "v1a"])
    assert both["secret"].startswith("whsec_")
    assert both["public_key"].startswith("whpk_")
    alone = made(portal, schemes=["v1a"])
    assert (alone["secret"], alone["public_key"][:5]) == (None, "whpk_")
    added = portal.post(f"{PATH}/{made(portal)['id']}/secrets:rotate", json={"scheme": "v1a"})
    assert (added.json()["secret"], added.json()["public"][:5]) == (None, "whpk_")
    for answer in (portal.get(PATH), added):
        assert "whsk_" not in answer.text
        assert "sealed" not in answer.text
    for row in live(front_door, both["id"]):
        assert b"wh" not in bytes(row.sealed)


def test_one_scheme_can_be_given_up_and_the_last_secret_not(portal: httpx.Client) -> None:
    endpoint = made(portal, schemes=["v1", "v1a"])
    first, second = (one["id"] for one in endpoint["secrets"])
    path = f"{PATH}/{endpoint['id']}/secrets"
    assert portal.delete(f"{path}/{first}").status_code == 204
    assert portal.delete(f"{path}/{second}").status_code == 409
    assert portal.delete(f"{path}/{first}").status_code == 404


# --- the log and replays --------------------------------------------------------------------------------------------


def test_the_log_is_read_by_endpoint_request_event_and_state_in_pages(
    front_door: Installation, portal: httpx.Client
) -> None:
    one, two = made(portal), made(portal, events=["erasure_request.cancelled"])
    requests = [demand_and_cancel(portal) for _ in range(3)]
    settle(front_door, one["id"], delivered=True)
    everything = log(portal)["items"]
    assert everything[0]["request_id"] == requests[-1]
    assert len(everything) == 6
    assert {d["endpoint_id"] for d in log(portal, endpoint_id=one["id"])["items"]} == {one["id"]}
    assert len(log(portal, request_id=requests[0])["items"]) == 2
    assert {d["endpoint_id"] for d in log(portal, state="pending")["items"]} == {two["id"]}
    assert len(log(portal, state="delivered", event="erasure_request.cancelled")["items"]) == 3
    assert log(portal, state="failed")["items"] == log(portal, event="erasure_request.completed")["items"] == []
    pages, cursor = [], None
    while True:
        page = log(portal, limit=4, **({"cursor": cursor} if cursor else {}))
        pages.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [len(page) for page in pages] == [4, 2]
    assert [d for page in pages for d in page] == everything


@pytest.mark.parametrize("query", [{"event": "ping.pong"}, {"state": "lost"}, {"cursor": "x"}, {"limit": 0}])
def test_a_filter_that_is_no_filter_is_refused(portal: httpx.Client, query: dict[str, Any]) -> None:
    refused = portal.get("/v1/webhook-deliveries", params=query)
    assert refused.status_code == 422
    assert "pong" not in refused.text


def test_one_delivery_is_replayed_under_its_id(front_door: Installation, portal: httpx.Client) -> None:
    endpoint = made(portal)
    demand_and_cancel(portal)
    [delivery] = log(portal)["items"]
    path = f"/v1/webhook-deliveries/{delivery['id']}"
    assert portal.post(f"{path}:replay").status_code == 409  # it is on its way
    settle(front_door, endpoint["id"], delivered=True)
    again = portal.post(f"{path}:replay")
    assert again.status_code == 202
    assert (again.json()["id"], again.json()["state"], again.json()["attempts"]) == (delivery["id"], "pending", 0)


def test_a_range_is_replayed_in_order_and_in_pieces(front_door: Installation, portal: httpx.Client) -> None:
    endpoint = made(portal)
    requests = [demand_and_cancel(portal) for _ in range(5)]
    path = f"{PATH}/{endpoint['id']}:replay"
    settle(front_door, endpoint["id"], delivered=False)
    first = portal.post(path, json={"limit": 3}).json()
    assert first["replayed"] == 3
    assert {d["request_id"] for d in log(portal, state="pending")["items"]} == set(requests[:3])
    rest = portal.post(path, json={"cursor": first["next_cursor"]}).json()
    assert rest == {"replayed": 2, "next_cursor": None}
    settle(front_door, endpoint["id"], delivered=True)
    assert portal.post(path, json={}).json()["replayed"] == 0
    assert portal.post(path, json={"state": "delivered", "until": "2020-01-01T00:00:00Z"}).json()["replayed"] == 0
    now = datetime.now(UTC)
    span = {"since": (now - timedelta(minutes=5)).isoformat(), "until": (now + timedelta(minutes=1)).isoformat()}
    assert portal.post(path, json={"state": "delivered", **span}).json()["replayed"] == 5


@pytest.mark.parametrize("body", [{"state": "pending"}, {"limit": 1001}, {"cursor": "c4"}, {"since": "yesterday"}])
def test_a_range_that_cannot_be_replayed_is_refused(portal: httpx.Client, body: dict[str, Any]) -> None:
    assert portal.post(f"{PATH}/{made(portal)['id']}:replay", json=body).status_code == 422


def test_nothing_is_replayed_to_a_disabled_endpoint(front_door: Installation, portal: httpx.Client) -> None:
    endpoint = made(portal)
    demand_and_cancel(portal)
    portal.patch(f"{PATH}/{endpoint['id']}", json={"active": False})
    [delivery] = log(portal)["items"]
    assert portal.post(f"/v1/webhook-deliveries/{delivery['id']}:replay").status_code == 409
    assert portal.post(f"{PATH}/{endpoint['id']}:replay", json={}).status_code == 409


def test_a_ping_is_a_delivery_without_a_request_and_one_at_a_time(
    front_door: Installation, portal: httpx.Client
) -> None:
    endpoint = made(portal)
    sent = portal.post(f"{PATH}/{endpoint['id']}:ping")
    assert sent.status_code == 202
    assert (sent.json()["event"], sent.json()["request_id"], sent.json()["state"]) == ("ping", None, "pending")
    assert portal.get(sent.headers["Location"]).json()["id"] == sent.json()["id"]
    assert portal.post(f"{PATH}/{endpoint['id']}:ping").status_code == 409
    settle(front_door, endpoint["id"], delivered=True)
    assert portal.post(f"{PATH}/{endpoint['id']}:replay", json={"state": "delivered"}).json()["replayed"] == 0
    assert portal.post(f"{PATH}/{endpoint['id']}:ping").status_code == 202
