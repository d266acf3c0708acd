"""The log over HTTP: every file as the mirror has it, nothing else under any name, and proofs that strangers accept."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from expunge_verify import cli as verifier
from expunge_verify import leaf, merkle, notes, proof
from expunge_verify.leaf import SCHEMA_DIGEST
from expunge_verify.notes import Checkpoint, Vkey
from expunge_verify.policy import Policy
from sqlalchemy import select

from app import keymaking
from app.api.auth import Scope
from app.audit.mirror import Mirror
from app.storage import audit
from app.storage.sessions import transaction
from app.storage.tables import LogCheckpoint
from tests.faults import wait_until
from tests.house import installation
from tests.pipeline import Bench, register
from tests.services import new_database
from workers.scribe import Scribe

pytestmark = pytest.mark.slow

GROWTH = (1, 1, 20, 200, 40, 1, 250, 1, 40)
"""Entries a turn: sizes on both sides of one and of two full tiles."""


@dataclass(frozen=True)
class Served:
    """A log behind a running API, every checkpoint that it published, and a request with a certificate."""

    bench: Bench
    checkpoints: list[LogCheckpoint]
    request_id: UUID
    vkey: Vkey

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.bench.house.port}"

    @property
    def size(self) -> int:
        return self.checkpoints[-1].size

    def get(self, path: str, *, method: str = "GET") -> httpx.Response:
        """GET exactly this path: no client tidies it up, and no key is sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.bench.house.port, timeout=30)
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.endheaders()
        answer = connection.getresponse()
        found = httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
        connection.close()
        return found

    def root(self, size: int) -> bytes:
        return next(row.root for row in self.checkpoints if row.size == size)


@pytest.fixture(scope="module")
def served(postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("log-api")
    with (
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", processes=("api",), model=False) as house,
    ):
        bench = Bench(house)
        register(bench)
        request_id = bench.demand(99_999)
        with bench.sequencing():
            bench.run_all()
            wait_until(bench.is_published, 20, "the log is published")
        scribe = Scribe(bench.ctx.settings)
        for count in GROWTH:
            with transaction(house.engine) as tx:
                for _ in range(count):
                    audit.enter(tx, "config.changed", at=bench.now())
            scribe.sequence(bench.ctx)
        with transaction(house.engine) as tx:
            rows = list(tx.scalars(select(LogCheckpoint).order_by(LogCheckpoint.id)))
            vkey = Vkey.parse(audit.known_keys(tx)[0].vkey)
        yield Served(bench, [row for row in rows if row.published], request_id, vkey)


def test_every_file_of_every_published_size_is_served_as_the_mirror_writes_it(served: Served, tmp_path: Path) -> None:
    seen = set()
    for row in served.checkpoints:
        mirror = Mirror(tmp_path / str(row.size))
        with transaction(served.bench.ctx.engine) as tx:
            mirror.prepare(tx, row)
        files = [path for path in mirror.directory.rglob("*") if path.is_file()]
        assert files
        for file in files:
            name = str(file.relative_to(mirror.directory))
            seen.add(name)
            answer = served.get(f"/log/{name}")
            assert (answer.status_code, answer.content) == (200, file.read_bytes()), name
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert {"tile/0/000", "tile/0/001", "tile/1/000.p/1", "tile/1/000.p/2", "tile/entries/001"} <= seen
    assert any(name.startswith("tile/0/000.p/") for name in seen)


def test_the_checkpoint_is_never_cached_and_the_newest(served: Served) -> None:
    answer = served.get("/log/checkpoint")
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    checkpoint, _ = notes.open_checkpoint(answer.content, [served.vkey])
    assert checkpoint == Checkpoint(served.bench.ctx.settings.log_origin, served.size, served.root(served.size))


NO_FILES = [
    "tile/0/../checkpoint",
    "tile/0/..%2fcheckpoint",
    "tile/%2e%2e/checkpoint",
    "tile/0/x1000",
    "tile/0/x001/000",
    "tile/0/0000",
    "tile/0/00",
    "tile/0/000/",
    "tile/0//000",
    "tile/0/000.p/0",
    "tile/0/000.p/01",
    "tile/0/000.p/256",
    "tile/0/000.p/999",
    "tile/0/000.p/",
    "tile/0/000.p",
    "tile/00/000",
    "tile/-1/000",
    "tile/2/000",
    "tile/7/000.p/1",
    "tile/8/000.p/1",
    "tile/63/000.p/1",
    "tile/64/000",
    "tile/0/002",
    "tile/1/000",
    "tile/0/x999/x999/x999/x999/x999/x999/999",
    f"tile/0/{'x999/' * 40}999",
    f"tile/{'9' * 5000}/000",
    "tile/0/000%0a",
    "tile/0/000%00",
    "tile/0/%30%30%30",
    "tile/0/%EF%BC%90%EF%BC%90%EF%BC%90",
    "tile/0/000?",
    "tile/0/000?x=1",
    "tile/entries/000?x=1",
    "tile/entries/../entries/000",
    "tile/entries/x1000",
    "tile/entries/000.p/0",
    "tile/entries/000.p/256",
    "tile/entries/002",
    "tile/entries/999999999999",
    "tile/data/000",
    "tile/",
    "entry/-1.tlog-proof",
    "entry/x.tlog-proof",
    "entry/1e3.tlog-proof",
    f"entry/{'9' * 30}.tlog-proof",
    f"entry/{'9' * 5000}.tlog-proof",
    "entry/..%2f..%2fetc%2fpasswd.tlog-proof",
    "proof/inclusion",
    "proof/inclusion?index=0&size=0",
    "proof/inclusion?index=5&size=5",
    "proof/inclusion?index=-1&size=5",
    "proof/inclusion?index=0&size=999999",
    f"proof/inclusion?index=0&size={10**30}",
    "proof/consistency?from=3&to=2",
    "proof/consistency?from=-1&to=2",
    "proof/consistency?from=0&to=999999",
    "proof/consistency?from=1",
    "",
    "..",
]


@pytest.mark.parametrize("path", NO_FILES, ids=lambda path: path[:40] or "nothing")
def test_what_is_no_file_of_the_log_is_a_problem_and_not_an_error(served: Served, path: str) -> None:
    answer = served.get(f"/log/{path}")
    if path == "tile/0/000?":  # an empty query is the same address to a cache
        assert answer.status_code == 200
        return
    assert answer.status_code in {404, 422}, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "immutable" not in answer.headers.get("Cache-Control", "")


@pytest.mark.parametrize("path", ["checkpoint", "tile/0/000", "tile/entries/000"])
def test_head_says_what_get_would_send(served: Served, path: str) -> None:
    asked, got = served.get(f"/log/{path}", method="HEAD"), served.get(f"/log/{path}")
    assert (asked.status_code, asked.content) == (200, b"")
    for name in ("Content-Type", "Content-Length", "Cache-Control"):
        assert asked.headers[name] == got.headers[name]
    assert served.get("/log/tile/0/000?x=1", method="HEAD").status_code == 404


def test_every_width_beyond_the_published_one_is_refused(served: Served) -> None:
    width = served.size % 256
    assert served.get(f"/log/tile/0/002.p/{width}").status_code == 200
    assert served.get(f"/log/tile/entries/002.p/{width}").status_code == 200
    for beyond in (width + 1, 255):
        assert served.get(f"/log/tile/0/002.p/{beyond}").status_code == 404
        assert served.get(f"/log/tile/entries/002.p/{beyond}").status_code == 404


def test_what_is_sequenced_but_not_published_is_shown_by_no_route(
    served: Served, database_url: str, tmp_path: Path
) -> None:
    """As while witnesses do not answer."""
    with installation(tmp_path, database_url, "", processes=("api",), model=False) as house:
        bench = Bench(house)
        scribe = Scribe(bench.ctx.settings)
        bench.demand(1)
        scribe.sequence(bench.ctx)
        bench.demand(2)
        with transaction(house.engine) as tx:
            scribe._sequencer._extend(tx, now=bench.now(), limit=10)
        other = Served(bench, [], served.request_id, served.vkey)
        head = Checkpoint.parse(notes.parse(other.get("/log/checkpoint").content).text)
        assert head.size == 2
        for path in (
            "tile/0/000.p/3",
            "tile/entries/000.p/3",
            "entry/2.tlog-proof",
            "proof/inclusion?index=0&size=3",
            "proof/consistency?from=2&to=3",
        ):
            assert other.get(f"/log/{path}").status_code in {404, 422}, path
        assert other.get("/log/entry/1.tlog-proof").status_code == 200


def test_proofs_over_http_are_accepted_by_the_verifier(served: Served) -> None:
    sizes = [row.size for row in served.checkpoints]
    with transaction(served.bench.ctx.engine) as tx:
        entries = audit.entries(tx, 0, served.size)
    for size in sizes:
        for index in {0, size // 2, size - 1}:
            answer = served.get(f"/log/proof/inclusion?index={index}&size={size}").json()
            hashes = [base64.b64decode(text) for text in answer["hashes"]]
            merkle.check_inclusion(merkle.leaf_hash(entries[index]), index, size, hashes, served.root(size))
    for old, new in zip(sizes, [*sizes[1:], sizes[-1]], strict=True):
        answer = served.get(f"/log/proof/consistency?from={old}&to={new}").json()
        hashes = [base64.b64decode(text) for text in answer["hashes"]]
        merkle.check_consistency(old, served.root(old), new, served.root(new), hashes)
    assert served.get(f"/log/proof/consistency?from=0&to={served.size}").json() == {"hashes": []}


def test_the_proof_of_an_entry_is_one_file_that_holds_all_it_takes(served: Served) -> None:
    for index in (0, 255, 256, served.size - 1):
        answer = served.get(f"/log/entry/{index}.tlog-proof")
        assert answer.headers["Cache-Control"] == "no-cache"
        read = proof.parse(answer.content)
        assert read.index == index
        assert read.extra is not None
        assert proof.check(read.extra, read, Policy.of([served.vkey]))
        assert leaf.decode(read.extra)["log"] == served.bench.ctx.settings.log_origin


@pytest.mark.parametrize("what", ["log", "requests"])
def test_the_verifier_checks_the_log_over_http(served: Served, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verifier.main([what, f"{served.address}/log", "--vkey", str(served.vkey)]) == 0, capsys.readouterr().out
    stranger = notes.Signer(served.vkey.name, b"x" * 32).vkey
    assert verifier.main([what, f"{served.address}/log", "--vkey", str(stranger)]) == 1
    assert verifier.main([what, f"{served.address}/nowhere", "--vkey", str(served.vkey)]) == 2


def test_the_log_describes_itself(served: Served) -> None:
    said = served.get("/.well-known/erasure-log.json").json()
    assert said["origin"] == served.bench.ctx.settings.log_origin
    assert [key["vkey"] for key in said["keys"]] == [str(served.vkey)]
    assert said["keys"][0]["since_size"] == 0
    assert said["policy"] is None
    assert said["evidence_days"] == 1095
    with transaction(served.bench.ctx.engine) as tx:
        assert json.loads(audit.entries(tx, 0, 1)[0])["schema"] == SCHEMA_DIGEST


def test_the_log_describes_its_witnesses(served: Served, database_url: str, tmp_path: Path) -> None:
    policy = f"log {served.vkey}\nquorum none\n"
    (tmp_path / "policy").write_text(policy)
    with installation(tmp_path, database_url, "", model=False) as house:
        house.environment["EXPUNGE_LOG_POLICY"] = str(tmp_path / "policy")
        house.start("api")
        house.wait_for_api()
        about = f"http://127.0.0.1:{house.port}/.well-known/erasure-log.json"
        assert httpx.get(about).json()["policy"] == policy
        (tmp_path / "policy").unlink()
        assert httpx.get(about).json()["type"].endswith("/misconfigured")


OF_A_REQUEST = ("certificate", "certificate.tlog-proof", "certificate.html", "certificate.tsr", "receipt")


@pytest.mark.parametrize("document", OF_A_REQUEST)
def test_what_belongs_to_a_request_is_read_with_a_key_for_reading(served: Served, document: str) -> None:
    """An auditor's key reads whosever request it is; another portal's does not know of it."""
    with transaction(served.bench.ctx.engine) as tx:
        _, writer = keymaking.create(tx, name=uuid4().hex, scopes=[Scope.REQUESTS_WRITE, Scope.MODELS_READ])
        _, reader = keymaking.create(tx, name=uuid4().hex, scopes=[Scope.REQUESTS_READ_ALL])
        _, other = keymaking.create(tx, name=uuid4().hex, scopes=[Scope.REQUESTS_READ])
    address = f"{served.address}/v1/erasure-requests"
    codes = {}
    for who, key in {"nobody": "", "stranger": "exk_x", "writer": writer, "other": other, "reader": reader}.items():
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        codes[who] = httpx.get(f"{address}/{served.request_id}/{document}", headers=headers).status_code
        assert codes[who] != 200 or who == "reader"
    here = 404 if document == "certificate.tsr" else 200
    assert codes == {"nobody": 401, "stranger": 401, "writer": 403, "other": 404, "reader": here}
    nowhere = httpx.get(f"{address}/{uuid4()}/{document}", headers={"Authorization": f"Bearer {reader}"})
    assert nowhere.status_code == 404


def test_the_page_loads_nothing_and_runs_nothing(served: Served) -> None:
    with served.bench.house.client() as client:
        page = client.get(f"/v1/erasure-requests/{served.request_id}/certificate.html")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "<script" not in page.text
    assert 'src="data:image/svg+xml;base64,' in page.text
