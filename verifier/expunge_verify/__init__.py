"""Checks an erasure log and what it proves, offline, with nothing of the service that wrote it."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
