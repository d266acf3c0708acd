"""Celery shells: a name and one call; the id is all they are told."""

from __future__ import annotations

from uuid import UUID

from app import queue
from app.storage import jobs
from app.storage.sessions import transaction
from workers import erase as pipeline
from workers import notify as webhooks
from workers.celery_app import celery
from workers.context import context


@celery.task(name=queue.ERASE)
def erase(job_id: str) -> None:
    """Run the pipeline of one job."""
    pipeline.run(context(), UUID(job_id))


@celery.task(name=queue.NOTIFY)
def notify(delivery_id: str) -> None:
    """Attempt one webhook delivery."""
    webhooks.deliver(context(), UUID(delivery_id))


@celery.task(name=queue.PULSE[queue.UNLEARN])
def pulse_unlearn() -> None:
    """Write down that this queue is heard."""
    _hear(queue.UNLEARN)


@celery.task(name=queue.PULSE[queue.IO])
def pulse_io() -> None:
    """Write down that this queue is heard."""
    _hear(queue.IO)


def _hear(name: str) -> None:
    with transaction(context().engine) as tx:
        jobs.hear(tx, name)
