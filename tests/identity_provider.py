"""An identity provider for tests: real HTTP, its own keys, and tokens signed without the library that reads them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit
from uuid import uuid4

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

AUDIENCE = "https://expunge.example/api"
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8))


@dataclass
class Key:
    """A signing key under a key id."""

    kid: str
    private: Private

    @property
    def alg(self) -> str:
        if isinstance(self.private, rsa.RSAPrivateKey):
            return "RS256"
        return "ES256" if isinstance(self.private, ec.EllipticCurvePrivateKey) else "EdDSA"

    def jwk(self) -> dict[str, str]:
        public = self.private.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            shape = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        elif isinstance(public, ec.EllipticCurvePublicKey):
            point = public.public_numbers()
            shape = {"kty": "EC", "crv": "P-256", "x": b64(point.x.to_bytes(32)), "y": b64(point.y.to_bytes(32))}
        else:
            shape = {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}
        return {**shape, "kid": self.kid, "use": "sig"}

    def sign(self, message: bytes) -> bytes:
        if isinstance(self.private, rsa.RSAPrivateKey):
            return self.private.sign(message, padding.PKCS1v15(), hashes.SHA256())
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.private.sign(message, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32) + s.to_bytes(32)
        return self.private.sign(message)


def rsa_key(kid: str, bits: int = 2048) -> Key:
    return Key(kid, rsa.generate_private_key(65537, bits))


def ec_key(kid: str) -> Key:
    return Key(kid, ec.generate_private_key(ec.SECP256R1()))


def ed_key(kid: str) -> Key:
    return Key(kid, ed25519.Ed25519PrivateKey.generate())


def assembled(header: dict[str, Any], claims: Any, sign: Any) -> str:
    """A token with any header, any claims and any signature."""
    raw = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    message = f"{b64(json.dumps(header).encode())}.{b64(raw)}"
    return f"{message}.{b64(sign(message.encode()))}"


def with_secret(secret: bytes) -> Any:
    return lambda message: hmac.digest(secret, message, hashlib.sha256)


@dataclass
class IdentityProvider:
    """``with IdentityProvider() as provider``: discovery, keys, tokens; counts who asks for its keys.

    People sign in, too: ``person`` is whoever sits at the browser. ``changes`` spoils ID tokens, ``answers`` the whole
    answer at the token endpoint, ``discovery`` the discovery document.
    """

    keys: list[Key] = field(default_factory=lambda: [rsa_key("r1"), ec_key("e1"), ed_key("o1")])
    also_published: list[Any] = field(default_factory=list)
    asked: int = 0
    padding: int = 0
    issuer_said: str | None = None
    keys_said: str | None = None
    port: int = 0
    client: str = "dashboard"
    secret: str = "s3cr:t +/%"
    person: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    discovery: dict[str, Any] = field(default_factory=dict)
    answers: list[tuple[int, bytes]] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    exchanges: list[dict[str, Any]] = field(default_factory=list)

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        usual = {"iss": self.issuer, "aud": AUDIENCE, "sub": "portal", "iat": now, "nbf": now, "exp": now + 300}
        return {k: v for k, v in {**usual, "scope": "models:read", **changes}.items() if v is not None}

    def token(self, *, key: Key | None = None, header: dict[str, Any] | None = None, **changes: Any) -> str:
        chosen = key or self.keys[0]
        usual = {"alg": chosen.alg, "kid": chosen.kid, "typ": "at+jwt"}
        full = {k: v for k, v in {**usual, **(header or {})}.items() if v is not None}
        return assembled(full, self.claims(**changes), chosen.sign)

    def authorize(self, address: str) -> str:
        """What happens at the authorization endpoint once ``person`` has agreed: where their browser is sent."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert address.startswith(f"{self.issuer}/authorize?"), address
        assert (asked["client_id"], asked["response_type"]) == (self.client, "code")
        assert set(asked["scope"].split()) >= {"openid", "email"}
        assert asked["code_challenge_method"] == "S256"
        code = uuid4().hex
        self.codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state'], 'iss': self.issuer})}"

    def id_token(self, asked: dict[str, str], access_token: str, key: Key | None = None, **changes: Any) -> str:
        chosen, header = key or self.keys[0], {"typ": "JWT", **changes.pop("header", {})}
        digest = hashlib.sha512 if chosen.alg == "EdDSA" else hashlib.sha256
        hashed = digest(access_token.encode()).digest()
        usual = {"aud": self.client, "nonce": asked.get("nonce"), "scope": None, "nbf": None}
        usual |= {"at_hash": b64(hashed[: len(hashed) // 2]), **self.person, **changes}
        return self.token(key=chosen, header=header, **usual)

    def _exchange(self, headers: Any, form: dict[str, str]) -> tuple[int, bytes]:
        self.exchanges.append(form)
        if self.answers:
            return self.answers.pop(0)
        word, _, given = headers.get("Authorization", "").partition(" ")
        client, _, secret = base64.b64decode(given).decode().partition(":")
        known = word == "Basic" and (unquote_plus(client), unquote_plus(secret)) == (self.client, self.secret)
        posted = (form.get("client_id"), form.get("client_secret", "")) == (self.client, self.secret)
        asked = self.codes.pop(form.get("code", ""), None)  # good once
        proof = b64(hashlib.sha256(form.get("code_verifier", "").encode()).digest())
        if not (known or posted):
            return 401, b'{"error": "invalid_client"}'
        if not asked or proof != asked["code_challenge"] or form.get("redirect_uri") != asked["redirect_uri"]:
            return 400, b'{"error": "invalid_grant"}'
        changes = dict(self.changes)
        access_token = uuid4().hex
        token = changes.pop("whole", None) or self.id_token(asked, access_token, **changes)
        said = {"access_token": access_token, "token_type": "Bearer", "expires_in": 300, "id_token": token}
        return 200, json.dumps(said).encode()

    def __enter__(self) -> Self:
        self._serve()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Be away: connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def come_back(self) -> None:
        self._serve()

    def _serve(self) -> None:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(provider._document(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                assert self.path == "/token", f"somebody posted to {self.path}"
                sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = {name: values[0] for name, values in parse_qs(sent).items()}
                status, body = provider._exchange(self.headers, form)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _document(self, path: str) -> dict[str, Any]:
        if path == "/.well-known/openid-configuration":
            where = {"authorization_endpoint": f"{self.issuer}/authorize", "token_endpoint": f"{self.issuer}/token"}
            keys = self.keys_said or f"{self.issuer}/jwks"
            return {"issuer": self.issuer_said or self.issuer, "jwks_uri": keys, **where, **self.discovery}
        assert path == "/jwks", f"somebody asked for {path}"
        self.asked += 1
        return {"keys": [*self.also_published, *(key.jwk() for key in self.keys)], "padding": "x" * self.padding}
