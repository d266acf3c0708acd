"""The published log looked at from inside, by the auditor's own library: checks of bounded cost, a line each.

What it costs does not grow with the log: one root, and the audit paths of some hundred entries. Whoever owns
PostgreSQL could have written all of it anew; a checkpoint that somebody kept, or a witness, betrays that.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from expunge_verify import leaf, merkle, notes
from expunge_verify.errors import Unchecked, VerifyError
from expunge_verify.notes import Checkpoint, Vkey
from expunge_verify.policy import Policy
from sqlalchemy.orm import Session

from app.audit import witnesses
from app.audit.sequencer import Sequencer
from app.audit.tree import consistency_proof, near, root_at
from app.errors import LogStopped, Misconfigured, NotFound
from app.settings import Settings
from app.storage import audit
from app.storage.audit import Shown
from app.storage.tables import LogCheckpoint, LogKey

DRAWN: Final = 256
"""Where one entry of a hundred was altered, so many miss it once in 13 times; where one of ten, once in 10^11."""
PASSED, FAILED, OPEN = "passed", "failed", "not checked"
_STUCK: Final = timedelta(seconds=30)
_TRIED: Final = 256
"""Waiting entries that are tried when the log does not move: the first that makes no leaf is what stops it."""
_MOST_NAMED: Final = 10


@dataclass(frozen=True)
class Line:
    """What was asked, what came out, and why."""

    asked: str
    verdict: str
    why: str


@dataclass(frozen=True)
class Findings:
    """What a look at the log found; entries that failed are named one by one elsewhere on the page."""

    lines: Sequence[Line]
    bad: frozenset[int]
    seed: str


@dataclass(frozen=True)
class Log:
    """The published log: its checkpoint, the keys that ever signed it, and whom the operator asks to watch it."""

    row: LogCheckpoint
    note: bytes
    keys: Sequence[LogKey]
    settings: Settings

    @classmethod
    def of(cls, tx: Session, settings: Settings) -> Log | None:
        """None: nothing has been published yet."""
        row = audit.published(tx)
        if row is None or row.published is None:
            return None
        return cls(row, bytes(row.published), audit.known_keys(tx), settings)

    @property
    def checkpoint(self) -> Checkpoint:
        """What the note says, which is what counts: the table's own columns are nobody's word.

        Raises:
            VerifyError: It is no checkpoint.
        """
        return Checkpoint.parse(notes.parse(self.note).text)

    @property
    def vkeys(self) -> list[Vkey]:
        """Its keys.

        Raises:
            VerifyError: One is no key.
        """
        return [Vkey.parse(key.vkey) for key in self.keys]


def inspect(tx: Session, log: Log, *, shown: Iterable[int], pasted: str, seed: str) -> Findings:
    """Check what can be checked in a second.

    Args:
        tx: The transaction; what it sees is what is checked.
        log: What is published.
        shown: Places of entries that somebody looks at; they are checked whatever is drawn.
        pasted: An older checkpoint that somebody kept, as text; empty: none.
        seed: Names the draw, so that it can be made again: ``random.Random(seed).sample(range(size), 256)``.
    """
    try:
        checkpoint = log.checkpoint
    except VerifyError as error:
        return Findings([Line("The checkpoint can be read", FAILED, str(error))], frozenset(), seed)
    places = {place for place in shown if place < checkpoint.size} | set(drawn(seed, checkpoint.size))
    bad = misfits(tx, checkpoint, places)
    lines = [
        _line("The checkpoint is signed by a known key of this log", lambda: _signed(log)),
        _line("The witnesses of the policy have cosigned it", lambda: _cosigned(log)),
        _line("PostgreSQL's tree has the root that was signed", lambda: _rooted(tx, checkpoint)),
        _of_entries(places, bad),
        _line("It is what was signed last, as kept outside PostgreSQL", lambda: _guarded(tx, log.settings)),
        _line("It has grown out of the checkpoint that you pasted", lambda: _grown(tx, log, checkpoint, pasted)),
    ]
    return Findings(lines, frozenset(bad), seed)


def drawn(seed: str, size: int) -> list[int]:
    """The entries that a seed names.

    >>> sorted(drawn("any", 3)), drawn("a", 10**6) == drawn("a", 10**6)
    ([0, 1, 2], True)
    """
    return random.Random(seed).sample(range(size), min(DRAWN, size))  # noqa: S311 - the caller's seed is the secret


def misfits(tx: Session, checkpoint: Checkpoint, places: Iterable[int]) -> list[int]:
    """Which of these places hold an entry that does not stand there in the signed tree, or none; two statements."""
    wanted = sorted(set(places))
    found, read = audit.entries_at(tx, wanted), near(tx, wanted, checkpoint.size)
    return [place for place in wanted if not _fits(read, checkpoint, place, found.get(place))]


def _fits(read: merkle.Read, checkpoint: Checkpoint, place: int, found: Shown | None) -> bool:
    if found is None:
        return False
    try:
        path = merkle.inclusion_proof(read, place, checkpoint.size)
        merkle.check_inclusion(merkle.leaf_hash(found.entry), place, checkpoint.size, path, checkpoint.root)
        return bool(leaf.decode(found.entry)["log"] == checkpoint.origin)
    except (NotFound, VerifyError):
        return False


def _line(asked: str, check: Callable[[], str]) -> Line:
    try:
        return Line(asked, PASSED, check())
    except Unchecked as error:
        return Line(asked, OPEN, str(error))
    except NotFound as error:
        return Line(asked, FAILED, f"PostgreSQL lacks a part of the tree: {error}")
    except (VerifyError, LogStopped) as error:
        return Line(asked, FAILED, str(error))


def _signed(log: Log) -> str:
    _, note = notes.open_checkpoint(log.note, log.vkeys)
    signers = [key.key_id.hex() for key in log.vkeys if note.signed_by(key)]
    return f"signed by key {', '.join(signers)}"


def _cosigned(log: Log) -> str:
    policy = policy_of(log.settings)
    if policy is None or not policy.witnesses:
        raise Unchecked("EXPUNGE_LOG_POLICY names no witnesses, so nobody else vouches that all see the same log")
    return "; ".join(policy.check(notes.parse(log.note)))


def policy_of(settings: Settings) -> Policy | None:
    """The policy that the settings name.

    Raises:
        Unchecked: It can't be read.
    """
    try:
        return witnesses.policy_of(settings)
    except Misconfigured as error:
        raise Unchecked(str(error)) from None


def _rooted(tx: Session, checkpoint: Checkpoint) -> str:
    if root_at(tx, checkpoint.size) != checkpoint.root:
        raise LogStopped(f"the tiles of the first {checkpoint.size} entries lead to another root")
    return f"the tiles of {checkpoint.size} entries lead to {checkpoint.root.hex()}"


def _of_entries(places: Iterable[int], bad: Sequence[int]) -> Line:
    count = len(set(places))
    asked = f"The entries shown and {DRAWN} drawn at random stand in the signed tree"
    if not bad:
        return Line(asked, PASSED, f"{count} entries lead to the signed root by their audit paths")
    named = ", ".join(map(str, bad[:_MOST_NAMED])) + (" and more" if len(bad) > _MOST_NAMED else "")
    return Line(asked, FAILED, f"{len(bad)} of {count} entries are not what was signed: {named}")


def _guarded(tx: Session, settings: Settings) -> str:
    if not sees_guard(settings):
        raise Unchecked("that file lies where dispatch runs; `expunge doctor` there compares it")
    Sequencer.onlooker(settings).examine(tx, limit=_TRIED)
    return "PostgreSQL holds the history that was signed last, in a stretch of 8192 entries drawn at random, too"


def sees_guard(settings: Settings) -> bool:
    """Whether this process can read what was signed last: it runs where dispatch does, as the same user."""
    return os.access(settings.log_path / "guard", os.R_OK)


def _grown(tx: Session, log: Log, new: Checkpoint, pasted: str) -> str:
    if not pasted.strip():
        raise Unchecked("none was pasted")
    old, _ = notes.open_checkpoint(_as_file(pasted), log.vkeys)
    if old.size > new.size:
        raise LogStopped(f"it has {old.size} entries, this log {new.size}: the log was cut, or taken back")
    merkle.check_consistency(old.size, old.root, new.size, new.root, consistency_proof(tx, old.size, new.size))
    return f"the {new.size} entries begin with the {old.size} of the pasted checkpoint, whose signature is right"


def _as_file(pasted: str) -> bytes:
    """A note as its file has it: a form sends CRLF, and who copies text loses its last newline."""
    lines = pasted.replace("\r\n", "\n").strip(" \n")
    return f"{lines}\n".encode(errors="surrogatepass")


def standstill(tx: Session, settings: Settings, *, waits_since: datetime | None, now: datetime) -> str | None:
    """Why the log does not move, as far as this process can see; none: it moves."""
    if waits_since is None or now - waits_since < _STUCK:
        return None
    if not sees_guard(settings):
        return "look at dispatch: `expunge doctor` there says whether it runs, and why it signs nothing"
    try:
        Sequencer.onlooker(settings).examine(tx, limit=_TRIED)
    except LogStopped as error:
        return f"nothing is signed until a person has looked: {error}"
    return "nothing is wrong with the log itself: start `expunge dispatch`, or look whether its witnesses answer"


def digest_of(note: bytes) -> bytes:
    """Under which a stamp over a checkpoint is kept."""
    return hashlib.sha256(note).digest()
