"""How often a caller may call: counted in this process, and told to Redis behind the requests' backs.

No request waits for Redis. Each process counts what it let in and decides by that and by what it last heard of the
others. A round in the background tells Redis what is new and hears the sum: every quarter of a second, and at once when
somebody has used a tenth of what they may. So several processes together let in the limit, and in the worst case (all
of it spent within one round) each process the limit once. While Redis is away each process goes on by itself.

Windows are fixed: a caller that is patient can spend two windows' worth around the moment where they meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Final

from limits import RateLimitItem, parse
from limits.storage import RedisStorage

from app.logs import log
from app.settings import Settings

_ROUND_SECONDS: Final = 0.25
_AWAY_SECONDS: Final = 2.0
_REDIS_SECONDS: Final = 0.5
"""A Redis that hangs holds up the round, and nobody else."""
_SHARE_TOLD_AT_ONCE: Final = 10
_MOST_PER_ROUND: Final = 1_000
"""One costs Redis and this process about 0.1 ms; whoever comes with more addresses than that is not told of at once."""
_MOST_CALLERS: Final = 50_000
"""Of one limit in one window, about 300 bytes each; beyond them the oldest is forgotten."""


_STRANGERS: Final = "1/second"


@dataclass(slots=True)
class Count:
    """What one caller used of a window."""

    ours: int = 0
    told: int = 0
    """How much of ours Redis knows."""
    elsewhere: int = 0


@dataclass(frozen=True)
class News:
    """What Redis has not heard yet of one limit and window."""

    window: int
    counts: dict[str, Count]


class Tally:
    """One limit, and who has used how much of the current window."""

    def __init__(self, name: str, rule: RateLimitItem, *, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        self.name, self.rule = name, rule
        self._amount, self._seconds = rule.amount, rule.get_expiry()
        self._told_at_once = max(1, self._amount // _SHARE_TOLD_AT_ONCE)
        self._wake, self._clock = wake, clock
        self._window = 0
        self._counts: dict[str, Count] = {}
        self._fresh: dict[str, Count] = {}

    def spend(self, who: str) -> float:
        """Take one call from what ``who`` may make; the seconds to wait if nothing is left, else 0."""
        self._turn()
        count = self._counts.get(who) or self._begin(who)
        if count.ours + count.elsewhere >= self._amount:
            return self._rest()
        count.ours += 1
        self._fresh[who] = count
        if count.ours - count.told >= self._told_at_once:
            self._wake()
        return 0.0

    def spent(self, who: str) -> float:
        """The seconds to wait if ``who`` has nothing left, else 0; takes nothing."""
        self._turn()
        count = self._counts.get(who)
        return self._rest() if count and count.ours + count.elsewhere >= self._amount else 0.0

    def news(self) -> News:
        """What is to be told; called where ``spend`` is, since neither has a lock."""
        news = News(self._window, dict(islice(self._fresh.items(), _MOST_PER_ROUND)))
        self._fresh = {}
        return news

    def settle(self, news: News, storage: RedisStorage, name: Callable[[str], str]) -> None:
        """Tell Redis, and hear what others used; in another thread, which alone writes ``told`` and ``elsewhere``."""
        for who, count in news.counts.items():
            fresh = count.ours - count.told
            key = f"{self.rule.key_for(self.name, name(who))}/{news.window}"
            total = storage.incr(key, 2 * self._seconds, fresh)
            count.told += fresh
            count.elsewhere = max(0, total - count.told)  # less than we told it: Redis has lost its memory

    def _turn(self) -> None:
        window = int(self._clock() // self._seconds)
        if window != self._window:
            self._counts, self._fresh, self._window = {}, {}, window

    def _begin(self, who: str) -> Count:
        if len(self._counts) >= _MOST_CALLERS:
            del self._counts[next(iter(self._counts))]
        return self._counts.setdefault(who, Count())

    def _rest(self) -> float:
        return (self._window + 1) * self._seconds - self._clock()


class Limits:
    """All limits of one process, and the round that makes them one with those of the others."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._redis_url = settings.redis_url.get_secret_value()
        self._secret = settings.key("index_key")
        self._awake = asyncio.Event()
        self._away = False

        def tally(name: str, rule: str) -> Tally:
            return Tally(name, parse(rule), wake=self._awake.set, clock=clock)

        self.callers = tally("caller", settings.limit_per_caller)
        self.addresses = tally("address", settings.limit_per_address)
        self.readers = tally("reader", settings.limit_public)
        self.failures = tally("failure", settings.limit_failures)
        self.strangers = Tally("stranger", parse(_STRANGERS), wake=lambda: None, clock=clock)
        """From an address that has failed too often; each process counts for itself."""

    async def make_rounds(self) -> None:
        """Settle with Redis for ever; without an address of one there is nobody to settle with."""
        while self._redis_url:
            await self._pause()
            news = {tally: tally.news() for tally in (self.callers, self.addresses, self.readers, self.failures)}
            self._note(await asyncio.to_thread(self._settled, news))

    async def _pause(self) -> None:
        if self._away:
            await asyncio.sleep(_AWAY_SECONDS)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_SECONDS):
                    await self._awake.wait()
        self._awake.clear()

    def _settled(self, news: dict[Tally, News]) -> str | None:
        """One round; returns what went wrong, if something did."""
        try:
            storage = _connect(self._redis_url)
            for tally, untold in news.items():
                tally.settle(untold, storage, self._name)
        except Exception as error:  # noqa: BLE001 - whatever the client library raises, we count on by ourselves
            return type(error).__name__
        return None

    def _note(self, problem: str | None) -> None:
        if bool(problem) != self._away:
            self._away = bool(problem)
            log.warning("limits are counted apart" if problem else "limits are counted in redis", kind=problem)

    def _name(self, who: str) -> str:
        """How Redis knows a caller: an address, or what a key looks like, is nobody's business there."""
        return hashlib.blake2b(who.encode(), key=self._secret, person=b"limits", digest_size=12).hexdigest()


@cache
def _connect(url: str) -> RedisStorage:
    """Connects when first used; redis is imported here, so that an API without it never loads it."""
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    options = {"socket_timeout": _REDIS_SECONDS, "socket_connect_timeout": _REDIS_SECONDS}
    return RedisStorage(url, retry=Retry(NoBackoff(), 0), **options)  # type: ignore[arg-type] # handed on to redis
