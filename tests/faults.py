"""Ways to break things on purpose: a network that stalls, processes that die or freeze, and patience with a reason.

toxiproxy is not to be had as a wheel or a Debian package, so the proxy is ours: it found the worst fault of Celery's
Redis transport, a half-open connection on which a worker waits for ever without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds: close() sends RST, not FIN


@dataclass
class _Link:
    """One client's connection through the proxy, both legs of it."""

    legs: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    frozen: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def reset(self) -> None:
        self.over.set()
        for leg in self.legs:
            if leg.transport.is_closing():
                continue
            leg.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            leg.transport.abort()


class Proxy:
    """A TCP proxy on a free loopback port, ``with Proxy(host, port) as proxy``, that can freeze, cut and refuse."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.port = 0
        self._links: list[_Link] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected now, frozen ones included."""
        return len(self._links)

    def freeze(self) -> None:
        """All present connections swallow bytes for ever and hide even their end; new ones work."""
        self._call(self._freeze())

    def cut(self) -> None:
        """Resets all present connections, frozen ones too; new ones work."""
        self._call(self._cut())

    def refuse(self) -> None:
        """New connections are refused; present ones go on."""
        self._call(self._refuse())

    def resume(self) -> None:
        """Takes new connections again, on the same port."""
        self._call(self._listen())

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server:
            self._server.close()  # not wait_closed: from Python 3.12 on that waits for the present connections, too
            self._server = None

    async def _freeze(self) -> None:
        for link in self._links:
            link.frozen = True

    async def _cut(self) -> None:
        for link in self._links:
            link.reset()

    async def _end(self) -> None:
        await self._refuse()
        await self._cut()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(*self.target)
        except OSError:  # the target is down: the client meets a reset, as it would without us
            to_client.transport.abort()
            return
        link = _Link((to_client, to_server))
        self._links.append(link)
        try:
            await asyncio.gather(self._copy(link, client, to_server), self._copy(link, server, to_client))
        except (OSError, asyncio.CancelledError):  # reset by a side or by us; or the proxy ends
            link.reset()
        finally:
            self._links.remove(link)
            for leg in link.legs:
                leg.close()

    async def _copy(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if not link.frozen:
                sink.write(data)
                await sink.drain()
        if link.frozen:
            await link.over.wait()  # the other side never learns that this one has gone
        if sink.can_write_eof():
            sink.write_eof()


def process_tree(pid: int) -> list[int]:
    """The process and all its living descendants, parents first; also those that left its session or group."""
    parents = dict(_living())
    tree = [pid] if pid in parents else []
    for member in tree:  # grows while we walk it
        tree += [child for child, parent in parents.items() if parent == member]
    return tree


def kill9(process: subprocess.Popen[bytes] | subprocess.Popen[str] | int) -> None:
    """Ends a process and its descendants by SIGKILL, as the kernel's out-of-memory killer or a power cut would."""
    pid = process if isinstance(process, int) else process.pid
    while tree := process_tree(pid):
        _send(signal.SIGSTOP, tree)  # a stopped process has no more children that we would miss
        if process_tree(pid) == tree:
            break
    _send(signal.SIGKILL, tree)
    wait_until(lambda: not set(tree) & {living for living, _ in _living()}, 10, "the killed processes are gone")
    if not isinstance(process, int):
        process.wait()


def pause(pid: int) -> None:
    """Stops a process and its descendants where they are: a long garbage collection, a suspended virtual machine."""
    _send(signal.SIGSTOP, process_tree(pid))


def unpause(pid: int) -> None:
    """Lets a paused process and its descendants go on, unaware of the time that passed."""
    _send(signal.SIGCONT, process_tree(pid))


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """A process stands still for as long as the block runs."""
    pause(pid)
    try:
        yield
    finally:
        unpause(pid)


def wait_until(predicate: Callable[[], T], timeout_seconds: float, what: str, *, every_seconds: float = 0.02) -> T:
    """Returns the predicate's first true value; after the timeout fails with ``what`` was awaited and what was seen."""
    deadline = time.monotonic() + timeout_seconds
    while not (seen := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_seconds} s in vain until {what}; last seen: {seen!r}")
        time.sleep(every_seconds)
    return seen


def _living() -> Iterator[tuple[int, int]]:
    """Process and parent ids from /proc, without zombies: those are dead, only not yet counted."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                yield int(entry.name), int(parent)


def _send(what: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)
