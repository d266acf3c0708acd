"""What holds for every page of the dashboard: who may see it, who may press its buttons, and what every answer carries.

``NEEDS`` says which right admits to which route. A route that has no line here fails the first test; all others take
the routes from the application, so a new one is covered by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from app.dashboard import site
from app.domain.people import RIGHTS, Right, Role
from app.storage.sessions import transaction
from tests.dashboard import COOKIE, Browser, Guest, enter, text_of
from tests.house import Installation, installation
from tests.services import new_database

pytestmark = pytest.mark.slow
R = Right
PUBLIC = "public"
"""For everybody: the sign-in itself, and what its page is made of."""
SEAT = "seat"
"""For whoever has signed in, also before their second factor is set up."""
REQUEST, MODEL, HOOK = "/requests/{request_id}", "/models/{name}", "/webhooks/{endpoint_id}"
NEEDS: dict[str, Right | str | set[Right]] = {
    **{f"{method} /{page}": PUBLIC for page in ("sign-in", "set-up") for method in ("GET", "POST")},
    "GET /sign-in/provider": PUBLIC,
    "GET /sign-in/provider/callback": PUBLIC,
    "GET /static/{name}": PUBLIC,
    "POST /csp-reports": PUBLIC,
    "POST /sign-out": SEAT,
    "GET /second-factor": SEAT,
    "POST /second-factor": SEAT,
    "GET ": R.READ,
    "GET /account": R.READ,
    "POST /account/password": R.READ,
    "POST /account/end-sessions": R.READ,
    "GET /requests": R.READ,
    "GET /requests.csv": R.EXPORT,
    "POST /requests/look-up": R.LOOK_UP,
    "GET /requests/new": R.DECIDE,
    "POST /requests/new": R.DECIDE,
    "POST /requests/bulk": R.READ,  # what is asked there is asked again by the three below
    "POST /requests/bulk/approve": R.DECIDE,
    "POST /requests/bulk/refuse": R.DECIDE,
    "POST /requests/bulk/retry": R.RETRY,
    f"GET {REQUEST}": R.READ,
    f"GET {REQUEST}/progress": R.READ,
    f"GET {REQUEST}/notices/{{kind}}": R.READ,
    f"GET {REQUEST}/certificate": R.READ,
    f"GET {REQUEST}/certificate/verify": R.READ,
    **{f"GET {REQUEST}/certificate.{form}": R.READ for form in ("json", "html", "tsr", "tlog-proof")},
    f"GET {REQUEST}/receipt": {R.AUDIT, R.DECIDE},  # either
    **{
        f"POST {REQUEST}/{deed}": R.DECIDE
        for deed in ("approve", "refuse", "hold", "release", "extend", "cancel", "confirm-identity")
    },
    f"POST {REQUEST}/notices/{{kind}}/sent": R.DECIDE,
    f"POST {REQUEST}/retry": R.RETRY,
    "GET /models": R.READ,
    f"GET {MODEL}": R.READ,
    f"GET {MODEL}/jobs": R.READ,
    f"GET {MODEL}/estimate": R.READ,
    f"GET {MODEL}/versions/{{number}}": R.READ,
    f"GET {MODEL}/versions/{{number}}/roll-back": R.ROLL_BACK,
    f"POST {MODEL}/versions/{{number}}/roll-back": R.ROLL_BACK,
    "GET /webhooks": R.READ,
    f"GET {HOOK}": R.READ,
    "GET /webhooks/new": R.WEBHOOKS,
    "POST /webhooks/new": R.WEBHOOKS,
    **{f"POST {HOOK}/{deed}": R.WEBHOOKS for deed in ("ping", "enable", "disable", "delete", "rotate", "replay")},
    "GET /webhooks/deliveries/{delivery_id}": R.READ,
    "POST /webhooks/deliveries/{delivery_id}/replay": R.WEBHOOKS,
    "GET /keys": R.READ,
    "GET /keys/new": R.KEYS,
    "POST /keys/new": R.KEYS,
    "GET /keys/clients/{client_id}": R.READ,
    "POST /keys/clients/{client_id}": R.KEYS,
    "POST /keys/{key_id}/rotate": R.KEYS,
    "POST /keys/{key_id}/revoke": R.KEYS,
    "GET /log": R.READ,
    "POST /log/verify": R.READ,
    "GET /log/internal": R.AUDIT,
    "GET /log/entries/{index}": R.READ,
    "POST /log/entries/{index}/record": R.AUDIT,
    "GET /settings": R.READ,
    "GET /people": R.READ,
    "GET /people/new": R.PEOPLE,
    "POST /people/new": R.PEOPLE,
    **{
        f"POST /people/{{person_id}}/{deed}": R.PEOPLE
        for deed in ("roles", "disable", "enable", "invite-again", "end-sessions")
    },
}
FILLED = {"name": "toy", "number": "1", "index": "0", "kind": "receipt"}


def routes_of(router: Any) -> Iterator[str]:
    """Every route of the dashboard, as NEEDS writes it."""
    for route in router.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from routes_of(included)
        else:
            yield from (f"{method} {route.path.removeprefix('/admin')}" for method in route.methods - {"HEAD"})


ROUTES = sorted(routes_of(site.router))
POSTS = [route for route in ROUTES if route.startswith("POST")]
CLOSED = [route for route in ROUTES if NEEDS.get(route) != PUBLIC]


def call(http: httpx.Client, route: str, **headers: str) -> httpx.Response:
    """Ask for a route, about things that nobody has; a button is pressed with an empty form."""
    method, path = route.split(" ", 1)
    filled = re.sub(r"\{(\w+)\}", lambda found: FILLED.get(found[1]) or str(uuid4()), path)
    return http.request(method, f"/admin{filled}", headers=headers, **({"data": {}} if method == "POST" else {}))


@pytest.fixture(scope="module")
def house(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    home: Path = tmp_path_factory.mktemp("frame")
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, limit_failures="1000000/second") as found,
    ):
        yield found


@pytest.fixture(scope="module")
def guests(house: Installation) -> dict[Role, Guest]:
    return {role: enter(house, role) for role in Role}


@pytest.fixture(scope="module")
def stranger(house: Installation) -> Iterator[httpx.Client]:
    """A browser on a page of ours in which nobody has signed in."""
    with httpx.Client(base_url=f"http://127.0.0.1:{house.port}", timeout=30, verify=False) as client:
        client.headers["Sec-Fetch-Site"] = "same-origin"
        yield client


def test_every_route_has_a_line_in_the_table() -> None:
    assert sorted(set(ROUTES) - set(NEEDS)) == [], "say in NEEDS who may call these"
    assert sorted(set(NEEDS) - set(ROUTES)) == [], "these are no more"


def test_home_says_how_things_stand(house: Installation) -> None:
    page = enter(house, Role.VIEWER).get()
    assert page.status_code == 200
    assert "How things stand" in text_of(page)


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", CLOSED)
def test_a_right_admits_and_nothing_else_does(house: Installation, guests: dict[Role, Guest], route: str) -> None:
    need = NEEDS[route]
    any_of = need if isinstance(need, set) else {need}
    for role, guest in guests.items():
        fresh = enter(house, role) if route == "POST /sign-out" else guest
        answer = call(fresh.http, route)
        if need == SEAT or any_of & RIGHTS[role]:
            assert answer.status_code not in {401, 403, 405}, (role, text_of(answer))
            assert answer.status_code < 500, (role, text_of(answer))
        else:
            assert answer.status_code == 403, (role, text_of(answer))
            assert "none of your roles may" in text_of(answer).lower()


@pytest.mark.parametrize("route", CLOSED)
def test_nobody_is_led_to_the_sign_in(stranger: httpx.Client, route: str) -> None:
    answer = call(stranger, route)
    if route.startswith("POST"):
        assert (answer.status_code, "Sign in again" in text_of(answer)) == (401, True)
        assert "www-authenticate" not in answer.headers, "a browser would ask for a password by itself"
    else:
        place = answer.request.url.path
        wanted = f"?next={place}" if place != "/admin" else ""
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/admin/sign-in{wanted}")


@pytest.mark.parametrize("route", [route for route in ROUTES if NEEDS.get(route) == PUBLIC])
def test_the_sign_in_itself_is_for_everybody(stranger: httpx.Client, route: str) -> None:
    answer = call(stranger, route)
    assert answer.status_code < 500
    assert answer.status_code != 403
    assert "location" not in answer.headers


def test_a_part_of_a_page_takes_the_whole_page_to_the_sign_in(stranger: httpx.Client) -> None:
    current = "http://127.0.0.1/admin/requests?state=open"
    answer = stranger.get("/admin/models/toy/jobs", headers={"HX-Request": "true", "HX-Current-URL": current})
    assert (answer.status_code, answer.text) == (200, "")
    assert answer.headers["HX-Redirect"] == "/admin/sign-in?next=/admin/requests%3Fstate%3Dopen"


@pytest.mark.parametrize("current", ["http://[", "//[", "x"])
def test_an_address_that_is_none_leads_to_the_sign_in_alone(stranger: httpx.Client, current: str) -> None:
    answer = stranger.get("/admin/models/toy/jobs", headers={"HX-Request": "true", "HX-Current-URL": current})
    assert (answer.status_code, answer.text) == (200, "")
    assert answer.headers["HX-Redirect"].startswith("/admin/sign-in")


def test_who_signs_in_comes_back_to_where_they_wanted(stranger: httpx.Client) -> None:
    led = stranger.get("/admin/requests?state=open&q=a%20b").headers["Location"]
    form = stranger.get(led)
    assert 'name="next" value="/admin/requests?state=open&amp;q=a%20b"' in form.text


ELSEWHERE = [
    "//evil.example",
    "https://evil.example",
    "https:/admin",
    "\\\\evil.example",
    "/\\evil.example",
    "/admin/../x",
    "/admin/..",
    "/admin/%2e%2e/x",
    "/admin/%2E./x",
    "/admin/\t/evil.example",
    "/admin/\n//evil.example",
    "/admin\\..\\x",
    "/admin//evil.example",
    "/adminx",
    "/admin@evil.example",
    "/admin.evil.example",
    "admin",
    "javascript:alert(1)",
    "/v1/models",
    "/admin\u2025",
]


@pytest.mark.parametrize("wanted", ELSEWHERE)
def test_a_link_to_the_sign_in_leads_nowhere_else(stranger: httpx.Client, wanted: str) -> None:
    form = stranger.get("/admin/sign-in", params={"next": wanted})
    assert 'name="next" value="/admin"' in form.text


# --- other people's sites --------------------------------------------------------------------------------------------

OURS, FOREIGN = "ours", "https://evil.example"
SITES = ("same-origin", "same-site", "cross-site", "none", None)
ORIGINS = (OURS, FOREIGN, "null", "http://[", None)


def comes_through(answer: httpx.Response) -> bool:
    return not (answer.status_code == 403 and "this came from another site" in text_of(answer).lower())


@pytest.mark.parametrize("route", [route for route in POSTS if route != "POST /csp-reports"])
def test_only_a_page_of_ours_presses_a_button(house: Installation, route: str) -> None:
    """Sec-Fetch-Site where a browser sends it, else the Origin, which is then ours or nobody's."""
    ours = f"http://127.0.0.1:{house.port}"
    with httpx.Client(base_url=ours, timeout=30, verify=False) as http:
        for where, origin in product(SITES, ORIGINS):
            said = {"Sec-Fetch-Site": where, "Origin": ours if origin == OURS else origin}
            answer = call(http, route, **{name: value for name, value in said.items() if value is not None})
            allowed = where == "same-origin" or (where is None and origin == OURS)
            assert comes_through(answer) is allowed, (where, origin, answer.status_code)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_no_other_way_to_change_something_is_open_to_them(stranger: httpx.Client, method: str) -> None:
    assert not comes_through(stranger.request(method, "/admin/sign-out", headers={"Sec-Fetch-Site": "cross-site"}))
    assert stranger.request(method, "/admin/sign-out").status_code == 405


def test_a_post_from_elsewhere_does_nothing_to_who_has_signed_in(house: Installation) -> None:
    guest = enter(house, Role.OFFICER)
    for said in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert guest.http.post("/admin/sign-out", headers=said).status_code == 403
    del guest.http.headers["Sec-Fetch-Site"]
    for said in ({}, {"Origin": FOREIGN}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{house.port + 1}"}):
        assert guest.http.post("/admin/sign-out", headers=said).status_code == 403
    assert guest.get().status_code == 200


def test_asking_changes_nothing_so_links_from_elsewhere_open_pages(house: Installation) -> None:
    guest = enter(house, Role.VIEWER)
    assert guest.get("", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_a_browser_reports_what_it_kept_from_running_and_nothing_of_it_is_repeated(house: Installation) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{house.port}", verify=False) as http:
        told = http.post("/admin/csp-reports", content=b'{"csp-report": {"blocked-uri": "https://shouted.example"}}')
    assert told.status_code == 204
    log = house.log.read_text()
    assert "content security policy violated" in log
    assert "shouted" not in log


# --- what every answer carries ---------------------------------------------------------------------------------------

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
    "report-uri": "/admin/csp-reports",
}
CARRIED = {
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_dressed(answer: httpx.Response) -> bool:
    [policy] = answer.headers.get_list("content-security-policy")
    said = dict(part.split(" ", 1) for part in policy.split("; "))
    carried = {name: answer.headers.get_list(name) for name in CARRIED}
    assert said == POLICY
    assert carried == {name: [value] for name, value in CARRIED.items()}
    assert "x-request-id" in answer.headers
    assert answer.headers["Cache-Control"] in {"no-store", "public, no-cache"}
    return True


def is_page(answer: httpx.Response, status: int, title: str) -> None:
    assert answer.status_code == status, text_of(answer)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert f"<h1>{title}</h1>" in answer.text
    assert is_dressed(answer)


def test_every_route_is_dressed_whoever_asks(
    stranger: httpx.Client, guests: dict[Role, Guest], house: Installation
) -> None:
    for route in ROUTES:
        askers = [stranger, enter(house, Role.ADMIN).http if route == "POST /sign-out" else guests[Role.ADMIN].http]
        assert all(is_dressed(call(http, route)) for http in askers), route


def test_what_is_about_somebody_is_kept_by_no_browser(guests: dict[Role, Guest]) -> None:
    for path in ("", "/requests", "/people", "/account", "/log/internal"):
        assert guests[Role.AUDITOR].get(path).headers["Cache-Control"] == "no-store"


def test_pages_hold_no_script_and_no_style_of_their_own(guests: dict[Role, Guest], stranger: httpx.Client) -> None:
    opened = [guests[Role.ADMIN].get(path) for path in ("", "/requests", "/models", "/people", "/log", "/settings")]
    for page in [*opened, stranger.get("/admin/sign-in"), stranger.get("/admin/set-up")]:
        assert page.status_code == 200
        assert not re.search(
            r"(?i)<style|\sstyle=|\son[a-z]+=|javascript:|hx-on|<script(?! src=\"/admin/static/)", page.text
        )
        assert not re.search(r"(?i)(src|href|action)=\"(https?:)?//", page.text)


def test_errors_are_pages_that_say_what_to_do(guests: dict[Role, Guest], stranger: httpx.Client) -> None:
    viewer, officer = guests[Role.VIEWER], guests[Role.OFFICER]
    is_page(viewer.get("/keys/new"), 403, "This is not yours to do")
    is_page(viewer.get("/nowhere"), 404, "There is no such page")
    is_page(viewer.get(f"/requests/{uuid4()}"), 404, "There is no such page")
    is_page(viewer.http.put("/admin/sign-out"), 405, "That did not work")
    assert viewer.http.put("/admin/sign-out").headers["Allow"] == "POST"
    is_page(viewer.get("?days=7"), 422, "Something in the form is wrong")
    is_page(officer.post("/requests/new", user_id="x" * 70_000), 413, "That is too much at once")
    is_page(stranger.post("/admin/sign-out"), 401, "Sign in again")
    is_page(stranger.post("/admin/sign-out", headers={"Sec-Fetch-Site": "none"}), 403, "This is not yours to do")


@contextmanager
def without_a_table(house: Installation, name: str) -> Iterator[None]:
    """The database has lost a table, as after a restore that went wrong."""
    with transaction(house.engine) as tx:
        tx.execute(text(f"ALTER TABLE {name} RENAME TO gone"))
    try:
        yield
    finally:
        with transaction(house.engine) as tx:
            tx.execute(text(f"ALTER TABLE gone RENAME TO {name}"))


def test_a_bug_of_ours_is_a_page_without_a_trace(house: Installation, guests: dict[Role, Guest]) -> None:
    with without_a_table(house, "browser_sessions"):
        answer = guests[Role.VIEWER].get()
        is_page(answer, 500, "That did not work")
    assert not re.search(r"(?i)traceback|psycopg|sqlalchemy|browser_sessions|line \d", answer.text)
    assert guests[Role.VIEWER].get().status_code == 200


def test_head_is_answered_without_a_body(stranger: httpx.Client, guests: dict[Role, Guest]) -> None:
    for answer in (stranger.head("/admin/nowhere"), guests[Role.VIEWER].http.head("/admin/nowhere")):
        assert answer.content == b""
        assert is_dressed(answer)


def test_over_tls_browsers_are_told_to_stay_there(postgres_server: str, template_database: str, tmp_path: Path) -> None:
    """Behind a proxy that ends TLS, whose word on a caller's address is taken; and after too many wrong passwords."""

    changes = {"trusted_proxies": (ip_network("127.0.0.0/8"),), "limit_failures": "5/minute"}
    with (
        new_database(postgres_server, template_database) as url,
        installation(tmp_path, url, "", processes=("api",), model=False, **changes) as house,
    ):
        guest = enter(house, Role.VIEWER)
        tls = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
        page = guest.get("", headers=tls)
        assert page.headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"
        assert "was reached without TLS" not in text_of(guest.get("/sign-in", headers=tls))
        fresh = enter(house, Role.VIEWER)
        statuses = [Browser(house).get("/admin", **tls).status_code for _ in range(8)]
        assert statuses == [303] * 5 + [429] * 3
        told = Browser(house).get("/admin/sign-in", **tls)
        is_page(told, 429, "Slow down")
        assert 1 <= int(told.headers["Retry-After"]) <= 60
        assert guest.get("", headers=tls).status_code == 200, "who was in goes on"
        assert fresh.get("", headers=tls).status_code == 200, "a good session that was not seen before gets its turn"
        assert fresh.get("/requests", headers=tls).status_code == 200
        elsewhere = {**tls, "X-Forwarded-For": "203.0.113.8"}
        assert Browser(house).get("/admin/sign-in", **elsewhere).status_code == 200, "another address is not blamed"


# --- nonsense ---------------------------------------------------------------------------------------------------------

NONSENSE = [
    *(
        "",
        "\0",
        "a\0b",
        "-1",
        "NaN",
        "1e999",
        "9" * 20,
        "\u0663",
        "x" * 2000,
        "\u202e<script>\ufffe",
        "%00",
        "\r\nX: y",
    ),
    *("0001-01-01", "9999-12-31", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", str(uuid4())),
    *("t9999999999999999s1", "t1s999999999999999999", "i999999999999999999", "toy"),
]
ALONE = ("\0", "9" * 20, "9999-12-31")
"""What the only field that was filled in holds; with all words that would take minutes."""
CODECS = ("utf-16", "utf-7", "unicode_escape", "undefined", "idna", "hex")


def fields_of(router: Any) -> dict[str, set[str]]:
    """The names that each route reads from an address or a form."""
    found: dict[str, set[str]] = {}
    for route in router.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            found |= fields_of(included)
            continue
        names = set(_names(route.dependant))
        found |= {f"{method} {route.path.removeprefix('/admin')}": names for method in route.methods - {"HEAD"}}
    return found


def _names(dependant: Any) -> Iterator[str]:
    for field in (*dependant.query_params, *dependant.body_params):
        shape = field.field_info.annotation
        inner = getattr(shape, "model_fields", None)
        yield from [more.alias or name for name, more in inner.items()] if inner else [field.alias]
    for nested in dependant.dependencies:
        yield from _names(nested)


def nonsense(route: str, said: str) -> Iterator[dict[str, Any]]:
    """Calls with one word in every place of a route: in its path, in each field alone, and in all of them."""
    method, path = route.split(" ", 1)
    filled = re.sub(r"\{(\w+)\}", lambda found: FILLED.get(found[1]) or str(uuid4()), path)
    if "{" in path:
        yield {"method": method, "url": "/admin" + re.sub(r"\{\w+\}", quote(said, safe=""), path)}
    names = FIELDS[route] | {"done", "user_id"}
    for chosen in ({name} for name in names) if said in ALONE else ():
        where = "params" if method == "GET" else "data"
        yield {"method": method, "url": f"/admin{filled}", where: dict.fromkeys(chosen, said)}
    yield {"method": method, "url": f"/admin{filled}", "params": dict.fromkeys(names, said)}
    if method == "POST":
        yield {"method": method, "url": f"/admin{filled}", "data": dict.fromkeys(names, said)}


FIELDS = fields_of(site.router)


@pytest.mark.parametrize("route", [route for route in ROUTES if not route.startswith("POST /sign-")])
def test_nonsense_is_refused_and_surprises_nobody(house: Installation, route: str) -> None:
    """With every right: what is refused here is refused for what it says."""
    guest = enter(house, *Role)
    for said in NONSENSE:
        for wanted in nonsense(route, said):
            answer = guest.http.request(**wanted)
            assert answer.status_code < 500, (wanted, text_of(answer))
            assert is_dressed(answer)
            assert "<script>\ufffe" not in answer.text


@pytest.mark.parametrize("route", POSTS)
def test_a_form_in_an_alphabet_of_nobodys_is_refused(house: Installation, route: str) -> None:
    guest = enter(house, *Role)
    path = re.sub(r"\{(\w+)\}", lambda found: FILLED.get(found[1]) or str(uuid4()), route.removeprefix("POST "))
    part = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n\\ud800 +2AA-\r\n'
    body = "".join(part.format(name) for name in FIELDS[route] | {"user_id"}) + "--x--\r\n"
    for codec in CODECS:
        kind = f"multipart/form-data; boundary=x; charset={codec}"
        answer = guest.http.post(f"/admin{path}", content=body.encode(), headers={"Content-Type": kind})
        assert answer.status_code < 500, (codec, text_of(answer))


# --- keys and cookies ------------------------------------------------------------------------------------------------


def api_routes() -> Iterable[str]:
    return ("/v1/models", "/v1/erasure-requests", "/v1/webhook-endpoints", "/metrics", "/v1/webhook-deliveries")


@pytest.mark.parametrize("path", api_routes())
def test_a_session_is_worth_nothing_at_the_api(house: Installation, guests: dict[Role, Guest], path: str) -> None:
    guest = guests[Role.ADMIN]
    assert guest.http.get(path).status_code == 401
    for shown in (f"Bearer {guest.cookie}", f"Basic {guest.cookie}", guest.cookie):
        assert guest.http.get(path, headers={"Authorization": shown}).status_code == 401
    with house.client() as client:
        assert client.get(path).status_code == 200, "a key opens it"


def test_a_key_is_worth_nothing_at_the_dashboard(house: Installation) -> None:
    with house.client() as client:
        client.headers["Sec-Fetch-Site"] = "same-origin"
        assert client.get("/v1/models").status_code == 200
        for cookie in ("", f"{COOKIE}={house.key}", f"{COOKIE}=Bearer {house.key}", f"{COOKIE}="):
            client.headers["Cookie"] = cookie
            assert client.get("/admin").status_code == 303
            assert client.post("/admin/people/new", data={"login": "thief@example.org"}).status_code == 401
        assert client.get("/v1/models").status_code == 200, "and is as good as before"


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, "é", "%00", "x" * 9000, '"quoted"', "a=b; b=c"])
def test_a_cookie_of_nobodys_opens_nothing(stranger: httpx.Client, cookie: str) -> None:
    shown = f"{COOKIE}={cookie}".encode("latin-1")
    assert stranger.get("/admin", headers={b"Cookie": shown}).status_code == 303


def test_neither_cookies_nor_places_of_people_stand_in_the_log(house: Installation, guests: dict[Role, Guest]) -> None:
    guests[Role.VIEWER].get("/requests?q=shouted-reference")
    log = house.log.read_text()
    assert "/admin/requests" in log
    assert "shouted-reference" not in log
    assert not [guest.cookie for guest in guests.values() if guest.cookie in log]
