"""OpenDSR over HTTP, against a real API process and PostgreSQL: every answer is checked by a controller of its own."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from app import keymaking
from app.api.auth import Scope
from app.storage.portals import forget_told
from app.storage.sessions import transaction
from tests.house import Installation, installation
from tests.opendsr import DOMAIN, Authority, Controller
from tests.services import new_database

pytestmark = pytest.mark.slow
AUTHORITY = Authority()
PATHS = {"1": "/opendsr/v1/opengdpr_requests", "2": "/opendsr/v2/requests", "3": "/opendsr/v3/requests"}
NAMES = {"1": "OpenGDPR", "2": "OpenDSR", "3": "OpenDSR"}
versions = pytest.mark.parametrize("version", PATHS)


@pytest.fixture(scope="module")
def door(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    home: Path = tmp_path_factory.mktemp("opendsr")
    key, certificate = AUTHORITY.issue(home / "certificate")
    configured = {"opendsr_domain": DOMAIN, "opendsr_key": key, "opendsr_certificate": certificate}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, **configured) as house,
    ):
        yield house


@pytest.fixture(scope="module")
def pem(door: Installation) -> bytes:
    return httpx.get(f"http://127.0.0.1:{door.port}/opendsr/v2/certificate.pem").content


def demand(version: str = "2", **more: Any) -> dict[str, Any]:
    user_id = str(uuid4())
    as_array = [{"identity_type": "controller_customer_id", "identity_value": user_id, "identity_format": "raw"}]
    as_object = {"controller_customer_id": {"value": user_id, "encoding": "raw"}}
    return {
        "regulation": "gdpr",
        "subject_request_id": str(uuid4()),
        "subject_request_type": "erasure",
        "submitted_time": "2027-02-03T09:12:00Z",
        "subject_identities": as_object if version == "3" else as_array,
        **more,
    }


def checked(answer: httpx.Response, version: str, pem: bytes) -> Any:
    controller = Controller(AUTHORITY.root, name=NAMES[version])
    return controller.checked(dict(answer.headers), answer.content, pem=pem)


@versions
def test_a_demand_is_answered_with_a_signed_receipt_that_echoes_its_bytes(
    door: Installation, pem: bytes, version: str
) -> None:
    body = json.dumps(demand(version), indent=3).encode()
    with door.client() as client:
        answer = client.post(PATHS[version], content=body)
        assert answer.status_code == 201, answer.text
        told = checked(answer, version, pem)
        status = client.get(f"{PATHS[version]}/{told['subject_request_id']}")
    assert base64.b64decode(told["encoded_request"]) == body
    assert set(told) == {
        "controller_id",
        "subject_request_id",
        "received_time",
        "expected_completion_time",
        "encoded_request",
    }
    now = checked(status, version, pem)
    assert (status.status_code, now["request_status"], now["api_version"]) == (200, "pending", f"{version}.0")
    assert now["expected_completion_time"] == told["expected_completion_time"]
    assert now["extensions"][DOMAIN]["state"] == "received"
    assert "processor_signature" not in told


@versions
def test_discovery_says_what_we_do_and_where_the_certificate_is_to_anybody(door: Installation, version: str) -> None:
    base = f"http://127.0.0.1:{door.port}"
    answer = httpx.get(f"{base}/opendsr/v{version}/discovery")
    told = answer.json()
    assert told["api_version"] == f"{version}.0"
    assert told["supported_identities"] == [
        {"identity_type": "controller_customer_id", "identity_format": "raw"},
    ]
    assert told["supported_subject_request_types"] == ["erasure"]
    assert told["processor_certificate"] == f"https://{DOMAIN}/opendsr/v{version}/certificate.pem"
    path = told["processor_certificate"].removeprefix(f"https://{DOMAIN}")
    assert checked(answer, version, httpx.get(base + path).content) == told


@versions
def test_the_same_demand_again_gets_the_same_receipt_and_another_one_400(
    door: Installation, pem: bytes, version: str
) -> None:
    first = demand(version)
    other = {**demand(version), "subject_request_id": first["subject_request_id"]}
    with door.client() as client:
        answers = [client.post(PATHS[version], json=first) for _ in range(2)]
        client.delete(f"{PATHS[version]}/{first['subject_request_id']}")
        answers.append(client.post(PATHS[version], json=first))
        refused = client.post(PATHS[version], json=other)
    assert [a.status_code for a in answers] == [201, 201, 201]
    assert len({a.content for a in answers}) == 1
    assert len({a.headers["X-OpenGDPR-Signature" if version == "1" else "X-OpenDSR-Signature"] for a in answers}) == 1
    assert refused.status_code == 400
    assert "another demand" in refused.text
    with transaction(door.engine) as tx:
        named = {"i": first["subject_request_id"]}
        assert tx.scalar(text("SELECT count(*) FROM portal_requests WHERE external_id = :i"), named) == 1


def test_twenty_at_once_of_one_demand_make_one_request(door: Installation) -> None:
    body = demand()
    with door.client() as client, ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: client.post(PATHS["2"], json=body), range(20)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.content for a in answers}) == 1


def test_a_day_after_the_end_nothing_is_left_to_recognise_the_demand_by(door: Installation) -> None:
    body = demand()
    with door.client() as client:
        client.post(PATHS["2"], json=body)
        client.delete(f"{PATHS['2']}/{body['subject_request_id']}")
        with transaction(door.engine) as tx:
            tx.execute(text("UPDATE erasure_requests SET closed_at = now() - interval '25 h' WHERE closed_at < now()"))
            forget_told(tx)
        again = client.post(PATHS["2"], json=body)
        shown = client.get(f"{PATHS['2']}/{body['subject_request_id']}")
    assert again.status_code == 400
    assert "has ended" in again.text
    assert shown.json()["request_status"] == "cancelled"
    with transaction(door.engine) as tx:
        kept = "SELECT body_digest FROM portal_requests WHERE external_id = :i"
        assert tx.scalar(text(kept), {"i": body["subject_request_id"]}) is None


@versions
def test_a_request_is_taken_back_once_and_for_all_while_it_waits(door: Installation, pem: bytes, version: str) -> None:
    body = demand(version)
    path = f"{PATHS[version]}/{body['subject_request_id']}"
    with door.client() as client:
        client.post(PATHS[version], json=body)
        done = client.delete(path)
        shown = checked(client.get(path), version, pem)
        begun = demand(version)
        client.post(PATHS[version], json=begun)
        with transaction(door.engine) as tx:
            as_if = "UPDATE erasure_requests SET status = 'in_progress' WHERE reference = :r"
            tx.execute(text(as_if), {"r": begun["subject_request_id"]})
        late = client.delete(f"{PATHS[version]}/{begun['subject_request_id']}")
    told = checked(done, version, pem)
    assert (done.status_code, told["subject_request_id"]) == (202, body["subject_request_id"])
    assert {"controller_id", "received_time", "api_version"} <= set(told)
    assert shown["request_status"] == "cancelled"
    assert late.status_code == 400


@versions
def test_errors_have_the_versions_shape_and_name_the_field(door: Installation, version: str) -> None:
    body = {**demand(version), "subject_identities": {"email": {"value": "ann@example.org", "encoding": "raw"}}}
    with door.client() as client:
        refused = client.post(PATHS[version], json=body)
        missing = client.get(f"{PATHS[version]}/{uuid4()}")
        anonymous = httpx.post(f"{client.base_url}{PATHS[version]}", json=demand(version))
        elsewhere = client.get(f"/opendsr/v{version}/status")
        wrong_method = client.put(PATHS[version], json={})
        nowhere = client.get(f"/opendsr/v{version}/nowhere")
    for answer, status in (
        (refused, 400),
        (missing, 404),
        (anonymous, 401),
        (elsewhere, 404),
        (nowhere, 404),
    ):
        told = answer.json() if version == "3" else answer.json()["error"]
        assert (answer.status_code, told["code"]) == (status, status)
        assert answer.headers["Content-Type"] == "application/json"
    told = refused.json() if version == "3" else refused.json()["error"]
    assert told["errors"][0]["reason"] == "subject_identities"
    assert "controller_customer_id in the format raw" in told["errors"][0]["message"]
    assert "ann@" not in refused.text
    assert (wrong_method.status_code, wrong_method.headers["Allow"]) == (405, allowed(version))
    assert "requests/{subject_request_id}" in elsewhere.text
    assert anonymous.headers["WWW-Authenticate"]


def allowed(version: str) -> str:
    return "GET, POST" if version == "3" else "POST"


def test_mparticles_clients_send_the_key_as_a_password_and_a_slash_behind_the_path(
    door: Installation, pem: bytes
) -> None:
    body = demand("3")
    with httpx.Client(base_url=f"http://127.0.0.1:{door.port}", auth=("any name", door.key)) as client:
        answer = client.post(f"{PATHS['3']}/", json=body)
        assert answer.status_code == 201
        checked(answer, "3", pem)
        path = f"{PATHS['3']}/{body['subject_request_id']}"
        assert client.get(f"{path}/").status_code == 200
        assert (
            client.get(path.replace(body["subject_request_id"], body["subject_request_id"].upper())).status_code == 200
        )
        assert client.get("/opendsr/v3/discovery/").status_code == 200
        assert client.delete(f"{path}/").status_code == 202
    for wrong in (httpx.BasicAuth("name", door.key[:-1]), httpx.BasicAuth(door.key, "name")):
        assert httpx.get(f"http://127.0.0.1:{door.port}{path}", auth=wrong).status_code == 401
    broken = {"Authorization": "Basic !!!"}
    assert httpx.get(f"http://127.0.0.1:{door.port}{path}", headers=broken).status_code == 401
    native = httpx.get(f"http://127.0.0.1:{door.port}/v1/erasure-requests", auth=("name", door.key))
    assert native.status_code == 401  # nobody else's routes


def test_a_group_is_listed_by_its_own_client_alone_and_by_status_in_either_spelling(
    door: Installation, pem: bytes
) -> None:
    group_id = f"group-{uuid4()}"
    bodies = [demand("3", group_id=group_id) for _ in range(3)]
    with door.client() as client:
        for body in bodies:
            assert client.post(PATHS["3"], json=body).status_code == 201
        client.delete(f"{PATHS['3']}/{bodies[0]['subject_request_id']}")
        found = checked(client.get(PATHS["3"], params={"group_id": group_id}), "3", pem)
        open_ones = client.get(f"{PATHS['3']}/", params={"group_id": group_id, "request_status": "pending"}).json()
        taken_back = client.get(PATHS["3"], params={"group_id": group_id, "request_status": "canceled"}).json()
        unknown = client.get(PATHS["3"], params={"group_id": group_id, "request_status": "done"})
        without = client.get(PATHS["3"])
    assert [r["subject_request_id"] for r in found] == [b["subject_request_id"] for b in bodies]
    assert {r["group_id"] for r in found} == {group_id}
    assert [r["subject_request_id"] for r in open_ones] == [b["subject_request_id"] for b in bodies[1:]]
    assert [r["subject_request_id"] for r in taken_back] == [bodies[0]["subject_request_id"]]
    assert unknown.status_code == without.status_code == 400
    with stranger(door) as client:
        assert client.get(PATHS["3"], params={"group_id": group_id}).json() == []


def stranger(door: Installation, *scopes: Scope) -> httpx.Client:
    with transaction(door.engine) as tx:
        _, key = keymaking.create(tx, name="another portal", scopes=scopes or list(Scope))
    return httpx.Client(base_url=f"http://127.0.0.1:{door.port}", headers={"Authorization": f"Bearer {key}"})


@versions
def test_two_clients_never_see_each_others_requests_even_with_every_scope(door: Installation, version: str) -> None:
    body = demand(version)
    path = f"{PATHS[version]}/{body['subject_request_id']}"
    with door.client() as client, stranger(door) as other:
        client.post(PATHS[version], json=body)
        for method in ("GET", "DELETE"):
            theirs, nobodys = other.request(method, path), other.request(method, f"{PATHS[version]}/{uuid4()}")
            assert (
                (theirs.status_code, theirs.content) == (nobodys.status_code, nobodys.content) == (404, theirs.content)
            )
        mine = other.post(PATHS[version], json=demand(version) | {"subject_request_id": body["subject_request_id"]})
        assert mine.status_code == 201  # the number is theirs to use, too
        assert client.get(path).json()["extensions"] != other.get(path).json()["extensions"]


def test_a_key_needs_the_scope(door: Installation) -> None:
    body = demand()
    path = f"{PATHS['2']}/{body['subject_request_id']}"
    with stranger(door, Scope.REQUESTS_READ) as reader, stranger(door, Scope.REQUESTS_WRITE) as writer:
        assert reader.post(PATHS["2"], json=body).status_code == 403
        assert writer.post(PATHS["2"], json=body).status_code == 201
        assert writer.get(path).status_code == 403
        assert reader.delete(path).status_code == 403


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/hook", "https://169.254.169.254/", "https://user:pw@portal.example/", "file:///etc/passwd"]
)
def test_a_callback_that_must_not_be_called_is_refused_at_once_and_nothing_is_kept(
    door: Installation, url: str
) -> None:
    body = demand(status_callback_urls=["https://portal.example/hook", url])
    with door.client() as client:
        refused = client.post(PATHS["2"], json=body)
        assert refused.status_code == 400
        assert url not in refused.text
        assert client.get(f"{PATHS['2']}/{body['subject_request_id']}").status_code == 404


def test_a_model_that_is_not_registered_is_refused(door: Installation) -> None:
    body = demand(extensions={DOMAIN: {"models": ["nowhere"]}})
    with door.client() as client:
        refused = client.post(PATHS["2"], json=body)
    assert refused.status_code == 400
    assert "not registered" in refused.text


def test_neither_the_demand_nor_its_callback_lies_in_the_database(door: Installation) -> None:
    secret = f"canary-{uuid4()}"
    identities = [{"identity_type": "controller_customer_id", "identity_value": secret, "identity_format": "raw"}]
    url = f"https://portal.example/{secret}"
    body = demand(subject_identities=identities, status_callback_urls=[url])
    with door.client() as client:
        assert client.post(PATHS["2"], json=body).status_code == 201
        assert secret not in client.get(f"{PATHS['2']}/{body['subject_request_id']}").text
    encoded = [base64.b64encode(part.encode())[:-4].decode() for part in (secret, json.dumps(body))]
    wanted = [secret, secret.encode().hex(), *encoded]
    with transaction(door.engine) as tx:
        for table in tx.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all():
            rows = tx.execute(text(f'SELECT t::text FROM "{table}" t')).scalars().all()
            assert not [row for row in rows if any(form in row for form in wanted)], table
    assert secret not in door.log.read_text()


def test_the_creation_is_the_first_change_that_a_callback_is_promised(door: Installation) -> None:
    body = demand(status_callback_urls=["https://portal.example/a", "https://portal.example/b"])
    with door.client() as client:
        client.post(PATHS["2"], json=body)
        client.post(PATHS["2"], json=body)
        client.delete(f"{PATHS['2']}/{body['subject_request_id']}")
    with transaction(door.engine) as tx:
        promised = text(
            "SELECT convert_from(d.body, 'UTF8')::jsonb ->> 'state' AS state, count(*) FROM webhook_deliveries d"
            " JOIN portal_requests p ON p.request_id = d.request_id WHERE external_id = :i GROUP BY 1"
        )
        rows = dict(tx.execute(promised, {"i": body["subject_request_id"]}).all())
    assert rows == {"received": 2, "cancelled": 2}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 50_000, 400),
        (b'{"subject_request_id": "a", "subject_request_id": "b"}', 400),
        (b'{"subject_request_id": "a", "subject_request_id": "b",}', 400),
        (b'{"subject_identities": "' + b"x" * 1_000_000 + b'"}', 413),
        (b'{"subject_request_id": NaN}', 400),
        (b'{"n": ' + b"9" * 10_000 + b"}", 400),
    ],
)
@versions
def test_a_malformed_body_is_an_error_in_the_versions_shape(
    door: Installation, version: str, content: bytes, status: int
) -> None:
    with door.client() as client:
        answer = client.post(PATHS[version], content=content)
    told = answer.json() if version == "3" else answer.json()["error"]
    assert (answer.status_code, told["code"]) == (status, status), answer.text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_sent_never_breaks_the_door(door: Installation, data: st.DataObject) -> None:
    version = data.draw(st.sampled_from(sorted(PATHS)))
    field = data.draw(st.sampled_from([*sorted(demand(version)), "group_id", "status_callback_urls", "extensions"]))
    value = data.draw(
        st.recursive(st.none() | st.text() | st.integers(), lambda s: st.lists(s) | st.dictionaries(st.text(), s))
    )
    body = json.dumps({**demand(version), field: value})
    with door.client() as client:
        assert client.post(PATHS[version], content=body).status_code in {201, 400}
        path = data.draw(st.text(min_size=1))
        assert client.get(httpx.URL(f"{client.base_url}{PATHS[version]}/").join(encoded(path))).status_code in {
            404,
            400,
        }


def encoded(path: str) -> str:
    return "./" + "".join(f"%{byte:02x}" for byte in path.encode("utf-8", "surrogatepass"))


def test_a_commit_that_fails_is_not_answered_with_a_receipt(door: Installation) -> None:
    with transaction(door.engine) as tx:
        tx.execute(text(REFUSE))
    try:
        with door.client() as client:
            answer = client.post(PATHS["2"], json=demand())
    finally:
        with transaction(door.engine) as tx:
            tx.execute(text("DROP TRIGGER refuse ON portal_requests"))
            tx.execute(text("DROP FUNCTION refuse_portal"))
    assert answer.status_code == 500


REFUSE = """
CREATE FUNCTION refuse_portal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON portal_requests DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION refuse_portal()
"""


def test_the_deadline_is_the_expected_completion(door: Installation) -> None:
    body = demand()
    with door.client() as client:
        told = client.post(PATHS["2"], json=body).json()
        listed = client.get("/v1/erasure-requests", params={"reference": body["subject_request_id"]}).json()
    [native] = listed["items"]
    deadline = datetime.fromisoformat(native["deadline"])
    assert datetime.fromisoformat(told["expected_completion_time"]) == deadline.replace(microsecond=0).astimezone(UTC)


def test_without_a_certificate_the_routes_say_what_is_missing(front_door: Installation) -> None:
    with front_door.client() as client:
        for answer in (
            client.get("/opendsr/v2/discovery"),
            client.get("/opendsr/v2/certificate.pem"),
            client.post(PATHS["2"], json=demand()),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"]["message"].startswith("not configured: OpenDSR needs EXPUNGE_OPENDSR_DOMAIN")
