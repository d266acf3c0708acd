"""Leaves: what may stand in the log, in the one way to write it, and nothing that could name a person."""

from __future__ import annotations

import ipaddress
import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import rfc8785
from expunge_verify import leaf as leaves
from expunge_verify.errors import Bad
from expunge_verify.leaf import BadLeaf, commitment, decode, encode
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "leaves.json").read_text(encoding="ascii"))
LEAVES = {kind: decode(text.encode()) for kind, text in GOLDEN["leaves"].items()}
EVERY = pytest.mark.parametrize("kind", sorted(LEAVES))
A_LEAF = st.sampled_from(sorted(LEAVES)).map(LEAVES.get).map(deepcopy)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


def plain(leaf: object) -> bytes:
    """JSON as anybody would write it, canonical if the keys are sorted."""
    return json.dumps(leaf, separators=(",", ":")).encode()


@EVERY
def test_the_bytes_of_every_type_are_the_golden_ones(kind):
    raw = GOLDEN["leaves"][kind].encode()
    assert encode(json.loads(raw)) == raw
    assert encode(dict(reversed(json.loads(raw).items()))) == raw
    assert rfc8785.dumps(decode(raw)) == raw


def test_there_is_a_golden_leaf_of_every_type():
    assert sorted(LEAVES) == sorted(leaves.SCHEMA)


def test_the_schema_is_the_published_one():
    assert GOLDEN["schema"] == leaves.SCHEMA_DIGEST


@pytest.mark.parametrize("case", GOLDEN["commitments"])
def test_a_commitment_is_what_openssl_computes(case):
    assert commitment(bytes.fromhex(case["salt"]), case["record"]) == case["commit"]


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_salt_of_another_length_is_refused(length):
    with pytest.raises(Bad, match="32 bytes"):
        commitment(bytes(length), {})


@pytest.mark.parametrize("record", [float("nan"), {"a": 2**53}, {1: 2}, object(), {"a": "\ud800"}, {"\ud800": 1}])
def test_a_record_without_a_canonical_form_has_no_commitment(record):
    with pytest.raises(Bad, match="canonical form"):
        commitment(bytes(32), record)


@EVERY
def test_a_field_more_is_refused(kind):
    for name in ("user", "user_id", "email", "ip", "count", "note", "ticket", ""):
        with pytest.raises(BadLeaf, match="has no field") as caught:
            encode(LEAVES[kind] | {name: "1"})
        assert caught.value.field == name


@EVERY
def test_a_field_less_is_refused(kind):
    for name in LEAVES[kind].keys() - leaves.SCHEMA[kind].optional:
        leaf = {key: value for key, value in LEAVES[kind].items() if key != name}
        with pytest.raises(BadLeaf) as caught:
            encode(leaf)
        assert caught.value.field == name


@EVERY
@pytest.mark.parametrize(
    "wrong", [None, 1.0, -1, 0, 2**53, 10**400, [], {}, "", "no word", "é", "０", "\x00", "1", b"1"]
)
def test_no_field_takes_a_value_of_another_kind(kind, wrong):
    for name in LEAVES[kind]:
        with pytest.raises(BadLeaf):
            encode(LEAVES[kind] | {name: wrong})


@EVERY
def test_no_field_takes_its_own_value_in_other_clothes(kind):
    for name, value in LEAVES[kind].items():
        clothes = [[value], {"to": value}, f"{value}\n", f" {value}"]
        clothes += [float(value)] if type(value) is int else [int(value)] if isinstance(value, bool) else []
        clothes += [value.upper()] if isinstance(value, str) and value != value.upper() and name != "log" else []
        for wrong in clothes:
            with pytest.raises(BadLeaf):
                encode(LEAVES[kind] | {name: wrong})


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("model.promoted", {"to": "sha256:" + "a" * 64}),
        ("model.registered", {"from": "sha256:" + "a" * 64, "to": "sha256:" + "b" * 64}),
        ("model.retired", {"to": "sha256:" + "a" * 64}),
        ("erasure.done", {"from": "sha256:" + "a" * 64}),
        ("erasure.done", {}),
        ("erasure.done", {"to": "sha256:" + "A" * 64}),
        ("erasure.done", {"to": "a" * 64}),
        ("erasure.done", {"to": "sha256:" + "a" * 64, "name": "wages"}),
    ],
)
def test_a_model_is_named_by_the_digests_that_its_type_asks_for(kind, model):
    with pytest.raises(BadLeaf) as caught:
        encode(LEAVES[kind] | {"model": model})
    assert caught.value.field == "model"


@pytest.mark.parametrize("day", ["2027-02-29", "2027-13-01", "2027-00-10", "0000-01-01", "2027-1-1", "20270101"])
def test_a_day_stands_in_the_calendar(day):
    with pytest.raises(BadLeaf) as caught:
        encode(LEAVES["config.changed"] | {"day": day})
    assert caught.value.field == "day"


@pytest.mark.parametrize("day", ["2027-02-28T10:00", "2027-02-28 ", "２０２７-02-28", "2027-W08-7", "2027-059"])
def test_a_time_finer_or_other_than_a_day_is_refused(day):
    with pytest.raises(BadLeaf):
        encode(LEAVES["config.changed"] | {"day": day})


@pytest.mark.parametrize("origin", ["erasure.example/log/acme", "localhost:8000/log", "example.com/log/testdata"])
def test_a_log_has_the_name_of_a_place(origin):
    assert encode(LEAVES["config.changed"] | {"log": origin})


@pytest.mark.parametrize("kind", [None, 1, [], {}, "request", "request.received ", "REQUEST.RECEIVED", "user.deleted"])
def test_an_unknown_type_is_refused(kind):
    with pytest.raises(BadLeaf, match="no type"):
        encode(LEAVES["config.changed"] | {"type": kind})


ADDRESSES = st.ip_addresses().map(str) | st.ip_addresses().map(lambda ip: ip.exploded)
MAIL = st.emails() | st.text(max_size=9).map(lambda text: f"a{text}@b")


@given(leaf=A_LEAF, data=st.data(), secret=ADDRESSES | MAIL)
def test_no_string_of_a_leaf_holds_a_mail_or_ip_address(leaf, data, secret):
    name = data.draw(st.sampled_from(sorted(key for key, value in leaf.items() if isinstance(value, str))))
    at = data.draw(st.integers(0, len(leaf[name])))
    inserted = data.draw(st.sampled_from([secret, leaf[name][:at] + secret + leaf[name][at:], f"example.com/{secret}"]))
    with pytest.raises(BadLeaf):
        encode(leaf | {name: inserted})


@given(leaf=A_LEAF, data=st.data(), value=JSON)
def test_whatever_stands_in_a_field_either_fits_or_is_refused(leaf, data, value):
    name = data.draw(st.sampled_from(sorted(leaf)))
    try:
        raw = encode(leaf | {name: value})
    except BadLeaf:
        return
    assert raw.isascii()
    assert len(raw) < 2048
    assert not re.search(rb"@|\d+\.\d+\.\d+\.\d+|user", raw)
    assert decode(raw) == leaf | {name: value}


@given(st.binary(max_size=300))
def test_bytes_that_are_no_leaf_are_refused(raw):
    with pytest.raises(BadLeaf):
        decode(raw)


@given(leaf=A_LEAF, data=st.data())
def test_no_other_spelling_of_a_leaf_is_read(leaf, data):
    raw = encode(leaf)
    at, byte = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 255).map(lambda b: bytes([b])))
    changed = data.draw(st.sampled_from([raw[:at] + byte + raw[at + 1 :], raw[:at] + byte + raw[at:], raw[:at]]))
    try:
        read = decode(changed)
    except BadLeaf:
        return
    assert encode(read) == changed  # a random digit became another: still the only spelling of what it says now
    assert (read == leaf) is (changed == raw)


SPELLINGS = {
    "unsorted": lambda raw: plain(dict(reversed(json.loads(raw).items()))),
    "spaced": lambda raw: raw.replace(b":", b": ", 1),
    "a newline at the end": lambda raw: raw + b"\n",
    "CRLF": lambda raw: raw + b"\r\n",
    "a byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "escaped": lambda raw: raw.replace(b'"day"', b'"\\u0064ay"'),
    "escaped value": lambda raw: raw.replace(b"config.", b"\\u0063onfig."),
    "a float": lambda raw: raw.replace(b'"v":1', b'"v":1.0'),
    "an exponent": lambda raw: raw.replace(b'"v":1', b'"v":1e0'),
    "a key twice, same": lambda raw: raw.replace(b'"v":1', b'"v":1,"v":1'),
    "a key twice, other first": lambda raw: raw.replace(b'"v":1', b'"v":2,"v":1'),
    "a nested twin": lambda raw: raw.replace(b'"v":1', b'"v":{"v":1,"v":1}'),
    "a big integer": lambda raw: raw.replace(b'"v":1', b'"v":' + b"9" * 1500),
    "version two": lambda raw: raw.replace(b'"v":1', b'"v":2'),
    "true for one": lambda raw: raw.replace(b'"v":1', b'"v":true'),
    "NaN": lambda raw: raw.replace(b'"v":1', b'"v":NaN'),
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "not ASCII": lambda raw: raw.replace(b"acme", "acmé".encode()),
    "deep": lambda raw: b"[" * 2000,
    "empty": lambda raw: b"",
    "an array": lambda raw: b"[" + raw + b"]",
    "null": lambda raw: b"null",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_leaf_is_written_in_one_way_only(spelling):
    raw = encode(LEAVES["config.changed"])
    changed = SPELLINGS[spelling](raw)
    assert changed != raw
    with pytest.raises(BadLeaf):
        decode(changed)


def test_a_leaf_of_2048_bytes_is_refused_before_it_is_parsed():
    with pytest.raises(BadLeaf, match="2048 bytes"):
        decode(b"{" + b" " * 2046 + b"}")


def test_the_longest_possible_leaf_fits():
    longest = LEAVES["log.opened"] | {"log": "e.example/" + "a" * 190, "vkey": "e" * 255 + "+01234567+" + "A" * 35}
    assert len(encode(longest)) < 2048


def test_what_is_refused_is_told_without_control_characters():
    for leaf in (
        {"type": "\x1b[2J"},
        LEAVES["config.changed"] | {"\x1b": 1},
        LEAVES["config.changed"] | {"day": "\x1b"},
    ):
        with pytest.raises(BadLeaf) as caught:
            encode(leaf)
        assert str(caught.value).isprintable()


def test_an_address_is_recognised_wherever_it_stands():
    """The property test above is only as good as its samples: these two must be among what it refuses."""
    for address in (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("2001:db8::1")):
        for origin in (f"{address}", f"a.example/{address}", f"a.{address}.example/log", f"a.example:{address}/x"):
            with pytest.raises(BadLeaf):
                encode(LEAVES["config.changed"] | {"log": origin})
