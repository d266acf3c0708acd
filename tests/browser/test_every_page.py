"""What every page owes everybody: no barrier that axe finds, no sideways scrolling, one heading, no foreign script.

Each page is loaded once in light and once in dark; what is found there is judged by the tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from app.domain.people import Role
from tests.browser import world
from tests.browser.conftest import Desk, sit
from tests.dashboard import enter
from tests.house import Installation
from tests.pages import NO_PAGES, OPEN_TO_ALL, PAGES, is_listed, paths, routes

pytestmark = pytest.mark.slow
SERIOUS = {"serious", "critical"}
WIDTHS = (1280, 400)
_BEYOND = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_ONLY_COLOURS = {"runOnly": ["color-contrast"]}


@dataclass(frozen=True)
class Seen:
    """What there was on a page."""

    title: str
    headings: int
    here: int
    """Places in the menu that say that one is there."""
    scripts: int
    hostile: int
    """How often a name that looks like markup is shown as text."""
    violations: list[str]
    beyond: dict[int, int]
    """Of each width that is too narrow, by how much."""


@dataclass(frozen=True)
class Walk:
    """Every page, light and dark, and what the browser asked for meanwhile."""

    light: dict[str, Seen]
    dark: dict[str, list[str]]
    asked: list[str]
    complaints: list[str]


@pytest.fixture(scope="module")
def walk(browser: Browser, house: Installation, past: world.World) -> Walk:
    """Somebody with every role and a hostile name walks through a house with a past; then a stranger."""
    assert past
    guest, asked = enter(house, *Role, name=world.SCRIPT), list[str]()
    light, dark = (sit(house, browser, guest, color_scheme=scheme) for scheme in ("light", "dark"))
    strange = [sit(house, browser, None, color_scheme=scheme) for scheme in ("light", "dark")]
    for desk in (light, strange[0]):
        desk.page.on("request", lambda request: asked.append(request.url))
    ours = paths(house.engine)
    return Walk(
        {name: look(light, path) for name, path in ours.items()}
        | {name: look(strange[0], path) for name, path in OPEN_TO_ALL.items()},
        {name: barriers(opened(dark, path), **_ONLY_COLOURS) for name, path in ours.items()}
        | {name: barriers(opened(strange[1], path), **_ONLY_COLOURS) for name, path in OPEN_TO_ALL.items()},
        asked,
        [said for desk in (light, dark, *strange) for said in desk.complaints],
    )


def look(desk: Desk, path: str) -> Seen:
    """Everything about one page."""
    page = opened(desk, path)
    beyond = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        if (too_much := page.evaluate(_BEYOND)) > 0:
            beyond[width] = too_much
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    return Seen(
        page.title(),
        page.locator("h1").count(),
        page.locator("[aria-current=page]").count(),
        page.locator("main script").count(),
        page.get_by_text(world.SCRIPT).count(),
        barriers(page),
        beyond,
    )


def opened(desk: Desk, path: str) -> Page:
    """A page whose folded forms are open: they are looked at, too."""
    page = desk.open(path)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    return page


def barriers(page: Page, **options: Any) -> list[str]:
    """What axe calls serious or critical."""
    told: list[dict[str, Any]] = Axe().run(page, options=options or None).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:160]}" for one in told if one["impact"] in SERIOUS]


def test_every_route_is_a_page_that_is_walked_or_is_said_to_be_none() -> None:
    unknown = [path for method, path in routes() if method == "GET" and not is_listed(path)]
    assert not unknown
    assert not NO_PAGES - {path for _, path in routes()}


def test_there_was_something_to_see_on_every_page(walk: Walk) -> None:
    assert set(walk.light) == set(walk.dark) == {*PAGES, *OPEN_TO_ALL}


def test_axe_finds_nothing_serious(walk: Walk) -> None:
    assert {name: seen.violations for name, seen in walk.light.items() if seen.violations} == {}


def test_axe_finds_no_faint_words_in_the_dark(walk: Walk) -> None:
    assert {name: said for name, said in walk.dark.items() if said} == {}


def test_nothing_is_wider_than_its_window(walk: Walk) -> None:
    assert {name: seen.beyond for name, seen in walk.light.items() if seen.beyond} == {}


def test_every_page_has_one_heading_a_title_and_says_where_one_is(walk: Walk) -> None:
    for name, seen in walk.light.items():
        assert seen.headings == 1, name
        assert re.search(r"\S · Expunge$", seen.title), name
        assert seen.here <= 1, name


def test_markup_in_names_is_text_everywhere(walk: Walk) -> None:
    """A script that ran would have changed the title, and the policy would have told the console."""
    assert not [name for name, seen in walk.light.items() if "pwned" in seen.title or seen.scripts]
    assert sum(seen.hostile for seen in walk.light.values()) > len(PAGES)  # in the header, and as reference, client, …


def test_nothing_comes_from_elsewhere(walk: Walk, house: Installation) -> None:
    ours = (f"http://127.0.0.1:{house.port}/admin", "data:")
    assert walk.asked
    assert not [url for url in walk.asked if not url.startswith(ours)]


def test_the_policy_was_never_violated_and_no_browser_complained(walk: Walk, house: Installation) -> None:
    assert not walk.complaints
    assert "content security policy violated" not in house.log.read_text()
