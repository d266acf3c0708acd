"""What the OpenAPI document promises, the running API keeps: schemathesis, over all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation import GenerationMode
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
    f"POST {REQUEST}/notices/{{kind}}:sent": "a notice was sent between receipt and now",
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


Ids = dict[str, str]


def an_endpoint(http: httpx.Client) -> Ids:
    made = http.post("/v1/webhook-endpoints", json={"url": "https://portal.example/hook"}).raise_for_status().json()
    shown = http.get(f"/v1/webhook-endpoints/{made['id']}").raise_for_status().json()
    return {"endpoint_id": made["id"], "secret_id": shown["secrets"][0]["id"]}


def a_delivery(http: httpx.Client) -> Ids:
    ping = http.post(f"/v1/webhook-endpoints/{an_endpoint(http)['endpoint_id']}:ping").raise_for_status()
    return {"delivery_id": ping.json()["id"]}


def a_request(http: httpx.Client) -> Ids:
    made = http.post("/v1/erasure-requests", json={"user_id": str(uuid4())}).raise_for_status()
    return {"request_id": made.json()["id"]}


def a_portals_request(http: httpx.Client) -> Ids:
    ticket = str(uuid4())
    person = {"identity_type": "controller_customer_id", "identity_value": ticket, "identity_format": "raw"}
    demand = {
        "regulation": "gdpr",
        "subject_request_id": ticket,
        "subject_request_type": "erasure",
        "submitted_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "subject_identities": [person],
    }
    http.post("/opendsr/v2/requests", json=demand).raise_for_status()
    return {"subject_request_id": ticket}


MAKES: dict[str, Callable[[httpx.Client], Ids]] = {
    "request_id": a_request,
    "endpoint_id": an_endpoint,
    "delivery_id": a_delivery,
    "subject_request_id": a_portals_request,
}


@pytest.fixture(scope="module")
def real(house: Installation) -> Iterator[Callable[[str], Ids]]:
    """Ids of things that are there, new ones for each operation: some operations end what they are called for."""
    known: dict[str, Ids] = {}
    with house.client() as http:

        def ids(label: str) -> Ids:
            if label not in known:
                names = [name for name in re.findall(r"\{(\w+)\}", label) if name in MAKES]
                known[label] = {key: value for name in names for key, value in MAKES[name](http).items()}
            return known[label]

        yield ids


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
def test_an_operation_answers_as_the_document_says(case: Any, house: Installation, real: Callable[[str], Ids]) -> None:
    path = case.meta.components.get(ParameterLocation.PATH)
    if path and path.mode is GenerationMode.POSITIVE:
        found = real(case.operation.label)
        case.path_parameters |= {name: found[name] for name in found if name in case.path_parameters}
    excluded = [positive_data_acceptance] if case.operation.label in A_SCHEMA_CANNOT_SAY else []
    excluded += [negative_data_rejection] if case.operation.label in TOLERANT else []
    case.call_and_validate(
        base_url=f"http://127.0.0.1:{house.port}",
        headers={"Authorization": f"Bearer {house.key}"},
        timeout=20,
        excluded_checks=excluded,
    )


@pytest.mark.parametrize(
    "path",
    [
        REQUEST,
        f"{REQUEST}/events",
        f"{REQUEST}/decisions",
        "/v1/webhook-endpoints/{endpoint_id}",
        "/v1/webhook-deliveries/{delivery_id}",
        "/opendsr/v2/requests/{subject_request_id}",
    ],
)
def test_what_a_path_is_filled_with_is_there(path: str, house: Installation, real: Callable[[str], Ids]) -> None:
    with house.client() as http:
        assert http.get(path.format(**real(f"GET {path}"))).status_code == 200


def test_no_exception_outlives_its_operation() -> None:
    labels = {operation.ok().label for operation in schema.get_all_operations()}
    assert labels > {*A_SCHEMA_CANNOT_SAY, *TOLERANT}
