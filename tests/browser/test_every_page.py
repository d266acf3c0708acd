"""What every page owes everybody: no barrier that axe finds, no sideways scrolling, one heading, no foreign script."""

from __future__ import annotations

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from app.domain.people import Role
from tests.browser import world
from tests.browser.conftest import Desk, Seats
from tests.house import Installation
from tests.pages import NO_PAGES, OPEN_TO_ALL, PAGES, is_listed, paths, routes

pytestmark = pytest.mark.slow
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def past(house: Installation) -> dict[str, str]:
    """The pages' addresses in a house with a past."""
    world.build(house)
    return paths(house.engine)


def test_every_route_is_a_page_that_is_walked_or_is_said_to_be_none() -> None:
    unknown = [path for method, path in routes() if method == "GET" and not is_listed(path)]
    assert not unknown
    gone = NO_PAGES - {path for _, path in routes()}
    assert not gone


def test_there_is_something_to_see_on_every_page(past: dict[str, str]) -> None:
    assert set(past) == set(PAGES)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(seat: Seats, past: dict[str, str], scheme: str) -> None:
    desk = seat(*Role, name=world.LONG, color_scheme=scheme)
    found = {name: _violations(desk, path) for name, path in past.items()}
    stranger = seat(color_scheme=scheme)
    found |= {name: _violations(stranger, path) for name, path in OPEN_TO_ALL.items()}
    assert {name: said for name, said in found.items() if said} == {}


def _violations(desk: Desk, path: str) -> list[str]:
    page = desk.open(path)
    _open_all(page)
    told: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:160]}" for one in told if one["impact"] in SERIOUS]


def _open_all(page: Page) -> None:
    """Forms that are folded away are looked at, too."""
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_its_window(seat: Seats, past: dict[str, str], width: int) -> None:
    desk = seat(*Role, name=world.LONG, viewport={"width": width, "height": 800})
    too_wide = {}
    for name, path in past.items():
        page = desk.open(path)
        _open_all(page)
        beyond = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if beyond > 0:
            too_wide[name] = beyond
    assert not too_wide


def test_every_page_has_one_heading_a_title_and_says_where_one_is(seat: Seats, past: dict[str, str]) -> None:
    desk = seat(*Role)
    for name, path in past.items():
        page = desk.open(path)
        assert page.locator("h1").count() == 1, name
        assert re.search(r"\w · Expunge$", page.title()), name
        assert page.locator("[aria-current=page]").count() <= 1, name


def test_markup_in_names_is_text_everywhere(seat: Seats, past: dict[str, str]) -> None:
    """A script that ran would have changed the title, and the policy would have told the console."""
    desk = seat(*Role, name=world.SCRIPT)
    shown = 0
    for path in past.values():
        page = desk.open(path)
        assert "pwned" not in page.title()
        assert page.locator("main script").count() == 0
        shown += page.get_by_text(world.SCRIPT).count()
    assert shown > len(past)  # the name in the header, and where it is a reference, a client, an explanation


def test_nothing_comes_from_elsewhere(seat: Seats, past: dict[str, str]) -> None:
    desk = seat(*Role)
    asked: list[str] = []
    desk.page.on("request", lambda request: asked.append(request.url))
    for path in past.values():
        desk.open(path)
    assert all(url.startswith((f"{desk.base}", "data:")) for url in asked)


def test_the_policy_was_never_violated(house: Installation, past: dict[str, str]) -> None:
    """Last in this file: everything above was looked at."""
    assert past
    assert "content security policy violated" not in house.log.read_text()
