"""HTTP out of the house: connects only to addresses judged safe.

    check_url ─► resolve, once ─► judge EVERY address ─► connect to those addresses ─► TLS for the URL's name ─► send

Looking up and connecting are one step: a name is resolved once, and the sockets go to the very addresses that were
judged, so that a second DNS answer (rebinding) never counts. Redirects are not followed and proxy variables of the
environment are not read, because httpcore, the layer below httpx, knows neither. One deadline runs over all of it.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from ipaddress import ip_address
from threading import Thread
from typing import Any, Final

import httpcore

from app.domain.addresses import Address, Destination, ForbiddenAddress, Network, check_url, judge
from app.domain.webhook import asked_wait
from app.errors import ExpungeError

MAX_BODY_BYTES: Final = 16_384
"""What is read of an answer's body, to let its sender finish; nothing of it is kept."""
_DRAIN_SECONDS: Final = 0.5
"""For that: the status has come, and whoever drips a body would only hold a worker."""

_PIECE_BYTES: Final = 4096
"""Linux calls a socket writable when a third of its buffer (16 kB or more) is free, so one piece never waits twice."""
_TROUBLE: Final = (OSError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError)

_OURS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"}
)
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~]([ \t!-~]*[!-~])?|")

Resolve = Callable[[str, int], Sequence[Address]]


class Refused(ForbiddenAddress):
    """Nothing was sent: the destination is forbidden. Terminal; the same URL is judged anew only if changed."""

    code = "egress-refused"


class RefusedName(Refused):
    """The host's name leads to a forbidden address: its owner may lead it elsewhere until the next attempt."""


class Undelivered(ExpungeError):
    """No answer came. Its sentence is the class name of the cause, since messages of libraries quote hosts and URLs."""

    status, code = 502, "undelivered"

    def __init__(self, cause: BaseException) -> None:
        super().__init__(type(cause).__name__)
        self.timed_out = isinstance(cause, TimeoutError | httpcore.TimeoutException)


class UnknownName(Undelivered):
    """No name server knows the host, or none answered."""


@dataclass(frozen=True, slots=True)
class Response:
    """What a delivery needs to know of an answer."""

    status_code: int
    retry_after: timedelta | None
    elapsed_ms: int
    """Until its headers were there."""


def system_addresses(host: str, port: int) -> Sequence[Address]:
    """Ask the operating system (hosts file, DNS) for every address of a host, preferred first, each once.

    Raises:
        OSError: The name is unknown or no server answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(ip_address(sockaddr[0]) for *_, sockaddr in found))


def send(
    url: str,
    *,
    method: str = "POST",
    headers: Mapping[str, str],
    content: bytes,
    allowed_networks: Iterable[Network],
    timeout_seconds: float = 15,
    resolve: Resolve = system_addresses,
    trust: ssl.SSLContext | None = None,
) -> Response:
    """Send one message and report the answer's status.

    A status that came counts, even if the body behind it is endless, drips or breaks off.

    Args:
        url: Checked again here: rules may have changed since it was registered.
        method: ``POST`` or ``PUT``.
        headers: All but those that say where a message goes and where it ends, which are ours.
        content: The bytes to send.
        allowed_networks: See :func:`app.domain.addresses.judge`.
        timeout_seconds: For DNS, connecting, TLS, writing and reading together.
        resolve: Host and port to addresses.
        trust: Certificate authorities; those of the system and of certifi if None.

    Raises:
        Refused: The URL or a header is forbidden; no connection was made.
        RefusedName: One of the host's addresses is forbidden; no connection was made.
        UnknownName: The host has no address.
        Undelivered: The network failed, or the deadline passed before a status came.
    """
    deadline = _Deadline(timeout_seconds)
    try:
        _check(method, headers)
        allowed = tuple(allowed_networks)
        destination = check_url(url, allowed)
        addresses = _resolved(destination, resolve, deadline)
        _judge_all(addresses, allowed)
        with _connection(destination, _Pinned(addresses, deadline), trust or _public_authorities()) as connection:
            return _exchange(connection, destination, method, headers=headers, content=content, deadline=deadline)
    except Refused:
        raise
    except ForbiddenAddress as error:
        raise Refused(str(error)) from None
    except socket.gaierror as error:
        raise UnknownName(error) from None
    except _TROUBLE as error:
        raise Undelivered(_root(error)) from None


class _Deadline:
    """The seconds that are left of one budget."""

    def __init__(self, seconds: float) -> None:
        self._began, self._seconds = time.monotonic(), seconds

    def left(self) -> float:
        left = self._seconds - (time.monotonic() - self._began)
        if left <= 0:
            raise TimeoutError
        return left

    def shorten(self, seconds: float) -> None:
        """Leave so many seconds from now on, and no more than there were."""
        self._seconds = min(self._seconds, time.monotonic() - self._began + seconds)

    def elapsed_ms(self) -> int:
        return round(1000 * (time.monotonic() - self._began))


class _Pinned(httpcore.NetworkBackend):
    """Connects to the judged addresses, whatever host it is asked for."""

    def __init__(self, addresses: Sequence[Address], deadline: _Deadline) -> None:
        self._addresses, self._deadline, self._sockets = addresses, deadline, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - httpcore's interface; the host has been resolved already
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - our deadline is stricter
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,  # Any: httpcore's union of setsockopt arguments is private
    ) -> httpcore.NetworkStream:
        trouble: Exception = httpcore.ConnectError()
        for tried, address in enumerate(self._addresses):
            share = self._deadline.left() / (len(self._addresses) - tried)  # a dead address leaves time for the next
            try:
                stream = self._sockets.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                trouble = error
            else:
                return _Timed(stream, self._deadline)
        raise trouble


class _Timed(httpcore.NetworkStream):
    """A connection whose every operation gets what is left of the deadline, so that dripping bytes don't renew it."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - our deadline is stricter
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - our deadline is stricter
        for start in range(0, len(buffer), _PIECE_BYTES):
            self._stream.write(buffer[start : start + _PIECE_BYTES], self._deadline.left())

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - our deadline is stricter
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, self._deadline.left()), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:  # Any: httpcore's interface
        return self._stream.get_extra_info(info)


def _check(method: str, headers: Mapping[str, str]) -> None:
    """Portals name headers, too (their callbacks'): none may say where a message goes or ends, or begin another one."""
    if method not in {"POST", "PUT"}:
        raise ForbiddenAddress("a message is sent by POST or PUT")
    for name, value in headers.items():
        if name.lower() in _OURS or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ForbiddenAddress("a header is malformed, or says where the message goes or ends")


def _judge_all(addresses: Iterable[Address], allowed: Iterable[Network]) -> None:
    for address in addresses:
        try:
            judge(address, allowed)
        except ForbiddenAddress as error:
            raise RefusedName(str(error)) from None


def _resolved(destination: Destination, resolve: Resolve, deadline: _Deadline) -> Sequence[Address]:
    """Resolve in a thread of its own, because getaddrinfo can't be told to hurry; a late answer is dropped."""
    answer: Future[Sequence[Address]] = Future()
    Thread(target=_answer, args=(answer, resolve, destination), daemon=True).start()
    return answer.result(deadline.left())


def _answer(answer: Future[Sequence[Address]], resolve: Resolve, destination: Destination) -> None:
    try:
        answer.set_result(resolve(destination.host, destination.port))
    except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
        answer.set_exception(error)


def _connection(to: Destination, backend: httpcore.NetworkBackend, trust: ssl.SSLContext) -> httpcore.HTTPConnection:
    origin = httpcore.Origin(to.scheme.encode(), to.host.encode(), to.port)
    return httpcore.HTTPConnection(origin, ssl_context=trust, network_backend=backend)


def _exchange(
    connection: httpcore.HTTPConnection,
    to: Destination,
    method: str,
    *,
    headers: Mapping[str, str],
    content: bytes,
    deadline: _Deadline,
) -> Response:
    url = httpcore.URL(scheme=to.scheme, host=to.host, port=to.port, target=to.target)
    sent: list[tuple[bytes | str, bytes | str]] = [("Host", to.authority), *headers.items()]
    sent.append(("Content-Length", str(len(content))))
    with connection.stream(method, url, headers=sent, content=content) as response:
        elapsed_ms = deadline.elapsed_ms()
        deadline.shorten(_DRAIN_SECONDS)
        with suppress(*_TROUBLE):
            _drain(response)
        received = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        wait = asked_wait(received.get(b"retry-after"), received.get(b"date"))
        return Response(status_code=response.status, retry_after=wait, elapsed_ms=elapsed_ms)


def _drain(response: httpcore.Response) -> None:
    read_bytes = 0
    for piece in response.iter_stream():
        read_bytes += len(piece)
        if read_bytes > MAX_BODY_BYTES:
            return


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ else error


@cache
def _public_authorities() -> ssl.SSLContext:
    return httpcore.default_ssl_context()
