"""Sign-in by password, against a real API process: what a thief learns, a guesser gets, and the database keeps."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pyotp
import pytest
from sqlalchemy import text

from app import passwords, people
from app.domain.people import Role
from app.storage.sessions import transaction
from app.storage.tables import Person
from tests.dashboard import COOKIE, Browser, text_of
from tests.faults import wait_until
from tests.house import Installation, installation
from tests.services import new_database

pytestmark = pytest.mark.slow
PASSWORD = "correct horse battery"
HASH = passwords.hashed(PASSWORD)
WRONG = "Login, password or code is wrong."


@pytest.fixture(scope="module")
def house(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    home: Path = tmp_path_factory.mktemp("sign-in")
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, limit_failures="1000000/second") as found,
    ):
        yield found


@dataclass(frozen=True)
class Somebody:
    id: UUID
    login: str
    code: str
    """With which they set their password, unless they have one."""


def somebody(house: Installation, *, password: str | None = HASH) -> Somebody:
    """A person whom an admin let in, and who has set a password."""
    with transaction(house.engine) as tx:
        person, code = people.add(
            tx, login=f"{uuid4().hex}@example.org", name="Ann", roles=[Role.VIEWER], now=datetime.now(UTC), by=None
        )
        person.password = password
    return Somebody(person.id, person.login, code or "")


def sign_in(house: Installation, login: str, password: str = PASSWORD, code: str = "") -> httpx.Response:
    return Browser(house).post("/admin/sign-in", login=login, password=password, code=code)


def signed_in(house: Installation, who: Somebody) -> Browser:
    browser = Browser(house)
    assert browser.post("/admin/sign-in", login=who.login, password=PASSWORD).status_code == 303
    return browser


def is_in(browser: Browser) -> bool:
    return browser.get("/admin").status_code == 200


def sql(house: Installation, statement: str, **values: object) -> None:
    with transaction(house.engine) as tx:
        tx.execute(text(statement), values)


def log_of(house: Installation, person: UUID) -> list[str]:
    with transaction(house.engine) as tx:
        query = text("SELECT what FROM internal_log WHERE person_id = :id ORDER BY id")
        return list(tx.scalars(query, {"id": person}))


# --- what a thief learns ---------------------------------------------------------------------------------------------


def test_every_failure_gets_the_same_answer(house: Installation) -> None:
    disabled, unset, enrolled = (somebody(house) for _ in range(3))
    sql(house, "UPDATE people SET disabled_at = now() WHERE id = :id", id=disabled.id)
    sql(house, "UPDATE people SET password = NULL WHERE id = :id", id=unset.id)
    enrol(house, enrolled)
    answers = [
        sign_in(house, somebody(house).login, "wrong horse battery"),
        sign_in(house, f"{uuid4().hex}@example.org"),
        sign_in(house, disabled.login),
        sign_in(house, unset.login),
        sign_in(house, enrolled.login),
        sign_in(house, enrolled.login, code="000000x"),
        sign_in(house, ""),
        sign_in(house, "with a space"),
        sign_in(house, somebody(house).login, ""),
        sign_in(house, somebody(house).login, "x" * 1024),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert WRONG in text_of(answers[0])
    assert not any("set-cookie" in answer.headers for answer in answers)


def test_an_unknown_login_takes_as_long_as_a_known_one(house: Installation) -> None:
    """Medians of 40 guesses each, taken in turn; a login that were not hashed for would be ten times as fast."""
    known = [somebody(house).login for _ in range(40)]
    seconds: dict[str, list[float]] = {"known": [], "unknown": []}
    sign_in(house, "the first guess makes the hash that nobody has")
    for login in known:
        for kind, tried in (("known", login), ("unknown", f"{uuid4().hex}@example.org")):
            browser = Browser(house)
            browser.get("/admin/static/icon.svg")  # connects
            began = time.perf_counter()
            assert browser.post("/admin/sign-in", login=tried, password="wrong horse battery").status_code == 401
            seconds[kind].append(time.perf_counter() - began)
    ratio = statistics.median(seconds["known"]) / statistics.median(seconds["unknown"])
    spread = {
        kind: [f"{1000 * value:.0f} ms" for value in statistics.quantiles(tried)] for kind, tried in seconds.items()
    }
    print(f"ratio of medians {ratio:.2f}; quartiles {spread}")
    assert 0.67 < ratio < 1.5, spread


def test_a_password_is_kept_as_argon2id_with_the_parameters_that_owasp_names(house: Installation) -> None:
    who = somebody(house, password=None)
    assert set_up(house, who).status_code == 303
    with transaction(house.engine) as tx:
        stored = tx.get_one(Person, who.id).password or ""
    assert re.match(r"\$argon2id\$v=19\$m=19456,t=2,p=1\$[^$]{22}\$[^$]{43}$", stored)


def test_the_database_holds_nothing_that_opens_a_door(house: Installation) -> None:
    invited, enrolled = somebody(house, password=None), somebody(house)
    secret = enrol(house, enrolled)
    cookie = signed_in(house, somebody(house)).cookies[COOKIE]
    with transaction(house.engine) as tx:
        rows = [
            str(tx.scalars(text(f"SELECT t::text FROM {table} t")).all())
            for table in ("people", "browser_sessions", "sign_in_failures", "internal_log")
        ]
    dump = "".join(rows)
    assert enrolled.login in dump, "the dump has the rows"
    for word in (cookie, invited.code, secret, PASSWORD):
        assert word not in dump
        assert word.encode().hex() not in dump
    assert pyotp.TOTP(secret).byte_secret().hex() not in dump


def test_what_was_typed_stands_in_no_log(house: Installation) -> None:
    who, unknown = somebody(house), f"{uuid4().hex}@example.org"
    enrol(house, who)
    typed = [f"{uuid4().hex} horse", "314159", unknown, who.login]
    for login in (who.login, unknown):
        sign_in(house, login, typed[0], "314159")
        Browser(house).post("/admin/set-up", login=login, code=typed[0], password=typed[0], again=typed[0])
    with transaction(house.engine) as tx:
        kept = str(tx.execute(text("SELECT what, detail, person_id::text FROM internal_log")).all())
    written = house.log.read_text() + kept
    assert "/admin/sign-in" in written, "calls are logged at all"
    assert [word for word in typed if word in written] == []


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_cookie_is_bound_to_the_host_to_tls_and_closed_to_scripts(house: Installation) -> None:
    answer = sign_in(house, somebody(house).login)
    [line] = answer.headers.get_list("set-cookie")
    name, *said = line.split("; ")
    assert re.fullmatch(r"__Host-expunge=[A-Za-z0-9_-]{43}", name)
    assert sorted(part.lower() for part in said) == ["httponly", "path=/", "samesite=lax", "secure"]


def test_a_sign_in_begins_a_new_session_and_ends_the_one_that_the_browser_showed(house: Installation) -> None:
    who = somebody(house)
    browser = signed_in(house, who)
    old = browser.cookies[COOKIE]
    browser.post("/admin/sign-in", login=who.login, password=PASSWORD)
    assert browser.cookies[COOKIE] != old
    assert is_in(browser)
    left = Browser(house)
    left.cookies[COOKIE] = old
    assert not is_in(left)


def test_a_session_that_somebody_else_made_up_is_not_taken_over(house: Installation) -> None:
    browser = Browser(house)
    browser.cookies[COOKIE] = planted = "A" * 43
    browser.post("/admin/sign-in", login=somebody(house).login, password=PASSWORD)
    assert browser.cookies[COOKIE] != planted
    browser.cookies[COOKIE] = planted
    assert not is_in(browser)


def test_a_failed_sign_in_leaves_the_session_as_it_was(house: Installation) -> None:
    browser = signed_in(house, somebody(house))
    browser.post("/admin/sign-in", login=f"{uuid4().hex}@example.org", password=PASSWORD)
    assert is_in(browser)


def test_after_signing_out_the_cookie_opens_nothing(house: Installation) -> None:
    who = somebody(house)
    browser, elsewhere = signed_in(house, who), signed_in(house, who)
    cookie = browser.cookies[COOKIE]
    answer = browser.post("/admin/sign-out")
    assert answer.headers["Location"] == "/admin/sign-in?done=signed_out"
    assert COOKIE not in browser.cookies
    assert "max-age=0" in answer.headers["Set-Cookie"].lower()
    browser.cookies[COOKIE] = cookie
    assert not is_in(browser)
    assert is_in(elsewhere), "the other browser's session is another"
    assert log_of(house, who.id) == ["signed_in", "signed_in", "signed_out"]


@pytest.mark.parametrize(
    ("column", "ago", "alive"),
    [
        ("seen_at", "59 minutes", True),
        ("seen_at", "61 minutes", False),
        ("created_at", "719 minutes", True),
        ("created_at", "721 minutes", False),
    ],
)
def test_a_session_ends_when_it_is_left_alone_for_an_hour_or_after_twelve(
    house: Installation, column: str, ago: str, alive: bool
) -> None:
    who = somebody(house)
    browser = signed_in(house, who)
    past = "UPDATE browser_sessions SET {} = now() - interval '{}' WHERE person_id = :id"
    sql(house, past.format(column, ago), id=who.id)
    assert is_in(browser) is alive
    if alive:
        with transaction(house.engine) as tx:
            seen = tx.scalar(text("SELECT seen_at FROM browser_sessions WHERE person_id = :id"), {"id": who.id})
        assert datetime.now(UTC) - seen < timedelta(minutes=1), "whoever is there is not left alone"


def test_a_page_that_asks_by_itself_does_not_keep_a_session_alive(house: Installation) -> None:
    who = somebody(house)
    browser = signed_in(house, who)
    sql(house, "UPDATE browser_sessions SET seen_at = now() - interval '50 minutes' WHERE person_id = :id", id=who.id)
    assert browser.get("/admin/models", **{"HX-Request": "true"}).status_code == 200
    with transaction(house.engine) as tx:
        seen = tx.scalar(text("SELECT seen_at FROM browser_sessions WHERE person_id = :id"), {"id": who.id})
    assert datetime.now(UTC) - seen > timedelta(minutes=49)


def test_sessions_that_ended_are_forgotten_with_the_next_sign_in(house: Installation) -> None:
    who = somebody(house)
    signed_in(house, who)
    sql(house, "UPDATE browser_sessions SET seen_at = now() - interval '2 hours' WHERE person_id = :id", id=who.id)
    signed_in(house, somebody(house))
    with transaction(house.engine) as tx:
        left = tx.scalar(text("SELECT count(*) FROM browser_sessions WHERE person_id = :id"), {"id": who.id})
    assert left == 0


def test_a_session_ends_with_its_person(house: Installation) -> None:
    who = somebody(house)
    browser = signed_in(house, who)
    sql(house, "UPDATE people SET disabled_at = now() WHERE id = :id", id=who.id)
    assert not is_in(browser)


# --- guessing --------------------------------------------------------------------------------------------------------


def wait_is_over(house: Installation, seconds: int = 3600) -> None:
    """As if that time had passed since every failure."""
    sql(house, f"UPDATE sign_in_failures SET failed_at = failed_at - interval '{seconds} seconds'")


@pytest.mark.parametrize("known", [True, False], ids=["a known login", "an unknown one"])
def test_after_three_wrong_guesses_a_login_must_wait(house: Installation, known: bool) -> None:
    login = somebody(house).login if known else f"{uuid4().hex}@example.org"
    guesses = [sign_in(house, login, "wrong horse battery").status_code for _ in range(3)]
    held = sign_in(house, login.upper(), PASSWORD)
    assert guesses == [401, 401, 401]
    assert held.status_code == 429, "the right password, too, and however the login is written"
    assert held.headers["Retry-After"] in {"1", "2"}
    assert "too many wrong guesses at this login" in text_of(held).lower()
    assert sign_in(house, somebody(house).login).status_code == 303, "nobody else waits"
    wait_is_over(house, 2)
    assert sign_in(house, login).status_code == (303 if known else 401)


def test_each_further_wrong_guess_doubles_the_wait_up_to_a_minute(house: Installation) -> None:
    login, waits = somebody(house).login, []
    for guess in range(9):
        assert sign_in(house, login, "wrong horse battery").status_code == 401
        if guess >= 2:
            waits.append(int(sign_in(house, login).headers["Retry-After"]))
        wait_is_over(house)
    for found, expected in zip(waits, [2, 4, 8, 16, 32, 60, 60], strict=True):
        assert expected - 2 <= found <= expected
    assert sign_in(house, login).status_code == 303
    assert sign_in(house, login, "wrong horse battery").status_code == 401, "a sign-in that succeeds ends the series"


def test_guesses_that_come_at_once_are_counted_one_by_one(house: Installation) -> None:
    login = somebody(house).login
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: sign_in(house, login, "wrong horse battery").status_code, range(12)))
    assert answers.count(401) == 3, answers
    assert answers.count(429) == 9


def test_a_sign_in_button_that_is_pressed_twice_lets_in_after_a_failure_too(house: Installation) -> None:
    """The first to come in takes the count of failures away, on which the others wait."""
    for _ in range(3):
        who = somebody(house)
        assert sign_in(house, who.login, "wrong horse battery").status_code == 401
        with ThreadPoolExecutor(4) as crowd:
            answers = list(crowd.map(lambda login: sign_in(house, login), [who.login] * 4))
        assert [answer.status_code for answer in answers] == [303] * 4


def test_a_crowd_at_the_sign_in_leaves_connections_and_threads_to_requests(house: Installation) -> None:
    """Sign-ins that hang on a lock are the worst of them: a crowd that gets in line holds two of ten connections."""
    who = somebody(house)
    assert sign_in(house, who.login, "wrong horse battery").status_code == 401
    with ThreadPoolExecutor(40) as crowd, house.client() as api:
        with transaction(house.engine) as tx:
            tx.execute(text("SELECT FROM sign_in_failures FOR UPDATE"))
            guesses = [crowd.submit(sign_in, house, who.login, "wrong horse battery") for _ in range(40)]
            wait_until(lambda: sum(guess.done() for guess in guesses) >= 30, 20, "most are sent away")
            for _ in range(8):
                began = time.perf_counter()
                assert api.post("/v1/erasure-requests", json={"user_id": uuid4().hex}).status_code == 202
                assert api.get("/v1/models").status_code == 200
                assert time.perf_counter() - began < 2
        told = [guess.result() for guess in guesses]
    assert {answer.status_code for answer in told} == {401, 429}
    sent_away = [answer for answer in told if "many people sign in" in text_of(answer).lower()]
    assert len(sent_away) == 30
    assert {answer.headers["Retry-After"] for answer in sent_away} == {"3"}
    assert sign_in(house, somebody(house).login).status_code == 303, "whoever comes later is heard"


# --- the second factor -----------------------------------------------------------------------------------------------


def enrol(house: Installation, who: Somebody) -> str:
    """Their second factor is set up with the code of the last half minute, which is then used up."""
    secret, now = passwords.new_secret(), datetime.now(UTC)
    code = pyotp.TOTP(secret).at(now - timedelta(seconds=30))
    with transaction(house.engine) as tx:
        people.enrol(tx, who.id, secret=secret, code=code, now=now, settings=house.settings)
    return secret


def with_time_left(seconds: float = 6) -> None:
    """No code may change under a test's hands."""
    left = 30 - time.time() % 30
    if left < seconds:
        time.sleep(left)


def test_who_has_a_second_factor_needs_it_and_each_code_is_good_once(house: Installation) -> None:
    with_time_left()
    who = somebody(house)
    totp, now = pyotp.TOTP(enrol(house, who)), datetime.now(UTC)
    assert sign_in(house, who.login).status_code == 401
    used = sign_in(house, who.login, code=totp.at(now - timedelta(seconds=30)))
    assert used.status_code == 401, "with this one it was set up"
    code = totp.at(now)
    assert sign_in(house, who.login, code=f"{code[:3]} {code[3:]}").status_code == 303
    assert sign_in(house, who.login, code=code).status_code == 401


@pytest.mark.parametrize(("steps", "status"), [(-2, 401), (0, 303), (1, 303), (2, 401)])
def test_a_clock_may_be_half_a_minute_off(house: Installation, steps: int, status: int) -> None:
    with_time_left()
    who = somebody(house)
    totp = pyotp.TOTP(enrol(house, who))
    code = totp.at(datetime.now(UTC) + steps * timedelta(seconds=30))
    assert sign_in(house, who.login, code=code).status_code == status


def test_the_code_of_the_last_half_minute_is_good_where_it_was_not_used(house: Installation) -> None:
    with_time_left()
    who = somebody(house)
    totp = pyotp.TOTP(enrol(house, who))
    sql(house, "UPDATE people SET totp_step = totp_step - 5 WHERE id = :id", id=who.id)
    assert sign_in(house, who.login, code=totp.at(datetime.now(UTC) - timedelta(seconds=30))).status_code == 303
    assert sign_in(house, who.login, code=totp.now()).status_code == 303, "a later one than the last"


def test_a_code_without_the_password_is_not_used_up(house: Installation) -> None:
    with_time_left()
    who = somebody(house)
    code = pyotp.TOTP(enrol(house, who)).now()
    assert sign_in(house, who.login, "wrong horse battery", code).status_code == 401
    assert sign_in(house, who.login, code=code).status_code == 303


def test_wrong_codes_are_counted_like_wrong_passwords(house: Installation) -> None:
    who = somebody(house)
    enrol(house, who)
    assert [sign_in(house, who.login, code="000000x").status_code for _ in range(4)] == [401, 401, 401, 429]


def test_a_second_factor_is_set_up_by_showing_that_one_has_it(house: Installation) -> None:
    with_time_left()
    who = somebody(house)
    browser = signed_in(house, who)
    page = browser.get("/admin/second-factor")
    secret = re.search(r'name="secret" value="([A-Z2-7]{32})"', page.text)
    assert secret
    assert page.headers["Cache-Control"] == "no-store"
    for code in ("", "000000x", pyotp.TOTP(passwords.new_secret()).now()):
        refused = browser.post("/admin/second-factor", secret=secret[1], code=code)
        assert (refused.status_code, "not the code of this moment" in text_of(refused)) == (422, True)
    totp = pyotp.TOTP(secret[1])
    assert browser.post("/admin/second-factor", secret=secret[1], code=totp.now()).status_code == 303
    another = passwords.new_secret()
    replaced = browser.post("/admin/second-factor", secret=another, code=pyotp.TOTP(another).now())
    assert replaced.status_code == 409, "whoever finds a browser open can't put theirs in its place"
    assert sign_in(house, who.login).status_code == 401
    assert sign_in(house, who.login, code=totp.at(datetime.now(UTC) + timedelta(seconds=30))).status_code == 303


# --- the first password ----------------------------------------------------------------------------------------------


def set_up(
    house: Installation, who: Somebody, *, code: str | None = None, password: str = PASSWORD, again: str | None = None
) -> httpx.Response:
    sent = {"code": who.code if code is None else code, "password": password, "again": again or password}
    return Browser(house).post("/admin/set-up", login=who.login, **sent)


def test_a_code_sets_a_password_once(house: Installation) -> None:
    who = somebody(house, password=None)
    done = set_up(house, who)
    assert done.headers["Location"] == "/admin/sign-in?done=password"
    again = set_up(house, who, password="another horse battery")
    assert (again.status_code, "login or code is wrong" in text_of(again).lower()) == (422, True)
    assert sign_in(house, who.login).status_code == 303


def test_a_code_lasts_three_days(house: Installation) -> None:
    for ago, status in (("71 hours 59 minutes", 303), ("72 hours", 422)):
        who = somebody(house, password=None)
        shift = f"UPDATE people SET setup_expires_at = setup_expires_at - interval '{ago}' WHERE id = :id"
        sql(house, shift, id=who.id)
        assert set_up(house, who).status_code == status


def test_wrong_codes_are_counted_and_say_nothing_of_who_is_there(house: Installation) -> None:
    who = somebody(house, password=None)
    nobody = Somebody(uuid4(), f"{uuid4().hex}@example.org", "")
    answers = {one.login: [set_up(house, one, code="wrong") for _ in range(4)] for one in (who, nobody)}
    for tried in answers.values():
        assert [answer.status_code for answer in tried] == [422, 422, 422, 429]
    said = {text_of(tried[0]).replace(login, "") for login, tried in answers.items()}
    assert len(said) == 1
    assert set_up(house, who).status_code == 429, "the right code waits, too"
    wait_is_over(house)
    assert set_up(house, who).status_code == 303


def test_a_code_opens_nothing_for_who_was_disabled(house: Installation) -> None:
    who = somebody(house, password=None)
    sql(house, "UPDATE people SET disabled_at = now() WHERE id = :id", id=who.id)
    assert set_up(house, who).status_code == 422


@pytest.mark.parametrize(
    ("password", "rule"),
    [
        ("elevenchars", "a password has 12 to 128 characters"),
        ("abcdefghij" * 13, "a password has 12 to 128 characters"),
        ("aaaabbbbccccdddd", "a password has at least 5 different characters"),
        ("my LOGIN is long", "a password does not contain the login"),
        ("", "a password has 12 to 128 characters"),
    ],
)
def test_a_weak_password_is_refused_by_its_rule_and_uses_no_code_up(
    house: Installation, password: str, rule: str
) -> None:
    who = somebody(house, password=None)
    weak = password.replace("LOGIN", who.login.partition("@")[0].upper())
    answer = set_up(house, who, password=weak)
    assert (answer.status_code, rule in text_of(answer).lower()) == (422, True)
    assert not weak or weak not in answer.text
    assert set_up(house, who).status_code == 303


def test_a_password_typed_twice_must_be_the_same(house: Installation) -> None:
    who = somebody(house, password=None)
    answer = set_up(house, who, again="correct horse buttery")
    assert (answer.status_code, "the two passwords differ" in text_of(answer).lower()) == (422, True)


# --- where a second factor is required -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """A session lasts twenty minutes at most, five if it is left alone; nothing is seen without a second factor."""
    home: Path = tmp_path_factory.mktemp("strict")
    changes = {"second_factor": "required", "session_idle_minutes": 5, "session_hours": 1 / 3}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, **changes) as found,
    ):
        yield found


def test_nobody_sees_a_page_before_their_second_factor_is_set_up(strict: Installation) -> None:
    who = somebody(strict)
    browser = signed_in(strict, who)
    for path in ("", "/requests", "/models", "/people", "/account", "/log", "/settings", "/keys", "/webhooks"):
        page = browser.get(f"/admin{path}")
        assert (page.status_code, "set up your second factor first" in text_of(page).lower()) == (403, True), path
        assert 'href="/admin/second-factor"' in page.text
    assert browser.post("/admin/account/password", old=PASSWORD, new="another horse battery").status_code == 403
    assert browser.get("/admin/second-factor").status_code == 200
    assert browser.post("/admin/sign-out").status_code == 303


def test_the_first_sign_in_leads_to_where_it_is_set_up(strict: Installation) -> None:
    who = somebody(strict)
    answer = Browser(strict).post("/admin/sign-in", login=who.login, password=PASSWORD)
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin/second-factor")


def test_with_it_they_do(strict: Installation) -> None:
    who = somebody(strict)
    browser = signed_in(strict, who)
    enrol(strict, who)
    assert is_in(browser)


def test_who_comes_by_the_identity_provider_has_their_second_factor_there(strict: Installation) -> None:
    with transaction(strict.engine) as tx:
        now = datetime.now(UTC)
        person, _ = people.add(
            tx, login=f"{uuid4().hex}@x.org", name="Ann", roles=[Role.VIEWER], now=now, by=None, by_provider=True
        )
        browser = Browser(strict)
        browser.cookies[COOKIE] = people.begin_session(tx, person, now=now, settings=strict.settings)
    assert is_in(browser)


@pytest.mark.parametrize(
    ("column", "minutes", "alive"), [("seen_at", 4, True), ("seen_at", 6, False), ("created_at", 21, False)]
)
def test_how_long_a_session_lasts_is_the_operators_choice(
    strict: Installation, column: str, minutes: int, alive: bool
) -> None:
    who = somebody(strict)
    enrol(strict, who)
    with transaction(strict.engine) as tx:
        person = tx.get_one(Person, who.id)
        browser = Browser(strict)
        browser.cookies[COOKIE] = people.begin_session(tx, person, now=datetime.now(UTC), settings=strict.settings)
    past = f"UPDATE browser_sessions SET {column} = now() - interval '{minutes} minutes' WHERE person_id = :id"
    sql(strict, past, id=who.id)
    assert is_in(browser) is alive
