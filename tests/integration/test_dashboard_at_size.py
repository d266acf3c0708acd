"""What a page costs does not grow with the house: as many SQL statements for thousands of rows as for hundreds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from app.domain.people import Role
from app.main import create_app
from tests import crowd
from tests.dashboard import COOKIE, enter
from tests.pages import paths
from tests.pipeline import Bench

pytestmark = pytest.mark.slow
MOST = 30


def test_no_page_takes_more_statements_in_a_larger_house(bench: Bench) -> None:
    bench.demand(3)
    bench.run_all()
    guest = enter(bench.house, *Role)
    with counting(bench, guest.cookie) as count:
        crowd.settle(bench.house.engine, requests=300, versions=20)
        small = {name: count(path) for name, path in paths(bench.house.engine).items()}
        crowd.settle(bench.house.engine, requests=3_000, versions=200)
        large = {name: count(path) for name, path in paths(bench.house.engine).items()}
    assert len(small) > 20
    assert {name: (small[name], found) for name, found in large.items() if found > small[name]} == {}
    assert {name: found for name, found in large.items() if found > MOST} == {}


@contextmanager
def counting(bench: Bench, cookie: str) -> Iterator[Callable[[str], int]]:
    """Loads a page in an application of this process and counts its statements."""
    seen: list[str] = []
    with TestClient(create_app(bench.house.settings), base_url="https://testserver") as client:
        listened = client.app.state.context.engine  # type: ignore[attr-defined] # Starlette types no state
        event.listen(listened, "before_cursor_execute", lambda *about: seen.append(about[2]))

        def count(path: str) -> int:
            seen.clear()
            answer = client.get(f"/admin{path}", headers={"Cookie": f"{COOKIE}={cookie}"})
            assert answer.status_code == 200, (path, answer.text)
            return len(seen)

        yield count
