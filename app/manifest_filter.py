"""What a training pipeline runs before it trains: a manifest without the samples of people who must not be trained on.

It needs a URL and an API key with the scope suppressions:read, and neither our secrets nor our database.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Final, NamedTuple, Self, TextIO, cast

import httpx

from app.errors import Invalid, Unavailable

AT_ONCE: Final = 10_000
_BODY_MOST: Final = 3 << 20  # bytes; the service takes 4 MiB
_TRIES: Final = 6
_WAIT_SECONDS: Final = 2.0


class Sifted(NamedTuple):
    """What came of a manifest."""

    kept: int
    """Rows that were written."""
    left_out: int
    """Rows that were not: every row of a sample that one of the people on the list has a part in."""


class Pipeline:
    """A training pipeline's line to the service."""

    def __init__(self, url: str, api_key: str, *, model: str) -> None:
        self._model = model
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def barred(self, user_ids: Iterable[str]) -> set[str]:
        """Those of the people whom the model must not be trained on.

        Raises:
            Invalid: The service refuses the question: the key, the model's name or an id.
            Unavailable: It does not answer, or not yet; nothing is decided.
        """
        found: set[str] = set()
        for portion in _portions(user_ids):
            answer = self._ask({"model": self._model, "user_ids": portion})
            found |= {portion[place] for place in answer}
        return found

    def _ask(self, question: dict[str, object]) -> list[int]:
        for attempt in range(_TRIES):
            try:
                answer = self._http.post("/v1/suppressions:check", json=question)
            except httpx.TransportError as error:
                raise Unavailable(f"the service can't be reached ({type(error).__name__})") from None
            if answer.status_code == 200:
                return list(answer.json()["suppressed"])
            if answer.status_code not in {429, 503}:
                raise Invalid("suppressions", f"the service answers {answer.status_code}: {_detail(answer)}")
            if attempt + 1 < _TRIES:
                time.sleep(_pause(answer))
        raise Unavailable(f"the service answers {answer.status_code} again and again; try later")


def sift(manifest: Path, out: TextIO, pipeline: Pipeline, *, column: str = "user_id") -> Sifted:
    """Copy a CSV manifest (plain or gzipped) less every sample in which one of the people on the list has a part.

    It is read twice, since a sample may be listed again under another of its people. Nothing is written before every
    question is answered; memory grows with the samples left out, not with the file.

    Raises:
        Invalid: The file can't be read, or a question is refused.
        Unavailable: The service does not answer.
    """
    barred_samples: set[str] = set()
    with _rows(manifest, column) as (_, rows):
        while portion := list(islice(rows, AT_ONCE)):
            people = pipeline.barred(dict.fromkeys(user for _, user, _ in portion if user))
            barred_samples |= {sample for sample, user, _ in portion if user in people}
    writer, kept, left_out = csv.writer(out, lineterminator="\n"), 0, 0
    with _rows(manifest, column) as (names, rows):
        writer.writerow(names)
        for sample, _, cells in rows:
            if sample in barred_samples:
                left_out += 1
            else:
                writer.writerow(cells)
                kept += 1
    return Sifted(kept, left_out)


_Row = tuple[str, str, list[str]]


@contextmanager
def _rows(manifest: Path, column: str) -> Iterator[tuple[list[str], Iterator[_Row]]]:
    """The names of the columns, and (sample, user, all cells) of each line."""
    try:
        with manifest.open("rb") as on_disk:
            packed = manifest.name.lower().endswith(".gz")
            unpacked = cast("IO[bytes]", gzip.GzipFile(fileobj=on_disk)) if packed else on_disk
            reader = csv.reader(io.TextIOWrapper(unpacked, "utf-8-sig", newline=""), strict=True)
            names = next(reader, [])
            for needed in ("sample_id", column):
                if needed not in names:
                    raise Invalid("manifest", f"it has no column {needed}")
            yield names, _cells(reader, names, column)
    except csv.Error:
        raise Invalid("manifest", f"line {reader.line_num}: quotes or line ends are broken") from None
    except UnicodeDecodeError:  # carries what it could not decode
        raise Invalid("manifest", "it is not UTF-8; convert the file") from None
    except (EOFError, OSError) as error:
        raise Invalid("manifest", f"it can't be read: {getattr(error, 'strerror', None) or 'damaged'}") from None


def _cells(reader: Iterable[list[str]], names: Sequence[str], column: str) -> Iterator[_Row]:
    sample, user = names.index("sample_id"), names.index(column)
    for number, cells in enumerate(reader, 2):
        if cells and len(cells) != len(names):
            raise Invalid("manifest", f"record {number} has {len(cells)} cells, and the first line has {len(names)}")
        if cells:
            yield _as_read(cells[sample]), cells[user], cells


def _as_read(sample_id: str) -> str:
    """A sample's id as registration reads it: ``7`` and ``07`` are one sample."""
    return str(int(sample_id)) if sample_id.strip().isdecimal() else sample_id


def _portions(user_ids: Iterable[str]) -> Iterator[list[str]]:
    """As many ids at a time as one question may hold."""
    portion: list[str] = []
    size = 0
    for user_id in user_ids:
        cost = len(json.dumps(user_id)) + 2
        if portion and (len(portion) == AT_ONCE or size + cost > _BODY_MOST):
            yield portion
            portion, size = [], 0
        portion.append(user_id)
        size += cost
    if portion:
        yield portion


def _pause(answer: httpx.Response) -> float:
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), 60.0) if asked.isdecimal() else _WAIT_SECONDS


def _detail(answer: httpx.Response) -> str:
    """The service's sentence, which never quotes an id; nothing of an answer that is not ours."""
    if answer.headers.get("Content-Type", "") != "application/problem+json":
        return "is that the address of an Expunge service?"
    found = answer.json()
    return " ".join([str(found["detail"]), *(str(e["field"]) for e in found.get("errors", [])[:1])])
