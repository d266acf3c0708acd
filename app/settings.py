"""The environment, read once into one frozen object; nobody else looks at ``os.environ``."""

from __future__ import annotations

import base64
import binascii
from datetime import timedelta
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from expunge_verify.leaf import is_origin
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain.decisions import IdentityLevel
from app.errors import Misconfigured

Algorithm = Literal["RS256", "PS256", "ES256", "EdDSA", "Ed25519"]
"""Public keys only: with HS256 whoever can check a token could write one."""
Limit = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}/(second|minute|hour|day)$")]


class Settings(BaseSettings):
    """All knobs. Variables are named ``EXPUNGE_<FIELD>``, but for the four with an alias; empty is unset."""

    model_config = SettingsConfigDict(
        env_prefix="EXPUNGE_", env_ignore_empty=True, frozen=True, extra="ignore", populate_by_name=True
    )

    # Where things are
    database_url: str = Field(default="", validation_alias="DATABASE_URL")
    """PostgreSQL >= 15, as ``postgresql://…``."""
    redis_url: SecretStr = Field(default=SecretStr(""), validation_alias="REDIS_URL")
    """The doorbell; losing all of it loses nothing."""
    home: Path = Path(".expunge")
    """Local state: embedded services, generated secrets, the default model store."""
    store: str = ""
    """Model store as an fsspec URL; empty means ``<home>/store``."""
    recipes: Path | None = None
    """TOML file: model name -> ``package.module:recipe``. Code is named here by an operator, never by the database."""

    # Secrets
    index_key: SecretStr = SecretStr("")
    """Keys the hashes by which users are looked up; 32 bytes, base64. Losing it loses every mapping."""
    wrapping_key: SecretStr = SecretStr("")
    """Wraps the per-request keys; 32 bytes, base64, kept outside PostgreSQL."""
    signing_key: SecretStr = SecretStr("")
    """Ed25519 seed that signs certificates; 32 bytes, base64."""

    # The public log
    log_key: SecretStr = SecretStr("")
    """Ed25519 seeds that sign the public log, comma-separated; the first is the current one, others sign too while a
    rotation lasts. Only dispatch needs it."""
    log_origin: str = "expunge.localhost/log"
    """The public log's name for ever, normally where it is served: a host and a path, no scheme."""
    log_directory: Path | None = None
    """Where dispatch keeps the log as files and the last checkpoint it signed; outside PostgreSQL and never restored
    from a backup with it. Empty means ``<home>/log``."""
    log_policy: Path | None = None
    """A C2SP tlog-policy file: witnesses to ask, and the quorum without which no checkpoint is published."""
    timestamp_url: str = ""
    """An RFC 3161 time stamp authority; checkpoints (daily) and certificates are stamped."""
    timestamp_roots: Path | None = None
    """PEM file of the root certificates that the authority's tokens are checked against."""
    key_backup_days: int = Field(default=7, ge=0)
    """How long backups of the key store are kept; certificates name the day after which a deleted key is gone."""
    evidence_days: int = Field(default=1095, ge=1)
    """How long the records behind the log's commitments can be opened after a request ended."""

    # What certificates and notices say
    controller: str = "unnamed controller"
    """Legal entity that answers for the data; printed on certificates."""
    processor: str = ""
    """Legal entity that runs this installation, if it is another; printed on certificates."""
    contact: str = ""
    """How to reach the data protection officer; printed on certificates."""
    time_zone: str = "UTC"
    """Time zone in which the controller's Art. 12(3) months are counted."""

    # Decisions about requests
    identity_needed: IdentityLevel = IdentityLevel.LOW
    """How sure the portal must be who the person is; a request below it awaits confirmation."""
    identity_assumed: IdentityLevel = IdentityLevel.LOW
    """What a request is taken for that says nothing of how sure the portal is."""
    suspend_while_awaiting_identity: bool = False
    """Whether the month begins with the confirmation instead of receipt; authorities differ (docs/decisions.md)."""
    approval_policy: Literal["none", "all"] = "none"
    """Whether people must agree to every request, or only where the request or a burst asks for it."""
    approvals_asked: int = Field(default=1, ge=1)
    """How many people must agree where people must; 2 is four eyes."""
    four_eyes_above: int = Field(default=1000, ge=0)
    """A bulk call that, with its client's others of the last 24 hours, has more requests waits for two people."""
    daily_erasures: int = Field(default=10_000, ge=1)
    """How many requests a client may make in a day, unless it has a number of its own (`expunge keys client`)."""
    hold_share: float = Field(default=0.1, gt=0, le=1)
    """Requests that would take more than this share of a model's people out of it within a day wait for approval."""
    hold_least: int = Field(default=50, ge=0)
    """Up to this many people a day are never held, whatever the share."""
    cooling_off_hours: float = Field(default=0.0, ge=0)
    """How long a request waits before work begins, so that it can be taken back."""
    authority: str = ""
    """The supervisory authority to which people can complain; printed on notices."""
    notices: Path | None = None
    """Directory whose templates take the place of ours: ``en/refusal.txt`` and so on."""
    language: Literal["en", "de"] = "en"
    """Language of notices, where none is asked for."""

    # Jobs
    coalesce_seconds: float = Field(default=5.0, ge=0)
    """How long a job waits for more requests to the same model."""
    batch_requests: int = Field(default=256, ge=1)
    """Requests that one job takes at most."""
    lease_seconds: float = Field(default=15.0, gt=0)
    """A job whose worker is silent for this long is given to another."""
    step_seconds: float = Field(default=6 * 3600.0, gt=0)
    """A torch step that runs longer is killed."""
    max_attempts: int = Field(default=5, ge=1)
    """Attempts at one step before a person has to look."""
    pulse_seconds: float = Field(default=5.0, gt=0)
    """How often a sign of life is asked of each queue."""

    # Webhooks
    webhook_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks that webhooks may reach although they are not public, comma-separated CIDRs."""
    webhook_seconds: float = Field(default=15.0, gt=0, le=30)
    """How long one attempt may take, from the look-up of the name to the end of the answer."""
    webhook_days: int = Field(default=90, ge=7)
    """How long the log of deliveries is kept; what has been delivered or given up can be sent again as long."""

    # Tokens of the operator's identity provider
    oidc_issuer: str = ""
    """The operator's identity provider, as its tokens name it (``iss``); empty: only API keys are accepted."""
    oidc_audience: str = ""
    """What tokens for us name as their audience (``aud``)."""
    oidc_jwks_url: str = ""
    """Where the provider's keys are; empty: where its discovery document says."""
    oidc_jwks: Path | None = None
    """A file with the provider's keys, instead of asking for them."""
    oidc_algorithms: Annotated[tuple[Algorithm, ...], NoDecode] = ("RS256", "ES256", "EdDSA")
    """Signatures that are accepted, comma-separated."""
    oidc_client_claim: Literal["sub", "azp", "client_id", "appid"] = "sub"
    """Which claim names the client, as registered by `expunge keys client --oidc-subject`."""
    oidc_leeway_seconds: int = Field(default=30, ge=0, le=300)
    """How far the provider's clock may be from ours."""
    oidc_refetch_seconds: float = Field(default=60.0, gt=0)
    """A token signed with a key that we don't know makes us ask for the keys anew, but no more often than this."""
    oidc_keys_hours: float = Field(default=24.0, gt=0)
    """How long the provider's keys are trusted while it can't be reached."""

    # The dashboard
    second_factor: Literal["required", "optional"] = "required"
    """Whether people with a password must set up a second factor (TOTP) before they see anything."""
    session_idle_minutes: float = Field(default=60.0, gt=0)
    """How long a browser may be left alone before its person has to sign in again."""
    session_hours: float = Field(default=12.0, gt=0)
    """How long a sign-in lasts at most."""
    dashboard_url: str = ""
    """Where people reach the dashboard, such as ``https://erasure.example``; the identity provider sends them there."""
    oidc_sign_in_client: str = ""
    """Our client id at the identity provider (``oidc_issuer``), by which people sign in; empty: by password only."""
    oidc_sign_in_secret: SecretStr = SecretStr("")
    """The secret that belongs to it."""

    # How often who may call, and from where
    limit_per_caller: Limit = "60000/minute"
    """Calls that one API key, or one subject of tokens, may make."""
    limit_per_address: Limit = "120000/minute"
    """Calls from one address (IPv6: one /64)."""
    limit_public: Limit = "60000/minute"
    """Reads of the public log and of health from one address; /livez and /health/live have no limit."""
    limit_failures: Limit = "120/minute"
    """Calls from one address with a key or token that is not accepted; after them only callers who have shown a good
    one are heard."""
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks whose word on a caller's address is taken, comma-separated CIDRs."""
    proxy_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    """The header in which they say it; the other one is never read."""

    # Watching
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR: what is below it is not written; the lines of HTTP calls always are."""
    otlp_endpoint: str = Field(default="", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    """Where traces are collected (OTLP over HTTP); empty: nothing is traced. OTEL_EXPORTER_OTLP_* and OTEL_BSP_* count,
    too; others don't."""
    prometheus_multiproc_dir: Path | None = Field(default=None, validation_alias="PROMETHEUS_MULTIPROC_DIR")
    """Where several API processes count what they serve; `expunge api --workers` makes one."""

    # Portals, as docs/portals.md explains them
    opendsr_domain: str = ""
    """The domain under which OpenDSR clients know us; the common name of the certificate, letter by letter."""
    opendsr_key: Path | None = None
    """PEM file of the RSA key that signs OpenDSR answers and callbacks; API and io workers need it."""
    opendsr_certificate: Path | None = None
    """PEM file of that key's certificate by a public authority, with those between it and the root."""
    ketch_identity: str = "account_id"
    """The identity space in which Ketch knows people by our user ids."""
    transcend_key: Path | None = None
    """PEM file of Sombra's public key (``/public-keys/sombra-general-signing-key``)."""
    transcend_audience: str = ""
    """The organisation's URI at Transcend, which its tokens are made out to."""
    transcend_client: str = ""
    """Name of the client whose requests Transcend's are."""
    transcend_url: str = "https://multi-tenant.sombra.transcend.io"
    """Where Sombra is told that a job is done."""
    transcend_api_key: SecretStr = SecretStr("")
    """Transcend's API key, for telling so."""
    transcend_sombra_key: SecretStr = SecretStr("")
    """Sombra's internal key, where it is self-hosted."""
    transcend_identity: Literal["coreIdentifier", "profile"] = "coreIdentifier"
    """Which identifier is our user id; Transcend's token vouches for the core identifier alone."""
    fides_url: str = ""
    """Where Fides is resumed, such as ``https://fides.example/api/v1``; no token of its goes anywhere else."""
    fides_identity: str = "external_id"
    """The identity by which Fides knows people under our user ids."""

    @field_validator("oidc_algorithms", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("webhook_allow", "trusted_proxies", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return (
            tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        ZoneInfo(value)
        return value

    @field_validator("log_origin")
    @classmethod
    def _names_a_log(cls, value: str) -> str:
        if not is_origin(value):
            raise ValueError("a host and a path, such as erasure.example/log")
        return value

    @property
    def zone(self) -> ZoneInfo:
        """The controller's time zone."""
        return ZoneInfo(self.time_zone)

    @property
    def key_backups(self) -> timedelta:
        """How long a backup of the key store lives."""
        return timedelta(days=self.key_backup_days)

    @property
    def approvals_of_all(self) -> int:
        """How many people must agree to every request."""
        return self.approvals_asked if self.approval_policy == "all" else 0

    @property
    def cooling_off(self) -> timedelta:
        """How long a request waits before work begins."""
        return timedelta(hours=self.cooling_off_hours)

    @property
    def session_idle(self) -> timedelta:
        """How long a browser may be left alone."""
        return timedelta(minutes=self.session_idle_minutes)

    @property
    def session_life(self) -> timedelta:
        """How long a sign-in lasts at most."""
        return timedelta(hours=self.session_hours)

    @property
    def lease(self) -> timedelta:
        """How long a claim lasts without a heartbeat."""
        return timedelta(seconds=self.lease_seconds)

    @property
    def store_url(self) -> str:
        """Where weights live."""
        return self.store or (self.home.absolute() / "store").as_uri()

    @property
    def log_path(self) -> Path:
        """Where dispatch keeps the public log as files."""
        return self.log_directory or self.home.absolute() / "log"

    @property
    def recipes_path(self) -> Path:
        """The operator's list of recipes."""
        return self.recipes or self.home / "recipes.toml"

    def sqlalchemy_url(self) -> str:
        """``database_url`` with the driver we use.

        Raises:
            Misconfigured: ``DATABASE_URL`` is missing or names another database.
        """
        scheme, separator, rest = self.database_url.partition("://")
        if not separator or scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
            raise Misconfigured("DATABASE_URL must be set to postgresql://…; `expunge up` starts a database by itself")
        return f"postgresql+psycopg://{rest}"

    def key(self, name: str) -> bytes:
        """The 32 bytes of ``index_key``, ``wrapping_key`` or ``signing_key``.

        Raises:
            Misconfigured: The key is missing, not base64 or not 32 bytes.
        """
        return self._decoded(name, getattr(self, name).get_secret_value())

    def log_keys(self) -> list[bytes]:
        """The seeds that sign the public log, the current one first.

        Raises:
            Misconfigured: One is missing, not base64 or not 32 bytes.
        """
        return [self._decoded("log_key", part.strip()) for part in self.log_key.get_secret_value().split(",")]

    def _decoded(self, name: str, text: str) -> bytes:
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error:
            raw = b""
        if len(raw) != 32 or len(set(raw)) < 8:  # 32 equal bytes are somebody's placeholder
            raise Misconfigured(f"EXPUNGE_{name.upper()} must be 32 random bytes in base64: openssl rand -base64 32")
        return raw


@cache
def load() -> Settings:
    """The settings of this process.

    Raises:
        Misconfigured: A variable can't be read; named, but its value is not shown.
    """
    try:
        return Settings()
    except ValidationError as error:
        names = sorted({str(e["loc"][0]) for e in error.errors()})
        raise Misconfigured(f"these settings can't be read: {', '.join(names)}") from None
