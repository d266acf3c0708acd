"""Where a log is read from: a directory or an address, by the same names of files.

Either may be hostile: nothing outside of the directory is read, no other host is asked, and nothing longer than the
caller says is kept.
"""

from __future__ import annotations

import os
import re
import stat
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Final, Protocol
from urllib.error import HTTPError, URLError
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
MOST_SECONDS: Final = 120.0

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
        # Checked in __post_init__: http or https. gzip is not asked for, but the format lets a log send it unasked.
        request = Request(f"{self.base.rstrip('/')}/{resource_path}", headers={"Accept-Encoding": "identity"})  # noqa: S310
        try:
            with _opener().open(request, timeout=self.timeout_seconds) as answer:
                content = _content(answer, max_bytes)
        except HTTPError as error:
            error.close()
            raise Unchecked(f"{resource_path} could not be fetched (HTTP {error.code})") from None
        except (URLError, HTTPException, OSError, ValueError, zlib.error) as error:
            raise Unchecked(f"{resource_path} could not be fetched ({type(error).__name__})") from None
        return _need_size(resource_path, content, max_bytes)


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
    """At most ``most`` bytes, within two minutes: a server may also send one byte a second."""
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
