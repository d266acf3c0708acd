"""Whom to believe: the logs, the witnesses and how many of them it takes: C2SP tlog-policy.

Narrower than the format: the file must be UTF-8, and a log's key is an Ed25519 one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from expunge_verify.errors import Bad, Unchecked, shown
from expunge_verify.notes import (
    COSIGNATURE,
    ED25519,
    ML_DSA,
    Checkpoint,
    Note,
    Vkey,
    decimal,
    open_checkpoint,
)

NO_QUORUM: Final = "none"
MOST_BYTES: Final = 1 << 18
MOST_LINES: Final = 1024

_FORBIDDEN = re.compile(r"[^\t\n\x20-\x7e\x80-\U0010ffff]")


@dataclass(frozen=True)
class Log:
    """A log and, perhaps, where it can be read."""

    vkey: Vkey
    url: str | None = None


@dataclass(frozen=True)
class Witness:
    """A witness under its name in the policy and, perhaps, where checkpoints are sent for its signature."""

    name: str
    vkey: Vkey
    url: str | None = None


@dataclass(frozen=True)
class Group:
    """Satisfied by ``needed`` of its members, which are witnesses or earlier groups."""

    name: str
    needed: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """Trusted logs, known witnesses, and the name of the witness or group that must have seen a checkpoint."""

    logs: tuple[Vkey, ...]
    witnesses: tuple[Witness, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str = NO_QUORUM
    log_urls: tuple[str | None, ...] = ()

    @classmethod
    def of(cls, vkeys: Iterable[Vkey]) -> Self:
        """Believe whatever one of these log keys signed; ask for no witness."""
        return cls(tuple(vkeys))

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read a policy file.

        Raises:
            Bad: A line that is none of log, witness, group and quorum, a name or key twice, a name used before its
                line, a group that cannot be satisfied, or not exactly one quorum.
        """
        reader = _Reader()
        for number, line in enumerate(_lines(text), 1):
            words = re.split(r"[ \t]+", line.strip(" \t"))
            if words[0] and not words[0].startswith("#"):
                reader.read(words, number)
        if reader.quorum is None:
            raise Bad("the policy has no quorum line")
        logs = reader.logs
        return cls(
            tuple(log.vkey for log in logs),
            tuple(reader.witnesses),
            tuple(reader.groups),
            reader.quorum,
            tuple(log.url for log in logs),
        )

    def __str__(self) -> str:
        urls = self.log_urls or [None] * len(self.logs)
        lines = [f"log {vkey} {url or ''}" for vkey, url in zip(self.logs, urls, strict=True)]
        lines += [f"witness {w.name} {w.vkey} {w.url or ''}" for w in self.witnesses]
        lines += [f"group {g.name} {g.needed} {' '.join(g.members)}" for g in self.groups]
        return "".join(f"{line.rstrip()}\n" for line in [*lines, f"quorum {self.quorum}"])

    def open(self, raw: bytes) -> tuple[Checkpoint, list[str]]:
        """The checkpoint in a note that this policy believes, and why.

        Raises:
            Bad: It does not.
            Unchecked: As in ``check``.
        """
        checkpoint, note = open_checkpoint(raw, self.logs)
        return checkpoint, self.check(note)

    def check(self, note: Note) -> list[str]:
        """What speaks for the checkpoint in this note, a sentence each.

        Raises:
            Bad: No log of the policy signed it, a signature is wrong, or the quorum is not met.
            Unchecked: The policy has no log, or the quorum hangs on signatures of a kind that is not read yet.
        """
        checkpoint, _ = open_checkpoint(note.raw, self.logs)
        facts = [
            f"signed by log {shown(key.name)} with key {key.key_id.hex()}"
            for key in self.logs
            if key.name == checkpoint.origin and note.signed_by(key)
        ]
        times = self._times(note)
        facts += [f"cosigned by witness {shown(name)} at {_said(time)}" for name, time in times.items()]
        return facts + self._met(set(times), {w.name for w in self.witnesses if _present_but_unread(w, note)})

    def _times(self, note: Note) -> dict[str, int]:
        """When each witness saw it, of those that did."""
        readable = [witness for witness in self.witnesses if witness.vkey.kind == COSIGNATURE]
        times = {witness.name: note.cosigned_by(witness.vkey) for witness in readable}
        return {name: time for name, time in times.items() if time is not None}

    def _met(self, names: AbstractSet[str], unread: AbstractSet[str]) -> list[str]:
        """The fact that the quorum is met by these witnesses."""
        if self.quorum == NO_QUORUM:
            return []
        if self._satisfied(names):
            return [f"quorum {shown(self.quorum)} met by {len(names)} of {len(self.witnesses)} witnesses"]
        if self._satisfied(names | unread):
            raise Unchecked(f"quorum {shown(self.quorum)} hangs on {len(unread)} ML-DSA cosignatures, not read yet")
        raise Bad(
            f"quorum {shown(self.quorum)} is not met: {len(names)} of {len(self.witnesses)} witnesses cosigned it"
        )

    def _satisfied(self, names: AbstractSet[str]) -> bool:
        done = set(names)
        for group in self.groups:  # they name only what stands before them, so once through is enough
            if len(done & set(group.members)) >= group.needed:
                done.add(group.name)
        return self.quorum in done


class _Reader:
    """A policy file, as far as it was read."""

    def __init__(self) -> None:
        self.logs: list[Log] = []
        self.witnesses: list[Witness] = []
        self.groups: list[Group] = []
        self.quorum: str | None = None
        self._names: set[str] = set()
        self._members: set[str] = set()

    def read(self, words: list[str], number: int) -> None:
        match words:
            case ["log", vkey, *url] if len(url) <= 1:
                self._log(Log(_key(vkey, {ED25519}), *url))
            case ["witness", name, vkey, *url] if len(url) <= 1:
                self._witness(Witness(name, _key(vkey, {COSIGNATURE, ML_DSA}), *url))
            case ["group", name, needed, *members] if members:
                self._group(name, needed, members)
            case ["quorum", name] if self.quorum is None and name in {NO_QUORUM, *self._names}:
                self.quorum = name
            case _:
                raise Bad(f"line {number} of the policy is not one that can stand there")

    def _log(self, log: Log) -> None:
        if any(log.vkey.public == other.vkey.public for other in self.logs):
            raise Bad(f"the policy has the key of log {shown(log.vkey.name)} twice")
        self.logs.append(log)

    def _witness(self, witness: Witness) -> None:
        if any(witness.vkey.public == other.vkey.public for other in self.witnesses):
            raise Bad(f"the policy has the key of witness {shown(witness.name)} twice")
        self._define(witness.name)
        self.witnesses.append(witness)

    def _group(self, name: str, needed: str, members: list[str]) -> None:
        least = {"any": 1, "all": len(members)}.get(needed)
        if least is None:
            least = decimal(needed)
        if not 1 <= least <= len(members):
            raise Bad(f"group {shown(name)} needs {least} of {len(members)} members")
        for member in members:
            # A witness in two groups could count twice towards one quorum.
            if member not in self._names or member in self._members:
                raise Bad(f"{shown(member)} cannot be a member of group {shown(name)}: unknown so far, or in a group")
            self._members.add(member)
        self._define(name)
        self.groups.append(Group(name, least, tuple(members)))

    def _define(self, name: str) -> None:
        if name == NO_QUORUM or name in self._names:
            raise Bad(f"the policy defines {shown(name)} twice")
        self._names.add(name)


def _lines(text: str | bytes) -> list[str]:
    if len(text) > MOST_BYTES:
        raise Bad(f"the policy is {len(text)} bytes long; at most {MOST_BYTES} are read")
    try:
        read = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise Bad("the policy is not UTF-8") from None
    if _FORBIDDEN.search(read):
        raise Bad("the policy has a control character other than tab and newline")
    lines = read.removesuffix("\n").split("\n")
    if len(lines) > MOST_LINES:
        raise Bad(f"the policy has {len(lines)} lines; at most {MOST_LINES} are read")
    return lines


def _key(text: str, kinds: AbstractSet[int]) -> Vkey:
    vkey = Vkey.parse(text)
    if vkey.kind not in kinds:
        raise Bad(f"the key of {shown(vkey.name)} is of kind 0x{vkey.kind:02x}, which does not belong on that line")
    return vkey


def _present_but_unread(witness: Witness, note: Note) -> bool:
    return witness.vkey.kind != COSIGNATURE and bool(note.by(witness.vkey))


def _said(time: int) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):  # a witness may sign any number up to 2^63
        return f"second {time}"
