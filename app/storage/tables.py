"""All tables: PostgreSQL remembers, everything else may be lost."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime
from enum import StrEnum
from secrets import token_hex
from typing import Any, ClassVar
from uuid import UUID, uuid4

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.domain.decisions import IdentityLevel
from app.domain.lifecycle import JOB_OPEN, PLANNABLE, REQUEST_ENDED, JobStatus, RequestStatus
from app.domain.webhook import Scheme


class Table(DeclarativeBase):
    """The parent of all tables: timestamps carry a zone, strings are text, names of constraints are predictable."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        datetime: DateTime(timezone=True),
        str: Text(),
        bytes: LargeBinary(),
        list[str]: ARRAY(Text()),
        list[int]: ARRAY(BigInteger()),
        list[UUID]: ARRAY(Uuid()),
        dict[str, Any]: JSONB(),  # Any: JSON
    }


def _in(column: str, words: Collection[StrEnum]) -> str:
    return f"{column} IN ({', '.join(sorted(repr(str(word)) for word in words))})"


def _now() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


class Client(Table):
    """Who calls: a portal, an office, a training pipeline. Its keys come and go; its requests stay its own."""

    __tablename__ = "clients"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str]
    oidc_subject: Mapped[str | None] = mapped_column(unique=True)
    """The ``sub`` of the tokens by which the operator's identity provider names it."""
    token_scopes: Mapped[list[str]] = mapped_column(server_default="{}")
    """What its tokens may have at most."""
    daily_erasures: Mapped[int | None]
    """How many requests it may make in a day, where that differs from the setting."""
    created_at: Mapped[datetime] = _now()


class ApiKey(Table):
    """A key by which a client calls; only its SHA-256 is here."""

    __tablename__ = "api_keys"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"))
    name: Mapped[str]
    hint: Mapped[str]
    """First characters of the key, to recognise it by."""
    digest: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = _now()
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Person(Table):
    """Somebody who signs in at the dashboard. What they do there, they do as a client of their own."""

    __tablename__ = "people"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), unique=True)
    """Under whose name their decisions and requests stand; it has no key."""
    login: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    roles: Mapped[list[str]]
    """Each a :class:`app.domain.people.Role`."""
    password: Mapped[str | None]
    """As argon2id writes it; none: not set up, or known by the identity provider."""
    totp: Mapped[bytes | None]
    """The second factor's secret, sealed under the wrapping key; none: not set up."""
    totp_step: Mapped[int | None] = mapped_column(BigInteger)
    """The last 30 seconds whose code was used: none is good twice."""
    oidc_subject: Mapped[str | None] = mapped_column(unique=True)
    """By which the identity provider knows them, since their first sign-in by it."""
    by_provider: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether they sign in by the identity provider, and have no password."""
    setup_digest: Mapped[bytes | None]
    """SHA-256 of the code by which a password may be set, once."""
    setup_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _now()
    disabled_at: Mapped[datetime | None]


class BrowserSession(Table):
    """A browser in which somebody has signed in; only the SHA-256 of its cookie is here."""

    __tablename__ = "browser_sessions"
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("people.id"), index=True)
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    """To the minute."""


class SignInFailure(Table):
    """How often a login failed lately, whether it is anybody's or not; gone a day after the last time."""

    __tablename__ = "sign_in_failures"
    login_digest: Mapped[bytes] = mapped_column(primary_key=True)
    """Keyed hash: people put passwords into such fields."""
    failures: Mapped[int]
    failed_at: Mapped[datetime] = mapped_column(index=True)


class InternalEntry(Table):
    """What people did at the dashboard that only they should know of: look-ups, exports, rights; append-only."""

    __tablename__ = "internal_log"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime]
    person_id: Mapped[UUID | None] = mapped_column(ForeignKey("people.id"))
    """None: somebody at the command line, or who is nobody."""
    what: Mapped[str]
    request_id: Mapped[UUID | None] = mapped_column(ForeignKey("erasure_requests.id"), index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))  # Any: JSON; never a user id
    __table_args__ = (
        Index("ix_internal_log_person_id", "person_id", "id"),
        Index("ix_internal_log_what", "what", "id"),
    )


class KeyCheck(Table):
    """Fingerprints of the secrets that this database was begun with: another key would find nobody and say so."""

    __tablename__ = "key_checks"
    name: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]


class ErasureRequest(Table):
    """One person's demand to be forgotten, and the clock that runs on it."""

    __tablename__ = "erasure_requests"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    sequence: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    """Order of arrival; the cursor of the list."""
    ref: Mapped[str] = mapped_column(unique=True, default=lambda: token_hex(16))
    """Its name in the public log: random, and nowhere else but in certificate and receipt."""
    status: Mapped[str] = mapped_column(server_default=RequestStatus.RECEIVED.value)
    origin: Mapped[str] = mapped_column(server_default="portal")
    """``portal``, or ``suppression``: a new model version was trained on an erased person."""
    client_id: Mapped[UUID | None] = mapped_column(ForeignKey("clients.id"))
    batch_id: Mapped[UUID | None]
    """The bulk call that it came with."""
    reference: Mapped[str | None]
    """The portal's own ticket."""
    models: Mapped[list[str] | None]
    """Models asked for; none means all."""
    received_at: Mapped[datetime]
    deadline: Mapped[datetime]
    """The last moment of an answer in time, as it stands now."""
    clock_from: Mapped[datetime | None]
    """Where the months are counted from, if not from receipt: a policy may wait for the person's identity."""
    closed_at: Mapped[datetime | None]
    identity_level: Mapped[str] = mapped_column(server_default=IdentityLevel.LOW.value)
    """How sure the portal is that the person is who they say."""
    approvals_needed: Mapped[int] = mapped_column(server_default="0")
    """How many people must agree before work begins."""
    duplicate_of: Mapped[UUID | None] = mapped_column(ForeignKey("erasure_requests.id"))
    """Another request for the same person, whose work serves this one, too: an older one, or who was done sooner."""
    gone_from: Mapped[list[UUID] | None]
    """Models that another request has had the person forgotten by since this one came in: nobody could tell later."""
    reason: Mapped[str | None]
    """Why it is where it is, where the status alone does not say."""
    subject_key: Mapped[UUID | None]
    """Keyed hash of the user id; gone at the end."""
    suppression_key: Mapped[bytes | None]
    """Other keyed hash of the user id, for the ledger; gone at the end."""
    sealed_user_id: Mapped[bytes | None]
    """The user id under the request's own key; gone at the end."""
    dedupe_key: Mapped[bytes | None]
    """Keyed hash of the whole demand: the same demand while one is open is the same request."""
    backups_expire_at: Mapped[datetime | None]
    """When the last backup goes that may hold its deleted key; none once the log says so, or while there is a key."""
    traceparent: Mapped[str | None]
    """The trace that it came in by (W3C Trace Context): random numbers of ours; none while nobody traces."""
    __table_args__ = (
        CheckConstraint(_in("status", frozenset(RequestStatus)), name="status"),
        CheckConstraint(
            f"NOT ({_in('status', REQUEST_ENDED)}) OR (closed_at IS NOT NULL AND subject_key IS NULL"
            " AND suppression_key IS NULL AND sealed_user_id IS NULL AND dedupe_key IS NULL)",
            name="ended_means_forgotten",
        ),
        Index(
            "ix_erasure_requests_dedupe_key", "dedupe_key", unique=True, postgresql_where=text("dedupe_key IS NOT NULL")
        ),
        CheckConstraint(_in("identity_level", frozenset(IdentityLevel)), name="identity_level"),
        Index("ix_erasure_requests_plannable", "sequence", postgresql_where=text(_in("status", PLANNABLE))),
        Index("ix_erasure_requests_subject_key", "subject_key", postgresql_where=text("subject_key IS NOT NULL")),
        Index(  # by which those are found that one serves when it leaves; few have it, and none at intake
            "ix_erasure_requests_duplicate_of", "duplicate_of", postgresql_where=text("duplicate_of IS NOT NULL")
        ),
        Index("ix_erasure_requests_open", "received_at", postgresql_where=text("closed_at IS NULL")),
        # By these the dashboard's list is read, page by page.
        Index("ix_erasure_requests_received_at", "received_at", "sequence"),
        Index("ix_erasure_requests_status", "status", "received_at", "sequence"),
        Index("ix_erasure_requests_deadline", "deadline", "sequence"),
        Index("ix_erasure_requests_due", "deadline", "sequence", postgresql_where=text("closed_at IS NULL")),
        Index(
            "ix_erasure_requests_reference",
            "reference",
            postgresql_where=text("reference IS NOT NULL"),
            postgresql_ops={"reference": "text_pattern_ops"},  # for the beginning of one, whatever the collation
        ),
    )


class Decision(Table):
    """What a person decided about a request, on what ground, and when the data subject was told; append-only."""

    __tablename__ = "decisions"
    __table_args__ = (
        Index("ix_decisions_passed_from", "passed_from", postgresql_where=text("passed_from IS NOT NULL")),
    )
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    request_id: Mapped[UUID] = mapped_column(ForeignKey("erasure_requests.id"), index=True)
    kind: Mapped[str]
    """A :class:`app.domain.decisions.Kind`."""
    client_id: Mapped[UUID | None] = mapped_column(ForeignKey("clients.id"))
    """Who decided; none: the service itself, by policy."""
    decided_at: Mapped[datetime]
    models: Mapped[list[str] | None]
    """Which models a refusal is about; none: the whole request."""
    data_class: Mapped[str | None]
    """The controller's name for the data that stay, such as ``invoices``."""
    ground: Mapped[str | None]
    """A word: the ground of a refusal or a hold, the reason of an extension, the level of an identity."""
    explanation: Mapped[str | None]
    """In the decider's words; becomes part of the notice."""
    until: Mapped[datetime | None]
    """When a hold is looked at again, or what a deadline was moved to."""
    notified_at: Mapped[datetime | None]
    """When the data subject was told."""
    passed_from: Mapped[int | None] = mapped_column(ForeignKey("decisions.id"))
    """The hold, decided about another request for the same person, that was passed on to this one."""


class RequestKey(Table):
    """A key of one request, wrapped by a key that PostgreSQL does not have.

    In a schema of its own, without a foreign key: it is backed up apart, for days instead of years, and restored apart.
    """

    __tablename__ = "request_keys"
    request_id: Mapped[UUID] = mapped_column(primary_key=True)
    purpose: Mapped[str] = mapped_column(primary_key=True)
    """``working``: of the user id, deleted when the request ends; ``evidence``: of the records behind the log's
    commitments, deleted when their retention ends."""
    wrapped: Mapped[bytes]
    created_at: Mapped[datetime] = _now()
    __table_args__ = {"schema": "keystore"}  # noqa: RUF012 - as SQLAlchemy declares it


class Idempotency(Table):
    """Which request answered which Idempotency-Key; kept for a day."""

    __tablename__ = "idempotency_keys"
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), primary_key=True)
    key_digest: Mapped[bytes] = mapped_column(primary_key=True)
    """Keyed hash: callers put anything into such keys."""
    body_digest: Mapped[bytes]
    """HMAC of the body under our key and the caller's; kept for a day, like the row."""
    request_id: Mapped[UUID | None] = mapped_column(ForeignKey("erasure_requests.id"))
    answer: Mapped[dict[str, Any] | None]  # Any: JSON
    """What a bulk call was told, which made no request or many."""
    created_at: Mapped[datetime] = _now()


class IntakeCount(Table):
    """How many requests a client made on a day, over several rows, so that transactions don't queue for one."""

    __tablename__ = "intake_counts"
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    """Of the controller's time zone."""
    slot: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int]


class Suppression(Table):
    """People who must not come back: written before anything is destroyed, never deleted."""

    __tablename__ = "suppressions"
    suppression_key: Mapped[bytes] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    """A model's name, or ``*`` for every model there is and will be."""
    since: Mapped[datetime] = mapped_column(server_default=func.date_trunc("day", func.now()))
    """The day. A moment would say which request, event and log entry the row came with."""


class Model(Table):
    """A deployed model and which version of it is live."""

    __tablename__ = "models"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    recipe: Mapped[str]
    """For people only: workers take the code from the operator's recipe list."""
    current_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("model_versions.id", use_alter=True))
    created_at: Mapped[datetime] = _now()


class Manifest(Table):
    """Which samples a version was trained on; the users behind them are in ``postings``."""

    __tablename__ = "manifests"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"))
    digest: Mapped[str]
    samples: Mapped[int]
    """Training samples."""
    users: Mapped[int]
    """People behind the training samples."""
    created_at: Mapped[datetime] = _now()


class ManifestSamples(Table):
    """The sample ids of a manifest in runs of at most 65 536, with and without a user."""

    __tablename__ = "manifest_samples"
    manifest_id: Mapped[UUID] = mapped_column(ForeignKey("manifests.id"), primary_key=True)
    split: Mapped[str] = mapped_column(primary_key=True)
    """``train``, or ``heldout``: samples of people the model never saw."""
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    sample_ids: Mapped[list[int]]


class Posting(Table):
    """One user's samples in one manifest, under a keyed hash of the user id (19 bytes a pair, measured)."""

    __tablename__ = "postings"
    manifest_id: Mapped[UUID] = mapped_column(ForeignKey("manifests.id"), primary_key=True)
    subject_key: Mapped[UUID] = mapped_column(primary_key=True)
    split: Mapped[str] = mapped_column(primary_key=True)
    sample_ids: Mapped[list[int]]


class ModelVersion(Table):
    """Weights that were live once, where they came from and what was found about them."""

    __tablename__ = "model_versions"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    weights: Mapped[str]
    """sha256 of the safetensors file."""
    residual: Mapped[str | None]
    """sha256 of the training gradient left at the registered weights, which the engine corrects for."""
    manifest_id: Mapped[UUID] = mapped_column(ForeignKey("manifests.id"))
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("model_versions.id"))
    """The version it was computed from: deletions add up along this line."""
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", use_alter=True))
    recipe: Mapped[str]
    """The code it was registered with; other code would read its samples and weights otherwise."""
    origin: Mapped[str]
    """``registered``, ``unlearned``, ``retrained`` or ``rolled_back``."""
    report: Mapped[dict[str, Any] | None]  # Any: JSON
    calibration: Mapped[dict[str, Any] | None]  # Any: JSON
    """Digests of its references and curvature factors, and what they were fitted on; none: not calibrated."""
    published_at: Mapped[datetime] = _now()
    retired_at: Mapped[datetime | None]
    __table_args__ = (UniqueConstraint("model_id", "number"),)


class Job(Table):
    """One update of one model: held by a lease with a fencing token, coalescing many requests."""

    __tablename__ = "jobs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"))
    status: Mapped[str] = mapped_column(server_default=JobStatus.QUEUED.value)
    created_at: Mapped[datetime] = _now()
    not_before: Mapped[datetime] = _now()
    """Coalescing window, later the backoff after a failed attempt."""
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Counts claims; a write by an older holder changes nothing. 0 = requests may still join."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    """Claims since the last move."""
    lease_until: Mapped[datetime | None]
    rung_at: Mapped[datetime | None]
    rings: Mapped[int] = mapped_column(server_default="0")
    """Rings since the last claim."""
    base_version_id: Mapped[UUID | None] = mapped_column(ForeignKey("model_versions.id"))
    rung: Mapped[int] = mapped_column(server_default="0")
    """Rung of the ladder: 0 influence, 1 renewal, 2 retraining."""
    candidate: Mapped[str | None]
    """sha256 of the weights waiting to be verified or published."""
    report: Mapped[dict[str, Any] | None]  # Any: JSON
    progress: Mapped[float | None]
    """Fraction of the running step, for people who wait."""
    error: Mapped[str | None]
    closed_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint(_in("status", frozenset(JobStatus)), name="status"),
        Index("ix_jobs_open", "created_at", postgresql_where=text(_in("status", JOB_OPEN))),
        Index(
            "ix_jobs_one_collecting_per_model",
            "model_id",
            unique=True,
            postgresql_where=text("status = 'queued' AND fence = 0"),
        ),
    )


class Target(Table):
    """One request against one model: which job serves it, and how it ended there."""

    __tablename__ = "targets"
    request_id: Mapped[UUID] = mapped_column(ForeignKey("erasure_requests.id"), primary_key=True)
    model_id: Mapped[UUID] = mapped_column(ForeignKey("models.id"), primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), index=True)
    sample_ids: Mapped[list[int] | None]
    """What ``locate`` found, while the job is open."""
    result: Mapped[str | None]
    """``forgotten``, ``no_data`` or ``already_forgotten``."""


class Forgotten(Table):
    """Tombstones: one forgotten person's samples in one manifest, without the person.

    A version holds every deletion of the jobs along its line of parents. What a job took out of a manifest and a
    version of that manifest does not hold (after a rollback) is taken out again by that version's next job.
    """

    __tablename__ = "forgotten_samples"
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    manifest_id: Mapped[UUID] = mapped_column(ForeignKey("manifests.id"), primary_key=True, index=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    sample_ids: Mapped[list[int]]


class Certificate(Table):
    """The signed statement that a request ended with: what was done, how it was checked, what is not claimed."""

    __tablename__ = "certificates"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    request_id: Mapped[UUID] = mapped_column(ForeignKey("erasure_requests.id"), index=True)
    envelope: Mapped[dict[str, Any]]  # Any: JSON, a DSSE envelope
    issued_at: Mapped[datetime] = _now()


class Event(Table):
    """What happened, in order; append-only by trigger."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = _now()
    type: Mapped[str]
    request_id: Mapped[UUID | None] = mapped_column(ForeignKey("erasure_requests.id"), index=True)
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    model_id: Mapped[UUID | None] = mapped_column(ForeignKey("models.id"))
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))  # Any: JSON
    __table_args__ = (  # partial: most events are about a request alone
        Index("ix_events_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
        Index("ix_events_model_id", "model_id", postgresql_where=text("model_id IS NOT NULL")),
    )


class AuditEntry(Table):
    """Outbox of the public log: written with the change it tells of, given its bytes and its place by the sequencer.

    By trigger: an entry is never deleted, and changes once, when it gets its place.
    """

    __tablename__ = "audit_entries"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    type: Mapped[str]
    """A type of leaf; the verifier's schema says which fields it has."""
    at: Mapped[datetime]
    request_id: Mapped[UUID | None] = mapped_column(ForeignKey("erasure_requests.id"), index=True)
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id"))
    fields: Mapped[dict[str, Any]]  # Any: JSON, what the leaf says beyond what all leaves say
    entry: Mapped[bytes | None]
    """The leaf's bytes."""
    leaf_index: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    """Its place in the log; none: not sequenced yet."""
    __table_args__ = (
        Index("ix_audit_entries_pending", "id", postgresql_where=text("leaf_index IS NULL")),
        # Only of entries that have their place: whoever takes a request in does not pay for it.
        Index("ix_audit_entries_type", "type", "leaf_index", postgresql_where=text("leaf_index IS NOT NULL")),
        Index("ix_audit_entries_job_id", "job_id", postgresql_where=text("job_id IS NOT NULL")),
    )


class Evidence(Table):
    """The record and the salt that open one leaf's commitment, sealed by the request's evidence key.

    About a model it is sealed by the wrapping key. No foreign key: the sequencer writes both rows, thousands at a time.
    """

    __tablename__ = "audit_evidence"
    entry_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sealed: Mapped[bytes]


class LogTile(Table):
    """Hashes of the log's tree in tiles of 256 (C2SP tlog-tiles); a tile that is not full grows. By trigger."""

    __tablename__ = "log_tiles"
    level: Mapped[int] = mapped_column(primary_key=True)
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    hashes: Mapped[bytes]


class LogCheckpoint(Table):
    """Every checkpoint that was signed; only published ones are shown to anybody."""

    __tablename__ = "log_checkpoints"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    root: Mapped[bytes]
    note: Mapped[bytes]
    """Signed by the log's keys; cosignatures come with the publication."""
    signed_at: Mapped[datetime]
    published: Mapped[bytes | None]
    """The note with its cosignatures, as it is served."""
    published_at: Mapped[datetime | None]
    __table_args__ = (Index("ix_log_checkpoints_digest", text("sha256(published)")),)


class LogKey(Table):
    """Every key that has signed the log, so that old checkpoints can be checked after a rotation."""

    __tablename__ = "log_keys"
    vkey: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]
    since_size: Mapped[int] = mapped_column(BigInteger)


class Timestamp(Table):
    """An RFC 3161 token: somebody else's word that these bytes existed at a time."""

    __tablename__ = "timestamps"
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    """SHA-256 of a published checkpoint or of a certificate's payload."""
    token: Mapped[bytes]
    stamped_at: Mapped[datetime]


class Answering:
    """How a receiver has been answering."""

    failures: Mapped[int] = mapped_column(server_default="0")
    """Failures since the last success, as :mod:`app.domain.receiver` counts them."""
    failing_since: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    """The last failure of the series."""
    throttled_until: Mapped[datetime | None]
    """It asked for less, or hung: until then nothing is sent."""


class WebhookEndpoint(Answering, Table):
    """Where a portal wants to be told, of what, and how it has been answering."""

    __tablename__ = "webhook_endpoints"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"))
    """It hears of this client's requests only."""
    every_client: Mapped[bool] = mapped_column(server_default=text("false"))
    """Unless it is an office's, which hears of all."""
    url: Mapped[str]
    description: Mapped[str | None]
    events: Mapped[list[str] | None]
    """What it hears of; none: :data:`app.domain.webhook.OUTCOMES`."""
    created_at: Mapped[datetime] = _now()
    ended_at: Mapped[datetime | None]
    """When its owner deleted it; the log of its deliveries stays."""
    disabled_at: Mapped[datetime | None]
    disabled_because: Mapped[str | None]


class WebhookSecret(Table):
    """What signs for an endpoint: a shared secret or a private key, sealed; while it is rotated, the old one, too."""

    __tablename__ = "webhook_secrets"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    endpoint_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_endpoints.id"), index=True)
    scheme: Mapped[str]
    sealed: Mapped[bytes]
    """Under the wrapping key, bound to the endpoint."""
    public: Mapped[str | None]
    """The public half, which receivers hold; none where both sides share one secret."""
    created_at: Mapped[datetime] = _now()
    expires_at: Mapped[datetime | None]
    __table_args__ = (CheckConstraint(_in("scheme", frozenset(Scheme)), name="scheme"),)


class WebhookDelivery(Table):
    """A promised message, written with the fact it tells of, and where it stands."""

    __tablename__ = "webhook_deliveries"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    """Order of promise; the cursor of the log."""
    endpoint_id: Mapped[UUID | None] = mapped_column(ForeignKey("webhook_endpoints.id"))
    callback_id: Mapped[UUID | None] = mapped_column(ForeignKey("portal_callbacks.id"), index=True)
    """Instead of an endpoint: what came with a demand in another portal's dialect."""
    receiver: Mapped[UUID]
    """Who takes turns with others: the endpoint, or where a client's callbacks lead; a client, for old ones."""
    request_id: Mapped[UUID | None] = mapped_column(ForeignKey("erasure_requests.id"), index=True)
    """None for a ping."""
    event: Mapped[str] = mapped_column(server_default="portal_callback")
    body: Mapped[bytes]
    created_at: Mapped[datetime] = _now()
    attempts: Mapped[int] = mapped_column(server_default="0")
    """Since it was promised, or asked for again."""
    next_attempt_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    """When to try (again); none: delivered or given up."""
    rung_at: Mapped[datetime | None]
    """When a worker was last called for it; none: nobody is on the way."""
    lease_until: Mapped[datetime | None]
    """While an attempt is under way: when its worker counts as dead."""
    fence: Mapped[int] = mapped_column(server_default="0")
    """Counts claims; what an older holder writes changes nothing."""
    delivered_at: Mapped[datetime | None]
    last_outcome: Mapped[str | None]
    __table_args__ = (
        CheckConstraint("num_nonnulls(endpoint_id, callback_id) = 1", name="one_receiver"),
        Index(
            "ix_webhook_deliveries_waiting",
            "receiver",
            "next_attempt_at",
            "number",
            postgresql_where=text("next_attempt_at IS NOT NULL"),
        ),
        Index(
            "ix_webhook_deliveries_under_way",
            "receiver",
            postgresql_where=text("rung_at IS NOT NULL OR lease_until IS NOT NULL"),
        ),
        Index("ix_webhook_deliveries_log", "receiver", "number"),
        Index(
            "ix_webhook_deliveries_failed",
            "receiver",
            "number",
            postgresql_where=text("next_attempt_at IS NULL AND delivered_at IS NULL"),
        ),
        Index("ix_webhook_deliveries_settled", "created_at", postgresql_where=text("next_attempt_at IS NULL")),
    )


class WebhookAttempt(Table):
    """One attempt at a delivery; of the answer only its status."""

    __tablename__ = "webhook_attempts"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), index=True)
    at: Mapped[datetime]
    outcome: Mapped[str]
    """An :class:`app.domain.webhook.Outcome`."""
    status_code: Mapped[int | None]
    """None: no answer came."""
    error: Mapped[str | None]
    """Why not; the class of an error or a rule, never an address."""
    duration_ms: Mapped[int]


class PortalRequest(Table):
    """A request that came in another portal's dialect, under the portal's own number."""

    __tablename__ = "portal_requests"
    request_id: Mapped[UUID] = mapped_column(ForeignKey("erasure_requests.id"), primary_key=True)
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"))
    portal: Mapped[str]
    version: Mapped[str]
    """Of the dialect; with the portal's name it is one of app.domain.portals.PORTALS."""
    external_id: Mapped[str]
    group_id: Mapped[str | None]
    body_digest: Mapped[bytes | None]
    """Keyed hash of the demand, to tell a repeat from another one; gone a day after the end."""
    told: Mapped[int] = mapped_column(server_default="0")
    """Changes so far, of which callbacks were promised word."""
    __table_args__ = (
        UniqueConstraint("client_id", "portal", "external_id"),
        Index("ix_portal_requests_group_id", "client_id", "group_id", postgresql_where=text("group_id IS NOT NULL")),
        Index("ix_portal_requests_body_digest", "request_id", postgresql_where=text("body_digest IS NOT NULL")),
    )


class CallbackReceiver(Answering, Table):
    """A host and port to which callbacks of one client lead, and how it has been answering."""

    __tablename__ = "callback_receivers"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    """A keyed hash of client, host and port; the client's own id where it named too many."""
    client_id: Mapped[UUID] = mapped_column(ForeignKey("clients.id"), index=True)
    created_at: Mapped[datetime] = _now()


class PortalCallback(Table):
    """Where a portal wants to hear of one request."""

    __tablename__ = "portal_callbacks"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    request_id: Mapped[UUID] = mapped_column(ForeignKey("erasure_requests.id"), index=True)
    receiver_id: Mapped[UUID | None]
    """Whose turn its messages wait for, a :class:`CallbackReceiver`; none: it is older than these."""
    hears: Mapped[str]
    """A :class:`app.domain.portals.base.Hears`."""
    sealed: Mapped[bytes | None]
    """URL and headers under the wrapping key: both may be the portal's secrets; gone when the end was told."""
    done_at: Mapped[datetime | None]
    """When its last message was promised."""
    __table_args__ = (Index("ix_portal_callbacks_sealed", "request_id", postgresql_where=text("sealed IS NOT NULL")),)


class Pulse(Table):
    """When a consumer of a queue last heard us through the broker."""

    __tablename__ = "pulses"
    queue: Mapped[str] = mapped_column(primary_key=True)
    heard_at: Mapped[datetime]


class Measurement(Table):
    """One thing that happened and how much of it, written with its fact; dispatch adds it to ``totals`` in seconds.

    Only ever inserted: a counter that transactions update would make them wait for each other.
    """

    __tablename__ = "measurements"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    name: Mapped[str]
    label: Mapped[str] = mapped_column(server_default="")
    value: Mapped[float] = mapped_column(server_default="1")


class Total(Table):
    """What metrics count beyond the life of a process and of the rows they are about."""

    __tablename__ = "totals"
    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    bucket: Mapped[int] = mapped_column(primary_key=True)
    """Which of the measure's bounds the values were under, counted from 0."""
    times: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float]
    """The sum of the values."""
