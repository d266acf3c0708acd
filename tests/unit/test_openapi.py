"""What the OpenAPI document says of errors is what is sent."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from app.main import create_app

DOCUMENT: dict[str, Any] = create_app().openapi()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
NEVER_COUNTED = {"GET /livez", "GET /health/live"}
IN_ITS_OWN_SHAPE = re.compile(r"\w+ /(opendsr/|portals/ketch)")


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - NEVER_COUNTED))
def test_every_operation_may_say_come_again_later(name: str) -> None:
    assert "429" in OPERATIONS[name]["responses"]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_an_error_has_one_shape_and_one_media_type(name: str) -> None:
    own = IN_ITS_OWN_SHAPE.match(name)
    for code, answer in OPERATIONS[name]["responses"].items():
        if int(code) >= 400:
            assert list(answer["content"]) == ["application/json" if own else "application/problem+json"], code
            [shape] = answer["content"].values()
            assert shape["schema"]["$ref"].endswith("Problem") or own


def test_every_shape_that_is_named_is_there_and_every_one_that_is_there_is_named() -> None:
    text = json.dumps(DOCUMENT)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert named == set(DOCUMENT["components"]["schemas"])


def test_an_application_keeps_its_document() -> None:
    app = create_app()
    assert app.openapi() is app.openapi()
