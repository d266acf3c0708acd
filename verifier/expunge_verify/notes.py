"""Signed notes, log checkpoints and witness cosignatures: C2SP signed-note, tlog-checkpoint, tlog-cosignature.

Signatures by unknown keys, of kinds to come (ML-DSA is 0x06) too, are kept and prove nothing. Of extension lines,
which the checkpoint format discourages because nobody can audit them, there are none here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from expunge_verify.errors import Bad, Unchecked, shown
from expunge_verify.merkle import EMPTY_ROOT, HASH_BYTES, LARGEST

ED25519: Final = 0x01
COSIGNATURE: Final = 0x04
ML_DSA: Final = 0x06  # read, so that a policy can name it; not verified yet
KEY_BYTES: Final = {ED25519: 32, COSIGNATURE: 32, ML_DSA: 1312}

MOST_BYTES: Final = 1 << 18  # 16 post-quantum signatures, which the format asks for, are a third of this
MOST_SIGNATURES: Final = 100  # as in Go's reader
MOST_KEY_CHARACTERS: Final = 4096

_ID_BYTES = 4
_TIME_BYTES = 8
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_VKEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


@dataclass(frozen=True)
class Vkey:
    """A public key with the name it signs under, as logs and witnesses publish them."""

    name: str
    key_id: bytes
    kind: int
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key in ``NAME+ID+BASE64``.

        Raises:
            Bad: It is not spelled like one, of a kind unknown here, or its id belongs to another key.
        """
        found = _VKEY.fullmatch(text) if len(text) <= MOST_KEY_CHARACTERS else None
        if not found:
            raise Bad(f"{shown(text)} is not a verifier key of the form NAME+ID+BASE64")
        raw = unbase64(found[3])
        key = vkey_of(found[1], raw[1:], kind=raw[0])
        if key.key_id.hex() != found[2]:
            raise Bad(f"the verifier key of {shown(key.name)} has id {key.key_id.hex()}, but says {found[2]}")
        return cls(key.name, key.key_id, key.kind, key.public)

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_b64(bytes([self.kind]) + self.public)}"


def vkey_of(name: str, public: bytes, kind: int = ED25519) -> Vkey:
    """The verifier key of a public key.

    Raises:
        Bad: The name cannot stand in a note, or the key has not the length of its kind.
    """
    if not name or "+" in name or any(c.isspace() for c in name) or _CONTROL.search(name) or not _encodes(name):
        raise Bad(f"{shown(name)} cannot name a key: it must have no space and no plus sign")
    if KEY_BYTES.get(kind) != len(public):
        raise Bad(f"a key of kind 0x{kind:02x} and {len(public)} bytes is unknown here")
    key_id = sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:_ID_BYTES]
    return Vkey(name, key_id, kind, public)


@dataclass(frozen=True)
class Signer:
    """An Ed25519 key that signs notes; the seed has 32 bytes."""

    name: str
    seed: bytes = field(repr=False)

    @property
    def vkey(self) -> Vkey:
        """What others check its signatures with."""
        return vkey_of(self.name, _public(self.seed))

    def sign(self, text: str) -> str:
        """The signature line, with its newline, for the text of a note."""
        return _line(self.vkey, Ed25519PrivateKey.from_private_bytes(self.seed).sign(text.encode()))


def cosign(seed: bytes, name: str, note_text: str, timestamp: int) -> str:
    """A witness' signature line, with its newline: it saw this checkpoint at this POSIX time."""
    signature = Ed25519PrivateKey.from_private_bytes(seed).sign(_cosigned(note_text, timestamp))
    return _line(vkey_of(name, _public(seed), COSIGNATURE), timestamp.to_bytes(_TIME_BYTES, "big") + signature)


def sealed(text: str, lines: Iterable[str]) -> bytes:
    """The note that consists of this text and these signature lines."""
    return f"{text}\n{''.join(lines)}".encode()


@dataclass(frozen=True)
class Signature:
    """One signature line: who says to have signed, and the bytes after the key id."""

    name: str
    key_id: bytes
    raw: bytes

    @property
    def line(self) -> str:
        """As it stands in the note, with its newline."""
        return f"— {self.name} {_b64(self.key_id + self.raw)}\n"


@dataclass(frozen=True)
class Note:
    """A text and its signatures, none of them checked yet."""

    text: str
    signatures: tuple[Signature, ...]

    @property
    def raw(self) -> bytes:
        """The note as a file."""
        return sealed(self.text, (signature.line for signature in self.signatures))

    def by(self, vkey: Vkey) -> list[bytes]:
        """The signatures that say they are by this key."""
        return [s.raw for s in self.signatures if (s.name, s.key_id) == (vkey.name, vkey.key_id)]

    def signed_by(self, vkey: Vkey) -> bool:
        """Whether this Ed25519 key signed the text.

        Raises:
            Bad: A signature says so and is wrong, or the key makes another kind of signature.
        """
        if vkey.kind != ED25519:
            raise Bad(
                f"the key of {shown(vkey.name)} is of kind 0x{vkey.kind:02x}, which signs no log's checkpoint here"
            )
        signatures = self.by(vkey)
        for signature in signatures:
            _verify(vkey, self.text.encode(), signature)
        return bool(signatures)

    def cosigned_by(self, vkey: Vkey) -> int | None:
        """The latest POSIX time at which this witness saw the checkpoint, None if it did not.

        Raises:
            Bad: A cosignature says so and is wrong, or the key makes another kind of signature.
        """
        if vkey.kind != COSIGNATURE:
            raise Bad(f"the key of {shown(vkey.name)} is of kind 0x{vkey.kind:02x}, which makes no cosignatures here")
        times: list[int] = []
        for signature in self.by(vkey):
            time = int.from_bytes(signature[:_TIME_BYTES], "big")
            _verify(vkey, _cosigned(self.text, time), signature[_TIME_BYTES:])
            times.append(time)
        return max(times, default=None)


def parse(raw: bytes) -> Note:
    """Read a note; none of its signatures is checked by that.

    Raises:
        Bad: It is not exactly in the format, has more than 100 signatures, or more than 256 KiB.
    """
    if len(raw) > MOST_BYTES:
        raise Bad(f"the note has {len(raw)} bytes; at most {MOST_BYTES} are read")
    try:
        whole = raw.decode()
    except UnicodeDecodeError:
        raise Bad("the note is not UTF-8") from None
    if _CONTROL.search(whole):
        raise Bad("the note has a control character other than a newline")
    text, blank, lines = whole.rpartition("\n\n")
    if not blank or not lines.endswith("\n"):
        raise Bad("the note has no signature lines after a blank line")
    signatures = lines[:-1].split("\n")
    if len(signatures) > MOST_SIGNATURES:
        raise Bad(f"the note has {len(signatures)} signatures; at most {MOST_SIGNATURES} are read")
    return Note(text + "\n", tuple(_signature(line) for line in signatures))


@dataclass(frozen=True)
class Checkpoint:
    """What a log commits to: its name, how many entries it has, and the root over them."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{_b64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a checkpoint.

        Raises:
            Bad: It is not three lines: a name, a decimal number, and a hash in base64.
        """
        match text.split("\n"):
            case [origin, size, root, ""] if origin:
                checkpoint = cls(origin, decimal(size), unbase64(root))
            case _:
                raise Bad("the checkpoint is not made of origin, size and root, a line each")
        if len(checkpoint.root) != HASH_BYTES:
            raise Bad(f"the root of the checkpoint has {len(checkpoint.root)} bytes, not {HASH_BYTES}")
        if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
            raise Bad("the checkpoint is of no entries, and its root is not that of the empty tree")
        return checkpoint


def open_checkpoint(raw: bytes, log_vkeys: Iterable[Vkey]) -> tuple[Checkpoint, Note]:
    """The checkpoint in a note, if one of the log's keys signed it.

    Raises:
        Bad: It is no checkpoint, of another log, not signed by any of the keys, or wrongly by one of them.
        Unchecked: There is no key to check it with.
    """
    keys = list(log_vkeys)
    note = parse(raw)
    checkpoint = Checkpoint.parse(note.text)
    if not keys:
        raise Unchecked("no key of the log was given, so its signature is unchecked")
    own = [key for key in keys if key.name == checkpoint.origin]
    if not own:
        raise Bad(f"the checkpoint is of log {shown(checkpoint.origin)}, the keys are of {shown(keys[0].name)}")
    signers = [key for key in own if note.signed_by(key)]  # asks all: a wrong signature by any known key is refused
    if not signers:
        raise Bad(f"the checkpoint of {shown(checkpoint.origin)} has no signature by the {len(own)} keys given for it")
    return checkpoint, note


def decimal(text: str, most: int = LARGEST) -> int:
    """A number written the only way it can be: ASCII digits, no sign, no leading zero.

    Raises:
        Bad: It is not, or it is larger than ``most``.
    """
    if not _DECIMAL.fullmatch(text) or int(text) > most:
        raise Bad(f"{shown(text)} is not a decimal number up to {most}")
    return int(text)


def unbase64(text: str) -> bytes:
    """What standard base64 says, if it is the only spelling of it.

    Raises:
        Bad: Another alphabet, white space, missing padding, or bits set that do not count.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if _b64(raw) != text:
        raise Bad(f"{shown(text)} is not canonical base64")
    return raw


def _signature(line: str) -> Signature:
    match line.split(" "):
        case ["—", name, text] if name and "+" not in name and not any(c.isspace() for c in name):
            raw = unbase64(text)
        case _:
            raise Bad(f"{shown(line)} is not a signature line")
    if len(raw) <= _ID_BYTES:
        raise Bad(f"the signature by {shown(name)} has only {len(raw)} bytes")
    return Signature(name, raw[:_ID_BYTES], raw[_ID_BYTES:])


def _verify(vkey: Vkey, message: bytes, signature: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(vkey.public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Bad(f"the signature by {shown(vkey.name)} with key {vkey.key_id.hex()} is wrong") from None


def _cosigned(note_text: str, timestamp: int) -> bytes:
    if not 0 <= timestamp <= LARGEST:
        raise Bad(f"the time {timestamp} of a cosignature is not a POSIX time")
    return f"cosignature/v1\ntime {timestamp}\n{note_text}".encode()


def _line(vkey: Vkey, signature: bytes) -> str:
    return Signature(vkey.name, vkey.key_id, signature).line


def _public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _encodes(name: str) -> bool:
    """Half a surrogate pair has no UTF-8."""
    return not re.search("[\ud800-\udfff]", name)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
