"""PostgreSQL comes back from a backup: the log refuses to fork, and whoever was forgotten since is forgotten again."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import torch
from cryptography.exceptions import InvalidTag
from expunge_verify import cli as verifier
from expunge_verify.log import check_log
from expunge_verify.notes import Vkey
from expunge_verify.source import Directory
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert

from app import catalog, certificates, doctor, keyring, planning
from app.audit import evidence, restore
from app.audit.journal import Journal
from app.audit.mirror import Mirror
from app.audit.restore import Replayed
from app.audit.sequencer import Sequencer
from app.embedded import postgres_installations
from app.errors import Conflict, LogStopped, Misconfigured, Unavailable
from app.logs import log
from app.storage import audit, requests
from app.storage.sessions import connect, transaction
from app.storage.tables import ErasureRequest, Posting, RequestKey, Suppression
from tests import toy
from tests.deciding import Office
from tests.faults import wait_until
from tests.house import installation
from tests.integration.test_public_log import settle, vkey
from tests.pipeline import Bench, in_this_process, register
from tests.sequencing import at_once
from tests.services import administering, new_database
from workers import erase
from workers.scribe import Scribe

pytestmark = pytest.mark.slow

FIRST, KNOWN, UNKNOWN, LOST, WAITING = 1, 3, 5, 7, 9
EMPTY = Replayed(0, 0, 0, ())


@dataclass(frozen=True)
class Drill:
    """An installation as it was (`lost`), and one on the backup of its database (`back`), with the same log files."""

    lost: Bench
    back: Bench
    known: UUID
    unknown: UUID
    lost_ref: str

    @property
    def public(self) -> Path:
        return self.back.ctx.settings.log_path / "public"

    def replay(self) -> Replayed:
        return replay(self.back)


def replay(bench: Bench) -> Replayed:
    with transaction(bench.ctx.engine) as tx:
        return restore.replay(tx, Sequencer.of(bench.ctx.settings, at_once), now=datetime.now(UTC))


@pytest.fixture(scope="module", autouse=True)
def _torch_in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(erase, "run_step", in_this_process)
        yield


@pytest.fixture
def bench(database_url: str, tmp_path: Path) -> Iterator[Bench]:
    with installation(tmp_path, database_url, "", model=False) as house:
        made = Bench(house)
        register(made)
        yield made


@contextmanager
def cloned(server: str, bench: Bench) -> Iterator[str]:
    """A backup of the database."""
    bench.ctx.engine.dispose()  # nobody may be connected to a database that is cloned
    with new_database(server, str(bench.ctx.engine.url.database)) as url:
        yield url


@contextmanager
def on(bench: Bench, url: str, **changes: Path) -> Iterator[Bench]:
    """The installation on another database; keys, model store and, unless changed, the log's files are the same."""
    engine = connect(url, pool_size=4)
    settings = bench.house.settings.model_copy(update={"database_url": url, **changes})
    environment = {**bench.house.environment, "DATABASE_URL": url, "EXPUNGE_LOG_DIRECTORY": str(settings.log_path)}
    try:
        yield Bench(replace(bench.house, settings=settings, engine=engine, environment=environment))
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def past(
    postgres_server: str, template_database: str, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Drill]:
    """One person was forgotten before the backup; two ended after it, one of them unknown to it; one came in after."""
    home = tmp_path_factory.mktemp("house")
    with (
        new_database(postgres_server, template_database) as first,
        installation(home, first, valkey_server, model=False) as house,
    ):
        bench = Bench(house)
        register(bench)
        with bench.sequencing():
            bench.demand(FIRST)
            bench.run_all()
            settle(bench)
        known = bench.demand(KNOWN)  # nobody sequences: it waits for its place in the backup
        with cloned(postgres_server, bench) as url:
            with bench.sequencing():
                unknown = bench.demand(UNKNOWN)
                bench.run_all()
                lost = bench.demand(LOST)
                settle(bench)
            with on(bench, url) as back:
                yield Drill(bench, back, known, unknown, bench.request(lost).ref)


@pytest.fixture
def drill(past: Drill, postgres_server: str, tmp_path: Path) -> Iterator[Drill]:
    """A backup and the log's files for one test."""
    files = Path(shutil.copytree(past.lost.ctx.settings.log_path, tmp_path / "log"))
    with cloned(postgres_server, past.back) as url, on(past.lost, url, log_directory=files) as back:
        yield replace(past, back=back)


def everything(bench: Bench) -> dict[str, list[str]]:
    """Every row of every table."""
    with bench.ctx.engine.connect() as connection:
        tables = connection.execute(
            text("SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('public', 'keystore')")
        )
        return {
            name: sorted(map(str, connection.scalars(text(f"SELECT t::text FROM {name} t"))))
            for (name,) in tables.all()
        }


def verdict(*arguments: object, key: str) -> int:
    return verifier.main([*map(str, arguments), "--vkey", key])


def exported(bench: Bench, directory: Path) -> Path:
    with transaction(bench.ctx.engine) as tx:
        shown = audit.published(tx)
        assert shown is not None
        Mirror(directory).prepare(tx, shown)
        Mirror(directory).show(shown, bytes(shown.published or b""))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_dispatch_does_nothing_on_a_restored_database(drill: Drill) -> None:
    before, files = everything(drill.back), contents(drill.back.ctx.settings.log_path)
    scribe = Scribe(drill.back.ctx.settings)
    with pytest.raises(LogStopped, match="restore-replay"):
        scribe.sequence(drill.back.ctx)
    house = drill.back.house
    house.start("dispatch")
    wait_until(lambda: "the public log is stopped" in house.log.read_text(), 20, "dispatch has found out")
    time.sleep(2)  # it says so once a minute, and looks five times a second
    house.stop()
    seen: dict[str, list[str]] = {
        "public.key_checks": []
    }  # where a starting process notes the fingerprints of its keys
    assert everything(drill.back) | seen == before | seen
    assert contents(drill.back.ctx.settings.log_path) == files


def test_a_replay_brings_the_log_back_and_forgets_again(drill: Drill, tmp_path: Path) -> None:
    back, key = drill.back, vkey(drill.lost)
    files, lost = contents(drill.public), everything(drill.lost)
    kept = Path(shutil.copytree(drill.public, tmp_path / "kept"))
    behind = len(everything(back)["public.audit_entries"]) - 1  # one waits
    done = drill.replay()
    size = len(lost["public.audit_entries"])
    assert done == Replayed(size - behind, closed=2, forgotten=2, lost=(drill.lost_ref,), keys=1)
    assert contents(exported(back, tmp_path / "told")).items() <= files.items()
    for request_id in (drill.known, drill.unknown):
        assert back.request(request_id).status == "completed"
        assert back.request(request_id).backups_expire_at == drill.lost.request(request_id).backups_expire_at
        assert back.certificate(request_id) == drill.lost.certificate(request_id)
        assert certificate_verdict(back, request_id, tmp_path) == 0
    with transaction(back.ctx.engine) as tx:
        assert not audit.has_pending(tx)
        assert set(tx.scalars(select(Suppression.suppression_key))) == suppressed(drill.lost)
        assert list(tx.scalars(select(RequestKey.request_id).where(RequestKey.purpose == audit.WORKING))) == []
    assert back.undone() == ["toy"]
    repair(back)
    assert back.undone() == []
    torch.testing.assert_close(back.live_weights(), back.retrained(without=[FIRST, KNOWN, UNKNOWN]))
    assert verdict("requests", drill.public, key=key) == 0
    assert verdict("log", drill.public, key=key) == 0
    old, new = kept / "checkpoint", drill.public / "checkpoint"
    assert verdict("consistency", old, new, "--log", drill.public, key=key) == 0
    went_on = check_log(Directory(drill.public), [Vkey.parse(key)]).entries
    assert went_on[:size] == check_log(Directory(kept), [Vkey.parse(key)]).entries
    assert len(went_on) > size


def certificate_verdict(bench: Bench, request_id: UUID, directory: Path) -> int:
    with transaction(bench.ctx.engine) as tx:
        issued = evidence.certificate_of(tx, request_id)
        (directory / "c.tlog-proof").write_bytes(evidence.certificate_proof(tx, issued))
    (directory / "c.json").write_text(json.dumps(issued.envelope))
    public = base64.b64encode(certificates.public_key(bench.ctx.settings.key("signing_key"))).decode()
    given = ["certificate", directory / "c.json", "--key", public, "--proof", directory / "c.tlog-proof"]
    return verdict(*given, key=vkey(bench))


def suppressed(bench: Bench) -> set[bytes]:
    with transaction(bench.ctx.engine) as tx:
        return set(tx.scalars(select(Suppression.suppression_key)))


def repair(bench: Bench) -> None:
    """What dispatch does next."""
    with bench.sequencing():
        with transaction(bench.ctx.engine) as tx:
            planning.repair(tx, now=datetime.now(UTC))
        bench.run_all()
        settle(bench)


def test_replaying_twice_is_replaying_once(drill: Drill) -> None:
    drill.replay()
    before, files = everything(drill.back), contents(drill.back.ctx.settings.log_path)
    assert drill.replay() == EMPTY
    assert everything(drill.back) == before
    assert contents(drill.back.ctx.settings.log_path) == files
    assert ways_to(drill.back, KNOWN, UNKNOWN) == []


def ways_to(bench: Bench, *people: int) -> list[list[int]]:
    """Index rows that still lead somebody to samples of these people."""
    gone = [i for person in people for i in toy.samples_of(person)]
    with transaction(bench.ctx.engine) as tx:
        assert len(tx.scalars(select(Posting.subject_key)).all()) == toy.MEMBERS + toy.STRANGERS - 3
        return list(tx.scalars(select(Posting.sample_ids).where(Posting.sample_ids.bool_op("&&")(gone))))


def test_entries_that_only_the_backup_has_get_their_place_after_the_replay(drill: Drill) -> None:
    fresh = drill.back.demand(WAITING)  # the API does not know of the restore
    assert drill.replay().keys == 1  # another one's
    with transaction(drill.back.ctx.engine) as tx:
        sealed, wrapped = requests.get(tx, fresh).sealed_user_id, audit.key_of(tx, fresh, audit.WORKING)
    assert opened(drill.back, fresh, sealed or b"", wrapped or b"") == toy.user_id(WAITING)
    with drill.back.sequencing():
        drill.back.run_all()
        settle(drill.back)
    assert drill.back.request(fresh).status == "completed"
    assert verdict("requests", drill.public, key=vkey(drill.back)) == 0


def test_requests_of_a_lost_job_that_wait_for_another_model_get_a_new_one(bench: Bench, postgres_server: str) -> None:
    register(bench, name="twin")
    with bench.sequencing():
        bench.demand(KNOWN, models=["toy"])
        waiting = bench.demand(UNKNOWN)
        planned = {bench.model_of(job_id): job_id for job_id in bench.plan()}
        settle(bench)
    with cloned(postgres_server, bench) as url, on(bench, url) as back:
        with bench.sequencing():
            erase.run(bench.ctx, planned["toy"])
            settle(bench)
        assert bench.request(waiting).status == "in_progress"
        assert replay(back).closed == 1
        with back.sequencing():
            back.run_all()
            settle(back)
        assert back.request(waiting).status == "completed"
        assert back.undone() == []
        torch.testing.assert_close(back.live_weights(), back.retrained(without=[KNOWN, UNKNOWN]))
        assert verdict("requests", back.ctx.settings.log_path / "public", key=vkey(back)) == 0


def test_a_key_dump_inside_its_horizon_is_shredded_again(drill: Drill) -> None:
    back = drill.back
    with transaction(back.ctx.engine) as tx:
        request = requests.get(tx, drill.known)
        sealed, wrapped = request.sealed_user_id, audit.key_of(tx, drill.known, audit.WORKING)
    assert sealed is not None
    assert wrapped is not None
    assert opened(back, drill.known, sealed, wrapped) == toy.user_id(KNOWN)  # the restore has brought both back
    assert drill.replay().keys == 1
    with transaction(back.ctx.engine) as tx:
        assert audit.key_of(tx, drill.known, audit.WORKING) is None
        assert requests.get(tx, drill.known).sealed_user_id is None
    with transaction(back.ctx.engine) as tx:  # keys are restored apart, perhaps a day later
        row = {"request_id": drill.known, "purpose": audit.WORKING, "wrapped": wrapped}
        tx.execute(insert(RequestKey).values(row))
    assert drill.replay() == replace(EMPTY, keys=1)
    with transaction(back.ctx.engine) as tx:
        assert audit.key_of(tx, drill.known, audit.WORKING) is None
    with pytest.raises(InvalidTag):
        opened(back, drill.known, sealed, keyring.wrap(back.ctx.settings.key("wrapping_key"), keyring.new_key()))


def opened(bench: Bench, request_id: UUID, sealed: bytes, wrapped: bytes) -> str:
    """The user id, for whoever has the row, the wrapped key and the wrapping key."""
    key = keyring.unwrap(bench.ctx.settings.key("wrapping_key"), wrapped)
    return keyring.unseal(key, sealed, context=request_id.bytes).decode()


def test_what_was_decided_since_the_backup_is_not_undone_by_the_restore(bench: Bench, postgres_server: str) -> None:
    register(bench, name="twin")
    received = datetime.now(UTC) - timedelta(days=3)
    people = Office(bench, hold_share=1.0, identity_needed="low", suspend_while_awaiting_identity=True)
    with bench.sequencing():
        part, extended, untouched = people.demand(KNOWN), people.demand(UNKNOWN, at=received), people.demand(LOST)
        confirmed = people.demand(WAITING, level="none", at=received)
        settle(bench)
    with cloned(postgres_server, bench) as url, on(bench, url) as back:
        with bench.sequencing():
            people.refuse(part, models=["twin"])
            people.extend(extended)
            people.confirm(confirmed)
            settle(bench)
        assert replay(back).refused == (part,)
        ours = Office(back, hold_share=1.0, **policy(people))
        assert (ours.status(part), back.request(part).deadline) == ("on_hold", bench.request(part).deadline)
        assert [back.request(i).deadline for i in (extended, confirmed)] == [
            bench.request(i).deadline for i in (extended, confirmed)
        ]
        with pytest.raises(Conflict, match="allows it once"):
            ours.extend(extended)
        with back.sequencing():
            back.run_all()
            assert (ours.status(part), ours.status(untouched)) == ("on_hold", "completed")
            ours.refuse(part, models=["twin"])
            ours.release(part)
            ours.confirm(confirmed)
            back.run_all()
            settle(back)
        assert [ours.status(i) for i in (part, extended, confirmed)] == ["partially_completed", *["completed"] * 2]
        assert verdict("requests", back.ctx.settings.log_path / "public", key=vkey(back)) == 0


def policy(people: Office) -> dict[str, object]:
    return {name: getattr(people.settings, name) for name in ("identity_needed", "suspend_while_awaiting_identity")}


@pytest.fixture
def empty_database(postgres_server: str) -> Iterator[str]:
    with new_database(postgres_server, "template0") as url:
        yield url


def test_a_dump_without_the_keystore_does_not_open_what_was_sealed(bench: Bench, empty_database: str) -> None:
    tools = tools_of(bench)
    with bench.sequencing():
        request_id = bench.demand(KNOWN)
        settle(bench)
    data = dump(tools, bench, "--exclude-schema=keystore")
    tables = dump(tools, bench, "--schema=keystore", "--schema-only")
    with transaction(bench.ctx.engine) as tx:
        sealed, wrapped = requests.get(tx, request_id).sealed_user_id, audit.key_of(tx, request_id, audit.WORKING)
    assert sealed is not None
    assert wrapped is not None
    assert opened(bench, request_id, sealed, wrapped) == toy.user_id(KNOWN)
    assert wrapped.hex() not in data
    assert sealed.hex() in data
    with bench.sequencing():
        bench.run_all()
        settle(bench)
    load(tools, empty_database, data)
    with on(bench, empty_database) as back:
        with pytest.raises(Misconfigured, match="keystore"):
            replay(back)
        load(tools, empty_database, tables)
        with transaction(back.ctx.engine) as tx:
            assert requests.get(tx, request_id).sealed_user_id == sealed
            assert audit.key_of(tx, request_id, audit.WORKING) is None
        assert replay(back).closed == 1
        repair(back)
        torch.testing.assert_close(back.live_weights(), back.retrained(without=[KNOWN]))
        assert verdict("requests", back.ctx.settings.log_path / "public", key=vkey(back)) == 0


def tools_of(bench: Bench) -> Path:
    """The directory of a pg_dump and a psql that are not older than the server."""
    with administering(str(bench.ctx.settings.database_url)) as server:
        major = int(str(server.scalar(text("SHOW server_version_num")))) // 10_000
    for binaries in postgres_installations():
        if all((binaries / name).exists() for name in ("pg_dump", "psql")):
            said = subprocess.run(
                [binaries / "pg_dump", "--version"], capture_output=True, text=True, check=True
            ).stdout
            if int(said.split()[2].split(".")[0]) >= major:
                return binaries
    pytest.skip(f"no pg_dump and psql of PostgreSQL {major} or newer on this machine")


def address(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def dump(tools: Path, bench: Bench, *how: str) -> str:
    command: list[str | Path] = [tools / "pg_dump", "--no-owner", *how, address(str(bench.ctx.settings.database_url))]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def load(tools: Path, url: str, script: str) -> None:
    command: list[str | Path] = [tools / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", address(url)]
    subprocess.run(command, input=script, capture_output=True, text=True, check=True, timeout=60)


def test_a_checkpoint_that_was_signed_and_not_yet_published_comes_back_too(bench: Bench, postgres_server: str) -> None:
    with bench.sequencing():
        settle(bench)
    with cloned(postgres_server, bench) as url, on(bench, url) as back:
        bench.demand(KNOWN)
        with pytest.raises(Unavailable):
            Sequencer.of(bench.ctx.settings, unwitnessed).turn(bench.ctx.engine, now=datetime.now(UTC))
        assert replay(back).entries == 1
        with transaction(back.ctx.engine) as tx:
            shown, head = audit.published(tx), audit.head(tx)
            assert shown is not None
            assert head is not None
            assert head.size == shown.size + 1
        with back.sequencing():
            settle(back)
        assert verdict("log", back.ctx.settings.log_path / "public", key=vkey(back)) == 0


def unwitnessed(*_: object) -> bytes:
    raise Unavailable("no witness answers")


def test_damaged_files_and_another_history_are_not_replayed(drill: Drill) -> None:
    bundle = max((drill.public / "tile" / "entries" / "000.p").iterdir(), key=lambda file: int(file.name))
    journal, before = drill.back.ctx.settings.log_path / "erasures.jsonl", everything(drill.back)
    for file, damaged in ((bundle, bundle.read_bytes()[:-1] + b"!"), (journal, journal.read_bytes()[1:])):
        whole = file.read_bytes()
        file.write_bytes(damaged)
        with pytest.raises(LogStopped, match=r"can't be used|damaged"):
            drill.replay()
        file.write_bytes(whole)
    assert everything(drill.back) == before
    with drill.back.ctx.engine.begin() as connection:
        connection.execute(text("ALTER TABLE log_checkpoints DISABLE TRIGGER USER"))
        connection.execute(text("UPDATE log_checkpoints SET root = sha256(root)"))
    with pytest.raises(LogStopped, match="do not share a history"):
        drill.replay()


def journal(bench: Bench) -> Journal:
    return Journal(bench.ctx.settings.log_path, bench.ctx.settings.key("wrapping_key"))


def test_the_journal_outlives_a_line_that_a_crash_cut_short(bench: Bench) -> None:
    file = bench.ctx.settings.log_path / "erasures.jsonl"
    with bench.sequencing():
        bench.demand(KNOWN)
        bench.run_all()
        settle(bench)
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:40])
    with bench.sequencing():
        bench.demand(UNKNOWN)
        bench.run_all()
        settle(bench)
    lines = list(journal(bench).lines())
    assert sum("request" in line for line in lines) == 2
    assert file.stat().st_mode & 0o777 == 0o600
    for person in (KNOWN, UNKNOWN):
        assert toy.user_id(person).encode() not in file.read_bytes()


def test_the_journal_has_the_suppression_of_an_erasure_that_took_hours(bench: Bench) -> None:
    with bench.sequencing():
        request_id = bench.demand(KNOWN, at=datetime.now(UTC) - timedelta(hours=9))
        (job_id,) = bench.plan()
        settle(bench)
        with transaction(bench.ctx.engine) as tx:
            requests.suppress(tx, tx.get_one(ErasureRequest, request_id))
        with bench.ctx.engine.begin() as connection:
            connection.execute(text("ALTER TABLE suppressions DISABLE TRIGGER USER"))
            connection.execute(text("UPDATE suppressions SET since = now() - interval '8 hours'"))
        erase.run(bench.ctx, job_id)
        settle(bench)
    lines = list(journal(bench).lines())
    kept = {base64.b64decode(line["suppression"]["key"]) for line in lines if "suppression" in line}
    assert kept == suppressed(bench) != set()


def test_the_newest_of_two_certificates_comes_back(drill: Drill) -> None:
    """The journal may have a request twice: it ended, a rollback opened it again, it ended again."""
    ours = journal(drill.back)
    (said,) = [line for line in ours.lines() if line.get("request", {}).get("id") == str(drill.known)]
    again = json.loads(json.dumps(said))
    again["request"]["closed_at"] = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    again["request"]["certificate"]["payload"] = "bmV3ZXI="
    ours._append([again])
    drill.replay()
    assert drill.back.certificate(drill.known)["payload"] == "bmV3ZXI="
    with transaction(drill.back.ctx.engine) as tx:
        assert len(requests.certificates(tx, drill.known)) == 2


def ended(bench: Bench, *people: int) -> list[UUID]:
    """Requests of these people, carried through to the published end."""
    with bench.sequencing():
        made = [bench.demand(person) for person in people]
        bench.run_all()
        settle(bench)
    return made


def written(bench: Bench) -> set[str]:
    return {line["request"]["id"] for line in journal(bench).lines() if "request" in line}


def complaints(bench: Bench) -> list[str]:
    return Sequencer.of(bench.ctx.settings, at_once).complaints(bench.ctx.engine)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize("lose", [Path.unlink, cut])
@pytest.mark.parametrize("running", [True, False])
def test_a_journal_that_was_lost_or_cut_is_noticed_and_written_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Path], None], running: bool
) -> None:
    file, said = bench.ctx.settings.log_path / "erasures.jsonl", []
    monkeypatch.setattr(log, "error", lambda *_, reason: said.append(reason))
    made = ended(bench, KNOWN, UNKNOWN)
    whole = {json.dumps(line, sort_keys=True) for line in journal(bench).lines()}
    scribe = Scribe(bench.ctx.settings)
    if running:
        scribe.sequence(bench.ctx)
    assert complaints(bench) == said == []
    lose(file)
    (told,) = complaints(bench)
    assert "journal beside the log lacks" in told
    finding = doctor._log(bench.ctx.settings, bench.ctx.engine)
    assert not finding.fine
    assert told in finding.sentence
    scribe.sequence(bench.ctx)  # nothing waits
    assert said == [told]
    assert written(bench) == {str(request_id) for request_id in made}
    assert whole <= {json.dumps(line, sort_keys=True) for line in journal(bench).lines()}
    assert complaints(bench) == []


def test_a_lost_journal_is_written_whole_by_whoever_publishes_next(bench: Bench) -> None:
    made = ended(bench, KNOWN)
    (bench.ctx.settings.log_path / "erasures.jsonl").unlink()
    bench.demand(WAITING)
    Sequencer.of(bench.ctx.settings, at_once).turn(bench.ctx.engine, now=bench.now())
    assert written(bench) == {str(request_id) for request_id in made}


def test_a_damaged_journal_does_not_stop_the_log_and_is_left_to_a_person(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "error", lambda *_, reason: said.append(reason))
    made = ended(bench, KNOWN)
    file = bench.ctx.settings.log_path / "erasures.jsonl"
    file.write_bytes(damaged := b"!" + file.read_bytes()[1:])
    scribe = Scribe(bench.ctx.settings)
    scribe.sequence(bench.ctx)
    assert "damaged" in said[0]
    assert "damaged" in doctor._log(bench.ctx.settings, bench.ctx.engine).sentence
    assert file.read_bytes() == damaged
    file.rename(file.with_name("damaged"))
    scribe.sequence(bench.ctx)
    assert written(bench) == {str(request_id) for request_id in made}


def test_the_jobs_of_requests_that_went_on_to_a_later_one_are_written_again_too(bench: Bench) -> None:
    ended(bench, KNOWN)
    with bench.sequencing():
        with transaction(bench.ctx.engine) as tx:
            catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
        bench.run_all()
        settle(bench)
    before = {json.dumps(line, sort_keys=True) for line in journal(bench).lines() if "job" in line}
    (bench.ctx.settings.log_path / "erasures.jsonl").unlink()
    Scribe(bench.ctx.settings).sequence(bench.ctx)
    assert before <= {json.dumps(line, sort_keys=True) for line in journal(bench).lines()}


@pytest.mark.parametrize("left", [0, 0.45, 0.9])
def test_a_journal_without_requests_that_the_log_has_closed_is_not_replayed(drill: Drill, left: float) -> None:
    file, before = drill.back.ctx.settings.log_path / "erasures.jsonl", everything(drill.back)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * left)])
    lacking = 2 if left < 0.9 else 1
    with pytest.raises(LogStopped, match=f"lacks {lacking} requests"):
        drill.replay()
    assert everything(drill.back) == before
    with transaction(drill.back.ctx.engine) as tx:
        ours = Sequencer.of(drill.back.ctx.settings, at_once)
        with pytest.raises(LogStopped):
            restore.replay(tx, ours, now=datetime.now(UTC), may_lack=lacking - 1)
        done = restore.replay(tx, ours, now=datetime.now(UTC), may_lack=lacking)
    assert (done.lacking, done.closed) == (lacking, 2 - lacking)


@pytest.fixture
def brokered(database_url: str, valkey_server: str, tmp_path: Path) -> Iterator[Bench]:
    """An installation with a broker, as dispatch needs one to start."""
    with installation(tmp_path, database_url, valkey_server, model=False) as house:
        made = Bench(house)
        register(made)
        with made.sequencing():
            settle(made)
        yield made


def test_dispatch_under_another_logs_name_does_nothing(brokered: Bench) -> None:
    house = brokered.house
    brokered.demand(KNOWN)
    before, seen = everything(brokered), {"public.key_checks": list[str]()}
    house.environment["EXPUNGE_LOG_ORIGIN"] = "typo.example/log"
    house.start("dispatch")
    wait_until(lambda: "EXPUNGE_LOG_ORIGIN is not the name" in house.log.read_text(), 20, "dispatch has found out")
    time.sleep(2)
    house.stop()
    assert everything(brokered) | seen == before | seen


def test_dispatch_without_the_logs_key_says_so_and_ends(brokered: Bench) -> None:
    environment = {k: v for k, v in brokered.house.dispatch_environment.items() if k != "EXPUNGE_LOG_KEY"}
    command = [sys.executable, "-m", "workers.dispatch"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (told,) = done.stderr.splitlines()
    assert "EXPUNGE_LOG_KEY" in told
