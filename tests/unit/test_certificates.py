"""Certificates: what is signed is what is read, and anybody can check it without us."""

import base64
import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from app import certificates
from app.errors import Invalid
from tests import command_line

SEED = bytes(range(32))
STATEMENT = certificates.statement(subjects=[("toy", "ab" * 32)], predicate={"request": "r-1"})


def test_what_was_signed_is_read_back() -> None:
    envelope = certificates.sign(SEED, STATEMENT)
    assert certificates.verify(envelope, certificates.public_key(SEED)) == STATEMENT


@given(st.data())
def test_any_flipped_bit_of_payload_or_signature_is_refused(data: st.DataObject) -> None:
    envelope = certificates.sign(SEED, STATEMENT)
    part = data.draw(st.sampled_from(["payload", "sig"]))
    encoded = envelope["payload"] if part == "payload" else envelope["signatures"][0]["sig"]
    raw = bytearray(base64.b64decode(encoded))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    flipped = base64.b64encode(bytes(raw)).decode()
    if part == "payload":
        envelope["payload"] = flipped
    else:
        envelope["signatures"][0]["sig"] = flipped
    with pytest.raises(Invalid):
        certificates.verify(envelope, certificates.public_key(SEED))


@pytest.mark.parametrize("envelope", [{}, [], {"payload": 3}, {"payload": "é", "signatures": [], "payloadType": "x"}])
def test_what_is_no_envelope_is_refused(envelope: object) -> None:
    with pytest.raises(Invalid):
        certificates.verify(envelope, certificates.public_key(SEED))  # type: ignore[arg-type] # hostile input


def test_an_implementation_of_others_accepts_our_envelope_and_we_accept_theirs() -> None:
    """securesystemslib is what in-toto and TUF use; its ``from_dict`` takes the dict apart that it is given."""
    envelope = certificates.sign(SEED, STATEMENT)
    private = Ed25519PrivateKey.from_private_bytes(SEED)
    keyid = envelope["signatures"][0]["keyid"]  # it finds keys by the name they have with us
    key = SSlibKey.from_crypto(private.public_key(), keyid)
    theirs = Envelope.from_dict(copy.deepcopy(envelope))
    assert theirs.verify([key], 1)
    assert json.loads(theirs.payload) == STATEMENT
    assert theirs.payload_type == certificates.PAYLOAD_TYPE
    with pytest.raises(VerificationError):
        theirs.verify([SSlibKey.from_crypto(Ed25519PrivateKey.generate().public_key(), keyid)], 1)
    made = Envelope(theirs.payload, certificates.PAYLOAD_TYPE, {})
    made.sign(CryptoSigner(private, key))
    assert made.to_dict() == envelope
    assert certificates.verify(made.to_dict(), certificates.public_key(SEED)) == STATEMENT


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return command_line.run("app.cli", "verify", "certificate", *map(str, arguments), environment=os.environ)


@pytest.mark.slow
def test_the_command_line_checks_a_certificate_offline(tmp_path: Path) -> None:
    path, key = tmp_path / "certificate.json", base64.b64encode(certificates.public_key(SEED)).decode()
    path.write_text(json.dumps(certificates.sign(SEED, STATEMENT)))
    good = check(path, "--key", key, "--signature-only")
    assert good.returncode == 0, good.stdout
    assert all(line.startswith("ok ") for line in good.stdout.splitlines()[:-1])
    assert check(path, "--key", key).returncode == 2, "without a proof the log is unchecked"
    other = base64.b64encode(certificates.public_key(bytes(range(1, 33)))).decode()
    for stranger, status in ((other, 1), ("c2hvcnQ=", 2)):
        bad = check(path, "--key", stranger, "--signature-only")
        assert bad.returncode == status
        assert not any(line.startswith("ok ") for line in bad.stdout.splitlines())
    path.write_text("{")
    assert check(path, "--key", key).returncode == 1
