"""One order for all entries: batches from the outbox become leaves, tiles and a signed checkpoint.

Several may run; the advisory lock lets one work. What a crash means, by where it happens:

    before COMMIT of `_extend`       nothing happened; the rows are still pending
    after COMMIT, before the guard   a checkpoint is signed that nobody saw; the next turn finds the guard behind,
                                     checks that it is a prefix and publishes the newest
    after the guard                  witnesses and mirror are asked again; they take the same checkpoint twice
    before `publish` commits         the files show a checkpoint that the API does not show yet; as above
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import randbelow
from typing import Any

from cryptography.hazmat.primitives.keywrap import InvalidUnwrap
from expunge_verify import merkle, notes
from expunge_verify.errors import VerifyError
from expunge_verify.leaf import SCHEMA_DIGEST
from expunge_verify.notes import Checkpoint, Signer
from expunge_verify.tiles import TILE_WIDTH, Bundle, Tile, grown
from sqlalchemy import Engine, Row
from sqlalchemy.orm import Session

from app.audit.guard import Guard
from app.audit.journal import Journal
from app.audit.leaves import Pen, Writer
from app.audit.mirror import Mirror
from app.audit.tree import misplaced, reader, root_at
from app.errors import LogStopped, Misconfigured, NotFound
from app.settings import Settings
from app.storage import audit
from app.storage.sessions import transaction
from app.storage.tables import LogCheckpoint

BATCH = 4000
_HEARTBEAT = timedelta(hours=12)
"""After so long without a new entry the old tree is signed again: silence must be seen."""
_STRETCH = 32
"""Tiles of 256 entries that every turn compares with the tree: all of a log of 8192, a part of a longer one."""

Cosign = Callable[[Session, LogCheckpoint], bytes]
"""Asks witnesses; returns the note to publish."""


def as_signed(_: Session, checkpoint: LogCheckpoint) -> bytes:
    """Publish without asking anybody."""
    return bytes(checkpoint.note)


@dataclass(frozen=True)
class Sequencer:
    """The log of one installation; made once per process."""

    pen: Pen
    signers: Sequence[Signer]
    guard: Guard
    mirror: Mirror
    journal: Journal
    cosign: Cosign

    @classmethod
    def of(cls, settings: Settings, cosign: Cosign) -> Sequencer:
        """The sequencer that the settings describe.

        Raises:
            Misconfigured: The log's key is missing or no key.
        """
        return cls._made(settings, [Signer(settings.log_origin, seed) for seed in settings.log_keys()], cosign)

    @classmethod
    def onlooker(cls, settings: Settings) -> Sequencer:
        """One that can sign nothing, for a process that only looks."""
        return cls._made(settings, (), as_signed)

    @classmethod
    def _made(cls, settings: Settings, signers: Sequence[Signer], cosign: Cosign) -> Sequencer:
        return cls(
            Pen(settings.log_origin, settings.zone, settings.key("wrapping_key")),
            signers,
            Guard(settings.log_path, settings.log_origin),
            Mirror(settings.log_path / "public"),
            Journal(settings.log_path, settings.key("wrapping_key")),
            cosign,
        )

    def turn(self, engine: Engine, *, now: datetime, limit: int = BATCH) -> int:
        """Sequence one batch and publish what is signed; returns how many entries got their place.

        Raises:
            LogStopped: PostgreSQL and the guard disagree: nothing is signed until a person has looked.
        """
        with transaction(engine) as tx:
            if not self._is_due(tx, now=now) or not audit.is_ours_to_sequence(tx):
                return 0
            self._check(tx)
            self._patrol(tx)
            self._open(tx, now=now)
            placed = self._extend(tx, now=now, limit=limit)
        with transaction(engine) as tx:
            if audit.is_ours_to_sequence(tx):
                self._publish(tx, now=now)
        return placed

    def check(self, engine: Engine) -> None:
        """Compare PostgreSQL with what was signed last, and try the entries that wait.

        Raises:
            LogStopped: They disagree, or an entry makes no leaf.
        """
        with transaction(engine) as tx:
            self.examine(tx, limit=BATCH)

    def examine(self, tx: Session, *, limit: int) -> None:
        """As :meth:`check`, in the caller's transaction and of ``limit`` waiting entries; signs nothing, needs no key.

        Raises:
            LogStopped: As there.
        """
        self._check(tx)
        self._patrol(tx)
        writer = Writer(self.pen)
        for row in audit.pending(tx, limit=limit):
            _written(writer, row)

    def complaints(self, engine: Engine) -> list[str]:
        """What is wrong beside the log, which itself is fine: what its journal and its files lack.

        Raises:
            LogStopped: A line of the journal or the files' checkpoint can't be read.
        """
        with transaction(engine) as tx:
            shown, head = audit.published(tx), audit.head(tx)
            if shown is None or head is None:
                return []
            lines = self.journal.lacks(tx, shown)
            return [*_of_the_journal(lines), *_of_the_files(self.mirror.lacks(head))]

    def mend(self, engine: Engine) -> list[str]:
        """Write again what journal and files lack; returns what was wrong.

        Raises:
            LogStopped: PostgreSQL, which it is written from, was restored, or the files' checkpoint can't be read.
            Misconfigured: Another name signed so far.
        """
        with transaction(engine) as tx:
            self._fresh(tx)  # refuses another log's name
            shown, head = audit.published(tx), audit.head(tx)
            if shown is None or head is None or not audit.is_ours_to_sequence(tx):
                return []
            self._check(tx)
            gone = self.mirror.lacks(head)
            self.mirror.mend(tx, gone)
            return [*self._mend_journal(tx, shown), *_of_the_files(gone)]

    def _mend_journal(self, tx: Session, shown: LogCheckpoint) -> list[str]:
        shrunk = self.journal.has_shrunk()
        try:
            lines = self.journal.lacks(tx, shown)
        except LogStopped as error:  # whoever holds the right key may still read it: a person must look
            return [f"{error}; once it is moved away, a new one is written from PostgreSQL"]
        if lines or shrunk:
            self.journal.write_again(tx, shown)
        return _of_the_journal(lines)

    def _is_due(self, tx: Session, *, now: datetime) -> bool:
        fresh, head = self._fresh(tx), audit.head(tx)
        stale = head is None or head.published is None or now - head.signed_at > _HEARTBEAT
        return bool(fresh) or stale or audit.has_pending(tx)

    def _fresh(self, tx: Session) -> list[str]:
        """Our keys that have not signed yet.

        Raises:
            Misconfigured: Another name signed so far.
        """
        keys = audit.known_keys(tx)
        if audit.names(keys) - {self.pen.origin}:
            raise Misconfigured("EXPUNGE_LOG_ORIGIN is not the name that this log was begun with; it can't change")
        known = {key.vkey for key in keys}
        return [str(signer.vkey) for signer in self.signers if str(signer.vkey) not in known]

    def _check(self, tx: Session) -> None:
        """Refuse to go on from a history that is not the one signed last."""
        held, head = self.guard.held(), audit.head(tx)
        if held is None:
            if audit.published(tx) is not None:
                raise LogStopped(
                    "the log's guard is gone, so a restored database could not be told from the real one; bring "
                    "EXPUNGE_LOG_DIRECTORY back, or, if PostgreSQL was never restored, run `expunge log trust`"
                )
            return
        size = head.size if head else 0
        if held.size > size:
            raise LogStopped(
                f"{held.size} entries were signed and PostgreSQL holds {size}: it was restored from a backup; "
                "run `expunge restore-replay` before anything else"
            )
        if _read_root(tx, held.size) != held.root:
            raise LogStopped(f"PostgreSQL holds another history of the first {held.size} entries than was signed")

    def _patrol(self, tx: Session) -> None:
        """Compare entries with what was signed last: those at the end, which are published again, and a stretch.

        `_check` reads the root from a few tiles; an entry that was changed, or a tile below, it would not see.
        """
        held = self.guard.held()
        if held is None or not held.size:
            return
        tiles = -(-held.size // TILE_WIDTH)
        first = randbelow(-(-tiles // _STRETCH)) * _STRETCH
        for start, end in ((first, min(first + _STRETCH, tiles)), (tiles - 1, tiles)):
            found = audit.altered(tx, start, end)
            if found is None:
                found = misplaced(tx, held, start, end)
            if found is not None:
                last = min((found + 1) * TILE_WIDTH, held.size) - 1
                raise LogStopped(f"PostgreSQL's entries {found * TILE_WIDTH} to {last} are not those that were signed")

    def _open(self, tx: Session, *, now: datetime) -> None:
        """Enter keys that begin to sign; the first of all opens the log."""
        known, head = audit.known_keys(tx), audit.head(tx)
        for number, vkey in enumerate(self._fresh(tx)):
            if known or number:
                audit.enter(tx, "log.key_rotated", {"vkey": vkey}, at=now)
            else:
                audit.enter(tx, "log.opened", {"vkey": vkey, "schema": SCHEMA_DIGEST}, at=now)
            audit.add_key(tx, vkey, since=now, since_size=head.size if head else 0)

    def _extend(self, tx: Session, *, now: datetime, limit: int) -> int:
        """Leaves, tiles and a signed checkpoint, in one transaction."""
        head = audit.head(tx)
        size = head.size if head else 0
        rows = audit.pending(tx, limit=limit, opening=head is None)
        if not rows and not (head and now - head.signed_at > _HEARTBEAT):
            return 0
        writer = Writer(self.pen)
        written = [_written(writer, row) for row in rows]
        tiles = grown(reader(tx), size, [merkle.leaf_hash(entry) for entry, _ in written])
        audit.add_evidence_keys(tx, writer.fresh_keys)
        audit.place(
            tx,
            [
                audit.Placed(row.id, index, entry, sealed)
                for index, (row, (entry, sealed)) in enumerate(zip(rows, written, strict=True), size)
            ],
            tiles,
        )
        self._sign(tx, size + len(rows), now=now)
        return len(rows)

    def _sign(self, tx: Session, size: int, *, now: datetime) -> None:
        checkpoint = Checkpoint(self.pen.origin, size, root_at(tx, size))
        note = notes.sealed(checkpoint.text, [signer.sign(checkpoint.text) for signer in self.signers])
        audit.sign(tx, size=size, root=checkpoint.root, note=note, at=now)

    def _publish(self, tx: Session, *, now: datetime) -> None:
        """Files and journal, then the guard, then witnesses, then the checkpoint that everybody reads."""
        head = audit.head(tx)
        if head is None or head.published is not None:
            return
        self._check(tx)
        self.mirror.prepare(tx, head)
        self.journal.follow(tx, head, since=audit.published(tx))
        held = self.guard.held()
        if held is None or (held.size, held.root) != (head.size, head.root):
            self.guard.swap(held, head.note)
        note = self.cosign(tx, head)
        self.mirror.show(head, note)
        audit.publish(tx, head, note=note, at=now)


def _read_root(tx: Session, size: int) -> bytes | None:
    """The root, if there are tiles to read it from."""
    try:
        return root_at(tx, size)
    except (NotFound, VerifyError):
        return None


def _written(writer: Writer, row: Row[Any]) -> tuple[bytes, bytes | None]:  # Any: as storage.audit.pending
    try:
        return writer.write(row)
    except Exception as error:  # noqa: BLE001 - nothing may come after it, whatever it is, and it can't be left out
        raise LogStopped(f"entry {row.id} of the outbox, a {row.type}, makes no leaf: {_why(error)}") from None


def _why(error: Exception) -> str:
    """Why, without what another library's error could quote."""
    if isinstance(error, InvalidUnwrap):
        return "its request's key is not wrapped by this EXPUNGE_WRAPPING_KEY"
    return str(error) if isinstance(error, VerifyError) else type(error).__name__


def _of_the_journal(lines: int) -> list[str]:
    return [f"the journal beside the log lacks {lines} requests that the log says were closed"] if lines else []


def _of_the_files(gone: Sequence[Tile | Bundle]) -> list[str]:
    return [f"{len(gone)} of the log's public files are gone, {gone[0].path} the first"] if gone else []
