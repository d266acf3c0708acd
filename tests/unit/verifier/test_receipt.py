"""Receipts: each opens what the log committed to, and nothing else fits in."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from expunge_verify import notes
from expunge_verify import proof as proofs
from expunge_verify import receipt as receipts
from expunge_verify.errors import Bad, Unchecked
from expunge_verify.leaf import commitment, encode
from expunge_verify.policy import Policy
from expunge_verify.receipt import Opened, check_receipt
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.verifier.building import DUE, ORIGIN, SIGNER, Teller, Tree, completed, encoded, ended, ref

TRUST = Policy.of([SIGNER.vkey])
SALTS = [bytes([number]) * 32 for number in range(9)]
RECORDS = [
    {"type": "request.received", "what": "request", "ticket": "T-4711", "Zoë": [1, 0.5, None, True]},
    {"type": "request.refused", "reason": "Art. 17(3)(e)"},
]


def receipt() -> dict[str, Any]:
    """The receipt of a refused request: two leaves with a commitment, one without."""
    tell = Teller()
    story = ended(tell, "a", "refused")
    for at, record in enumerate(RECORDS):
        story[at]["commit"] = commitment(SALTS[at], record)
    tree = Tree(encoded(story))
    opened = [Opened(story[at], tree.proof(at), SALTS[at], RECORDS[at]) for at in range(2)]
    return json.loads(receipts.format(ORIGIN, [*opened, Opened(story[2], tree.proof(2))]))


GOOD = receipt()
Change = Callable[[dict[str, Any]], object]


def checked(said: object, policy: Policy = TRUST) -> list[str]:
    return check_receipt(json.dumps(said).encode(), policy)


def test_a_receipt_says_which_entries_it_opens():
    assert checked(GOOD)[-1] == "entry 2, key.shredded on 2027-01-31, hides nothing"
    assert [fact for fact in checked(GOOD) if "opens to its record" in fact] == [
        "entry 0, request.received on 2027-01-31, opens to its record",
        "entry 1, request.refused on 2027-01-31, opens to its record",
    ]


def test_a_checkpoint_is_said_once_although_many_entries_rest_on_it():
    assert len([fact for fact in checked(GOOD) if fact.startswith("signed by log")]) == 1


def test_the_order_of_keys_and_spaces_of_a_receipt_mean_nothing():
    said = {name: GOOD[name] for name in reversed(GOOD)}
    assert check_receipt(json.dumps(said, indent=7).encode(), TRUST) == checked(GOOD)


def test_without_a_key_of_the_log_nothing_is_proven():
    with pytest.raises(Unchecked):
        checked(GOOD, Policy.of([]))


def entry(number: int, **fields: Any) -> Change:
    return lambda said: said["entries"][number].update(fields)


def taken(number: int, name: str) -> Change:
    return lambda said: said["entries"][number].pop(name)


def leaf(number: int, **fields: Any) -> Change:
    return lambda said: said["entries"][number]["leaf"].update(fields)


CHANGES: dict[str, Change] = {
    "another record": entry(0, record={"ticket": "T-4712"}),
    "the record of a neighbour": entry(0, record=RECORDS[1]),
    "another salt": entry(0, salt="01" * 32),
    "a short salt": entry(0, salt="00" * 31),
    "a salt in capitals": entry(1, salt="0A" * 32),
    "a record that is a text": entry(0, record="T-4711"),
    "a record without a canonical form": entry(0, record={"n": 2**60}),
    "no record": taken(0, "record"),
    "no salt": taken(0, "salt"),
    "no proof": taken(0, "proof"),
    "a field more": entry(0, note="trust me"),
    "a salt for nothing": entry(2, salt="00" * 32, record={}),
    "another day": leaf(0, day="2027-01-30"),
    "another ref": leaf(0, ref=ref("b")),
    "another commitment that fits": leaf(0, commit=commitment(SALTS[0], {})),
    "a field in the leaf": leaf(0, user="u-1"),
    "a leaf of another log": leaf(0, log="other.example/log"),
    "another origin": lambda said: said.update(origin="other.example/log"),
    "the proof of a neighbour": lambda said: said["entries"][0].update(proof=said["entries"][1]["proof"]),
    "an empty proof": entry(0, proof=""),
    "a proof with CRLF": lambda said: entry(0, proof=said["entries"][0]["proof"].replace("\n", "\r\n"))(said),
    "no entries": lambda said: said.update(entries=[]),
    "too many entries": lambda said: said.update(entries=said["entries"][:1] * 1001),
    "an entry that is a list": lambda said: said.update(entries=[[]]),
    "a leaf that is a list": entry(0, leaf=[]),
    "version 2": lambda said: said.update(v=2),
    "version true": lambda said: said.update(v=True),
    "a field at the top": lambda said: said.update(user="u-1"),
    "no origin": lambda said: said.pop("origin"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_receipt_is_refused(name):
    said = deepcopy(GOOD)
    CHANGES[name](said)
    assert said != GOOD or name == "version true"
    with pytest.raises(Bad):
        checked(said)


def opened(story: list[dict[str, Any]], *places: int, records: dict[int, Any] | None = None) -> bytes:
    """A receipt over these places of a log of this story, with the records that the service would have written."""
    records = {at: {"type": leaf["type"], **(records or {}).get(at, {})} for at, leaf in enumerate(story)}
    for at, one in enumerate(story):
        if "commit" in one:
            one["commit"] = commitment(bytes(32), records[at])
    tree = Tree(encoded(story))
    known = [(story[at], tree.proof(at), bytes(32), records[at]) for at in places]
    return receipts.format(ORIGIN, [Opened(*one) if "commit" in one[0] else Opened(*one[:2]) for one in known])


def test_a_receipt_is_about_one_request_and_names_it_once():
    found = check_receipt(opened(completed(Teller(), "a"), 0, 2, 7, 9), TRUST)
    assert [fact for fact in found if ref("a") in fact] == [f"the receipt is about request {ref('a')}"]


def test_a_receipt_with_the_entry_of_another_request_is_refused():
    tell = Teller()
    story = [*ended(tell, "a", "refused"), *ended(tell, "b", "refused")]
    assert check_receipt(opened(story, 0, 1, 3), TRUST)
    with pytest.raises(Bad, match="number 2 of the receipt: it is about request"):
        check_receipt(opened(story, 0, 1, 7), TRUST)


def test_a_receipt_with_an_entry_about_no_request_is_refused():
    with pytest.raises(Bad, match="about no request"):
        check_receipt(opened(completed(Teller(), "a"), 0, 3), TRUST)


@pytest.mark.parametrize("places", [(0, 2, 2), (2, 0), (0, 0)])
def test_the_entries_of_a_receipt_stand_in_the_order_of_the_log_and_once(places):
    with pytest.raises(Bad, match="in the order of the log"):
        check_receipt(opened(completed(Teller(), "a"), *places), TRUST)


@pytest.mark.parametrize(
    ("at", "record"),
    [
        (0, {"type": "request.refused"}),
        (0, {"type": None}),
        (7, {"method": "retrain/1"}),
        (7, {"level": "A0"}),
        (7, {"model": {"to": "sha256:" + "0" * 64}}),
        (11, {"outcome": "refused"}),
        (11, {"in_time": False}),
        (11, {"cert": "sha256:" + "0" * 64}),
    ],
)
def test_a_record_that_says_other_than_its_leaf_is_refused(at, record):
    story = completed(Teller(), "a")
    said = {name: story[at][name] for name in record}
    assert check_receipt(opened(story, at, records={at: said}), TRUST)
    with pytest.raises(Bad, match="number 0 of the receipt: the record has"):
        check_receipt(opened(story, at, records={at: record}), TRUST)


def test_the_extra_data_of_a_proof_is_the_leaf_or_nothing():
    said = deepcopy(GOOD)
    read = proofs.parse(said["entries"][0]["proof"].encode())
    raw = encode(said["entries"][0]["leaf"])
    for extra, good in ((None, True), (raw, True), (b"", False), (raw + b" ", False)):
        said["entries"][0]["proof"] = proofs.format(read.index, read.hashes, read.checkpoint, extra).decode()
        if good:
            assert checked(said) == checked(GOOD)
            continue
        with pytest.raises(Bad, match="extra data"):
            checked(said)


@pytest.mark.parametrize(
    "raw", [b"[" + b"[]," * 5_500_000 + b"[]]", b"[" + b'{"":0},' * 2_000_000 + b"0]", b"[" + b"1," * 8_000_000 + b"1]"]
)
def test_a_receipt_of_millions_of_parts_is_refused_before_they_take_memory(raw):
    tracemalloc.start()
    with pytest.raises(Bad, match="parts"):
        check_receipt(raw[: receipts.MOST_BYTES], TRUST)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_refusal_names_the_entry():
    said = deepcopy(GOOD)
    entry(1, salt="ff" * 32)(said)
    with pytest.raises(Bad, match="number 1 of the receipt: the record is not the one"):
        checked(said)


def test_a_record_is_opened_by_what_was_committed_and_not_by_the_leaf_it_stands_beside():
    """Someone who can write a record cannot write the log: a leaf that fits the record is in no tree."""
    said = deepcopy(GOOD)
    record = {"type": "request.received", "ticket": "mine"}
    entry(0, record=record)(said)
    leaf(0, commit=commitment(SALTS[0], record))(said)
    with pytest.raises(Bad, match="number 0 of the receipt: the inclusion proof"):
        checked(said)


def test_a_log_signed_by_another_key_proves_nothing():
    with pytest.raises(Bad, match="no signature"):
        checked(GOOD, Policy.of([notes.Signer(ORIGIN, bytes(range(1, 33))).vkey]))


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{}", b'"receipt"', b"\xff\xfe", b"[" * 10**5, b'{"v":1,"v":1}'])
def test_what_is_no_receipt_is_refused(raw):
    with pytest.raises(Bad):
        check_receipt(raw, TRUST)


@given(st.data())
def test_no_record_but_its_own_opens_a_commitment(data):
    record = data.draw(st.dictionaries(st.text(max_size=5), st.integers(-9, 9) | st.text(max_size=5), max_size=3))
    said = deepcopy(GOOD)
    entry(0, record=record)(said)
    with pytest.raises(Bad):
        checked(said)


def test_what_is_written_is_what_is_read():
    tell, record = Teller(), {"type": "request.received", "é": "\x1b"}
    story = [tell("request.received", ref=ref("a"), due=DUE, commit=commitment(SALTS[3], record))]
    raw = receipts.format(ORIGIN, [Opened(story[0], Tree(encoded(story)).proof(0), SALTS[3], record)])
    assert check_receipt(raw, TRUST)[-1] == "entry 0, request.received on 2027-01-31, opens to its record"
