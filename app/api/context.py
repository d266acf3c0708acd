"""What a route may touch: settings, the clock, and one transaction that commits before the answer leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.settings import Settings
from app.storage.sessions import transaction


@dataclass(frozen=True)
class Context:
    """Built once per process, kept in the application's state."""

    settings: Settings
    engine: Engine


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _settings(context: Annotated[Context, Depends(_context)]) -> Settings:
    return context.settings


def _transaction(context: Annotated[Context, Depends(_context)]) -> Iterator[Session]:
    with transaction(context.engine) as tx:
        yield tx


def _now() -> datetime:
    return datetime.now(UTC)


async def _body(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_body)]
"""As it came, for dialects that sign it or that no schema of ours describes."""
CurrentContext = Annotated[Context, Depends(_context)]
CurrentSettings = Annotated[Settings, Depends(_settings)]
Now = Annotated[datetime, Depends(_now)]
# scope="function": COMMIT happens before the response is sent. With FastAPI's default scope the client would read
# 202 first, and a COMMIT that then fails would be a lie on the wire.
Transaction = Annotated[Session, Depends(_transaction, scope="function")]
