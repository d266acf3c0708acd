"""Runs where sigstore and securesystemslib are installed: their verdicts on cases in JSON, from stdin to stdout."""

# ruff: noqa: PLC0415 - pytest imports this file, too, looking for doctests, where neither is installed
from __future__ import annotations

import json
import sys
from types import SimpleNamespace


def inclusion(case):
    from sigstore._internal.merkle import verify_merkle_inclusion
    from sigstore._internal.rekor.checkpoint import SignedCheckpoint

    checkpoint = SignedCheckpoint.from_text(case["checkpoint"]).checkpoint
    proof = SimpleNamespace(
        log_index=case["index"],
        tree_size=checkpoint.log_size,
        hashes=[bytes.fromhex(one) for one in case["hashes"]],
        root_hash=bytes.fromhex(checkpoint.log_hash),
    )
    body = bytes.fromhex(case["entry"])
    verify_merkle_inclusion(SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=proof, canonicalized_body=body)))


def opened(case):
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

    envelope = Envelope.from_dict(case["envelope"])
    envelope.verify([SSlibKey(case["keyid"], "ed25519", "ed25519", {"public": case["key"]})], 1)
    return envelope.payload.decode()


def signed(case):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner, SSlibKey

    key = SSlibKey(case["keyid"], "ed25519", "ed25519", {"public": case["key"]})
    envelope = Envelope(case["payload"].encode(), case["type"], {})
    envelope.sign(CryptoSigner(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["seed"])), key))
    return envelope.to_dict()


def verdict(case):
    try:
        return {"good": {"inclusion": inclusion, "opened": opened, "signed": signed}[case["ask"]](case)}
    except ImportError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever they refuse it with
        return {"bad": type(error).__name__}


if __name__ == "__main__":
    json.dump([verdict(case) for case in json.load(sys.stdin)], sys.stdout)
