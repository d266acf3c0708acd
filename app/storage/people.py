"""People who sign in at the dashboard: their rows, their browsers, their failures, and what they did there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.storage.tables import BrowserSession, InternalEntry, Person, SignInFailure

_REMEMBERED: Final = timedelta(days=1)
_SEEN_AGAIN: Final = timedelta(minutes=1)


def add(tx: Session, person: Person) -> Person:
    """Store somebody new."""
    tx.add(person)
    tx.flush()
    return person


def reserve(tx: Session, login: str) -> None:
    """Let nobody else take a login that is nobody's until the transaction ends."""
    tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(login, 7215006))))


def every(tx: Session) -> Sequence[Person]:
    """Everybody, in order of their logins."""
    return tx.scalars(select(Person).order_by(Person.login)).all()


def by_login(tx: Session, login: str) -> Person | None:
    """The person of this login, locked; it is in its normal form."""
    return tx.scalar(select(Person).where(Person.login == login).with_for_update())


def by_subject(tx: Session, subject: str) -> Person | None:
    """The person whom the identity provider knows by this subject, locked."""
    return tx.scalar(select(Person).where(Person.oidc_subject == subject).with_for_update())


def locked(tx: Session, person_id: UUID) -> Person:
    """One person, held until the transaction ends.

    Raises:
        NotFound: There is none.
    """
    found = tx.get(Person, person_id, with_for_update=True, populate_existing=True)
    if found is None:
        raise NotFound("there is no person with this id")
    return found


def with_role(tx: Session, role: str) -> Sequence[UUID]:
    """Who has a role and may sign in, locked, so that two can't take it from each other at once."""
    held = select(Person.id).where(func.array_position(Person.roles, role).is_not(None), Person.disabled_at.is_(None))
    return tx.scalars(held.order_by(Person.id).with_for_update()).all()


def open_session(tx: Session, *, digest: bytes, person_id: UUID, now: datetime) -> None:
    """Store a browser in which somebody has signed in."""
    tx.add(BrowserSession(digest=digest, person_id=person_id, created_at=now, seen_at=now))


def visitor(tx: Session, digest: bytes, *, seen_since: datetime, begun_since: datetime) -> Person | None:
    """Whose browser this is, if it was not left alone for too long and may still come in."""
    return tx.scalar(
        select(Person)
        .join(BrowserSession, BrowserSession.person_id == Person.id)
        .where(
            BrowserSession.digest == digest,
            BrowserSession.seen_at > seen_since,
            BrowserSession.created_at > begun_since,
            Person.disabled_at.is_(None),
        )
    )


def note_seen(tx: Session, digest: bytes, *, now: datetime) -> None:
    """Write down that somebody is there, once a minute at most."""
    stale = (BrowserSession.digest == digest) & (BrowserSession.seen_at < now - _SEEN_AGAIN)
    tx.execute(update(BrowserSession).where(stale).values(seen_at=now))


def close_session(tx: Session, digest: bytes) -> None:
    """End one browser's session."""
    tx.execute(delete(BrowserSession).where(BrowserSession.digest == digest))


def close_sessions(tx: Session, person_id: UUID) -> int:
    """End all sessions of a person; returns how many there were."""
    ended = delete(BrowserSession).where(BrowserSession.person_id == person_id).returning(BrowserSession.digest)
    return len(tx.scalars(ended).all())


def close_other_sessions(tx: Session, person_id: UUID, *, but: bytes) -> int:
    """End all sessions of a person but one; returns how many there were."""
    others = delete(BrowserSession).where(BrowserSession.person_id == person_id, BrowserSession.digest != but)
    return len(tx.scalars(others.returning(BrowserSession.digest)).all())


def expire_sessions(tx: Session, *, seen_since: datetime, begun_since: datetime) -> None:
    """Forget browsers that may not come in any more."""
    over = (BrowserSession.seen_at <= seen_since) | (BrowserSession.created_at <= begun_since)
    tx.execute(delete(BrowserSession).where(over))


def sessions(tx: Session) -> dict[UUID, tuple[int, datetime]]:
    """Of everybody who has some: how many browsers, and when one was last seen."""
    counted = select(BrowserSession.person_id, func.count(), func.max(BrowserSession.seen_at))
    return {row[0]: (row[1], row[2]) for row in tx.execute(counted.group_by(BrowserSession.person_id))}


def failures(tx: Session, login_digest: bytes) -> tuple[int, datetime] | None:
    """How often a login failed lately, and when last; held, so that guesses at one login come one after the other.

    One statement: between an insert and a select, another sign-in of this login may succeed and take the row away.
    """
    first = insert(SignInFailure).values(login_digest=login_digest, failures=0, failed_at=func.now())
    held = first.on_conflict_do_update(
        index_elements=[SignInFailure.login_digest], set_={"failures": SignInFailure.failures}
    )
    count, last = tx.execute(held.returning(SignInFailure.failures, SignInFailure.failed_at)).one()
    return (count, last) if count else None


def note_failure(tx: Session, login_digest: bytes, *, now: datetime) -> None:
    """Count one more, and forget those of yesterday."""
    tx.execute(
        update(SignInFailure)
        .where(SignInFailure.login_digest == login_digest)
        .values(failures=SignInFailure.failures + 1, failed_at=now)
    )
    old = select(SignInFailure.login_digest).where(SignInFailure.failed_at < now - _REMEMBERED)
    unheld = old.limit(100).with_for_update(skip_locked=True)
    tx.execute(delete(SignInFailure).where(SignInFailure.login_digest.in_(unheld)))


def forget_failures(tx: Session, login_digest: bytes) -> None:
    """A sign-in that succeeded ends the series."""
    tx.execute(delete(SignInFailure).where(SignInFailure.login_digest == login_digest))


def enter(
    tx: Session,
    what: str,
    *,
    at: datetime,
    person_id: UUID | None,
    request_id: UUID | None = None,
    detail: dict[str, Any] | None = None,  # Any: JSON
) -> None:
    """Write an entry of the internal log; it never holds a user id or a function of one."""
    tx.add(InternalEntry(at=at, person_id=person_id, what=what, request_id=request_id, detail=detail or {}))


def internal_log(
    tx: Session, *, before: int | None, limit: int, person_id: UUID | None = None, what: str | None = None
) -> Sequence[tuple[InternalEntry, str | None]]:
    """Entries with the names of who made them, newest first, below a place; of one person, of one kind, or all."""
    query = select(InternalEntry, Person.name).outerjoin(Person, Person.id == InternalEntry.person_id)
    if before is not None:
        query = query.where(InternalEntry.id < before)
    if person_id is not None:
        query = query.where(InternalEntry.person_id == person_id)
    if what is not None:
        query = query.where(InternalEntry.what == what)
    return [(entry, name) for entry, name in tx.execute(query.order_by(InternalEntry.id.desc()).limit(limit))]


_KINDS: Final = """
WITH RECURSIVE k AS (
  SELECT min(what) AS what FROM internal_log
  UNION ALL SELECT (SELECT min(l.what) FROM internal_log l WHERE l.what > k.what) FROM k WHERE k.what IS NOT NULL
) SELECT what FROM k WHERE what IS NOT NULL
"""


def kinds(tx: Session) -> Sequence[str]:
    """What kinds of entries the internal log has; hops from one to the next in the index, however long the log is."""
    return tx.scalars(text(_KINDS)).all()


def names(tx: Session) -> dict[UUID, str]:
    """Everybody's name, in order of the names."""
    found = tx.execute(select(Person.id, Person.name).order_by(Person.name, Person.id))
    return {row[0]: row[1] for row in found}


def sessions_of(tx: Session, person_id: UUID, *, seen_since: datetime, begun_since: datetime) -> int:
    """In how many browsers a person may come in."""
    alive = (BrowserSession.seen_at > seen_since) & (BrowserSession.created_at > begun_since)
    own = select(func.count()).select_from(BrowserSession).where(BrowserSession.person_id == person_id, alive)
    return tx.scalar(own) or 0
