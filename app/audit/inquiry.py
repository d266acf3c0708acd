"""A question to a server that may be hostile: it gets so long and so many bytes, and leads us nowhere else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import httpx

from app.errors import Unavailable

_MOST_BYTES: Final = 64 << 10


@dataclass(frozen=True)
class Answer:
    """What a server said; nothing of it is believed yet."""

    status: int
    body: bytes


async def ask(
    url: str, question: bytes, *, kind: str, seconds: float, headers: Mapping[str, str] | None = None
) -> Answer:
    """POST a question, and read an answer of at most 64 KiB.

    Args:
        url: Where; no proxy is used and no redirect followed.
        question: The body.
        kind: Its media type.
        seconds: For all of it. A limit for each read would let a server that sends a byte at a time hold us for days.
        headers: Others that it asks for.

    Raises:
        Unavailable: There is no answer, it is too long, or it comes too late.
    """
    return await _asked("POST", url, question, {**(headers or {}), "Content-Type": kind}, seconds)


async def read(url: str, *, seconds: float) -> Answer:
    """GET what lies at ``url``, on the same terms.

    Raises:
        Unavailable: There is no answer, it is too long, or it comes too late.
    """
    return await _asked("GET", url, None, {"Accept": "application/json"}, seconds)


async def _asked(method: str, url: str, question: bytes | None, headers: dict[str, str], seconds: float) -> Answer:
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=seconds, trust_env=False, verify=_authorities()) as client,
            client.stream(method, url, content=question, headers={**headers, "Accept-Encoding": "identity"}) as answer,
        ):
            return Answer(answer.status_code, await _body(answer))
    except Exception as error:  # noqa: BLE001 - no list has all that an odd address or a stranger's bytes can raise
        raise Unavailable(f"no answer that can be used ({type(error).__name__})") from None


async def _body(answer: httpx.Response) -> bytes:
    read = b""
    async for part in answer.aiter_raw():  # raw: what is small here may inflate to gigabytes
        read += part
        if len(read) > _MOST_BYTES:
            raise ValueError("too long")
    return read


@cache
def _authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
