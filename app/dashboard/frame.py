"""What holds for every page: nobody else's site posts here, nothing foreign runs here, errors are pages, too.

Cross-site posts: OWASP's CSRF cheat sheet, Fetch Metadata first, the Origin header for browsers that don't send it. The
policy allows no inline script or style, so a name that were ever rendered as markup could still do nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems
from app.api.auth import PAGES as BASE
from app.api.auth import is_page
from app.dashboard.rendering import render

POLICY: Final = "; ".join(
    [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'"),
        *("form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'", f"report-uri {BASE}/csp-reports"),
    ]
)
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PROBLEM: Final = "application/problem+json"
_REPORTS: Final = f"{BASE}/csp-reports"
_SIGN_IN: Final = f"{BASE}/sign-in"


class Frame:
    """ASGI middleware around everything that may answer a page's call, the door included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        dressed = _Answer(request, send)
        if scope["method"] not in _SAFE and scope["path"] != _REPORTS and not is_same_origin(request):
            await problems.problem(403, "cross-site", _CROSS_SITE)(scope, receive, dressed)
            return
        try:
            await self.app(scope, receive, dressed)
        except Exception as error:  # a bug of ours: told as JSON elsewhere, as a page here
            if dressed.has_begun:
                raise
            await problems.surprise(request, error)(scope, receive, dressed)


_CROSS_SITE: Final = "this came from another site; go to the page and press the button there"


def is_same_origin(request: Request) -> bool:
    """Whether a call that changes something comes from a page of ours.

    A browser says so in Sec-Fetch-Site, which no script can set; an older one names the page's origin, which must then
    be ours. Who says neither is no browser that somebody has signed in with.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return request.headers.get("origin", "").lower() in _our_origins(request)


def _our_origins(request: Request) -> Collection[str]:
    """The origins that browsers may know us by: as the operator says, else as the call itself does."""
    stated: str = request.app.state.context.settings.dashboard_url
    if stated:
        return {stated.removesuffix("/").lower()}
    host = request.headers.get("host", "").lower()
    return {f"https://{host}", f"http://{host}"} if host else ()


class _Answer:
    """ASGI send: sets the policy, and turns a problem document into a page."""

    def __init__(self, request: Request, send: Send) -> None:
        self._request, self._send = request, send
        self._problem: Message | None = None
        self._body = b""
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if Headers(raw=message["headers"]).get("content-type") == _PROBLEM:
                self._problem = message
                return
            self.has_begun = True
            _dress(message)
        elif self._problem is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_page(self._problem)
            return
        await self._send(message)

    async def _send_page(self, start: Message) -> None:
        page = _page_of(self._request, json.loads(self._body))
        kept = (
            "retry-after",
            "cache-control",
            "x-content-type-options",
            "referrer-policy",
            "strict-transport-security",
            "allow",
        )
        headers = Headers(raw=start["headers"])
        page.headers.update({name: headers[name] for name in kept if name in headers})
        start = {"type": "http.response.start", "status": page.status_code, "headers": page.raw_headers}
        self.has_begun = True
        _dress(start)
        await self._send(start)
        body = b"" if self._request.method == "HEAD" else page.body
        await self._send({"type": "http.response.body", "body": body})


def _dress(message: Message) -> None:
    headers = MutableHeaders(raw=message["headers"])
    headers.setdefault("content-security-policy", POLICY)
    headers.setdefault("x-frame-options", "DENY")
    headers.setdefault("x-content-type-options", "nosniff")  # the door says so, too; what we refuse does not pass it
    headers.setdefault("referrer-policy", "no-referrer")
    headers.setdefault("cross-origin-opener-policy", "same-origin")
    headers.setdefault("cross-origin-resource-policy", "same-origin")
    message["headers"] = headers.raw


def _page_of(request: Request, problem: dict[str, object]) -> Response:
    """A problem as a page; who has not signed in is led to where one does."""
    status = int(str(problem["status"]))
    if status == 401 and request.method in _SAFE:
        return _to_sign_in(request)
    fields = problem.get("errors")
    said = {
        "title": _TITLES.get(status, "That did not work"),
        "detail": problem["detail"],
        "errors": fields if isinstance(fields, Iterable) else (),
        "status": status,
    }
    return HTMLResponse(render("error.html", request, **said), status)


def _to_sign_in(request: Request) -> Response:
    """Back to where they wanted to go, afterwards; a part of a page takes the whole page there."""
    try:
        parts = urlsplit(request.headers.get("hx-current-url") or str(request.url))
    except ValueError:  # no address at all; a browser sends none such
        parts = urlsplit(BASE)
    place = f"{parts.path}?{parts.query}" if parts.query else parts.path
    to = f"{_SIGN_IN}?next={quote(place, safe='/')}" if place != BASE else _SIGN_IN
    if "hx-request" in request.headers:
        return Response(status_code=200, headers={"HX-Redirect": to})
    return RedirectResponse(to, 303)


_TITLES: Final = {
    401: "Sign in again",
    403: "This is not yours to do",
    404: "There is no such page",
    409: "Not in this state",
    422: "Something in the form is wrong",
    413: "That is too much at once",
    429: "Slow down",
    503: "Not just now",
}
