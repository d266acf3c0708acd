"""Every operation of the OpenAPI document × every scope × two clients, and callers who are nobody.

``NEEDS`` says which scopes admit to which operation. A route that has no line here fails the first test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text, update

from app import keymaking
from app.api.auth import Scope
from app.domain.identifiers import api_key_digest
from app.main import create_app
from app.storage.sessions import transaction
from app.storage.tables import ApiKey
from tests.house import Installation, installation
from tests.services import new_database

pytestmark = pytest.mark.slow

WRITE, READ, READ_ALL, DECIDE = (
    Scope.REQUESTS_WRITE,
    Scope.REQUESTS_READ,
    Scope.REQUESTS_READ_ALL,
    Scope.REQUESTS_DECIDE,
)
MODELS, HOOKS, SUPPRESSIONS = Scope.MODELS_READ, Scope.WEBHOOKS_WRITE, Scope.SUPPRESSIONS_READ
READERS = {READ, READ_ALL, DECIDE}
REQUEST = "/v1/erasure-requests/{request_id}"
ENDPOINT = "/v1/webhook-endpoints/{endpoint_id}"
OPENDSR = [("/opendsr/v1", "opengdpr_requests"), ("/opendsr/v2", "requests"), ("/opendsr/v3", "requests")]

PUBLIC: set[Scope] = set()
"""For everybody: what strangers must be able to check, what machines look at, and what is proven by a signature."""
NEEDS: dict[str, set[Scope]] = {
    "GET /.well-known/erasure-log.json": PUBLIC,
    "GET /health/live": PUBLIC,
    "GET /livez": PUBLIC,
    "GET /health/ready": PUBLIC,
    "GET /readyz": PUBLIC,
    "GET /log/checkpoint": PUBLIC,
    "GET /log/entry/{index}.tlog-proof": PUBLIC,
    "GET /log/proof/consistency": PUBLIC,
    "GET /log/proof/inclusion": PUBLIC,
    "GET /log/tile/entries/{path}": PUBLIC,
    "GET /log/tile/{path}": PUBLIC,
    **{f"GET {base}/{page}": PUBLIC for base, _ in OPENDSR for page in ("certificate.pem", "discovery", "status")},
    **{f"POST {base}/{noun}": {WRITE} for base, noun in OPENDSR},
    **{f"GET {base}/{noun}/{{subject_request_id}}": READERS for base, noun in OPENDSR},
    **{f"DELETE {base}/{noun}/{{subject_request_id}}": {WRITE} for base, noun in OPENDSR},
    "GET /opendsr/v3/requests": READERS,
    "POST /portals/fides": {WRITE},
    "POST /portals/ketch": {WRITE},
    "POST /portals/transcend": PUBLIC,  # proven by the x-sombra-token
    "POST /v1/erasure-requests": {WRITE},
    "POST /v1/erasure-requests:batch": {WRITE},
    "POST /v1/erasure-requests:approve": {DECIDE},
    "POST /v1/erasure-requests:refuse": {DECIDE},
    "POST /v1/erasure-requests:retry": {DECIDE},
    "GET /v1/erasure-requests": READERS,
    "GET /v1/erasure-requests:export": READERS,
    f"GET {REQUEST}": READERS,
    f"GET {REQUEST}/certificate": READERS,
    f"GET {REQUEST}/certificate.html": READERS,
    f"GET {REQUEST}/certificate.tlog-proof": READERS,
    f"GET {REQUEST}/certificate.tsr": READERS,
    f"GET {REQUEST}/decisions": READERS,
    f"GET {REQUEST}/events": READERS,
    f"GET {REQUEST}/notices": READERS,
    f"GET {REQUEST}/notices/{{kind}}": READERS,
    f"POST {REQUEST}/notices/{{kind}}:sent": {WRITE, DECIDE},
    f"GET {REQUEST}/receipt": READERS,
    f"POST {REQUEST}:approve": {DECIDE},
    f"POST {REQUEST}:cancel": {WRITE, DECIDE},
    f"POST {REQUEST}:confirm-identity": {WRITE, DECIDE},
    f"POST {REQUEST}:extend": {DECIDE},
    f"POST {REQUEST}:hold": {DECIDE},
    f"POST {REQUEST}:refuse": {DECIDE},
    f"POST {REQUEST}:release": {DECIDE},
    f"POST {REQUEST}:retry": {DECIDE},
    "GET /metrics": {Scope.METRICS_READ},
    "GET /v1/models": {MODELS},
    "GET /v1/models/{name}": {MODELS},
    "GET /v1/models/{name}/versions": {MODELS},
    "GET /v1/suppressions.bloom": {SUPPRESSIONS},
    "GET /v1/suppressions.ndjson": {SUPPRESSIONS},
    "POST /v1/suppressions:check": {SUPPRESSIONS},
    "POST /v1/suppressions:tokens": {SUPPRESSIONS},
    "GET /v1/webhook-deliveries": {HOOKS},
    "GET /v1/webhook-deliveries/{delivery_id}": {HOOKS},
    "POST /v1/webhook-deliveries/{delivery_id}:replay": {HOOKS},
    "GET /v1/webhook-endpoints": {HOOKS},
    "POST /v1/webhook-endpoints": {HOOKS},
    **{f"{method} {ENDPOINT}": {HOOKS} for method in ("GET", "PATCH", "DELETE")},
    f"POST {ENDPOINT}:ping": {HOOKS},
    f"POST {ENDPOINT}:replay": {HOOKS},
    f"POST {ENDPOINT}/secrets:rotate": {HOOKS},
    f"DELETE {ENDPOINT}/secrets/{{secret_id}}": {HOOKS},
}
LATER = (datetime.now(UTC) + timedelta(days=9)).isoformat()
BODIES: dict[str, Any] = {
    ":confirm-identity": {"level": "substantial"},
    ":hold": {"ground": "legal_hold", "until": LATER},
    ":refuse": {"ground": "art12_5_unfounded", "explanation": "not from the person"},
    ":extend": {"further_months": 1, "reason": "complexity"},
    ":sent": {},
}
OWN = [scope for scope in Scope if scope not in {READ_ALL, DECIDE}]


def operations() -> dict[str, dict[str, Any]]:
    paths = create_app().openapi()["paths"]
    return {f"{method.upper()} {path}": o for path, ops in paths.items() for method, o in ops.items()}


OPERATIONS = operations()
PROTECTED = sorted(name for name in OPERATIONS if NEEDS.get(name))
PERSONAL = sorted(name for name in PROTECTED if re.search(r"\{(request|endpoint|delivery|subject_request)_id\}", name))


@pytest.fixture(scope="module")
def house(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    home: Path = tmp_path_factory.mktemp("who-may")
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, limit_failures="1000000/second") as found,
    ):
        yield found


@pytest.fixture(scope="module")
def http(house: Installation) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{house.port}", timeout=30) as client:
        yield client


def make_key(house: Installation, *scopes: Scope, client_id: UUID | None = None, **more: Any) -> str:
    with transaction(house.engine) as tx:
        return keymaking.create(tx, name=uuid4().hex, scopes=scopes, client_id=client_id, **more)[1]


@pytest.fixture(scope="module")
def key_with(house: Installation) -> dict[Scope, str]:
    """A key for each scope, each of a client of its own."""
    return {scope: make_key(house, scope) for scope in Scope}


def call(
    http: httpx.Client, operation: str, key: str | None, ids: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    method, path = operation.split()
    wanted = {"kind": "receipt", "name": "ranker", "index": "0", "path": "0/000"} | (ids or {})
    filled = re.sub(r"\{(\w+)\}", lambda found: wanted.get(found[1]) or str(uuid4()), path)
    body = next((body for end, body in BODIES.items() if path.endswith(f"}}{end}")), {})
    content = {"json": body} if method in {"POST", "PUT", "PATCH"} else {}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return http.request(method, filled, headers=headers, **content, **more)


def told(answer: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """All that a caller can see, less the time of day and the number of the call."""
    return (
        answer.status_code,
        answer.content,
        {k: v for k, v in answer.headers.items() if k not in {"date", "x-request-id"}},
    )


def test_every_operation_has_a_line_in_the_table() -> None:
    assert sorted(set(OPERATIONS) - set(NEEDS)) == [], "say in NEEDS who may call these"
    assert sorted(set(NEEDS) - set(OPERATIONS)) == [], "these are no more"
    assert {name for name, o in OPERATIONS.items() if o.get("security")} == set(PROTECTED)


@pytest.mark.parametrize("operation", PROTECTED)
def test_its_scopes_admit_and_no_others(http: httpx.Client, key_with: dict[Scope, str], operation: str) -> None:
    answers = {scope: call(http, operation, key) for scope, key in key_with.items()}
    refused = {scope for scope, answer in answers.items() if answer.status_code == 403}
    assert refused == set(Scope) - NEEDS[operation], {s: a.status_code for s, a in answers.items()}
    assert not {s: a.text for s, a in answers.items() if a.status_code == 401 or a.status_code >= 500}


@pytest.mark.parametrize("operation", PROTECTED)
def test_nobody_is_admitted_without_a_good_key(house: Installation, http: httpx.Client, operation: str) -> None:
    for key in (
        None,
        "",
        "exk_",
        "exk_" + "0" * 49,
        make_key(house, *Scope, expires_at=datetime(2020, 1, 1, tzinfo=UTC)),
    ):
        answer = call(http, operation, key)
        assert answer.status_code == 401, (key, answer.text)
        assert answer.headers["WWW-Authenticate"].startswith(("Bearer", "Basic"))


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - set(PROTECTED)))
def test_what_is_public_asks_for_no_key_and_minds_no_bad_one(http: httpx.Client, operation: str) -> None:
    if "transcend" not in operation:
        assert call(http, operation, None).status_code not in {401, 403}
        assert call(http, operation, "exk_bad").status_code not in {401, 403}


@pytest.fixture(scope="module")
def owned(house: Installation, http: httpx.Client) -> tuple[str, dict[str, str]]:
    """A client's key, with every scope that does not see others, and the ids of its things."""
    key = make_key(house, *OWN)
    bearer = {"Authorization": f"Bearer {key}"}
    made = http.post("/v1/erasure-requests", json={"user_id": str(uuid4())}, headers=bearer)
    hook = http.post("/v1/webhook-endpoints", json={"url": "https://portal.example/hook"}, headers=bearer)
    assert (made.status_code, hook.status_code) == (202, 201), made.text + hook.text
    ping = http.post(f"/v1/webhook-endpoints/{hook.json()['id']}:ping", headers=bearer)
    secrets = http.get(f"/v1/webhook-endpoints/{hook.json()['id']}", headers=bearer).json()["secrets"]
    with transaction(house.engine) as tx:
        insert = text("INSERT INTO certificates (id, request_id, envelope) VALUES (gen_random_uuid(), :id, '{}')")
        tx.execute(insert, {"id": made.json()["id"]})
    ids = {"request_id": made.json()["id"], "endpoint_id": hook.json()["id"]}
    return key, {**ids, "delivery_id": ping.json()["id"], "secret_id": secrets[0]["id"]}


@pytest.mark.parametrize("operation", [name for name in PERSONAL if "opendsr" not in name])
def test_anothers_id_is_answered_like_one_that_nobody_has(
    house: Installation, http: httpx.Client, owned: tuple[str, dict[str, str]], operation: str
) -> None:
    _, ids = owned
    stranger = make_key(house, *OWN)
    if not NEEDS[operation] & set(OWN):
        pytest.skip("an office sees everybody's")
    theirs, nobodys = call(http, operation, stranger, ids), call(http, operation, stranger)
    assert theirs.status_code == 404, theirs.text
    assert told(theirs) == told(nobodys)


@pytest.mark.parametrize("operation", [name for name in PERSONAL if name.startswith("GET") and "opendsr" not in name])
def test_the_owner_is_answered_otherwise(http: httpx.Client, owned: tuple[str, dict[str, str]], operation: str) -> None:
    key, ids = owned
    assert told(call(http, operation, key, ids)) != told(call(http, operation, key)), "the test above would see nothing"


def test_lists_show_a_client_its_own_and_an_office_everything(
    house: Installation, http: httpx.Client, owned: tuple[str, dict[str, str]]
) -> None:
    stranger, office = make_key(house, *OWN), make_key(house, READ_ALL, HOOKS)
    for key, sees in ((owned[0], True), (stranger, False), (office, True)):
        shown = call(http, "GET /v1/erasure-requests", key, params={"limit": 1000}).json()
        assert (owned[1]["request_id"] in {item["id"] for item in shown["items"]}) is sees
    for key, sees in ((owned[0], True), (stranger, False), (office, False)):
        shown = call(http, "GET /v1/webhook-endpoints", key).json()
        assert (owned[1]["endpoint_id"] in {item["id"] for item in shown["items"]}) is sees


def test_an_endpoint_that_hears_of_everybody_is_not_there_for_who_may_not_see_everybody(
    house: Installation, http: httpx.Client
) -> None:
    office = make_key(house, HOOKS, READ_ALL)
    hook = http.post(
        "/v1/webhook-endpoints",
        json={"url": "https://office.example/", "every_client": True},
        headers={"Authorization": f"Bearer {office}"},
    ).json()
    with transaction(house.engine) as tx:
        client_id = tx.scalar(text("SELECT client_id FROM webhook_endpoints WHERE id = :id"), {"id": hook["id"]})
    small = make_key(house, HOOKS, client_id=client_id)
    for operation in (name for name in PROTECTED if "{endpoint_id}" in name and "secret_id" not in name):
        assert call(http, operation, small, {"endpoint_id": hook["id"]}).status_code in {404, 422}
    assert call(http, "GET /v1/webhook-endpoints", small).json()["items"] == []
    assert [item["id"] for item in call(http, "GET /v1/webhook-endpoints", office).json()["items"]] == [hook["id"]]


def test_two_keys_of_one_client_see_the_same(
    house: Installation, http: httpx.Client, owned: tuple[str, dict[str, str]]
) -> None:
    with transaction(house.engine) as tx:
        client_id = tx.scalar(
            text("SELECT client_id FROM erasure_requests WHERE id = :id"), {"id": owned[1]["request_id"]}
        )
    second = make_key(house, READ, client_id=client_id)
    assert call(http, f"GET {REQUEST}", second, owned[1]).status_code == 200
    assert call(http, f"POST {REQUEST}:cancel", second, owned[1]).status_code == 403


def test_a_revoked_key_ends_with_the_next_call(house: Installation, http: httpx.Client) -> None:
    key = make_key(house, MODELS)
    assert call(http, "GET /v1/models", key).status_code == 200
    with transaction(house.engine) as tx:
        tx.execute(update(ApiKey).where(ApiKey.digest == api_key_digest(key)).values(revoked_at=datetime.now(UTC)))
    assert call(http, "GET /v1/models", key).status_code == 401
