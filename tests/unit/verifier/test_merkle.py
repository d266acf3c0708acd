"""Trees and proofs against RFC 6962's own recursion, the published cases, and every changed bit."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from expunge_verify import merkle
from expunge_verify.errors import Bad, VerifyError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.outside.logs import vectors

ENTRIES = st.lists(st.binary(max_size=6), min_size=1, max_size=70)
CASES_OF_OTHERS = 196


def test_all_published_cases_end_as_they_say():
    cases = [json.loads(path.read_text()) for path in sorted(vectors("merkle").rglob("*.json"))]
    wrong = [case["desc"] for case in cases if _accepted(case) is case["wantErr"]]
    assert not wrong
    assert len(cases) == CASES_OF_OTHERS


def test_the_roots_are_those_of_the_certificate_transparency_tests():
    entries = [bytes.fromhex(e) for e in ("", "00", "10", "2021", "3031", "40414243")]
    roots = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    }
    for size, root in roots.items():
        leaves = [merkle.leaf_hash(entry) for entry in entries[:size]]
        assert merkle.root_of(leaves).hex() == root


@given(st.lists(st.binary(max_size=6), max_size=70))
def test_a_root_is_the_one_of_the_recursion_in_the_rfc(entries):
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    assert merkle.root_of(leaves) == merkle.root(_reader(leaves), len(entries)) == _mth(entries)


@given(ENTRIES, st.data())
def test_every_inclusion_proof_is_the_one_of_the_rfc_and_holds(entries, data):
    index = data.draw(st.integers(0, len(entries) - 1))
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    proof = merkle.inclusion_proof(_reader(leaves), index, len(entries))
    assert proof == _path(index, entries)
    merkle.check_inclusion(leaves[index], index, len(entries), proof, _mth(entries))


@given(ENTRIES, st.data())
def test_every_consistency_proof_is_the_one_of_the_rfc_and_holds(entries, data):
    old, new = data.draw(st.integers(0, len(entries))), len(entries)
    proof = merkle.consistency_proof(_reader([merkle.leaf_hash(entry) for entry in entries]), old, new)
    assert proof == (_subproof(old, entries, complete=True) if old else [])
    merkle.check_consistency(old, _mth(entries[:old]), new, _mth(entries), proof)


@settings(max_examples=15, deadline=None)
@given(ENTRIES, st.data())
def test_any_changed_bit_of_an_inclusion_proof_is_refused(entries, data):
    size, index = len(entries), data.draw(st.integers(0, len(entries) - 1))
    leaves, root = [merkle.leaf_hash(entry) for entry in entries], _mth(entries)
    proof = merkle.inclusion_proof(_reader(leaves), index, size)
    for changed in _flipped(b"".join([leaves[index], *proof, root])):
        leaf, *hashes, top = _cut(changed)
        with pytest.raises(Bad):
            merkle.check_inclusion(leaf, index, size, hashes, top)


@given(ENTRIES, st.data())
def test_no_other_index_and_no_length_of_proof_fits(entries, data):
    size, index = len(entries), data.draw(st.integers(0, len(entries) - 1))
    leaves, root = [merkle.leaf_hash(entry + bytes([at])) for at, entry in enumerate(entries)], None
    root = merkle.root_of(leaves)
    proof = merkle.inclusion_proof(_reader(leaves), index, size)
    for bit in range(8):
        if index ^ 1 << bit != index:
            with pytest.raises(Bad):
                merkle.check_inclusion(leaves[index], index ^ 1 << bit, size, proof, root)
    for other in ([*proof, root], [root, *proof], proof[:-1], proof[1:]):
        if other != proof:
            with pytest.raises(Bad):
                merkle.check_inclusion(leaves[index], index, size, other, root)


def test_a_tree_size_that_the_shape_of_the_proof_contradicts_is_refused():
    """Sizes between which the path of one leaf does not change share a proof, so the size itself must be signed."""
    leaves = [merkle.leaf_hash(bytes([at])) for at in range(13)]
    proof = merkle.inclusion_proof(_reader(leaves), 12, 13)
    merkle.check_inclusion(leaves[12], 12, 13, proof, merkle.root_of(leaves))
    for size in (12, 14, 15, 16, 9, 5, 29, 13 + (1 << 62)):
        with pytest.raises(Bad):
            merkle.check_inclusion(leaves[12], 12, size, proof, merkle.root_of(leaves))


@settings(max_examples=15, deadline=None)
@given(ENTRIES, st.data())
def test_any_changed_bit_of_a_consistency_proof_is_refused(entries, data):
    new = len(entries)
    old = data.draw(st.integers(1, new))
    proof = merkle.consistency_proof(_reader([merkle.leaf_hash(entry) for entry in entries]), old, new)
    for changed in _flipped(b"".join([_mth(entries[:old]), *proof, _mth(entries)])):
        first, *hashes, last = _cut(changed)
        with pytest.raises(Bad):
            merkle.check_consistency(old, first, new, last, hashes)


@given(ENTRIES, st.data())
def test_a_rewritten_history_has_no_consistency_proof(entries, data):
    old = data.draw(st.integers(1, len(entries)))
    changed = data.draw(st.integers(0, old - 1))
    forged = [entry + b"!" if at == changed else entry for at, entry in enumerate(entries)]
    proof = merkle.consistency_proof(_reader([merkle.leaf_hash(entry) for entry in forged]), old, len(forged))
    with pytest.raises(Bad):
        merkle.check_consistency(old, _mth(entries[:old]), len(forged), _mth(forged), proof)


@pytest.mark.parametrize(
    ("old_root", "new_size", "new_root", "proof"),
    [
        (bytes(32), 3, bytes(32), []),
        (merkle.EMPTY_ROOT, 3, bytes(32), [bytes(32)]),
        (merkle.EMPTY_ROOT, 0, bytes(32), []),
        (b"", 3, bytes(32), []),
    ],
)
def test_the_empty_tree_has_one_root_and_no_proof(old_root, new_size, new_root, proof):
    with pytest.raises(Bad):
        merkle.check_consistency(0, old_root, new_size, new_root, proof)


@given(
    st.binary(max_size=40),
    st.integers(-3, 1 << 65),
    st.integers(-3, 1 << 65),
    st.lists(st.binary(min_size=30, max_size=33), max_size=70),
)
def test_nonsense_raises_nothing_but_the_verifiers_errors(raw, one, other, proof):
    for check in (
        lambda: merkle.check_inclusion(raw, one, other, proof, raw),
        lambda: merkle.check_consistency(one, raw, other, raw + b"x", proof),
        lambda: merkle.inclusion_proof(_reader([]), one, 0),
        lambda: merkle.consistency_proof(_reader([]), max(one, 0) + 1, 0),
    ):
        with pytest.raises(VerifyError):
            check()


def _accepted(case):
    proof = [base64.b64decode(part) for part in case["proof"] or []]
    raw = {name: base64.b64decode(case[name] or "") for name in case if name.startswith(("root", "leafHash"))}
    try:
        if "leafIdx" in case:
            merkle.check_inclusion(raw["leafHash"], case["leafIdx"], case["treeSize"], proof, raw["root"])
        else:
            merkle.check_consistency(case["size1"], raw["root1"], case["size2"], raw["root2"], proof)
    except Bad:
        return False
    return True


def _reader(leaves):
    return lambda level, index: merkle.root_of(leaves[index << level : (index + 1) << level])


def _flipped(raw):
    for at in range(len(raw)):
        for bit in range(8):
            yield raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def _cut(raw):
    return [raw[at : at + 32] for at in range(0, len(raw), 32)]


def _half(count):
    half = 1
    while half * 2 < count:
        half *= 2
    return half


def _mth(entries):
    """RFC 6962 §2.1, word for word."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    half = _half(len(entries))
    return hashlib.sha256(b"\1" + _mth(entries[:half]) + _mth(entries[half:])).digest()


def _path(index, entries):
    """RFC 6962 §2.1.1, word for word."""
    if len(entries) == 1:
        return []
    half = _half(len(entries))
    if index < half:
        return [*_path(index, entries[:half]), _mth(entries[half:])]
    return [*_path(index - half, entries[half:]), _mth(entries[:half])]


def _subproof(old, entries, *, complete):
    """RFC 6962 §2.1.2, word for word."""
    if old == len(entries):
        return [] if complete else [_mth(entries)]
    half = _half(len(entries))
    if old <= half:
        return [*_subproof(old, entries[:half], complete=complete), _mth(entries[half:])]
    return [*_subproof(old - half, entries[half:], complete=False), _mth(entries[:half])]
