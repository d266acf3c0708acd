"""What the public log costs: `make bench-audit`, two minutes.

Eight processes accept erasure requests by `intake.accept`, with and without the row for the log's outbox, in rounds
that take turns, because this machine is shared. Then 100 000 entries of whole stories (ten requests to a job) are
sequenced, checked by the verifier as a stranger would, and proven one by one. PostgreSQL is the embedded one with
durable settings, or the one in DATABASE_URL.
"""

from __future__ import annotations

import base64
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from pydantic import SecretStr
from sqlalchemy import Engine, insert, text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from app import intake, keymaking  # noqa: E402 - after the path
from app.audit import evidence  # noqa: E402
from app.audit.sequencer import Sequencer, as_signed  # noqa: E402
from app.embedded import Postgres  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.storage import moves  # noqa: E402
from app.storage.migrate import upgrade  # noqa: E402
from app.storage.sessions import connect, transaction  # noqa: E402
from app.storage.tables import AuditEntry, ErasureRequest  # noqa: E402
from benchmarks.report import Figure, write  # noqa: E402

CLIENTS = 8
ROUNDS = 5
ROUND_SECONDS = 4.0
PENDING = 20_000
LEAVES = 100_000
PEOPLE = 10  # to a job
PROOFS = 2000
Row = dict[str, Any]  # Any: columns of several types
NOW = datetime.now(UTC)


def main() -> None:
    """Measure, print, write the result file."""
    with tempfile.TemporaryDirectory() as scratch, _database(Path(scratch)) as url:
        upgrade(url)
        settings = _settings(url, Path(scratch))
        engine = connect(url)
        rows = [*_transactions(settings), *_sequencing(engine, settings), *_proofs(engine), *_sizes(engine, settings)]
        write("audit", rows, load=round(os.getloadavg()[0], 1), fsync="on", clients=CLIENTS)


def _transactions(settings: Settings) -> list[Figure]:
    """Requests accepted per second; every round runs both ways, each way first in every second one."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with ProcessPoolExecutor(CLIENTS, initializer=_client, initargs=(settings,)) as pool:
        for number in range(ROUNDS + 1):
            for logged in (True, False) if number % 2 else (False, True):
                done = sum(pool.map(_accept, [logged] * CLIENTS))
                if number:  # the first warms up
                    rates[logged].append(done / ROUND_SECONDS)
    ratios = [a / b for a, b in zip(rates[True], rates[False], strict=True)]
    ratio = round(statistics.median(ratios), 2)
    return [
        Figure("requests accepted per second, without the log's row", _median(rates[False])),
        Figure("requests accepted per second, with the log's row", _median(rates[True])),
        Figure("with ÷ without, median of the rounds", ratio, "≥ 0.5", ratio >= 0.5),
        Figure("with ÷ without, lowest and highest round", f"{min(ratios):.2f} … {max(ratios):.2f}"),
    ]


@dataclass
class _Client:
    """What a process keeps between rounds."""

    settings: Settings
    engine: Engine
    key: UUID


_clients: list[_Client] = []
_arrive = moves.ARRIVE
_unlogged = re.sub(r", entered AS \(.*?\n    \)", "", _arrive, count=1, flags=re.DOTALL)
"""The same transaction without a public log."""


def _client(settings: Settings) -> None:
    engine = connect(settings.sqlalchemy_url(), pool_size=1)
    with transaction(engine) as tx:
        _clients.append(_Client(settings, engine, keymaking.operator(tx)))


def _accept(logged: bool) -> int:  # noqa: FBT001 - a pool maps over positions
    (client,), until, done = _clients, time.monotonic() + ROUND_SECONDS, 0
    moves.ARRIVE = _arrive if logged else _unlogged
    while time.monotonic() < until:
        with transaction(client.engine) as tx:
            demand = intake.Demand(user_id=uuid4().hex)
            now = datetime.now(UTC)
            intake.accept(tx, demand, client_id=client.key, idempotency_key=None, now=now, settings=client.settings)
        done += 1
    return done


def _sequencing(engine: Engine, settings: Settings) -> list[Figure]:
    with engine.begin() as connection:  # what the clients left is not whole stories
        connection.execute(text("TRUNCATE audit_evidence"))
        connection.execute(text("ALTER TABLE audit_entries DISABLE TRIGGER USER"))
        connection.execute(text("DELETE FROM audit_entries"))
        connection.execute(text("ALTER TABLE audit_entries ENABLE TRIGGER USER"))
    sequencer = Sequencer.of(settings, as_signed)
    stories = _stories()
    _fill(engine, stories, PENDING)
    first, first_cpu = _drained(engine, sequencer)
    _fill(engine, stories, LEAVES - PENDING)
    rest, rest_cpu = _drained(engine, sequencer)
    where = str(settings.log_path / "public")
    vkey = str(sequencer.signers[0].vkey)
    log, requests = (_verified([command, where, "--vkey", vkey]) for command in ("log", "requests"))
    return [
        Figure("leaves sequenced per second, 20 000 waiting, empty log", first, "≥ 5000", first >= 5000),
        Figure("leaves sequenced per CPU second of the sequencer, the same", first_cpu),
        Figure("leaves sequenced per second, the next 80 000", rest, "≥ 5000", rest >= 5000),
        Figure("leaves sequenced per CPU second of the sequencer, the same", rest_cpu),
        Figure("verify all of 100 000 leaves, s", log, "< 10", log < 10),
        Figure("verify them and every request's story, s", requests, "< 10", requests < 10),
    ]


def _drained(engine: Engine, sequencer: Sequencer) -> tuple[int, int]:
    """Leaves per second, and per second of this process' CPU: wall time says little on a shared machine."""
    start, cpu, placed = time.perf_counter(), time.process_time(), 0
    while done := sequencer.turn(engine, now=NOW):
        placed += done
    return round(placed / (time.perf_counter() - start)), round(placed / (time.process_time() - cpu))


def _verified(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "expunge_verify.cli", *command], check=True, capture_output=True)
    return round(time.perf_counter() - start, 1)


def _fill(engine: Engine, stories: Iterator[tuple[list[Row], list[Row]]], count: int) -> None:
    """Entries of whole jobs, at least ``count``, and the requests that they are about."""
    filled = 0
    with engine.begin() as connection:
        while filled < count:
            people, entries = next(stories)
            if people:
                connection.execute(insert(ErasureRequest), people)
            connection.execute(insert(AuditEntry), entries)
            filled += len(entries)


def _stories() -> Iterator[tuple[list[Row], list[Row]]]:
    """Job by job: the requests, and all that the log is told of them and of the model."""
    weights = _digest()
    yield [], [_entry("model.registered", {"model": {"to": weights}})]
    while True:
        before, weights = weights, _digest()
        people = [_person() for _ in range(PEOPLE)]
        yield people, [*_beginnings(people), *_changes(before, weights), *_ends(people, before, weights)]


def _beginnings(people: list[Row]) -> Iterator[Row]:
    due = (NOW + timedelta(days=30)).isoformat()
    yield from (_entry("request.received", {"due": due}, person) for person in people)
    yield from (_entry("erasure.started", {}, person) for person in people)


def _changes(before: str, after: str) -> Iterator[Row]:
    change = {"from": before, "to": after}
    yield _entry("unlearn.done", {"model": change, "method": "influence-newton/1"})
    yield _entry("verify.passed", {"model": change, "level": "A1"})
    yield _entry("model.promoted", {"model": change})
    yield _entry("model.retired", {"model": {"from": before}})


def _ends(people: list[Row], before: str, after: str) -> Iterator[Row]:
    model = {"model": {"from": before, "to": after}, "method": "influence-newton/1", "level": "A1"}
    for person in people:
        certificate = {"cert": _digest()}
        yield _entry("erasure.done", model, person)
        yield _entry("key.shredded", {}, person)
        yield _entry("certificate.issued", certificate, person)
        yield _entry("request.closed", {"outcome": "completed", "in_time": True, **certificate}, person)


def _person() -> Row:
    ended = {"status": "completed", "received_at": NOW, "deadline": NOW + timedelta(days=30), "closed_at": NOW}
    return {"id": uuid4(), **ended}


def _entry(kind: str, fields: Row, person: Row | None = None) -> Row:
    return {"type": kind, "at": NOW, "fields": fields, "request_id": person["id"] if person else None}


def _digest() -> str:
    return f"sha256:{os.urandom(32).hex()}"


def _proofs(engine: Engine) -> list[Figure]:
    draw = random.Random(1)
    with transaction(engine) as tx:
        times = _times(lambda: evidence.proof_of(tx, draw.randrange(LEAVES)))
        floor = _times(lambda: tx.execute(text("SELECT 1")).all())
    p99 = _quantile(times, 0.99)
    return [
        Figure("proof of a random entry, p50 ms", _quantile(times, 0.5)),
        Figure("proof of a random entry, p99 ms", p99, "< 5", p99 < 5),
        Figure("an empty statement, p50 ms", _quantile(floor, 0.5)),
    ]


def _sizes(engine: Engine, settings: Settings) -> list[Figure]:
    def bytes_of(*tables: str) -> float:
        sizes = [tx.scalar(text(f"SELECT pg_total_relation_size('{table}')")) or 0 for table in tables]
        return round(sum(sizes) / LEAVES, 1)

    public = settings.log_path / "public" / "tile"
    files = sum(path.stat().st_size for path in public.rglob("*") if path.is_file())
    with transaction(engine) as tx:
        tx.execute(text("ANALYZE audit_entries"))
        entry = tx.scalar(text("SELECT avg(length(entry)) FROM audit_entries"))
        return [
            Figure("bytes of a leaf, mean", round(float(entry or 0), 1)),
            Figure("bytes per leaf in the log's files", round(files / LEAVES, 1)),
            Figure("bytes per leaf in PostgreSQL: entries and their indexes", bytes_of("audit_entries")),
            Figure("bytes per leaf in PostgreSQL: evidence", bytes_of("audit_evidence")),
            Figure("bytes per leaf in PostgreSQL: tiles", bytes_of("log_tiles")),
        ]


def _times(call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(PROOFS):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1000)
    return sorted(times)


def _quantile(times: list[float], q: float) -> float:
    return round(times[int(len(times) * q)], 2)


def _median(rates: list[float]) -> int:
    return round(statistics.median(rates))


def _settings(url: str, home: Path) -> Settings:
    names = ("index_key", "wrapping_key", "signing_key", "log_key")
    keys = {name: SecretStr(base64.b64encode(os.urandom(32)).decode()) for name in names}
    return Settings().model_copy(update={"home": home, "database_url": url, "daily_erasures": 10**9, **keys})


@contextmanager
def _database(scratch: Path) -> Iterator[str]:
    if given := os.environ.get("DATABASE_URL"):
        yield given
        return
    server = Postgres(scratch / "postgres")
    with server:
        yield server.url
    server.remove()


if __name__ == "__main__":
    main()
