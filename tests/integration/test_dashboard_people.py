"""People and their roles: an admin lets them in and out, codes are seen once, and one's own account is one's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import event, text
from starlette.testclient import TestClient

from app import passwords, people
from app.dashboard.people import MAY, ROLES
from app.domain.people import RIGHTS, Right, Role
from app.main import create_app
from app.storage import people as stored
from app.storage.sessions import transaction
from app.storage.tables import Person
from tests.dashboard import COOKIE, Guest, enter, text_of
from tests.house import Installation

pytestmark = pytest.mark.slow
PASSWORD = "seven wild horses ran"
PROVIDER = {
    "oidc_sign_in_client": "expunge",
    "oidc_issuer": "https://id.example",
    "oidc_audience": "expunge",
    "dashboard_url": "https://testserver",
}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def admin(front_door: Installation) -> Guest:
    return enter(front_door, Role.ADMIN, name="Ad Min")


def person(house: Installation, person_id: UUID) -> Person:
    with transaction(house.engine) as tx:
        return stored.locked(tx, person_id)


def newest(house: Installation, what: str) -> tuple[UUID | None, dict[str, object]]:
    """Who made the newest entry of this kind of the internal log, and its detail."""
    with transaction(house.engine) as tx:
        entry, _ = stored.internal_log(tx, before=None, limit=1, what=what)[0]
        return entry.person_id, entry.detail


def code_in(page: httpx.Response) -> str:
    found = re.search(r'<code class="secret">([^<]+)</code>', page.text)
    assert found, text_of(page)
    return found[1]


@contextmanager
def stranger(house: Installation) -> Iterator[httpx.Client]:
    """A browser in which nobody has signed in."""
    with httpx.Client(
        base_url=f"http://127.0.0.1:{house.port}", headers={"Sec-Fetch-Site": "same-origin"}, verify=False, timeout=30
    ) as client:
        yield client


def sign_in(house: Installation, login: str, password: str) -> str | None:
    """The cookie of a sign-in; none: it failed."""
    with stranger(house) as client:
        answer = client.post("/admin/sign-in", data={"login": login, "password": password})
        return answer.cookies.get(COOKIE) if answer.status_code == 303 else None


def set_up(house: Installation, login: str, code: str, password: str = PASSWORD) -> int:
    with stranger(house) as client:
        form = {"login": login, "code": code, "password": password, "again": password}
        return client.post("/admin/set-up", data=form).status_code


def settled(house: Installation, *roles: Role) -> tuple[Guest, str]:
    """Somebody who has set a password, and their login."""
    login = f"{uuid4().hex}@example.org"
    guest = enter(house, *roles, login=login)
    with transaction(house.engine) as tx:
        stored.locked(tx, guest.person_id).password = passwords.hashed(PASSWORD)
    return guest, login


def test_everybody_sees_who_has_which_roles_and_what_these_may_do(front_door: Installation, admin: Guest) -> None:
    page = enter(front_door, Role.VIEWER).get("/people")
    assert "Ad Min admin" in text_of(page)
    rows = re.findall(r'<th scope="row" class="wraps">([^<]+)</th>((?:<td>.*?</td>)+)', page.text)
    told = {name: re.findall(r">(yes|no)<|<td>(yes|no)</td>", cells) for name, cells in rows}
    for right, said in MAY.items():
        assert [a or b for a, b in told[said]] == ["yes" if right in RIGHTS[role] else "no" for role in ROLES]
    assert MAY.keys() == set(Right)
    assert ROLES.keys() == set(Role)
    assert admin.person_id


def test_only_an_admin_sees_logins_states_sessions_and_buttons(front_door: Installation, admin: Guest) -> None:
    _, login = settled(front_door, Role.OFFICER)
    for role in set(Role) - {Role.ADMIN}:
        page = enter(front_door, role).get("/people")
        assert login not in page.text
        assert "may sign in" not in text_of(page)
        assert "/roles" not in page.text
        assert "<form" in page.text  # the one to sign out
        assert page.text.count("<form") == 1
    page = admin.get("/people")
    assert f"{login} may sign in, no second factor yet 1" in text_of(page)


def test_somebody_is_let_in_with_a_code_that_is_shown_once_and_kept_nowhere(
    front_door: Installation, admin: Guest
) -> None:
    login = f"{uuid4().hex}@example.org"
    page = admin.post("/people/new", login=login, name="New Comer", roles=["officer", "auditor"])
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    code = code_in(page)
    assert f"Login {login}" in text_of(page)
    assert "/admin/set-up" in page.text
    for path in ("/people", "/account", ""):
        assert code not in admin.get(path).text
    with transaction(front_door.engine) as tx:
        for table in ("people", "internal_log", "clients"):
            assert not tx.scalar(text(f"SELECT count(*) FROM {table} t WHERE t::text LIKE :c"), {"c": f"%{code}%"})
    assert code not in front_door.log.read_text()
    assert newest(front_door, "person.added")[0] == admin.person_id
    assert newest(front_door, "person.added")[1]["roles"] == ["officer", "auditor"]
    assert set_up(front_door, login, code) == 303
    assert set_up(front_door, login, code) == 422, "the code is used up"
    assert sign_in(front_door, login, PASSWORD)


@pytest.mark.parametrize(
    ("form", "status", "said"),
    [
        ({"login": "", "name": "A", "roles": ["viewer"]}, 422, "A login has 1 to 254 characters"),
        ({"login": "a b", "name": "A", "roles": ["viewer"]}, 422, "A login has 1 to 254 characters"),
        ({"login": "some.body", "name": "\x01", "roles": ["viewer"]}, 422, "A name has 1 to 200 characters"),
        ({"login": "some.body", "name": "A"}, 422, "Choose at least one of viewer"),
        ({"login": "some.body", "name": "A", "roles": ["king"]}, 422, "Something in the form is wrong"),
        ({"login": "some.body", "name": "A", "roles": ["viewer"], "by_provider": "true"}, 422, "No identity provider"),
    ],
)
def test_a_form_that_is_wrong_comes_back_with_a_sentence(
    admin: Guest, form: dict[str, object], status: int, said: str
) -> None:
    page = admin.post("/people/new", **form)
    assert page.status_code == status
    assert said in text_of(page)
    assert "some.body" not in text_of(admin.get("/people"))


def test_a_login_is_given_once(admin: Guest) -> None:
    login = f"{uuid4().hex}@example.org"
    assert admin.post("/people/new", login=login, name="One", roles=["viewer"]).status_code == 200
    page = admin.post("/people/new", login=login.upper(), name="Two", roles=["viewer"])
    assert page.status_code == 409
    assert "Somebody has this login already" in text_of(page)
    assert 'value="Two"' in page.text


def test_a_button_that_is_pressed_twice_lets_somebody_in_once(front_door: Installation, admin: Guest) -> None:
    form = {"login": f"{uuid4().hex}@example.org", "name": uuid4().hex, "roles": "viewer"}
    with ThreadPoolExecutor(6) as crowd:
        answers = list(crowd.map(lambda _: admin.post("/people/new", **form).status_code, range(6)))
    assert sorted(answers) == [200, *[409] * 5]
    with transaction(front_door.engine) as tx:
        assert tx.scalar(text("SELECT count(*) FROM clients WHERE name = :name"), {"name": form["name"]}) == 1


def test_two_admins_can_not_remove_each_other_at_once(front_door: Installation, admin: Guest) -> None:
    """Whoever comes second is out already, or is the last one."""
    for deed, form in (("disable", {}), ("roles", {"roles": "viewer"})):
        left, right = (enter(front_door, Role.ADMIN) for _ in range(2))
        with transaction(front_door.engine) as tx:
            others = text("UPDATE people SET disabled_at = now() WHERE 'admin' = ANY(roles) AND id NOT IN (:a, :b)")
            tx.execute(others, {"a": left.person_id, "b": right.person_id})
        with ThreadPoolExecutor(2) as crowd:
            pairs = [(left, right), (right, left)]
            pressed = [crowd.submit(one.post, f"/people/{two.person_id}/{deed}", **form) for one, two in pairs]
            answers = sorted(answer.result().status_code for answer in pressed)
        with transaction(front_door.engine) as tx:
            still = "SELECT count(*) FROM people WHERE 'admin' = ANY(roles) AND disabled_at IS NULL"
            count = tx.scalar(text(still))
            tx.execute(text("UPDATE people SET disabled_at = NULL WHERE id = :id"), {"id": admin.person_id})
        assert count == 1, answers
        assert answers[0] == 303
        assert answers[1] in {401, 403, 409}


def test_who_signs_in_by_the_provider_gets_no_code(front_door: Installation) -> None:
    settings = front_door.settings.model_copy(update=PROVIDER)
    guest = enter(front_door, Role.ADMIN)
    headers = {"Cookie": f"{COOKIE}={guest.cookie}", "Sec-Fetch-Site": "same-origin"}
    with TestClient(create_app(settings), base_url="https://testserver", headers=headers) as client:
        assert "identity provider alone" in client.get("/admin/people/new").text
        form = {"login": f"{uuid4().hex}@example.org", "name": "Pro Vided", "roles": ["viewer"], "by_provider": "true"}
        page = client.post("/admin/people/new", data=form)
        assert page.status_code == 200
        assert "need no code" in page.text
        assert 'class="secret"' not in page.text
    with transaction(front_door.engine) as tx:
        found = people.named(tx, form["login"])
        assert (found.setup_digest, found.by_provider) == (None, True)
    refused = guest.post(f"/people/{found.id}/invite-again")
    assert refused.status_code == 409
    assert "signs in by the identity provider" in text_of(refused)


def test_roles_change_from_the_next_click_on_and_both_names_are_written_down(
    front_door: Installation, admin: Guest
) -> None:
    guest = enter(front_door, Role.VIEWER)
    assert guest.get("/log/internal").status_code == 403
    answer = admin.post(f"/people/{guest.person_id}/roles", roles=["auditor", "viewer"])
    assert answer.status_code == 303
    assert guest.get("/log/internal").status_code == 200
    by, said = newest(front_door, "person.roles_changed")
    assert by == admin.person_id
    assert said == {"person": str(guest.person_id), "before": ["viewer"], "roles": ["viewer", "auditor"]}
    assert admin.post(f"/people/{guest.person_id}/roles").status_code == 422
    assert admin.post(f"/people/{guest.person_id}/roles", roles=["king"]).status_code == 422
    assert guest.get("/log/internal").status_code == 200


def test_nobody_changes_their_own_standing(front_door: Installation, admin: Guest) -> None:
    enter(front_door, Role.ADMIN)  # so that it is not for being the last
    for action, form in (("roles", {"roles": ["admin", "officer"]}), ("disable", {}), ("invite-again", {})):
        refused = admin.post(f"/people/{admin.person_id}/{action}", **form)
        assert refused.status_code == 403, action
        assert "another admin does it for you" in text_of(refused)
    assert person(front_door, admin.person_id).roles == ["admin"]
    assert admin.get("/people").status_code == 200
    page = admin.get("/people")
    assert f"/people/{admin.person_id}/" not in page.text
    assert "Nobody changes their own" in text_of(page)


def test_the_last_admin_can_not_be_removed(front_door: Installation, admin: Guest) -> None:
    with transaction(front_door.engine) as tx:
        others = [one for one in stored.with_role(tx, Role.ADMIN) if one != admin.person_id]
    for other in others:
        assert admin.post(f"/people/{other}/disable").status_code == 303
    for action, form in (("disable", {}), ("roles", {"roles": ["viewer"]})):
        refused = admin.post(f"/people/{admin.person_id}/{action}", **form)
        assert refused.status_code == 409
        assert "this is the last admin" in text_of(refused)
    assert admin.get("/people").status_code == 200
    assert person(front_door, admin.person_id).disabled_at is None


def test_who_is_kept_out_is_out_at_once_and_may_come_again_without_their_old_sessions(
    front_door: Installation, admin: Guest
) -> None:
    guest, login = settled(front_door, Role.OFFICER)
    second = sign_in(front_door, login, PASSWORD)
    assert second
    assert guest.get("/people").status_code == 200
    assert admin.post(f"/people/{guest.person_id}/disable").status_code == 303
    assert guest.get("/people").status_code == 303
    assert guest.post("/account/end-sessions").status_code == 401
    assert sign_in(front_door, login, PASSWORD) is None
    assert "kept out" in text_of(admin.get("/people"))
    assert admin.post(f"/people/{guest.person_id}/enable").status_code == 303
    assert guest.get("/people").status_code == 303
    assert sign_in(front_door, login, PASSWORD)
    assert newest(front_door, "person.disabled") == (admin.person_id, {"person": str(guest.person_id)})
    assert newest(front_door, "person.enabled") == (admin.person_id, {"person": str(guest.person_id)})


def test_an_admin_ends_somebodys_sessions(front_door: Installation, admin: Guest) -> None:
    guest, login = settled(front_door, Role.OFFICER)
    assert admin.post(f"/people/{guest.person_id}/end-sessions").status_code == 303
    assert guest.get("/people").status_code == 303
    assert sign_in(front_door, login, PASSWORD)
    said = {"person": str(guest.person_id), "sessions": 1}
    assert newest(front_door, "person.sessions_ended") == (admin.person_id, said)


def test_a_new_code_ends_password_factor_and_sessions(front_door: Installation, admin: Guest) -> None:
    guest, login = settled(front_door, Role.OFFICER)
    code = code_in(admin.post(f"/people/{guest.person_id}/invite-again"))
    assert guest.get("/people").status_code == 303
    assert sign_in(front_door, login, PASSWORD) is None
    assert set_up(front_door, login, code, "another fine password") == 303
    assert sign_in(front_door, login, "another fine password")


ACTIONS = ("roles", "disable", "enable", "invite-again", "end-sessions")


@pytest.mark.parametrize("role", sorted(set(Role) - {Role.ADMIN}))
def test_posts_made_by_hand_are_refused_to_everybody_else(front_door: Installation, admin: Guest, role: Role) -> None:
    guest, victim = enter(front_door, role), enter(front_door, Role.VIEWER)
    for action in ACTIONS:
        for about in (victim.person_id, guest.person_id, admin.person_id):
            assert guest.post(f"/people/{about}/{action}", roles=["admin"]).status_code == 403
    assert guest.get("/people/new").status_code == 403
    form = {"login": f"{uuid4().hex}@example.org", "name": "A", "roles": ["admin"]}
    assert guest.post("/people/new", **form).status_code == 403
    assert form["login"] not in admin.get("/people").text
    assert person(front_door, victim.person_id).roles == ["viewer"]
    assert victim.get("/people").status_code == 200


def test_posts_from_elsewhere_are_refused(front_door: Installation, admin: Guest) -> None:
    victim = enter(front_door, Role.VIEWER)
    for action in ACTIONS:
        path = f"/admin/people/{victim.person_id}/{action}"
        assert admin.http.post(path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert victim.get("/people").status_code == 200


def test_nobody_is_a_page_that_says_so(admin: Guest) -> None:
    for action in ACTIONS:
        assert admin.post(f"/people/{uuid4()}/{action}", roles=["viewer"]).status_code == 404
        assert admin.post(f"/people/x/{action}", roles=["viewer"]).status_code == 422


def test_a_hostile_name_is_text_on_every_page_that_shows_it(front_door: Installation) -> None:
    hostile = enter(front_door, *Role, name=HOSTILE)
    admin = enter(front_door, Role.ADMIN)
    invited = admin.post("/people/new", login=f"{uuid4().hex}<b>", name=HOSTILE, roles=["viewer"])
    wrong = admin.post("/people/new", login=f"x {HOSTILE}", name=HOSTILE, roles=["viewer"])
    pages = [hostile.get(path) for path in ("", "/people", "/people/new", "/account", "/log", "/log/internal")]
    for page in (*pages, invited, wrong, admin.get("/people")):
        assert "<script>alert" not in page.text
        assert "<b>" not in page.text
    for page in (*pages, invited):
        assert HOSTILE in text_of(page)


def test_an_account_shows_roles_sessions_and_second_factor_in_words(front_door: Installation) -> None:
    guest, login = settled(front_door, Role.OFFICER, Role.AUDITOR)
    told = text_of(guest.get("/account"))
    assert f"Login {login}" in told
    assert f"officer {ROLES[Role.OFFICER]} auditor {ROLES[Role.AUDITOR]}" in told
    assert "Second factor not set up" in told
    assert "in this browser only" in told
    assert MAY[Right.AUDIT] in told
    assert MAY[Right.PEOPLE] not in told
    assert '/admin/account"' in guest.get("").text
    with transaction(front_door.engine) as tx:
        stored.locked(tx, guest.person_id).totp = b"sealed"
    assert "Second factor set up" in text_of(guest.get("/account"))


def test_one_signs_out_everywhere_else(front_door: Installation) -> None:
    guest, login = settled(front_door, Role.VIEWER)
    other, stays = sign_in(front_door, login, PASSWORD), enter(front_door, Role.VIEWER)
    assert "in 2 browsers" in text_of(guest.get("/account"))
    assert guest.post("/account/end-sessions").status_code == 303
    assert "in this browser only" in text_of(guest.get("/account"))
    with stranger(front_door) as client:
        assert client.get("/admin/account", headers={"Cookie": f"{COOKIE}={other}"}).status_code == 303
    assert stays.get("/account").status_code == 200


def change(guest: Guest, old: str, new: str, again: str | None = None) -> httpx.Response:
    return guest.post("/account/password", old=old, new=new, again=new if again is None else again)


def test_a_password_is_changed_by_who_knows_the_old_one_and_other_sessions_end(front_door: Installation) -> None:
    guest, login = settled(front_door, Role.VIEWER)
    assert sign_in(front_door, login, PASSWORD)
    answer = change(guest, PASSWORD, "quite another sentence")
    assert answer.headers["Location"] == "/admin/account?done=password_changed"
    assert "in this browser only" in text_of(guest.get("/account"))
    assert sign_in(front_door, login, PASSWORD) is None
    assert sign_in(front_door, login, "quite another sentence")
    assert newest(front_door, "password.changed") == (guest.person_id, {})


def test_a_wrong_old_password_counts_as_a_failed_sign_in(front_door: Installation) -> None:
    guest, login = settled(front_door, Role.VIEWER)
    for _ in range(3):
        page = change(guest, "wrong", "quite another sentence")
        assert page.status_code == 422
        assert "The old password is wrong" in text_of(page)
    slow = change(guest, PASSWORD, "quite another sentence")
    assert slow.status_code == 429
    assert int(slow.headers["Retry-After"]) >= 1
    with stranger(front_door) as client:
        assert client.post("/admin/sign-in", data={"login": login, "password": PASSWORD}).status_code == 429
    assert newest(front_door, "password.refused") == (guest.person_id, {})
    with transaction(front_door.engine) as tx:
        assert passwords.fits(stored.locked(tx, guest.person_id).password, PASSWORD)


@pytest.mark.parametrize(
    ("new", "again", "said"),
    [
        ("short", None, "A password has 12 to 128 characters"),
        ("aaaaaaaaaaaaaaaaaa", None, "A password has at least 5 different characters"),
        ("quite another sentence", "and a third one here", "The two new passwords differ"),
    ],
)
def test_a_new_password_that_breaks_a_rule_comes_back_with_the_rule(
    front_door: Installation, new: str, again: str | None, said: str
) -> None:
    guest, login = settled(front_door, Role.VIEWER)
    page = change(guest, PASSWORD, new, again)
    assert page.status_code == 422
    assert said in text_of(page)
    assert new not in page.text
    assert sign_in(front_door, login, PASSWORD)


def test_who_comes_by_the_provider_has_no_password_to_change(front_door: Installation) -> None:
    guest = enter(front_door, Role.VIEWER)
    with transaction(front_door.engine) as tx:
        stored.locked(tx, guest.person_id).by_provider = True
    assert "have no password here" in text_of(guest.get("/account"))
    assert change(guest, "", "quite another sentence").status_code == 409


def test_the_pages_take_as_many_statements_for_many_people_as_for_few(front_door: Installation, admin: Guest) -> None:
    seen: list[str] = []
    headers = {"Cookie": f"{COOKIE}={admin.cookie}"}
    with TestClient(create_app(front_door.settings), base_url="https://testserver", headers=headers) as client:
        engine = client.app.state.context.engine  # type: ignore[attr-defined] # Starlette types no state
        event.listen(engine, "before_cursor_execute", lambda *about: seen.append(about[2]))

        def count(path: str) -> int:
            seen.clear()
            assert client.get(path).status_code == 200
            return len(seen)

        few = count("/admin/people")
        with transaction(front_door.engine) as tx:
            for n in range(100):
                login = f"{n}-{uuid4().hex}@example.org"
                people.add(tx, login=login, name=f"Person {n}", roles=[Role.VIEWER], now=datetime.now(UTC), by=None)
        assert count("/admin/people") == few <= 5
        assert count("/admin/account") <= 5
