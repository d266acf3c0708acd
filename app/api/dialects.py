"""What portals do differently at the door: how they show their key, and in which shape they want errors.

They can't be told to send a bearer token: mParticle's clients send the key as the password of HTTP Basic, Ketch sends
one header of the operator's choice. On portals' routes both are read as what we ask of everybody else, before anybody
looks. Problem documents leave in the portal's own shape.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.portals import PORTALS
from app.domain.portals.base import Portal, Refusal

_PREFIXES = tuple(portal.prefix for portal in PORTALS)
_AUTHORIZATION, _API_KEY = b"authorization", b"x-api-key"
Headers = Iterable[tuple[bytes, bytes]]


class Dialects:
    """ASGI middleware around everything that can refuse."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry: only portals' routes are touched."""
        portal = _portal(scope.get("path", "")) if scope["type"] == "http" else None
        if portal is None:
            await self.app(scope, receive, send)
            return
        translated = _Translated(portal, scope, receive, send)
        scope["headers"] = _as_bearer(scope["headers"])
        await self.app(scope, receive, translated.send)


def _portal(path: str) -> Portal | None:
    if not path.startswith(_PREFIXES):
        return None
    return next((portal for portal in PORTALS if f"{path}/".startswith(f"{portal.prefix}/")), None)


def _as_bearer(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers with the key where we look for it; what is no key stays as it is and is refused there."""
    found = dict(headers)
    shown = found.get(_AUTHORIZATION)
    key = _password(shown) if shown is not None else found.get(_API_KEY)
    if key is None:
        return list(headers)
    return [*((name, value) for name, value in headers if name != _AUTHORIZATION), (_AUTHORIZATION, b"Bearer " + key)]


def _password(authorization: bytes) -> bytes | None:
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


class _Translated:
    """Holds a problem document back until it is whole, and sends it on in the portal's shape."""

    def __init__(self, portal: Portal, scope: Scope, receive: Receive, send: Send) -> None:
        self._portal, self._scope, self._receive, self._send = portal, scope, receive, send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """ASGI send."""
        if message["type"] == "http.response.start" and self._portal.refuse and _is_problem(message):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._response()(self._scope, self._receive, self._send)

    def _response(self) -> JSONResponse:
        assert self._start is not None
        assert self._portal.refuse is not None
        said = json.loads(self._body)
        fields = [(error["field"], error["problem"]) for error in said.get("errors", ())]
        status, document = self._portal.refuse(Refusal(status=said["status"], message=said["detail"], fields=fields))
        response = JSONResponse(document, status)
        for name, value in self._start["headers"]:
            if name not in {b"content-type", b"content-length"}:
                response.headers.append(name.decode("latin-1"), value.decode("latin-1"))
        return response


def _is_problem(message: Message) -> bool:
    """Whether a portal's shape has a word for it; a method that no route knows is nobody's dialect."""
    kind = any(
        name == b"content-type" and value.startswith(b"application/problem+json") for name, value in message["headers"]
    )
    return kind and message["status"] != 405
