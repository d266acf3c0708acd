"""A log of opaque entries, written into a directory with the writing half of the verifier's own modules."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from expunge_verify import merkle, notes, tiles

ROOT = Path(__file__).parents[2]
ORIGIN = "log.example/erasures"
SIGNER = notes.Signer(ORIGIN, bytes(range(32)))


def random_entries(count: int, *, seed: int = 0, most_bytes: int = 40) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randrange(most_bytes + 1)) for _ in range(count)]


def checkpoint_over(entries: list[bytes]) -> bytes:
    root = merkle.root_of([merkle.leaf_hash(entry) for entry in entries])
    text = notes.Checkpoint(ORIGIN, len(entries), root).text
    return notes.sealed(text, [SIGNER.sign(text)])


def written(directory: Path, entries: list[bytes]) -> Path:
    """Everything that a log of these entries publishes."""
    files = {"checkpoint": checkpoint_over(entries)}
    for bundle in tiles.bundles_of(len(entries)):
        start = bundle.index * tiles.TILE_WIDTH
        files[bundle.path] = tiles.encode_bundle(entries[start : start + bundle.width])
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    files |= {tile.path: content for tile, content in tiles.grown(_nothing_to_read, 0, leaves).items()}
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def tile_in(directory: Path):
    return lambda tile: (directory / tile.path).read_bytes()


def vectors(folder: str) -> Path:
    """Published test vectors, which are read in place and not part of this repository."""
    at = Path(os.environ.get("EXPUNGE_VECTORS") or ROOT.parent / "shared" / "vectors") / folder / "testdata"
    if not at.is_dir():
        pytest.skip(f"no test vectors of others: EXPUNGE_VECTORS names no folder with {folder}/testdata")
    return at


def _nothing_to_read(tile):
    raise AssertionError(f"an empty tree has no {tile.path}")
