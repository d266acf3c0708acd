"""Proof files: byte for byte the form of the specification, and nothing about them can be changed."""

from __future__ import annotations

import base64
import hashlib

import pytest
from expunge_verify import merkle, notes, proof
from expunge_verify.errors import Bad, VerifyError
from expunge_verify.policy import Policy
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outside.logs import ORIGIN, SIGNER, checkpoint_over

ENTRIES = [f"entry {at}".encode() for at in range(6)]
CHECKPOINT = checkpoint_over(ENTRIES)
POLICY = Policy.of([SIGNER.vkey])


def _hashes(index):
    leaves = [merkle.leaf_hash(entry) for entry in ENTRIES]
    read = lambda level, at: merkle.root_of(leaves[at << level : (at + 1) << level])  # noqa: E731
    return merkle.inclusion_proof(read, index, len(ENTRIES))


def _file(index, extra=None):
    return proof.format(index, _hashes(index), CHECKPOINT, extra)


def test_the_form_is_the_one_of_the_specification():
    """The cases of transparency-dev/formats, proof/tlog_proof_test.go."""
    one, two = (hashlib.sha256(text).digest() for text in (b"hash1", b"hash2"))
    in64, extra64 = (base64.b64encode(raw).decode() for raw in (one, b"extra information"))
    assert proof.format(5, [one, two], b"test checkpoint\n").decode() == (
        f"c2sp.org/tlog-proof@v1\nindex 5\n{in64}\n{base64.b64encode(two).decode()}\n\ntest checkpoint\n"
    )
    assert proof.format(10, [one], b"checkpoint data\n", b"extra information").decode() == (
        f"c2sp.org/tlog-proof@v1\nextra {extra64}\nindex 10\n{in64}\n\ncheckpoint data\n"
    )
    assert proof.format(0, [], b"checkpoint\n").decode() == "c2sp.org/tlog-proof@v1\nindex 0\n\ncheckpoint\n"


@pytest.mark.parametrize("index", range(6))
def test_a_proof_holds_for_its_entry_and_no_other(index):
    read = proof.parse(_file(index))
    assert proof.check(ENTRIES[index], read, POLICY)[-1] == f"entry {index} of 6 is in the log"
    for other in ENTRIES[:index] + ENTRIES[index + 1 :]:
        with pytest.raises(Bad):
            proof.check(other, read, POLICY)


def test_the_only_entry_of_a_log_has_a_proof_without_hashes():
    raw = proof.format(0, [], checkpoint_over([b"alone"]))
    assert proof.check(b"alone", proof.parse(raw), POLICY)


@given(st.integers(0, 5), st.none() | st.binary(max_size=50))
def test_every_proof_is_read_as_it_was_written(index, extra):
    read = proof.parse(_file(index, extra))
    assert read == proof.Proof(index, tuple(_hashes(index)), CHECKPOINT, extra)
    assert proof.format(read.index, read.hashes, read.checkpoint, read.extra) == _file(index, extra)


def test_any_changed_bit_of_a_proof_is_refused():
    raw = _file(3)
    for at in range(len(raw) * 8):
        changed = raw[: at // 8] + bytes([raw[at // 8] ^ 1 << at % 8]) + raw[at // 8 + 1 :]
        with pytest.raises(Bad):
            proof.check(ENTRIES[3], proof.parse(changed), POLICY)


HEAD, TAIL = "c2sp.org/tlog-proof@v1\n", "\n" + CHECKPOINT.decode()
HASH = base64.b64encode(bytes(32)).decode() + "\n"


@pytest.mark.parametrize(
    "raw",
    [
        "",
        HEAD,
        HEAD + "index 0\n",
        HEAD + "index 0",
        HEAD + TAIL,
        "wrong-header\nindex 0\n" + TAIL,
        HEAD.replace("v1", "v2") + "index 0\n" + TAIL,
        " " + HEAD + "index 0\n" + TAIL,
        HEAD + "extra !!notbase64!!\nindex 0\n" + TAIL,
        HEAD + "extra QQ==\nextra QQ==\nindex 0\n" + TAIL,
        HEAD + "index 0\nextra QQ==\n" + TAIL,
        HEAD + "index notanumber\n" + TAIL,
        HEAD + "index -5\n" + TAIL,
        HEAD + "index 05\n" + TAIL,
        HEAD + "index +5\n" + TAIL,
        HEAD + "index 0x5\n" + TAIL,
        HEAD + "index 5 \n" + TAIL,
        HEAD + "index  5\n" + TAIL,
        HEAD + "index 9223372036854775808\n" + TAIL,
        HEAD + "index 0\nindex 0\n" + TAIL,
        HEAD + "index 0\n!!notbase64!!\n" + TAIL,
        HEAD + "index 0\n" + base64.b64encode(bytes(64)).decode() + "\n" + TAIL,
        HEAD + "index 0\n" + HASH * 64 + TAIL,
        HEAD + "index 0\n" + HASH.replace("\n", "\r\n") + TAIL,
        (HEAD + "index 0\n").replace("\n", "\r\n") + TAIL,
        HEAD + "index 0\n" + "a" * 65 * 1024 + "\n",
        HEAD + "index ５\n" + TAIL,
        HEAD + "index 0\n\ntest checkpoint\n",
        HEAD + "index 0\n\n" + TAIL,
        HEAD + "extra " + "A" * 100_000 + "\nindex 0\n" + TAIL,
        HEAD + "index 0\n" + "a" * proof.MOST_BYTES,
    ],
)
def test_a_proof_out_of_form_is_refused(raw):
    with pytest.raises(Bad):
        proof.parse(raw.encode())


def test_a_proof_under_a_checkpoint_that_the_policy_does_not_believe_is_refused():
    forger = notes.Signer(ORIGIN, bytes(32))
    with pytest.raises(Bad):
        proof.check(ENTRIES[3], proof.parse(_file(3)), Policy.of([forger.vkey]))


def test_the_extra_data_is_read_and_vouched_for_by_nobody():
    for extra in (b"", b"one", b"two"):
        assert proof.check(ENTRIES[3], proof.parse(_file(3, extra)), POLICY)


@settings(max_examples=200)
@given(st.binary(max_size=100), st.integers(0, 700), st.integers(0, 700))
def test_any_bytes_are_read_in_one_way_or_refused(garbage, start, end):
    whole = _file(3, b"extra")
    for raw in (garbage, whole[:start] + garbage + whole[end:]):
        try:
            read = proof.parse(raw)
        except VerifyError:
            continue
        assert proof.format(read.index, read.hashes, read.checkpoint, read.extra) == raw
