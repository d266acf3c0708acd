"""What each role comes for: an erasure watched to its end, a refusal, a rollback, a certificate that is checked."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from app.domain.people import Role
from tests import toy
from tests.browser import world
from tests.browser.conftest import Desk, Seats
from tests.faults import wait_until
from tests.house import Installation

pytestmark = pytest.mark.slow
LONG_ENOUGH_MS = 60_000


def make_request(desk: Desk, person: int, *, reference: str, identity: str = "low") -> str:
    """An officer types a demand that came by letter; returns the request's id."""
    page = desk.open("/requests")
    page.get_by_role("link", name="New request").click()
    page.get_by_label("User id").fill(toy.user_id(person))
    page.get_by_label("Reference").fill(reference)
    page.get_by_label("Identity").select_option(identity)
    page.get_by_role("button", name="Make the request").click()
    page.get_by_text("The request was made.").wait_for()
    return page.url.split("/requests/")[1].partition("?")[0]


def marked(page: Page) -> None:
    """Leave a mark that a reload would wipe off."""
    page.evaluate("window.untouched = true")


def test_an_officer_watches_an_erasure_to_its_end_and_checks_its_certificate(
    seat: Seats, house: Installation, members: Iterator[int]
) -> None:
    desk = seat(Role.OFFICER, name="Olga Officer")
    request_id = make_request(desk, next(members), reference="letter-1")
    page = desk.page
    marked(page)
    expect(page.get_by_role("progressbar").first).to_be_visible(timeout=LONG_ENOUGH_MS)
    expect(page.locator(".head .tag", has_text="completed")).to_be_visible(timeout=LONG_ENOUGH_MS)
    assert page.evaluate("window.untouched") is True  # nobody reloaded the page
    assert world.status_of(house, request_id) == "completed"
    expect(page.get_by_role("img", name=re.compile("stranger"))).to_be_visible()

    page.get_by_role("link", name="Read and verify it").click()
    marked(page)
    page.get_by_role("link", name="Verify now").click()
    expect(page.get_by_text("Verified: everything that was looked at fits.")).to_be_visible(timeout=LONG_ENOUGH_MS)
    assert page.evaluate("window.untouched") is True
    expect(page.get_by_text("This page is made by the service that is being checked")).to_be_visible()


def test_an_officer_refuses_a_request_and_notes_that_the_person_was_told(
    seat: Seats, house: Installation, members: Iterator[int]
) -> None:
    desk = seat(Role.OFFICER, name="Olga Officer")
    request_id = make_request(desk, next(members), reference="letter-2", identity="none")
    page = desk.page
    page.locator("summary", has_text="Refuse").click()
    refusing = page.locator("details", has=page.locator("summary", has_text="Refuse"))
    refusing.get_by_label("Ground").select_option("art17_3_e_legal_claims")
    refusing.get_by_label(re.compile("In your words")).fill("a claim is pending <b>in court</b>")
    refusing.get_by_role("button", name="Refuse").click()
    page.get_by_text("Refused. Look at the notices").wait_for()
    expect(page.locator(".head .tag", has_text="rejected")).to_be_visible()
    expect(page.get_by_text("a claim is pending <b>in court</b>").first).to_be_visible()
    expect(page.get_by_text("Olga Officer").first).to_be_visible()
    assert world.status_of(house, request_id) == "rejected"
    expect(page.locator("summary", has_text="Refuse")).to_have_count(0)

    page.locator("a[href*='/notices/refusal']").first.click()
    expect(page.get_by_text("a claim is pending <b>in court</b>").first).to_be_visible()
    page.get_by_role("button", name=re.compile("sent|told", re.IGNORECASE)).click()
    page.get_by_text("Noted that the person was told.").wait_for()


def test_an_engineer_rolls_a_model_back_and_what_that_undoes_is_done_again(
    seat: Seats, house: Installation, members: Iterator[int]
) -> None:
    request_id = house.demand(next(members))
    house.wait_until_ended(request_id)
    before = world.version_of(house)
    page = seat(Role.ENGINEER, name="Emil Engineer").open("/models")
    page.get_by_role("link", name="toy").first.click()
    page.get_by_role("link", name="1", exact=True).click()
    page.get_by_role("link", name=re.compile("roll back", re.IGNORECASE)).click()
    expect(page.get_by_text(re.compile("would be queued again"))).to_be_visible()
    page.get_by_label(re.compile("Type the model's name")).fill("toy")
    page.get_by_role("button", name=re.compile("Roll back")).click()
    page.get_by_text("Rolled back.").wait_for()
    wait_until(lambda: world.version_of(house) >= before + 2, 90, "what was undone is done again")
    assert house.wait_until_ended(request_id)["status"] == "completed"
    page.goto(page.url.partition("?")[0])
    expect(page.get_by_role("cell", name=re.compile("^rolled back")).first).to_be_visible()


def test_an_auditor_checks_the_log_and_finds_who_looked_somebody_up(
    seat: Seats, house: Installation, members: Iterator[int]
) -> None:
    person = next(members)
    house.demand(person, identity_level="none")
    officer = seat(Role.OFFICER, name="Olga Curious").open("/requests")
    officer.locator("summary", has_text="Look up a person").click()
    officer.get_by_label("User id").fill(toy.user_id(person))
    officer.get_by_role("button", name="Look up").click()
    expect(officer.get_by_text("Open requests for this person: 1")).to_be_visible()
    assert toy.user_id(person) not in officer.content()
    assert toy.user_id(person) not in officer.url

    page = seat(Role.AUDITOR, name="Ada Auditor").open("/log")
    page.get_by_role("button", name=re.compile("Verify|Check")).first.click()
    expect(page.get_by_text("nothing is wrong in what was looked at")).to_be_visible()
    expect(page.locator("#findings .tag.bad")).to_have_count(0)
    expect(page.get_by_text(re.compile("expunge-verify log")).first).to_be_attached()
    page.goto(f"http://127.0.0.1:{house.port}/admin/log/internal")
    row = page.get_by_role("row", name=re.compile("Olga Curious")).filter(has_text=re.compile("look", re.IGNORECASE))
    expect(row.first).to_be_visible()


def test_a_viewer_sees_everything_and_finds_no_button_that_changes_something(
    seat: Seats, house: Installation, members: Iterator[int]
) -> None:
    request_id = house.demand(next(members), identity_level="none")
    desk = seat(Role.VIEWER)
    for path in ("", "/requests", f"/requests/{request_id}", "/models", "/models/toy", "/webhooks", "/keys", "/people"):
        page = desk.open(path)
        buttons = page.locator("main form[method=post] button").all_inner_texts()
        assert buttons == [], path
    assert desk.open("/people/new").get_by_text("This is not yours to do").is_visible()
