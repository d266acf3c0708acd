"""The portals whose dialects we speak: one file each, and one line below."""

from __future__ import annotations

from typing import Final

from app.domain.portals import fides, ketch, opendsr, transcend
from app.domain.portals.base import Portal

PORTALS: Final[tuple[Portal, ...]] = (*opendsr.PORTALS, *ketch.PORTALS, *transcend.PORTALS, *fides.PORTALS)


def known(name: str, version: str) -> Portal:
    """The dialect with this name and version."""
    [found] = [portal for portal in PORTALS if (portal.name, portal.version) == (name, version)]
    return found
