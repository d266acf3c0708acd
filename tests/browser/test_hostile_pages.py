"""Somebody else's site, open in the browser of an officer, tries to press our buttons."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.domain.people import Role
from tests.browser import world
from tests.browser.conftest import Seats
from tests.house import Installation

pytestmark = pytest.mark.slow


@contextmanager
def foreign_site(markup: str) -> Iterator[str]:
    """A page on another site: ``localhost`` is not ``127.0.0.1`` to a browser."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(markup.encode())

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_form_on_another_site_can_not_cancel_a_request(seat: Seats, house: Installation) -> None:
    request_id = house.demand(301, identity_level="none")
    desk = seat(Role.OFFICER)
    form = f'<form method="post" action="{desk.base}/requests/{request_id}/cancel">'
    form += '<input name="sure" value="yes"></form>'
    form += "<script>document.forms[0].submit()</script>"
    with foreign_site(form) as address:
        with desk.page.expect_response(lambda answer: answer.url.endswith("/cancel")) as caught:
            desk.page.goto(address)
        assert caught.value.status == 403
    assert world.status_of(house, request_id) == "awaiting_identity"


def test_the_same_form_on_our_page_does(seat: Seats, house: Installation) -> None:
    request_id = house.demand(302, identity_level="none")
    desk = seat(Role.OFFICER)
    page = desk.open(f"/requests/{request_id}")
    page.evaluate(
        "path => { const form = document.createElement('form'); form.method = 'post'; form.action = path;"
        " form.innerHTML = '<input name=sure value=yes>'; document.body.append(form); form.submit() }",
        f"/admin/requests/{request_id}/cancel",
    )
    page.get_by_text("Taken back.", exact=True).wait_for()
    assert world.status_of(house, request_id) == "cancelled"


def test_our_pages_can_not_be_framed(seat: Seats) -> None:
    desk = seat(Role.OFFICER)
    desk.open()
    with foreign_site(f'<iframe src="{desk.base}"></iframe>') as address:
        desk.page.goto(address)
        [inside] = [frame for frame in desk.page.frames if frame != desk.page.main_frame]
        assert "How things stand" not in inside.content()
    assert [text for text in desk.complaints if "frame" in text.lower()]
    desk.complaints.clear()


def test_another_site_can_not_read_what_an_officer_sees(seat: Seats) -> None:
    desk = seat(Role.OFFICER)
    desk.open()
    with foreign_site("<p>harmless</p>") as address:
        desk.page.goto(address)
        read = desk.page.evaluate(
            "url => fetch(url, {credentials: 'include'}).then(a => a.text(), e => 'kept out')", desk.base
        )
    assert read == "kept out"
    desk.complaints.clear()


def test_a_policy_that_is_violated_is_written_down(seat: Seats, house: Installation) -> None:
    desk = seat(Role.VIEWER)
    page = desk.open()
    with page.expect_request("**/csp-reports"):
        page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title=1'}))"
        )
    assert "How" not in page.title()
    assert page.title() != "1"
    page.wait_for_timeout(300)
    assert "content security policy violated" in house.log.read_text()
    assert desk.complaints
    desk.complaints.clear()
