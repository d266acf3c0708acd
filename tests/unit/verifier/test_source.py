"""Directories and servers that would lead the verifier elsewhere, keep it waiting, or fill its memory."""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from expunge_verify import source
from expunge_verify.errors import Unchecked
from expunge_verify.source import Budgeted, Directory, Url, open_source

pytestmark = pytest.mark.slow  # servers that drip and hang

NAME = "tile/0/000.p/3"


@pytest.fixture
def log(tmp_path):
    top = tmp_path / "log"
    (top / "tile/0/000.p").mkdir(parents=True)
    (top / NAME).write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"outside")
    return top


def test_a_file_of_the_directory_is_read(log):
    assert Directory(log).get(NAME, 7) == b"content"


def test_a_file_that_is_too_long_missing_or_a_directory_is_unchecked(log):
    for name, most in ((NAME, 6), ("checkpoint", 9), ("tile", 9), ("tile/0", 9)):
        with pytest.raises(Unchecked):
            Directory(log).get(name, most)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "tile/../../secret",
        "/etc/hostname",
        "",
        ".",
        "tile//0",
        "a\0b",
        "tile/0/000\n",
        "a" * 5000,
        "ä",
        "~",
    ],
)
def test_a_name_that_leads_out_of_the_log_is_not_read(log, name):
    for at in (Directory(log), Url("http://127.0.0.1:9")):
        with pytest.raises(Unchecked, match="is not the name"):
            at.get(name, 100)


def test_a_link_is_followed_inside_and_not_outside(log, tmp_path):
    (log / "inside").symlink_to(log / NAME)
    (log / "outside").symlink_to(tmp_path / "secret")
    (log / "up").symlink_to(tmp_path)
    (log / "circle").symlink_to(log / "circle")
    assert Directory(log).get("inside", 9) == b"content"
    for name in ("outside", "up/secret", "circle"):
        with pytest.raises(Unchecked):
            Directory(log).get(name, 9)


def test_a_directory_that_is_itself_a_link_is_read(log, tmp_path):
    (tmp_path / "link").symlink_to(log)
    assert open_source(str(tmp_path / "link")).get(NAME, 9) == b"content"


def test_a_pipe_does_not_hold_the_verifier_up(log):
    os.mkfifo(log / "checkpoint")
    with pytest.raises(Unchecked):
        Directory(log).get("checkpoint", 9)


@pytest.mark.parametrize(
    "text",
    ["/nowhere/at/all", "", "file:///etc", "ftp://log.example/", "http://", "http:///x", "http://a:b:c/", "a\0b"],
)
def test_what_is_neither_a_directory_nor_an_http_address_is_unchecked(text):
    with pytest.raises(Unchecked):
        open_source(text).get("checkpoint", 9)


@pytest.mark.parametrize(
    "text", ["http://a b/", "http://log.example/?q", "http://log.example/#f", "http://é/", "http://a\n/"]
)
def test_an_address_that_could_carry_more_than_a_place_is_refused(text):
    with pytest.raises(Unchecked):
        Url(text)


@contextmanager
def serving(answer):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _with(status=200, body=b"", **headers):
    def answer(request):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def test_a_file_of_a_server_is_read_below_its_address():
    asked = []

    def answer(request):
        asked.append(request.path)
        _with(body=b"content")(request)

    with serving(answer) as address:
        assert open_source(address + "/log/acme/").get(NAME, 7) == b"content"
    assert asked == ["/log/acme/" + NAME]


@pytest.mark.parametrize("status", [204, 301, 403, 404, 500, 503])
def test_an_answer_without_the_file_is_unchecked_or_empty(status):
    with serving(_with(status)) as address:
        if status == 204:
            assert Url(address).get(NAME, 9) == b""
            return
        with pytest.raises(Unchecked, match=str(status)):
            Url(address).get(NAME, 9)


def test_a_redirect_is_followed_within_the_server_only():
    with serving(_with(body=b"another")) as other:

        def answer(request):
            target = {"/a/checkpoint": "/b/checkpoint", "/c/checkpoint": other + "/checkpoint"}.get(request.path)
            (_with(302, Location=target) if target else _with(body=b"moved"))(request)

        with serving(answer) as address:
            assert Url(address + "/a").get("checkpoint", 9) == b"moved"
            with pytest.raises(Unchecked, match="302"):
                Url(address + "/c").get("checkpoint", 9)


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "http://127.0.0.1:99999/", "//evil/", "http://["]
)
def test_a_redirect_to_elsewhere_is_unchecked(target):
    with serving(_with(302, Location=target)) as address, pytest.raises(Unchecked):
        Url(address).get("checkpoint", 9)


def test_a_redirect_in_a_circle_ends():
    with serving(_with(302, Location="/checkpoint")) as address, pytest.raises(Unchecked):
        Url(address).get("checkpoint", 9)


def test_an_endless_answer_is_given_up():
    def answer(request):
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 65536)
        except OSError:
            return

    with serving(answer) as address, pytest.raises(Unchecked, match="longer than 100000"):
        Url(address).get("checkpoint", 100_000)


def test_gzip_that_nobody_asked_for_is_inflated_as_the_format_allows():
    with serving(_with(body=gzip.compress(b"content", mtime=0), Content_Encoding="gzip")) as address:
        assert Url(address).get(NAME, 7) == b"content"


def test_a_small_answer_that_inflates_to_much_is_given_up():
    bomb = gzip.compress(bytes(50_000_000))
    with serving(_with(body=bomb, Content_Encoding="gzip")) as address, pytest.raises(Unchecked, match="longer than"):
        Url(address).get(NAME, 100_000)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(gzip.compress(b"content", mtime=0)[:-9], "gzip"), (b"content", "gzip"), (zlib.compress(b"c"), "br")],
)
def test_other_encodings_and_broken_ones_are_unchecked(body, encoding):
    with serving(_with(body=body, Content_Encoding=encoding)) as address, pytest.raises(Unchecked):
        Url(address).get(NAME, 100)


def test_an_answer_cut_short_is_unchecked():
    with serving(_with(body=b"con", Content_Length="7")) as address, pytest.raises(Unchecked):
        Url(address).get(NAME, 100)


def test_a_server_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unchecked):
        Url(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=0.2).get("checkpoint", 9)


def test_a_server_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr(source, "MOST_SECONDS", 0.3)
    stop = threading.Event()

    def answer(request):
        request.send_response(200)
        request.end_headers()
        try:
            while not stop.wait(0.05):
                request.wfile.write(b"x" * 10)
        except OSError:
            return

    with serving(answer) as address, pytest.raises(Unchecked, match="TimeoutError"):
        Url(address).get("checkpoint", 1_000_000)
    stop.set()


def drips(first, again):
    """Answers by raw bytes: one beginning, then the same again and again until the reader leaves."""

    def answer(request):
        try:
            request.wfile.write(first)
            while True:
                request.wfile.write(again)
                time.sleep(0.02)
        except OSError:
            return

    return answer


HEAD, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 9),
        (b"HTTP/1.1 ", b" "),
        (HEAD, b"a"),
        (CHUNKED + b"1;", b"a"),
        (CHUNKED + b"0\r\n", b"a: b\r\n"),
        (HEAD + b"Location: /a\r\n", b"a"),
    ],
)
def test_a_server_that_drips_anything_else_than_content_is_given_up(monkeypatch, first, again):
    monkeypatch.setattr(source, "MOST_SECONDS", 0.5)
    began = time.monotonic()
    with serving(drips(first, again)) as address, pytest.raises(Unchecked, match="could not be fetched"):
        Url(address).get("checkpoint", 1000)
    assert time.monotonic() - began < 5


def test_no_file_is_waited_for_longer_than_half_a_minute():
    assert source.MOST_SECONDS <= 30


def test_of_one_log_only_so_much_is_read(log):
    budgeted = Budgeted(Directory(log), bytes_left=20)
    assert [budgeted.get(NAME, 9) for _ in range(2)] == [b"content"] * 2
    with pytest.raises(Unchecked, match="larger or slower"):
        budgeted.get(NAME, 9)


def test_one_log_is_read_only_so_long(log, monkeypatch):
    budgeted = Budgeted(Directory(log))
    assert budgeted.get(NAME, 9) == b"content"
    monkeypatch.setattr(source.time, "monotonic", lambda: budgeted.until + 1)
    with pytest.raises(Unchecked, match="larger or slower"):
        budgeted.get(NAME, 9)


def test_no_server_is_unchecked():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unchecked):
        Url(f"http://127.0.0.1:{port}").get("checkpoint", 9)


def test_what_is_not_http_at_all_is_unchecked():
    def answer(request):
        request.wfile.write(b"\x00\xff\n" * 100)

    with serving(answer) as address, pytest.raises(Unchecked):
        Url(address).get("checkpoint", 9)
