"""Where a log is read from: a directory or an address, by the same names of files.

Either may be hostile: nothing outside of the directory is read, no other host is asked, nothing longer than the
caller says is kept, and nothing is waited for longer than half a minute.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Final, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from expunge_verify.errors import Unchecked, shown

TIMEOUT_SECONDS: Final = 20.0
MOST_SECONDS: Final = 30.0
"""How long one file may take, from the look-up of its host's name to its last byte."""
MOST_BYTES_IN_ALL: Final = 1 << 32
MOST_SECONDS_IN_ALL: Final = 3600.0

_NAME = re.compile(r"[a-z0-9][a-z0-9./-]{0,200}")
_CHUNK_BYTES = 1 << 16
_GZIP = 16 + zlib.MAX_WBITS
_GZIP_BYTES = 1 << 12  # what gzip adds to what it cannot compress, besides a thousandth


class Source(Protocol):
    """Something that has a log's files."""

    def get(self, resource_path: str, max_bytes: int) -> bytes:
        """The content of ``checkpoint``, ``tile/0/000`` and so on.

        Raises:
            Unchecked: It is not there, cannot be read, or is longer than ``max_bytes``.
        """
        ...


@dataclass(frozen=True)
class Directory:
    """A log that was copied into a directory; links are followed as long as they stay inside."""

    path: Path

    def get(self, resource_path: str, max_bytes: int) -> bytes:
        """See ``Source``."""
        _need_name(resource_path)
        try:
            top = self.path.resolve(strict=True)
            file = (top / resource_path).resolve(strict=True)
            if not file.is_relative_to(top):
                raise Unchecked(f"{resource_path} leads out of the directory")
            content = _read_file(file, max_bytes)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a zero byte
            raise Unchecked(f"{resource_path} could not be read ({type(error).__name__})") from None
        return _need_size(resource_path, content, max_bytes)


@dataclass(frozen=True)
class Url:
    """A log that is served under an address, which ends before ``/checkpoint``."""

    base: str
    timeout_seconds: float = TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base)
            usable = parts.scheme in {"http", "https"} and parts.hostname and not (parts.query or parts.fragment)
            _ = parts.port
        except ValueError:
            usable = False
        if not usable or not self.base.isascii() or not self.base.isprintable() or " " in self.base:
            raise Unchecked(f"{shown(self.base)} is not an http or https address of a log")

    def get(self, resource_path: str, max_bytes: int) -> bytes:
        """See ``Source``."""
        _need_name(resource_path)
        fetch = _Fetch(f"{self.base.rstrip('/')}/{resource_path}", max_bytes, self.timeout_seconds)
        fetch.start()
        fetch.join(MOST_SECONDS)
        if fetch.content is None:
            raise Unchecked(f"{resource_path} could not be fetched ({fetch.failure})")
        return _need_size(resource_path, fetch.content, max_bytes)


@dataclass
class Budgeted:
    """A log of which only so much is read, and only so long, however large it says it is."""

    source: Source
    bytes_left: int = MOST_BYTES_IN_ALL
    until: float = field(default_factory=lambda: time.monotonic() + MOST_SECONDS_IN_ALL)

    def get(self, resource_path: str, max_bytes: int) -> bytes:
        """See ``Source``."""
        content = self.source.get(resource_path, max_bytes)
        self.bytes_left -= len(content)
        if self.bytes_left < 0 or time.monotonic() > self.until:
            raise Unchecked(f"the log is larger or slower than what is read of one: given up at {resource_path}")
        return content


def open_source(text: str) -> Source:
    """The log at an address, or in a directory.

    Raises:
        Unchecked: An address of another kind than http and https, or no such directory.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return Url(text)
    try:
        there = Path(text).is_dir()
    except (OSError, ValueError):
        there = False
    if not there:
        raise Unchecked(f"there is no directory {shown(text)}")
    return Directory(Path(text))


class _Fetch(threading.Thread):
    """Fetches one file beside the caller, who can leave.

    A server has endless ways to send a little at a time: headers, interim answers, the lengths and trailers of chunks.
    No timeout of a socket sees those, so nobody waits in the thread that talks to it.
    """

    def __init__(self, address: str, max_bytes: int, timeout_seconds: float) -> None:
        super().__init__(daemon=True)
        self._address, self._max_bytes, self._timeout_seconds = address, max_bytes, timeout_seconds
        self.content: bytes | None = None
        self.failure = "TimeoutError"

    def run(self) -> None:
        # Checked by Url: http or https. gzip is not asked for, but the format lets a log send it unasked.
        request = Request(self._address, headers={"Accept-Encoding": "identity"})  # noqa: S310
        try:
            with _opener().open(request, timeout=self._timeout_seconds) as answer:
                self.content = _content(answer, self._max_bytes)
        except HTTPError as error:
            self.failure = f"HTTP {error.code}"
            error.close()
        except Exception as error:  # noqa: BLE001 # whatever it is, nothing was fetched; and no traceback is printed
            self.failure = type(error).__name__


class _SameOrigin(HTTPRedirectHandler):
    """Follows a redirect only to where the auditor pointed in the first place."""

    max_redirections = 3

    def redirect_request(  # the base class decides the number of arguments
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> OpenerDirector:
    """As urllib builds one, without its handlers of file, ftp and data addresses."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
        _SameOrigin(),
    ):
        opener.add_handler(handler)
    return opener


def _read_file(file: Path, max_bytes: int) -> bytes:
    # Not blocking, because opening a pipe would wait for its writer for ever.
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError("not a regular file")
        return opened.read(max_bytes + 1)


def _chunks(answer: HTTPResponse, most: int) -> Iterator[bytes]:
    """At most ``most`` bytes, while the caller waits: a server may also send one byte a second."""
    end, declared, got = time.monotonic() + MOST_SECONDS, answer.length, 0
    enough = most if declared is None else min(most, declared)
    # read1 returns what there is; read would wait until a server that drips has sent the whole chunk.
    while got < enough and (chunk := answer.read1(min(enough - got, _CHUNK_BYTES))):
        got += len(chunk)
        if time.monotonic() > end:
            raise TimeoutError
        yield chunk
    if declared is not None and got < enough:
        raise HTTPException("cut short")


def _content(answer: HTTPResponse, max_bytes: int) -> bytes:
    """The content, never more than one byte too many of it: what comes may be small and inflate to gigabytes."""
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding == "identity":
        return b"".join(_chunks(answer, max_bytes + 1))
    if encoding != "gzip":
        raise HTTPException("an encoding that was not asked for")
    inflater, content = zlib.decompressobj(_GZIP), bytearray()
    for chunk in _chunks(answer, max_bytes + max_bytes // 1000 + _GZIP_BYTES):
        content += inflater.decompress(chunk, max_bytes + 1 - len(content))
        if len(content) > max_bytes:
            return bytes(content)
    if not inflater.eof:
        raise zlib.error("cut short")
    return bytes(content)


def _need_name(resource_path: str) -> None:
    if not _NAME.fullmatch(resource_path) or ".." in resource_path or "//" in resource_path:
        raise Unchecked(f"{shown(resource_path)} is not the name of a log's file")


def _need_size(resource_path: str, content: bytes, max_bytes: int) -> bytes:
    if len(content) > max_bytes:
        raise Unchecked(f"{resource_path} is longer than {max_bytes} bytes")
    return content
