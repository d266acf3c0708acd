"""Group commit: what many callers ask at the same moment goes to PostgreSQL in one transaction.

A COMMIT costs a disk its rest and a transaction its round trips, whether it carries one row or two hundred. So a caller
waits in a queue; a flusher takes whatever waits there, at once and without a timer, and answers all of it after its
COMMIT. While it is away the next ones gather: the busier the house, the larger the groups (measured: 14 to 17 of 32
clients).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from app.errors import Unavailable

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Outcomes = Sequence[Answer | Exception]

_LARGEST_GROUP = 256
_FLUSHERS = 2
"""One commits while the other prepares; a third only waits for the same disk."""
_MOST_WAITING = 4096
"""A second's work or two: whoever comes behind that is better told to come again than kept."""


class GroupCommit(Generic[Asked, Answer]):
    """The queue of one process; all methods but ``flush`` run in its event loop.

    Args:
        flush: Writes many in one transaction, in a thread; returns an answer or an error for each, after COMMIT. What
            it raises means that nothing was written: then each is tried alone, so that a bad one fails alone.
        most_waiting: How many may wait.
    """

    def __init__(
        self, flush: Callable[[Sequence[Asked]], Outcomes[Answer]], *, most_waiting: int = _MOST_WAITING
    ) -> None:
        self._flush, self._most_waiting = flush, most_waiting
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._threads = ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="flush")
        self._flushers: set[asyncio.Task[None]] = set()

    def submit(self, asked: Asked) -> asyncio.Future[Answer]:
        """Queue it; the future has its answer once it is on disk. Written it is even if nobody awaits that.

        Raises:
            Unavailable: Too many wait already.
        """
        if len(self._waiting) >= self._most_waiting:
            raise Unavailable("too many demands are waiting; this one was not accepted, send it again")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((asked, answer))
        if len(self._flushers) < _FLUSHERS:
            flusher = loop.create_task(self._flush_all())
            self._flushers.add(flusher)
            flusher.add_done_callback(self._flushers.discard)
        return answer

    async def drain(self) -> None:
        """Answer all who wait; at shutdown, when nobody new can come."""
        while self._flushers:
            await asyncio.gather(*self._flushers)
        self._threads.shutdown()

    async def _flush_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(_LARGEST_GROUP, len(self._waiting)))]
            outcomes = await loop.run_in_executor(self._threads, self._outcomes, [asked for asked, _ in group])
            for (_, answer), outcome in zip(group, outcomes, strict=True):
                _deliver(answer, outcome)

    def _outcomes(self, group: Sequence[Asked]) -> Outcomes[Answer]:
        try:
            return self._flush(group)
        except Exception as error:  # noqa: BLE001 - whatever it was, each caller is told
            return self._each_alone(group) if len(group) > 1 else [error]

    def _each_alone(self, group: Sequence[Asked]) -> list[Answer | Exception]:
        """One after the other, until PostgreSQL turns out to be away."""
        outcomes: list[Answer | Exception] = []
        for asked in group:
            [outcome] = self._outcomes([asked])
            outcomes.append(outcome)
            if isinstance(outcome, Unavailable):
                return [*outcomes, *(Unavailable(str(outcome)) for _ in group[len(outcomes) :])]
        return outcomes


def _deliver(answer: asyncio.Future[Answer], outcome: Answer | Exception) -> None:
    if answer.done():
        return  # its caller has gone; what was written stays written
    if not isinstance(outcome, Exception):
        answer.set_result(outcome)
        return
    answer.set_exception(outcome)
    answer.exception()  # read once, or a caller who left would have asyncio print it
