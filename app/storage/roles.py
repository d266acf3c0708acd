"""Two roles in PostgreSQL: what serves and works can only add to the public log's outbox; dispatch alone sequences.

Group roles without a login: `CREATE ROLE api LOGIN PASSWORD '…' IN ROLE expunge_app` makes an account. The owner of the
tables, who migrates them and replays after a restore, stays who it is. Whoever has the owner's or a superuser's
account can still rewrite the tables: that is what witnesses are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from psycopg.errors import InsufficientPrivilege
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from app.errors import Misconfigured
from app.storage.sessions import connect, transaction
from app.storage.tables import Table

APP: Final = "expunge_app"
SEQUENCER: Final = "expunge_sequencer"

_USUAL = "SELECT, INSERT, UPDATE"
_APP: Final = {
    "public.alembic_version": "SELECT",
    "public.events": "SELECT, INSERT",
    "public.certificates": "SELECT, INSERT",
    "public.decisions": "SELECT, INSERT, UPDATE (notified_at)",
    "public.suppressions": "SELECT, INSERT",
    "public.idempotency_keys": f"{_USUAL}, DELETE",
    "public.intake_counts": f"{_USUAL}, DELETE",
    "public.measurements": "SELECT, INSERT",
    "public.totals": "SELECT",
    "public.internal_log": "SELECT, INSERT",
    "public.browser_sessions": f"{_USUAL}, DELETE",
    "public.sign_in_failures": f"{_USUAL}, DELETE",
    "public.postings": f"{_USUAL}, DELETE",
    "public.webhook_secrets": f"{_USUAL}, DELETE",
    "public.webhook_attempts": "SELECT, INSERT",
    "public.targets": f"{_USUAL}, DELETE",  # a held request leaves its jobs
    "keystore.request_keys": "SELECT, INSERT, DELETE",
    # Only these columns: who may choose a place, too, could take the next one and stop the log.
    "public.audit_entries": "SELECT, INSERT (type, at, request_id, job_id, fields)",
    "public.audit_evidence": "SELECT",
    "public.log_tiles": "SELECT",
    "public.log_checkpoints": "SELECT",
    "public.log_keys": "SELECT",
    "public.timestamps": "SELECT",
}
"""What differs from the usual, for API and workers."""
_SEQUENCER: Final = {
    "public.audit_entries": "UPDATE (entry, leaf_index)",
    "public.audit_evidence": "INSERT",
    "public.log_tiles": "INSERT, UPDATE (hashes)",
    "public.log_checkpoints": "INSERT, UPDATE (published, published_at)",
    "public.log_keys": "INSERT",
    "public.timestamps": "INSERT",
    "public.measurements": "DELETE",
    "public.webhook_deliveries": "DELETE",
    "public.webhook_endpoints": "DELETE",
    "public.callback_receivers": "DELETE",
    "public.totals": "INSERT, UPDATE (times, value)",
}
"""What dispatch may besides."""
_REFUSED = (
    f"the account in DATABASE_URL may not make the roles {APP} and {SEQUENCER}: it must own the tables and have "
    "CREATEROLE while `expunge migrate --roles` runs; nothing was changed"
)


def grant(url: str) -> None:
    """Make the two roles and give them what they need and no more, in one transaction; may be repeated.

    To be repeated after every migration that makes a table.

    Args:
        url: A SQLAlchemy URL, of an account that owns the tables.

    Raises:
        Misconfigured: The account may not create or grant roles.
    """
    engine = connect(url, pool_size=1)
    try:
        with transaction(engine) as tx:
            _need_owner(tx)
            _make(tx)
            for statement in _grants(str(tx.scalar(text("SELECT quote_ident(current_database())")))):
                tx.execute(text(statement))
    except ProgrammingError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            raise Misconfigured(_REFUSED) from None
        raise
    finally:
        engine.dispose()


def _need_owner(tx: Session) -> None:
    """PostgreSQL only warns when somebody grants what is not theirs, and we would report success."""
    foreign = text(
        "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname IN ('public', 'keystore') AND c.relkind = 'r' AND NOT pg_has_role(c.relowner, 'USAGE')"
    )
    if tx.scalar(foreign):
        raise Misconfigured(_REFUSED)


def _make(tx: Session) -> None:
    """Create what is missing; an account without CREATEROLE may grant to what is there."""
    known = set(tx.scalars(text("SELECT rolname FROM pg_roles WHERE rolname LIKE 'expunge%'")))
    for role in (APP, SEQUENCER):
        if role not in known:
            tx.execute(text(f"CREATE ROLE {role} NOLOGIN"))
    if not tx.scalar(text(f"SELECT pg_has_role('{SEQUENCER}', '{APP}', 'MEMBER')")):
        tx.execute(text(f"GRANT {APP} TO {SEQUENCER}"))


def _grants(database: str) -> Iterator[str]:
    """First nothing, so that a right that a role no longer needs goes."""
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA public, keystore FROM {APP}, {SEQUENCER}"
    yield f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {APP}"  # manifests are read through temporary tables
    yield f"GRANT USAGE ON SCHEMA public, keystore TO {APP}"
    usual = {f"{table.schema or 'public'}.{table.name}": _USUAL for table in Table.metadata.tables.values()}
    for table, rights in {**usual, **_APP}.items():
        yield f"GRANT {rights} ON {table} TO {APP}"
    for table, rights in _SEQUENCER.items():
        yield f"GRANT {rights} ON {table} TO {SEQUENCER}"
