"""Fixtures that every test may use, and which files are read in which order; the servers live in tests/services.py."""

import re
from pathlib import Path

import pytest

from tests.services import database_url, postgres_server, template_database, valkey_server

__all__ = ["database_url", "postgres_server", "template_database", "valkey_server"]

LONG = ("browser", "e2e", "containers", "forgetting", "integration")
SLOW = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.slow\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where slow tests are left out, slow files are not even imported: half of the time went by on that."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return True if SLOW.search(collection_path.read_text()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with few but long tests come first, so that no worker is left with them while the other one idles."""
    items.sort(key=lambda item: _place(item.path))


def _place(file: Path) -> int:
    return next((place for place, name in enumerate(LONG) if name == file.parent.name), len(LONG))
