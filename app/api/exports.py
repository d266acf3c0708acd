"""Requests as a file: what a caller sees, from one moment, page by page; no user id, nothing that runs in a sheet."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from itertools import chain
from typing import Any
from uuid import UUID

from anyio import CancelScope
from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine
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


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which requests."""

    seen_by: UUID | None
    status: RequestStatus | None
    reference: str | None


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
    if not _AT_ONCE.acquire(blocking=False):
        raise Unavailable("other exports are running; try again when they are done")
    wanted = Wanted(seen_by=caller.sees, status=status, reference=reference)
    pages = _counted(_pages(context.engine, now, wanted), caller.client_id)
    first = next(pages)  # begun, it gives back what it holds however it ends; and if PostgreSQL is away, we can say so
    line = _csv if format is Format.CSV else _ndjson
    head = _row(_COLUMNS) if format is Format.CSV else ""
    lines = ("".join(map(line, page)) for page in chain([first], pages))
    kind = "text/csv; charset=utf-8; header=present" if format is Format.CSV else "application/x-ndjson"
    named = {"Content-Disposition": f'attachment; filename="erasure-requests.{format}"'}
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


def _pages(engine: Engine, now: datetime, wanted: Wanted) -> Iterator[list[ErasureRequestOut]]:
    """All of it, a page in memory at a time; at least one page, if an empty one."""
    try:
        with snapshot(engine) as tx:
            after, more = 0, True
            while more:
                page = requests.page(tx, after=after, limit=_PAGE, **asdict(wanted))
                yield shown(tx, page, now)
                more = len(page) == _PAGE
                after = page[-1].sequence if page else after
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
