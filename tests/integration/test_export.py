"""Exports: all that a caller sees, as it stood at one moment, safe to open in a sheet."""

import csv
import gc
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from uvicorn import Config, Server

from app.api import exports, wire
from app.main import create_app
from app.storage.sessions import transaction
from tests.faults import wait_until
from tests.house import Installation

pytestmark = pytest.mark.slow
PATH = "/v1/erasure-requests"
EXPORT = f"{PATH}:export"


def demands(house: Installation, count: int, *, key: str = "", **more: str) -> list[str]:
    with house.client() as client:
        client.headers["Authorization"] = f"Bearer {key or house.key}"
        items = [{"user_id": f"exported-{uuid4()}", **more} for _ in range(count)]
        told = client.post(f"{PATH}:batch", json={"items": items}).json()
    return [item["id"] for item in told["items"]]


def test_both_formats_say_what_the_list_says(front_door: Installation) -> None:
    made = set(demands(front_door, 3, reference="same"))
    with front_door.client() as client:
        listed = client.get(PATH, params={"reference": "same"}).json()["items"]
        rows = client.get(EXPORT, params={"format": "ndjson", "reference": "same"})
        sheet = client.get(EXPORT, params={"format": "csv", "reference": "same"})
    assert [json.loads(line) for line in rows.text.splitlines()] == listed
    assert rows.headers["Content-Type"].startswith("application/x-ndjson")
    table = list(csv.DictReader(io.StringIO(sheet.text, newline="")))
    assert [row["id"] for row in table] == [one["id"] for one in listed]
    assert {row["id"] for row in table} == made
    assert [row["deadline"] for row in table] == [one["deadline"] for one in listed]
    assert "exported-" not in rows.text + sheet.text


def test_an_export_longer_than_a_page_has_everything_once(front_door: Installation) -> None:
    made = demands(front_door, 1201, reference="many")
    with front_door.client() as client:
        answer = client.get(EXPORT, params={"format": "ndjson", "reference": "many"})
    assert sorted(json.loads(line)["id"] for line in answer.text.splitlines()) == sorted(made)


def test_it_is_one_moment_however_long_it_takes(front_door: Installation) -> None:
    made = demands(front_door, 1600, reference="moment")
    wanted = exports.Wanted(seen_by=None, status=None, reference="moment")
    with transaction(front_door.engine) as tx:
        [now] = tx.execute(text("SELECT now()")).one()
    assert exports._AT_ONCE.acquire(timeout=1)
    pages = exports._pages(front_door.engine, now, wanted)
    seen = [one.id for one in next(pages)]
    with front_door.client() as client:
        assert client.post(f"{PATH}/{made[0]}:cancel").status_code == 200
    demands(front_door, 5, reference="moment")
    rest = [one for page in pages for one in page]
    assert sorted(map(str, [*seen, *(one.id for one in rest)])) == sorted(made)
    assert {one.status for one in rest} == {"received"}


def test_what_would_run_in_a_sheet_is_only_shown(front_door: Installation) -> None:
    for formula in ("=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("x","y")'):
        demands(front_door, 1, reference=formula)
        with front_door.client() as client:
            answer = client.get(EXPORT, params={"format": "csv", "reference": formula})
        [row] = csv.DictReader(io.StringIO(answer.text, newline=""))
        assert row["reference"] == f"'{formula}"


@pytest.mark.parametrize("separator", [";", "|"])
def test_nor_does_it_run_where_a_sheet_separates_otherwise(front_door: Installation, separator: str) -> None:
    for formula in ("=1+1", " -1", '"=1+1"', '"" @SUM(A1)'):
        reference = f"T-1{separator}{formula}"
        demands(front_door, 1, reference=reference)
        with front_door.client() as client:
            answer = client.get(EXPORT, params={"format": "csv", "reference": reference})
        assert all(line.startswith('"') and line.endswith('"') for line in answer.text.splitlines())
        cells = [cell for row in csv.reader(io.StringIO(answer.text, newline=""), delimiter=separator) for cell in row]
        assert not [cell for cell in cells if cell.strip(' "').startswith(("=", "+", "-", "@"))], answer.text
        [row] = csv.DictReader(io.StringIO(answer.text, newline=""))
        assert row["reference"] == f"T-1{separator}'{formula}"


def test_a_client_exports_its_own_and_an_officer_all(front_door: Installation) -> None:
    made = demands(front_door, 2, reference="whose")
    url, asked = f"http://127.0.0.1:{front_door.port}{EXPORT}", {"format": "ndjson", "reference": "whose"}

    def seen_by(scope: str) -> list[str]:
        key = front_door.cli("keys", "create", uuid4().hex, "--scope", scope).stdout.strip()
        answer = httpx.get(url, params=asked, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return [json.loads(line)["id"] for line in answer.text.splitlines()]

    assert seen_by("requests:read") == []
    assert sorted(seen_by("requests:read_all")) == sorted(made)
    assert httpx.get(url, params=asked).status_code == 401


def test_only_so_many_at_once_and_one_that_was_left_gives_its_place_back(front_door: Installation) -> None:
    demands(front_door, 2000, reference="left")
    with front_door.client() as client:
        for _ in range(12):
            with client.stream("GET", EXPORT, params={"format": "ndjson", "reference": "left"}) as answer:
                assert answer.status_code == 200
                next(answer.iter_bytes())  # and go
            time.sleep(0.5)  # that it went is seen when the next page is written
        whole = client.get(EXPORT, params={"format": "ndjson", "reference": "left"})
    assert len(whole.text.splitlines()) == 2000


@pytest.fixture
def impatient(front_door: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of the same API in this process, which waits for its readers for half a second only.

    Without Python's collector: what an export holds is given back by the one who ends it, not some time later.
    """
    monkeypatch.setattr(wire, "STALLED_SECONDS", 0.5)
    gc.disable()
    config = Config(create_app(front_door.settings), port=0, http=wire.Connection, ws="none", log_level="critical")
    server = Server(config)
    serving = threading.Thread(target=server.run)
    serving.start()
    wait_until(lambda: server.started, 15, "it serves")
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
        wait_until(lambda: not any(exports._RUNNING.values()), 5, "every place was given back")
    finally:
        server.should_exit = True
        serving.join()
        gc.enable()


@pytest.fixture(scope="module")
def much(front_door: Installation) -> dict[str, str]:
    """What to ask for so that the answer fills every buffer on its way; a client of its own has its own daily cap."""
    key = front_door.cli("keys", "create", "much", "--scope", "requests:write").stdout.strip()
    assert len(set(demands(front_door, 8000, key=key, reference="much"))) == 8000
    return {"format": "ndjson", "reference": "much"}


def test_an_export_whose_reader_stalls_gives_its_place_back(
    front_door: Installation, impatient: int, much: dict[str, str]
) -> None:
    url, headers = f"http://127.0.0.1:{impatient}{EXPORT}", {"Authorization": f"Bearer {front_door.key}"}
    asked = httpx.Request("GET", url, params=much, headers=headers)
    lines = [f"{name}: {value}" for name, value in asked.headers.items()]
    head = "\r\n".join([f"GET {asked.url.raw_path.decode()} HTTP/1.1", *lines, "", ""]).encode()

    def status() -> int:
        with httpx.stream("GET", url, params=much, headers=headers) as answer:
            return answer.status_code

    with ExitStack() as stack:
        stalled = [stack.enter_context(socket.socket()) for _ in range(2)]
        for reader in stalled:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", impatient))
            reader.sendall(head)
            assert reader.recv(12) == b"HTTP/1.1 200"
        assert status() == 503
        wait_until(lambda: status() == 200, 10, "a place is free, although both readers are still there")


def test_beyond_four_the_next_is_told_to_wait(front_door: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "_AT_ONCE", threading.BoundedSemaphore(1))
    exports._AT_ONCE.acquire()
    with pytest.raises(exports.Unavailable):
        exports.export(None, None, None, exports.Format.CSV)  # type: ignore[arg-type] # refused before it looks


def test_bad_filters_are_refused(front_door: Installation) -> None:
    with front_door.client() as client:
        answers = [
            client.get(EXPORT, params=p).status_code for p in ({}, {"format": "xls"}, {"format": "csv", "status": "x"})
        ]
    assert answers == [422, 422, 422]


def test_a_third_of_one_client_is_told_to_wait_and_others_are_served(
    front_door: Installation, much: dict[str, str]
) -> None:
    key = front_door.cli("keys", "create", uuid4().hex, "--scope", "requests:read_all").stdout.strip()
    little = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])  # else it takes all
    theirs = {"Authorization": f"Bearer {front_door.key}"}
    base = f"http://127.0.0.1:{front_door.port}"
    with httpx.Client(base_url=base, headers=theirs, transport=little) as client, ExitStack() as stack:
        unread = [stack.enter_context(client.stream("GET", EXPORT, params=much)) for _ in range(3)]
        assert [answer.status_code for answer in unread] == [200, 200, 503]
        url = f"http://127.0.0.1:{front_door.port}{EXPORT}"
        with httpx.stream("GET", url, params=much, headers={"Authorization": f"Bearer {key}"}) as other:
            assert other.status_code == 200
