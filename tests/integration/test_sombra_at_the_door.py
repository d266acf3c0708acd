"""A call of Transcend's brings its own proof; the door looks at that, and at no body, where strangers are not heard."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from tests.house import Installation, installation
from tests.services import new_database
from tests.sombra import es384

pytestmark = pytest.mark.slow
SOMBRA, STRANGER = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
PATH = "/portals/transcend"


@pytest.fixture(scope="module")
def house(
    postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An API in which every guesser of this address has used up all guesses."""
    home: Path = tmp_path_factory.mktemp("sombra")
    sombra = home / "sombra.pem"
    sombra.write_bytes(SOMBRA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    transcend = {"transcend_key": sombra, "transcend_audience": "acme", "transcend_client": "portal"}
    settings: dict[str, Any] = {**transcend, "transcend_api_key": SecretStr("k"), "limit_failures": "3/hour"}
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False, **settings) as found,
    ):
        guesses = [begun(found, PATH, token(STRANGER), b"{}") for _ in range(4)]
        assert guesses == [401, 401, 401, 429]
        yield found


def token(key: ec.EllipticCurvePrivateKey, **changes: Any) -> str:
    now = int(datetime.now(UTC).timestamp())
    usual = {"value": "somebody", "scope": "coreIdentifier", "aud": "acme", "iat": now, "exp": now + 60}
    return es384(key, {**usual, **changes})


def begun(house: Installation, path: str, shown: str, body: bytes = b"", *, announced: int | None = None) -> int | None:
    """The status of a call of which so much is sent; none if a second later there is no answer."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {announced or len(body)}"]
    lines += [f"X-Sombra-Token: {shown}", f"X-Transcend-Nonce: {uuid4()}", "Content-Type: application/json"]
    with socket.create_connection(("127.0.0.1", house.port), timeout=1) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        try:
            return int(connection.recv(12).removeprefix(b"HTTP/1.1 "))
        except TimeoutError:
            return None


def job(value: str) -> bytes:
    return json.dumps({"type": "ERASURE", "coreIdentifier": {"value": value}, "extras": {}}).encode()


def test_sombra_is_heard_where_its_neighbours_guess(house: Installation) -> None:
    assert begun(house, PATH, token(SOMBRA), job("somebody")) in {200, 204}


@pytest.mark.parametrize(
    "forged",
    [token(STRANGER), token(SOMBRA, aud="others"), token(SOMBRA, exp=1), token(SOMBRA, scope="enrichment"), "x", ""],
    ids=["a stranger's key", "another organisation", "expired", "another scope", "no token", "nothing"],
)
def test_a_forged_token_is_refused_there_before_a_byte_of_its_body_came(house: Installation, forged: str) -> None:
    assert begun(house, PATH, forged, announced=1000) == 429


def test_the_body_of_a_good_token_is_waited_for(house: Installation) -> None:
    assert begun(house, PATH, token(SOMBRA), announced=1000) is None


def test_the_token_opens_no_other_door(house: Installation) -> None:
    for path in ("/portals/ketch", "/portals/transcend/", "/v1/erasure-requests"):
        assert begun(house, path, token(SOMBRA), announced=1000) == 429
