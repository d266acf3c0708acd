"""Checks a whole log: its checkpoint, every entry, and every tile against what the entries hash to.

Nothing that is read is believed: all hashes are computed from the entries, the tiles are compared with them byte for
byte, and the root with the one that the log signed. The log is read once from front to end, and of the hashes only
those at its growing edge are kept, so a large log takes no more memory than a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from expunge_verify import notes
from expunge_verify.errors import Bad, Unchecked, shown
from expunge_verify.merkle import HASH_BYTES, root
from expunge_verify.notes import Checkpoint, Vkey
from expunge_verify.policy import Policy
from expunge_verify.source import Source
from expunge_verify.tiles import (
    MOST_ENTRY_BYTES,
    TILE_WIDTH,
    Bundle,
    Tile,
    decode_bundle,
    hashes,
    need_length,
    roots,
)

CHECKPOINT: Final = "checkpoint"
LEAF_BYTES: Final = 2047  # leaf.MOST_BYTES, without loading the schema
Progress = Callable[[int, int], None]  # entries read, entries there are
Each = Callable[[int, dict[str, Any]], None]  # index and leaf; Any: JSON


@dataclass(frozen=True)
class Facts:
    """What a checked log holds, if it was to be kept, and what was found about it, a sentence each."""

    checkpoint: Checkpoint
    facts: tuple[str, ...]
    entries: tuple[bytes, ...] = field(repr=False)

    def leaves(self) -> Iterator[tuple[int, dict[str, Any]]]:  # Any: JSON
        """Each entry's index and what it says; entries are decoded as they are asked for.

        Raises:
            Bad: An entry is not one of an erasure log, or of another log than this.
        """
        for index, entry in enumerate(self.entries):
            yield index, _leaf(index, entry, self.checkpoint.origin)


def check_log(
    source: Source,
    trust: Policy | Sequence[Vkey],
    *,
    raw: bool = False,
    keep: bool = True,
    each: Each | None = None,
    progress: Progress | None = None,
) -> Facts:
    """Check everything that a log has published under its current checkpoint.

    Args:
        source: Where its files are.
        trust: A policy, or keys of the log one of which must have signed.
        raw: Take the entries as bytes: check that they are in the tree, not what they say.
        keep: Return the entries, too, which takes as much memory as they have bytes.
        each: Called with every leaf as it is read, which is before the root is known to be good; not if raw.
        progress: Called after each bundle of entries.

    Raises:
        Bad: Anything in it contradicts anything else, or the trust.
        Unchecked: A file is missing or out of reach.
    """
    policy = trust if isinstance(trust, Policy) else Policy.of(trust)
    checkpoint, facts = policy.open(source.get(CHECKPOINT, notes.MOST_BYTES))
    tree, kept, read = _Tree(source), list[bytes](), 0
    for entries in _bundles(source, checkpoint.size, LEAF_BYTES if not raw else MOST_ENTRY_BYTES):
        tree.add(b"".join([sha256(b"\x00" + entry).digest() for entry in entries]))
        if not raw:
            _tell(each, read, entries, checkpoint.origin)
        kept += entries if keep else ()
        read += len(entries)
        if progress:
            progress(read, checkpoint.size)
    facts += tree.checked(checkpoint)
    if not raw:
        facts.append(f"{read} entries follow the schema of their type and name this log")
    return Facts(checkpoint, tuple(facts), tuple(kept))


def tile_reader(source: Source) -> Callable[[Tile], bytes]:
    """Reads tiles for ``tiles.hashes``, unchecked; one that has become full since the checkpoint is cut to its width.

    Raises:
        Bad: (when read) It has not the length of its name.
        Unchecked: (when read) It is not there.
    """

    def read(tile: Tile) -> bytes:
        try:
            return need_length(tile, source.get(tile.path, tile.bytes))
        except Unchecked:
            if tile.width == TILE_WIDTH:
                raise
        full = Tile(tile.level, tile.index)
        return need_length(full, source.get(full.path, full.bytes))[: tile.bytes]

    return read


def _tell(each: Each | None, first: int, entries: Sequence[bytes], origin: str) -> None:
    """Decode all entries, whether or not somebody wants to hear of them."""
    for index, entry in enumerate(entries, first):
        leaf = _leaf(index, entry, origin)
        if each:
            each(index, leaf)


def _leaf(index: int, entry: bytes, origin: str) -> dict[str, Any]:  # Any: JSON
    from expunge_verify import leaf  # noqa: PLC0415 - a raw check needs no schema, so it does not load one

    try:
        decoded = leaf.decode(entry)
    except Bad as error:
        raise Bad(f"entry {index}: {error}") from None
    if decoded.get("log") != origin:
        raise Bad(f"entry {index} belongs to log {shown(decoded.get('log'))}, not to this one")
    return decoded


def _bundles(source: Source, size: int, most_entry_bytes: int) -> Iterator[list[bytes]]:
    for index in range(-(-size // TILE_WIDTH)):  # not bundles_of(): the log may claim 2^60 entries
        bundle = Bundle(index, min(TILE_WIDTH, size - index * TILE_WIDTH))
        yield _bundle(source, bundle, most_entry_bytes)


def _bundle(source: Source, bundle: Bundle, most_entry_bytes: int) -> list[bytes]:
    def read(named: Bundle) -> list[bytes]:
        return decode_bundle(source.get(named.path, named.width * (2 + most_entry_bytes)), named.width)

    try:
        return read(bundle)
    except Unchecked:
        if bundle.width == TILE_WIDTH:
            raise
    # A log may drop a partial bundle once the full one is there, also between the checkpoint and this line.
    return read(Bundle(bundle.index))[: bundle.width]


class _Tree:
    """The growing edge of the tree over the entries: each level's last tile, which is compared when it is full."""

    def __init__(self, source: Source) -> None:
        self._read = tile_reader(source)
        self._rows: list[bytearray] = []
        self._full: list[int] = []  # tiles that each level has behind its row
        self._compared = 0

    def add(self, some_hashes: bytes, level: int = 0) -> None:
        """Append hashes to a level, no more than fill its last tile."""
        if level == len(self._rows):
            self._rows.append(bytearray())
            self._full.append(0)
        row = self._rows[level]
        row += some_hashes
        if len(row) == TILE_WIDTH * HASH_BYTES:
            self._compare(level)
            above = roots([bytes(row)])
            self._full[level] += 1
            row.clear()
            self.add(above, level + 1)

    def checked(self, checkpoint: Checkpoint) -> list[str]:
        """Compare what is not full yet, and the root, with what the log says; a sentence each."""
        size = checkpoint.size
        for level, row in enumerate(self._rows):
            if row:
                self._compare(level)
        # The root is made of the complete subtrees at the edge, and those lie in the tiles that are not full.
        if root(hashes(lambda tile: bytes(self._rows[tile.level]), size), size) != checkpoint.root:
            raise Bad(f"the {size} entries do not hash to the root that the log signed")
        return [f"{size} entries hash to the signed root", f"{self._compared} tiles are what the entries hash to"]

    def _compare(self, level: int) -> None:
        row = self._rows[level]
        tile = Tile(level, self._full[level], len(row) // HASH_BYTES)
        if self._read(tile) != row:
            raise Bad(f"{tile.path} is not what the entries hash to")
        self._compared += 1
