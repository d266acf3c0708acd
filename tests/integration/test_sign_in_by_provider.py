"""Sign-in by the identity provider, against a real API process and a real provider: who comes in, and who does not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from starlette.testclient import TestClient

from app import keyring, people
from app.api.tokens import Provider
from app.domain.people import Role
from app.errors import Misconfigured, Unavailable
from app.main import create_app
from app.storage.sessions import transaction
from tests.dashboard import COOKIE, Browser, text_of
from tests.faults import wait_until
from tests.house import Installation, installation, settings_for
from tests.identity_provider import AUDIENCE, IdentityProvider, assembled, rsa_key, with_secret
from tests.services import new_database

pytestmark = pytest.mark.slow
SITE = "https://erasure.example"
ERRAND = "__Host-expunge-provider"
NOBODY = "nobody here has let you in"


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as found:
        yield found


@pytest.fixture(autouse=True)
def honest(provider: IdentityProvider) -> Iterator[None]:
    """Whatever a test makes the provider say ends with it."""
    yield
    provider.person, provider.changes, provider.answers = {}, {}, []


@pytest.fixture(scope="module")
def house(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider
) -> Iterator[Installation]:
    home: Path = tmp_path_factory.mktemp("provider")
    trust = sign_in_settings(provider) | {"limit_failures": "1000000/second", "oidc_refetch_seconds": 0.3}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, **trust) as found,
    ):
        wait_until(lambda: Browser(found).get("/admin/sign-in/provider").status_code == 303, 15, "discovery is read")
        yield found


def sign_in_settings(provider: IdentityProvider) -> dict[str, Any]:
    return {
        "oidc_issuer": provider.issuer,
        "oidc_sign_in_client": provider.client,
        "oidc_sign_in_secret": SecretStr(provider.secret),
        "dashboard_url": SITE,
    }


def let_in(house: Installation, login: str = "", **more: Any) -> tuple[UUID, str]:
    """Somebody whom an admin added: their id and login."""
    login = login or f"{uuid4().hex}@example.org"
    by_provider = more.pop("by_provider", True)
    with transaction(house.engine) as tx:
        person, _ = people.add(
            tx, login=login, name="Ann", roles=[Role.VIEWER], now=datetime.now(UTC), by=None, by_provider=by_provider
        )
        for name, value in more.items():
            setattr(person, name, value)
    return person.id, login


def knows(provider: IdentityProvider, login: str | None, **more: Any) -> str:
    """Who sits at the browser, as the provider knows them: returns their subject."""
    provider.person = {"sub": uuid4().hex, "email": login, "email_verified": True, **more}
    return str(provider.person["sub"])


def begin(browser: Browser, wanted: str = "/admin") -> str:
    """Press the button: where the browser is sent."""
    answer = browser.get(f"/admin/sign-in/provider?next={wanted}")
    assert answer.status_code == 303, answer.text
    return answer.headers["Location"]


def come_back(browser: Browser, address: str) -> httpx.Response:
    assert address.startswith(f"{SITE}/admin/sign-in/provider/callback?"), address
    return browser.get(address.removeprefix(SITE))


def sign_in(browser: Browser, provider: IdentityProvider, wanted: str = "/admin") -> httpx.Response:
    return come_back(browser, provider.authorize(begin(browser, wanted)))


def is_in(browser: Browser) -> bool:
    return browser.get("/admin").status_code == 200


def is_refused(browser: Browser, answer: httpx.Response, sentence: str, status: int = 403) -> None:
    assert (answer.status_code, sentence in text_of(answer)) == (status, True), text_of(answer)
    assert "Sign in by the identity provider" in text_of(answer)
    assert COOKIE not in browser.cookies
    assert not is_in(browser)


def entries(house: Installation, person: UUID | None) -> list[tuple[str, dict[str, Any]]]:
    query = text("SELECT what, detail FROM internal_log WHERE person_id IS NOT DISTINCT FROM :id ORDER BY id")
    with transaction(house.engine) as tx:
        return [(row[0], row[1]) for row in tx.execute(query, {"id": person})]


def test_whom_an_admin_added_comes_in_and_is_known_by_the_subject_from_then_on(
    house: Installation, provider: IdentityProvider
) -> None:
    person, login = let_in(house)
    knows(provider, login.upper())
    first = Browser(house)
    answer = sign_in(first, provider, "/admin/requests")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/admin/requests")
    assert is_in(first)
    assert ERRAND not in first.cookies
    provider.person |= {"email": "renamed@example.org", "email_verified": False}
    second = Browser(house)
    assert sign_in(second, provider).status_code == 303
    assert is_in(second)
    assert entries(house, person) == [("provider_account.bound", {}), ("signed_in", {}), ("signed_in", {})]


def test_the_cookies_of_a_sign_in_are_bound_to_the_host_and_closed_to_scripts(
    house: Installation, provider: IdentityProvider
) -> None:
    browser = Browser(house)
    _, login = let_in(house)
    knows(provider, login)
    leave = browser.get("/admin/sign-in/provider")
    [errand] = leave.headers.get_list("set-cookie")
    name, *said = errand.split("; ")
    assert name.startswith(f"{ERRAND}=")
    assert sorted(part.lower() for part in said) == ["httponly", "max-age=600", "path=/", "samesite=lax", "secure"]
    assert leave.headers["Cache-Control"] == "no-store"
    answer = come_back(browser, provider.authorize(leave.headers["Location"]))
    session = next(line for line in answer.headers.get_list("set-cookie") if line.startswith(f"{COOKIE}="))
    assert sorted(part.lower() for part in session.split("; ")[1:]) == ["httponly", "path=/", "samesite=lax", "secure"]


def test_what_travels_in_the_browser_is_sealed(house: Installation) -> None:
    browser = Browser(house)
    asked = parse_qs(urlsplit(begin(browser)).query)
    sealed = bytes.fromhex(browser.cookies[ERRAND])
    assert asked["state"][0].encode() not in sealed
    plain = keyring.unseal(house.settings.key("wrapping_key"), sealed, context=b"expunge/provider-sign-in/v1")
    errand = json.loads(plain)
    assert (errand["state"], errand["nonce"]) == (asked["state"][0], asked["nonce"][0])
    assert errand["verifier"] not in str(asked)
    assert asked["redirect_uri"] == [f"{SITE}/admin/sign-in/provider/callback"]
    assert len({errand["state"], errand["nonce"], errand["verifier"]}) == 3


def test_every_sign_in_has_secrets_of_its_own(house: Installation) -> None:
    asked = [parse_qs(urlsplit(begin(Browser(house))).query) for _ in range(2)]
    for name in ("state", "nonce", "code_challenge"):
        assert asked[0][name] != asked[1][name]


def test_a_new_session_takes_the_place_of_the_one_that_the_browser_showed(
    house: Installation, provider: IdentityProvider
) -> None:
    browser = Browser(house)
    _, login = let_in(house)
    knows(provider, login)
    sign_in(browser, provider)
    old = browser.cookies[COOKIE]
    sign_in(browser, provider)
    assert browser.cookies[COOKIE] != old
    left = Browser(house)
    left.cookies[COOKIE] = old
    assert not is_in(left)


STRANGERS: dict[str, Callable[[Installation], dict[str, Any]]] = {
    "nobody added them": lambda _: {"email": f"{uuid4().hex}@example.org"},
    "their address is not checked": lambda house: {"email": let_in(house)[1], "email_verified": False},
    "the provider does not say whether it is": lambda house: {"email": let_in(house)[1], "email_verified": None},
    "it says so in a string": lambda house: {"email": let_in(house)[1], "email_verified": "true"},
    "the provider names no address": lambda house: {"email": let_in(house)[1] and None},
    "their address is a number": lambda _: {"email": 7},
    "they have a password here": lambda house: {"email": let_in(house, by_provider=False)[1]},
    "they are disabled": lambda house: {"email": let_in(house, disabled_at="2026-01-01T00:00:00Z")[1]},
    "they are bound to another account": lambda house: {"email": let_in(house, oidc_subject=uuid4().hex)[1]},
    "their address folds into another": lambda house: {
        "email": let_in(house, f"{uuid4().hex}k@x.org")[1][:-7] + "\u212a@x.org"
    },
    "their address has a space in it": lambda house: {"email": let_in(house)[1] + " x"},
}


@pytest.mark.parametrize("who", STRANGERS)
def test_nobody_else_comes_in(house: Installation, provider: IdentityProvider, who: str) -> None:
    changes = STRANGERS[who](house)
    knows(provider, None, **changes)
    browser = Browser(house)
    is_refused(browser, sign_in(browser, provider), NOBODY)
    with transaction(house.engine) as tx:
        assert not tx.scalar(text("SELECT count(*) FROM people WHERE oidc_subject = :s"), {"s": provider.person["sub"]})


def test_a_bound_person_who_is_disabled_does_not_come_in_and_that_is_written_down(
    house: Installation, provider: IdentityProvider
) -> None:
    subject = uuid4().hex
    person, login = let_in(house, oidc_subject=subject, disabled_at="2026-01-01T00:00:00Z")
    knows(provider, login, sub=subject)
    browser = Browser(house)
    is_refused(browser, sign_in(browser, provider), NOBODY)
    assert entries(house, person) == [("sign_in.failed", {"by": "identity provider"})]


def test_a_subject_of_somebody_with_a_password_opens_nothing(house: Installation, provider: IdentityProvider) -> None:
    subject = uuid4().hex
    _, login = let_in(house, by_provider=False, oidc_subject=subject)
    knows(provider, login, sub=subject)
    browser = Browser(house)
    is_refused(browser, sign_in(browser, provider), NOBODY)


def now() -> int:
    return int(time.time())


def resigned(provider: IdentityProvider, header: dict[str, Any], sign: Any) -> dict[str, Any]:
    claims = provider.claims(aud=provider.client, nonce="?", **provider.person)
    return {"whole": assembled(header, claims, sign)}


ATTACKS: dict[str, Callable[[IdentityProvider], dict[str, Any]]] = {
    "another issuer": lambda _: {"iss": "https://elsewhere.example"},
    "no issuer": lambda _: {"iss": None},
    "another audience": lambda _: {"aud": "another app"},
    "the audience of our API": lambda _: {"aud": AUDIENCE},
    "no audience": lambda _: {"aud": None},
    "several audiences and no azp": lambda p: {"aud": [p.client, "another app"]},
    "another azp": lambda p: {"aud": [p.client, "another app"], "azp": "another app"},
    "another azp though it is alone": lambda _: {"azp": "another app"},
    "another nonce": lambda _: {"nonce": "n" * 43},
    "no nonce": lambda _: {"nonce": None},
    "a nonce that is no string": lambda _: {"nonce": ["n"]},
    "expired": lambda _: {"exp": now() - 40},
    "no exp": lambda _: {"exp": None},
    "made in the future": lambda _: {"iat": now() + 60},
    "made an hour ago": lambda _: {"iat": now() - 3600},
    "no iat": lambda _: {"iat": None},
    "no subject": lambda _: {"sub": None},
    "an endless subject": lambda _: {"sub": "s" * 5000},
    "a subject that can't be printed": lambda _: {"sub": "a\u202eb"},
    "another access token": lambda _: {"at_hash": "x" * 22},
    "a key that nobody publishes": lambda _: {"key": rsa_key("unheard of")},
    "somebody else's key under a known name": lambda p: {"key": rsa_key(p.keys[0].kid)},
    "an access token": lambda _: {"header": {"typ": "at+jwt"}},
    "no signature": lambda p: resigned(p, {"alg": "none"}, lambda _: b""),
    "a symmetric signature": lambda p: resigned(p, {"alg": "HS256", "kid": "r1"}, with_secret(p.secret.encode())),
    "not a token": lambda _: {"whole": "no token"},
    "a number": lambda _: {"whole": 7},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_id_token_is_not_believed(house: Installation, provider: IdentityProvider, attack: str) -> None:
    _, login = let_in(house)
    knows(provider, login)
    provider.changes = ATTACKS[attack](provider)
    browser = Browser(house)
    answer = sign_in(browser, provider)
    status = 503 if attack == "a key that nobody publishes" and answer.status_code == 503 else 401
    is_refused(browser, answer, "try again in a moment" if status == 503 else "can't be accepted", status)
    provider.changes = {}
    assert sign_in(browser, provider).status_code == 303, "the same person with a good token"


@pytest.mark.parametrize("place", [0, 1, 2], ids=["RS256", "ES256", "EdDSA"])
def test_id_tokens_of_each_accepted_kind_of_key_are_believed(
    house: Installation, provider: IdentityProvider, place: int
) -> None:
    for more in (
        {},
        {"aud": [provider.client]},
        {"aud": [provider.client, "x"], "azp": provider.client},
        {"at_hash": None},
    ):
        knows(provider, let_in(house)[1])
        provider.changes = {"key": provider.keys[place], **more}
        assert sign_in(Browser(house), provider).status_code == 303, more


def test_a_code_is_taken_only_from_the_browser_that_was_sent_for_it(
    house: Installation, provider: IdentityProvider
) -> None:
    knows(provider, let_in(house)[1])
    attacker, victim = Browser(house), Browser(house)
    theirs = provider.authorize(begin(attacker))
    is_refused(victim, come_back(victim, theirs), "began in another browser", 401)
    begin(victim)
    is_refused(victim, come_back(victim, theirs), "began in another browser", 401)
    assert come_back(attacker, theirs).status_code == 303
    is_refused(victim, come_back(victim, theirs), "began in another browser", 401)


def test_a_code_is_good_once(house: Installation, provider: IdentityProvider) -> None:
    knows(provider, let_in(house)[1])
    browser = Browser(house)
    address = provider.authorize(begin(browser))
    errand = dict(browser.cookies)
    come_back(browser, address)
    again = Browser(house)
    again.cookies = errand
    is_refused(again, come_back(again, address), "did not answer as expected", 503)


def test_a_sign_in_is_over_after_ten_minutes(house: Installation, provider: IdentityProvider) -> None:
    knows(provider, let_in(house)[1])
    browser = Browser(house)
    address = provider.authorize(begin(browser))
    key, context = house.settings.key("wrapping_key"), b"expunge/provider-sign-in/v1"
    errand = json.loads(keyring.unseal(key, bytes.fromhex(browser.cookies[ERRAND]), context=context))
    assert 590 < errand["until"] - time.time() <= 600
    late = json.dumps({**errand, "until": time.time() - 1}).encode()
    browser.cookies[ERRAND] = keyring.seal(key, late, context=context).hex()
    is_refused(browser, come_back(browser, address), "more than ten minutes ago", 401)


@pytest.mark.parametrize("forged", ["", "00", "zz", "0" * 200, "{}"])
def test_a_cookie_that_we_did_not_seal_is_none(house: Installation, provider: IdentityProvider, forged: str) -> None:
    browser = Browser(house)
    address = provider.authorize(begin(browser))
    browser.cookies[ERRAND] = forged
    is_refused(browser, come_back(browser, address), "began in another browser", 401)


@pytest.mark.parametrize(
    ("brought", "sentence", "status"),
    [
        ("error=access_denied&error_description=%3Cb%3Eshouted", "did not let you in, or you turned back", 403),
        ("error=server_error&error_description=shouted", "could not sign you in", 403),
        ("error=shouted", "could not sign you in", 403),
        ("", "could not sign you in", 403),
        ("code=", "could not sign you in", 403),
        ("code=shouted", "did not answer as expected", 503),
        ("code=shouted&iss=https://elsewhere.example", "does not come from our identity provider", 401),
    ],
)
def test_what_the_provider_complains_of_becomes_a_sentence_of_ours(
    house: Installation, brought: str, sentence: str, status: int
) -> None:
    browser = Browser(house)
    [state] = parse_qs(urlsplit(begin(browser)).query)["state"]
    answer = browser.get(f"/admin/sign-in/provider/callback?state={state}&{brought}")
    is_refused(browser, answer, sentence, status)
    assert "shouted" not in answer.text


@pytest.mark.parametrize(
    "answer",
    [
        (200, b""),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"id_token": null}'),
        (200, b"[" * 60_000),
        (200, b"x" * 200_000),
        (400, b'{"error": "shouted"}'),
        (500, b"shouted"),
        (302, b""),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1][:12]!r}",
)
def test_whatever_the_token_endpoint_says_nobody_sees_an_error_of_ours(
    house: Installation, provider: IdentityProvider, answer: tuple[int, bytes]
) -> None:
    browser = Browser(house)
    provider.answers = [answer]
    page = sign_in(browser, provider)
    assert page.status_code in {401, 503}
    assert "shouted" not in page.text
    assert COOKIE not in browser.cookies


def test_the_secret_and_the_verifier_go_to_the_token_endpoint_alone(
    house: Installation, provider: IdentityProvider
) -> None:
    knows(provider, let_in(house)[1])
    browser = Browser(house)
    address = begin(browser)
    sign_in(browser, provider)
    form = provider.exchanges[-1]
    assert form["grant_type"] == "authorization_code"
    assert provider.secret not in address
    assert form["code_verifier"] not in address
    log = house.log.read_text()
    for word in (form["code"], form["code_verifier"], provider.secret, str(provider.person["sub"])):
        assert word not in log


def test_where_the_provider_leads_afterwards_is_a_page_of_ours(house: Installation, provider: IdentityProvider) -> None:
    for wanted in ("//evil.example", "https://evil.example", "/adminx", "/admin/../x"):
        knows(provider, let_in(house)[1])
        assert sign_in(Browser(house), provider, wanted).headers["Location"] == "/admin"


def test_an_id_token_is_no_key_of_the_api_and_no_session(house: Installation, provider: IdentityProvider) -> None:
    knows(provider, let_in(house)[1])
    token = provider.id_token({"nonce": "n"}, "a")
    with house.client() as client:
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 401
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {provider.token()}"}).status_code == 401
    browser = Browser(house)
    browser.cookies[COOKIE] = token
    assert not is_in(browser)


def test_without_a_provider_there_is_no_such_page(front_door: Installation) -> None:
    browser = Browser(front_door)
    for path in ("/admin/sign-in/provider", "/admin/sign-in/provider/callback?code=x&state=y"):
        answer = browser.get(path)
        assert (answer.status_code, "sign in by password here" in text_of(answer)) == (404, True)
    assert "identity provider" not in text_of(browser.get("/admin/sign-in"))


@pytest.mark.parametrize(
    "said",
    [
        {"authorization_endpoint": "http://idp.example/authorize"},
        {"token_endpoint": "http://10.0.0.1/token"},
        {"token_endpoint": "https://[oops"},
        {"token_endpoint": None},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
)
def test_endpoints_that_others_could_read_are_not_used(tmp_path: Path, said: dict[str, Any]) -> None:
    with IdentityProvider(discovery=said) as provider:
        reader = Provider(settings_for(tmp_path, "", **sign_in_settings(provider)))
        read_places(reader)
        with pytest.raises(Unavailable, match="can't be reached"):
            _ = reader.places
        provider.discovery = {}
        read_places(reader)
        assert reader.places.token == f"{provider.issuer}/token"


def read_places(reader: Provider) -> None:
    async def read() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.keep_places(), 0.5)

    asyncio.run(read())


@pytest.mark.parametrize(
    ("said", "secret", "form"),
    [
        ({"token_endpoint_auth_methods_supported": ["client_secret_post"]}, None, {"client_id", "client_secret"}),
        ({"token_endpoint_auth_methods_supported": ["client_secret_basic"]}, None, set()),
        ({"authorization_response_iss_parameter_supported": True}, None, set()),
        ({}, "", {"client_id"}),
    ],
    ids=["secret in the form", "secret in a header", "it names itself", "no secret"],
)
def test_our_secret_goes_where_the_provider_wants_it(
    database_url: str, tmp_path: Path, said: dict[str, Any], secret: str | None, form: set[str]
) -> None:
    with IdentityProvider(discovery=said) as provider:
        provider.secret = provider.secret if secret is None else secret
        settings = settings_for(tmp_path, database_url, **sign_in_settings(provider))
        with TestClient(create_app(settings), base_url=SITE, follow_redirects=False) as browser:
            wait_until(lambda: browser.get("/admin/sign-in/provider").status_code == 303, 5, "discovery is read")
            knows(provider, f"{uuid4().hex}@example.org")
            address = provider.authorize(browser.get("/admin/sign-in/provider").headers["Location"])
            answer = browser.get(address)
            assert NOBODY in text_of(answer), "the provider took the secret and gave a good token"
            assert set(provider.exchanges[-1]) & {"client_id", "client_secret"} == form
            if "authorization_response_iss_parameter_supported" in said:
                silent = provider.authorize(browser.get("/admin/sign-in/provider").headers["Location"])
                unnamed = browser.get(silent.partition("&iss=")[0])
                assert "does not come from our identity provider" in text_of(unnamed)


def test_while_the_provider_is_away_the_page_says_so_and_passwords_go_on(database_url: str, tmp_path: Path) -> None:
    with IdentityProvider() as provider:
        provider.leave()
        settings = settings_for(tmp_path, database_url, **sign_in_settings(provider))
        with TestClient(create_app(settings), base_url=SITE, follow_redirects=False) as browser:
            answer = browser.get("/admin/sign-in/provider")
            assert (answer.status_code, "can't be reached just now" in text_of(answer)) == (503, True)
            assert browser.get("/admin/sign-in").status_code == 200
        provider.come_back()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"oidc_issuer": ""}, "EXPUNGE_OIDC_ISSUER"),
        ({"dashboard_url": ""}, "EXPUNGE_DASHBOARD_URL"),
        ({"dashboard_url": "http://erasure.example"}, "EXPUNGE_DASHBOARD_URL"),
        ({"dashboard_url": "https://erasure.example/somewhere"}, "EXPUNGE_DASHBOARD_URL"),
        ({"dashboard_url": "https://ann:secret@erasure.example"}, "EXPUNGE_DASHBOARD_URL"),
        ({"dashboard_url": "https://[oops"}, "EXPUNGE_DASHBOARD_URL"),
        ({"dashboard_url": "erasure.example"}, "EXPUNGE_DASHBOARD_URL"),
        ({"oidc_sign_in_client": ""}, "EXPUNGE_OIDC_SIGN_IN_SECRET"),
        ({"oidc_issuer": "http://idp.example"}, "EXPUNGE_OIDC_ISSUER"),
        ({"oidc_algorithms": ()}, "EXPUNGE_OIDC_ALGORITHMS"),
    ],
)
def test_settings_that_cannot_be_followed_stop_the_start(
    tmp_path: Path, provider: IdentityProvider, changes: dict[str, Any], told: str
) -> None:
    good = sign_in_settings(provider)
    Provider(settings_for(tmp_path, "", **good))
    for loopback in ("http://127.0.0.1:8000", "http://localhost:8000/", f"{SITE}/", f"{SITE}:8443"):
        Provider(settings_for(tmp_path, "", **{**good, "dashboard_url": loopback}))
    with pytest.raises(Misconfigured, match=told):
        Provider(settings_for(tmp_path, "", **{**good, **changes}))
