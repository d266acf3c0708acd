"""Time stamps by an authority that is not ours: OpenSSL issues them, and OpenSSL and our own check read them."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import UUID

import pytest
from rfc3161_client import decode_timestamp_response
from sqlalchemy import select

from app.audit import timestamps
from app.errors import Misconfigured, Unavailable
from app.storage import audit
from app.storage.sessions import transaction
from app.storage.tables import Timestamp
from tests.faults import wait_until
from tests.house import installation, settings_for
from tests.pipeline import Bench, in_this_process, register
from workers import erase
from workers.context import Context
from workers.scribe import Scribe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, the time stamp authority, is not installed"),
]

CONFIG = """
[tsa]
default_tsa = here
[here]
serial = {directory}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = {digests}
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""
EXTENSIONS = """
extendedKeyUsage = critical,timeStamping
keyUsage = critical,digitalSignature
basicConstraints = critical,CA:FALSE
"""


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Authority:
    """A root, a certificate for stamping under it, and a server; ``answers`` replaces what the server says."""

    directory: Path
    url: str = ""
    answers: tuple[int, bytes] | None = None
    asked: list[bytes] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.directory / "root.pem"

    def stamp(self, query: bytes, *, digests: str = "sha256, sha512") -> bytes:
        (self.directory / "conf").write_text(CONFIG.format(directory=self.directory, digests=digests))
        (self.directory / "query").write_bytes(query)
        files = [self.directory / name for name in ("conf", "query", "key", "pem", "reply")]
        names = ("-config", "-queryfile", "-inkey", "-signer", "-out")
        openssl("ts", "-reply", *(part for pair in zip(names, files, strict=True) for part in pair))
        return files[-1].read_bytes()

    def accepts(self, token: bytes, message: bytes) -> bool:
        """What OpenSSL says of a token over a message."""
        (self.directory / "token").write_bytes(token)
        (self.directory / "message").write_bytes(message)
        words = ["-data", self.directory / "message", "-in", self.directory / "token", "-CAfile", self.root]
        done = subprocess.run(
            ["openssl", "ts", "-verify", *map(str, words)], capture_output=True, text=True, check=False
        )
        return done.returncode == 0 and "Verification: OK" in done.stdout + done.stderr


def make_authority(directory: Path) -> Authority:
    root = ("-keyout", directory / "root.key", "-out", directory / "root.pem", "-subj", "/CN=root", "-days", "30")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *root)
    leaf = ("-keyout", directory / "key", "-out", directory / "csr", "-subj", "/CN=authority")
    openssl("req", "-newkey", "rsa:2048", "-nodes", *leaf)
    (directory / "extensions").write_text(EXTENSIONS)
    signed_by = ("-CA", directory / "root.pem", "-CAkey", directory / "root.key", "-CAcreateserial")
    to = ("-extfile", directory / "extensions", "-days", "30", "-out", directory / "pem")
    openssl("x509", "-req", "-in", directory / "csr", *signed_by, *to)
    (directory / "serial").write_text("01\n")
    return Authority(directory)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def authority(keys: Authority) -> Iterator[Authority]:
    """The authority, serving."""
    here = replace(keys, asked=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/timestamp-query"
            query = self.rfile.read(int(self.headers["Content-Length"]))
            here.asked.append(query)
            status, said = here.answers or (200, here.stamp(query))
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        here.url = f"http://127.0.0.1:{server.server_port}/tsr"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield here
        server.shutdown()


@dataclass(frozen=True)
class Later(Context):
    """A context whose clock is ahead."""

    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def later(bench: Bench, **ahead: float) -> Later:
    return Later(bench.ctx.settings, bench.ctx.engine, timedelta(**ahead))


@pytest.fixture
def bench(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Authority) -> Iterator[Bench]:
    """An installation with the toy model, an authority, and an API that is not started yet."""
    monkeypatch.setattr(erase, "run_step", in_this_process)
    stamped = {"timestamp_url": authority.url, "timestamp_roots": authority.root}
    with installation(tmp_path, database_url, "", model=False, **stamped) as house:
        made = Bench(house)
        register(made)
        yield made


def certify(bench: Bench, person: int) -> UUID:
    """A request that has ended and whose certificate the log has published."""

    request_id = bench.demand(person)
    with bench.sequencing():
        bench.run_all()
        wait_until(bench.is_published, 20, "the log is published")
    return request_id


def payload_of(bench: Bench, request_id: UUID) -> bytes:
    return base64.b64decode(bench.certificate(request_id)["payload"])


def tokens(bench: Bench) -> dict[bytes, bytes]:
    with transaction(bench.ctx.engine) as tx:
        return {row.digest: row.token for row in tx.scalars(select(Timestamp))}


def shown(bench: Bench) -> bytes:
    with transaction(bench.ctx.engine) as tx:
        found = audit.published(tx)
        assert found is not None
        assert found.published is not None
        return bytes(found.published)


def digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


def test_certificate_and_checkpoint_are_stamped_as_openssl_confirms(bench: Bench, authority: Authority) -> None:
    request_id = certify(bench, 3)
    scribe = Scribe(bench.ctx.settings)
    scribe.stamp(bench.ctx)
    held = tokens(bench)
    for message in (payload_of(bench, request_id), shown(bench)):
        token = held.pop(digest(message))
        assert authority.accepts(token, message)
        assert not authority.accepts(token, message + b" ")
        at = timestamps.check(decode_timestamp_response(token), message, authority.root)
        assert abs(datetime.now(UTC) - at) < timedelta(seconds=60)
    assert held == {}
    scribe.stamp(bench.ctx)
    assert len(authority.asked) == 2, "nothing is stamped twice"


def test_the_checkpoint_is_stamped_once_a_day(bench: Bench, authority: Authority) -> None:
    certify(bench, 3)
    scribe = Scribe(bench.ctx.settings)
    scribe.stamp(bench.ctx)
    scribe.sequence(later(bench, hours=13))  # silence for twelve hours is signed anew
    scribe.stamp(later(bench, hours=23))
    assert len(authority.asked) == 2
    scribe.stamp(later(bench, hours=25))
    assert len(authority.asked) == 3
    assert authority.accepts(tokens(bench)[digest(shown(bench))], shown(bench))


def test_certificates_do_not_put_off_the_checkpoints_stamp(bench: Bench) -> None:
    certify(bench, 3)
    scribe = Scribe(bench.ctx.settings)
    scribe.stamp(bench.ctx)
    certify(bench, 4)
    scribe.stamp(later(bench, hours=20))
    scribe.stamp(later(bench, hours=26))
    assert digest(shown(bench)) in tokens(bench)


def test_an_authority_that_is_down_holds_nobody_up_and_is_asked_again(bench: Bench, authority: Authority) -> None:
    authority.answers = 503, b"tomorrow"
    scribe = Scribe(bench.ctx.settings)
    request_id = certify(bench, 3)
    assert bench.request(request_id).status == "completed"
    with pytest.raises(Unavailable, match="answered 503"):
        scribe.stamp(bench.ctx)
    nobody = bench.ctx.settings.model_copy(update={"timestamp_url": "http://127.0.0.1:9/"})
    with pytest.raises(Unavailable, match="no answer"):
        scribe.stamp(Context(nobody, bench.ctx.engine))
    assert bench.request(certify(bench, 4)).status == "completed"
    assert tokens(bench) == {}
    authority.answers = None
    scribe.stamp(bench.ctx)
    assert len(tokens(bench)) == 3


def test_the_token_can_be_fetched_beside_the_certificate(bench: Bench, authority: Authority) -> None:
    request_id = certify(bench, 3)
    bench.house.start("api")
    bench.house.wait_for_api()
    with bench.house.client() as client:
        path = f"/v1/erasure-requests/{request_id}/certificate"
        assert client.get(f"{path}.tsr").status_code == 404
        assert "RFC 3161" not in client.get(f"{path}.html").text
        Scribe(bench.ctx.settings).stamp(bench.ctx)
        answer, page = client.get(f"{path}.tsr"), client.get(f"{path}.html")
        assert client.get(f"{path}.tsr", headers={"Authorization": ""}).status_code == 401
    assert answer.headers["Content-Type"] == "application/timestamp-reply"
    assert authority.accepts(answer.content, payload_of(bench, request_id))
    assert "RFC 3161" in page.text


# Hostile authorities.


def test_what_is_no_token_over_this_message_is_refused(authority: Authority, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "", timestamp_url=authority.url, timestamp_roots=authority.root)
    good = timestamps.fetch(b"message", settings)
    assert authority.accepts(good, b"message")
    another = timestamps.fetch(b"another", settings)
    refusal = authority.stamp(authority.asked[0], digests="sha256")
    for said in (b"", b"\x30", b"<html>", good + b"\x00", another, good, refusal, bytes(1 << 20)):
        authority.answers = 200, said  # ``good`` has the nonce of another day
        with pytest.raises(Unavailable):
            timestamps.fetch(b"message", settings)
    without = settings.model_copy(update={"timestamp_roots": None})
    with pytest.raises(Unavailable):
        timestamps.fetch(b"message", without)


def test_a_token_under_another_root_or_over_other_bytes_is_refused(authority: Authority, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "", timestamp_url=authority.url, timestamp_roots=authority.root)
    token = timestamps.fetch(b"message", settings)
    (tmp_path / "stranger").mkdir()
    stranger = make_authority(tmp_path / "stranger")
    with pytest.raises(Unavailable, match="can't be trusted"):
        timestamps.fetch(b"message", settings.model_copy(update={"timestamp_roots": stranger.root}))
    read = decode_timestamp_response(token)
    assert timestamps.check(read, b"message", authority.root)
    with pytest.raises(Unavailable, match="can't be trusted"):
        timestamps.check(read, b"massage", authority.root)
    twice = tmp_path / "twice.pem"
    twice.write_text(authority.root.read_text() * 2 + stranger.root.read_text())
    assert timestamps.check(read, b"message", twice)


def test_no_flipped_byte_of_a_token_changes_what_it_says(authority: Authority, tmp_path: Path) -> None:
    """Bytes that nobody signed (status texts, certificates that are not used) may differ; time and message may not."""
    settings = settings_for(tmp_path, "", timestamp_url=authority.url, timestamp_roots=authority.root)
    token = timestamps.fetch(b"message", settings)
    told = timestamps.check(decode_timestamp_response(token), b"message", authority.root)
    for at in range(0, len(token), 3):
        flipped = bytes([*token[:at], token[at] ^ 1 << at % 8, *token[at + 1 :]])
        try:
            read = decode_timestamp_response(flipped)
            assert timestamps.check(read, b"message", authority.root) == told
        except (Unavailable, ValueError):
            continue


@pytest.mark.parametrize("content", [None, "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_roots_that_cannot_be_read_are_named(authority: Authority, tmp_path: Path, content: str | None) -> None:
    roots = tmp_path / "roots.pem"
    if content is not None:
        roots.write_text(content)
    settings = settings_for(tmp_path, "", timestamp_url=authority.url, timestamp_roots=roots)
    with pytest.raises(Misconfigured, match="EXPUNGE_TIMESTAMP_ROOTS"):
        timestamps.fetch(b"message", settings)
