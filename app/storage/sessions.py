"""Engine and transactions: one use case is one transaction, and nothing answers before COMMIT."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from psycopg import Error as DriverError
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from app.errors import Unavailable

_TRUSTED_SECONDS: Final = 1.0
"""A connection that was used so lately is not asked whether it lives: that costs a round trip, as much as a COMMIT."""
_USED: Final = "used"
Asked = tuple[LiteralString, Mapping[str, object]]
"""A statement of the driver's own dialect with its parameters."""
Rows = list[tuple[Any, ...]]  # Any: columns of several types


def connect(url: str, *, pool_size: int = 10) -> Engine:
    """An engine for ``url``; a connection that has rested is checked before use: PostgreSQL may have been restarted."""
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=5,
        hide_parameters=True,  # statements in exceptions must not show what they carried
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 10,  # a peer that vanished is noticed in seconds, not hours
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
            "options": "-c timezone=UTC -c lock_timeout=30s -c idle_in_transaction_session_timeout=60s",
        },
    )

    def ask(connection: DBAPIConnection, entry: ConnectionPoolEntry, _: object) -> None:
        if time.monotonic() - entry.info.get(_USED, time.monotonic()) < _TRUSTED_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error  # the others are as old: the pool connects anew

    def note(_: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        entry.info[_USED] = time.monotonic()

    event.listen(engine, "checkout", ask)
    event.listen(engine, "checkin", note)
    return engine


@contextmanager
def snapshot(engine: Engine) -> Iterator[Session]:
    """A session that reads, for as long as it takes, what was true when it began.

    Raises:
        Unavailable: As in :func:`transaction`.
    """
    with transaction(engine) as tx:
        tx.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        yield tx


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A session that commits at the end of the block or leaves nothing.

    Raises:
        Unavailable: PostgreSQL can't be reached or went away; nothing was written, unless the
            connection broke during COMMIT itself, which the caller's repeat will find out.
    """
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session
    except (OperationalError, PoolTimeout) as error:
        raise Unavailable("the database can't be reached; nothing was accepted, send it again") from error
    except DriverError as error:
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
            raise Unavailable("the database went away; send it again") from error
        raise
    except DBAPIError as error:
        # InternalError: a standby that takes no writes; InterfaceError: a connection that is no more
        if error.connection_invalidated or isinstance(error, InternalError | InterfaceError):
            raise Unavailable("the database went away; send it again") from error
        raise


def fetch(tx: Session, statement: LiteralString, parameters: Mapping[str, object]) -> Rows:
    """Run a statement of the driver's own dialect in this transaction, past SQLAlchemy: 60 µs instead of 200.

    For what many creates at once need; everything else is written as usual.
    """
    return fetch_all(tx, (statement, parameters))[0]


def fetch_all(tx: Session, *asked: Asked) -> list[Rows]:
    """Run statements as :func:`fetch` does, all in one round trip, with the BEGIN before them if they are the first."""
    connection = tx.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    try:
        if len(asked) == 1 and connection.info.transaction_status == TransactionStatus.INTRANS:
            return [connection.execute(*asked[0]).fetchall()]
        with connection.pipeline():
            cursors = [connection.execute(*one) for one in asked]
        return [cursor.fetchall() for cursor in cursors]
    except DriverError:
        if connection.closed:
            tx.invalidate()  # or the pool would lend it to the next
            tx.get_bind().engine.dispose()  # its others are as old
        raise


def array(values: Iterable[UUID | bytes | str | None]) -> str:
    """An array as PostgreSQL reads it; the driver's own way of writing lists costs 3 µs an element, this one 0.3."""
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: UUID | bytes | str | None) -> str:
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    if isinstance(value, UUID):
        return value.hex
    if value is None:
        return "NULL"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
