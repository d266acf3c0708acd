"""Certificates: what is signed is what is read, and anybody can check it without us."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import certificates
from app.errors import Invalid

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


def check(path: Path, key: bytes) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "app.cli", "verify", str(path), "--key", base64.b64encode(key).decode()]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_line_checks_a_certificate_offline(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(certificates.sign(SEED, STATEMENT)))
    good = check(path, certificates.public_key(SEED))
    assert (good.returncode, json.loads(good.stdout)) == (0, STATEMENT)
    for key in (certificates.public_key(bytes(range(1, 33))), b"short"):
        bad = check(path, key)
        assert (bad.returncode, bad.stdout) == (1, "")
        assert "not made by this key" in bad.stderr
    path.write_text("{")
    assert "not JSON" in check(path, certificates.public_key(SEED)).stderr
