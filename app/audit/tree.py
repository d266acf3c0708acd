"""The log's tree as PostgreSQL holds it: roots and proofs, read from its tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from expunge_verify import merkle
from expunge_verify.errors import VerifyError
from expunge_verify.notes import Checkpoint
from expunge_verify.tiles import TILE_WIDTH, Tile, hashes
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.storage import audit


def root_at(tx: Session, size: int) -> bytes:
    """The root of the log's first ``size`` entries, from its tiles."""
    return merkle.root(hashes(reader(tx), size), size)


def inclusion_proof(tx: Session, index: int, size: int) -> list[bytes]:
    """The audit path of entry ``index`` in the tree of ``size``."""
    return merkle.inclusion_proof(near(tx, [index], size), index, size)


def near(tx: Session, indices: Iterable[int], size: int) -> merkle.Read:
    """Reads the tree of ``size``; the tiles that these entries' audit paths touch by one statement, now."""
    touched = audit.tiles(tx, sorted({tile for index in indices for tile in _around(index, size)}))
    return hashes(lambda tile: touched[tile] if tile in touched else audit.tile(tx, tile), size)


def consistency_proof(tx: Session, old: int, new: int) -> list[bytes]:
    """That the tree of ``new`` begins with the tree of ``old``."""
    return merkle.consistency_proof(hashes(reader(tx), new), old, new)


def misplaced(tx: Session, held: Checkpoint, start: int, end: int) -> int | None:
    """Of these tiles of level 0, one that does not stand where it does in the tree that was signed.

    The audit path of a tile's first leaf is made of all other hashes of the tile, so it stands for the whole of it.
    """
    read = hashes(reader(tx), held.size)
    for tile in range(start, end):
        first = tile * TILE_WIDTH
        try:
            path = merkle.inclusion_proof(read, first, held.size)
            merkle.check_inclusion(read(0, first), first, held.size, path, held.root)
        except (NotFound, VerifyError):
            return tile
    return None


def _around(index: int, size: int) -> Iterator[Tile]:
    """The tiles that an audit path touches: on each level the entry's own, and the last."""
    level = 0
    while row := size >> 8 * level:
        for at in {index >> 8 * (level + 1), (row - 1) // TILE_WIDTH}:
            if at * TILE_WIDTH < row:
                yield Tile(level, at, min(TILE_WIDTH, row - at * TILE_WIDTH))
        level += 1


def reader(tx: Session) -> Callable[[Tile], bytes]:
    """Reads tiles, as the verifier's functions on trees ask for them."""
    return lambda tile: audit.tile(tx, tile)
