"""What holds for every page of the dashboard."""

import pytest

from app.domain.people import Role
from tests.dashboard import enter, text_of
from tests.house import Installation

pytestmark = pytest.mark.slow


def test_home_says_how_things_stand(front_door: Installation) -> None:
    page = enter(front_door, Role.VIEWER).get()
    assert page.status_code == 200
    assert "How things stand" in text_of(page)
