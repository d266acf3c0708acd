"""The pages about API keys and settings: a key is shown once, who gave it out is written down, no secret is told."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import event, select

from app import keymaking
from app.api.auth import Scope
from app.dashboard.keys import WORDS
from app.dashboard.settings import cautions, described
from app.domain.people import Role
from app.errors import Conflict
from app.main import create_app
from app.settings import Settings
from app.storage.sessions import transaction
from app.storage.tables import ApiKey, Client, InternalEntry
from tests.dashboard import COOKIE, Guest, enter, text_of
from tests.house import Installation

pytestmark = pytest.mark.slow
KEY = re.compile(r"exk_[0-9A-Za-z]{49}")
MARKUP = "<script>alert(1)</script>"


def key_of(house: Installation, *scopes: Scope, name: str = "", **more: Any) -> tuple[ApiKey, str]:
    with transaction(house.engine) as tx:
        return keymaking.create(tx, name=name or uuid4().hex, scopes=scopes or [Scope.MODELS_READ], **more)


def make(admin: Guest, *scopes: Scope, name: str = "", **more: str) -> str:
    """Make a key by the form; the key, as the page shows it."""
    answer = admin.post("/keys/new", name=name or uuid4().hex, scopes=[*(scopes or [Scope.MODELS_READ])], **more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    [key] = set(KEY.findall(answer.text))
    return key


def calls(house: Installation, key: str, path: str = "/v1/models") -> int:
    """What the API answers to somebody who calls with a key."""
    with house.client() as client:
        return client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code


def row_of(house: Installation, key: str) -> ApiKey:
    with transaction(house.engine) as tx:
        return tx.scalars(select(ApiKey).where(ApiKey.hint == key[:10])).one()


def notes(house: Installation, guest: Guest) -> list[tuple[str, dict[str, Any]]]:
    """What a person did, as the internal log has it."""
    with transaction(house.engine) as tx:
        mine = select(InternalEntry).where(
            InternalEntry.person_id == guest.person_id, InternalEntry.what != "signed_in"
        )
        return [(entry.what, entry.detail) for entry in tx.scalars(mine.order_by(InternalEntry.id))]


def test_a_made_key_works_is_shown_once_and_is_refused_once_revoked(front_door: Installation) -> None:
    admin = enter(front_door, Role.ADMIN)
    key = make(admin, Scope.MODELS_READ, Scope.REQUESTS_READ)
    assert calls(front_door, key) == 200
    row = row_of(front_door, key)
    for path in ("/keys", "/keys/new", f"/keys/clients/{row.client_id}"):
        page = admin.get(path).text
        assert key not in page
        assert not KEY.search(page)
    assert key[:10] in admin.get("/keys").text
    assert key not in front_door.log.read_text()
    answer = admin.post(f"/keys/{row.id}/revoke")
    assert answer.status_code == 303
    assert calls(front_door, key) == 401
    assert "revoked" in text_of(admin.get(f"/keys/clients/{row.client_id}"))
    assert admin.post(f"/keys/{row.id}/revoke").status_code == 404


def test_who_gave_out_which_scopes_is_in_the_internal_log_and_the_key_is_not(front_door: Installation) -> None:
    admin = enter(front_door, Role.ADMIN)
    key = make(admin, Scope.REQUESTS_DECIDE, name="office", expires="90d")
    row = row_of(front_door, key)
    rotated = admin.post(f"/keys/{row.id}/rotate", overlap_hours="1")
    [second] = set(KEY.findall(rotated.text))
    admin.post(f"/keys/{row.id}/revoke")
    written = notes(front_door, admin)
    assert [what for what, _ in written] == ["key.made", "key.rotated", "key.revoked"]
    for _, detail in written:
        assert detail["scopes"] == ["requests:decide"]
        assert detail["client"] == str(row.client_id)
    assert (written[0][1]["key"], written[1][1]["instead_of"]) == (str(row.id), str(row.id))
    for secret in (key, second):
        assert secret[:10] not in str(written)
        assert secret not in front_door.log.read_text()
    assert "internal log" in text_of(admin.get("/keys/new"))


def test_a_rotated_key_is_good_beside_the_new_one_until_the_overlap_ends(front_door: Installation) -> None:
    admin = enter(front_door, Role.ADMIN)
    old = make(admin)
    answer = admin.post(f"/keys/{row_of(front_door, old).id}/rotate", overlap_hours="2")
    [new] = set(KEY.findall(answer.text))
    assert answer.headers["cache-control"] == "no-store"
    assert (calls(front_door, old), calls(front_door, new)) == (200, 200)
    left = row_of(front_door, old).expires_at - datetime.now(UTC)
    assert timedelta(hours=1, minutes=58) < left <= timedelta(hours=2)
    admin.post(f"/keys/{row_of(front_door, new).id}/rotate", overlap_hours="0")
    assert calls(front_door, new) == 401
    assert admin.post(f"/keys/{row_of(front_door, new).id}/rotate", overlap_hours="0").status_code == 409


def test_a_form_that_is_sent_four_times_at_once_makes_one_key(front_door: Installation) -> None:
    admin = enter(front_door, Role.ADMIN)
    [form] = re.findall(r'name="as_id" value="([^"]+)"', admin.get("/keys/new").text)
    row = row_of(front_door, make(admin, Scope.MODELS_READ))
    made = {"client": str(row.client_id), "name": "twice", "scopes": Scope.MODELS_READ.value, "as_id": form}
    rotated = {"overlap_hours": "1", "as_id": str(uuid4())}
    for path, sent in (("/keys/new", made), (f"/keys/{row.id}/rotate", rotated)):
        with ThreadPoolExecutor(4) as hands:
            answers = list(hands.map(lambda _: admin.post(path, **sent).status_code, range(4)))  # noqa: B023 - awaited
        assert sorted(answers) == [200, 409, 409, 409], path


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
def test_only_an_admin_changes_keys_and_everybody_sees_the_list(front_door: Installation, role: Role) -> None:
    guest, (row, secret) = enter(front_door, role), key_of(front_door)
    page = guest.get("/keys")
    assert page.status_code == 200
    assert row.name in page.text
    assert not re.findall(r'action="/admin/keys|"/admin/keys/new', page.text)
    assert not re.findall(r'action="/admin/keys', guest.get(f"/keys/clients/{row.client_id}").text)
    assert guest.get("/keys/new").status_code == 403
    posts = {
        "/keys/new": {"name": "mine", "scopes": "requests:decide"},
        f"/keys/{row.id}/rotate": {"overlap_hours": "1"},
        f"/keys/{row.id}/revoke": {},
        f"/keys/clients/{row.client_id}": {"daily_erasures": "1"},
    }
    for path, form in posts.items():
        assert guest.post(path, **form).status_code == 403
    assert calls(front_door, secret) == 200
    assert not notes(front_door, guest)


def test_a_person_gets_no_key_and_no_token_that_would_act_in_their_name(front_door: Installation) -> None:
    admin, officer = enter(front_door, Role.ADMIN), enter(front_door, Role.OFFICER)
    assert str(officer.client_id) not in admin.get("/keys").text + admin.get("/keys/new").text
    form = {"name": "as the officer", "scopes": "requests:decide", "client": str(officer.client_id)}
    assert admin.post("/keys/new", **form).status_code == 409
    tokens = {"oidc_subject": "officer", "token_scopes": "requests:decide"}
    assert admin.post(f"/keys/clients/{officer.client_id}", **tokens).status_code == 409
    with transaction(front_door.engine) as tx, pytest.raises(Conflict):
        keymaking.create(tx, name="by hand", scopes=[Scope.REQUESTS_DECIDE], client_id=officer.client_id)
    with transaction(front_door.engine) as tx:
        assert not tx.scalars(select(ApiKey).where(ApiKey.client_id == officer.client_id)).all()
        assert tx.get_one(Client, officer.client_id).oidc_subject is None


def test_a_key_that_a_person_has_nevertheless_is_marked_and_can_be_revoked(front_door: Installation) -> None:
    admin, officer = enter(front_door, Role.ADMIN), enter(front_door, Role.OFFICER)
    row, secret = key_of(front_door)
    with transaction(front_door.engine) as tx:
        tx.get_one(ApiKey, row.id).client_id = officer.client_id  # as it could be made before people had clients
    assert "a person's: revoke its keys" in text_of(admin.get("/keys"))
    assert admin.post(f"/keys/{row.id}/rotate", overlap_hours="1").status_code == 409
    assert admin.post(f"/keys/{row.id}/revoke").status_code == 303
    assert calls(front_door, secret) == 401


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"name": "", "scopes": "models:read"}, "name"),
        ({"name": "no scopes"}, "scopes"),
        ({"name": "portal", "scopes": "models:read"}, "name"),
        ({"name": "late", "scopes": "models:read", "expires": "2020-01-01"}, "expires"),
        ({"name": "odd", "scopes": "models:read", "expires": "soon"}, "expires"),
    ],
)
def test_a_mistake_is_told_at_its_field_and_what_was_typed_is_kept(
    front_door: Installation, form: dict[str, str], field: str
) -> None:
    answer = enter(front_door, Role.ADMIN).post("/keys/new", **form)
    assert answer.status_code == 422
    assert f'id="wrong-{field}"' in answer.text
    assert f'value="{form["name"]}"' in answer.text
    assert not KEY.search(answer.text)
    assert ('value="models:read" checked' in answer.text) == ("scopes" in form)


def test_bad_input_by_hand_is_an_error_page_and_no_traceback(front_door: Installation) -> None:
    admin = enter(front_door, Role.ADMIN)
    for form in ({"name": "a", "scopes": "everything"}, {"name": "a\0b", "scopes": "models:read"}, {"client": "x"}):
        assert admin.post("/keys/new", **form).status_code == 422
    assert admin.post("/keys/new", name="a", scopes="models:read", client=str(uuid4())).status_code == 404
    assert admin.post(f"/keys/{uuid4()}/revoke").status_code == 404
    assert admin.post(f"/keys/{uuid4()}/rotate").status_code == 404
    assert admin.get(f"/keys/clients/{uuid4()}").status_code == 404
    assert admin.post(f"/keys/clients/{uuid4()}", daily_erasures="3").status_code == 404
    assert admin.get(f"/keys?after={uuid4()}").status_code == 200


def test_what_is_given_about_a_client_is_changed_as_a_whole_and_written_down(front_door: Installation) -> None:
    admin, (row, _) = enter(front_door, Role.ADMIN), key_of(front_door)
    path, subject = f"/keys/clients/{row.client_id}", uuid4().hex
    form = {"daily_erasures": "7", "oidc_subject": subject, "token_scopes": ["models:read", "requests:decide"]}
    assert admin.post(path, **form).status_code == 303
    assert read_client(front_door, row.client_id) == (7, subject, ["requests:decide", "models:read"])
    assert f'value="{subject}"' in admin.get(path).text
    [(what, detail)] = notes(front_door, admin)
    assert (what, detail["daily_erasures"], detail["token_scopes"]) == ("client.changed", 7, form["token_scopes"][::-1])
    another, _ = key_of(front_door)
    taken = admin.post(f"/keys/clients/{another.client_id}", oidc_subject=subject, daily_erasures="5")
    assert taken.status_code == 409
    assert 'value="5"' in taken.text
    assert read_client(front_door, another.client_id) == (None, None, [])
    assert admin.post(path).status_code == 303
    assert read_client(front_door, row.client_id) == (None, None, [])


def read_client(house: Installation, client_id: UUID) -> tuple[int | None, str | None, list[str]]:
    with transaction(house.engine) as tx:
        client = tx.get_one(Client, client_id)
        return client.daily_erasures, client.oidc_subject, list(client.token_scopes)


def test_markup_in_the_names_of_clients_and_keys_is_text(front_door: Installation) -> None:
    row, _ = key_of(front_door, name=f"{MARKUP} {uuid4().hex[:6]}")
    admin = enter(front_door, Role.ADMIN)
    for path in ("/keys", f"/keys/clients/{row.client_id}", "/keys/new"):
        page = admin.get(path)
        assert MARKUP not in page.text
        assert "&lt;script&gt;alert(1)" in page.text


def test_the_list_goes_on_where_the_page_ended_and_asks_no_more_often_for_many(front_door: Installation) -> None:
    viewer = enter(front_door, Role.VIEWER)
    made = {str(key_of(front_door)[0].client_id) for _ in range(60)}
    with TestClient(create_app(front_door.settings), headers={"Cookie": f"{COOKIE}={viewer.cookie}"}) as client:
        statements: list[str] = []
        app: Any = client.app
        event.listen(app.state.context.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
        seen, path = [], "/keys"
        while path:
            statements.clear()
            page = client.get(f"/admin{path}").text
            assert len(statements) <= 5, statements
            seen += re.findall(r'<h2><a href="/admin/keys/clients/([0-9a-f-]{36})"', page)
            path = (re.findall(r'href="/admin([^"]*)" rel="next"', page) or [""])[0]
        statements.clear()
        assert client.get("/admin/settings").status_code == 200
        assert len(statements) <= 2, statements
    assert made <= set(seen)
    assert len(seen) == len(set(seen))


def test_of_keys_that_are_good_no_more_the_list_has_the_newest_few(front_door: Installation) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    first, _ = key_of(front_door)
    ended = [key_of(front_door, client_id=first.client_id, expires_at=past)[0] for _ in range(8)]
    viewer = enter(front_door, Role.VIEWER)
    page = viewer.get("/keys").text
    assert first.hint in page
    assert [row.hint in page for row in ended] == [False] * 3 + [True] * 5
    whole = viewer.get(f"/keys/clients/{first.client_id}").text
    assert all(row.hint in whole for row in ended)


def test_every_scope_has_its_words() -> None:
    assert set(WORDS) == set(Scope)


def test_settings_show_every_field_with_its_docstring_and_variable(front_door: Installation) -> None:
    shown = [knob for knobs in described().values() for knob in knobs]
    assert [knob.name for knob in shown] == list(Settings.model_fields)
    page = enter(front_door, Role.VIEWER).get("/settings")
    words = text_of(page)
    for said in ("DATABASE_URL", "EXPUNGE_COALESCE_SECONDS", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        assert said in words
    assert "How long a job waits for more requests to the same model." in words
    assert "EXPUNGE_COALESCE_SECONDS 0.5 changed" in words
    assert "EXPUNGE_BATCH_REQUESTS 256 Requests that one job takes at most." in words
    assert "Nothing can be changed here." in words
    assert not re.findall(r"<(?:input|select|textarea)\b", page.text)
    assert "EXPUNGE_SECOND_FACTOR : People with a password may sign in by it alone." in words


def test_settings_tell_no_secret_and_no_address_with_a_password_in_it(front_door: Installation) -> None:
    known = {"database_url": front_door.settings.database_url}
    secrets = {name: SecretStr(f"hidden-{name}") for name in ("transcend_api_key", "transcend_sombra_key")}
    addresses = {
        "store": "s3://id:hidden@bucket/models",
        "timestamp_url": "https://tsa.example/?key=hidden",
        "fides_url": "https://user:hid/den@fides.example",
        "contact": "dpo@example.org",
    }
    settings = front_door.settings.model_copy(update={**known, **secrets, **addresses, "redis_url": SecretStr("")})
    viewer = enter(front_door, Role.VIEWER)
    with TestClient(create_app(settings), headers={"Cookie": f"{COOKIE}={viewer.cookie}"}) as client:
        page = text_of(client.get("/admin/settings"))
    assert "hidden" not in page
    assert "hid/den" not in page
    assert known["database_url"] not in page
    for name in ("index_key", "wrapping_key", "signing_key", "log_key"):
        assert getattr(settings, name).get_secret_value() not in page
    assert "EXPUNGE_TRANSCEND_API_KEY set Transcend" in page
    assert "REDIS_URL not set The doorbell" in page
    assert "EXPUNGE_STORE set; not shown, as it may hold a password changed" in page
    assert "dpo@example.org" in page


def test_what_is_unsafe_or_surprising_is_said_and_what_is_sound_is_not() -> None:
    careful: dict[str, Any] = {
        "log_origin": "erasure.example/log",
        "log_policy": Path("policy"),
        "controller": "Example GmbH",
        "contact": "dpo@example.org",
        "authority": "BfDI",
    }
    assert cautions(Settings().model_copy(update=careful)) == []
    surprising: dict[str, Any] = {
        "second_factor": "optional",
        "dashboard_url": "http://erasure.example",
        "session_hours": 200.0,
        "log_origin": "expunge.localhost/log",
        "log_policy": None,
        "controller": "unnamed controller",
        "contact": "",
        "authority": "",
        "identity_needed": "none",
        "identity_assumed": "high",
        "hold_share": 1.0,
        "webhook_allow": (ip_network("127.0.0.1/32"),),
        "trusted_proxies": (ip_network("0.0.0.0/0"),),
        "log_level": "DEBUG",
    }
    typed = Settings.model_validate({**surprising, "oidc_sign_in_client": "expunge"})
    assert {one.variable for one in cautions(typed)} == {f"EXPUNGE_{name.upper()}" for name in surprising}
    homeless = Settings().model_copy(update={**careful, "oidc_sign_in_client": "x"})
    assert [one.variable for one in cautions(homeless)] == ["EXPUNGE_DASHBOARD_URL"]
