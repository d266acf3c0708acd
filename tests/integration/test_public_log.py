"""The public log of a real installation, checked by the verifier that strangers use."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from expunge_verify import cli as verifier
from expunge_verify import leaf
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from app import catalog, certificates, decisions, keymaking
from app.audit import evidence
from app.audit.mirror import Mirror
from app.storage import audit, requests
from app.storage.sessions import transaction
from app.storage.tables import AuditEntry
from tests import toy
from tests.faults import wait_until
from tests.house import installation
from tests.pipeline import Bench, in_this_process, register
from workers import erase

pytestmark = pytest.mark.slow


def settle(bench: Bench) -> None:
    """Wait until everything is published."""

    wait_until(bench.is_published, 20, "the log is published")


def exported(bench: Bench, directory: Path) -> Path:
    settle(bench)
    with transaction(bench.ctx.engine) as tx:
        shown = audit.published(tx)
        assert shown is not None
        assert shown.published is not None
        mirror = Mirror(directory)
        mirror.prepare(tx, shown)
        mirror.show(shown, bytes(shown.published))
    return directory


def vkey(bench: Bench) -> str:
    with transaction(bench.ctx.engine) as tx:
        return audit.known_keys(tx)[0].vkey


def leaves(bench: Bench) -> list[dict[str, object]]:
    settle(bench)
    with transaction(bench.ctx.engine) as tx:
        shown = audit.published(tx)
        assert shown is not None
        return [leaf.decode(entry) for entry in audit.entries(tx, 0, shown.size)]


def story(bench: Bench, request_id: object) -> list[str]:
    ref = bench.request(request_id).ref  # type: ignore[arg-type]
    return [str(said["type"]) for said in leaves(bench) if said.get("ref") == ref]


def test_a_strangers_verifier_accepts_log_story_certificate_and_receipt(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forgotten, nobody, withdrawn = bench.demand(3), bench.demand(99_999), bench.demand(4)
    with transaction(bench.ctx.engine) as tx:
        decisions.cancel(tx, withdrawn, by=keymaking.operator(tx), now=bench.now(), settings=bench.ctx.settings)
    bench.run_all()
    directory, key = exported(bench, tmp_path / "exported"), vkey(bench)
    settings = bench.ctx.settings
    with transaction(bench.ctx.engine) as tx:
        issued = evidence.certificate_of(tx, forgotten)
        (tmp_path / "c.json").write_text(json.dumps(issued.envelope))
        (tmp_path / "c.tlog-proof").write_bytes(evidence.certificate_proof(tx, issued))
        (tmp_path / "r.json").write_bytes(evidence.receipt_of(tx, requests.get(tx, forgotten), settings))
    public = base64.b64encode(certificates.public_key(settings.key("signing_key"))).decode()
    for arguments in (
        ["log", str(directory)],
        ["requests", str(directory)],
        ["certificate", str(tmp_path / "c.json"), "--key", public, "--proof", str(tmp_path / "c.tlog-proof")],
        ["receipt", str(tmp_path / "r.json")],
        ["log", str(settings.log_path / "public")],
    ):
        assert verifier.main([*arguments, "--vkey", key]) == 0, (arguments[0], capsys.readouterr().out)
    assert story(bench, forgotten) == [
        "request.received",
        "erasure.started",
        "erasure.done",
        "key.shredded",
        "certificate.issued",
        "request.closed",
    ]
    assert story(bench, nobody) == story(bench, forgotten)
    assert story(bench, withdrawn) == ["request.received", "request.withdrawn", "key.shredded", "request.closed"]
    kinds = [said["type"] for said in leaves(bench)]
    assert kinds[0] == "log.opened"
    assert [kind for kind in kinds if str(kind).split(".")[0] in {"model", "unlearn", "verify"}] == [
        "model.registered",
        "unlearn.done",
        "verify.passed",
        "model.promoted",
        "model.retired",
    ]


def test_a_rollback_opens_the_story_again_and_it_ends_again(bench: Bench, tmp_path: Path) -> None:
    request_id = bench.demand(3)
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
    bench.run_all()
    told = story(bench, request_id)
    assert told.count("request.closed") == told.count("certificate.issued") == 2
    assert told.index("request.reopened") > told.index("request.closed")
    assert told.count("key.shredded") == 1
    assert verifier.main(["requests", str(exported(bench, tmp_path / "e")), "--vkey", vkey(bench)]) == 0


def test_nothing_is_computed_before_everybody_can_see_that_the_erasure_began(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "run_step", in_this_process)
    monkeypatch.setattr(erase, "_LOG_WAITS_SECONDS", 0.3)
    with installation(tmp_path, database_url, "", model=False) as house:
        bench = Bench(house)
        register(bench)
        request_id = bench.demand(3)
        before = bench.live().id
        bench.run_all()  # nobody sequences
        assert bench.request(request_id).status == "in_progress"
        (job,) = bench.plan()
        assert bench.job(job).error == "the public log takes no entries: `expunge doctor` says why"
        assert bench.live().id == before
        with transaction(house.engine) as tx:
            assert audit.key_of(tx, request_id, audit.WORKING) is not None
        bench.expire_leases()
        with bench.sequencing():
            bench.run_all()
        assert bench.request(request_id).status == "completed"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_entries SET type = 'x' WHERE leaf_index = 1",
        "UPDATE audit_entries SET leaf_index = NULL WHERE leaf_index = 1",
        "UPDATE audit_entries SET entry = 'x' WHERE leaf_index = 1",
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries CASCADE",
        "UPDATE log_tiles SET hashes = '\\x00'",
        "DELETE FROM log_tiles",
        "TRUNCATE log_tiles",
        "UPDATE log_checkpoints SET root = '\\x00'",
        "DELETE FROM log_checkpoints",
        "TRUNCATE log_checkpoints",
    ],
)
def test_the_tables_of_the_log_only_grow(bench: Bench, change: str) -> None:
    settle(bench)
    with pytest.raises(DBAPIError, match="append-only"), bench.ctx.engine.begin() as connection:
        connection.execute(text(change))


def test_two_requests_of_one_person_share_nothing_that_tells(bench: Bench) -> None:
    first = bench.demand(3)
    bench.run_all()
    second = bench.demand(3)
    bench.run_all()
    refs = {bench.request(first).ref, bench.request(second).ref}
    assert len(refs) == 2
    told = {ref: [said for said in leaves(bench) if said.get("ref") == ref] for ref in refs}
    secrets = [
        {str(value) for said in mine for name, value in said.items() if name in {"ref", "nonce", "commit", "cert"}}
        for mine in told.values()
    ]
    assert not secrets[0] & secrets[1]
    allowed = {"v", "log", "type", "day", "due", "model", "method", "level", "outcome", "in_time"}
    rest = {name for mine in told.values() for said in mine for name in said} - {"ref", "nonce", "commit", "cert"}
    assert rest <= allowed


def test_the_log_holds_nothing_of_a_person_and_its_length_says_nothing_of_their_samples(
    bench: Bench, tmp_path: Path
) -> None:
    sizes = []
    for person in (3, 5):
        before = len(leaves(bench))
        bench.demand(person, reference=f"ticket of {toy.user_id(person)}")
        bench.run_all()
        told = leaves(bench)[before:]
        sizes.append(sum(len(leaf.encode(said)) for said in told if "model" not in said))
    assert sizes[0] == sizes[1]
    raw = b"".join(path.read_bytes() for path in exported(bench, tmp_path / "e").rglob("*") if path.is_file())
    with transaction(bench.ctx.engine) as tx:
        raw += b"".join(entry for entry in tx.scalars(select(AuditEntry.entry)) if entry)
    for person in (3, 5):
        assert toy.user_id(person).encode() not in raw
    assert b"ticket" not in raw
