"""The wire itself: heads and bodies without end, odd paths and methods, and what every answer carries."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from statistics import median
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from uvicorn import Config, Server

from app import keymaking
from app.api import wire
from app.api.auth import Scope
from app.api.bodies import ReadBody
from app.api.call_log import CallLog
from app.api.caller_address import Peers
from app.domain.identifiers import new_api_key
from app.storage.sessions import transaction
from tests.house import Installation, installation
from tests.services import new_database

pytestmark = pytest.mark.slow
PATH = "/v1/erasure-requests"
NOBODYS = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"
"""An id that no request has."""
EACH_ITS_OWN = {"date", "x-request-id"}


@pytest.fixture(scope="module")
def house(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    home: Path = tmp_path_factory.mktemp("surface")
    more = {"limit_failures": "1000000/second", "trusted_proxies": (ip_network("127.0.0.1/32"),)}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, **more) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def http(house: Installation) -> Iterator[httpx.Client]:
    with house.client() as client:
        yield client


def raw(house: Installation, *parts: bytes, pause_seconds: float = 0.0, enough: float = math.inf) -> bytes:
    """What the server says to these bytes until it closes the connection, is silent for two seconds or said enough."""
    said = b""
    with socket.create_connection(("127.0.0.1", house.port)) as connection:
        connection.settimeout(2)
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_seconds)
            while len(said) < enough and (part := connection.recv(65536)):
                said += part
        except OSError:
            pass
    return said


def head(house: Installation, *lines: str, method: str = "POST", path: str = PATH) -> bytes:
    usual = ("Host: x", f"Authorization: Bearer {house.key}", "Content-Type: application/json", "Connection: close")
    return "\r\n".join([f"{method} {path} HTTP/1.1", *usual, *lines, "", ""]).encode()


def chunks(body: bytes, size: int) -> list[bytes]:
    cut = [body[i : i + size] for i in range(0, len(body), size)]
    return [*(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in cut), b"0\r\n\r\n"]


def requests_now(house: Installation) -> int:
    with transaction(house.engine) as tx:
        return tx.scalar(text("SELECT count(*) FROM erasure_requests")) or 0


def test_a_body_in_chunks_without_a_length_is_read_up_to_the_limit(house: Installation) -> None:
    good = b'{"user_id": "%s"}' % uuid4().hex.encode()
    assert b" 202 " in raw(house, head(house, "Transfer-Encoding: chunked"), *chunks(good, 5)).split(b"\r\n")[0]
    large = b'{"user_id": "' + b"x" * 70_000 + b'"}'
    assert b" 413 " in raw(house, head(house, "Transfer-Encoding: chunked"), *chunks(large, 8000)).split(b"\r\n")[0]


def test_a_body_one_byte_too_large_is_refused_and_one_that_fits_is_read(http: httpx.Client) -> None:
    def body(size: int) -> bytes:
        return b'{"user_id": "a"' + b" " * (size - 16) + b"}"

    kind = {"Content-Type": "application/json"}
    assert http.post(PATH, content=body(64 * 1024), headers=kind).status_code in {200, 202}
    refused = http.post(PATH, content=body(64 * 1024 + 1), headers=kind)
    assert refused.status_code == 413
    assert refused.headers["Content-Type"] == "application/problem+json"


def test_a_caller_who_leaves_in_the_middle_has_asked_for_nothing(house: Installation) -> None:
    before = requests_now(house)
    whole = b'{"user_id": "%s"}' % uuid4().hex.encode()
    with socket.create_connection(("127.0.0.1", house.port)) as connection:
        connection.sendall(head(house, f"Content-Length: {len(whole) + 10}") + whole)
        time.sleep(0.3)
    time.sleep(0.5)
    assert requests_now(house) == before


def test_a_header_that_never_ends_closes_the_connection_and_costs_others_nothing(
    house: Installation, http: httpx.Client
) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", house.port)) as connection:
        connection.settimeout(5)
        with pytest.raises(OSError):  # noqa: PT011 - broken pipe or reset, as the kernel likes
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Much: " + b"a" * 200_000_000)
    assert time.monotonic() - began < 5
    assert http.get("/health/live").status_code == 200


def test_headers_together_have_a_limit(house: Installation) -> None:
    lines = [f"X-{place}: {'v' * 1000}" for place in range(600)]
    said = raw(house, *(f"{line}\r\n".encode() for line in [*head(house).decode().split("\r\n")[:-2], *lines]))
    assert said == b"" or b" 400 " in said.split(b"\r\n")[0]
    assert b" 202 " not in said


def test_a_request_that_comes_too_slowly_is_dropped(house: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock itself, without waiting 30 s for it: the same class in a loop of this process."""
    monkeypatch.setattr(wire, "REQUEST_SECONDS", 0.5)

    async def app(scope: object, receive: object, send: object) -> None:
        message = await receive()  # type: ignore[operator]
        while message.get("more_body"):
            message = await receive()  # type: ignore[operator]
        await asyncio.sleep(1)  # an answer may take longer than a request
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"ok"})  # type: ignore[operator]

    async def told(port: int, *parts: bytes) -> tuple[bytes, float]:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.05)
        said = await asyncio.wait_for(reader.read(12), 5)
        writer.close()
        return said, time.monotonic() - began

    async def story() -> None:
        config = Config(app, port=0, http=wire.Connection, ws="none", lifespan="off", log_level="critical")
        server = Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        slow = [
            (b"GET / HTTP/1.1\r\nHost: ",),
            (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", b"a"),
            (),
        ]
        for parts in slow:
            said, seconds = await told(port, *parts)
            assert said == b"HTTP/1.1 400"
            assert 0.4 < seconds < 1
        said, seconds = await told(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", b"a", b"b")
        assert said == b"HTTP/1.1 200"
        assert seconds > 1
        server.should_exit = True
        await serving

    asyncio.run(story())


@pytest.mark.parametrize(
    "path",
    [
        f"{PATH}/%2e%2e/models",
        f"{PATH}/..%2fmodels",
        f"{PATH}%2f{NOBODYS}",
        f"{PATH}/{NOBODYS}%2fcertificate",
        f"{PATH}/{NOBODYS}:",
        f"{PATH}/{NOBODYS}:cancel:cancel",
        f"{PATH}/{NOBODYS}:Cancel",
        f"{PATH}/{NOBODYS}：cancel",
        f"{PATH}:",
        f"{PATH}//{NOBODYS}",
        "//v1/models",
        "/v1/models/..",
        "/V1/models",
        "/v1/models/ranker%00",
        "/v1/models/%ff%fe",
        "/log/tile/../../v1/models",
        "/%76%31/erasure-requests/..;/models",
    ],
)
def test_an_odd_spelling_of_a_path_is_nobodys_way_in(house: Installation, http: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        said = raw(house, head(house, "Content-Length: 2", method=method, path=path) + b"{}")
        status = int(said.split()[1])
        assert status in {400, 404, 405, 422}, (method, status)
        assert b"application/problem+json" in said or status == 400


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/webhook-endpoints", f"{PATH}/{NOBODYS}:cancel"])
def test_other_methods_are_told_which_there_are(http: httpx.Client, path: str) -> None:
    shown = http.options(path)
    assert shown.status_code == 405
    assert shown.headers["Allow"]
    for method in ("PUT", "TRACE", "PROPFIND"):
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, shown.headers["Allow"])
    assert http.request("OPTIONS", PATH).headers["Allow"] == "GET, POST"


def test_no_page_elsewhere_may_read_us_through_a_visitors_browser(http: httpx.Client) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (http.options(PATH, headers=asked), http.get("/v1/models", headers=asked)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", PATH, 200),
        ("GET", f"{PATH}/{NOBODYS}", 404),
        ("POST", PATH, 422),
        ("PUT", PATH, 405),
        ("GET", "/nowhere", 404),
        ("GET", "/health/live", 200),
    ],
)
def test_every_answer_says_how_to_handle_it(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Server" not in answer.headers
    assert "Strict-Transport-Security" not in answer.headers


def test_a_bug_of_ours_carries_the_same_headers(house: Installation, http: httpx.Client) -> None:
    with transaction(house.engine) as tx:
        tx.execute(text("ALTER TABLE models RENAME TO models_away"))
    try:
        answer = http.get("/v1/models")
    finally:
        with transaction(house.engine) as tx:
            tx.execute(text("ALTER TABLE models_away RENAME TO models"))
    assert answer.status_code == 500
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def test_browsers_are_told_to_stay_on_https_only_where_they_came_by_it(http: httpx.Client) -> None:
    said = http.get("/v1/models", headers={"X-Forwarded-Proto": "https"}).headers["Strict-Transport-Security"]
    assert said.startswith("max-age=31536000")
    assert "Strict-Transport-Security" not in http.get("/v1/models", headers={"X-Forwarded-Proto": "http"}).headers


def test_keys_that_are_unknown_revoked_or_expired_are_answered_alike_in_words_and_time(
    house: Installation, http: httpx.Client
) -> None:
    with transaction(house.engine) as tx:
        past = datetime.now(UTC) - timedelta(days=1)
        expired = keymaking.create(tx, name="expired", scopes=list(Scope), expires_at=past)[1]
        row, revoked = keymaking.create(tx, name="revoked", scopes=list(Scope))
        row.revoked_at = past
    unknown, malformed = new_api_key(uuid4().bytes * 2), "exk_" + "0" * 49
    shown = {"unknown": unknown, "revoked": revoked, "expired": expired, "malformed": malformed}
    seen: dict[str, set[tuple[int, bytes, tuple[tuple[str, str], ...]]]] = {name: set() for name in shown}
    took: dict[str, list[float]] = {name: [] for name in shown}
    for _ in range(150):
        for name, key in shown.items():
            began = time.perf_counter()
            answer = http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            took[name].append(time.perf_counter() - began)
            headers = tuple(sorted((k, v) for k, v in answer.headers.items() if k not in EACH_ITS_OWN))
            seen[name].add((answer.status_code, answer.content, headers))
    assert len(set().union(*seen.values())) == 1
    # A malformed key is refused by its own checksum, which anybody can compute: its time may differ.
    middle = {name: median(took[name]) for name in ("unknown", "revoked", "expired")}
    assert max(middle.values()) < 1.25 * min(middle.values()), middle


BODIES = {
    PATH: {"user_id": "somebody"},
    f"{PATH}:approve": {"ids": [NOBODYS]},
    f"{PATH}/{NOBODYS}:refuse": {"ground": "art17_3_e_legal_claims"},
    "/v1/webhook-endpoints": {"url": "https://portal.example/hook"},
}
SMUGGLED = [
    "id",
    "client_id",
    "status",
    "scopes",
    "origin",
    "received_at",
    "deadline",
    "every_client",
    "approvals_needed",
]


@pytest.mark.parametrize("path", BODIES)
def test_a_field_that_is_not_the_callers_to_set_is_refused(http: httpx.Client, path: str) -> None:
    for name in set(SMUGGLED) - ({"every_client"} if path == "/v1/webhook-endpoints" else set()):
        answer = http.post(path, json={**BODIES[path], name: "completed"})
        assert answer.status_code == 422, name
        assert "there is no such field; remove it" in answer.text
        assert f'"field":"{name}"' not in answer.text, "an unknown name is the caller's own text"


BATCH = f"{PATH}:batch"
LARGE_ROUTES = (BATCH, "/v1/suppressions:check", "/v1/suppressions:tokens")


@pytest.mark.parametrize("path", LARGE_ROUTES)
def test_a_stranger_is_refused_before_its_large_body(house: Installation, path: str) -> None:
    def said(authorization: str, *parts: bytes) -> bytes:
        lines = (f"POST {path} HTTP/1.1", "Host: x", authorization, "Content-Length: 3000000", "", "")
        return raw(house, "\r\n".join(lines).encode(), *parts, enough=12)[:12]

    guess = f"Authorization: Bearer {new_api_key(b'g' * 32)}"
    assert said("X-Nobody: 1") == said("Authorization: Bearer exk_nonsense") == b"HTTP/1.1 401"
    assert said(guess, b"x" * 60_000) == b"", "so much is read of everybody, and then we wait"
    assert said(guess, b"x" * 70_000) == b"HTTP/1.1 401"
    with transaction(house.engine) as tx:
        _, other = keymaking.create(tx, name=uuid4().hex, scopes=[Scope.MODELS_READ])
    assert said(f"Authorization: Bearer {other}", b"x" * 70_000) == b"HTTP/1.1 403"


@pytest.mark.parametrize("item", [b"[[]],", b'{"user_id":"a"},' * 10], ids=["lists", "objects"])
def test_a_large_body_holds_up_nobody(house: Installation, http: httpx.Client, item: bytes) -> None:
    body = b'{"items": [' + item * (8_000_000 // len(item)) + b"1]}"
    waits = []

    def send() -> None:
        http.post(BATCH, content=body, headers={"Content-Type": "application/json"}, timeout=60)

    with ThreadPoolExecutor(1) as pool, httpx.Client(timeout=60) as other:
        sent = pool.submit(send)
        while not sent.done():
            began = time.monotonic()
            other.get(f"http://127.0.0.1:{house.port}/livez")
            waits.append(time.monotonic() - began)
            time.sleep(0.02)
        sent.result()
    assert max(waits) < 1, waits


def test_large_bodies_together_have_a_limit(house: Installation) -> None:
    def begun() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", house.port))
        connection.settimeout(0.3)
        with suppress(OSError):
            connection.sendall(head(house, f"Content-Length: {8 << 20}", path=BATCH) + b" " * ((8 << 20) - 10))
        return connection

    def said(connection: socket.socket) -> bytes:
        with suppress(OSError):
            return connection.recv(2000)
        return b""

    held = [begun() for _ in range(10)]
    try:
        answers = [said(connection) for connection in held]
    finally:
        for connection in held:
            connection.close()
    refused = [answer for answer in answers if answer]
    assert len(refused) == 2
    assert all(a.startswith(b"HTTP/1.1 503") and b"retry-after: 2" in a.lower() for a in refused)
    time.sleep(0.3)
    assert said(begun()) == b"", "who left holds nothing"


def test_a_redirect_never_sends_a_key_elsewhere(house: Installation) -> None:
    said = raw(house, head(house, method="GET", path=f"{PATH}/"))
    assert b" 404 " in said.split(b"\r\n")[0] or b" 405 " in said.split(b"\r\n")[0]
    assert b"location:" not in said.lower()


@pytest.mark.parametrize("until", ["9999-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01", "2200-01-02T00:00:00Z"])
def test_a_moment_at_the_end_of_the_calendar_is_refused(house: Installation, until: str) -> None:
    with transaction(house.engine) as tx:
        _, key = keymaking.create(tx, name=uuid4().hex, scopes=[Scope.REQUESTS_WRITE, Scope.REQUESTS_DECIDE])
    with httpx.Client(base_url=f"http://127.0.0.1:{house.port}", headers={"Authorization": f"Bearer {key}"}) as officer:
        made = officer.post(PATH, json={"user_id": uuid4().hex}).json()["id"]
        answer = officer.post(f"{PATH}/{made}:hold", json={"ground": "legal_hold", "until": until})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"] if error["field"] == "until"] == ["until"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health/live", "/health/ready"])
def test_health_may_be_asked_with_head(http: httpx.Client, path: str) -> None:
    assert http.head(path).status_code == http.get(path).status_code == 200


def test_a_caller_that_leaves_is_no_failure_of_ours() -> None:
    codes: list[int] = []

    class Counted(CallLog):
        def _tell(self, scope: object, code: int, call: str, seconds: float) -> None:
            codes.append(code)

    async def leave() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def nobody(*_: object) -> None:
        raise AssertionError("nobody is there to be answered")

    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
    asyncio.run(Counted(ReadBody(nobody))(scope, leave, nobody))  # type: ignore[arg-type]
    assert codes == [499]


def test_what_a_stranger_wrote_at_length_is_not_kept() -> None:
    peers = Peers((ip_network("127.0.0.1/32"),), "x-forwarded-for")
    for value in (b"192.0.2.1", b"x" * 60_000 + b", 192.0.2.1"):
        scope = {"client": ("127.0.0.1", 1), "headers": [(b"x-forwarded-for", value)]}
        assert peers.address_of(scope) == "192.0.2.1"
    assert peers._judged.cache_info().currsize == 1


async def _served(app: object, **more: object) -> tuple[Server, asyncio.Task[None], int]:
    server = Server(
        Config(app, port=0, http=wire.Connection, ws="none", lifespan="off", log_level="critical", **more)  # type: ignore[arg-type]
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.05)
    return server, serving, server.servers[0].sockets[0].getsockname()[1]


def test_beyond_so_many_connections_only_life_is_answered() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    async def said(port: int, path: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        found = await asyncio.wait_for(reader.read(12), 5)
        writer.close()
        return found

    async def story() -> None:
        server, serving, port = await _served(app, limit_concurrency=3)
        assert await said(port, b"/v1/models") == b"HTTP/1.1 200"
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await said(port, b"/v1/models") == b"HTTP/1.1 503"
        assert await said(port, b"/livez") == b"HTTP/1.1 200"
        for _, writer in idle:
            writer.close()
        server.should_exit = True
        await serving

    asyncio.run(story())


def test_who_reads_nothing_of_its_answer_is_let_go_and_who_reads_slowly_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "STALLED_SECONDS", 0.5)
    ended: list[float] = []

    async def app(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
        began = time.monotonic()
        for _ in range(8):
            await send({"type": "http.response.body", "body": b"x" * (2 << 20), "more_body": True})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]
        ended.append(time.monotonic() - began)

    async def story() -> None:
        server, serving, port = await _served(app)
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        silent.transport.pause_reading()  # type: ignore[attr-defined]
        silent.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(2)
        assert len(ended) == 1
        reader, slow = await asyncio.open_connection("127.0.0.1", port)
        slow.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        size = 0
        while part := await reader.read(1 << 20):
            size += len(part)
            await asyncio.sleep(0.02)
        assert size > 16 << 20
        silent.close()
        slow.close()
        server.should_exit = True
        await serving

    asyncio.run(story())
