"""People with a browser: they sign in at the dashboard of a test installation and click."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from html import unescape
from http.cookies import SimpleCookie
from typing import Any
from uuid import UUID, uuid4

import httpx

from app import people
from app.domain.people import Role
from app.storage.sessions import transaction
from tests.house import Installation

COOKIE = "__Host-expunge"


@dataclass
class Guest:
    """Somebody who has signed in: a person, their session and a client that shows it as a browser would."""

    person_id: UUID
    client_id: UUID
    name: str
    cookie: str
    http: httpx.Client

    def get(self, path: str = "", **more: Any) -> httpx.Response:
        return self.http.get(f"/admin{path}", **more)

    def post(self, path: str, **form: Any) -> httpx.Response:
        """Press a button on a page of ours."""
        return self.http.post(f"/admin{path}", data=form)


def enter(house: Installation, *roles: Role, name: str | None = None, login: str | None = None) -> Guest:
    """Let somebody in and open a session for them, as a sign-in does; the sign-in itself has tests of its own."""
    now = datetime.now(UTC)
    with transaction(house.engine) as tx:
        person, _ = people.add(
            tx,
            login=login or f"{uuid4().hex}@example.org",
            name=name or "Ann Example",
            roles=roles or [Role.VIEWER],
            now=now,
            by=None,
        )
        cookie = people.begin_session(tx, person, now=now, settings=house.settings)
    http = httpx.Client(
        base_url=f"http://127.0.0.1:{house.port}",
        headers={"Cookie": f"{COOKIE}={cookie}", "Sec-Fetch-Site": "same-origin"},
        timeout=30,
        verify=False,
    )
    return Guest(person.id, person.client_id, person.name, cookie, http)


class Browser:
    """Somebody's browser before they sign in: it keeps the cookies that it is given, and follows nothing by itself."""

    def __init__(self, house: Installation) -> None:
        self.cookies: dict[str, str] = {}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{house.port}", timeout=30, verify=False)

    def get(self, path: str = "/admin", **headers: str) -> httpx.Response:
        return self._call("GET", path, headers)

    def post(self, path: str, **form: str) -> httpx.Response:
        """Press a button on a page of ours."""
        return self._call("POST", path, {"Sec-Fetch-Site": "same-origin"}, data=form)

    def _call(self, method: str, path: str, headers: dict[str, str], **more: Any) -> httpx.Response:
        shown = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        answer = self.http.request(method, path, headers={**headers, "Cookie": shown}, **more)
        for line in answer.headers.get_list("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel.value
                if morsel["max-age"] == "0":
                    del self.cookies[name]
        return answer


def text_of(page: httpx.Response) -> str:
    """A page as people read it, white space folded."""
    body = re.sub(r"(?s)<(script|style).*?</\1>|<!--.*?-->", " ", page.text)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())
