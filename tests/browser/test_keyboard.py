"""Nobody needs a mouse: every control is reached by Tab and seen when it is, and an officer's work is done by keys."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page

from app.domain.people import Role
from tests.browser import world
from tests.browser.conftest import Seats
from tests.house import Installation
from tests.pages import paths

pytestmark = pytest.mark.slow
_MOST_TABS = 400
_CONTROLS = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']"
_FOCUSED = """() => {
  const e = document.activeElement, s = getComputedStyle(e), box = e.getBoundingClientRect()
  const said = (e.labels && e.labels.length ? e.labels[0].innerText : '') || e.getAttribute('aria-label') || e.innerText
  return {name: said.trim().replace(/\\s+/g, ' '), tag: e.tagName, seen: s.outlineStyle !== 'none' && box.height > 0,
          number: [...document.querySelectorAll(CONTROLS)].indexOf(e)}
}""".replace("CONTROLS", repr(_CONTROLS))


def press_until(page: Page, name: str, *, tag: str | None = None) -> None:
    """Press Tab until a control of this name has the focus."""
    for _ in range(_MOST_TABS):
        page.keyboard.press("Tab")
        found = page.evaluate(_FOCUSED)
        if found["name"].startswith(name) and tag in {None, found["tag"]}:
            return
    pytest.fail(f"no Tab leads to {name!r}")


def visited(page: Page) -> tuple[set[int], list[str]]:
    """Which controls Tab goes through, and those where nobody would see that it is there."""
    numbers: set[int] = set()
    unseen, last = [], None
    for _ in range(_MOST_TABS):
        page.keyboard.press("Tab")
        found = page.evaluate(_FOCUSED)
        if found["tag"] == "BODY" or (found["number"] in numbers and found["number"] != last):
            break  # round; a date is one control with several stops
        numbers.add(last := found["number"])
        if not found["seen"]:
            unseen.append(f"{found['tag']} {found['name']}")
    return numbers, unseen


def test_tab_reaches_every_control_of_every_page_and_shows_where_it_is(
    seat: Seats, house: Installation, past: world.World
) -> None:
    assert past
    desk = seat(*Role)
    missed = {}
    for name, path in paths(house.engine).items():
        page = desk.open(path)
        page.evaluate("document.querySelectorAll('[autofocus]').forEach(part => part.blur())")
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
        page.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges()")
        controls = page.evaluate(
            "c => [...document.querySelectorAll(c)].filter(e => !e.disabled && (e.type !== 'radio' || e.checked"
            " || !document.querySelector(`input[type=radio][name='${e.name}']:checked`))).length",
            _CONTROLS,
        )
        numbers, unseen = visited(page)
        if unseen or len(numbers) < min(controls, _MOST_TABS - 1):
            missed[name] = (f"{len(numbers)} of {controls}", unseen)
    assert missed == {}


def test_the_first_tab_skips_to_the_content(seat: Seats) -> None:
    page = seat(Role.VIEWER).open("/requests")
    page.keyboard.press("Tab")
    assert page.evaluate(_FOCUSED)["name"] == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_an_officer_refuses_a_request_by_keys_alone(seat: Seats, house: Installation) -> None:
    request_id = house.demand(311, reference="by-keys", identity_level="none")
    page = seat(Role.OFFICER).open("/requests?state=awaiting_identity")
    press_until(page, "by-keys")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/requests/{request_id}*")
    press_until(page, "Refuse", tag="SUMMARY")
    page.keyboard.press("Enter")
    press_until(page, "Ground")
    page.keyboard.press("ArrowDown")
    press_until(page, "In your words")
    page.keyboard.type("not from the person")
    press_until(page, "Refuse", tag="BUTTON")
    page.keyboard.press("Enter")
    page.get_by_text("Refused.").first.wait_for()
    assert world.status_of(house, request_id) == "rejected"
