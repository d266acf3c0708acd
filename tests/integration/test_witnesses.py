"""Witnesses, honest and hostile: what no quorum has seen is not published, and nothing but cosignatures gets in."""

from __future__ import annotations

import base64
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from expunge_verify import cli as verifier
from expunge_verify import merkle, notes
from expunge_verify.notes import COSIGNATURE, Checkpoint, Signer, vkey_of
from expunge_verify.policy import Policy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy.orm import Session

from app import queue
from app.api import health
from app.audit import witnesses
from app.audit.mirror import Mirror
from app.audit.tree import consistency_proof, root_at
from app.audit.witnesses import Witnesses, policy_of
from app.errors import LogStopped, Misconfigured, Unavailable
from app.storage import audit, jobs
from app.storage.sessions import transaction
from app.storage.tables import LogCheckpoint
from tests.house import installation
from tests.pipeline import Bench
from tests.witness import Witness
from workers.scribe import Scribe

pytestmark = pytest.mark.slow

ORIGIN = "expunge.localhost/log"
LOG = Signer(ORIGIN, os.urandom(32))


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "_REST_SECONDS", 0.0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Witness, Witness]]:
    """Two witnesses that know the log."""
    with ExitStack() as stack:
        yield tuple(  # type: ignore[misc] # of two
            stack.enter_context(Witness(f"w{n}.example", tmp_path / f"w{n}.json", [LOG.vkey], seed=os.urandom(32)))
            for n in (1, 2)
        )


def policy_file(directory: Path, ours: tuple[Witness, ...], quorum: str) -> Path:
    names = " ".join(witness.name for witness in ours)
    lines = [f"log {LOG.vkey}\n", *(witness.line for witness in ours), f"group both all {names}\n"]
    path = directory / f"policy-{quorum}"
    path.write_text("".join([*lines, f"quorum {quorum}\n"]))
    return path


@contextmanager
def bench_with(tmp_path: Path, database_url: str, policy: Path) -> Iterator[Bench]:
    key = SecretStr(base64.b64encode(LOG.seed).decode())
    with installation(tmp_path, database_url, "", model=False, log_key=key, log_policy=policy) as house:
        yield Bench(house)


@pytest.fixture
def bench(database_url: str, tmp_path: Path, pair: tuple[Witness, Witness]) -> Iterator[Bench]:
    """An installation that publishes what both witnesses have seen, and one request in it."""
    with bench_with(tmp_path, database_url, policy_file(tmp_path, pair, "both")) as made:
        made.demand(3)
        yield made


def served(bench: Bench) -> bytes:
    with transaction(bench.ctx.engine) as tx:
        shown = audit.published(tx)
        return bytes(shown.published) if shown and shown.published else b""


def head(bench: Bench) -> LogCheckpoint:
    with transaction(bench.ctx.engine) as tx:
        found = audit.head(tx)
        assert found is not None
        return found


def fork(size: int, *, old: int = 0, proof: tuple[bytes, ...] = (), root: bytes | None = None) -> bytes:
    """An add-checkpoint for a history that is not ours, signed with the real key."""
    text = Checkpoint(ORIGIN, size, root or os.urandom(32)).text
    lines = [f"old {old}", *(base64.b64encode(part).decode() for part in proof), "", ""]
    return "\n".join(lines).encode() + notes.sealed(text, [LOG.sign(text)])


def test_what_the_quorum_has_seen_is_served_with_its_cosignatures(
    bench: Bench, pair: tuple[Witness, Witness], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scribe = Scribe(bench.ctx.settings)
    scribe.sequence(bench.ctx)
    bench.demand(4)
    scribe.sequence(bench.ctx)
    (tmp_path / "checkpoint").write_bytes(served(bench))
    policy = ["--policy", str(bench.ctx.settings.log_policy)]
    assert verifier.main(["checkpoint", str(tmp_path / "checkpoint"), *policy]) == 0
    told = capsys.readouterr().out
    assert told.count("cosigned by witness") == 2
    assert "quorum 'both' met by 2 of 2 witnesses" in told
    assert verifier.main(["log", str(bench.ctx.settings.log_path / "public"), *policy]) == 0
    for witness in pair:
        assert witness.seen(ORIGIN) == (3, head(bench).root)
        assert witness.asked == [200, 200]


def test_without_the_quorum_nothing_is_published_and_the_service_says_so_until_the_witness_is_back(
    bench: Bench, pair: tuple[Witness, Witness]
) -> None:
    scribe = Scribe(bench.ctx.settings)
    scribe.sequence(bench.ctx)
    before = served(bench)
    pair[1].__exit__()
    bench.demand(4)
    for _ in range(2):
        with pytest.raises(Unavailable, match="not enough"):
            scribe.sequence(bench.ctx)
    assert served(bench) == before
    assert Mirror(bench.ctx.settings.log_path / "public").note() == before
    bench.demand(5)
    with pytest.raises(Unavailable):  # nor may a younger one pass the one that waits
        scribe.sequence(bench.ctx)
    assert served(bench) == before
    pair[1].__enter__()
    scribe.sequence(bench.ctx)
    assert notes.Checkpoint.parse(notes.parse(served(bench)).text).size == head(bench).size == 4
    assert pair[1].seen(ORIGIN)[0] == 4


def test_health_says_that_nobody_works_while_witnesses_hold_the_log_up(
    bench: Bench, pair: tuple[Witness, Witness]
) -> None:
    def works(*, seconds_later: float) -> bool:
        with transaction(bench.ctx.engine) as tx:
            for name in queue.QUEUES:
                jobs.hear(tx, name)
            return health.ready(tx, bench.now() + timedelta(seconds=seconds_later), bench.ctx.settings).working

    scribe = Scribe(bench.ctx.settings)
    pair[0].__exit__()
    with pytest.raises(Unavailable):
        scribe.sequence(bench.ctx)
    assert works(seconds_later=5)
    assert not works(seconds_later=40)
    pair[0].__enter__()
    scribe.sequence(bench.ctx)
    assert works(seconds_later=40)


def test_a_policy_without_a_quorum_publishes_without_witnesses(
    database_url: str, tmp_path: Path, pair: tuple[Witness, Witness]
) -> None:
    pair[0].__exit__()
    with bench_with(tmp_path, database_url, policy_file(tmp_path, pair, "none")) as bench:
        Scribe(bench.ctx.settings).sequence(bench.ctx)
        note = notes.parse(served(bench))
        assert [s.name for s in note.signatures] == [ORIGIN, pair[1].name]
    pair[0].__enter__()


@pytest.mark.parametrize("what", ["larger", "same size", "smaller"])
def test_a_witness_that_saw_another_history_stops_the_log(
    bench: Bench, pair: tuple[Witness, Witness], what: str
) -> None:
    assert pair[0].judge(fork({"larger": 50, "same size": 2, "smaller": 1}[what]))[0] == 200
    scribe = Scribe(bench.ctx.settings)
    for _ in range(2):
        with pytest.raises(LogStopped, match="has seen"):
            scribe.sequence(bench.ctx)
    assert served(bench) == b""


def test_a_witness_refuses_a_second_view_signed_with_the_real_key(bench: Bench, pair: tuple[Witness, Witness]) -> None:
    scribe = Scribe(bench.ctx.settings)
    scribe.sequence(bench.ctx)
    bench.demand(4)
    scribe.sequence(bench.ctx)
    true = head(bench)
    with transaction(bench.ctx.engine) as tx:
        old_root, proof = root_at(tx, 2), tuple(consistency_proof(tx, 2, 3))
    witness = pair[0]
    assert witness.judge(fork(3, old=3)) == (409, "3\n")
    assert witness.judge(fork(4, old=3))[0] == 422
    assert witness.judge(fork(4, old=3, proof=proof))[0] == 422
    assert witness.judge(fork(4)) == (409, "3\n")
    assert witness.judge(fork(2, root=old_root)) == (409, "3\n")
    assert witness.judge(fork(2, old=3, root=old_root))[0] == 400
    assert witness.judge(fork(9, old=3).replace(b" ", b"\r "))[0] == 400
    stranger = fork(4, old=3).replace(b"expunge", b"another")
    assert witness.judge(stranger)[0] == 404
    assert witness.judge(fork(4, old=3).replace(b"\n4\n", b"\n5\n"))[0] == 403
    assert witness.seen(ORIGIN) == (true.size, true.root)


def test_what_a_witness_saw_last_is_learned_again_after_our_restart_and_after_its_own(
    bench: Bench, pair: tuple[Witness, Witness]
) -> None:
    Scribe(bench.ctx.settings).sequence(bench.ctx)
    pair[0].__exit__()
    pair[0].__enter__()
    bench.demand(4)
    scribe = Scribe(bench.ctx.settings)
    scribe.sequence(bench.ctx)
    assert pair[0].asked == [200, 409, 200]
    bench.demand(5)
    scribe.sequence(bench.ctx)
    assert pair[0].asked == [200, 409, 200, 200]
    assert notes.Checkpoint.parse(notes.parse(served(bench)).text).size == 4


def test_a_crash_after_the_cosignatures_has_the_same_checkpoint_cosigned_again(
    bench: Bench, pair: tuple[Witness, Witness], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "show", die)
        with pytest.raises(OSError, match="no space"):
            Scribe(bench.ctx.settings).sequence(bench.ctx)
    assert served(bench) == b""
    Scribe(bench.ctx.settings).sequence(bench.ctx)
    assert pair[0].asked == [200, 409, 200]
    assert len(notes.parse(served(bench)).signatures) == 3


def test_the_log_says_which_line_its_policy_lacks(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "policy").write_text(f"log {Signer(ORIGIN, os.urandom(32)).vkey}\nquorum none\n")
    with bench_with(tmp_path, database_url, tmp_path / "policy") as bench:
        with pytest.raises(Misconfigured, match="names no key of this log"):
            Scribe(bench.ctx.settings).sequence(bench.ctx)
        assert served(bench) == b""
        (tmp_path / "policy").write_text("quorum of the wise\n")
        with pytest.raises(Misconfigured, match="EXPUNGE_LOG_POLICY"):
            policy_of(bench.ctx.settings)


# Hostile witnesses. The checkpoint has one entry, so that no proof needs a database; a session without one shows it.

CHECKPOINT = Checkpoint(ORIGIN, 1, merkle.leaf_hash(b"entry"))
NOTE = notes.sealed(CHECKPOINT.text, [LOG.sign(CHECKPOINT.text)])
ROW = LogCheckpoint(size=1, root=CHECKPOINT.root, note=NOTE)
HONEST, HOSTILE = os.urandom(32), os.urandom(32)


class _Server(socketserver.ThreadingTCPServer):
    """Answers every request with whatever bytes it was told, or as it was told."""

    allow_reuse_address = daemon_threads = True
    reply: Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def hostile() -> Iterator[_Server]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                said = self.request.recv(65536)
                while b"\n\n" not in said.partition(b"\r\n\r\n")[2]:
                    said += self.request.recv(65536)
                self.server.reply(self.request)  # type: ignore[attr-defined] # it is a _Server
            except OSError:
                pass  # the client had enough

    with _Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def sending(raw: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(raw)


def http(status: int, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d Said" % status, b"Content-Length: %d" % len(body), b"Connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def cosignature(seed: bytes = HOSTILE, text: str = CHECKPOINT.text, name: str = "hostile.example") -> bytes:
    return notes.cosign(seed, name, text, 1_790_000_000).encode()


def asked(hostile: _Server, *, quorum: str = "none") -> list[str]:
    """Who signed the note that comes of asking this witness."""
    vkey = vkey_of("hostile.example", notes.Signer("x", HOSTILE).vkey.public, COSIGNATURE)
    witness = f"witness hostile.example {vkey} http://127.0.0.1:{hostile.server_address[1]}"
    policy = Policy.parse(f"log {LOG.vkey}\n{witness}\nquorum {quorum}\n")
    note = Witnesses(policy).cosign(Session(), ROW)
    policy.check(notes.parse(note))
    assert note.startswith(NOTE)
    return [line.split(" ")[1] for line in note.removeprefix(NOTE).decode().splitlines()]


def test_a_good_cosignature_is_taken_and_what_stands_beside_it_is_not(hostile: _Server) -> None:
    stranger = cosignature(os.urandom(32), name="stranger.example")
    hostile.reply = sending(http(200, stranger + cosignature() + stranger))
    assert asked(hostile, quorum="hostile.example") == ["hostile.example"]


_lines = st.lists(
    st.sampled_from(
        [
            cosignature(),
            cosignature(text=CHECKPOINT.text.replace("1", "2")),
            cosignature(HONEST),
            LOG.sign("x\n").encode(),
            *(b"\n", b"\r\n", b"\x00", b"\xff", b" ", "— ".encode(), b"old 0\n", b"1\n", NOTE),
        ]
    )
    | st.binary(max_size=40),
    max_size=6,
).map(b"".join)
_statuses = st.sampled_from([200, 200, 200, 100, 101, 204, 301, 400, 403, 404, 409, 409, 422, 500, 999])


@settings(max_examples=150, deadline=None)
@given(
    raw=st.binary(max_size=200)
    | st.builds(http, _statuses, _lines)
    | st.builds(http, st.just(200), _lines, st.sampled_from([b"Content-Encoding: gzip", b"Transfer-Encoding: chunked"]))
    | st.builds(http, st.just(409), st.integers(-(10**30), 10**30).map(lambda n: b"%d\n" % n))
)
@example(http(200, cosignature().replace(b"\n", b"\r\n")))
@example(http(200, b"\n" + cosignature()))
@example(http(200, b"text\n\n" + cosignature()))
@example(http(200, cosignature(HONEST)))
@example(http(200, cosignature() * 200))
@example(http(200, cosignature() + cosignature(text="another\n1\nAAAA\n")))
@example(http(301, b"", b"Location: http://127.0.0.1:1/"))
@example(http(409, b"1" * 5000))
@example(http(409, "１\n".encode()))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n")
def test_no_answer_of_a_hostile_witness_gets_into_the_checkpoint_or_ends_the_process(
    hostile: _Server, raw: bytes
) -> None:
    hostile.reply = sending(raw)
    try:
        names = asked(hostile)
    except LogStopped:
        assert b" 409 " in raw[:20] or b" 422 " in raw[:20]
    else:
        assert names in ([], ["hostile.example"])


def test_a_witness_with_the_right_key_cannot_smuggle_a_blank_line_in(hostile: _Server) -> None:
    """What it then signs is a longer text; with it in the note, nobody's signature would be over the checkpoint."""
    longer = f"{NOTE.decode()}text\n"
    hostile.reply = sending(http(200, b"text\n\n" + cosignature(text=longer)))
    assert asked(hostile) == []


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
def test_a_giant_answer_is_not_read_to_its_end(hostile: _Server, encoding: bytes) -> None:
    sent = []

    def pour(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: " + encoding + b"\r\n\r\n")
        while len(sent) < 1000:
            connection.sendall(os.urandom(1 << 20))
            sent.append(1)

    hostile.reply = pour
    assert asked(hostile) == []
    assert len(sent) < 50


@pytest.mark.parametrize("where", ["headers", "body", "nowhere"])
def test_a_witness_that_sends_a_byte_at_a_time_holds_nobody_up(
    hostile: _Server, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witnesses, "_TIMEOUT_SECONDS", 0.5)

    def drip(connection: socket.socket) -> None:
        connection.sendall({"headers": b"HTTP/1.1 200 OK\r\nX: ", "body": b"HTTP/1.1 200 OK\r\n\r\n"}.get(where, b""))
        for _ in range(60):
            time.sleep(0.1)
            connection.sendall(b"" if where == "nowhere" else b"x")

    hostile.reply = drip
    began = time.monotonic()
    assert asked(hostile) == []
    assert time.monotonic() - began < 2


def test_a_witness_that_fails_is_left_in_peace_for_a_while(hostile: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnesses, "_REST_SECONDS", 5.0)
    times, asked_at = [106.0, 105.1, 104.9, 101.0, 100.0], list[float]()

    def refuse(connection: socket.socket) -> None:
        asked_at.append(times[-1])
        connection.sendall(http(500, b""))

    hostile.reply = refuse
    vkey = vkey_of("hostile.example", notes.Signer("x", HOSTILE).vkey.public, COSIGNATURE)
    witness = f"witness hostile.example {vkey} http://127.0.0.1:{hostile.server_address[1]}"
    ours = Witnesses(Policy.parse(f"log {LOG.vkey}\n{witness}\nquorum none\n"), clock=lambda: times[-1])
    while times:
        ours.cosign(Session(), ROW)
        times.pop()
    assert asked_at == [100.0, 105.1]


@pytest.mark.parametrize("url", ["http://[", "ftp://127.0.0.1/", "nonsense", "http://127.0.0.1:99999/", "http:///x"])
def test_an_address_that_is_none_costs_a_cosignature_and_nothing_else(url: str) -> None:
    vkey = vkey_of("w.example", notes.Signer("x", HOSTILE).vkey.public, COSIGNATURE)
    policy = Policy.parse(f"log {LOG.vkey}\nwitness w.example {vkey} {url}\nquorum none\n")
    assert Witnesses(policy).cosign(Session(), ROW) == NOTE
