"""How long pages take in a house after years: `make bench-dashboard`, four minutes; `--requests 5000` for a look.

100 000 requests (a fifth of them open), a model with 1 000 versions that carry reports as large as real ones, their
jobs, events, deliveries, and a public log with an entry for each request. One API process, PostgreSQL beside it on the
same two cores, and somebody with every role who loads each page again and again; what counts is the 95th percentile of
the whole answer, and how many statements it took. PostgreSQL is the embedded one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from sqlalchemy import event
from starlette.testclient import TestClient

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no installed package

from app.domain.people import Role  # noqa: E402 - after the path
from app.embedded import Postgres  # noqa: E402
from app.main import create_app  # noqa: E402
from app.storage.migrate import upgrade  # noqa: E402
from benchmarks.report import Figure, write  # noqa: E402
from tests import crowd  # noqa: E402
from tests.dashboard import COOKIE, Guest, enter  # noqa: E402
from tests.house import Installation, installation  # noqa: E402
from tests.pages import paths  # noqa: E402
from tests.pipeline import Bench  # noqa: E402

P95_MS = 200.0
MOST_STATEMENTS = 30
WARM_UP = 3
LISTS = {
    "requests, oldest due": "/requests?sort=deadline&state=open",
    "requests, overdue": "/requests?due=overdue",
    "requests, a state": "/requests?state=needs_attention",
    "requests, a reference": "/requests?q=DSR-4711",
    "home, 90 days": "?days=90",
}
"""Beside every page: what people ask of lists."""


def main() -> None:
    """Build the house, walk it, write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--versions", type=int, default=1_000)
    parser.add_argument("--loads", type=int, default=60)
    chosen = parser.parse_args()
    console = Console()
    with house_after_years(chosen.requests, chosen.versions, console) as house:
        guest = enter(house, *Role)
        walked = {**paths(house.engine), **LISTS}
        counted = statements(house, guest, walked)
        took = {name: loads(guest, path, chosen.loads) for name, path in progressing(walked, console)}
    write("dashboard", list(rows(took, counted)), **vars(chosen))


@contextmanager
def house_after_years(requests: int, versions: int, console: Console) -> Iterator[Installation]:
    """One erasure for real, whose version all others are copies of."""
    with tempfile.TemporaryDirectory() as home, Postgres(Path(home) / "postgres") as server:
        upgrade(server.url.replace("postgresql://", "postgresql+psycopg://", 1))
        with installation(Path(home), server.url, "", processes=("api",)) as house:
            bench = Bench(house)
            with bench.sequencing(), console.status("forgetting one person for real"):
                bench.demand(3)
                bench.run_all()
            with console.status(f"writing {requests} requests and {versions} versions"):
                crowd.settle(house.engine, requests=requests, versions=versions)
            crowd.file(house, console)
            yield house


def progressing(walked: dict[str, str], console: Console) -> Iterator[tuple[str, str]]:
    """Pages, with a bar."""
    with Progress(console=console, transient=True) as bars:
        yield from bars.track(list(walked.items()), description="loading pages")


def loads(guest: Guest, path: str, count: int) -> list[float]:
    """How many milliseconds each load took, after a few that don't count."""
    took = []
    for number in range(WARM_UP + count):
        begun = time.perf_counter()
        answer = guest.get(path)
        elapsed = 1000 * (time.perf_counter() - begun)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        if number >= WARM_UP:
            took.append(elapsed)
    return took


def statements(house: Installation, guest: Guest, walked: dict[str, str]) -> dict[str, int]:
    """How many SQL statements each page takes, counted in an application in this process."""
    with TestClient(create_app(house.settings), base_url="https://testserver") as client:
        seen: list[str] = []
        engine = client.app.state.context.engine  # type: ignore[attr-defined] # Starlette types no state
        event.listen(engine, "before_cursor_execute", lambda *about: seen.append(about[2]))
        found = {}
        for name, path in walked.items():
            seen.clear()
            client.get(f"/admin{path}", headers={"Cookie": f"{COOKIE}={guest.cookie}"})
            found[name] = len(seen)
        return found


def rows(took: dict[str, list[float]], counted: dict[str, int]) -> Iterator[Figure]:
    """A line for each page."""
    for name, milliseconds in took.items():
        p95 = statistics.quantiles(milliseconds, n=20)[-1]
        median = statistics.median(milliseconds)
        yield Figure(f"{name}: p95 (median {median:.0f}), ms", round(p95, 1), f"<= {P95_MS:.0f}", p95 <= P95_MS)
        yield Figure(
            f"{name}: SQL statements", counted[name], f"<= {MOST_STATEMENTS}", counted[name] <= MOST_STATEMENTS
        )


if __name__ == "__main__":
    main()
