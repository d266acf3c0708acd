"""OpenDSR's shapes on the wire, for the OpenAPI document: what is read forgivingly is described strictly."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

StatusWord = Literal["pending", "in_progress", "completed", "cancelled"]


class IdentityIn(BaseModel):
    """How the controller knows the person."""

    identity_type: Literal["controller_customer_id"]
    identity_value: str = Field(min_length=1, max_length=256, description="The user id in the training manifests")
    identity_format: Literal["raw"] = "raw"


class EncodedIn(BaseModel):
    """The same in mParticle's dialect."""

    value: str = Field(min_length=1, max_length=256)
    encoding: Literal["raw"] = "raw"


class RequestIn(BaseModel):
    """A data subject request."""

    subject_request_id: UUID
    subject_request_type: Literal["erasure"]
    submitted_time: datetime
    subject_identities: list[IdentityIn] | dict[Literal["controller_customer_id"], EncodedIn]
    regulation: Literal["gdpr", "ccpa"] | None = None
    api_version: str | None = None
    group_id: str | None = Field(default=None, max_length=200)
    status_callback_urls: list[str] | None = Field(default=None, max_length=10)
    extensions: dict[str, Any] | None = Field(  # Any: JSON
        default=None, description='`{"<our domain>": {"models": ["ranker-prod"]}}` restricts the request to models'
    )


class ReceiptOut(BaseModel):
    """A demand was accepted. Don't log or store ``encoded_request``: it repeats the demand."""

    controller_id: str
    subject_request_id: UUID
    received_time: datetime
    expected_completion_time: datetime
    encoded_request: str


class StatusOut(BaseModel):
    """Where a request stands."""

    controller_id: str
    expected_completion_time: datetime
    subject_request_id: UUID
    request_status: StatusWord
    api_version: str
    results_url: None
    results_count: int | None = None
    group_id: str | None = None
    extensions: dict[str, Any]  # Any: JSON


class CancellationOut(BaseModel):
    """A request was taken back."""

    controller_id: str
    subject_request_id: UUID
    received_time: datetime
    api_version: str
    expected_completion_time: None = None


class SupportedIdentity(BaseModel):
    """An identity that we can act on."""

    identity_type: str
    identity_format: str


class DiscoveryOut(BaseModel):
    """What this processor can do, and where its certificate is."""

    api_version: str
    supported_identities: list[SupportedIdentity]
    supported_subject_request_types: list[str]
    processor_certificate: str


class ErrorDetail(BaseModel):
    """One thing that is wrong."""

    domain: str
    reason: str
    message: str


class ErrorBody(BaseModel):
    """An error in OpenDSR's shape."""

    code: int
    message: str
    errors: list[ErrorDetail] | None = None


class ErrorOut(BaseModel):
    """An error as versions 1.0 and 2.0 wrap it."""

    error: ErrorBody
