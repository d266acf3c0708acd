"""Tiles and entry bundles, the files that a log consists of: C2SP tlog-tiles.

Level 0 has the leaf hashes, 256 to a tile; each further level has the roots of the full tiles below it. A tile that
the tree does not fill yet carries its width in its name, so that no name ever has two contents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Final, Self

from expunge_verify.errors import Bad, shown
from expunge_verify.merkle import HASH_BYTES, LARGEST, Read, parents

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
MOST_LEVEL: Final = 63
MOST_ENTRY_BYTES: Final = (1 << 16) - 1

_NUMBER = r"((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?"
_TILE = re.compile(r"tile/(0|[1-9][0-9]?)/" + _NUMBER)
_BUNDLE = re.compile(r"tile/entries/" + _NUMBER)
_CACHED_TILES = 64


@dataclass(frozen=True, order=True)
class Tile:
    """Up to 256 hashes of one level."""

    level: int
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        _need_place(self.index, self.width)
        if not 0 <= self.level <= MOST_LEVEL:
            raise Bad(f"level {self.level} of a tile is not between 0 and {MOST_LEVEL}")

    @property
    def path(self) -> str:
        """Its name below the log's address.

        >>> Tile(0, 1234, 7).path
        'tile/0/x001/234.p/7'
        """
        return f"tile/{self.level}/{_named(self.index, self.width)}"

    @classmethod
    def parse(cls, path: str) -> Self:
        """The tile of this name.

        Raises:
            Bad: No tile has it.
        """
        found = _TILE.fullmatch(path)
        if not found:
            raise Bad(f"{shown(path)} is not the name of a tile")
        tile = cls(int(found[1]), *_place(found[2], found[3]))
        if tile.path != path:
            raise Bad(f"{shown(path)} is not how the name of that tile is written")
        return tile

    @property
    def bytes(self) -> int:
        """How long its content is."""
        return self.width * HASH_BYTES


@dataclass(frozen=True, order=True)
class Bundle:
    """Up to 256 entries, those whose hashes stand in the tile of level 0 with the same index."""

    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        _need_place(self.index, self.width)

    @property
    def path(self) -> str:
        """Its name below the log's address."""
        return f"tile/entries/{_named(self.index, self.width)}"

    @classmethod
    def parse(cls, path: str) -> Self:
        """The bundle of this name.

        Raises:
            Bad: No bundle has it.
        """
        found = _BUNDLE.fullmatch(path)
        if not found:
            raise Bad(f"{shown(path)} is not the name of an entry bundle")
        bundle = cls(*_place(found[1], found[2]))
        if bundle.path != path:
            raise Bad(f"{shown(path)} is not how the name of that entry bundle is written")
        return bundle

    @property
    def most_bytes(self) -> int:
        """How long its content can be."""
        return self.width * (2 + MOST_ENTRY_BYTES)


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Entries behind one another, each after its length in two bytes.

    Raises:
        Bad: There are none or more than 256, or one is longer than 65535 bytes.
    """
    _need_place(0, len(entries))
    if longest := max((len(entry) for entry in entries if len(entry) > MOST_ENTRY_BYTES), default=0):
        raise Bad(f"an entry has {longest} bytes; at most {MOST_ENTRY_BYTES} fit")
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def decode_bundle(raw: bytes, width: int) -> list[bytes]:
    """The entries of a bundle.

    Raises:
        Bad: They are not exactly ``width``, or the last one is cut short or followed by more.
    """
    _need_place(0, width)
    entries, at = list[bytes](), 0
    for _ in range(width):
        start = at + 2
        at = start + int.from_bytes(raw[at:start], "big")
        entries.append(raw[start:at])
        if start > len(raw):
            break
    if at != len(raw) or len(entries) != width:
        raise Bad(f"the bundle of {len(raw)} bytes does not hold exactly {width} entries")
    return entries


def tiles_of(size: int) -> list[Tile]:
    """Every tile of a tree, level by level, a partial one last in its level.

    >>> [tile.path for tile in tiles_of(257)]
    ['tile/0/000', 'tile/0/001.p/1', 'tile/1/000.p/1']
    """
    levels = range(-(-size.bit_length() // TILE_HEIGHT))
    return [Tile(level, index, width) for level in levels for index, width in _places(size >> level * TILE_HEIGHT)]


def bundles_of(size: int) -> list[Bundle]:
    """Every entry bundle of a log of this size, a partial one last."""
    return [Bundle(index, width) for index, width in _places(size)]


def hashes(read_tile: Callable[[Tile], bytes], size: int) -> Read:
    """Reads the complete subtrees of a tree of ``size`` from its tiles; the tiles themselves are not checked.

    Raises:
        Bad: (when read from) A tile has not the length that its name says, or there is no such complete subtree.
    """

    @lru_cache(maxsize=_CACHED_TILES)
    def rows(level: int, index: int) -> list[bytes]:
        width = min(TILE_WIDTH, (size >> level * TILE_HEIGHT) - index * TILE_WIDTH)
        tile = Tile(level, index, width)
        return _rows(need_length(tile, read_tile(tile)))

    def read(level: int, index: int) -> bytes:
        if not (level >= 0 and 0 <= index < size >> level):
            raise Bad(f"a tree of {size} has no complete subtree {index} of level {level}")
        tile_level, height = divmod(level, TILE_HEIGHT)
        tile_index, at = divmod(index, TILE_WIDTH >> height)
        return rows(tile_level, tile_index)[height][at * HASH_BYTES : (at + 1) * HASH_BYTES]

    return read


def grown(read_tile: Callable[[Tile], bytes], size: int, new_leaf_hashes: Sequence[bytes]) -> dict[Tile, bytes]:
    """The tiles that change or appear when leaves are appended to a tree of ``size``, each with its whole content.

    Reads one tile a level: the one the tree of ``size`` did not fill.

    Raises:
        Bad: A tile that was read has not the length that its name says.
    """
    changed: dict[Tile, bytes] = {}
    row = b"".join(new_leaf_hashes)
    for level in count():
        before = size >> level * TILE_HEIGHT
        first, filled = divmod(before, TILE_WIDTH)
        if not row:
            return changed
        if filled:
            partial = Tile(level, first, filled)
            row = need_length(partial, read_tile(partial)) + row
        contents = [row[at : at + TILE_WIDTH * HASH_BYTES] for at in range(0, len(row), TILE_WIDTH * HASH_BYTES)]
        for index, content in enumerate(contents, first):
            changed[Tile(level, index, len(content) // HASH_BYTES)] = content
        row = roots(contents)
    raise AssertionError("unreachable: count() does not end")


def roots(contents: Sequence[bytes]) -> bytes:
    """The row of the level above these tiles: the roots of the full ones; a partial one has none."""
    return b"".join([_rows(content)[-1] for content in contents])


def need_length(tile: Tile, content: bytes) -> bytes:
    """The content, if it is as long as the tile's name says.

    Raises:
        Bad: It is not.
    """
    if len(content) != tile.bytes:
        raise Bad(f"{tile.path} has {len(content)} bytes, not {tile.bytes}")
    return content


def _rows(content: bytes) -> list[bytes]:
    """A tile's hashes and the rows above them, up to the one of its root."""
    rows = [content]
    for _ in range(TILE_HEIGHT):
        rows.append(parents(rows[-1]))
    return rows


def _places(width: int) -> Iterator[tuple[int, int]]:
    """Index and width of the tiles that a row of this many hashes fills."""
    full, rest = divmod(width, TILE_WIDTH)
    yield from ((index, TILE_WIDTH) for index in range(full))
    if rest:
        yield full, rest


def _named(index: int, width: int) -> str:
    name = f"{index % 1000:03d}"
    while index := index // 1000:
        name = f"x{index % 1000:03d}/{name}"
    return name if width == TILE_WIDTH else f"{name}.p/{width}"


def _place(number: str, width: str | None) -> tuple[int, int]:
    # A width of 256 has no suffix, so Tile.path differs from a name that has it.
    return int(re.sub("[x/]", "", number)), int(width) if width else TILE_WIDTH


def _need_place(index: int, width: int) -> None:
    if not (0 <= index <= LARGEST and 1 <= width <= TILE_WIDTH):
        raise Bad(f"index {index} and width {width} are not those of a tile: 1 to {TILE_WIDTH} wide")
