"""A running house, and people who sit at browsers before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from app.domain.people import Role
from app.embedded import Valkey
from tests.browser import chromium, world
from tests.dashboard import COOKIE, Guest, enter
from tests.house import Installation, installation
from tests.services import new_database

PROCESSES = ("api", "dispatch", "worker-io", "worker-unlearn")


@dataclass
class Desk:
    """One browser of one person; remembers what the browser complained of."""

    house: Installation
    context: BrowserContext
    page: Page
    guest: Guest | None = None
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str = "") -> Page:
        """Go to a page of the dashboard."""
        self.page.goto(f"{self.base}{path}")
        return self.page

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.house.port}/admin"

    def hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "the server responded with a status of 4" not in message.text:
            self.complaints.append(message.text)


Seats = Callable[..., Desk]


def sit(house: Installation, browser: Browser, guest: Guest | None, **context: Any) -> Desk:
    """Somebody at a browser of their own, or nobody known."""
    made = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    if guest:
        cookie = {"name": COOKIE, "value": guest.cookie, "url": f"https://127.0.0.1:{house.port}/"}
        made.add_cookies([{**cookie, "secure": True, "httpOnly": True, "sameSite": "Lax"}])
    desk = Desk(house, made, made.new_page(), guest)
    desk.page.on("console", desk.hear)
    desk.page.on("pageerror", lambda error: desk.complaints.append(str(error)))
    desk.page.set_default_timeout(15_000)
    return desk


# Of the package, not of the session: while Playwright runs, nothing else in the process may run an event loop.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if chromium.path() is None:
        pytest.skip(chromium.MISSING)
    with chromium.browser() as found:
        yield found


@pytest.fixture(scope="package")
def house(
    browser: Browser, postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """All processes, with the toy model of 400 people; nothing is started where there is no browser."""
    home: Path = tmp_path_factory.mktemp("house")
    with (
        Valkey(tmp_path_factory.mktemp("broker")) as valkey,
        new_database(postgres_server, template_database) as url,
        installation(home, url, valkey.url, processes=PROCESSES) as found,
    ):
        yield found


@pytest.fixture(scope="package")
def past(house: Installation) -> world.World:
    """Requests in every state, two versions, names that are long or hostile."""
    return world.build(house, people=2)


@pytest.fixture
def seat(browser: Browser, house: Installation) -> Iterator[Seats]:
    """Seats somebody with these roles at a browser of their own; at the end no browser had anything to complain of."""
    desks: list[Desk] = []

    def seated(*roles: Role, name: str = "Ann Example", **context: Any) -> Desk:
        desks.append(sit(house, browser, enter(house, *roles, name=name) if roles else None, **context))
        return desks[-1]

    yield seated
    complaints = [complaint for desk in desks for complaint in desk.complaints]
    for desk in desks:
        desk.context.close()
    assert not complaints


@pytest.fixture(scope="package")
def members() -> Iterator[int]:
    """People whom the model knows and nobody has asked about: not those of world.build."""
    return itertools.count(100)
