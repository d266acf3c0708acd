"""The public log's shapes on the wire."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field


class LogKeyOut(BaseModel):
    """A key that signs the log, or did."""

    vkey: str = Field(description="C2SP signed-note verifier key")
    since: datetime
    since_size: int


class LogOut(BaseModel):
    """The public log's name, keys, witnesses and retention."""

    origin: str
    keys: list[LogKeyOut]
    policy: str | None = Field(description="C2SP tlog-policy that checkpoints are published under")
    evidence_days: int = Field(description="how long the records behind commitments can be opened after the end")


class ProofOut(BaseModel):
    """A Merkle proof (RFC 6962)."""

    hashes: list[str] = Field(description="base64, in the order of the RFC")
