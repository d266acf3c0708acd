"""Tokens of an identity provider, against a real API process and a real provider: who is believed, and who is not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from app import keymaking
from app.api.auth import Scope
from app.api.tokens import Provider
from app.errors import Misconfigured, Unauthenticated, Unavailable
from app.settings import Settings
from app.storage.sessions import transaction
from tests.faults import wait_until
from tests.house import Installation, installation, settings_for
from tests.identity_provider import (
    AUDIENCE,
    IdentityProvider,
    Key,
    assembled,
    b64,
    ec_key,
    ed_key,
    rsa_key,
    with_secret,
)
from tests.services import new_database

pytestmark = pytest.mark.slow
MODELS = "/v1/models"
HOUR = 3600
REFETCH_SECONDS = 0.3


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as found:
        found.leave()
        yield found


@pytest.fixture(scope="module")
def begun_alone(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider
) -> Iterator[Installation]:
    home: Path = tmp_path_factory.mktemp("tokens")
    trust = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_refetch_seconds": REFETCH_SECONDS}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, limit_failures="1000000/second", **trust) as found,
    ):
        with transaction(found.engine) as tx:
            keymaking.describe_client(
                tx, "portal", oidc_subject="portal", token_scopes=[Scope.MODELS_READ, Scope.REQUESTS_READ]
            )
        yield found


_http = httpx.Client(timeout=30)


@pytest.fixture(scope="module")
def house(begun_alone: Installation, provider: IdentityProvider, while_away: list[int]) -> Installation:
    wait_until(lambda: ask(begun_alone, provider.token()).status_code == 200, 15, "the provider's keys are read")
    return begun_alone


@pytest.fixture(scope="module")
def while_away(begun_alone: Installation, provider: IdentityProvider) -> list[int]:
    """How a token and an API key were answered while the provider had not been seen yet; it comes then."""
    seen = [ask(begun_alone, token).status_code for token in (provider.token(), begun_alone.key)]
    provider.come_back()
    return seen


def test_the_api_starts_without_its_provider_and_takes_keys_meanwhile(while_away: list[int]) -> None:
    assert while_away == [503, 200]


def ask(house: Installation, token: str, path: str = MODELS) -> httpx.Response:
    return _http.get(f"http://127.0.0.1:{house.port}{path}", headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize("place", [0, 1, 2], ids=["RS256", "ES256", "EdDSA"])
def test_a_token_signed_with_each_accepted_kind_of_key_is_believed(
    house: Installation, provider: IdentityProvider, place: int
) -> None:
    assert ask(house, provider.token(key=provider.keys[place])).status_code == 200


@pytest.mark.parametrize(
    "asking",
    [
        {"scope": "openid models:read profile"},
        {"scope": None, "scp": "models:read"},
        {"scope": None, "scp": ["models:read"]},
        {"scope": None, "roles": ["models:read", 7, None]},
    ],
)
def test_scopes_are_read_from_where_providers_write_them(
    house: Installation, provider: IdentityProvider, asking: dict[str, Any]
) -> None:
    assert ask(house, provider.token(**asking)).status_code == 200


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", None])
def test_a_token_of_each_type_that_access_tokens_have_is_believed(
    house: Installation, provider: IdentityProvider, typ: str | None
) -> None:
    """RFC 9068 2.1 writes at+jwt, in any case and with or without application/; many providers write JWT or nothing."""
    assert ask(house, provider.token(header={"typ": typ})).status_code == 200


@pytest.mark.parametrize("asking", [None, "", "models:write", "MODELS:READ", "models:read_all", 7, {"models:read": 1}])
def test_a_token_that_asks_for_nothing_gets_nothing(
    house: Installation, provider: IdentityProvider, asking: Any
) -> None:
    assert ask(house, provider.token(scope=asking)).status_code == 403


def test_a_token_gets_no_more_than_its_client_may_have(house: Installation, provider: IdentityProvider) -> None:
    greedy = provider.token(scope=" ".join(Scope))
    assert ask(house, greedy).status_code == 200
    assert ask(house, greedy, "/v1/erasure-requests").status_code == 200
    assert ask(house, greedy, "/v1/webhook-endpoints").status_code == 403
    assert ask(house, provider.token(scope="models:read"), "/v1/erasure-requests").status_code == 403


def test_a_subject_that_nobody_registered_is_told_what_is_missing(
    house: Installation, provider: IdentityProvider
) -> None:
    answer = ask(house, provider.token(sub="somebody else"))
    assert answer.status_code == 403
    assert "no client is registered" in answer.json()["detail"]
    assert "somebody else" not in answer.text


def pem(key: Key) -> bytes:
    return key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def unsigned(_: bytes) -> bytes:
    return b""


NOW = int(time.time())
ATTACKS: dict[str, Callable[[IdentityProvider], str]] = {
    "alg none": lambda p: assembled({"alg": "none", "kid": "r1"}, p.claims(), unsigned),
    "alg NONE": lambda p: assembled({"alg": "nOnE", "kid": "r1"}, p.claims(), unsigned),
    "no alg": lambda p: assembled({"kid": "r1"}, p.claims(), p.keys[0].sign),
    "HS256 with the public key as PEM": lambda p: assembled(
        {"alg": "HS256", "kid": "r1"}, p.claims(), with_secret(pem(p.keys[0]))
    ),
    "HS256 with the public key as JWK": lambda p: assembled(
        {"alg": "HS256", "kid": "r1"}, p.claims(), with_secret(json.dumps(p.keys[0].jwk()).encode())
    ),
    "HS256 with a published secret": lambda p: assembled(
        {"alg": "HS256", "kid": "shared"}, p.claims(), with_secret(b"k" * 32)
    ),
    "an algorithm that is not on the list": lambda p: p.token(header={"alg": "PS256"}),
    "the algorithm of another key": lambda p: p.token(header={"alg": "ES256"}),
    "signed by a stranger under a known id": lambda p: p.token(key=Key("r1", rsa_key("x").private)),
    "signed by a stranger under its own id": lambda p: p.token(key=rsa_key("stranger")),
    "key in the header": lambda p: p.token(key=(k := rsa_key("r1")), header={"jwk": k.jwk()}),
    "key id that climbs": lambda p: p.token(header={"kid": "../../../../dev/null"}),
    "key id with SQL": lambda p: p.token(header={"kid": "' UNION SELECT 'k' --"}),
    "key id that is a number": lambda p: p.token(header={"kid": 1}),
    "key id that is a list": lambda p: p.token(header={"kid": ["r1"]}),
    "no key id among several keys": lambda p: p.token(header={"kid": None}),
    "key meant for encryption": lambda p: p.token(key=ENCRYPTION),
    "small RSA key": lambda p: p.token(key=SMALL),
    "critical header": lambda p: p.token(header={"crit": ["exp"], "exp": 1}),
    "critical header that is known": lambda p: p.token(header={"crit": ["kid"]}),
    "critical and unknown": lambda p: p.token(header={"crit": ["http://example.com/x"], "http://example.com/x": True}),
    "payload not encoded (RFC 7797)": lambda p: p.token(header={"b64": False, "crit": ["b64"]}),
    "another issuer": lambda p: p.token(iss="https://elsewhere.example"),
    "issuer with a slash more": lambda p: p.token(iss=p.issuer + "/"),
    "several issuers": lambda p: p.token(iss=[p.issuer]),
    "no issuer": lambda p: p.token(iss=None),
    "another audience": lambda p: p.token(aud="https://other.example/api"),
    "audience that begins alike": lambda p: p.token(aud=AUDIENCE + "/v2"),
    "audiences without ours": lambda p: p.token(aud=["a", "b"]),
    "no audience": lambda p: p.token(aud=None),
    "empty audience": lambda p: p.token(aud=[]),
    "expired": lambda p: p.token(exp=NOW - 31),
    "expired as text": lambda p: p.token(exp=str(NOW + 300)),
    "expires never": lambda p: p.token(exp=None),
    "expires at infinity": lambda p: p.token(exp=float("inf")),
    "expires at NaN": lambda p: p.token(exp=float("nan")),
    "expires if true": lambda p: p.token(exp=True),
    "not yet valid": lambda p: p.token(nbf=int(time.time()) + 90),
    "issued tomorrow": lambda p: p.token(iat=int(time.time()) + 24 * HOUR),
    "no subject": lambda p: p.token(sub=None),
    "empty subject": lambda p: p.token(sub=""),
    "subject that is a number": lambda p: p.token(sub=7),
    "subject with a NUL": lambda p: p.token(sub="portal\0"),
    "subject of a thousand letters": lambda p: p.token(sub="p" * 1000),
    "ID token for a browser": lambda p: p.token(header={"typ": "id+jwt"}),
    "logout token": lambda p: p.token(header={"typ": "logout+jwt"}),
    "proof of possession": lambda p: p.token(header={"typ": "dpop+jwt"}),
    "type that is a list": lambda p: p.token(header={"typ": ["at+jwt"]}),
    "type that is a number": lambda p: p.token(header={"typ": 1}),
    "huge": lambda p: p.token(padding="x" * 20_000),
    "deep": lambda p: assembled({"alg": "RS256", "kid": "r1"}, b'{"a":' * 2_000 + b"1" + b"}" * 2_000, p.keys[0].sign),
    "claims are a list": lambda p: assembled({"alg": "RS256", "kid": "r1"}, [1], p.keys[0].sign),
    "claims are no JSON": lambda p: assembled({"alg": "RS256", "kid": "r1"}, b"\xff{", p.keys[0].sign),
    "header is a list": lambda p: f"{b64(b'[]')}.{b64(b'{}')}.{b64(b'x')}",
    "nothing but dots": lambda _: "..",
    "cut": lambda p: p.token()[:-4],
    "signature of another token": lambda p: f"{p.token(sub='other').rpartition('.')[0]}.{p.token().rpartition('.')[2]}",
    "encrypted": lambda p: ".".join([b64(b'{"alg":"RSA-OAEP","enc":"A256GCM"}')] + ["eA"] * 4),
}
ENCRYPTION, SMALL = rsa_key("enc"), rsa_key("small", 1024)


@pytest.mark.parametrize("attack", ATTACKS)
def test_is_not_believed(house: Installation, provider: IdentityProvider, attack: str) -> None:
    secret = {"kty": "oct", "k": b64(b"k" * 32), "kid": "shared", "alg": "HS256"}
    provider.also_published = [
        secret,
        {**ENCRYPTION.jwk(), "use": "enc"},
        SMALL.jwk(),
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "odd"},
        {"kty": "ML-DSA"},
        "text",
    ]
    token = ATTACKS[attack](provider)
    answer = ask(house, token)
    if answer.status_code == 503:  # a key id that we had not heard of: the keys are read anew first
        wait_until(lambda: ask(house, token).status_code != 503, 10, "the keys are read anew")
        answer = ask(house, token)
    assert answer.status_code == 401, answer.text
    assert not any(part and part in answer.text for part in token.split(".")[1:])
    assert ask(house, provider.token()).status_code == 200, "what else the provider publishes must not matter"


def test_where_a_token_says_its_key_lies_is_not_looked_at(house: Installation, provider: IdentityProvider) -> None:
    with IdentityProvider(keys=[Key("r1", rsa_key("r1").private)]) as trap:
        for header in ({"jku": f"{trap.issuer}/jwks"}, {"x5u": f"{trap.issuer}/jwks"}):
            assert ask(house, trap.token(header=header, iss=provider.issuer)).status_code == 401
        time.sleep(0.3)
        assert trap.asked == 0


def test_a_key_that_is_new_is_believed_after_one_question(house: Installation, provider: IdentityProvider) -> None:
    fresh = ec_key("e2")
    time.sleep(REFETCH_SECONDS + 0.1)
    provider.keys.append(fresh)
    answer = ask(house, provider.token(key=fresh))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"
    wait_until(lambda: ask(house, provider.token(key=fresh)).status_code == 200, 5, "the new key is known")


def test_a_key_that_was_withdrawn_ends_with_the_next_reading(house: Installation, provider: IdentityProvider) -> None:
    gone = provider.keys.pop(1)
    stranger = rsa_key("made up, to have the keys read anew")

    def refused() -> bool:
        ask(house, provider.token(key=stranger))
        return ask(house, provider.token(key=gone)).status_code == 401

    wait_until(refused, 10, "the withdrawn key is forgotten")
    provider.keys.insert(1, gone)


def test_made_up_key_ids_do_not_make_us_a_nuisance(house: Installation, provider: IdentityProvider) -> None:
    time.sleep(REFETCH_SECONDS + 0.1)
    before, began = provider.asked, time.monotonic()
    for place in range(100):
        ask(house, provider.token(header={"kid": f"made up {place}"}))
    assert provider.asked - before <= 2 + (time.monotonic() - began) / REFETCH_SECONDS


def test_while_the_provider_is_away_its_keys_go_on(house: Installation, provider: IdentityProvider) -> None:
    provider.leave()
    try:
        stranger = provider.token(key=ed_key("unheard of"))
        wait_until(lambda: ask(house, stranger).status_code == 503, 5, "it is asked for")
        time.sleep(0.5)
        began = time.monotonic()
        assert ask(house, provider.token()).status_code == 200
        assert time.monotonic() - began < 1
    finally:
        provider.come_back()


def test_an_answer_without_end_changes_nothing(house: Installation, provider: IdentityProvider) -> None:
    provider.padding = 200_000
    time.sleep(REFETCH_SECONDS + 0.1)
    before = provider.asked
    ask(house, provider.token(key=ed_key("unheard of")))
    wait_until(lambda: provider.asked > before, 5, "the keys are asked for")
    time.sleep(0.3)
    assert ask(house, provider.token()).status_code == 200
    provider.padding = 0


def test_among_many_keys_the_right_one_is_taken(tmp_path: Path) -> None:
    keys = [ed_key(f"key {place}") for place in range(150)]
    with IdentityProvider(keys=keys) as provider:
        file = tmp_path / "jwks.json"
        file.write_text(json.dumps({"keys": [key.jwk() for key in keys]}))
        reader = Provider(
            settings_for(tmp_path, "", oidc_issuer=provider.issuer, oidc_audience=AUDIENCE, oidc_jwks=file)
        )
        assert reader.read(provider.token(key=keys[149])).subject == "portal"
        assert provider.asked == 0


def test_the_claim_that_names_the_client_is_the_operators_choice(tmp_path: Path) -> None:
    with IdentityProvider(keys=[ed_key("only")]) as provider:
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [provider.keys[0].jwk()]}))
        trust = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_jwks": tmp_path / "jwks.json"}
        reader = Provider(settings_for(tmp_path, "", oidc_client_claim="azp", **trust))
        for alone in ({"sub": None}, {"sub": "an app"}, {"gty": "client-credentials"}, {"idtyp": "app"}):
            assert reader.read(provider.token(azp="an app", **alone)).subject == "an app"
        for person in ({}, {"gty": "password"}, {"idtyp": "user"}):
            with pytest.raises(Unauthenticated, match="somebody else than the client"):
                reader.read(provider.token(azp="an app", **person))
        named = provider.token(azp="x", sub="x", header={"kid": None})
        assert reader.read(named).subject == "x"  # one key needs no name
        with pytest.raises(Unauthenticated, match="azp does not name a client"):
            reader.read(provider.token())


def test_clocks_may_differ_by_the_leeway_and_no_more(tmp_path: Path) -> None:
    with IdentityProvider(keys=[ed_key("only")]) as provider:
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [provider.keys[0].jwk()]}))
        trust = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_jwks": tmp_path / "jwks.json"}
        reader = Provider(settings_for(tmp_path, "", **trust), clock=lambda: 1_000_000.0)
        usual = {"nbf": 1_000_000, "iat": 1_000_000, "exp": 1_000_300}
        for good in ({"exp": 999_971}, {"nbf": 1_000_030}, {"iat": 1_000_030}):
            reader.read(provider.token(**{**usual, **good}))
        for bad in ({"exp": 999_970}, {"nbf": 1_000_031}, {"iat": 1_000_031}):
            with pytest.raises(Unauthenticated):
                reader.read(provider.token(**{**usual, **bad}))


@pytest.mark.parametrize("changes", [{"nonce": "n"}, {"at_hash": "h"}, {"exp": int(time.time()) + 25 * HOUR}])
def test_id_tokens_and_tokens_that_live_long_are_refused(
    house: Installation, provider: IdentityProvider, changes: dict[str, Any]
) -> None:
    assert ask(house, provider.token(exp=int(time.time()) + 23 * HOUR)).status_code == 200
    assert ask(house, provider.token(**changes)).status_code == 401


def test_an_address_that_cannot_be_parsed_ends_nothing(tmp_path: Path) -> None:
    with IdentityProvider(keys_said="https://[oops") as provider:
        trust = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_refetch_seconds": 0.1}
        reader = Provider(settings_for(tmp_path, "", **trust))

        async def story() -> None:
            task = asyncio.create_task(reader.keep_keys())
            await asyncio.sleep(0.5)
            provider.keys_said = None
            with pytest.raises(Unavailable):
                reader.read(provider.token())
            await asyncio.sleep(0.5)
            task.cancel()

        asyncio.run(story())
        assert reader.read(provider.token()).subject == "portal"


def test_tokens_while_the_keys_are_stale_are_no_nuisance_to_the_provider(tmp_path: Path) -> None:
    with IdentityProvider(keys=[]) as provider:
        trust = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_refetch_seconds": 0.5}
        reader = Provider(settings_for(tmp_path, "", **trust))
        token = assembled({"alg": "EdDSA", "kid": "x"}, {}, lambda _: b"")

        async def story() -> None:
            task = asyncio.create_task(reader.keep_keys())
            for _ in range(150):
                with pytest.raises(Unavailable):
                    reader.read(token)
                await asyncio.sleep(0.01)
            task.cancel()

        asyncio.run(story())
        assert 2 <= provider.asked <= 5


def read_for_a_second(reader: Provider) -> None:
    async def read() -> None:
        task = asyncio.create_task(reader.keep_keys())
        await asyncio.sleep(1)
        task.cancel()

    asyncio.run(read())


def test_stale_keys_are_trusted_for_a_limited_time(tmp_path: Path) -> None:
    clock = [time.time()]
    with IdentityProvider() as provider:
        trust = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_keys_hours": 2.0}
        reader = Provider(settings_for(tmp_path, "", **trust), clock=lambda: clock[0])
        with pytest.raises(Unavailable):
            reader.read(provider.token())  # not read yet

        read_for_a_second(reader)
        later = {"exp": clock[0] + 9 * HOUR}
        clock[0] += 2 * HOUR - 5
        assert reader.read(provider.token(**later)).scopes == {"models:read"}
        clock[0] += 10
        with pytest.raises(Unavailable):
            reader.read(provider.token(**later))


def test_another_issuers_discovery_document_is_not_followed(tmp_path: Path) -> None:
    with IdentityProvider(issuer_said="https://elsewhere.example") as provider:
        reader = Provider(settings_for(tmp_path, "", oidc_issuer=provider.issuer, oidc_audience=AUDIENCE))
        read_for_a_second(reader)
        assert provider.asked == 0
        provider.issuer_said = None
        read_for_a_second(reader)
        assert provider.asked == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"oidc_audience": ""}, "EXPUNGE_OIDC_AUDIENCE"),
        ({"oidc_issuer": "http://idp.example"}, "https"),
        ({"oidc_jwks_url": "http://10.0.0.1/jwks"}, "https"),
        ({"oidc_jwks_url": "file:///etc/passwd"}, "https"),
        ({"oidc_algorithms": ()}, "EXPUNGE_OIDC_ALGORITHMS"),
    ],
)
def test_settings_that_would_believe_too_much_stop_the_start(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    good = {"oidc_issuer": "https://idp.example", "oidc_audience": AUDIENCE}
    Provider(settings_for(tmp_path, "", **good))
    with pytest.raises(Misconfigured, match=told):
        Provider(settings_for(tmp_path, "", **{**good, **changes}))


@pytest.mark.parametrize("name", ["none", "HS256", "RS256,HS256", "RSA1_5"])
def test_signatures_that_a_reader_could_forge_are_no_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("EXPUNGE_OIDC_ALGORITHMS", name)
    with pytest.raises(ValidationError):
        Settings()
    monkeypatch.setenv("EXPUNGE_OIDC_ALGORITHMS", "RS256, ES256")
    assert Settings().oidc_algorithms == ("RS256", "ES256")
