"""Certificates: an in-toto Statement in a DSSE envelope, and the entry of the log that holds its digest.

Sources: in-toto attestation framework v1 (Statement), DSSE protocol v1. The signature says who issued a certificate;
the log says that it is one of those that were issued in the open, because the entry `certificate.issued` names its
digest and the request's random reference. The entry travels as the extra data of the proof file, and is believed
because the proof leads from its hash to the signed root.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from expunge_verify import dsse, leaf, notes
from expunge_verify import proof as proofs
from expunge_verify.errors import Bad, Unchecked, shown
from expunge_verify.policy import Policy

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://expunge.dev/erasure-certificate/v1"
MOST_SUBJECTS: Final = 1000

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Certificate:
    """A certificate whose signature was good.

    Attributes:
        digest: ``sha256:`` and the digest of the signed bytes, as the log has it.
        statement: The whole in-toto Statement.
        facts: What was found about it, a sentence each.
    """

    digest: str
    statement: Mapping[str, Any]  # Any: JSON
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What was found about a certificate, and what could not be looked at, a sentence each."""

    certificate: Certificate
    facts: tuple[str, ...]
    unchecked: tuple[str, ...]


def check_certificate(envelope: bytes, key: bytes, *, proof: bytes | None, policy: Policy | None) -> Checked:
    """Check who signed a certificate and, with its proof, that it stands in the log.

    Args:
        envelope: The certificate as it was handed out.
        key: The issuer's Ed25519 key, 32 bytes, from another hand than the certificate.
        proof: The ``.tlog-proof`` beside it.
        policy: Whose checkpoints to believe; needed if there is a proof.

    Raises:
        Bad: A signature, a digest, the proof or what they name does not fit.
        Unchecked: There is a proof and no policy, or the proof does not carry the entry.
    """
    certificate = open_certificate(envelope, key)
    if proof is None:
        return Checked(certificate, certificate.facts, (NO_PROOF,))
    return Checked(certificate, (*certificate.facts, *check_logged(certificate, proof, policy)), (ISSUERS_WORD,))


NO_PROOF: Final = "that the log holds this certificate, and when it was issued: no proof was given"
ISSUERS_WORD: Final = (
    "what the certificate says of models, methods, tests and days: its entry binds its digest and the request's ref, "
    "the rest is the issuer's word until `requests` has checked the whole log"
)


def open_certificate(envelope: bytes, key: bytes) -> Certificate:
    """The certificate in an envelope, if this key signed it.

    Raises:
        Bad: The signature is not by this key, or what was signed is no erasure certificate.
    """
    payload = dsse.open_envelope(envelope, key, dsse.IN_TOTO)
    statement = dsse.strict_json(payload, dsse.MOST_BYTES)
    models = _models(statement)
    facts = (
        f"the certificate is signed by key {dsse.key_id(key)}",
        *(f"it is about model {shown(name)}, weights sha256:{digest}" for name, digest in models),
    )
    return Certificate(f"sha256:{hashlib.sha256(payload).hexdigest()}", statement, facts)


def check_logged(certificate: Certificate, proof: bytes, policy: Policy | None) -> list[str]:
    """Check that a log of the policy holds the entry that was written when this certificate was issued.

    Raises:
        Bad: The entry is not in the log, or is that of another certificate, request or log.
        Unchecked: There is no policy, or the proof does not carry the entry.
    """
    if policy is None:
        raise Unchecked("no key of the log was given, so the proof is unchecked")
    said = _log(certificate)
    read = proofs.parse(proof)
    if read.extra is None:
        raise Unchecked("the proof does not carry the entry it is about, as its extra data")
    facts = proofs.check(read.extra, read, policy)
    issued = leaf.decode(read.extra)
    origin = notes.Checkpoint.parse(notes.parse(read.checkpoint).text).origin
    found = {"type": issued["type"], "log": issued["log"], "ref": issued.get("ref"), "cert": issued.get("cert")}
    wanted = {"type": "certificate.issued", "log": said["origin"], "ref": said["ref"], "cert": certificate.digest}
    for name, value in wanted.items():
        if found[name] != value:
            raise Bad(f"entry {read.index} has {name} {shown(found[name])}, the certificate {shown(value)}")
    if origin != said["origin"]:
        raise Bad(f"the proof is of log {shown(origin)}, the certificate names {shown(said['origin'])}")
    facts.append(f"entry {read.index} issued this certificate for request {said['ref']} on {issued['day']}")
    return facts + _since(said, read, policy)


def _models(statement: object) -> list[tuple[str, str]]:
    """Name and digest of every model that an erasure certificate is about."""
    match statement:
        case {
            "_type": str(kind),
            "predicateType": str(predicate_type),
            "subject": [_, *_] as subjects,
            "predicate": {},
        } if len(subjects) <= MOST_SUBJECTS:
            pass
        case _:
            raise Bad("what was signed is no in-toto Statement: it needs _type, predicateType, subject and predicate")
    if (kind, predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise Bad(f"what was signed is a {shown(kind)} of {shown(predicate_type)}, no erasure certificate")
    return [_model(subject) for subject in subjects]


def _model(subject: object) -> tuple[str, str]:
    match subject:
        case {"name": str(name), "digest": {"sha256": str(digest)}} if _SHA256.fullmatch(digest):
            return name, digest
        case _:
            raise Bad("a subject of the certificate is not a name with a sha256 digest")


def _log(certificate: Certificate) -> dict[str, Any]:  # Any: JSON
    """What the certificate says about its place in a log: origin, ref and, perhaps, an earlier checkpoint."""
    match certificate.statement["predicate"].get("log"):
        case {"origin": str(), "ref": str()} as said:
            return dict(said)
        case _:
            raise Bad("the certificate does not name an origin and a ref in predicate.log")


def _since(said: Mapping[str, object], read: proofs.Proof, policy: Policy) -> list[str]:
    """Compare with the checkpoint that was current when the certificate was signed, which the entry must follow."""
    known = said.get("checkpoint")
    if known is None:
        return []
    if not isinstance(known, str):
        raise Bad("predicate.log.checkpoint of the certificate is not the text of a signed checkpoint")
    checkpoint, _ = notes.open_checkpoint(known.encode(), policy.logs)  # witnesses sign it later: no quorum is asked
    if checkpoint.origin != said["origin"]:
        raise Bad(f"the certificate's checkpoint is of log {shown(checkpoint.origin)}")
    if read.index < checkpoint.size:
        raise Bad(f"entry {read.index} is older than the certificate, which knew {checkpoint.size} entries")
    return [f"the certificate carries the log's signed checkpoint of {checkpoint.size} entries"]
