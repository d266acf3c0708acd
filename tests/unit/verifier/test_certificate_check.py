"""Certificates: what is signed and logged is believed, and every change of it is refused."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from expunge_verify import notes
from expunge_verify import proof as proofs
from expunge_verify.certificate import (
    ISSUERS_WORD,
    NO_PROOF,
    Checked,
    check_certificate,
    check_logged,
    open_certificate,
)
from expunge_verify.errors import Bad, Unchecked, VerifyError
from expunge_verify.policy import Policy

from app import certificates
from tests.unit.verifier.building import (
    CERTIFICATE_SEED,
    ORIGIN,
    SIGNER,
    Issued,
    Tree,
    digest,
    encoded,
    good_log,
    key_of,
    ref,
    statement,
)

GOOD = Issued()
KEY = key_of(CERTIFICATE_SEED)
TRUST = Policy.of([SIGNER.vkey])
ANOTHER = bytes(range(1, 33))


def check(issued: Issued = GOOD, *, envelope: bytes | None = None, proof: bytes | None = None) -> Checked:
    return check_certificate(
        envelope or issued.envelope, KEY, proof=issued.proof if proof is None else proof, policy=TRUST
    )


def test_a_certificate_in_the_log_is_good():
    checked = check()
    assert checked.unchecked == (ISSUERS_WORD,)
    assert checked.facts[-1] == f"entry {GOOD.index} issued this certificate for request {ref('a')} on 2027-01-31"
    assert any(fact.startswith("signed by log") for fact in checked.facts)
    assert f"it is about model 'wages', weights {digest('m1')}" in checked.facts


def test_the_digest_is_that_of_the_signed_bytes():
    payload = json.dumps(statement(), sort_keys=True, separators=(",", ":")).encode()
    assert check().certificate.digest == f"sha256:{sha256(payload).hexdigest()}"


def test_what_the_service_signs_is_read():
    said = certificates.statement(subjects=[("Löhne", "ab" * 32)], predicate={"request": "r-1"})
    envelope = json.dumps(certificates.sign(CERTIFICATE_SEED, said), indent=1).encode()
    assert open_certificate(envelope, certificates.public_key(CERTIFICATE_SEED)).statement == said


def test_without_a_proof_it_says_what_was_not_checked():
    checked = check_certificate(GOOD.envelope, KEY, proof=None, policy=None)
    assert checked.unchecked == (NO_PROOF,)
    assert checked.facts == checked.certificate.facts


def test_a_proof_without_a_policy_is_not_checked():
    with pytest.raises(Unchecked, match="no key of the log"):
        check_certificate(GOOD.envelope, KEY, proof=GOOD.proof, policy=None)


def test_a_proof_without_the_entry_is_not_checked():
    with pytest.raises(Unchecked, match="does not carry the entry"):
        check(proof=GOOD.tree.proof(GOOD.index))


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_every_changed_byte_of_an_envelope_is_refused(flip):
    for at in range(len(GOOD.envelope)):
        changed = bytearray(GOOD.envelope)
        changed[at] ^= flip
        with pytest.raises(VerifyError):
            open_certificate(bytes(changed), KEY)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_every_changed_byte_of_a_proof_is_refused(flip):
    certificate = open_certificate(GOOD.envelope, KEY)
    for at in range(len(GOOD.proof)):
        changed = bytearray(GOOD.proof)
        changed[at] ^= flip
        with pytest.raises(VerifyError):
            check_logged(certificate, bytes(changed), TRUST)


def test_every_shortened_envelope_and_proof_is_refused():
    certificate = open_certificate(GOOD.envelope, KEY)
    for at in range(len(GOOD.proof)):
        with pytest.raises(VerifyError):
            check_logged(certificate, GOOD.proof[:at], TRUST)
    for at in range(len(GOOD.envelope)):
        with pytest.raises(Bad):
            open_certificate(GOOD.envelope[:at], KEY)


@pytest.mark.parametrize("key", [key_of(ANOTHER), KEY[:31], b"", KEY + b"\0"])
def test_another_key_is_refused(key):
    with pytest.raises(Bad, match="none of the envelope's 1 signatures"):
        open_certificate(GOOD.envelope, key)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"ref": ref("b")}, "has ref"),
        ({"cert": digest("another")}, "has cert"),
    ],
)
def test_the_entry_names_this_certificate_and_request(other, what):
    with pytest.raises(Bad, match=what):
        check(Issued(**other))


@pytest.mark.parametrize("index", [at for at in range(len(GOOD.story)) if at != GOOD.index])
def test_another_entry_of_the_same_log_proves_nothing(index):
    with pytest.raises(Bad, match="has type"):
        check(proof=GOOD.proof_of(index))


def test_an_entry_that_only_looks_like_a_leaf_proves_nothing():
    entry = GOOD.tree.entries[GOOD.index] + b" "
    tree = Tree([entry])
    read = proofs.parse(tree.proof(0))
    with pytest.raises(Bad, match="canonical form"):
        check(proof=proofs.format(0, read.hashes, read.checkpoint, entry))


def test_a_log_that_nobody_trusts_proves_nothing():
    other = Tree(GOOD.tree.entries, notes.Signer(ORIGIN, ANOTHER))
    read = proofs.parse(other.proof(GOOD.index))
    forged = proofs.format(GOOD.index, read.hashes, read.checkpoint, other.entries[GOOD.index])
    with pytest.raises(Bad, match="no signature by"):
        check(proof=forged)


def test_an_entry_of_another_log_proves_nothing_although_both_are_trusted():
    elsewhere = notes.Signer("erasure.example/log/other", ANOTHER)
    other = Tree(GOOD.tree.entries, elsewhere)
    read = proofs.parse(other.proof(GOOD.index))
    copied = proofs.format(GOOD.index, read.hashes, read.checkpoint, other.entries[GOOD.index])
    with pytest.raises(Bad, match="the proof is of log"):
        check_certificate(GOOD.envelope, KEY, proof=copied, policy=Policy.of([SIGNER.vkey, elsewhere.vkey]))


def test_a_quorum_of_witnesses_is_asked_for():
    witness = notes.vkey_of("w", key_of(ANOTHER), notes.COSIGNATURE)
    policy = Policy.parse(f"log {SIGNER.vkey}\nwitness w {witness}\nquorum w\n")
    with pytest.raises(Bad, match="quorum"):
        check_certificate(GOOD.envelope, KEY, proof=GOOD.proof, policy=policy)
    text = notes.parse(proofs.parse(GOOD.proof).checkpoint).text
    cosigned = GOOD.proof + notes.cosign(ANOTHER, "w", text, 1_800_000_000).encode()
    assert check_certificate(GOOD.envelope, KEY, proof=cosigned, policy=policy).unchecked == (ISSUERS_WORD,)


STATEMENTS = {
    "another type": statement() | {"_type": "https://in-toto.io/Statement/v0.1"},
    "another predicate": statement() | {"predicateType": "https://slsa.dev/provenance/v1"},
    "no subject": statement() | {"subject": []},
    "a thousand and one subjects": statement() | {"subject": statement()["subject"] * 1001},
    "a subject without digest": statement() | {"subject": [{"name": "wages"}]},
    "a subject with half a digest": statement() | {"subject": [{"name": "wages", "digest": {"sha256": "ab" * 16}}]},
    "a subject in capitals": statement() | {"subject": [{"name": "wages", "digest": {"sha256": "AB" * 32}}]},
    "a predicate that is a list": statement() | {"predicate": []},
    "nothing": {},
    "a list": [],
    "a text": "certificate",
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_signed_something_else_is_no_certificate(name):
    with pytest.raises(Bad):
        open_certificate(Issued(STATEMENTS[name]).envelope, KEY)


@pytest.mark.parametrize("log", [{"origin": None}, {"ref": None}, {"ref": 7}, {"origin": []}])
def test_a_certificate_that_names_no_place_in_a_log_has_no_proof(log):
    with pytest.raises(Bad, match=r"predicate\.log"):
        check(Issued(statement(**log)))


def earlier(size: int, signer: notes.Signer = SIGNER) -> str:
    return Tree(encoded(good_log()), signer).checkpoint(size).decode()


@pytest.mark.parametrize("size", [0, 3, GOOD.index])
def test_the_checkpoint_in_a_certificate_is_older_than_its_entry(size):
    facts = check(Issued(statement(checkpoint=earlier(size)))).facts
    assert facts[-1] == f"the certificate carries the log's signed checkpoint of {size} entries"


@pytest.mark.parametrize(
    ("checkpoint", "what"),
    [
        (earlier(GOOD.index + 1), "is older than the certificate"),
        (earlier(3, notes.Signer(ORIGIN, ANOTHER)), "no signature by"),
        (earlier(3, notes.Signer("other.example/log", ANOTHER)), "is of log"),
        (earlier(3).replace("\n3\n", "\n4\n"), "is wrong"),
        ("", "no signature lines"),
        (3, "not the text"),
        ({}, "not the text"),
    ],
)
def test_a_wrong_checkpoint_in_a_certificate_is_refused(checkpoint, what):
    with pytest.raises(Bad, match=what):
        check(Issued(statement(checkpoint=checkpoint)))


def test_a_checkpoint_of_another_trusted_log_is_refused():
    elsewhere = notes.Signer("other.example/log", ANOTHER)
    issued = Issued(statement(checkpoint=earlier(3, elsewhere)))
    policy = Policy.of([SIGNER.vkey, elsewhere.vkey])
    with pytest.raises(Bad, match="the certificate's checkpoint is of log"):
        check_certificate(issued.envelope, KEY, proof=issued.proof, policy=policy)


def test_names_of_models_cannot_write_to_a_terminal():
    said = statement() | {"subject": [{"name": "\x1b[2J" + "é" * 500, "digest": {"sha256": "ab" * 32}}]}
    assert all(fact.isascii() and fact.isprintable() for fact in open_certificate(Issued(said).envelope, KEY).facts)
