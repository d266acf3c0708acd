"""One certificate, checked by the auditors' own library, a line for each thing that is looked at.

The service checks itself here, which proves nothing to a stranger: the page says so, and how to check elsewhere.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from expunge_verify import certificate as library
from expunge_verify import merkle, notes
from expunge_verify import proof as proofs
from expunge_verify.errors import Bad, Unchecked, VerifyError
from expunge_verify.policy import Policy
from rfc3161_client import decode_timestamp_response
from sqlalchemy.orm import Session

from app import certificates
from app.audit import evidence, inspection, timestamps
from app.errors import ExpungeError, NotFound
from app.settings import Settings
from app.storage import audit, request_story
from app.storage.tables import Certificate

Json = Mapping[str, Any]  # Any: JSON
Outcome = Literal["good", "bad", "waiting", "unchecked", "none"]
_WORST: Final[tuple[Outcome, ...]] = ("bad", "waiting", "unchecked", "good")
LATER: Final = "the log publishes it in a few seconds"
_SOON: Final = timedelta(minutes=2)
"""By then the log has published what was issued, unless it stands still."""
LATE: Final = "the log has not published it for long: it stands still, or its entry was taken away; see the audit log"
_LOST: Final = "the log published it, and PostgreSQL lacks what proves it: a part of the log was taken away"
NO_ENTRY: Final = "there is no entry of the log to look at"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what, how it went, and what was found, a sentence each."""

    name: str
    outcome: Outcome
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """All that was looked at, and the certificate if its signature was good."""

    checks: tuple[Check, ...]
    statement: Json | None
    digest: str | None
    index: int | None
    key: str | None
    """The issuer's public key as the verifier takes it."""
    vkeys: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst that was found."""
        found = {check.outcome for check in self.checks}
        return next(outcome for outcome in _WORST if outcome in found)


def check(tx: Session, issued: Certificate, settings: Settings, *, now: datetime) -> Checked:
    """Look at everything that can be checked about a certificate as it stands in the database."""
    later = _later(LATER) if now - issued.issued_at < _SOON else _late(LATE)
    raw = json.dumps(issued.envelope).encode()
    digest, key = digest_of(issued.envelope), _key(settings)
    signature, certificate = _signature(raw, key)
    logged, index = _entry(request_story.issued(tx, issued.request_id), digest, later)
    vkeys = tuple(known.vkey for known in audit.known_keys(tx))
    made = [signature, logged]
    if index is None:
        way = later if logged.outcome == later.outcome else _late(NO_ENTRY)
        made += [replace(way, name=_INCLUSION), replace(way, name=_SIGNED)]
    else:
        made += _in_log(tx, certificate, index, lambda: _policy(settings, vkeys), later=later)
    made.append(_stamp(tx, issued.envelope, digest, settings))
    if certificate is not None:
        made.append(_weights(tx, certificate.statement))
    said = certificate.statement if certificate else None
    return Checked(tuple(made), said, digest, index, base64.b64encode(key).decode() if key else None, vkeys)


def digest_of(envelope: Json) -> str | None:
    """What the log would call these bytes, if they are any."""
    try:
        return certificates.digest(dict(envelope))
    except (ValueError, KeyError, TypeError):
        return None


def _key(settings: Settings) -> bytes | None:
    try:
        return certificates.public_key(settings.key("signing_key"))
    except ExpungeError:
        return None


def _policy(settings: Settings, vkeys: tuple[str, ...]) -> Policy:
    """Whom to believe: the operator's policy, else the log's keys as the database knows them.

    Raises:
        VerifyError: One of them can't be read.
    """
    return inspection.policy_of(settings) or Policy.of(notes.Vkey.parse(vkey) for vkey in vkeys)


def _signature(raw: bytes, key: bytes | None) -> tuple[Check, library.Certificate | None]:
    name = "Signature of the issuer"
    if key is None:
        return Check(name, "unchecked", ("this process has no EXPUNGE_SIGNING_KEY to compare with",)), None
    try:
        found = library.open_certificate(raw, key)
    except VerifyError as error:
        return Check(name, "bad", (str(error),)), None
    return Check(name, "good", found.facts), found


def _entry(places: Mapping[str, int | None], digest: str | None, later: Check) -> tuple[Check, int | None]:
    name = "Entry in the public log"
    if digest is None or digest not in places:
        count = f"the log has {len(places)} certificates for this request, and this is none of them"
        return Check(name, "bad", (f"digest {digest}" if digest else "what was signed can't be read", count)), None
    index = places[digest]
    if index is None:
        return Check(name, later.outcome, (f"digest {digest}", *later.facts)), None
    return Check(name, "good", (f"digest {digest}", f"the log has it as entry {index}")), index


_INCLUSION, _SIGNED, _SEEN = "Inclusion in the log", "Checkpoint of the log", "Cosignatures of witnesses"


def _later(fact: str) -> Check:
    return Check("", "waiting", (fact,))


def _late(fact: str) -> Check:
    return Check("", "unchecked", (fact,))


def _in_log(
    tx: Session,
    certificate: library.Certificate | None,
    index: int,
    policy_of: Callable[[], Policy],
    *,
    later: Check,
) -> Iterator[Check]:
    """What the proof of the entry leads to."""
    try:
        raw, policy = evidence.proof_of(tx, index), policy_of()
    except NotFound:
        way = Check("", "bad", (_LOST,)) if _was_published(tx, index) else later
        yield from (replace(way, name=name) for name in (_INCLUSION, _SIGNED))
        return
    except VerifyError as error:
        way = Check("", "unchecked" if isinstance(error, Unchecked) else "bad", (str(error),))
        yield from (replace(way, name=name) for name in (_INCLUSION, _SIGNED))
        return
    yield _judged(_INCLUSION, lambda: _included(raw, certificate, policy))
    yield _judged(_SIGNED, lambda: [fact for fact in _opened(raw, policy) if not _is_of_witness(fact)])
    if policy.witnesses:
        yield _judged(_SEEN, lambda: [fact for fact in _opened(raw, policy) if _is_of_witness(fact)])
    else:
        yield Check(_SEEN, "none", ("this installation asks no witness",))


def _was_published(tx: Session, index: int) -> bool:
    """Whether an entry lies in the published tree, by the note that was signed: a column's size is nobody's word."""
    note = audit.published(tx)
    try:
        return note is not None and index < notes.Checkpoint.parse(notes.parse(bytes(note.published or b"")).text).size
    except VerifyError:
        return True


def _judged(name: str, look: Callable[[], list[str]]) -> Check:
    try:
        return Check(name, "good", tuple(look()))
    except Bad as error:
        return Check(name, "bad", (str(error),))
    except Unchecked as error:
        return Check(name, "unchecked", (str(error),))


def _included(raw: bytes, certificate: library.Certificate | None, policy: Policy) -> list[str]:
    read = proofs.parse(raw)
    checkpoint, _ = policy.open(read.checkpoint)
    merkle.check_inclusion(
        merkle.leaf_hash(read.extra or b""), read.index, checkpoint.size, read.hashes, checkpoint.root
    )
    facts = [f"entry {read.index} is in the tree of {checkpoint.size} entries, proven by {len(read.hashes)} hashes"]
    if certificate is not None:
        facts += [fact for fact in library.check_logged(certificate, raw, policy) if "issued this certificate" in fact]
    return facts


def _opened(raw: bytes, policy: Policy) -> list[str]:
    checkpoint, facts = policy.open(proofs.parse(raw).checkpoint)
    return [f"of {checkpoint.size} entries, root {checkpoint.root.hex()}", *facts]


def _is_of_witness(fact: str) -> bool:
    return fact.startswith(("cosigned by", "quorum"))


def _stamp(tx: Session, envelope: Json, digest: str | None, settings: Settings) -> Check:
    name = "Time stamp (RFC 3161)"
    stamp = audit.timestamp(tx, bytes.fromhex(digest.removeprefix("sha256:"))) if digest else None
    if stamp is None:
        asked = "not stamped yet" if settings.timestamp_url else "this installation asks no time stamp authority"
        return Check(name, "none", (asked,))
    if settings.timestamp_roots is None:
        return Check(name, "unchecked", ("there is one, and EXPUNGE_TIMESTAMP_ROOTS names nobody to check it with",))
    try:
        token = decode_timestamp_response(bytes(stamp.token))
        at = timestamps.check(token, base64.b64decode(envelope["payload"]), settings.timestamp_roots)
    except (ValueError, ExpungeError) as error:
        return Check(name, "bad", (str(error) if isinstance(error, ExpungeError) else "it can't be read",))
    return Check(name, "good", (f"an authority saw it at {at.isoformat(timespec='seconds')}",))


def _weights(tx: Session, statement: Json) -> Check:
    """How what is live stands to these weights; a model that was registered anew is nothing against a certificate."""
    certified = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    found = request_story.live(tx, certified)
    facts = []
    for model, weights in certified.items():
        now = found.get(model)
        if now is None:
            facts.append(f"{model} is not registered any more")
        elif now.weights == weights:
            facts.append(f"{model}: version {now.number} is live, with exactly these weights")
        elif now.descends:
            facts.append(f"{model}: version {now.number} is live, computed from these weights by later deletions")
        else:
            told = "which was not computed from these weights: the certificate says nothing about it"
            facts.append(f"{model}: version {now.number} is live, {told}")
    held = all(model in found and found[model].descends for model in certified)
    return Check("Weights that are live now", "good" if held else "none", tuple(facts))
