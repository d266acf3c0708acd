"""What the API writes to a connection, and when."""

from __future__ import annotations

import asyncio

import pytest

from app.api.wire import InOnePiece

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Sent(asyncio.Transport):
    """A transport that remembers what it was told to send."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True


async def test_an_answers_head_and_body_are_one_write() -> None:
    sent = Sent()
    transport = InOnePiece(sent, asyncio.get_running_loop())
    transport.write(b"head")
    transport.write(b"body")
    await asyncio.sleep(0)
    assert sent.writes == [b"headbody"]


async def test_what_nothing_follows_is_sent_in_the_next_turn() -> None:
    sent = Sent()
    transport = InOnePiece(sent, asyncio.get_running_loop())
    transport.write(b"head")
    assert sent.writes == []
    await asyncio.sleep(0)
    transport.write(b"")
    await asyncio.sleep(0)
    assert sent.writes == [b"head"]


async def test_pieces_keep_their_order_and_closing_loses_none() -> None:
    sent = Sent()
    transport = InOnePiece(sent, asyncio.get_running_loop())
    for piece in (b"1", b"2", b"3"):
        transport.write(piece)
    transport.close()
    await asyncio.sleep(0)
    assert (b"".join(sent.writes), sent.closed) == (b"123", True)
