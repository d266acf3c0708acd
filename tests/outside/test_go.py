"""Go's checksum database code reads our logs: same roots, same proofs, and it refuses what we refuse."""

from __future__ import annotations

import base64
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from expunge_verify import log, merkle, tiles
from expunge_verify.errors import Bad, Unchecked
from expunge_verify.source import Directory

from tests.outside.logs import ROOT, SIGNER, random_entries, tile_in, written

pytestmark = pytest.mark.slow  # other people's programs are started

MODULES = Path(os.environ.get("EXPUNGE_GOPATH") or "/usr/share/gocode")
VKEY = str(SIGNER.vkey)
SIZES = (1, 2, 3, 7, 255, 256, 257, 511, 513, 1000, 4097, 65_535, 65_537, 70_000)


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """The Go program, built; its build cache stays in .expunge/."""
    if not shutil.which("go") or not (MODULES / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        pytest.skip("no Go with golang.org/x/mod: apt-get install golang-go golang-golang-x-mod-dev, or .ci/outside")
    program = tmp_path_factory.mktemp("go") / "verify"
    cache = ROOT / ".expunge" / "go"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(MODULES), "GOCACHE": str(cache), "GOFLAGS": ""}
    source = ROOT / "tests" / "outside" / "go" / "main.go"
    subprocess.run(["go", "build", "-o", program, source], env=environment, check=True, timeout=280)
    return program


def _checked(go, *directories):
    command = [go, "check", VKEY, *directories]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=250).stdout.splitlines()


def _proofs_agree(go, directory, size, count, seed):
    """Random proofs, Go's and ours, as lines of base64."""
    rng = random.Random(seed)
    questions = []
    for _ in range(count):
        new = rng.randint(1, size)
        questions += [("i", rng.randrange(new), new), ("c", rng.randint(1, new), new)]
    asked = "".join(f"{kind} {one} {two}\n" for kind, one, two in questions)
    answer = subprocess.run(
        [go, "prove", VKEY, directory], input=asked, capture_output=True, text=True, check=True, timeout=250
    ).stdout.splitlines()
    read = tiles.hashes(tile_in(directory), size)
    prove = {"i": merkle.inclusion_proof, "c": merkle.consistency_proof}
    ours = [" ".join(base64.b64encode(one).decode() for one in prove[kind](read, a, b)) for kind, a, b in questions]
    assert answer == ours
    return len(ours)


@pytest.mark.parametrize("size", SIZES)
def test_go_reads_our_log_and_proves_the_same(go, tmp_path, size):
    entries = random_entries(size, seed=size)
    [line] = _checked(go, written(tmp_path, entries))
    root = merkle.root_of([merkle.leaf_hash(entry) for entry in entries])
    assert line == f"good {size} {base64.b64encode(root).decode()}"
    _proofs_agree(go, tmp_path, size, 40, size)


def test_go_reads_logs_of_random_sizes_and_proves_the_same(go, tmp_path):
    rng = random.Random(6962)
    sizes = [rng.randint(1, 3000) for _ in range(20)]
    directories = [written(tmp_path / f"{at}", random_entries(size, seed=at)) for at, size in enumerate(sizes)]
    assert [line.split()[:2] for line in _checked(go, *directories)] == [["good", str(size)] for size in sizes]
    assert sum(_proofs_agree(go, d, size, 25, size) for d, size in zip(directories, sizes, strict=True)) == 1000


def test_both_refuse_a_changed_bit_in_every_byte_of_a_small_log(go, tmp_path):
    good = written(tmp_path / "good", random_entries(3, most_bytes=9))
    _both_refuse(go, tmp_path, good, [(name, at, at % 8) for name in _names(good) for at in range(_size(good, name))])


def test_both_refuse_random_changes_of_a_log_of_two_levels(go, tmp_path):
    good, rng = written(tmp_path / "good", random_entries(600, most_bytes=9)), random.Random(1)
    names = _names(good)
    assert len(names) == 8
    _both_refuse(
        go, tmp_path, good, [(n, rng.randrange(_size(good, n)), rng.randrange(8)) for n in names for _ in range(15)]
    )


def test_go_reads_a_log_of_a_hundred_thousand_entries_and_proves_the_same(go, tmp_path):
    entries = random_entries(100_000, most_bytes=300)
    assert _checked(go, written(tmp_path, entries))[0].startswith("good 100000 ")
    _proofs_agree(go, tmp_path, 100_000, 300, 9162)


def _names(directory):
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


def _size(directory, name):
    return (directory / name).stat().st_size


def _both_refuse(go, tmp_path, good, changes):
    changed = []
    for number, (name, at, bit) in enumerate(changes):
        copy = tmp_path / "changed" / str(number)
        shutil.copytree(good, copy)
        raw = bytearray((good / name).read_bytes())
        raw[at] ^= 1 << bit
        (copy / name).write_bytes(raw)
        changed.append(copy)
    assert [line.split()[0] for line in _checked(go, good, *changed)] == ["good"] + ["bad"] * len(changes)
    log.check_log(Directory(good), [SIGNER.vkey], raw=True)
    for copy in changed:
        with pytest.raises((Bad, Unchecked)):
            log.check_log(Directory(copy), [SIGNER.vkey], raw=True)
