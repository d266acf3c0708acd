"""Receivers of webhooks that behave: well, slowly, badly or not at all; each counts what it got."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Self

Answer = Callable[[socket.socket], None]
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds: close() sends RST


@dataclass(frozen=True)
class Received:
    """One message as it came in."""

    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """An HTTP server on a free port whose ``answer`` may be exchanged while it runs."""

    def __init__(self, answer: Answer, address: str = "127.0.0.1") -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server((address, 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://{address}:{self.port}/hook"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, name="receiver", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def ids(self) -> list[str]:
        return [message.id for message in list(self.received)]

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), closing(connection):
            head, body = _read(connection)
            lines = [line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:]]
            with self._lock:
                self.received.append(Received({name.lower(): value for name, _, value in lines}, body))
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                self.answer(connection)
            finally:
                with self._lock:
                    self.at_once -= 1


def status(code: int, *headers: str, body: bytes = b"") -> Answer:
    """Answer so."""
    lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}", *headers]
    return lambda connection: connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)


def hang(connection: socket.socket) -> None:
    """Say nothing for as long as the other side has patience."""
    connection.settimeout(60)
    connection.recv(1)


def reset(connection: socket.socket) -> None:
    """Break the connection off."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def garbage(connection: socket.socket) -> None:
    """Speak another language."""
    connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46 canary\r\n\r\n")


def _read(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, _, content = data.partition(b"\r\n\r\n")
    wanted = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(content) < wanted:
        content += connection.recv(65536)
    return head, content
