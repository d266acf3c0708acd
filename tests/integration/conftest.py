"""One API process for all tests of a file that only talk HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import Installation, installation
from tests.services import new_database


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
