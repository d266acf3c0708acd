"""Names of tiles as in the specification, bundles there and back, and trees that grow to what they would be at once."""

from __future__ import annotations

import re
from itertools import accumulate

import pytest
from expunge_verify import merkle, tiles
from expunge_verify.errors import Bad, VerifyError
from expunge_verify.tiles import Bundle, Tile
from hypothesis import given, settings
from hypothesis import strategies as st

TILES = st.builds(Tile, st.integers(0, 63), st.integers(0, merkle.LARGEST), st.integers(1, 256))
ENTRIES = st.lists(st.binary(max_size=300), min_size=1, max_size=256)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(1, 1234067), "tile/1/x001/x234/067"),
        (Tile(63, 999, 255), "tile/63/999.p/255"),
        (Tile(0, 1000, 1), "tile/0/x001/000.p/1"),
        (Bundle(1234067, 7), "tile/entries/x001/x234/067.p/7"),
    ],
)
def test_names_are_those_of_the_specification(tile, path):
    assert tile.path == path
    assert type(tile).parse(path) == tile


@given(TILES)
def test_a_name_leads_back_to_its_tile(tile):
    assert Tile.parse(tile.path) == tile
    assert Bundle.parse(Bundle(tile.index, tile.width).path) == Bundle(tile.index, tile.width)


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/0",
        "tile/00/000",
        "tile/64/000",
        "tile/+1/000",
        "tile/0/x000/001",
        "tile/0/x001",
        "tile/0/001/234",
        "tile/0/x1000",
        "tile/0/1000",
        "tile/0/000.p/0",
        "tile/0/000.p/00",
        "tile/0/000.p/256",
        "tile/0/000.p/007",
        "tile/0/000.p/",
        "tile/0/000.p/1/",
        "tile/0/../000",
        "/tile/0/000",
        "tile/0/000\n",
        "tile/0/٣٣٣",
        "tile/-1/000",
        "tile/entries/000",
        "tile/0/" + "x999/" * 6 + "999",
        "tile/0/" + "x999/" * 900 + "999",
        "",
    ],
)
def test_other_spellings_are_no_tiles(path):
    with pytest.raises(Bad):
        Tile.parse(path)
    with pytest.raises(Bad):
        Bundle.parse(re.sub("^tile/(0|entries)/", lambda m: "tile/entries/" if m[1] == "0" else "tile/0/", path))


@given(st.text(alphabet="tile/0123entriesx.p", max_size=40))
def test_any_name_is_read_or_refused(path):
    for kind in (Tile, Bundle):
        try:
            assert kind.parse(path).path == path
        except VerifyError:
            continue


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (0, []),
        (1, ["tile/0/000.p/1"]),
        (256, ["tile/0/000", "tile/1/000.p/1"]),
        (65536, [*(f"tile/0/{n:03}" for n in range(256)), "tile/1/000", "tile/2/000.p/1"]),
        (
            70_000,  # the example of the specification
            [
                *(f"tile/0/{n:03}" for n in range(273)),
                "tile/0/273.p/112",
                "tile/1/000",
                "tile/1/001.p/17",
                "tile/2/000.p/1",
            ],
        ),
    ],
)
def test_a_tree_has_the_tiles_of_the_specification(size, names):
    assert [tile.path for tile in tiles.tiles_of(size)] == names
    level0 = [tile for tile in tiles.tiles_of(size) if not tile.level]
    assert tiles.bundles_of(size) == [Bundle(tile.index, tile.width) for tile in level0]


@given(ENTRIES)
def test_a_bundle_gives_its_entries_back(entries):
    assert tiles.decode_bundle(tiles.encode_bundle(entries), len(entries)) == entries


def test_the_longest_entry_fits_and_a_longer_one_does_not():
    assert tiles.decode_bundle(tiles.encode_bundle([bytes(65535)]), 1) == [bytes(65535)]
    with pytest.raises(Bad):
        tiles.encode_bundle([bytes(65536)])


@pytest.mark.parametrize("entries", [[], [b"a"] * 257])
def test_a_bundle_of_none_or_too_many_is_not_written(entries):
    with pytest.raises(Bad):
        tiles.encode_bundle(entries)


@given(ENTRIES, st.integers(1, 256), st.binary(max_size=3))
def test_a_bundle_of_another_width_or_length_is_refused(entries, width, more):
    raw = tiles.encode_bundle(entries)
    if width != len(entries):
        with pytest.raises(Bad):
            tiles.decode_bundle(raw, width)
    if more:
        with pytest.raises(Bad):
            tiles.decode_bundle(raw + more, len(entries))
    with pytest.raises(Bad):
        tiles.decode_bundle(raw[:-1], len(entries))


@given(st.binary(max_size=600), st.integers(-2, 300))
def test_any_bundle_is_read_in_one_way_or_refused(raw, width):
    try:
        entries = tiles.decode_bundle(raw, width)
    except VerifyError:
        return
    assert tiles.encode_bundle(entries) == raw


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=6), st.integers(0, 1))
def test_a_tree_grown_in_steps_is_the_one_built_at_once(steps, seed):
    leaves = [merkle.leaf_hash(b"%d %d" % (seed, at)) for at in range(sum(steps))]
    stored, size = {}, 0
    for end in accumulate(steps):
        changed = tiles.grown(stored.__getitem__, size, leaves[size:end])
        assert all(len(content) == tile.bytes for tile, content in changed.items())
        assert not any(tile in stored for tile in changed), "no name may get a second content"
        stored |= changed
        size = end
    at_once = tiles.grown(stored.__getitem__, 0, leaves)
    assert list(at_once) == tiles.tiles_of(size)
    assert all(stored[tile] == content for tile, content in at_once.items())
    assert merkle.root(tiles.hashes(stored.__getitem__, size), size) == merkle.root_of(leaves)


def test_appending_nothing_changes_nothing():
    assert tiles.grown({}.__getitem__, 300, []) == {}


def test_two_levels_up_a_tile_fills_and_the_next_begins():
    leaves = [merkle.leaf_hash(b"%d" % at) for at in range(65_537)]
    stored = tiles.grown({}.__getitem__, 0, leaves[:65_535])
    changed = tiles.grown(stored.__getitem__, 65_535, leaves[65_535:])
    assert [tile.path for tile in changed] == [
        "tile/0/255",
        "tile/0/256.p/1",
        "tile/1/000",
        "tile/2/000.p/1",
    ]
    assert changed[Tile(2, 0, 1)] == merkle.root_of(leaves[:65_536])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2000), st.data())
def test_proofs_of_any_earlier_size_come_out_of_the_tiles(size, data):
    leaves = [merkle.leaf_hash(b"%d" % at) for at in range(size)]
    stored = tiles.grown({}.__getitem__, 0, leaves)
    read = tiles.hashes(stored.__getitem__, size)
    earlier = data.draw(st.integers(1, size))
    index = data.draw(st.integers(0, earlier - 1))
    old, new = merkle.root_of(leaves[:earlier]), merkle.root_of(leaves)
    merkle.check_inclusion(leaves[index], index, earlier, merkle.inclusion_proof(read, index, earlier), old)
    merkle.check_consistency(earlier, old, size, new, merkle.consistency_proof(read, earlier, size))


@pytest.mark.parametrize(("level", "index"), [(0, 300), (9, 0), (1, 150), (-1, 0), (0, -1), (64, 0)])
def test_a_subtree_that_is_not_complete_is_not_read(level, index):
    stored = tiles.grown({}.__getitem__, 0, [bytes(32)] * 300)
    with pytest.raises(Bad):
        tiles.hashes(stored.__getitem__, 300)(level, index)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"x", lambda raw: b""])
def test_a_tile_of_another_length_is_refused(change):
    with pytest.raises(Bad):
        tiles.hashes(lambda tile: change(bytes(tile.bytes)), 300)(0, 299)
    with pytest.raises(Bad):
        tiles.grown(lambda tile: change(bytes(tile.bytes)), 300, [bytes(32)])
