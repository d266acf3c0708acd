"""A connection: a request that is not whole in time, or whose head never ends, closes it.

httptools has no limit of its own, and gathers a header's parts by copying them: one caller that sent a header of 100 MB
held the whole process for a minute. How large a body may be is said in :mod:`app.api.problems`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD: Final = 64 << 10
"""First line and headers; the first read of it, at most 256 KiB, is let through."""
REQUEST_SECONDS: Final = 30.0
"""From its first byte, or a connection's beginning, to its last byte."""
STALLED_SECONDS: Final = 30.0
"""How long a caller may read nothing of its answer; whoever reads slowly may."""
MOST_CONNECTIONS: Final = 1000
"""Of one process; beyond them calls are answered 503."""
_ALWAYS_ANSWERED: Final = frozenset({b"/livez", b"/health/live"})
"""An orchestrator that was told 503 here would end a process that is only busy."""


class InOnePiece:
    """A transport that sends two writes of one turn of the loop as one: an answer's head goes with its body.

    uvicorn writes them apart, and each costs a system call and wakes the caller.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._kept = b""

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's own. Any: as it is there."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep it until the next write, at the latest until the loop's next turn."""
        if self._kept:
            data, self._kept = self._kept + data, b""
            self._transport.write(data)
        elif data:
            self._kept = data
            self._loop.call_soon(self._send)

    def close(self) -> None:
        """Close when all is sent."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._kept:
            data, self._kept = self._kept, b""
            self._transport.write(data)


class Connection(HttpToolsProtocol):
    """uvicorn's, with a clock; a request that comes in one piece, as nearly all do, never starts it."""

    _in_head = _in_request = False
    _head_bytes = 0
    _watch: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        """A caller that says nothing is let go, too."""
        super().connection_made(transport)
        self.transport = InOnePiece(transport, self.loop)  # type: ignore[assignment] # it is one in all but name
        self._watch = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to watch any more."""
        self._unwatch()
        self._unstall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head that was not whole before, either."""
        in_head = self._in_head
        super().data_received(data)
        if not self._in_request or self.transport.is_closing():
            return
        self._head_bytes += len(data) if in_head and self._in_head else 0
        if self._head_bytes > LARGEST_HEAD:
            self._give_up()
        elif self._watch is None:
            self._watch = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._in_request, self._head_bytes = True, True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self.limit_concurrency = None if self.url in _ALWAYS_ANSWERED else self.config.limit_concurrency
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole; the answer takes as long as it takes."""
        self._in_request = False
        self._unwatch()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The caller does not read as fast as we write."""
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(STALLED_SECONDS, self._look_again)

    def resume_writing(self) -> None:
        """It has read."""
        self._unstall()
        super().resume_writing()

    def _look_again(self) -> None:
        """Let go of a caller that has read nothing since: what its answer holds, others need."""
        unread = self.transport.get_write_buffer_size()
        if unread >= self._unread:
            self.transport.abort()
            return
        self._unread = unread
        self._stall = self.loop.call_later(STALLED_SECONDS, self._look_again)

    def _unstall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _give_up(self) -> None:
        self.send_400_response("The request's head is too long, or the request came too slowly.")

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
