"""The public log in PostgreSQL: the outbox that changes write into, the tiles, the checkpoints, the evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from expunge_verify.leaf import SCHEMA
from expunge_verify.tiles import TILE_WIDTH, Bundle, Tile, encode_bundle
from sqlalchemy import Row, delete, exists, func, insert, or_, select, text, tuple_, union_all, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from app.errors import ExpungeError, NotFound
from app.storage.tables import (
    AuditEntry,
    ErasureRequest,
    Evidence,
    LogCheckpoint,
    LogKey,
    LogTile,
    RequestKey,
    Target,
    Timestamp,
)

_SEQUENCER_LOCK = 7215003
WORKING, EVIDENCE = "working", "evidence"
"""Purposes of a request's keys."""
_OF_EVERY_LEAF = frozenset({"v", "log", "type", "nonce", "day", "commit"})
"""What the sequencer adds to an entry."""


def enter(
    tx: Session,
    kind: str,
    fields: Mapping[str, object] | None = None,
    *,
    at: datetime,
    request_id: UUID | None = None,
    job_id: UUID | None = None,
) -> None:
    """Put an entry into the outbox of the log, in the transaction that makes it true.

    Args:
        tx: The caller's transaction.
        kind: A type of leaf.
        fields: What this type says beyond what all leaves say: see the verifier's schema.
        at: When; the log says the day.
        request_id: Whose; the log says the request's random ref.
        job_id: Of which job; stands in the private record alone.

    Raises:
        ExpungeError: There is no such type, or it does not say these fields: a mistake in our own code.
    """
    check(kind, fields or {}, of_request=request_id is not None)
    tx.execute(insert(AuditEntry).values(type=kind, at=at, request_id=request_id, job_id=job_id, fields=fields or {}))


def check(kind: str, fields: Mapping[str, object], *, of_request: bool) -> None:
    """Refuse here, where it can still be taken back, what would later stop the log; names only, for speed."""
    shape = SCHEMA.get(kind)
    if shape is None:
        raise ExpungeError(f"the log has no entries of type {kind!r}")
    given = fields.keys() | ({"ref"} if of_request else set())
    if not shape.required - _OF_EVERY_LEAF <= given <= shape.kinds.keys() - _OF_EVERY_LEAF:
        raise ExpungeError(f"an entry {kind} can't say {sorted(given)}: see the verifier's schema")


def is_ours_to_sequence(tx: Session) -> bool:
    """Take the sequencer's lock until the transaction ends; false when another sequencer has it."""
    return bool(tx.scalar(select(func.pg_try_advisory_xact_lock(_SEQUENCER_LOCK))))


def pending(tx: Session, *, limit: int, opening: bool = False) -> Sequence[Row[Any]]:  # Any: the columns below
    """Entries without a place, oldest first: (id, type, at, request_id, job_id, fields, ref, evidence key).

    They are found by what they lack. `id > last` would lose those that committed after a younger one. When the log is
    opened, what opens it comes before whatever waited.
    """
    waiting = select(AuditEntry).where(AuditEntry.leaf_index.is_(None)).subquery()
    order = [*([waiting.c.type != "log.opened"] if opening else []), waiting.c.id]
    first = select(waiting).order_by(*order).limit(limit).subquery()  # before the joins, however many wait
    entry = first.c
    return tx.execute(
        select(
            entry.id,
            entry.type,
            entry.at,
            entry.request_id,
            entry.job_id,
            entry.fields,
            ErasureRequest.ref,
            RequestKey.wrapped,
        )
        .outerjoin_from(first, ErasureRequest, ErasureRequest.id == entry.request_id)
        .outerjoin(RequestKey, (RequestKey.request_id == entry.request_id) & (RequestKey.purpose == EVIDENCE))
        .order_by(*([entry.type != "log.opened"] if opening else []), entry.id)
    ).all()


def has_pending(tx: Session) -> bool:
    """Whether an entry waits for its place."""
    return bool(tx.scalar(select(exists().where(AuditEntry.leaf_index.is_(None)))))


def waiting_since(tx: Session) -> datetime | None:
    """Since when the oldest entry waits to be published; none when no entry does."""
    shown = published(tx)
    unseen = or_(AuditEntry.leaf_index.is_(None), AuditEntry.leaf_index >= (shown.size if shown else 0))
    return tx.scalar(select(func.min(AuditEntry.at)).where(unseen))


def count_waiting(tx: Session, *, size: int, most: int) -> int:
    """How many entries no checkpoint of ``size`` shows, counted up to ``most``."""
    unplaced = select(AuditEntry.id).where(AuditEntry.leaf_index.is_(None)).limit(most)
    unseen = select(AuditEntry.id).where(AuditEntry.leaf_index >= size).limit(most)
    both = union_all(unplaced.subquery().select(), unseen.subquery().select()).subquery()
    return min(tx.scalar(select(func.count()).select_from(both)) or 0, most)


@dataclass(frozen=True)
class Placed:
    """An entry with its bytes and its place, and what opens its commitment."""

    id: int
    index: int
    entry: bytes
    sealed: bytes | None


def place(tx: Session, placed: Sequence[Placed], tiles: Mapping[Tile, bytes]) -> None:
    """Give entries their places and write the tiles that grew, a statement each."""
    tx.execute(
        text(
            "UPDATE audit_entries e SET entry = n.entry, leaf_index = n.leaf_index"
            " FROM unnest(CAST(:ids AS bigint[]), CAST(:entries AS bytea[]), CAST(:places AS bigint[]))"
            " AS n(id, entry, leaf_index) WHERE e.id = n.id"
        ),
        {"ids": [p.id for p in placed], "entries": [p.entry for p in placed], "places": [p.index for p in placed]},
    )
    evidence = [p for p in placed if p.sealed is not None]
    tx.execute(
        text(
            "INSERT INTO audit_evidence (entry_id, sealed)"
            " SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:sealed AS bytea[]))"
        ),
        {"ids": [p.id for p in evidence], "sealed": [p.sealed for p in evidence]},
    )
    for tile, hashes in tiles.items():
        grown = postgresql.insert(LogTile).values(level=tile.level, index=tile.index, hashes=hashes)
        tx.execute(grown.on_conflict_do_update(index_elements=["level", "index"], set_={"hashes": hashes}))


def adopt(
    tx: Session,
    kind: str,
    entry: bytes,
    *,
    index: int,
    request_id: UUID | None,
    fields: Mapping[str, object],
    at: datetime,
) -> None:
    """Write an entry that the log has and PostgreSQL lost, where it stood; its id is a new one."""
    place = {"entry": entry, "leaf_index": index}
    tx.execute(insert(AuditEntry).values(type=kind, at=at, request_id=request_id, fields=fields, **place))


def add_evidence_keys(tx: Session, wrapped: Mapping[UUID, bytes]) -> None:
    """Store new evidence keys by request."""
    tx.execute(
        text(
            "INSERT INTO keystore.request_keys (request_id, purpose, wrapped)"
            " SELECT id, :purpose, wrapped"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:wrapped AS bytea[])) AS n(id, wrapped)"
        ),
        {"purpose": EVIDENCE, "ids": list(wrapped), "wrapped": list(wrapped.values())},
    )


def tile(tx: Session, wanted: Tile) -> bytes:
    """The hashes of a tile as it was when it had the width that its name says.

    Raises:
        NotFound: The log has no such tile (yet).
    """
    hashes = tx.scalar(select(LogTile.hashes).where(LogTile.level == wanted.level, LogTile.index == wanted.index))
    if hashes is None or len(hashes) < wanted.bytes:
        raise NotFound("the log has no such tile")
    return bytes(hashes[: wanted.bytes])


def tiles(tx: Session, wanted: Sequence[Tile]) -> dict[Tile, bytes]:
    """Several tiles at once, as they were at the widths that their names say; those that are not there are left out."""
    places = {(one.level, one.index): one for one in wanted}
    rows = tx.execute(select(LogTile).where(tuple_(LogTile.level, LogTile.index).in_(list(places)))).scalars()
    found = {places[row.level, row.index]: bytes(row.hashes) for row in rows}
    return {one: hashes[: one.bytes] for one, hashes in found.items() if len(hashes) >= one.bytes}


def bundle(tx: Session, wanted: Bundle) -> bytes:
    """An entry bundle.

    Raises:
        NotFound: The log has no such bundle (yet).
    """
    found = entries(tx, wanted.index * TILE_WIDTH, wanted.index * TILE_WIDTH + wanted.width)
    if len(found) < wanted.width:
        raise NotFound("the log has no such entry bundle")
    return encode_bundle(found)


def file(tx: Session, wanted: Tile | Bundle) -> bytes:
    """A tile or an entry bundle.

    Raises:
        NotFound: The log has no such file (yet).
    """
    return tile(tx, wanted) if isinstance(wanted, Tile) else bundle(tx, wanted)


def entries(tx: Session, start: int, end: int) -> list[bytes]:
    """Entries ``start`` to before ``end``, in the order of the log."""
    within = select(AuditEntry.entry).where(AuditEntry.leaf_index >= start, AuditEntry.leaf_index < end)
    return [bytes(entry) for entry in tx.scalars(within.order_by(AuditEntry.leaf_index)) if entry is not None]


@dataclass(frozen=True)
class Shown:
    """An entry as the log has it, and the request behind it, which the log does not tell."""

    index: int
    entry: bytes
    request_id: UUID | None


def newest(tx: Session, *, before: int, kind: str | None, limit: int) -> list[Shown]:
    """Entries below a place, the newest first; of one type, or of all."""
    below = select(AuditEntry.leaf_index, AuditEntry.entry, AuditEntry.request_id).where(AuditEntry.leaf_index < before)
    if kind is not None:
        below = below.where(AuditEntry.type == kind)
    return _shown(tx.execute(below.order_by(AuditEntry.leaf_index.desc()).limit(limit)))


def entries_at(tx: Session, places: Iterable[int]) -> dict[int, Shown]:
    """The entries at these places, by place, as far as they are there."""
    wanted = select(AuditEntry.leaf_index, AuditEntry.entry, AuditEntry.request_id)
    found = _shown(tx.execute(wanted.where(AuditEntry.leaf_index.in_(list(places)))))
    return {one.index: one for one in found}


def _shown(rows: Iterable[Row[Any]]) -> list[Shown]:  # Any: the columns of Shown
    return [Shown(row.leaf_index, bytes(row.entry or b""), row.request_id) for row in rows]


def altered(tx: Session, first: int, end: int) -> int | None:
    """Of tiles ``first`` to before ``end`` of level 0, one whose hashes are not those of the entries beside them."""
    found: int | None = tx.scalar(
        text(
            "SELECT t.index FROM log_tiles t LEFT JOIN ("
            " SELECT leaf_index / :width AS index,"
            " string_agg(sha256('\\x00'::bytea || entry), ''::bytea ORDER BY leaf_index) AS hashes FROM audit_entries"
            " WHERE leaf_index >= :first_leaf AND leaf_index < :end_leaf GROUP BY 1) e ON e.index = t.index"
            " WHERE t.level = 0 AND t.index >= :first AND t.index < :end AND e.hashes IS DISTINCT FROM t.hashes LIMIT 1"
        ),
        {
            "width": TILE_WIDTH,
            "first": first,
            "end": end,
            "first_leaf": first * TILE_WIDTH,  # not in SQL, which would multiply in 16 bits
            "end_leaf": end * TILE_WIDTH,
        },
    )
    return found


def head(tx: Session) -> LogCheckpoint | None:
    """The newest checkpoint, published or not; none: the log is empty."""
    return tx.scalar(select(LogCheckpoint).order_by(LogCheckpoint.id.desc()).limit(1))


def published(tx: Session) -> LogCheckpoint | None:
    """The newest checkpoint that anybody may see."""
    return tx.scalar(
        select(LogCheckpoint).where(LogCheckpoint.published.is_not(None)).order_by(LogCheckpoint.id.desc()).limit(1)
    )


def current_note(tx: Session) -> str | None:
    """The newest published checkpoint as text: whoever is sent it is a small witness."""
    found = published(tx)
    return found.published.decode() if found and found.published else None


def sign(tx: Session, *, size: int, root: bytes, note: bytes, at: datetime) -> LogCheckpoint:
    """Write a signed checkpoint down; nobody sees it yet."""
    made = LogCheckpoint(size=size, root=root, note=note, signed_at=at)
    tx.add(made)
    tx.flush()
    return made


def publish(tx: Session, checkpoint: LogCheckpoint, *, note: bytes, at: datetime) -> None:
    """Let a checkpoint be seen."""
    unpublished = (LogCheckpoint.id == checkpoint.id) & LogCheckpoint.published.is_(None)
    tx.execute(update(LogCheckpoint).where(unpublished).values(published=note, published_at=at))


def known_keys(tx: Session) -> Sequence[LogKey]:
    """Every key that signed the log, oldest first."""
    return tx.scalars(select(LogKey).order_by(LogKey.since_size, LogKey.since, LogKey.vkey)).all()


def names(keys: Iterable[LogKey]) -> set[str]:
    """The names under which these keys sign; those of a log have one."""
    return {key.vkey.split("+")[0] for key in keys}


def add_key(tx: Session, vkey: str, *, since: datetime, since_size: int) -> None:
    """Write down a key that begins to sign."""
    tx.add(LogKey(vkey=vkey, since=since, since_size=since_size))
    tx.flush()


def unpublished_starts(tx: Session, job_id: UUID) -> int:
    """How many of a job's requests have an ``erasure.started`` that nobody outside can see yet."""
    shown = published(tx)
    unseen = or_(AuditEntry.leaf_index.is_(None), AuditEntry.leaf_index >= (shown.size if shown else 0))
    count = (
        select(func.count())
        .select_from(AuditEntry)
        .join(Target, Target.request_id == AuditEntry.request_id)
        .where(Target.job_id == job_id, AuditEntry.type == "erasure.started", unseen)
    )
    return tx.scalar(count) or 0


def place_of_certificate(tx: Session, request_id: UUID, digest: str) -> int | None:
    """Where the log says that this certificate was issued; none: not yet."""
    return tx.scalar(
        select(AuditEntry.leaf_index).where(
            AuditEntry.request_id == request_id,
            AuditEntry.type == "certificate.issued",
            AuditEntry.fields["cert"].astext == digest,
        )
    )


def of_request(tx: Session, request_id: UUID, *, before: int) -> Sequence[tuple[AuditEntry, Evidence | None]]:
    """A request's entries below a place, with what opens their commitments if they have one, in the log's order."""
    rows = tx.execute(
        select(AuditEntry, Evidence)
        .outerjoin(Evidence, Evidence.entry_id == AuditEntry.id)
        .where(AuditEntry.request_id == request_id, AuditEntry.leaf_index < before)
        .order_by(AuditEntry.leaf_index)
    ).all()
    return [(row[0], row[1]) for row in rows]


def at_place(tx: Session, index: int) -> tuple[AuditEntry, Evidence | None] | None:
    """The entry at a place of the log, with what opens its commitment."""
    found = tx.execute(
        select(AuditEntry, Evidence)
        .outerjoin(Evidence, Evidence.entry_id == AuditEntry.id)
        .where(AuditEntry.leaf_index == index)
    ).first()
    return (found[0], found[1]) if found else None


def key_of(tx: Session, request_id: UUID, purpose: str) -> bytes | None:
    """A request's wrapped key; none once it is shredded."""
    return tx.scalar(
        select(RequestKey.wrapped).where(RequestKey.request_id == request_id, RequestKey.purpose == purpose)
    )


def shred_again(tx: Session) -> int:
    """Delete working keys of requests that have ended, or are not there: a restore brings them back."""
    open_ones = select(ErasureRequest.id).where(ErasureRequest.subject_key.is_not(None))
    back = delete(RequestKey).where(RequestKey.purpose == WORKING, RequestKey.request_id.not_in(open_ones))
    return len(tx.scalars(back.returning(RequestKey.request_id)).all())


def shred_evidence(tx: Session, *, ended_before: datetime) -> int:
    """Delete the evidence keys of requests that ended before a time; what they sealed can't be opened any more."""
    ended = select(ErasureRequest.id).where(ErasureRequest.closed_at < ended_before)
    gone = delete(RequestKey).where(RequestKey.purpose == EVIDENCE, RequestKey.request_id.in_(ended))
    return len(tx.scalars(gone.returning(RequestKey.request_id)).all())


def expired_backups(tx: Session, *, now: datetime, limit: int) -> Sequence[UUID]:
    """Requests whose deleted key is in no backup any more, and of which the log does not say so yet; marks them."""
    over = (
        select(ErasureRequest.id)
        .where(ErasureRequest.backups_expire_at <= now)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return tx.scalars(
        update(ErasureRequest)
        .where(ErasureRequest.id.in_(over))
        .values(backups_expire_at=None)
        .returning(ErasureRequest.id)
    ).all()


def timestamp(tx: Session, digest: bytes) -> Timestamp | None:
    """The token over these bytes, if there is one."""
    return tx.get(Timestamp, digest)


def latest_stamp(tx: Session) -> datetime | None:
    """When a checkpoint was last stamped; certificates have tokens of their own."""
    stamped = Timestamp.digest == func.sha256(LogCheckpoint.published)
    return tx.scalar(select(func.max(Timestamp.stamped_at)).join(LogCheckpoint, stamped))


def latest_stamps(tx: Session, *, limit: int) -> Sequence[tuple[datetime, int]]:
    """When checkpoints were stamped last, and how many entries they had; looks through the newest 2000 stamps only."""
    late = select(Timestamp.stamped_at, Timestamp.digest).order_by(Timestamp.stamped_at.desc()).limit(2000).subquery()
    stamped = select(late.c.stamped_at, LogCheckpoint.size).join(
        LogCheckpoint, func.sha256(LogCheckpoint.published) == late.c.digest
    )
    return [(row[0], row[1]) for row in tx.execute(stamped.order_by(late.c.stamped_at.desc()).limit(limit))]


def keep_timestamp(tx: Session, digest: bytes, token: bytes, *, at: datetime) -> None:
    """Store a token."""
    tx.execute(postgresql.insert(Timestamp).values(digest=digest, token=token, stamped_at=at).on_conflict_do_nothing())
