"""What the OpenAPI document promises, the running API keeps: schemathesis, over all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.main import create_app
from tests.house import Installation, installation
from tests.opendsr import DOMAIN, Authority
from tests.services import new_database

pytestmark = pytest.mark.slow
EXAMPLES = 6
REQUEST = "/v1/erasure-requests/{request_id}"
A_SCHEMA_CANNOT_SAY = {
    "GET /v1/erasure-requests": "a cursor is one that we gave out",
    "GET /v1/webhook-deliveries": "a cursor is one that we gave out; events have names",
    "GET /log/proof/inclusion": "an index is below the size of the tree",
    "GET /log/proof/consistency": "sizes are at most that of the tree",
    "GET /opendsr/v3/requests": "the four words of OpenDSR, read tolerantly",
    "POST /v1/erasure-requests": "models are registered ones; no control characters",
    "POST /v1/suppressions:check": "models are registered ones; no control characters",
    "POST /v1/suppressions:tokens": "no control characters",
    "POST /v1/webhook-endpoints": "a URL leads to a public address",
    "POST /v1/webhook-endpoints/{endpoint_id}:replay": "a cursor is one that we gave out",
    "POST /v1/erasure-requests:batch": "an Idempotency-Key belongs to one body",
    f"POST {REQUEST}:hold": "a review lies ahead of us",
    f"POST {REQUEST}:extend": "2.0 is not taken for 2",
    f"POST {REQUEST}:refuse": "some grounds need an explanation",
    "POST /v1/erasure-requests:refuse": "some grounds need an explanation",
    "PATCH /v1/webhook-endpoints/{endpoint_id}": "a URL leads to a public address",
    "POST /portals/ketch": "an object, of which we read what we know",
    "POST /portals/fides": "an object, of which we read what we know",
    "POST /portals/transcend": "proven by a token of Transcend's",
    **{
        f"POST /opendsr/{path}": "one identity that we know people by"
        for path in ("v1/opengdpr_requests", "v2/requests")
    },
    "POST /opendsr/v3/requests": "one identity that we know people by",
}
"""Here what fits the schema may be refused all the same, and why."""
TOLERANT = {
    "POST /v1/erasure-requests:batch": "each item has its own outcome",
    "POST /portals/ketch": "portals send what they like",
    "POST /portals/fides": "portals send what they like",
    **{f"POST /opendsr/{path}": "a tolerant reader" for path in ("v1/opengdpr_requests", "v2/requests", "v3/requests")},
}
"""Here what does not fit the schema may be taken all the same, and why."""


@pytest.fixture(scope="module")
def house(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    home: Path = tmp_path_factory.mktemp("conformance")
    key, certificate = Authority().issue(home)
    answers = {"opendsr_domain": DOMAIN, "opendsr_key": key, "opendsr_certificate": certificate}
    free = {"limit_failures": "1000000/second"}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, **answers, **free) as found,
    ):
        yield found


schema = schemathesis.openapi.from_dict(create_app().openapi())


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_an_operation_answers_as_the_document_says(case: Any, house: Installation) -> None:
    excluded = [positive_data_acceptance] if case.operation.label in A_SCHEMA_CANNOT_SAY else []
    excluded += [negative_data_rejection] if case.operation.label in TOLERANT else []
    case.call_and_validate(
        base_url=f"http://127.0.0.1:{house.port}",
        headers={"Authorization": f"Bearer {house.key}"},
        timeout=20,
        excluded_checks=excluded,
    )


def test_no_exception_outlives_its_operation() -> None:
    labels = {operation.ok().label for operation in schema.get_all_operations()}
    assert labels > {*A_SCHEMA_CANNOT_SAY, *TOLERANT}
