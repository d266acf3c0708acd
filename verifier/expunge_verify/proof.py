"""Proofs that a log holds an entry, as one text file: C2SP tlog-proof.

The file ends with the checkpoint that the proof leads to, so checking it needs the entry and a policy, nothing else.
The extra data is signed by nobody.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from expunge_verify import notes
from expunge_verify.errors import Bad
from expunge_verify.merkle import HASH_BYTES, check_inclusion, leaf_hash
from expunge_verify.policy import Policy

FIRST_LINE: Final = "c2sp.org/tlog-proof@v1"
MOST_HASHES: Final = 63
MOST_EXTRA_BYTES: Final = 1 << 16
MOST_BYTES: Final = notes.MOST_BYTES + 2 * MOST_EXTRA_BYTES


@dataclass(frozen=True)
class Proof:
    """What a proof file says, none of it checked yet; the checkpoint is the signed note as it stands there."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None


def format(  # noqa: A001 - proof.format reads like the pair of proof.parse
    index: int, proof: Sequence[bytes], checkpoint_note: bytes, extra: bytes | None = None
) -> bytes:
    """The proof file for entry ``index`` of the tree of this checkpoint."""
    head = [FIRST_LINE, f"index {index}", *map(_b64, proof)]
    if extra is not None:
        head.insert(1, f"extra {_b64(extra)}")
    return "".join(f"{line}\n" for line in head).encode() + b"\n" + checkpoint_note


def parse(raw: bytes) -> Proof:
    """Read a proof file; nothing is checked by that but its form, the checkpoint's included.

    Raises:
        Bad: It is not exactly in the format, or larger than 384 KiB.
    """
    if len(raw) > MOST_BYTES:
        raise Bad(f"the proof has {len(raw)} bytes; at most {MOST_BYTES} are read")
    head, _, checkpoint = raw.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Bad("the proof has other than ASCII characters before its checkpoint") from None
    first, extra, index, hashes = _fields(lines)
    if first != FIRST_LINE:
        raise Bad(f"the proof does not begin with {FIRST_LINE}")
    notes.Checkpoint.parse(notes.parse(checkpoint).text)
    return Proof(index, _hashes(hashes), checkpoint, extra)


def check(entry: bytes, proof: Proof, policy: Policy) -> list[str]:
    """Check that this entry stands in a log that the policy trusts; what was found, a sentence each.

    Raises:
        Bad: It does not, or the checkpoint is not signed as the policy asks.
        Unchecked: The policy has no key of a log, or needs signatures of a kind that is not read yet.
    """
    checkpoint, facts = policy.open(proof.checkpoint)
    check_inclusion(leaf_hash(entry), proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    return [*facts, f"entry {proof.index} of {checkpoint.size} is in the log"]


def _fields(lines: list[str]) -> tuple[str, bytes | None, int, list[str]]:
    """First line, extra data, index, lines of hashes."""
    extra = None
    if len(lines) > 1 and lines[1].startswith("extra "):
        extra = notes.unbase64(lines.pop(1).removeprefix("extra "))
        if len(extra) > MOST_EXTRA_BYTES:
            raise Bad(f"the proof has {len(extra)} bytes of extra data; at most {MOST_EXTRA_BYTES} are read")
    if len(lines) < 2 or not lines[1].startswith("index "):
        raise Bad("the proof does not say the index of its entry")
    return lines[0], extra, notes.decimal(lines[1].removeprefix("index ")), lines[2:]


def _hashes(lines: list[str]) -> tuple[bytes, ...]:
    if len(lines) > MOST_HASHES:
        raise Bad(f"the proof has {len(lines)} hashes; no tree needs more than {MOST_HASHES}")
    hashes = tuple(notes.unbase64(line) for line in lines)
    if any(len(one) != HASH_BYTES for one in hashes):
        raise Bad(f"a hash of the proof has not {HASH_BYTES} bytes")
    return hashes


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
