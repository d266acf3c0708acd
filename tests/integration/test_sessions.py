"""Connections that die while nobody looks, and statements that go together."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from psycopg.errors import NotNullViolation
from sqlalchemy import Engine, text

from app.errors import Unavailable
from app.storage.sessions import connect, fetch_all, transaction

pytestmark = pytest.mark.slow


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url, pool_size=3)
    yield engine
    engine.dispose()


def end_all(database_url: str) -> None:
    """As a restart of PostgreSQL does, to all connections but our own."""
    other = connect(database_url, pool_size=1)
    with transaction(other) as tx:
        tx.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    other.dispose()


def use(engine: Engine) -> None:
    with transaction(engine) as tx:
        assert fetch_all(tx, ("SELECT 1", {})) == [[(1,)]]


def use_three_at_once(engine: Engine) -> None:
    with transaction(engine) as a, transaction(engine) as b, transaction(engine) as c:
        for tx in (a, b, c):
            fetch_all(tx, ("SELECT 1", {}))


def test_a_connection_that_died_while_it_rested_is_noticed_by_nobody(engine: Engine, database_url: str) -> None:
    use_three_at_once(engine)
    end_all(database_url)
    time.sleep(1.1)
    use(engine)


def test_of_connections_that_died_just_now_one_caller_is_told_and_the_next_is_served(
    engine: Engine, database_url: str
) -> None:
    use_three_at_once(engine)
    end_all(database_url)
    with pytest.raises(Unavailable):
        use(engine)
    use_three_at_once(engine)


def test_statements_that_go_together_are_answered_in_their_order(engine: Engine) -> None:
    numbers = "SELECT n FROM generate_series(1, CAST(%(n)s AS int)) AS g(n)"
    with transaction(engine) as tx:
        assert fetch_all(tx, ("SELECT 'first'", {}), (numbers, {"n": 2})) == [[("first",)], [(1,), (2,)]]


def test_statements_that_go_together_belong_to_the_transaction(engine: Engine) -> None:
    insert = "INSERT INTO key_checks (name, fingerprint) VALUES (%(name)s, 'x') RETURNING name"
    with pytest.raises(NotNullViolation), transaction(engine) as tx:
        fetch_all(tx, (insert, {"name": "probe"}), (insert, {"name": None}))
    with transaction(engine) as tx:
        assert fetch_all(tx, ("SELECT name FROM key_checks", {})) == [[]]
