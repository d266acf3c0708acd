"""How fast the sample index loads and answers: `make bench-sample_index`, or with `--pairs 100000` for a look.

A tenth as many people as pairs, sample ids and people in no order. Timed are reading a CSV manifest (with its HMACs),
the whole import from that file to COMMIT, and looking up people who have exactly ten samples. Wall time on a shared
machine says little by itself: CPU seconds of this process and the time of an empty statement stand beside it.
PostgreSQL is the embedded one with durable settings, or the one in DATABASE_URL.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID, uuid4

from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.embedded import Postgres
from app.storage import samples
from app.storage.migrate import upgrade
from app.storage.samples import Row
from app.storage.sessions import connect, transaction
from app.storage.tables import Model, Posting
from workers import manifest

RESULT = Path(__file__).parent / "results" / "sample_index.json"
LOOKUPS = 2000
KEY = bytes(range(32))


@dataclass(frozen=True)
class Figure:
    """One measured number and, where we promise something, whether the promise holds."""

    figure: str
    value: float
    target: float | None = None
    holds: bool | None = None


def main() -> None:
    """Measure, print, write the result file."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=10_000_000)
    arguments.add_argument("--output", type=Path, default=RESULT)
    given = arguments.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch, _database(Path(scratch)) as url:
        upgrade(url)
        figures = measure(connect(url), Path(scratch), given.pairs, console)
    console.print(_table(figures))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": _machine(), "commit": _commit(), "rows": [asdict(figure) for figure in figures]}
    given.output.write_text(json.dumps(result, indent=2) + "\n")


def measure(engine: Engine, scratch: Path, pairs: int, console: Console) -> list[Figure]:
    """Run the parts one after the other, so that they don't compete."""
    path = scratch / "manifest.csv"
    _write_csv(path, pairs, console)
    reading, reading_cpu = _read(path, console)
    manifest_id, importing, size = _import(engine, path, console)
    with transaction(engine) as tx:
        times, floor = _look_up(tx, manifest_id), _times(lambda: tx.execute(text("SELECT 1")).all())
    return [
        Figure("pairs", pairs),
        Figure("users", pairs // 10),
        Figure("read and hash the CSV, s", round(reading, 1)),
        Figure("read and hash the CSV, CPU s", round(reading_cpu, 1)),
        Figure("import it, from the file to COMMIT, s", round(importing, 1)),
        Figure("bytes per pair", round(size / pairs, 1), 25, size / pairs <= 25),
        Figure("lookup of 10 samples, p50 ms", _quantile(times, 0.5)),
        Figure("lookup of 10 samples, p99 ms", _quantile(times, 0.99), 1, _quantile(times, 0.99) < 1),
        Figure("an empty statement, p50 ms", _quantile(floor, 0.5)),
        Figure("an empty statement, p99 ms", _quantile(floor, 0.99)),
    ]


def _write_csv(path: Path, pairs: int, console: Console) -> None:
    draw = random.Random(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "user_id"])
        for sample_id in track(_shuffled(pairs), "writing a CSV", total=pairs, console=console, update_period=1):
            writer.writerow([sample_id, f"user-{draw.randrange(pairs // 10)}@example.org"])


def _read(path: Path, console: Console) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    with _rows(path, "reading it", console) as rows:
        for _ in rows:
            pass
    return time.perf_counter() - start, time.process_time() - cpu


def _import(engine: Engine, path: Path, console: Console) -> tuple[UUID, float, int]:
    start = time.perf_counter()
    with _rows(path, "importing it (sorting follows)", console) as rows, transaction(engine) as tx:
        model = Model(name=uuid4().hex, recipe="benchmark:none")
        tx.add(model)
        tx.flush()
        loaded = samples.load(tx, model.id, digest="", rows=rows, model_name=model.name)
    elapsed = time.perf_counter() - start
    with transaction(engine) as tx:
        size = tx.scalar(text("SELECT pg_total_relation_size('postings')"))
    return loaded.manifest_id, elapsed, int(size or 0)


@contextmanager
def _rows(path: Path, caption: str, console: Console) -> Iterator[Iterator[Row]]:
    with Progress(console=console) as bar:
        task = bar.add_task(caption, total=path.stat().st_size)
        yield manifest.read(path, index_key=KEY, progress=lambda done, _total: bar.update(task, completed=done))


def _look_up(tx: Session, manifest_id: UUID) -> list[float]:
    with_ten = select(Posting.subject_key).where(
        Posting.manifest_id == manifest_id, func.cardinality(Posting.sample_ids) == 10
    )
    chosen = iter(random.Random(2).choices(list(tx.scalars(with_ten)), k=LOOKUPS))
    return _times(lambda: samples.lookup(tx, manifest_id, next(chosen)).train)


def _times(call: Callable[[], Sequence[object]]) -> list[float]:
    times = []
    for _ in range(LOOKUPS):
        start = time.perf_counter()
        answer = call()
        times.append((time.perf_counter() - start) * 1000)
        assert len(answer) in {1, 10}
    return sorted(times)


def _quantile(times: list[float], q: float) -> float:
    return round(times[int(len(times) * q)], 3)


def _shuffled(pairs: int) -> Iterator[int]:
    # A prime beyond 10 billion: multiples of another number visit different residues, in no order.
    return (n * 7_919_000_003 % 10_000_000_019 for n in range(pairs))


@contextmanager
def _database(scratch: Path) -> Iterator[str]:
    if given := os.environ.get("DATABASE_URL"):
        yield given
        return
    server = Postgres(scratch / "postgres")
    with server:
        yield server.url
    server.remove()


def _table(figures: list[Figure]) -> Table:
    table = Table("figure", "value", "target", "holds")
    for row in figures:
        verdict = "" if row.holds is None else "yes" if row.holds else "no"
        table.add_row(row.figure, f"{row.value:,}", "" if row.target is None else f"{row.target:g}", verdict)
    return table


def _machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    load = os.getloadavg()[0]
    return f"{cpu}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}, load {load:.1f}"


def _commit() -> str:
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "none"


if __name__ == "__main__":
    main()
