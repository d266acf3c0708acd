"""Bodies, read before anybody else does: how large, by whom, how many at once, and whether they say one thing only.

A stranger gets no more than 64 KiB of this process: on routes that take more, whoever shows nothing is refused before
the body, and a key is looked up before more of it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import auth
from app.api.problems import TWICE, problem, refusal, says_a_name_twice
from app.errors import ExpungeError, Unavailable

LARGEST: Final = 64 << 10
"""What every route takes."""
MOST_HELD: Final = 64 << 20
"""Of all large bodies that one process reads or works on."""

MOST_NESTED: Final = 200_000
"""Lists and objects in a large body, ten times what 10 000 demands need. Python's JSON reader lets no other thread run
while it makes millions of them, so reading them aside would not help."""


@dataclass(frozen=True)
class Large:
    """A route that takes more, from whoever has the scope."""

    most: int
    needs: auth.Scope


_LARGE: Final = {
    "/v1/erasure-requests:batch": Large(8 << 20, auth.Scope.REQUESTS_WRITE),
    "/v1/suppressions:check": Large(4 << 20, auth.Scope.SUPPRESSIONS_READ),
    "/v1/suppressions:tokens": Large(4 << 20, auth.Scope.SUPPRESSIONS_READ),
}


class ReadBody:
    """ASGI middleware: refuse what is too large or says two things at once, and hand the body on in one piece."""

    def __init__(self, app: ASGIApp, large: Mapping[str, Large] = _LARGE, most_held: int = MOST_HELD) -> None:
        self.app, self.large, self.most_held = app, large, most_held
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        large = self.large.get(scope["path"]) if scope["method"] == "POST" else None
        reading = _Reading(self, scope, receive, large)

        async def answer(message: Message) -> None:
            reading.let_go()  # a caller that does not read its answer holds no more than that
            await send(message)

        try:
            listener = await self._listener(reading)
            if listener is not None:
                await listener(scope, reading.replayed, answer if reading.held else send)
        finally:
            reading.let_go()

    async def _listener(self, reading: _Reading) -> ASGIApp | None:
        """Who answers; none if the caller left in the middle: half a list of people is not what it meant."""
        try:
            body = await reading.body()
            return None if body is None else await reading.refused(body) or self.app
        except ExpungeError as error:
            return refusal(error)


class _Reading:
    """One body on its way in."""

    def __init__(self, house: ReadBody, scope: Scope, receive: Receive, large: Large | None) -> None:
        self._house, self._scope, self._receive, self._large = house, scope, receive, large
        self._most = large.most if large else LARGEST
        self._parts: list[Message] = []
        self.held = 0

    async def body(self) -> bytes | None:
        """All of it, or its beginning if it is too large; none if the caller left.

        Raises:
            ExpungeError: The caller may not send as much, or not now.
        """
        if self._large:
            auth.claimed(Request(self._scope))
        parts, size, more = [], 0, True
        while more and size <= self._most:
            message = await self._receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            await self._admit(size)
        return b"".join(parts)

    def let_go(self) -> None:
        """Somebody else may send as much."""
        self._house.held -= self.held
        self.held = 0

    async def _admit(self, size: int) -> None:
        if self._large is None or size <= LARGEST:
            return
        if not self.held:
            claim = auth.claimed(Request(self._scope))
            await run_in_threadpool(auth.look_up, self._scope["app"].state.context, claim, self._large.needs)
        if self._house.held + size - self.held > self._house.most_held:
            raise Unavailable("too many large bodies at once; send it again in a moment")
        self._house.held += size - self.held
        self.held = size

    async def refused(self, body: bytes) -> JSONResponse | None:
        """What is wrong with a body, if something is; else it will be replayed."""
        if len(body) > self._most:
            return problem(413, "too-large", f"the body is larger than {self._most} bytes")
        if sum(name == b"idempotency-key" for name, _ in self._scope["headers"]) > 1:
            return problem(400, "malformed", "send one Idempotency-Key")
        aside = len(body) > LARGEST
        if aside and body.count(b"[") + body.count(b"{") > MOST_NESTED:
            return problem(413, "too-large", f"the body has more than {MOST_NESTED} lists and objects")
        if await run_in_threadpool(says_a_name_twice, body) if aside else says_a_name_twice(body):
            return problem(400, "malformed", TWICE)
        self._parts.append({"type": "http.request", "body": body, "more_body": False})
        return None

    async def replayed(self) -> Message:
        """ASGI receive, of what was read."""
        return self._parts.pop() if self._parts else await self._receive()
