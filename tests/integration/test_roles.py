"""The two database roles: enough to do the work, and not a statement more on the log's tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from expunge_verify import cli as verifier
from sqlalchemy import Engine, make_url, select, text
from sqlalchemy.exc import ProgrammingError

from app.errors import Misconfigured
from app.storage import audit, roles
from app.storage.sessions import connect, transaction
from app.storage.tables import AuditEntry, Table
from tests.faults import wait_until
from tests.house import Installation, installation
from tests.pipeline import Bench, is_published
from tests.services import administering, new_database
from workers.context import Context
from workers.scribe import Scribe

pytestmark = pytest.mark.slow

OF_THE_LOG = ("audit_entries", "audit_evidence", "log_tiles", "log_checkpoints", "log_keys", "timestamps")


def sqlalchemy_url(url: str) -> str:
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


@contextmanager
def accounts_in(url: str) -> Iterator[dict[str, str]]:
    """URLs of accounts in each role, and of one in none."""
    roles.grant(sqlalchemy_url(url))
    names = {role: f"test_{uuid4().hex}" for role in (roles.APP, roles.SEQUENCER, "")}
    with administering(url) as server:
        for role, name in names.items():
            server.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'p' {f'IN ROLE {role}' if role else ''}"))
    try:
        yield {
            role: make_url(url).set(username=name, password="p").render_as_string(hide_password=False)
            for role, name in names.items()
        }
    finally:
        with administering(url) as server:
            for name in names.values():
                server.execute(text(f"DROP ROLE {name}"))


@contextmanager
def engine_as(url: str) -> Iterator[Engine]:
    engine = connect(sqlalchemy_url(url), pool_size=2)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def database(postgres_server: str, template_database: str) -> Iterator[str]:
    """One database for all tests of this file but the last: hardly any of them gets to change something."""
    with new_database(postgres_server, template_database) as url:
        yield url


@pytest.fixture(scope="module")
def accounts(database: str) -> Iterator[dict[str, str]]:
    with accounts_in(database) as made:
        yield made


@pytest.fixture(scope="module")
def bench(database: str, accounts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A log of two entries that was sequenced under the sequencer's account."""
    with installation(tmp_path_factory.mktemp("roles"), database, "", model=False) as house:
        bench = Bench(house)
        bench.demand(3)
        with engine_as(accounts[roles.SEQUENCER]) as engine:
            Scribe(bench.ctx.settings).sequence(Context(bench.ctx.settings, engine))
        yield bench


@pytest.mark.parametrize("role", [roles.APP, roles.SEQUENCER])
@pytest.mark.parametrize(
    "statement",
    [
        *(f"DELETE FROM {table}" for table in (*OF_THE_LOG, "events", "certificates", "suppressions")),
        *(f"TRUNCATE {table} CASCADE" for table in OF_THE_LOG),
        *(f"DROP TABLE {table} CASCADE" for table in OF_THE_LOG),
        *(f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in OF_THE_LOG),
        "UPDATE audit_entries SET type = 'x'",
        "UPDATE audit_entries SET fields = '{}'",
        "UPDATE audit_evidence SET sealed = '\\x00'",
        "UPDATE log_tiles SET level = 3",
        "UPDATE log_checkpoints SET root = '\\x00'",
        "UPDATE log_checkpoints SET note = '\\x00'",
        "UPDATE log_keys SET vkey = 'x'",
        "UPDATE timestamps SET token = '\\x00'",
        "UPDATE events SET type = 'x'",
        "UPDATE certificates SET envelope = '{}'",
        "UPDATE keystore.request_keys SET wrapped = '\\x00'",
        "UPDATE alembic_version SET version_num = '0001'",
        "CREATE TABLE public.mine (id int)",
        "CREATE ROLE mine",
        "SET session_replication_role = replica",
    ],
)
def test_neither_role_may_rewrite_what_was_written(
    bench: Bench, accounts: dict[str, str], role: str, statement: str
) -> None:
    with (
        engine_as(accounts[role]) as engine,
        pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
        engine.begin() as connection,
    ):
        connection.execute(text(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET leaf_index = 7, entry = 'x' WHERE leaf_index IS NULL",
        "INSERT INTO audit_entries (type, at, fields, entry, leaf_index) VALUES ('x', now(), '{}', 'x', 2)",
        "INSERT INTO audit_entries (type, at, fields, leaf_index) VALUES ('x', now(), '{}', 2)",
        "INSERT INTO audit_evidence (entry_id, sealed) VALUES (1, 'x')",
        "INSERT INTO log_tiles VALUES (0, 9, 'x')",
        "UPDATE log_tiles SET hashes = hashes || hashes",
        "INSERT INTO log_checkpoints (size, root, note, signed_at) VALUES (9, 'x', 'x', now())",
        "UPDATE log_checkpoints SET published = 'x'",
        "INSERT INTO log_keys VALUES ('x', now(), 0)",
        "INSERT INTO timestamps VALUES ('x', 'x', now())",
    ],
)
def test_what_serves_and_works_may_not_even_continue_the_log(
    bench: Bench, accounts: dict[str, str], statement: str
) -> None:
    with (
        engine_as(accounts[roles.APP]) as engine,
        pytest.raises(ProgrammingError, match="permission denied"),
        engine.begin() as connection,
    ):
        connection.execute(text(statement))


def test_the_outbox_takes_an_entry_from_the_app_and_a_place_from_the_sequencer_once(
    bench: Bench, accounts: dict[str, str]
) -> None:
    with engine_as(accounts[roles.APP]) as engine, transaction(engine) as tx:
        audit.enter(tx, "config.changed", at=bench.now())
    with engine_as(accounts[roles.SEQUENCER]) as engine:
        assert Scribe(bench.ctx.settings)._sequencer.turn(engine, now=bench.now()) == 1
    with engine_as(accounts[roles.APP]) as engine, transaction(engine) as tx:
        assert list(tx.scalars(select(AuditEntry.leaf_index).order_by(AuditEntry.id))) == [1, 0, 2]


def test_an_account_without_a_role_sees_nothing(bench: Bench, accounts: dict[str, str]) -> None:
    with engine_as(accounts[""]) as engine:
        for table in Table.metadata.tables.values():
            with pytest.raises(ProgrammingError, match="permission denied"), engine.begin() as connection:
                connection.execute(select(table))


def test_granting_again_changes_nothing_and_takes_back_what_is_too_much(
    database: str, accounts: dict[str, str]
) -> None:
    def rights() -> list[tuple[object, ...]]:
        with administering(database) as server:
            tables = server.execute(
                text(
                    "SELECT n.nspname || '.' || c.relname AS place, c.relacl::text,"
                    " (SELECT array_agg(a.attname || a.attacl::text ORDER BY a.attname) FROM pg_attribute a"
                    "  WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL)"
                    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                    " WHERE n.nspname IN ('public', 'keystore') AND c.relkind = 'r' ORDER BY place"
                )
            )
            return [tuple(row) for row in tables]

    before = rights()
    assert all(row[1] and roles.APP in str(row) for row in before), "every table is somebody's business"
    with administering(database) as server:
        server.execute(text(f"GRANT ALL ON audit_entries, events TO {roles.APP}"))
        server.execute(text(f"GRANT DELETE ON log_tiles TO {roles.SEQUENCER}"))
    assert rights() != before
    roles.grant(sqlalchemy_url(database))
    assert rights() == before


def test_an_account_that_may_not_make_roles_is_told_what_it_needs(
    database: str, tmp_path: Path, accounts: dict[str, str]
) -> None:
    with pytest.raises(Misconfigured, match="CREATEROLE"):
        roles.grant(sqlalchemy_url(accounts[roles.APP]))
    with installation(tmp_path, database, "", model=False) as house:
        done = house.cli("migrate", "--roles")
        assert (done.returncode, roles.SEQUENCER in done.stdout) == (0, True), done.stderr
        house.environment["DATABASE_URL"] = accounts[roles.APP]
        refused = house.cli("migrate", "--roles")
        assert refused.returncode == 1
        assert "CREATEROLE" in " ".join(refused.stderr.split())
        assert "Traceback" not in refused.stderr


def run_as(house: Installation, name: str, url: str) -> None:
    house.environment["DATABASE_URL"] = url
    house.start(name)


def test_a_whole_house_erases_and_publishes_under_the_two_roles(
    database_url: str, valkey_server: str, tmp_path: Path
) -> None:
    with (
        accounts_in(database_url) as accounts,
        installation(tmp_path, database_url, valkey_server, model=False) as house,
    ):
        house.environment["DATABASE_URL"] = accounts[roles.APP]
        house.register()
        run_as(house, "dispatch", accounts[roles.SEQUENCER])
        for name in ("api", "worker-io", "worker-unlearn"):
            run_as(house, name, accounts[roles.APP])
        house.wait_for_api()
        assert house.wait_until_ended(house.demand(3))["status"] == "completed"

        wait_until(lambda: is_published(house.engine), 20, "the log is published")
        with transaction(house.engine) as tx:
            vkey = audit.known_keys(tx)[0].vkey
            connected = set(
                tx.scalars(text("SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = current_database()"))
            )
        assert {str(make_url(accounts[role]).username) for role in (roles.APP, roles.SEQUENCER)} <= connected
        assert verifier.main(["requests", f"http://127.0.0.1:{house.port}/log", "--vkey", vkey]) == 0
        told = house.cli("doctor").stdout
        assert "ok   schema: up to date" in told
        assert "ok   public log" in told
        assert house.cli("models", "rollback", "toy", "--to", "1").returncode == 0
    assert "permission denied" not in house.log.read_text()
