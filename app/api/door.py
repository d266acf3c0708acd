"""The door: from where a call comes, who it says it is, whether it comes too often; and what every answer carries.

All of it is known from the first line and the headers, so a caller that is refused here costs us no body, no thread and
no database. Who a caller really is, is looked up by the route, in its own transaction: a revoked key ends at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import people, transcend_token
from app.api import auth, problems
from app.api.caller_address import Peers
from app.api.limits import Limits
from app.api.tokens import Provider
from app.errors import ExpungeError
from app.settings import Settings
from app.storage.keys import Claim

_NEVER_COUNTED: Final = {"/livez", "/health/live"}
"""An orchestrator that was told 429 here would end a process that is well."""
_PUBLIC: Final = ("/log/", "/.well-known/", "/health/", "/readyz")
_TRANSCEND: Final = "/portals/transcend"
_MOST_KNOWN: Final = 10_000
_ALWAYS: Final = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
_PRIVATE: Final = (b"cache-control", b"no-store")
_BY_TLS: Final = [*_ALWAYS, (b"strict-transport-security", b"max-age=31536000; includeSubDomains")]

_Sender = Callable[[Message], Awaitable[None]]


class Doorkeeper:
    """What stands at the door of one process while it runs.

    Args:
        settings: Limits, proxies, the identity provider.

    Raises:
        Misconfigured: The identity provider's settings can't be followed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.peers = Peers(settings.trusted_proxies, settings.proxy_header)
        self.limits, self.provider = Limits(settings), Provider(settings)
        self.known: dict[str, None] = {}
        """Names of claims that were good lately: they are heard even while their address fails."""

    @asynccontextmanager
    async def on_duty(self) -> AsyncIterator[None]:
        """Keep limits and keys up to date for the time of a block."""
        rounds = (self.limits.make_rounds(), self.provider.keep_keys(), self.provider.keep_places())
        tasks = [asyncio.create_task(work) for work in rounds]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def wait(self, path: str, address: str, claim: Claim | None, token: str = "") -> float:
        """How long this call must wait, in seconds; 0 if it may go on, and then it is counted."""
        if path in _NEVER_COUNTED:
            return 0.0
        if path.startswith(_PUBLIC):
            return self.limits.readers.spend(address)
        return (
            self._kept_out(address, claim, token)
            or self.limits.addresses.spend(address)
            or (self.limits.callers.spend(claim.name) if claim else 0.0)
        )

    def _kept_out(self, address: str, claim: Claim | None, token: str) -> float:
        """How long a call must wait for the failures of its neighbours: good callers don't, new keys get their turn."""
        seconds = self.limits.failures.spent(address)
        if not seconds or (claim is not None and claim.name in self.known) or self._is_transcends(token):
            return 0.0
        return seconds if claim is None or self.limits.strangers.spend(address) else 0.0

    def _is_transcends(self, token: str) -> bool:
        """Whether a call brings its own proof; looked at only where others failed: it costs half a millisecond."""
        with suppress(ExpungeError):
            return bool(token and transcend_token.vouched_for(token, settings=self._settings, now=datetime.now(UTC)))
        return False

    def note(self, status: int, address: str, scope: Scope) -> None:
        """Remember how a call ended: a claim is good only if a route asked for it and was content."""
        claim = scope.get(auth.CLAIM) or scope.get(auth.SESSION)
        name = claim.name if isinstance(claim, Claim) else ""
        if status == 401:
            self.limits.failures.spend(address)
            self.known.pop(name, None)
        elif name and name not in self.known and status < 400 and auth.ASKED in scope:
            if len(self.known) >= _MOST_KNOWN:
                del self.known[next(iter(self.known))]
            self.known[name] = None


class Door:
    """ASGI middleware; the application's state holds the :class:`Doorkeeper`, once it has started."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry: let a call in, or say when to come again."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        doorkeeper: Doorkeeper = scope["app"].state.doorkeeper
        address = doorkeeper.peers.address_of(scope)
        answer = _answering(scope, send, doorkeeper, address)
        claim = _seated(scope) if auth.is_page(scope["path"]) else _claimed(scope, doorkeeper.provider)
        seconds = doorkeeper.wait(scope["path"], address, claim, _transcends(scope))
        await (_too_often(seconds) if seconds else self.app)(scope, receive, answer)


def _claimed(scope: Scope, provider: Provider) -> Claim | None:
    """Who the caller says it is; what is wrong with that is kept for a route that needs to know."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            try:
                claim = auth.identify(value.decode("latin-1"), provider)
            except ExpungeError as error:
                scope[auth.CLAIM] = error
                return None
            scope[auth.CLAIM] = claim
            return claim
    return None


def _seated(scope: Scope) -> Claim | None:
    """The session that a browser shows."""
    cookie = Request(scope).cookies.get(auth.SESSION_COOKIE)
    if not cookie:
        return None
    claim = scope[auth.SESSION] = Claim(key_digest=people.digest_of(cookie))
    return claim


def _transcends(scope: Scope) -> str:
    """The token of a call to Transcend's route."""
    if scope["path"] != _TRANSCEND:
        return ""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-sombra-token"), "")


def _answering(scope: Scope, send: Send, doorkeeper: Doorkeeper, address: str) -> _Sender:
    always = _BY_TLS if doorkeeper.peers.by_tls(scope) else _ALWAYS

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            doorkeeper.note(message["status"], address, scope)
            message["headers"] = _dressed(message.get("headers", []), always)
        await send(message)

    return answer


def _dressed(headers: list[tuple[bytes, bytes]], always: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What a route did not say about caching is nobody's to keep: it may be about a person."""
    for name, _ in headers:
        if name == b"cache-control":
            return [*headers, *always]
    return [*headers, *always, _PRIVATE]


def _too_often(seconds: float) -> ASGIApp:
    response = problems.problem(429, "too-many-requests", "too many calls; wait as long as Retry-After says")
    response.headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return response
