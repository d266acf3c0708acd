"""Driving the pipeline by hand in one process: plan, take the jobs that are due, run them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from rich.progress import Progress
from sqlalchemy import Engine, select, text

from app import intake, keymaking, planning
from app.audit.sequencer import Sequencer, as_signed
from app.domain.lifecycle import JOB_OPEN
from app.storage import audit, jobs, requests, versions
from app.storage.sessions import transaction
from app.storage.tables import Client, ErasureRequest, Event, Job, ModelVersion
from tests import toy
from tests.house import Installation
from workers import erase, recipes, step
from workers import register as registration
from workers.context import Context
from workers.registry import Store
from workers.scribe import Scribe


class Bench:
    """One installation without running processes; a thread gives the log's entries their places, as dispatch does."""

    def __init__(self, house: Installation) -> None:
        self.house = house
        self.ctx = Context(settings=house.settings.model_copy(update={"coalesce_seconds": 0.0}), engine=house.engine)

    @contextmanager
    def sequencing(self) -> Iterator[None]:
        """Let the log take entries for the time of a block."""
        over = threading.Event()

        def sequence() -> None:
            scribe = Scribe(self.ctx.settings)
            while not over.wait(0.05):
                scribe.sequence(self.ctx)

        thread = threading.Thread(target=sequence, name="sequencer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def trust_log(self) -> None:
        """A cloned database comes without its guard: take its last checkpoint for the last that was signed."""
        shutil.rmtree(self.ctx.settings.log_path, ignore_errors=True)
        with transaction(self.ctx.engine) as tx:
            head = audit.head(tx)
            if head is not None:
                Sequencer.of(self.ctx.settings, as_signed).guard.swap(None, head.note)

    def is_published(self) -> bool:
        """Whether the log shows everything that was entered."""
        return is_published(self.ctx.engine)

    def fail(self, job_id: UUID) -> None:
        """Give a job up, as after its last attempt."""
        with transaction(self.ctx.engine) as tx:
            planning.give_up(tx, jobs.get(tx, job_id), now=self.now(), reason="a drill")

    def demand(
        self, person: int, *, at: datetime | None = None, reference: str | None = None, models: list[str] | None = None
    ) -> UUID:
        """Accept a request for one person of the toy model."""
        with transaction(self.ctx.engine) as tx:
            client = tx.scalars(select(Client.id)).first() or keymaking.operator(tx)
            accepted = intake.accept(
                tx,
                intake.Demand(user_id=toy.user_id(person), reference=reference, models=models),
                client_id=client,
                idempotency_key=None,
                now=at or self.now(),
                settings=self.ctx.settings,
            )
            return accepted.request.id

    def now(self) -> datetime:
        return datetime.now(UTC)

    def plan(self) -> list[UUID]:
        """Plan what was received; returns the open jobs, oldest first."""
        with transaction(self.ctx.engine) as tx:
            planning.plan(tx, now=self.now(), settings=self.ctx.settings)
        with transaction(self.ctx.engine) as tx:
            return list(tx.scalars(select(Job.id).where(Job.status.in_(JOB_OPEN)).order_by(Job.created_at)))

    def run_all(self) -> None:
        """Plan and run until no job is open."""
        for job_id in self.plan():
            erase.run(self.ctx, job_id)

    def expire_leases(self) -> None:
        """Let the time of every lease and every backoff be over."""
        with transaction(self.ctx.engine) as tx:
            tx.execute(text("UPDATE jobs SET lease_until = now() - interval '1 s' WHERE lease_until IS NOT NULL"))
            tx.execute(text("UPDATE jobs SET not_before = now() - interval '1 s'"))

    def request(self, request_id: UUID) -> ErasureRequest:
        with transaction(self.ctx.engine) as tx:
            return requests.get(tx, request_id)

    def job(self, job_id: UUID) -> Job:
        with transaction(self.ctx.engine) as tx:
            return tx.get_one(Job, job_id)

    def live(self) -> ModelVersion:
        """The live version of the toy model."""
        with transaction(self.ctx.engine) as tx:
            version_id = versions.model(tx, "toy").current_version_id
            assert version_id is not None
            return versions.version(tx, version_id)

    def model_of(self, job_id: UUID) -> str:
        with transaction(self.ctx.engine) as tx:
            return jobs.model_of(tx, tx.get_one(Job, job_id)).name

    def undone(self) -> list[str]:
        """Models whose live version lacks a deletion."""
        with transaction(self.ctx.engine) as tx:
            return [model.name for model in versions.live(tx, None) if versions.undone(tx, model)]

    def live_weights(self) -> Any:
        return Store(self.ctx.settings.store_url).get(self.live().weights)["weight"]

    def retrained(self, *, without: Sequence[int]) -> Any:
        """What training from scratch without these people gives, on paper."""
        return toy.solved(i for p in range(toy.MEMBERS) if p not in without for i in toy.samples_of(p))

    def trail(self) -> list[tuple[str, str]]:
        """Every event: (which request or job, what), in order."""
        with transaction(self.ctx.engine) as tx:
            rows = tx.execute(select(Event.request_id, Event.job_id, Event.type).order_by(Event.id)).all()
        return [("request" if row.request_id else "job" if row.job_id else "model", row.type) for row in rows]

    def certificate(self, request_id: UUID) -> dict[str, Any]:
        with transaction(self.ctx.engine) as tx:
            return requests.certificates(tx, request_id)[0].envelope


def in_this_process(name: str, order: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Carry out a torch order here: the same code as in the child, without seconds of imports.

    The process around it has tests of its own (test_torch_step.py and everything under tests/e2e).
    """
    answer = json.loads(json.dumps(step.ORDERS[name](json.loads(json.dumps(order)), lambda _: None)))
    assert isinstance(answer, dict)
    return answer


def register(
    bench: Bench, name: str = "toy", *, recipe: str = toy.REFERENCE, unlearn: bool = False, **model: Any
) -> None:
    """Register the toy model in this process, as `expunge models register` does in its own."""
    owner = recipes.resolve(recipe)
    weights, manifest = toy.write_model(bench.house.directory, recipe_of=owner, **model)
    with Progress(disable=True) as bars:
        registration.register(
            bench.ctx, name=name, recipe=recipe, weights=weights, manifest=manifest, unlearn=unlearn, bars=bars
        )


def is_published(engine: Engine) -> bool:
    """Whether the log shows everything that was entered."""
    with transaction(engine) as tx:
        head = audit.head(tx)
        return audit.waiting_since(tx) is None and head is not None and head.published is not None
