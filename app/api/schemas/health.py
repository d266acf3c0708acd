"""What health answers."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Ready(BaseModel):
    """Whether requests are accepted, and whether somebody works on them."""

    accepting: bool
    working: bool = Field(description="a consumer listens on every queue, and the public log takes entries")
    queues: dict[str, bool]
    oldest_open_seconds: float | None
    log_waits_seconds: float | None = Field(description="how long the oldest entry waits for the public log")


class Live(BaseModel):
    """The process answers."""

    live: bool = True
