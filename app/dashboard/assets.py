"""Style sheet, script and icon, as they lie in the package; nothing is loaded from elsewhere, nothing is built.

htmx 2.0.11 is as published (0BSD, static/htmx.LICENSE); tests compare its digest.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.api.auth import PAGES as BASE
from app.errors import NotFound
from app.logs import log

router = APIRouter(prefix=BASE)
_TYPES: Final = {
    "style.css": "text/css; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@router.get("/static/{name}")
def asset(name: str, request: Request) -> Response:
    """One file; browsers ask each time whether it is still the same, and nearly always need not load it."""
    if name not in _TYPES:
        raise NotFound("there is no such file")
    content, tag = _read(name)
    headers = {"ETag": tag, "Cache-Control": "public, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_TYPES[name], headers=headers)


@cache
def _read(name: str) -> tuple[bytes, str]:
    content = (files("app.dashboard") / "static" / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


@router.post("/csp-reports", status_code=204)
async def report(request: Request) -> Response:
    """A browser kept something from running: that is written down, and nothing of what the report quotes."""
    await request.body()
    log.error("content security policy violated")
    return Response(status_code=204)
