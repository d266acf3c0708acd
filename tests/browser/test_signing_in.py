"""Somebody new comes in: invited by an admin, a first password, a second factor, in and out; by keyboard alone."""

import re

import pyotp
import pytest

from app.domain.people import Role
from tests.browser.conftest import Seats

pytestmark = pytest.mark.slow
PASSWORD = "a long walk by the river"


def test_an_invited_person_sets_a_password_and_a_second_factor_and_signs_in(seat: Seats) -> None:
    admin = seat(Role.ADMIN).open("/people/new")
    admin.get_by_label("Login").fill("mira@example.org")
    admin.get_by_label(re.compile("^Name")).fill("Mira New")
    admin.get_by_label(re.compile(r"^\s*officer")).check()
    admin.get_by_role("button", name="Let in").click()
    code = admin.locator("code.secret").inner_text()

    desk = seat()
    page = desk.open("/set-up")
    page.get_by_label("Login").fill("mira@example.org")
    page.get_by_label("Code").fill(code)
    page.get_by_label("New password").fill(PASSWORD)
    page.get_by_label("The same again").fill(PASSWORD)
    page.get_by_role("button", name="Set password").click()
    page.get_by_label("Login").fill("mira@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/admin")

    page.goto(f"{desk.base}/second-factor")
    secret = page.locator("code.secret").inner_text()
    page.get_by_label("Code").fill(pyotp.TOTP(secret).now())
    page.get_by_role("button", name="Set up").click()
    page.get_by_text("Your second factor is set up").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_text("You have signed out").wait_for()

    page.get_by_label("Login").fill("mira@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("login, password or code is wrong", exact=False).wait_for()


def test_the_cookie_is_kept_from_scripts_and_from_other_paths(seat: Seats) -> None:
    desk = seat(Role.VIEWER)
    page = desk.open()
    assert page.evaluate("document.cookie") == ""
    [cookie] = desk.context.cookies(desk.base.replace("http:", "https:"))
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"], cookie["path"]) == (True, True, "Lax", "/")
