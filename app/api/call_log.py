"""Every call is given a number, timed, counted and logged; nothing of what it sent takes part in that.

The number is ours, in the log and in the answer (``X-Request-Id``). A caller's own is not repeated: whatever a caller
may choose may be somebody's name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

from opentelemetry.trace import SpanKind
from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs, metrics, tracing

CALL: Final = "expunge.call"
"""Where the scope keeps a call's number."""
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_QUIET: Final = frozenset({"/livez", "/readyz", "/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by machines: counted and not logged, unless the answer is bad."""
_NO_ROUTE: Final = "?"
_PAGE: Final = 4096
_LEFT: Final = 499
"""nginx's code for a caller that went before it was answered."""
_Known = dict[tuple[str, str, int], tuple[str, Histogram]]


class CallLog:
    """ASGI middleware, the outermost of all."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._known: _Known = {}
        self._numbers = _numbers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry: let the call through and tell how it went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        call = scope[CALL] = next(self._numbers)
        number, code = (b"x-request-id", call.encode()), 0

        async def numbered(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message.get("headers", ()), number]
            await send(message)

        try:
            if tracing.is_on():
                await self._traced(scope, receive, numbered)
            else:
                await self.app(scope, receive, numbered)
            code = code or _LEFT
        finally:
            self._tell(scope, code or 500, call, time.perf_counter() - begun)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = _method(scope)
        with tracing.span(method, kind=SpanKind.SERVER) as span:
            try:
                await self.app(scope, receive, send)
            finally:
                span.update_name(f"{method} {_route(scope)}")
                span.set_attributes(tracing.allowed({"http.request.method": method, "http.route": _route(scope)}))

    def _tell(self, scope: Scope, code: int, call: str, seconds: float) -> None:
        what = (_method(scope), _route(scope), code)
        found = self._known.get(what)
        if found is None:  # there are as many as routes and codes, not as callers
            found = logs.route_of_line(*what), metrics.http.labels(what[0], what[1], str(code))
            self._known[what] = found
        prefix, histogram = found
        histogram.observe(seconds)
        if code >= 500 or what[1] not in _QUIET:
            logs.answered(prefix, call=call, milliseconds=1000 * seconds)


def _numbers() -> Iterator[str]:
    """Numbers that say nothing of each other; random bytes are fetched by the page: each fetch is a system call."""
    while True:
        page = os.urandom(_PAGE)
        yield from (page[place : place + 8].hex() for place in range(0, _PAGE, 8))


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "other"


def _route(scope: Scope) -> str:
    """The route's template; a path that has none is the caller's own words."""
    return getattr(scope.get("route"), "path", _NO_ROUTE)
