"""After PostgreSQL was restored from a backup: bring back the log's entries, and forget again who was forgotten since.

The backup knows nothing of what ended after it. The log's files know the entries, the journal knows samples,
suppressions and certificates. Everything is applied in one transaction; then the service may start, and opens jobs for
every model that lives with a deletion undone.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from expunge_verify import merkle
from expunge_verify.errors import VerifyError
from expunge_verify.log import Facts, check_log, tile_reader
from expunge_verify.source import Directory
from expunge_verify.tiles import hashes, tiles_of
from sqlalchemy.orm import Session

from app.audit.sequencer import Sequencer
from app.domain.lifecycle import RequestStatus
from app.errors import LogStopped
from app.storage import audit, moves, recovery
from app.storage.tables import ErasureRequest

Json = dict[str, Any]  # Any: JSON
_EVERY = 2**31 - 1


@dataclass(frozen=True)
class Replayed:
    """What a replay brought back.

    Attributes:
        entries: of the log.
        closed: requests that had ended since the backup.
        forgotten: groups of samples that models have to forget again.
        lost: refs of requests that came in after the backup, and whose senders must send them again.
    """

    entries: int
    closed: int
    forgotten: int
    lost: tuple[str, ...]


def replay(tx: Session, sequencer: Sequencer, *, now: datetime) -> Replayed:
    """Bring a restored database up to the log; does nothing to one that is up to it.

    Raises:
        LogStopped: The log's files are damaged, or PostgreSQL's history is not the beginning of theirs.
    """
    held, head = sequencer.guard.held(), audit.head(tx)
    size = head.size if head else 0
    if held is None or held.size <= size:
        return Replayed(0, 0, 0, ())
    found = _files(sequencer, size=held.size)
    reader = hashes(tile_reader(Directory(sequencer.mirror.directory)), held.size)
    if merkle.root(reader, held.size) != held.root or (head and merkle.root(reader, size) != head.root):
        raise LogStopped("the log's files and PostgreSQL do not share a history; nothing was changed")
    _bring_back(tx, sequencer, found, size=size, held_size=held.size, now=now)
    closed = forgotten = 0
    for line in sequencer.journal.lines():
        closed += "request" in line and _close(tx, line["request"])
        forgotten += "job" in line and recovery.bury(tx, **line["job"])
        if "suppression" in line:
            key = base64.b64decode(line["suppression"]["key"])
            recovery.suppress(tx, key, model=line["suppression"]["model"])
    return Replayed(held.size - size, closed, forgotten, tuple(_lost(tx, found)))


def _files(sequencer: Sequencer, *, size: int) -> Facts:
    """Everything that the mirror holds, checked from its signature to the last byte."""
    vkeys = [signer.vkey for signer in sequencer.signers]
    try:
        found = check_log(Directory(sequencer.mirror.directory), vkeys)
    except VerifyError as error:
        raise LogStopped(f"the log's files can't be used: {error}") from None
    if found.checkpoint.size != size:
        raise LogStopped(
            f"{size} entries were signed and the log's files show {found.checkpoint.size}: "
            "bring the whole of EXPUNGE_LOG_DIRECTORY back"
        )
    return found


def _bring_back(tx: Session, sequencer: Sequencer, found: Facts, *, size: int, held_size: int, now: datetime) -> None:
    """Write the entries, tiles and the checkpoint that the backup did not have; shred again what they say is shred."""
    seen = set()
    for index, leaf in found.leaves():
        if index < size:
            continue
        seen.add(_name(leaf))
        request_id = recovery.by_ref(tx, leaf["ref"]) if "ref" in leaf else None
        audit.adopt(tx, leaf["type"], at=now, entry=found.entries[index], index=index, request_id=request_id)
        if leaf["type"] in {"log.opened", "log.key_rotated"}:
            audit.add_key(tx, leaf["vkey"], since=now, since_size=index)
        if leaf["type"] == "key.shredded" and request_id is not None:
            recovery.shred(tx, request_id)
    waiting = audit.pending(tx, limit=_EVERY)
    recovery.drop_pending(
        tx, [row.id for row in waiting if _name({"type": row.type, "ref": row.ref, **row.fields}) in seen]
    )
    read = tile_reader(Directory(sequencer.mirror.directory))
    audit.place(tx, [], {tile: read(tile) for tile in tiles_of(held_size)})
    note = sequencer.mirror.note()
    made = audit.sign(tx, size=held_size, root=found.checkpoint.root, note=note, at=now)
    audit.publish(tx, made, note=note, at=now)


def _name(leaf: Json) -> str:
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
    if not moves.end_again(tx, made, then=RequestStatus(said["status"]), at=at):
        return False
    if said["certificate"]:
        recovery.certify(tx, made.id, said["certificate"], at=at)
    return True


def _lost(tx: Session, found: Facts) -> list[str]:
    """Requests that the log has received and PostgreSQL does not know."""
    refs = {leaf["ref"]: leaf["type"] for _, leaf in found.leaves() if "ref" in leaf}
    return sorted(ref for ref in refs if recovery.by_ref(tx, ref) is None)
