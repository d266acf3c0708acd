"""Sigstore's verifiers in Python and JavaScript, and securesystemslib, on our proofs, checkpoints and envelopes."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from expunge_verify import dsse, merkle
from expunge_verify.notes import Signer

from tests.outside.logs import ORIGIN, ROOT, SIGNER, checkpoint_over, random_entries

pytestmark = pytest.mark.slow  # other people's programs are started

HERE = ROOT / "tests" / "outside"
SIZES = (1, 2, 3, 5, 8, 255, 256, 257, 700)
SEED = bytes(range(32))
KEY = Signer("any", SEED).vkey.public
BODY = '{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"Zoë"}]}'


def _python():
    """Asks sigstore and securesystemslib, where there is an environment with both."""
    if importlib.util.find_spec("sigstore") and importlib.util.find_spec("securesystemslib"):
        return _asking([sys.executable, HERE / "sigstore_python.py"])
    python = Path(os.environ.get("EXPUNGE_SIGSTORE_PYTHON") or ROOT / ".expunge/sigstore/bin/python")
    if not python.is_file():
        pytest.skip("no Python with sigstore and securesystemslib: EXPUNGE_SIGSTORE_PYTHON, or .ci/outside")
    return _asking([python, HERE / "sigstore_python.py"])


def _npm():
    """Asks @sigstore/verify and @sigstore/core."""
    modules = Path(os.environ.get("EXPUNGE_NODE_MODULES") or ROOT / ".expunge/node_modules").absolute()
    if not shutil.which("node"):
        pytest.skip("no node")
    if not (modules / "@sigstore/verify").is_dir():
        pytest.skip("no @sigstore/verify and @sigstore/core: EXPUNGE_NODE_MODULES, or .ci/outside")
    return _asking(["node", HERE / "sigstore_npm.js", modules])


def _asking(command):
    def ask(cases):
        answer = subprocess.run(
            command, input=json.dumps(cases), capture_output=True, text=True, check=True, timeout=120
        ).stdout
        return json.loads(answer)

    return ask


VERIFIERS = pytest.mark.parametrize("verifier", [_python, _npm])


@VERIFIERS
def test_inclusion_proofs_and_checkpoints_are_accepted(verifier):
    cases = [_inclusion(size, index) for size in SIZES for index in {0, size // 2, size - 2, size - 1} if index >= 0]
    assert verifier()(cases) == [{"good": None}] * len(cases)


@VERIFIERS
def test_any_changed_bit_of_entry_or_proof_is_refused(verifier):
    rng, cases = random.Random(2), []
    for case in [_inclusion(257, 5), _inclusion(700, 699), _inclusion(256, 128)]:
        for at in range(len(case["hashes"])):
            changed = copy.deepcopy(case)
            changed["hashes"][at] = _flipped(changed["hashes"][at], rng)
            cases.append(changed)
        cases += [
            {**case, "entry": _flipped(case["entry"], rng)},
            {**case, "index": case["index"] ^ 1},
            {**case, "hashes": case["hashes"][:-1]},
            {**case, "hashes": [*case["hashes"], "00" * 32]},
            {**case, "checkpoint": checkpoint_over(random_entries(258)).decode()},
        ]
    assert [list(verdict) for verdict in verifier()(cases)] == [["bad"]] * len(cases)


def test_a_checkpoint_by_another_key_or_with_a_changed_size_is_refused():
    case = _inclusion(257, 5)
    forged = {**case, "key": Signer("any", bytes(32)).vkey.public.hex()}
    changed = {**case, "checkpoint": case["checkpoint"].replace("\n257\n", "\n259\n")}
    assert [list(verdict) for verdict in _npm()([case, forged, changed])] == [["good"], ["bad"], ["bad"]]


@VERIFIERS
def test_our_envelopes_open_and_changed_ones_do_not(verifier):
    good = _envelope()
    rng, cases = random.Random(3), [good]
    for name in ("payload", "payloadType"):
        changed = copy.deepcopy(good)
        changed["envelope"][name] = "A" * 4 + changed["envelope"][name][4:]
        cases.append(changed)
    cases.append({**good, "key": _flipped(good["key"], rng)})
    verdicts = verifier()(cases)
    assert verdicts[0] == {"good": BODY}
    assert [list(verdict) for verdict in verdicts[1:]] == [["bad"]] * 3


def test_an_envelope_that_securesystemslib_signed_is_ours_byte_for_byte():
    asked = {"ask": "signed", "payload": BODY, "type": dsse.IN_TOTO, "seed": SEED.hex(), **_named()}
    [verdict] = _python()([asked])
    assert dsse.open_envelope(verdict["good"], KEY, dsse.IN_TOTO) == BODY.encode()
    assert verdict["good"] == dsse.sign(SEED, dsse.IN_TOTO, BODY.encode())


def _inclusion(size, index):
    entries = random_entries(size, seed=size, most_bytes=20)
    entries[index] += b"."  # never empty, so that it has a bit to change
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    proof = merkle.inclusion_proof(
        lambda level, at: merkle.root_of(leaves[at << level : (at + 1) << level]), index, size
    )
    return {
        "ask": "inclusion",
        "index": index,
        "entry": entries[index].hex(),
        "hashes": [one.hex() for one in proof],
        "checkpoint": checkpoint_over(entries).decode(),
        "origin": ORIGIN,
        "key": SIGNER.vkey.public.hex(),
        "keyid": SIGNER.vkey.key_id.hex(),
    }


def _named():
    return {"key": KEY.hex(), "keyid": dsse.key_id(KEY)}


def _envelope():
    return {"ask": "opened", "envelope": dsse.sign(SEED, dsse.IN_TOTO, BODY.encode()), **_named()}


def _flipped(text, rng):
    raw = bytearray.fromhex(text)
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return raw.hex()
