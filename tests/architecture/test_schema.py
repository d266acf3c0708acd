"""The tables in code are the tables that the migrations make."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.util.exc import CommandError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from app.storage import migrate

pytestmark = pytest.mark.slow


@pytest.fixture
def url(database_url: str) -> str:
    return database_url.replace("postgresql://", "postgresql+psycopg://", 1)


def test_a_migrated_database_has_the_tables_of_the_code(url: str) -> None:
    migrate.compare(url)


@pytest.mark.parametrize(
    "drift",
    [
        "ALTER TABLE jobs DROP COLUMN progress",
        "ALTER TABLE jobs ADD COLUMN note text",
        "ALTER TABLE jobs ALTER COLUMN fence TYPE integer",
        "DROP INDEX ix_jobs_one_collecting_per_model",
        "ALTER TABLE suppressions ALTER COLUMN since DROP NOT NULL",
    ],
)
def test_a_table_that_drifted_is_noticed(url: str, drift: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(drift))
    engine.dispose()
    with pytest.raises(CommandError):
        migrate.compare(url)


def test_migrating_twice_changes_nothing(url: str) -> None:
    migrate.upgrade(url)
    migrate.compare(url)


def test_the_database_itself_refuses_to_keep_a_closed_requests_person(url: str) -> None:
    engine = create_engine(url)
    closed = "INSERT INTO erasure_requests (id, ref, status, received_at, deadline, closed_at, subject_key) VALUES "
    values = "(gen_random_uuid(), 'r', 'completed', now(), now(), now(), gen_random_uuid())"
    with pytest.raises(IntegrityError, match="ended_means_forgotten"), engine.begin() as connection:
        connection.execute(text(closed + values))
    engine.dispose()


def test_every_migration_can_be_taken_back_and_made_again(url: str) -> None:
    command.downgrade(migrate.config(url), "base")
    engine = create_engine(url)
    with engine.connect() as connection:
        left = connection.execute(text("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"))
        assert left.scalar_one() == 2  # alembic's own table and its key
    engine.dispose()
    migrate.upgrade(url)
    migrate.compare(url)
