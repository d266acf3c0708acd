"""Outbox to queue, at least once: plans what was received, rings for what is due, gives up what died.

PostgreSQL is read, the broker is rung, in that order: a crash between the two costs a repeated ring, never a lost one.
Several copies may run; rows are picked with SKIP LOCKED.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from uuid import UUID

from kombu.exceptions import OperationalError as BrokerDown
from opentelemetry.trace import SpanKind
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from app import logs, planning, queue, tracing, webhooks
from app.errors import ExpungeError, LogStopped, Misconfigured
from app.logs import log
from app.storage import deliveries, jobs, requests, totals
from app.storage.sessions import transaction
from workers import leftovers
from workers.celery_app import celery, settings
from workers.context import Context, context
from workers.scribe import Scribe
from workers.shelf import Shelf

_TICK_SECONDS = 0.2
_RING_LIVES_SECONDS = 60
_TIDY_SECONDS = 300
_REPAIR_SECONDS = 5
_ADD_UP_SECONDS = 5
_STAMP_SECONDS = 10
_AT_ONCE = 100
_COMPLAIN_SECONDS = 60
_complained: dict[tuple[object, ...], float] = {}


def main() -> None:
    """Run until SIGTERM; exit code 1 after a sentence when a setting of the log can't be used."""
    logs.own_process()
    tracing.configure("dispatch", endpoint=settings.otlp_endpoint)
    try:
        scribe = Scribe(context().settings)
    except ExpungeError as error:
        print(f"dispatch can't start: {error}", file=sys.stderr)
        sys.exit(1)
    stop = threading.Event()

    def leave(_: int, __: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    log.info("dispatch started")
    seldom = [
        (_Every(context().settings.pulse_seconds), _pulse),
        (_Every(_TIDY_SECONDS), _tidy),
        (_Every(_REPAIR_SECONDS), _repair),
        (_Every(_ADD_UP_SECONDS), _add_up),
        (_Every(_STAMP_SECONDS), scribe.stamp),
        (_Every(_TIDY_SECONDS), scribe.expire),
    ]
    while not stop.wait(_TICK_SECONDS):
        if not _survive(scribe.sequence, context()):
            continue  # a restored database must not work on: it has forgotten who was forgotten
        for act in (_plan, _give_up, _ring_jobs, _ring_deliveries, *(act for every, act in seldom if every.due())):
            _survive(act, context())


def _survive(act: Callable[[Context], None], ctx: Context) -> bool:
    """A database or a broker that is away is normal weather; the next tick tries again. False: a person must act."""
    try:
        act(ctx)
    except LogStopped as error:
        _complain(log.error, "the public log is stopped", reason=str(error))
        return False
    except Misconfigured as error:  # perhaps the log's name: whoever works on would certify under another
        _complain(log.error, "a setting is wrong", step=act.__name__.strip("_"), reason=str(error))
        return False
    except (ExpungeError, SQLAlchemyError, BrokerDown, RedisError, OSError) as error:
        reason = str(error) if isinstance(error, ExpungeError) else ""  # others could quote anything
        _complain(log.warning, "dispatch waits", step=act.__name__.strip("_"), kind=type(error).__name__, reason=reason)
    return True


def _complain(say: Callable[..., object], what: str, **about: str) -> None:
    """Say it once a minute: a tick comes five times a second, and weather lasts."""
    key = (what, *sorted(about.items()))
    if key not in _complained or time.monotonic() - _complained[key] > _COMPLAIN_SECONDS:
        _complained[key] = time.monotonic()
        say(what, **about)


def _plan(ctx: Context) -> None:
    with transaction(ctx.engine) as tx:
        planned = planning.plan(tx, now=ctx.now(), settings=ctx.settings)
    if planned:
        log.info("planned", count=planned)


def _give_up(ctx: Context) -> None:
    with transaction(ctx.engine) as tx:
        planning.sweep(tx, now=ctx.now(), settings=ctx.settings)


def _tidy(ctx: Context) -> None:
    with transaction(ctx.engine) as tx:
        planning.forget_answers(tx)
        webhooks.tidy(tx, settings=ctx.settings)
    if Shelf(ctx.settings.store_url).is_local:  # we may hold no key to another; workers sweep after every job
        leftovers.sweep(ctx)


def _add_up(ctx: Context) -> None:
    with transaction(ctx.engine) as tx:
        totals.add_up(tx)


def _repair(ctx: Context) -> None:
    with transaction(ctx.engine) as tx:
        planning.repair(tx, now=ctx.now())


def _ring_jobs(ctx: Context) -> None:
    with transaction(ctx.engine) as tx:
        due = jobs.to_ring(tx, max_attempts=ctx.settings.max_attempts, limit=_AT_ONCE)
    for job_id in due:  # marked as rung before it is rung: if we die here, it is rung again in seconds
        with tracing.span("ring", parents=_traces(ctx, job_id), kind=SpanKind.PRODUCER, job=str(job_id)):
            _ring(queue.ERASE, job_id)


def _traces(ctx: Context, job_id: UUID) -> Sequence[str]:
    if not tracing.is_on():
        return ()
    with transaction(ctx.engine) as tx:
        return requests.traceparents(tx, job_id)


def _ring_deliveries(ctx: Context) -> None:
    with transaction(ctx.engine) as tx:
        due = deliveries.to_ring(tx, limit=_AT_ONCE)
    for delivery_id in due:
        _ring(queue.NOTIFY, delivery_id, lives_seconds=deliveries.RING.total_seconds())


def _ring(task: str, row_id: UUID, *, lives_seconds: float = _RING_LIVES_SECONDS) -> None:
    celery.send_task(task, args=[str(row_id)], expires=lives_seconds, ignore_result=True)


def _pulse(ctx: Context) -> None:
    """Ask every queue for a sign of life; it goes the same way as work does."""
    for name in queue.QUEUES:
        celery.send_task(queue.PULSE[name], expires=2 * ctx.settings.pulse_seconds, ignore_result=True)


class _Every:
    """True once per ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def due(self) -> bool:
        """Whether the time has come; if so, it begins anew."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


if __name__ == "__main__":
    main()
