"""Thousands of messages for a receiver that hangs, and workers that die: nobody else waits, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from uuid import UUID

import pytest
import redis
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.embedded import Valkey
from app.queue import IO
from app.storage import deliveries, webhooks
from app.storage.sessions import transaction
from app.storage.tables import Client, ErasureRequest, WebhookDelivery
from tests.e2e.conftest import Registered
from tests.faults import kill9, wait_until
from tests.house import Installation
from tests.receivers import Receiver, hang, status

pytestmark = pytest.mark.slow
MANY = 3000
PATIENCE_SECONDS = 60
OK = status(204)


@dataclass
class Scene:
    """A running house, its broker, and two receivers: one that hangs and one that is well."""

    house: Installation
    broker: redis.Redis
    dead: Receiver
    well: Receiver

    def register(self, receiver: Receiver) -> UUID:
        with self.house.client() as client:
            answer = client.post("/v1/webhook-endpoints", json={"url": receiver.url})
        assert answer.status_code == 201, answer.text
        return UUID(answer.json()["id"])

    def erase(self, person: int) -> float:
        """Have somebody forgotten; the seconds that it took."""
        began = time.monotonic()
        request_id = self.house.demand(person)
        assert self.house.wait_until_ended(request_id, 2 * PATIENCE_SECONDS)["status"] == "completed"
        return time.monotonic() - began

    def promise(self, count: int) -> None:
        """So many facts at once, about requests that nobody works on."""
        now = datetime.now(UTC)
        with transaction(self.house.engine) as tx:
            client_id = tx.scalars(select(Client.id).order_by(Client.created_at.desc())).first()
            held = {"client_id": client_id, "status": "on_hold", "received_at": now, "deadline": now}
            rows = [ErasureRequest(**held) for _ in range(count)]
            tx.add_all(rows)
            tx.flush()
            webhooks.promise(tx, [row.id for row in rows], event="erasure_request.completed", at=now)


@pytest.fixture
def scene(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with (
        Valkey(tmp_path_factory.mktemp("broker")) as valkey,
        Receiver(hang) as dead,
        Receiver(OK) as well,
        registered.cloned(
            valkey.url,
            processes=("api", "dispatch", "worker-io", "worker-unlearn"),
            webhook_allow=(ip_network("127.0.0.0/8"),),
        ) as house,
    ):
        yield Scene(house, redis.Redis.from_url(valkey.url), dead, well)


def test_three_thousand_due_for_a_receiver_that_hangs_delay_neither_erasures_nor_others(scene: Scene) -> None:
    undisturbed = scene.erase(6)
    scene.register(scene.dead)
    scene.promise(MANY)
    wait_until(lambda: scene.dead.at_once == deliveries.SLOTS, PATIENCE_SECONDS, "it holds all the slots it may have")
    well = scene.register(scene.well)
    disturbed = scene.erase(7)
    ended = time.monotonic()
    wait_until(lambda: scene.well.received, PATIENCE_SECONDS, "the other receiver is told")
    told = time.monotonic() - ended
    with transaction(scene.house.engine) as tx:
        ours = select(WebhookDelivery.id).where(WebhookDelivery.endpoint_id == well)
        assert scene.well.ids == [str(tx.scalars(ours).one())]
    print(f"erased in {undisturbed:.1f} s before and {disturbed:.1f} s now, told {told:.1f} s later")
    assert disturbed < 2 * undisturbed + 5
    assert told < 10
    assert scene.dead.most_at_once <= deliveries.SLOTS
    assert scene.broker.llen(IO) <= 2 * deliveries.SLOTS  # the queue is no place to wait in
    with Session(scene.house.engine) as tx:  # taken back at the end
        began = time.monotonic()
        deliveries.to_ring(tx, limit=100)
        assert time.monotonic() - began < 0.5
    with transaction(scene.house.engine) as tx:
        waiting = select(func.count()).where(WebhookDelivery.next_attempt_at.is_not(None))
        assert tx.scalar(waiting) == MANY + 1  # the end of this request was promised to the dead one, too


def test_a_worker_killed_in_the_middle_of_an_attempt_has_its_message_sent_again_under_the_same_id(
    scene: Scene,
) -> None:
    scene.register(scene.dead)
    scene.promise(1)
    wait_until(lambda: scene.dead.received, PATIENCE_SECONDS, "the attempt is under way")
    kill9(scene.house.processes["worker-io"])
    scene.dead.answer = OK
    scene.house.start("worker-io")
    time.sleep(1)
    assert len(scene.dead.received) == 1  # its lease runs
    with transaction(scene.house.engine) as tx:
        lease = tx.scalar(select(WebhookDelivery.lease_until))
        assert lease is not None
        assert timedelta(0) < lease - datetime.now(UTC) <= deliveries.LEASE
        tx.execute(text("UPDATE webhook_deliveries SET lease_until = now()"))
    wait_until(lambda: len(scene.dead.received) == 2, PATIENCE_SECONDS, "it is sent again")
    assert len(set(scene.dead.ids)) == 1
    assert len({message.body for message in scene.dead.received}) == 1

    def delivered() -> bool:
        with transaction(scene.house.engine) as tx:
            return tx.scalar(select(WebhookDelivery.delivered_at)) is not None

    wait_until(delivered, PATIENCE_SECONDS, "it counts as delivered")
