"""Envelopes: what the specification signs, and nothing that can be changed; JSON with one meaning."""

from __future__ import annotations

import base64
import copy
import json

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from expunge_verify import dsse, notes
from expunge_verify.errors import Bad, VerifyError
from hypothesis import given
from hypothesis import strategies as st

from app import certificates
from tests.outside.logs import vectors

SEED = bytes(range(32))
KEY = notes.Signer("any", SEED).vkey.public
BODY = b'{"erased":true}'
ENVELOPE = dsse.sign(SEED, dsse.IN_TOTO, BODY)
RAW = json.dumps(ENVELOPE).encode()
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53) + 1, (1 << 53) - 1)
    | st.floats(-1e15, 1e15)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_the_encoding_is_the_one_of_the_specification():
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert dsse.pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@given(st.binary(max_size=200), st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
def test_every_envelope_opens_to_what_was_put_in(body, kind):
    envelope = dsse.sign(SEED, kind, body)
    assert dsse.open_envelope(envelope, KEY, kind) == body
    assert dsse.open_envelope(json.dumps(envelope).encode(), KEY, kind) == body


def test_the_signature_is_openssls_over_the_encoding():
    signature = base64.b64decode(ENVELOPE["signatures"][0]["sig"])
    Ed25519PrivateKey.from_private_bytes(SEED).public_key().verify(
        signature, b"DSSEv1 28 application/vnd.in-toto+json 15 " + BODY
    )


def test_an_envelope_of_the_service_opens():
    statement = certificates.statement(subjects=[("m", "0" * 64)], predicate={"day": "2026-11-23"})
    raw = json.dumps(certificates.sign(SEED, statement)).encode()
    assert json.loads(dsse.open_envelope(raw, KEY, dsse.IN_TOTO)) == statement
    assert certificates.verify(ENVELOPE, KEY) == json.loads(BODY)


def test_any_changed_bit_of_an_envelope_is_refused():
    for at in range(len(RAW) * 8):
        changed = RAW[: at // 8] + bytes([RAW[at // 8] ^ 1 << at % 8]) + RAW[at // 8 + 1 :]
        with pytest.raises(Bad):
            dsse.open_envelope(changed, KEY, dsse.IN_TOTO)


@pytest.mark.parametrize("key", [bytes(32), KEY[:-1], b"", b"\xff" * 32])
def test_another_key_does_not_open_it(key):
    with pytest.raises(Bad):
        dsse.open_envelope(RAW, key, dsse.IN_TOTO)


def test_another_type_does_not_open_it():
    with pytest.raises(Bad):
        dsse.open_envelope(RAW, KEY, "text/plain")


def test_one_right_signature_among_others_is_enough():
    stranger = dsse.sign(bytes(32), dsse.IN_TOTO, BODY)["signatures"]
    both = {**ENVELOPE, "signatures": [*stranger, *ENVELOPE["signatures"]]}
    assert dsse.open_envelope(both, KEY, dsse.IN_TOTO) == BODY
    with pytest.raises(Bad):
        dsse.open_envelope({**ENVELOPE, "signatures": stranger}, KEY, dsse.IN_TOTO)


def test_a_signature_without_a_key_id_is_tried():
    nameless = {**ENVELOPE, "signatures": [{"sig": ENVELOPE["signatures"][0]["sig"]}]}
    assert dsse.open_envelope(nameless, KEY, dsse.IN_TOTO) == BODY


def test_opening_changes_nothing_of_the_envelope():
    before = copy.deepcopy(ENVELOPE)
    dsse.open_envelope(ENVELOPE, KEY, dsse.IN_TOTO)
    assert before == ENVELOPE


SIG = ENVELOPE["signatures"][0]


@pytest.mark.parametrize(
    "envelope",
    [
        {},
        [],
        None,
        "text",
        7,
        {**ENVELOPE, "more": 1},
        {key: ENVELOPE[key] for key in ("payload", "payloadType")},
        {**ENVELOPE, "payload": None},
        {**ENVELOPE, "payload": ENVELOPE["payload"] + "="},
        {**ENVELOPE, "payload": ENVELOPE["payload"] + "\n"},
        {**ENVELOPE, "payload": "\ud800"},
        {**ENVELOPE, "payloadType": ["application/vnd.in-toto+json"]},
        {**ENVELOPE, "signatures": []},
        {**ENVELOPE, "signatures": SIG},
        {**ENVELOPE, "signatures": [SIG] * 17},
        {**ENVELOPE, "signatures": [None]},
        {**ENVELOPE, "signatures": [{**SIG, "cert": "x"}]},
        {**ENVELOPE, "signatures": [{**SIG, "keyid": None}]},
        {**ENVELOPE, "signatures": [{**SIG, "keyid": "somebody-else"}]},
        {**ENVELOPE, "signatures": [{"keyid": SIG["keyid"]}]},
        {**ENVELOPE, "signatures": [{**SIG, "sig": ""}]},
        {**ENVELOPE, "signatures": [{**SIG, "sig": SIG["sig"].rstrip("=")}]},
    ],
)
def test_other_envelopes_are_refused(envelope):
    for given_as in (envelope, json.dumps(envelope).encode()):
        if not isinstance(given_as, bytes) and not isinstance(given_as, dict):
            continue
        with pytest.raises(Bad):
            dsse.open_envelope(given_as, KEY, dsse.IN_TOTO)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'{"b":{"a":1,"a":2}}',
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b"[-1e999]",
        b'["\\ud800"]',
        b'{"\\udc00":1}',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        b"{} {}",
        b"{'a':1}",
        b"[01]",
        b"[+1]",
        b"[1_0]",
        b"[1,]",
        "[٣]".encode(),
        b'["\n"]',
        b"9" * 5000,
        b"[" * 33 + b"]" * 33,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 900 + b"]" * 900,
    ],
)
def test_json_that_could_be_read_in_two_ways_is_refused(raw):
    with pytest.raises(Bad):
        dsse.strict_json(raw, dsse.MOST_BYTES)


def test_json_that_is_too_long_is_refused():
    assert dsse.strict_json(b"[1]", 3) == [1]
    with pytest.raises(Bad, match="3 bytes; at most 2"):
        dsse.strict_json(b"[1]", 2)


@given(JSON)
def test_other_json_is_read_as_it_was_written(value):
    assert dsse.strict_json(json.dumps(value).encode(), dsse.MOST_BYTES) == value
    assert dsse.strict_json(rfc8785.dumps(value), dsse.MOST_BYTES) == value


@given(st.binary(max_size=60) | st.text('[]{}",:0123456789eE+-. \\u', max_size=60).map(str.encode))
def test_any_bytes_are_json_or_refused(raw):
    try:
        dsse.strict_json(raw, 50)
        dsse.open_envelope(raw, KEY, dsse.IN_TOTO)
    except VerifyError:
        return


@pytest.mark.parametrize("name", ["arrays", "french", "structures", "unicode", "values", "weird"])
def test_the_canonical_form_is_the_published_one(name):
    """The pinned library and our reader together: cyberphone's vectors of RFC 8785."""
    at = vectors("jcs")
    read = dsse.strict_json((at / "input" / f"{name}.json").read_bytes(), dsse.MOST_BYTES)
    assert rfc8785.dumps(read) == (at / "output" / f"{name}.json").read_bytes()
    assert rfc8785.dumps(read) == bytes.fromhex((at / "outhex" / f"{name}.txt").read_text())
