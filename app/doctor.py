"""What is wrong with this installation, and what to do about it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from alembic.util.exc import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from app import opendsr, queue, transcend_token
from app.audit.sequencer import Sequencer, as_signed
from app.errors import ExpungeError
from app.settings import Settings
from app.storage import audit, jobs, migrate, versions
from app.storage.sessions import connect, transaction

_LOG_WAITS = timedelta(seconds=30)
_MENDED = "`expunge dispatch` writes it again when it starts, from PostgreSQL: start it before anything is restored"


@dataclass(frozen=True)
class Finding:
    """One part of the installation, whether it is fine, and a sentence for people."""

    part: str
    fine: bool
    sentence: str


def examine(settings: Settings) -> list[Finding]:
    """Look at keys, database, schema, broker, workers and model store, in the order in which they depend."""
    outside = [_opendsr(settings), _transcend(settings), _tokens(settings)]
    return [*_keys(settings), *_database(settings), _broker(settings), _store(settings), *outside]


def _keys(settings: Settings) -> list[Finding]:
    findings = []
    for name in ("index_key", "wrapping_key", "signing_key"):
        try:
            settings.key(name)
            findings.append(Finding(name, True, "set"))
        except ExpungeError as error:
            findings.append(Finding(name, False, str(error)))
    return findings


def _database(settings: Settings) -> list[Finding]:
    try:
        url = settings.sqlalchemy_url()
        engine = connect(url, pool_size=1)
        with transaction(engine) as tx:
            number = int(tx.connection().exec_driver_sql("SHOW server_version_num").scalar_one())
    except (ExpungeError, SQLAlchemyError) as error:
        hint = str(error) if isinstance(error, ExpungeError) else type(error).__name__
        return [Finding("database", False, f"{hint}; check DATABASE_URL, or run `expunge up`")]
    findings = [
        Finding(
            "database",
            number >= 150000,
            f"PostgreSQL {number // 10000}{'' if number >= 150000 else '; 15 or newer is needed'}",
        )
    ]
    try:
        migrate.compare(url)
    except CommandError:
        return [*findings, Finding("schema", False, "out of date; run `expunge migrate`")]
    findings.append(Finding("schema", True, "up to date"))
    findings.append(_log(settings, engine))
    with transaction(engine) as tx:
        heard = jobs.listening(tx, within=timedelta(seconds=4 * settings.pulse_seconds))
        live = len(versions.live(tx, None))
        undone = [model.name for model in versions.live(tx, None) if versions.undone(tx, model)]
    for name in queue.QUEUES:
        listens = heard.get(name, False)
        advice = (
            "a worker listens"
            if listens
            else f"nobody listens; run `expunge worker --queues {name}` and `expunge dispatch`"
        )
        findings.append(Finding(f"queue {name}", listens, advice))
    advice = (
        f"{live} registered" if live else "none registered: requests will need attention; `expunge models register`"
    )
    findings.append(Finding("models", live > 0, advice))
    advice = f"undone by a rollback and not yet made again in: {', '.join(undone)}" if undone else "all hold"
    return [*findings, Finding("deletions", not undone, advice)]


def _log(settings: Settings, engine: Engine) -> Finding:
    """Whether the public log moves; its directory is looked at where that and dispatch's key are at hand."""
    with transaction(engine) as tx:
        waits, shown = audit.waiting_since(tx), audit.published(tx)
    try:
        if settings.log_key.get_secret_value() and settings.log_path.exists():
            sequencer = Sequencer.of(settings, as_signed)
            sequencer.check(engine)
            if wrong := sequencer.complaints(engine):
                return Finding("public log", False, f"{'; '.join(wrong)}; {_MENDED}")
    except ExpungeError as error:
        return Finding("public log", False, str(error))
    if waits and datetime.now(UTC) - waits > _LOG_WAITS:
        return Finding("public log", False, f"an entry has waited since {waits:%F %T} UTC; run `expunge dispatch`")
    return Finding("public log", True, f"{shown.size if shown else 0} entries published")


def _broker(settings: Settings) -> Finding:
    """A bare PING over a socket: this process has no Redis client."""
    url = urlsplit(settings.redis_url.get_secret_value())
    if url.scheme not in {"redis", "rediss"} or not url.hostname:
        return Finding("broker", False, "set REDIS_URL to redis://…, or run `expunge up`")
    if url.scheme == "rediss":
        return Finding("broker", True, "uses TLS, which is not tried from here; the queues above tell whether it works")
    login = f"AUTH {unquote(url.password)}\r\n" if url.password else ""
    try:
        with socket.create_connection((url.hostname, url.port or 6379), timeout=2) as connection:
            connection.sendall(f"{login}PING\r\n".encode())
            answer = connection.recv(256)
            answer += connection.recv(256) if login and answer.count(b"\r\n") < 2 else b""
    except OSError as error:
        return Finding("broker", False, f"{type(error).__name__}; check REDIS_URL. Requests are accepted meanwhile")
    return Finding("broker", b"PONG" in answer, "answers" if b"PONG" in answer else "refuses the password in REDIS_URL")


def _opendsr(settings: Settings) -> Finding:
    complaint = opendsr.complaint(settings, now=datetime.now(UTC))
    fine = "clients can check what we sign" if settings.opendsr_domain else "not used"
    return Finding("OpenDSR", complaint is None, complaint or fine)


def _transcend(settings: Settings) -> Finding:
    complaint = transcend_token.complaint(settings)
    fine = "its calls can be checked" if settings.transcend_client else "not used"
    return Finding("Transcend", complaint is None, complaint or fine)


def _tokens(settings: Settings) -> Finding:
    """Whether tokens of the identity provider can be read; it is not asked from here."""
    if not (settings.oidc_issuer or settings.oidc_audience or settings.oidc_jwks):
        return Finding("tokens", True, "not used: only API keys are accepted")
    if settings.oidc_sign_in_client and settings.oidc_issuer and not settings.oidc_audience:
        return Finding(
            "tokens", True, "not accepted: without EXPUNGE_OIDC_AUDIENCE people sign in, programs use API keys"
        )
    if not (settings.oidc_issuer and settings.oidc_audience):
        return Finding("tokens", False, "set both EXPUNGE_OIDC_ISSUER and EXPUNGE_OIDC_AUDIENCE, or neither")
    try:
        if settings.oidc_jwks:
            settings.oidc_jwks.read_bytes()
    except OSError as error:
        return Finding("tokens", False, f"{type(error).__name__} at EXPUNGE_OIDC_JWKS; the API does not start so")
    return Finding("tokens", True, f"those of {settings.oidc_issuer} are accepted")


def _store(settings: Settings) -> Finding:
    url = settings.store_url
    if not url.startswith("file://"):
        return Finding("model store", True, f"{urlsplit(url).scheme}:// is not tried from here")
    path = Path(unquote(urlsplit(url).path))
    parent = next(p for p in (path, *path.parents) if p.exists())
    try:
        probe = parent / ".expunge-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding("model store", False, f"{type(error).__name__} at the store; make it writable for the workers")
    return Finding("model store", True, "writable")
