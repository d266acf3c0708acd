"""A portal's webhook receiver: keeps every message and answers as it is told."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Message:
    """One POST as it came in."""

    path: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"

    @property
    def id(self) -> str:
        """The receiver's idempotency key."""
        return self.headers["webhook-id"]

    @property
    def request_id(self) -> str:
        return str(self.data["id"])

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.body)["data"]
        return data


class Listener:
    """An HTTP server on a free port; answers 204, or the next of ``answers``."""

    def __init__(self, address: str) -> None:
        self.messages: list[Message] = []
        self.answers: list[int] = []
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="listener", daemon=True)
        self.port = self._server.server_port
        self.url = f"http://{address}:{self.port}/hook"

    def about(self, request_id: object) -> list[Message]:
        """What was told about one request, in order of arrival."""
        return [message for message in list(self.messages) if message.request_id == str(request_id)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                listener.messages.append(Message(self.path, headers, body, self.command))
                self.send_response(listener.answers.pop(0) if listener.answers else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_POST  # noqa: N815 - as http.server names it

            def log_message(self, *_: object) -> None:
                """The tests read ``messages``."""

        return Handler
