"""Checks a whole log: its checkpoint, every entry, and every tile against what the entries hash to.

Nothing that is read is believed: all hashes are computed from the entries, the tiles are compared with them byte for
byte, and the root with the one that the log signed.
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
    TILE_WIDTH,
    Bundle,
    Tile,
    decode_bundle,
    hashes,
    need_length,
    roots,
    tiles_of,
)

CHECKPOINT: Final = "checkpoint"
Progress = Callable[[int, int], None]  # entries read, entries there are


@dataclass(frozen=True)
class Facts:
    """What a checked log holds, and what was found about it, a sentence each."""

    checkpoint: Checkpoint
    facts: tuple[str, ...]
    entries: tuple[bytes, ...] = field(repr=False)

    def leaves(self) -> Iterator[tuple[int, dict[str, Any]]]:  # Any: JSON
        """Each entry's index and what it says; entries are decoded as they are asked for.

        Raises:
            Bad: An entry is not one of an erasure log, or of another log than this.
        """
        from expunge_verify import leaf  # noqa: PLC0415 - a raw check needs no schema, so it does not load one

        for index, entry in enumerate(self.entries):
            try:
                decoded = leaf.decode(entry)
            except Bad as error:
                raise Bad(f"entry {index}: {error}") from None
            if decoded.get("log") != self.checkpoint.origin:
                raise Bad(f"entry {index} belongs to log {shown(decoded.get('log'))}, not to this one")
            yield index, decoded


def check_log(
    source: Source, trust: Policy | Sequence[Vkey], *, raw: bool = False, progress: Progress | None = None
) -> Facts:
    """Check everything that a log has published under its current checkpoint.

    Args:
        source: Where its files are.
        trust: A policy, or keys of the log one of which must have signed.
        raw: Take the entries as bytes: check that they are in the tree, not what they say.
        progress: Called after each bundle of entries.

    Raises:
        Bad: Anything in it contradicts anything else, or the trust.
        Unchecked: A file is missing or out of reach.
    """
    policy = trust if isinstance(trust, Policy) else Policy.of(trust)
    checkpoint, facts = policy.open(source.get(CHECKPOINT, notes.MOST_BYTES))
    entries = tuple(_entries(source, checkpoint.size, progress))
    facts += _tree(source, checkpoint, entries)
    found = Facts(checkpoint, (), entries)
    if not raw:
        read = sum(1 for _ in found.leaves())
        facts.append(f"{read} entries follow the schema of their type and name this log")
    return Facts(checkpoint, tuple(facts), entries)


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


def _entries(source: Source, size: int, progress: Progress | None) -> Iterator[bytes]:
    read = 0
    for index in range(-(-size // TILE_WIDTH)):  # not bundles_of(): the log may claim 2^60 entries
        bundle = Bundle(index, min(TILE_WIDTH, size - index * TILE_WIDTH))
        yield from _bundle(source, bundle)
        read += bundle.width
        if progress:
            progress(read, size)


def _bundle(source: Source, bundle: Bundle) -> list[bytes]:
    try:
        return decode_bundle(source.get(bundle.path, bundle.most_bytes), bundle.width)
    except Unchecked:
        if bundle.width == TILE_WIDTH:
            raise
    # A log may drop a partial bundle once the full one is there, also between the checkpoint and this line.
    full = Bundle(bundle.index)
    return decode_bundle(source.get(full.path, full.most_bytes), full.width)[: bundle.width]


def _tree(source: Source, checkpoint: Checkpoint, entries: Sequence[bytes]) -> list[str]:
    """Compare the tiles and the root with what the entries hash to."""
    rows = _rows(b"".join([sha256(b"\x00" + entry).digest() for entry in entries]))
    read, tiles = tile_reader(source), tiles_of(len(entries))
    for tile in tiles:
        if read(tile) != _part(rows, tile):
            raise Bad(f"{tile.path} is not what the entries hash to")
    if root(hashes(lambda tile: _part(rows, tile), len(entries)), len(entries)) != checkpoint.root:
        raise Bad(f"the {len(entries)} entries do not hash to the root that the log signed")
    return [f"{len(entries)} entries hash to the signed root", f"{len(tiles)} tiles are what the entries hash to"]


def _rows(leaf_hashes: bytes) -> list[bytes]:
    """All hashes of each tile level."""
    rows = [leaf_hashes]
    while len(rows[-1]) >= TILE_WIDTH * HASH_BYTES:
        row, step = rows[-1], TILE_WIDTH * HASH_BYTES
        rows.append(roots([row[at : at + step] for at in range(0, len(row), step)]))
    return rows


def _part(rows: Sequence[bytes], tile: Tile) -> bytes:
    start = tile.index * TILE_WIDTH * HASH_BYTES
    return rows[tile.level][start : start + tile.bytes]
