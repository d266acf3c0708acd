"""A portal is told the end of its request: signed, again after a failure, never where it must not go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text
from standardwebhooks import Webhook

from tests.e2e.conftest import Grounds
from tests.faults import wait_until

pytestmark = pytest.mark.slow
PATIENCE_SECONDS = 30


@pytest.fixture(autouse=True)
def _whole(grounds: Grounds) -> Iterator[None]:
    grounds.everything_runs()
    grounds.listener.answers.clear()
    yield
    grounds.listener.answers.clear()


@contextmanager
def endpoint(grounds: Grounds, url: str = "") -> Iterator[dict[str, Any]]:
    """Register the listener (or another URL); the portal ends it afterwards."""
    with grounds.house.client() as client:
        created = client.post("/v1/webhook-endpoints", json={"url": url or grounds.listener.url})
        assert created.status_code == 201, created.text
        try:
            yield created.json()
        finally:
            client.delete(f"/v1/webhook-endpoints/{created.json()['id']}")


def delivery_log(grounds: Grounds, request_id: UUID) -> list[dict[str, Any]]:
    with grounds.house.client() as client:
        answer = client.get("/v1/webhook-deliveries", params={"request_id": str(request_id)})
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def settled(grounds: Grounds, request_id: UUID) -> dict[str, Any]:
    """The request's one delivery, once nothing more will be attempted."""
    wait_until(
        lambda: [d["next_attempt_at"] for d in delivery_log(grounds, request_id)] == [None],
        PATIENCE_SECONDS,
        "the delivery is settled",
        every_seconds=0.2,
    )
    return delivery_log(grounds, request_id)[0]


def attempted(grounds: Grounds, request_id: UUID, times: int) -> dict[str, Any]:
    """The request's one delivery after so many attempts."""
    wait_until(
        lambda: [d["attempts"] for d in delivery_log(grounds, request_id)] == [times],
        PATIENCE_SECONDS,
        f"{times} attempts were made",
        every_seconds=0.2,
    )
    return delivery_log(grounds, request_id)[0]


def try_again_now(grounds: Grounds) -> None:
    """The published schedule waits for minutes; let them be over."""
    with grounds.house.engine.begin() as connection:
        connection.execute(text("UPDATE webhook_deliveries SET next_attempt_at = now() WHERE next_attempt_at > now()"))


def test_the_end_of_a_request_is_told_once_and_signed(grounds: Grounds) -> None:
    with endpoint(grounds) as registered:
        request_id, nobody = grounds.demand(), grounds.demand_of_nobody()
        assert grounds.house.wait_until_ended(request_id)["status"] == "completed"
        deliveries = {i: settled(grounds, i) for i in (request_id, nobody)}
    for about, status in ((request_id, "completed"), (nobody, "no_data")):
        [message] = grounds.listener.about(about)
        payload = Webhook(registered["secret"]).verify(message.body, message.headers)
        assert payload["type"] == f"erasure_request.{status}"
        assert payload["data"].keys() == {"id", "status", "sequence", "checkpoint"}
        assert payload["data"]["checkpoint"].startswith(f"{grounds.house.settings.log_origin}\n")  # a small witness
        assert (payload["data"]["id"], payload["data"]["status"]) == (str(about), status)
        assert message.id == deliveries[about]["id"]
        assert (deliveries[about]["attempts"], deliveries[about]["last_outcome"]) == (1, "status 204")
        assert deliveries[about]["delivered_at"] is not None


def test_what_failed_is_sent_again_under_the_same_id(grounds: Grounds) -> None:
    grounds.listener.answers[:] = [500, 503]
    with endpoint(grounds) as registered:
        request_id = grounds.demand_of_nobody()
        for times, status in ((1, 500), (2, 503)):
            failed = attempted(grounds, request_id, times)
            assert (failed["last_outcome"], failed["delivered_at"]) == (f"status {status}", None)
            assert failed["next_attempt_at"] is not None
            try_again_now(grounds)
        delivery = settled(grounds, request_id)
    assert (delivery["attempts"], delivery["last_outcome"]) == (3, "status 204")
    messages = grounds.listener.about(request_id)
    assert len(messages) == 3
    assert {message.id for message in messages} == {delivery["id"]}
    assert len({message.body for message in messages}) == 1
    for message in messages:
        Webhook(registered["secret"]).verify(message.body, message.headers)
    assert grounds.house.show(request_id)["status"] == "no_data"


def test_a_receiver_that_answers_gone_is_left_alone(grounds: Grounds) -> None:
    grounds.listener.answers[:] = [410]
    with endpoint(grounds) as registered:
        first = grounds.demand_of_nobody()
        assert settled(grounds, first)["delivered_at"] is None
        with grounds.house.client() as client:
            shown = client.get("/v1/webhook-endpoints").json()["items"]
        [ours] = [item for item in shown if item["id"] == registered["id"]]
        assert ours["disabled_at"] is not None
        assert "410" in ours["disabled_because"]
        second = grounds.demand_of_nobody()
        assert grounds.house.wait_until_ended(second)["status"] == "no_data"
    assert delivery_log(grounds, second) == []
    assert len(grounds.listener.about(first)) == 1
    assert grounds.house.show(first)["status"] == "no_data"


@pytest.mark.parametrize(
    "url",
    [
        "https://10.0.0.1/hook",
        "http://127.0.0.1:9/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/hook",
        "http://portal.example/hook",
    ],
)
def test_an_endpoint_on_an_address_that_is_not_allowed_is_refused_at_once(grounds: Grounds, url: str) -> None:
    count = select(func.count()).select_from(text("webhook_endpoints"))
    before = grounds.rows(count)
    with grounds.house.client() as client:
        refused = client.post("/v1/webhook-endpoints", json={"url": url})
    assert refused.status_code == 422
    assert url not in refused.text
    assert grounds.rows(count) == before


def test_a_name_that_leads_inside_is_refused_when_sending_and_waits_as_one_that_is_unknown(grounds: Grounds) -> None:
    """Only 127.0.0.2 is allowed; `localhost` looks like any name at registration and turns out to be 127.0.0.1."""
    with endpoint(grounds, f"https://localhost:{grounds.listener.port}/hook"):
        request_id = grounds.demand_of_nobody()
        delivery = attempted(grounds, request_id, 1)
    assert delivery["delivered_at"] is None
    assert delivery["last_outcome"] == "address refused or unknown"
    assert grounds.listener.about(request_id) == []
    ended = grounds.house.show(request_id)
    assert (ended["status"], ended["reason"]) == ("no_data", "no model of the request was trained on the person")
