"""What pipeline steps may touch, built once per process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from sqlalchemy import Engine

from app.settings import Settings, load
from app.storage import keys
from app.storage.sessions import connect, transaction


@dataclass(frozen=True)
class Context:
    """Settings and the database; the clock is a method so that tests can hold another."""

    settings: Settings
    engine: Engine

    def now(self) -> datetime:
        """The current time, with its zone."""
        return datetime.now(UTC)


@cache
def context() -> Context:
    """This process's context."""
    settings = load()
    engine = connect(settings.sqlalchemy_url(), pool_size=8)
    with transaction(engine) as tx:
        keys.check_secrets(tx, settings)
    return Context(settings=settings, engine=engine)
