"""Requests as a file: what a caller sees, from one moment, page by page; no user id, nothing that runs in a sheet."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from itertools import chain
from typing import Any, Protocol
from uuid import UUID

from anyio import CancelScope
from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.types import Receive, Scope, Send

from app.api.auth import Reader
from app.api.context import CurrentContext, Now
from app.api.problems import answers
from app.api.requests import Reference, shown
from app.api.schemas.requests import ErasureRequestOut
from app.domain.lifecycle import RequestStatus
from app.errors import Unavailable
from app.storage import requests
from app.storage.sessions import snapshot
from app.storage.tables import ErasureRequest

router = APIRouter(prefix="/v1/erasure-requests", tags=["erasure requests"])
_PAGE = 500
_AT_ONCE = threading.BoundedSemaphore(4)
"""An export holds a connection for as long as its reader takes; creates need the others."""
_OF_ONE_CLIENT = 2
_RUNNING: Counter[UUID] = Counter()
_COUNTING = threading.Lock()
_RUNS_IN_A_SHEET = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet compute a cell (OWASP, CSV injection)."""
_CELL_OF_ANOTHER = re.compile(r'([;|\t])(?=[\s"]*[=+@-])')
"""Where a sheet that separates by something else than commas sees a new cell that it would compute, quoted or not."""
_COLUMNS = [name for name in ErasureRequestOut.model_fields if name != "targets"] + ["targets"]
_FILES: dict[int | str, dict[str, Any]] = {  # Any: OpenAPI
    200: {"content": {"text/csv": {}, "application/x-ndjson": {}}, "description": "One request a line"}
}


class Selection(Protocol):
    """Which requests are written, and in which order."""

    def page(self, tx: Session, last: ErasureRequest | None, *, limit: int) -> Sequence[ErasureRequest]:
        """Requests behind the last one written, or from the beginning."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which requests, in order of arrival."""

    seen_by: UUID | None
    status: RequestStatus | None
    reference: str | None

    def page(self, tx: Session, last: ErasureRequest | None, *, limit: int) -> Sequence[ErasureRequest]:
        """Requests behind the last one written, or from the beginning."""
        return requests.page(tx, after=last.sequence if last else 0, limit=limit, **asdict(self))


class Format(StrEnum):
    """How the rows are written."""

    CSV = "csv"
    NDJSON = "ndjson"


@router.get(":export", response_class=Response, responses=answers(401, 403, 422, 503) | _FILES)
def export(
    context: CurrentContext,
    caller: Reader,
    now: Now,
    format: Format,  # noqa: A002 - what a caller writes
    status: RequestStatus | None = None,
    reference: Reference = None,
) -> StreamingResponse:
    """Download all requests that you see, in order of arrival, as they stood at one moment."""
    take_place()
    wanted = Wanted(seen_by=caller.sees, status=status, reference=reference)
    return download(context.engine, now, wanted, client_id=caller.client_id, written=format)


def take_place() -> None:
    """Be one of the few exports that run at once; :func:`download` gives the place back.

    Raises:
        Unavailable: There is no place.
    """
    if not _AT_ONCE.acquire(blocking=False):
        raise Unavailable("other exports are running; try again when they are done")


def download(
    engine: Engine, now: datetime, wanted: Selection, *, client_id: UUID, written: Format
) -> StreamingResponse:
    """Stream requests, as they stood at one moment, in the place that :func:`take_place` took.

    Raises:
        Unavailable: Two of this client's are running, or PostgreSQL can't be reached.
    """
    pages = _counted(_pages(engine, now, wanted), client_id)
    first = next(pages)  # begun, it gives back what it holds however it ends; and if PostgreSQL is away, we can say so
    line = _csv if written is Format.CSV else _ndjson
    head = _row(_COLUMNS) if written is Format.CSV else ""
    lines = ("".join(map(line, page)) for page in chain([first], pages))
    kind = "text/csv; charset=utf-8; header=present" if written is Format.CSV else "application/x-ndjson"
    named = {"Content-Disposition": f'attachment; filename="erasure-requests.{written}"'}
    return _Export(pages, chain([head], lines), media_type=kind, headers=named)


class _Export(StreamingResponse):
    """Closes what it reads from, however it ends.

    A reader that left, or stalled, would else hold a place and a connection until Python's collector comes by.
    """

    def __init__(
        self, pages: Generator[list[ErasureRequestOut], None, None], content: Iterator[str], **more: Any
    ) -> None:
        super().__init__(content, **more)  # Any: as there
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry. A page that is being read is read to its end first: threads can't be cancelled."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await run_in_threadpool(self._pages.close)


def _counted(
    pages: Iterator[list[ErasureRequestOut]], client_id: UUID
) -> Generator[list[ErasureRequestOut], None, None]:
    """The same, as one of the few exports of a client."""
    with _place_of(client_id):
        yield from pages


@contextmanager
def _place_of(client_id: UUID) -> Iterator[None]:
    with _COUNTING:
        free = _RUNNING[client_id] < _OF_ONE_CLIENT
        _RUNNING[client_id] += free
    if not free:
        _AT_ONCE.release()
        raise Unavailable("two exports of yours are running; try again when one is done")
    try:
        yield
    finally:
        with _COUNTING:
            _RUNNING[client_id] -= 1


def _pages(engine: Engine, now: datetime, wanted: Selection) -> Iterator[list[ErasureRequestOut]]:
    """All of it, a page in memory at a time; at least one page, if an empty one."""
    try:
        with snapshot(engine) as tx:
            last, more = None, True
            while more:
                page = wanted.page(tx, last, limit=_PAGE)
                yield shown(tx, page, now)
                more = len(page) == _PAGE
                last = page[-1] if page else last
                tx.expunge_all()  # else the session would keep every row
    finally:
        _AT_ONCE.release()


def _ndjson(request: ErasureRequestOut) -> str:
    return request.model_dump_json() + "\n"


def _csv(request: ErasureRequestOut) -> str:
    values = request.model_dump(mode="json")
    values["targets"] = " ".join(f"{one['model']}={one['result'] or one['status']}" for one in values["targets"])
    return _row([_cell(values[name]) for name in _COLUMNS])


def _row(cells: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow(cells)
    return line.getvalue()


def _cell(value: object) -> str:
    """A cell that a spreadsheet shows and never computes."""
    written = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    written = _CELL_OF_ANOTHER.sub(r"\1'", written)
    return "'" + written if written.startswith(_RUNS_IN_A_SHEET) else written
