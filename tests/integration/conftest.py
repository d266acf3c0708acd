"""One API process for all tests of a file that only talk HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import Installation, installation
from tests.pipeline import Bench, in_this_process, register
from tests.services import new_database
from workers import erase


@pytest.fixture(scope="module")
def front_door(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An API with its own database, without broker, workers or model."""
    home: Path = tmp_path_factory.mktemp("front-door")
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False) as house,
    ):
        yield house


@pytest.fixture
def empty(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """An installation with a running sequencer, nothing else running and no model."""
    monkeypatch.setattr(erase, "run_step", in_this_process)  # the same code, without a process per step
    with installation(tmp_path, database_url, "", model=False) as house:
        bench = Bench(house)
        with bench.sequencing():
            yield bench


@pytest.fixture
def bench(empty: Bench) -> Bench:
    """The same with the toy model of 400 people registered."""
    register(empty)
    return empty
