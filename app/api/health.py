"""Health: live (the process answers) and ready (requests are accepted; is anybody working on them?)."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter

from app import queue
from app.api.context import CurrentSettings, Now, Transaction
from app.api.problems import answers
from app.api.schemas import health as schemas
from app.errors import Misconfigured, Unavailable
from app.settings import Settings
from app.storage import audit, jobs, keys, migrate, requests

router = APIRouter(tags=["health"])
_PULSES_MISSED = 4
_LOG_WAITS_SECONDS = 30.0


@router.head("/livez", include_in_schema=False)
@router.head("/health/live", include_in_schema=False)
@router.get("/livez")
@router.get("/health/live")
def live() -> schemas.Live:
    """Answer while the process runs; asks nobody."""
    return schemas.Live()


@router.head("/readyz", include_in_schema=False)
@router.head("/health/ready", include_in_schema=False)
@router.get("/readyz", responses=answers(503))
@router.get("/health/ready", responses=answers(503))
def ready(tx: Transaction, now: Now, settings: CurrentSettings) -> schemas.Ready:
    """Answer 200 while requests are accepted (PostgreSQL is enough), and whether workers listen; else 503 and why."""
    _need_what_intake_needs(tx, settings)
    heard = jobs.listening(tx, within=timedelta(seconds=_PULSES_MISSED * settings.pulse_seconds))
    queues = {name: heard.get(name, False) for name in queue.QUEUES}
    oldest, waits = requests.oldest_open(tx), audit.waiting_since(tx)
    log_waits = (now - waits).total_seconds() if waits else None
    return schemas.Ready(
        accepting=True,
        working=all(queues.values()) and (log_waits or 0.0) < _LOG_WAITS_SECONDS,
        queues=queues,
        oldest_open_seconds=(now - oldest).total_seconds() if oldest else None,
        log_waits_seconds=log_waits,
    )


def _need_what_intake_needs(tx: Transaction, settings: Settings) -> None:
    """Look at what would make a create fail.

    Raises:
        Unavailable: Says what, and what to do.
    """
    behind = migrate.behind(tx)
    if behind:
        raise Unavailable(f"the database is at schema {behind[0]} and needs {behind[1]}: run `expunge migrate`")
    if not migrate.is_writable(tx):
        raise Unavailable("the database takes no writes: it is a standby, or set to read-only")
    try:
        keys.check_secrets(tx, settings)
    except Misconfigured as error:
        raise Unavailable(str(error)) from error
