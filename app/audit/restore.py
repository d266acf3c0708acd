"""After PostgreSQL was restored from a backup: bring back the log's entries, and forget again who was forgotten since.

The backup knows nothing of what ended after it. The log's files know the entries, the journal knows samples,
suppressions and certificates. Of what people decided since about requests that are open still, the log knows new due
days, and that something was refused, not what: such a request is put on hold.

Everything is applied in one transaction; then the service may start, and opens jobs for every model that lives with a
deletion undone. Keys of requests that ended are deleted whatever was restored: the key store has backups of its own,
and may come back older than the data.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from typing import Any
from uuid import UUID

from expunge_verify import leaf as leaves
from expunge_verify import merkle
from expunge_verify.errors import VerifyError
from expunge_verify.log import CHECKPOINT, Facts, check_log, tile_reader
from expunge_verify.source import Directory
from expunge_verify.tiles import hashes, tiles_of
from sqlalchemy.orm import Session

from app.audit.sequencer import Sequencer
from app.domain import deadlines
from app.domain.lifecycle import RequestStatus
from app.errors import LogStopped
from app.storage import audit, moves, recovery
from app.storage.tables import ErasureRequest

Json = dict[str, Any]  # Any: JSON
Told = tuple[int, leaves.Leaf]  # an entry's place and what it says
_EVERY = 2**31 - 1
_OF_THE_LEAF = frozenset({"v", "log", "type", "nonce", "day", "ref", "commit"})
"""What a leaf says by itself; the rest are its entry's fields."""
_DUE_AGAIN = frozenset({"request.extended", "request.identity_confirmed"})
_REFUSALS = frozenset({"request.refused", "request.withdrawn"})
"""Where the request is open nevertheless, it was refused in part, or the entry of its end is lost."""


@dataclass(frozen=True)
class Replayed:
    """What a replay brought back.

    Attributes:
        entries: of the log.
        closed: requests that had ended since the backup.
        forgotten: groups of samples that models have to forget again.
        lost: refs of requests that came in after the backup, and whose senders must send them again.
        keys: of requests that had ended, which the restore had brought back.
        lacking: requests that had ended, and of which the journal does not say what was forgotten.
        refused: ids of open requests that were refused in part, or taken back, since the backup; people must decide so
            again, and those that had not begun wait for them on hold.
    """

    entries: int
    closed: int
    forgotten: int
    lost: tuple[str, ...]
    keys: int = 0
    lacking: int = 0
    refused: tuple[UUID, ...] = ()


def replay(tx: Session, sequencer: Sequencer, *, now: datetime, may_lack: int = 0) -> Replayed:
    """Bring a restored database up to the log; in one that is up to it, delete keys that came back.

    Args:
        tx: The caller's transaction.
        sequencer: Knows the log's files.
        now: The time.
        may_lack: How many requests that had ended may be missing from the journal; what was forgotten for them is not
            forgotten again, and a person must know that.

    Raises:
        LogStopped: The log's files are damaged, PostgreSQL's history is not the beginning of theirs, or the journal
            lacks more requests.
        Misconfigured: The schema of the keys was not restored.
    """
    recovery.need_keystore(tx)
    held, head = sequencer.guard.held(), audit.head(tx)
    size = head.size if head else 0
    if held is None and audit.published(tx) is not None:
        raise LogStopped("the log's guard is not in EXPUNGE_LOG_DIRECTORY; without it nothing can be replayed")
    if held is None or held.size <= size:
        return Replayed(0, 0, 0, (), audit.shred_again(tx))
    files = _Signed(Directory(sequencer.mirror.directory), sequencer.guard.note() or b"")
    found = _facts(sequencer, files)
    reader = hashes(tile_reader(files), held.size)
    if head and merkle.root(reader, size) != head.root:
        raise LogStopped("the log's files and PostgreSQL do not share a history; nothing was changed")
    lines = list(sequencer.journal.lines())
    told = list(found.leaves())
    lacking = _lacking(told[size:], lines)
    if lacking > may_lack:
        raise LogStopped(
            f"the journal lacks {lacking} requests that the log says were closed since the backup, so what was "
            "forgotten for them can't be forgotten again; nothing was changed: bring erasures.jsonl back whole, or "
            f"accept it with --may-lack {lacking}"
        )
    closed = sum(_close(tx, line["request"]) for line in lines if "request" in line)
    _bring_back(tx, told[size:], found.entries, now=now)
    forgotten = sum(recovery.bury(tx, **line["job"], at=now) for line in lines if "job" in line)
    _suppress(tx, lines)
    refused = _decide_again(tx, told[size:], zone=sequencer.pen.zone, now=now)
    _adopt_tree(tx, sequencer, files, found, now=now)
    keys, lost = audit.shred_again(tx), tuple(_lost(tx, told))
    return Replayed(held.size - size, closed, forgotten, lost, keys, lacking, refused)


@dataclass(frozen=True)
class _Signed:
    """The log's files under the last checkpoint that was signed, whether or not its publication came so far."""

    files: Directory
    note: bytes

    def get(self, resource_path: str, max_bytes: int) -> bytes:
        """See ``expunge_verify.source.Source``."""
        return self.note if resource_path == CHECKPOINT else self.files.get(resource_path, max_bytes)


def _facts(sequencer: Sequencer, files: _Signed) -> Facts:
    """Everything that the files hold, checked from the signature to the last byte."""
    try:
        found = check_log(files, [signer.vkey for signer in sequencer.signers])
    except VerifyError as error:
        raise LogStopped(f"the log's files can't be used: {error}") from None
    if sequencer.mirror.size() > found.checkpoint.size:
        raise LogStopped("the log's guard is older than its files: bring the whole of EXPUNGE_LOG_DIRECTORY back")
    return found


def _lacking(told: Iterable[Told], lines: Iterable[Json]) -> int:
    """How many requests ended in these leaves and have no line in the journal."""
    ended = {leaf["ref"] for _, leaf in told if leaf["type"] == "request.closed"}
    return len(ended - {line["request"]["ref"] for line in lines if "request" in line})


def _bring_back(tx: Session, told: Iterable[Told], entries: Sequence[bytes], *, now: datetime) -> None:
    """Write the entries that the backup did not have, and what they say of keys."""
    seen, known = Counter[str](), recovery.by_ref(tx)
    for index, leaf in told:
        seen[_name(leaf)] += 1
        request_id = known.get(leaf.get("ref", ""))
        fields = {name: value for name, value in leaf.items() if name not in _OF_THE_LEAF}
        audit.adopt(tx, leaf["type"], entries[index], index=index, request_id=request_id, fields=fields, at=now)
        if leaf["type"] in {"log.opened", "log.key_rotated"}:
            audit.add_key(tx, leaf["vkey"], since=now, since_size=index)
        if leaf["type"] == "key.backup_expired" and request_id is not None:
            recovery.await_backups(tx, request_id, until=None)
    recovery.drop_pending(tx, _sequenced(tx, seen))


def _sequenced(tx: Session, seen: Counter[str]) -> Iterable[int]:
    """Entries that waited for a place when the backup was made and have one in the log, each for one of its leaves."""
    for row in audit.pending(tx, limit=_EVERY):
        name = _name({"type": row.type, "ref": row.ref, **row.fields})
        if seen[name]:
            seen[name] -= 1
            yield row.id


def _adopt_tree(tx: Session, sequencer: Sequencer, files: _Signed, found: Facts, *, now: datetime) -> None:
    """Write tiles and the checkpoint; one that had not been published yet is published by the next turn."""
    read, checkpoint = tile_reader(files), found.checkpoint
    audit.place(tx, [], {tile: read(tile) for tile in tiles_of(checkpoint.size)})
    made = audit.sign(tx, size=checkpoint.size, root=checkpoint.root, note=files.note, at=now)
    if sequencer.mirror.size() == checkpoint.size:
        audit.publish(tx, made, note=sequencer.mirror.note(), at=now)


def _name(leaf: leaves.Leaf) -> str:
    """What two tellings of the same event share: nonce and commitment are drawn anew."""
    return json.dumps([leaf["type"], leaf.get("ref"), leaf.get("model"), leaf.get("cert")], sort_keys=True)


def _close(tx: Session, said: Json) -> bool:
    """End a request as it had ended; true if the backup did not know."""
    made = ErasureRequest(
        id=UUID(said["id"]),
        ref=said["ref"],
        received_at=datetime.fromisoformat(said["received_at"]),
        deadline=datetime.fromisoformat(said["deadline"]),
    )
    at = datetime.fromisoformat(said["closed_at"])
    ended = moves.end_again(tx, made, then=RequestStatus(said["status"]), at=at)
    if ended and said["backups_expire_at"]:
        recovery.await_backups(tx, made.id, until=datetime.fromisoformat(said["backups_expire_at"]))
    if said["certificate"]:
        recovery.certify(tx, made.id, said["certificate"], at=at)
    return ended


def _suppress(tx: Session, lines: Iterable[Json]) -> None:
    for line in lines:
        if "suppression" in line:
            key = base64.b64decode(line["suppression"]["key"])
            recovery.suppress(tx, key, model=line["suppression"]["model"])


def _decide_again(tx: Session, told: Iterable[Told], *, zone: tzinfo, now: datetime) -> tuple[UUID, ...]:
    """Bring back due days of open requests and hold back what was refused in part; returns what people must look at."""
    still_open, refused = recovery.still_open(tx), dict[UUID, None]()
    for _, leaf in told:
        request_id = still_open.get(leaf.get("ref", ""))
        if request_id is None:
            continue
        if leaf["type"] in _DUE_AGAIN and "due" in leaf:
            begins = leaf["day"] if leaf["type"] == "request.identity_confirmed" else None
            clock_from = deadlines.end_of(date.fromisoformat(begins), zone) if begins else None
            due = deadlines.end_of(date.fromisoformat(leaf["due"]), zone)
            recovery.set_clock(tx, request_id, due=due, clock_from=clock_from)
        if leaf["type"] in _REFUSALS:
            refused[request_id] = None
    for request_id in refused:
        recovery.hold_back(tx, request_id, at=now)
    return tuple(refused)


def _lost(tx: Session, told: Iterable[Told]) -> list[str]:
    """Requests that the log has received and PostgreSQL does not know."""
    return sorted({leaf["ref"] for _, leaf in told if "ref" in leaf} - recovery.by_ref(tx).keys())
