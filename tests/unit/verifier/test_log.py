"""A whole log: good ones pass, and no byte of any of its files can be changed."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from hashlib import sha256

import pytest
from expunge_verify import leaf as leaves
from expunge_verify import log, merkle, notes, tiles
from expunge_verify.errors import Bad, Unchecked
from expunge_verify.policy import Policy
from expunge_verify.source import Directory
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outside.logs import ORIGIN, SIGNER, random_entries, tile_in, written

pytestmark = pytest.mark.slow  # every bit of every file

KEYS = [SIGNER.vkey]
LARGE = 100_000


class Files:
    """A log in memory, so that each of its files can be replaced."""

    def __init__(self, files):
        self.files = files

    def get(self, resource_path, max_bytes):
        try:
            content = self.files[resource_path]
        except KeyError:
            raise Unchecked(f"{resource_path} is not here") from None
        if len(content) > max_bytes:
            raise Unchecked(f"{resource_path} is too long")
        return content


def _files(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def _leaf(at, origin=ORIGIN):
    fields = {"v": 1, "log": origin, "type": "config.changed", "day": "2026-11-23"}
    digest = sha256(b"%d" % at).hexdigest()
    leaf = {**fields, "nonce": digest[:32], "commit": digest}
    return json.dumps(leaf, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 600])
def test_a_whole_log_is_checked(tmp_path, count):
    entries = random_entries(count)
    found = log.check_log(Directory(written(tmp_path, entries)), KEYS, raw=True)
    assert found.checkpoint == notes.Checkpoint(
        ORIGIN, count, merkle.root_of([merkle.leaf_hash(entry) for entry in entries])
    )
    assert found.entries == tuple(entries)
    assert f"{count} entries hash to the signed root" in found.facts


def test_entries_that_nobody_wants_are_not_kept(tmp_path):
    entries = random_entries(300)
    found = log.check_log(Directory(written(tmp_path, entries)), KEYS, raw=True, keep=False)
    assert (found.entries, found.checkpoint.size) == ((), 300)


def test_every_leaf_is_told_as_it_is_read(tmp_path):
    told = []
    source = Directory(written(tmp_path, [_leaf(at) for at in range(300)]))
    log.check_log(source, KEYS, keep=False, each=lambda *leaf: told.append(leaf))
    assert [(at, leaf["type"]) for at, leaf in told] == [(at, "config.changed") for at in range(300)]


class Largest:
    """A log of full bundles of the longest entries, 16 MiB each, made as they are asked for."""

    def __init__(self, bundles):
        self.bundle = tiles.encode_bundle([bytes(tiles.MOST_ENTRY_BYTES)] * tiles.TILE_WIDTH)
        row = merkle.leaf_hash(bytes(tiles.MOST_ENTRY_BYTES)) * tiles.TILE_WIDTH
        above = tiles.roots([row]) * bundles
        tops = tiles.hashes(lambda tile: {0: row, 1: above}[tile.level], bundles * tiles.TILE_WIDTH)
        text = notes.Checkpoint(ORIGIN, bundles * 256, merkle.root(tops, bundles * 256)).text
        self.small = {"checkpoint": notes.sealed(text, [SIGNER.sign(text)]), f"tile/1/000.p/{bundles}": above}
        self.row, self.asked = row, []

    def get(self, resource_path, max_bytes):
        self.asked.append(max_bytes)
        if resource_path in self.small:
            return self.small[resource_path]
        content = self.bundle if "entries" in resource_path else self.row
        if len(content) > max_bytes:
            raise Unchecked(f"{resource_path} is too long")
        return content


def test_bundles_of_the_largest_size_take_the_memory_of_a_few():
    source = Largest(12)  # 192 MiB
    tracemalloc.start()
    assert "3072 entries hash to the signed root" in log.check_log(source, KEYS, raw=True, keep=False).facts
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_entries_too_long_for_leaves_are_not_even_read():
    source = Largest(12)
    with pytest.raises(Unchecked, match="too long"):
        log.check_log(source, KEYS)
    assert max(source.asked) < 1 << 20
    assert log.LEAF_BYTES == leaves.MOST_BYTES


def test_an_empty_log_is_a_checkpoint_and_nothing_else(tmp_path):
    assert log.check_log(Directory(written(tmp_path, [])), KEYS).entries == ()


def test_any_changed_bit_of_any_file_is_refused(tmp_path):
    files = _files(written(tmp_path, random_entries(5, most_bytes=9)))
    assert sorted(files) == ["checkpoint", "tile/0/000.p/5", "tile/entries/000.p/5"]
    for name, content in files.items():
        for at in range(len(content) * 8):
            changed = content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :]
            with pytest.raises((Bad, Unchecked)):
                log.check_log(Files({**files, name: changed}), KEYS, raw=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_byte_of_a_log_of_three_levels_is_refused(three_levels, data):
    name = data.draw(st.sampled_from(sorted(three_levels)))
    content = three_levels[name]
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    changed = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    with pytest.raises((Bad, Unchecked)):
        log.check_log(Files({**three_levels, name: changed}), KEYS, raw=True)


@pytest.fixture(scope="module")
def three_levels(tmp_path_factory):
    return _files(written(tmp_path_factory.mktemp("log"), random_entries(600, most_bytes=3)))


def test_a_missing_file_is_unchecked_and_not_bad(three_levels):
    for name in three_levels:
        with pytest.raises(Unchecked):
            log.check_log(Files({n: c for n, c in three_levels.items() if n != name}), KEYS, raw=True)


def test_a_longer_or_shorter_file_is_not_accepted(three_levels):
    for name, content in three_levels.items():
        for changed in (content + b"\n", content[:-1], b""):
            with pytest.raises((Bad, Unchecked)):
                log.check_log(Files({**three_levels, name: changed}), KEYS, raw=True)


def test_a_partial_file_may_have_become_full_since_the_checkpoint(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    entries = random_entries(70_000, most_bytes=2)
    old = _files(written(before, entries[: 65_536 + 300]))
    new = _files(written(after, entries))
    partial = {name for name in old if ".p/" in name}
    assert {"tile/0/x257", "tile/entries/257.p/44", "tile/2/000.p/1"} & partial
    kept = {name: old[name] for name in partial if name.partition(".p/")[0] not in new}
    served = {**new, **kept, "checkpoint": old["checkpoint"]}
    assert log.check_log(Files(served), KEYS, raw=True).checkpoint.size == 65_836


def test_a_log_rewritten_from_below_is_refused_under_its_old_checkpoint(tmp_path):
    """Whoever owns the database can rewrite entry and tiles; what the log signed before stays signed."""
    good, forged = random_entries(300), [b"another past", *random_entries(300)[1:]]
    old = _files(written(tmp_path / "good", good))
    new = _files(written(tmp_path / "forged", forged))
    with pytest.raises(Bad, match="root"):
        log.check_log(Files({**new, "checkpoint": old["checkpoint"]}), KEYS, raw=True)


def test_a_log_signed_by_a_stranger_is_refused(three_levels):
    with pytest.raises(Bad):
        log.check_log(Files(three_levels), [notes.Signer(ORIGIN, bytes(32)).vkey], raw=True)
    with pytest.raises(Unchecked):
        log.check_log(Files(three_levels), [], raw=True)


def test_a_policy_is_asked_for_its_witnesses(three_levels):
    witness = notes.vkey_of("witness.example", bytes(32), notes.COSIGNATURE)
    policy = Policy.parse(f"log {SIGNER.vkey}\nwitness w {witness}\nquorum w")
    with pytest.raises(Bad, match="quorum"):
        log.check_log(Files(three_levels), policy, raw=True)


def test_a_log_that_claims_to_be_endless_ends_at_the_first_missing_file():
    text = notes.Checkpoint(ORIGIN, (1 << 63) - 1, bytes(32)).text
    with pytest.raises(Unchecked):
        log.check_log(Files({"checkpoint": notes.sealed(text, [SIGNER.sign(text)])}), KEYS)


def test_progress_counts_up_to_the_end(tmp_path):
    told = []
    log.check_log(
        Directory(written(tmp_path, random_entries(600))), KEYS, raw=True, progress=lambda *now: told.append(now)
    )
    assert told == [(256, 600), (512, 600), (600, 600)]


def test_entries_are_read_as_leaves_of_this_log(tmp_path):
    found = log.check_log(Directory(written(tmp_path, [_leaf(at) for at in range(3)])), KEYS)
    assert [(at, leaf["type"]) for at, leaf in found.leaves()] == [(at, "config.changed") for at in range(3)]
    assert found.facts[-1].startswith("3 entries follow the schema")


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{}",
        b"not json",
        _leaf(1, origin="other.example/log"),
        _leaf(1) + b" ",
        _leaf(1).replace(b'"v":1', b'"v": 1'),
    ],
)
def test_an_entry_that_is_no_leaf_of_this_log_is_bad_with_its_index(tmp_path, bad):
    source = Directory(written(tmp_path, [_leaf(0), bad, _leaf(2)]))
    with pytest.raises(Bad, match="entry 1"):
        log.check_log(source, KEYS)
    assert log.check_log(source, KEYS, raw=True).entries[1] == bad


def test_proofs_come_from_the_tiles_of_a_source(tmp_path):
    entries = random_entries(600)
    read = tiles.hashes(log.tile_reader(Directory(written(tmp_path, entries))), 600)
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    merkle.check_inclusion(leaves[5], 5, 600, merkle.inclusion_proof(read, 5, 600), merkle.root_of(leaves))


@pytest.mark.slow
def test_a_hundred_thousand_entries_take_less_than_ten_seconds_and_a_proof_less_than_five_milliseconds(tmp_path):
    entries = random_entries(LARGE, most_bytes=300)
    source = Directory(written(tmp_path, entries))
    start = time.perf_counter()
    log.check_log(source, KEYS, raw=True)
    checked = time.perf_counter() - start
    indices = random.Random(0).sample(range(LARGE), 50)
    start = time.perf_counter()
    for index in indices:
        merkle.inclusion_proof(tiles.hashes(tile_in(tmp_path), LARGE), index, LARGE)
    proven = (time.perf_counter() - start) / len(indices)
    print(f"whole log {checked:.2f} s, proof from files {1000 * proven:.2f} ms")
    assert checked < 10
    assert proven < 0.005
