"""Reads a manifest: which sample came from which user, as CSV (plain or gzipped) or Parquet, without holding it.

Columns: ``sample_id`` (0 to 2⁶³-1), ``user_id`` (empty: the sample belongs to nobody) and optionally ``split``
(``train``, the default, or ``heldout``). Any other column is refused: a misspelt ``split`` would train on held-out
people. A bad line is named by its number and the rule it breaks, never by what it says.

Lines are converted a few hundred at a time, which is twice as fast as one by one. When a batch breaks a rule,
its lines go through the same conversion alone, and the first to fail is the one that is named.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from app.domain.identifiers import check_user_id, subject_key, suppression_key
from app.errors import Invalid
from app.storage.samples import HELDOUT, TRAIN, Row, Split

Progress = Callable[[int, int], None]
"""Called with (done, total): bytes of a CSV file as it lies on disk, rows of a Parquet file."""

_BATCH: Final = 1 << 8  # lines; larger batches outlive the garbage collector's youth and cost twice the time (measured)
_PARQUET_BATCH: Final = 1 << 13
_CACHED_PEOPLE: Final = 1 << 20  # about 400 MB when full; two HMACs cost more than all else that a line needs
_SPLITS: Final[dict[str | None, Split]] = {None: TRAIN, "": TRAIN, TRAIN: TRAIN, HELDOUT: HELDOUT}


def read(path: Path, *, index_key: bytes, progress: Progress = lambda _done, _total: None) -> Iterator[Row]:
    """Stream the rows of a manifest with user ids already hashed.

    Args:
        path: a file whose name ends in .csv, .csv.gz or .parquet.
        index_key: the installation's key for hashes of user ids.
        progress: told every few hundred rows, and at the end.

    Raises:
        Invalid: While streaming: the file can't be read, lacks a column or has one too many, or a line breaks a rule.
    """
    batches = _batches(path, progress)
    keys_of = _cached_keys(index_key)
    for batch in batches:
        try:
            rows = batch.rows(keys_of)
        except Invalid:
            batch.name_the_culprit(keys_of)
            raise
        yield from rows


def digest(path: Path) -> str:
    """Fingerprint of the file as it lies on disk: sha256, hex."""
    with _readable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_Keys = tuple[UUID, bytes] | tuple[None, None]
_KeysOf = Callable[[str | None], _Keys]


def _cached_keys(index_key: bytes) -> _KeysOf:
    @lru_cache(_CACHED_PEOPLE)  # most people have several samples
    def keys_of(user_id: str | None) -> _Keys:
        if not user_id:
            return None, None
        check_user_id(user_id)
        return subject_key(index_key, user_id), suppression_key(index_key, user_id)

    return keys_of


class _Batch(NamedTuple):
    """Consecutive lines, column by column as they stand in the file; ``first`` is the number of the first."""

    unit: str
    first: int
    sample_ids: Sequence[str | int | None]
    user_ids: Sequence[str | None]
    splits: Sequence[str | None]

    def rows(self, keys_of: _KeysOf) -> Iterator[Row]:
        """Convert all lines, or refuse without a number."""
        if not _SPLITS.keys() >= set(self.splits):
            raise Invalid("manifest", "the split is neither train nor heldout")
        sample_ids, keys = _whole_numbers(self.sample_ids), list(map(keys_of, self.user_ids))
        subject_keys, suppression_keys = zip(*keys, strict=True)
        return map(Row, sample_ids, subject_keys, suppression_keys, map(_SPLITS.__getitem__, self.splits))

    def name_the_culprit(self, keys_of: _KeysOf) -> None:
        """Refuse with the number of the first line that can't be converted."""
        columns = zip(self.sample_ids, self.user_ids, self.splits, strict=True)
        for number, (sample_id, user_id, split) in enumerate(columns, self.first):
            line = _Batch(self.unit, number, [sample_id], [user_id], [split])
            try:
                line.rows(keys_of)
            except Invalid as error:  # its traceback leads to the value
                raise Invalid("manifest", f"{self.unit} {number}: {error}") from None


def _whole_numbers(values: Sequence[str | int | None]) -> list[int]:
    # Each test is one pass in C; as generator expressions they would cost more than the parsing.
    kinds = set(map(type, values))
    if kinds == {str}:
        texts = cast("Sequence[str]", values)
        if all(map(str.isdigit, texts)) and "".join(texts).isascii() and max(map(len, texts)) <= 19:
            values, kinds = list(map(int, texts)), {int}
    numbers = cast("list[int]", values)
    if kinds == {int} and min(numbers) >= 0 and max(numbers) < 1 << 63:
        return numbers
    raise Invalid("manifest", "the sample_id is not a whole number from 0 to 2^63-1, written in digits only")


def _batches(path: Path, progress: Progress) -> Iterator[_Batch]:
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return _csv_batches(path, progress)
    if name.endswith(".parquet"):
        return _parquet_batches(path, progress)
    raise Invalid("manifest", f"{path.name} is neither .csv, .csv.gz nor .parquet")


def _check_columns(names: Sequence[str]) -> None:
    if missing := [name for name in ("sample_id", "user_id") if name not in names]:
        # What stands there instead may be data of a file without a header: it is not repeated.
        raise Invalid("manifest", f"the columns must be named, and {' and '.join(missing)} is not among the names")
    if unknown := sorted(set(names) - {"sample_id", "user_id", "split"}):
        raise Invalid("manifest", f"unknown columns {unknown}: leave them out, or correct the spelling of split")
    if len(set(names)) < len(names):
        raise Invalid("manifest", "a column is named twice")


def _csv_batches(path: Path, progress: Progress) -> Iterator[_Batch]:
    with _readable(path), path.open("rb") as on_disk, _unpacked(path, on_disk) as unpacked:
        total = path.stat().st_size
        reader = csv.reader(io.TextIOWrapper(unpacked, "utf-8-sig", newline=""), strict=True)
        try:
            names = next(reader, None)
            if names is None:
                raise Invalid("manifest", "the file is empty")
            _check_columns(names)
            for batch in _csv_records(reader, names):
                yield batch
                progress(on_disk.tell(), total)
        except csv.Error:  # an open quote, mostly
            raise Invalid("manifest", f"line {reader.line_num}: quotes or line ends are broken") from None
        except UnicodeDecodeError:  # carries what it could not decode
            number = _undecodable_line(path)
            raise Invalid("manifest", f"line {number}: it is not UTF-8; convert the file") from None
        progress(total, total)


def _unpacked(path: Path, on_disk: IO[bytes]) -> IO[bytes]:
    packed = path.name.lower().endswith(".gz")
    return cast("IO[bytes]", gzip.GzipFile(fileobj=on_disk, mode="rb")) if packed else on_disk


# Any: the type of what csv.reader returns has no public name
def _csv_records(reader: Any, names: Sequence[str]) -> Iterator[_Batch]:
    while True:
        first = reader.line_num + 1
        records = list(islice(reader, _BATCH))
        if not records:
            return
        if set(map(len, records)) == {len(names)}:
            yield _csv_batch(first, records, names)
            continue
        for number, cells in enumerate(records, first):
            if len(cells) not in {0, len(names)}:  # 0: an empty line, as editors leave one at the end
                rule = f"it has {len(cells)} cells, and the first line names {len(names)} columns"
                raise Invalid("manifest", f"line {number}: {rule}")
            if cells:
                yield _csv_batch(number, [cells], names)


def _csv_batch(first: int, records: list[list[str]], names: Sequence[str]) -> _Batch:
    # No cell that passes holds a line feed, so up to the first bad one records and lines are the same.
    columns = dict(zip(names, zip(*records, strict=True), strict=True))
    return _Batch("line", first, columns["sample_id"], columns["user_id"], columns.get("split", (None,) * len(records)))


def _undecodable_line(path: Path) -> int:
    with path.open("rb") as on_disk, _unpacked(path, on_disk) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0  # the file changed under our hands


def _parquet_batches(path: Path, progress: Progress) -> Iterator[_Batch]:
    with _readable(path), path.open("rb") as on_disk, pq.ParquetFile(on_disk) as file:
        names = file.schema_arrow.names
        _check_columns(names)
        _check_types(file.schema_arrow)
        done, total = 0, file.metadata.num_rows
        for table in file.iter_batches(_PARQUET_BATCH, columns=names):
            columns = {name: _values(table, name, done) for name in names}
            splits = columns.get("split", (None,) * len(table))
            yield _Batch("row", done + 1, columns["sample_id"], columns["user_id"], splits)
            done += len(table)
            progress(done, total)


# Any in the two functions below: pyarrow publishes no types
def _check_types(schema: Any) -> None:
    if not pa.types.is_integer(schema.field("sample_id").type):
        raise Invalid("manifest", "the column sample_id must hold integers")
    for name in {"user_id", "split"} & set(schema.names):
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            rule = "must hold strings, spelt as the requests spell them; cast it"
            raise Invalid("manifest", f"the column {name} {rule}")


def _values(table: Any, name: str, done: int) -> list[Any]:
    try:
        return cast("list[Any]", table.column(name).to_pylist())
    except UnicodeDecodeError:  # carries the value
        last = done + len(table)
        raise Invalid("manifest", f"rows {done + 1} to {last}: {name} holds text that is not UTF-8") from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What goes wrong below the level of lines, as one sentence."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise Invalid("manifest", f"{path.name} is damaged or not a gzip file") from None
    except pa.ArrowException:
        raise Invalid("manifest", f"{path.name} is damaged or not a Parquet file") from None
    except OSError as error:
        raise Invalid("manifest", f"{path.name} can't be read: {error.strerror or 'damaged'}") from None
