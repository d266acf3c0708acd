"""The log's order under fire: sequencers that race, fail and are killed lose no entry, double none and fork nothing."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from expunge_verify import cli as verifier
from expunge_verify import leaf, merkle, notes
from expunge_verify.log import check_log
from expunge_verify.notes import Checkpoint, Vkey
from expunge_verify.source import Directory
from sqlalchemy import Engine, func, select, text

from app.audit.guard import Guard
from app.audit.journal import Journal
from app.audit.mirror import Mirror
from app.audit.sequencer import Sequencer
from app.audit.tree import consistency_proof
from app.errors import ExpungeError, LogStopped, Misconfigured
from app.storage import audit, moves
from app.storage.sessions import connect, transaction
from app.storage.tables import AuditEntry, ErasureRequest, Event, LogCheckpoint
from tests import command_line
from tests.faults import wait_until
from tests.sequencing import ORIGIN, SEED, sequencer, write

pytestmark = pytest.mark.slow

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
OTHER_SEED = bytes(range(32, 64))
VKEY = str(notes.Signer(ORIGIN, SEED).vkey)


class Boom(Exception):
    """Thrown where a process could have died."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = connect(database_url, pool_size=12)
    yield made
    made.dispose()


@contextmanager
def process(*arguments: str, log: Path) -> Iterator[BaseProcess]:
    """A process of tests.sequencing, killed -9 at the end; what it says at its death is in ``log``."""
    started = command_line.start("tests.sequencing", *arguments, environment=os.environ, stderr=log)
    try:
        yield started
    finally:
        started.kill()
        started.join()


def enter_models(engine: Engine, count: int) -> None:
    """Entries in bulk, with the events that go with them."""
    with transaction(engine) as tx:
        tx.execute(
            text(
                "WITH made AS (SELECT 'sha256:' || encode(sha256(random()::text::bytea), 'hex') AS weights"
                " FROM generate_series(1, :count)), told AS (INSERT INTO events (type, detail)"
                " SELECT 'model.registered', jsonb_build_object('weights', weights) FROM made)"
                " INSERT INTO audit_entries (type, at, fields) SELECT 'model.registered', now(),"
                " jsonb_build_object('model', jsonb_build_object('to', weights)) FROM made"
            ),
            {"count": count},
        )


def drained(engine: Engine, ours: Sequencer, *, now: datetime | None = None) -> None:
    while ours.turn(engine, now=now or datetime.now(UTC)):
        pass


def need_everything_once(engine: Engine, directory: Path) -> None:
    """Every business fact has one leaf, every leaf one fact, and every checkpoint is a beginning of the last."""
    found = check_log(Directory(directory / "public"), [Vkey.parse(VKEY)])
    told = [said for _, said in found.leaves()]
    with transaction(engine) as tx:
        places = list(tx.scalars(select(AuditEntry.leaf_index).order_by(AuditEntry.leaf_index)))
        refs = sorted(tx.scalars(select(ErasureRequest.ref)))
        weights = sorted(tx.scalars(select(Event.detail["weights"].astext).where(Event.type == "model.registered")))
        shown = list(tx.scalars(select(LogCheckpoint).where(LogCheckpoint.published.is_not(None))))
        assert places == list(range(found.checkpoint.size))
        assert sorted(said["ref"] for said in told if "ref" in said) == refs
        assert sorted(said["model"]["to"] for said in told if said["type"] == "model.registered") == weights
        assert len(told) == 1 + len(refs) + len(weights)
        for checkpoint in shown:
            proof = consistency_proof(tx, checkpoint.size, found.checkpoint.size)
            merkle.check_consistency(
                checkpoint.size, checkpoint.root, found.checkpoint.size, found.checkpoint.root, proof
            )
            read = Checkpoint.parse(notes.parse(bytes(checkpoint.published or b"")).text)
            assert (read.size, read.root) == (checkpoint.size, checkpoint.root)


def inversions(engine: Engine) -> int:
    """How many entries were committed after one with a higher id had got its place."""
    with transaction(engine) as tx:
        placed = select(AuditEntry.id).where(AuditEntry.leaf_index > 0)
        ids = list(tx.scalars(placed.order_by(AuditEntry.leaf_index)))
    return sum(1 for before, after in pairwise(ids) if after < before)


def test_two_sequencers_race_beside_eight_writers_and_nothing_is_lost_or_said_twice(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    log, directory = tmp_path / "said", tmp_path / "log"
    with (
        process("sequence", database_url, str(directory), log=log) as one,
        process("sequence", database_url, str(directory), log=log) as two,
        process("write", database_url, "8", log=log) as writers,
    ):
        wait_until(
            lambda: checkpoints(engine) > 40 and inversions(engine) > 2, 40, "they have raced", every_seconds=0.5
        )
        assert [one.exitcode, two.exitcode, writers.exitcode] == [None] * 3, log.read_text()
    drained(engine, sequencer(directory))
    assert inversions(engine) > 2
    need_everything_once(engine, directory)


def checkpoints(engine: Engine) -> int:
    with transaction(engine) as tx:
        return tx.scalar(select(func.count()).select_from(LogCheckpoint)) or 0


def test_a_sequencer_killed_twenty_times_with_work_waiting_leaves_a_whole_log(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    directory, rng, sizes = tmp_path / "log", random.Random(4), [0]
    enter_models(engine, 12_000)
    for _ in range(21):
        with process("sequence", database_url, str(directory), log=tmp_path / "said") as alive:
            wait_until(lambda: size(engine) > sizes[-1], 20, "it has sequenced something")
            for _ in range(5):
                write(engine, rng=rng)
            time.sleep(rng.random() * 0.06)
            assert alive.exitcode is None, (tmp_path / "said").read_text()
            alive.kill()
            alive.join()
        with transaction(engine) as tx:
            assert audit.has_pending(tx)
        sizes.append(size(engine))
    assert sizes == sorted(set(sizes))
    drained(engine, sequencer(directory))
    need_everything_once(engine, directory)


def size(engine: Engine) -> int:
    with transaction(engine) as tx:
        head = audit.head(tx)
        return head.size if head else 0


def raising(*_: Any, **__: Any) -> Any:
    raise Boom


def twice_then_raising(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """The method does its work, and the process dies before anybody learns of it."""
    real: Callable[..., Any] = getattr(owner, name)

    def done_and_dead(*given: Any, **named: Any) -> Any:
        real(*given, **named)
        raise Boom

    monkeypatch.setattr(owner, name, done_and_dead)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (audit, "place"),
        (audit, "sign"),
        (Mirror, "prepare"),
        (Journal, "follow"),
        (Guard, "swap"),
        (Sequencer, "cosign"),
        (Mirror, "show"),
        (audit, "publish"),
    ],
)
def test_a_turn_that_dies_anywhere_is_made_good_by_the_next(
    engine: Engine, tmp_path: Path, owner: Any, name: str, moment: str
) -> None:
    directory, ours, rng = tmp_path / "log", sequencer(tmp_path / "log"), random.Random(1)
    enter_models(engine, 300)
    drained(engine, ours)
    for _ in range(10):
        write(engine, rng=rng)
    with pytest.MonkeyPatch.context() as patch:
        if owner is Sequencer:
            dying = replace(ours, cosign=raising)
        else:
            dying = ours
            twice_then_raising(patch, owner, name) if moment == "after" else patch.setattr(owner, name, raising)
        with pytest.raises(Boom):
            dying.turn(engine, now=datetime.now(UTC))
        with suppress(Boom):  # what is done once needs no second time: the guard holds the checkpoint already
            dying.turn(engine, now=datetime.now(UTC))
    for _ in range(3):
        write(engine, rng=rng)
    drained(engine, sequencer(directory))
    with transaction(engine) as tx:
        head = audit.head(tx)
        assert head is not None
        assert head.published is not None
        assert not audit.has_pending(tx)
    need_everything_once(engine, directory)


def test_files_of_a_history_that_postgresql_lost_are_written_again(engine: Engine, tmp_path: Path) -> None:
    ours = sequencer(tmp_path / "log")
    enter_models(engine, 5)
    drained(engine, ours)
    enter_models(engine, 2)
    unguarded = replace(ours, journal=Dying(tmp_path / "log", bytes(32)))
    with pytest.raises(Boom):  # the files of 8 entries are there, the guard holds 6
        unguarded.turn(engine, now=datetime.now(UTC))
    with engine.begin() as connection:  # a crash without synchronous commit
        for statement in (
            "ALTER TABLE audit_entries DISABLE TRIGGER USER",
            "ALTER TABLE log_tiles DISABLE TRIGGER USER",
            "ALTER TABLE log_checkpoints DISABLE TRIGGER USER",
            "UPDATE audit_entries SET leaf_index = NULL, entry = NULL WHERE leaf_index > 5",
            "DELETE FROM audit_evidence WHERE entry_id IN (SELECT id FROM audit_entries WHERE leaf_index IS NULL)",
            "DELETE FROM log_checkpoints WHERE size > 6",
            "UPDATE log_tiles SET hashes = substring(hashes FOR 6 * 32) WHERE level = 0",
        ):
            connection.execute(text(statement))
    drained(engine, ours)
    need_everything_once(engine, tmp_path / "log")


class Dying(Journal):
    """A journal on a disk that is gone."""

    def follow(self, *_: Any, **__: Any) -> None:
        raise Boom


def test_what_opens_the_log_stands_first_though_entries_waited(engine: Engine, tmp_path: Path) -> None:
    enter_models(engine, 3)
    drained(engine, sequencer(tmp_path / "log"))
    found = check_log(Directory(tmp_path / "log" / "public"), [Vkey.parse(VKEY)])
    first = leaf.decode(found.entries[0])
    assert (first["type"], first["vkey"], first["schema"]) == ("log.opened", VKEY, leaf.SCHEMA_DIGEST)
    assert [said["type"] for _, said in found.leaves()][1:] == ["model.registered"] * 3


def test_after_twelve_silent_hours_the_same_tree_is_signed_again(engine: Engine, tmp_path: Path) -> None:
    ours = sequencer(tmp_path / "log")
    drained(engine, ours, now=NOON)
    for hours, expected in ((11, 1), (13, 2), (24, 2), (26, 3)):
        assert ours.turn(engine, now=NOON + timedelta(hours=hours)) == 0
        with transaction(engine) as tx:
            signed = list(tx.scalars(select(LogCheckpoint)))
        assert len(signed) == expected
        assert {(one.size, bytes(one.root), one.published is not None) for one in signed} == {
            (1, bytes(signed[0].root), True)
        }


def checkpoint_accepted(directory: Path, *keys: str) -> int:
    trust = [part for key in keys for part in ("--vkey", key)]
    return verifier.main(["log", str(directory / "public"), *trust])


def test_keys_rotate_with_an_overlap_and_what_the_old_one_signed_stays_good(engine: Engine, tmp_path: Path) -> None:
    directory = tmp_path / "log"
    old, both, new = (sequencer(directory, seeds=seeds) for seeds in ((SEED,), (OTHER_SEED, SEED), (OTHER_SEED,)))
    fresh = str(notes.Signer(ORIGIN, OTHER_SEED).vkey)
    enter_models(engine, 2)
    drained(engine, old)
    before = tmp_path / "before"
    before.write_bytes((directory / "public" / "checkpoint").read_bytes())
    drained(engine, both)  # nothing waits: the new key is news enough
    overlap = (directory / "public" / "checkpoint").read_bytes()
    assert overlap.count("— ".encode()) == 2
    assert checkpoint_accepted(directory, VKEY) == checkpoint_accepted(directory, fresh) == 0
    enter_models(engine, 2)
    drained(engine, new)
    assert (directory / "public" / "checkpoint").read_bytes().count("— ".encode()) == 1
    assert checkpoint_accepted(directory, VKEY) == 1
    assert checkpoint_accepted(directory, fresh) == 0
    after = ["consistency", str(before), str(directory / "public" / "checkpoint"), "--log", str(directory / "public")]
    assert verifier.main([*after, "--vkey", VKEY, "--vkey", fresh]) == 0
    with transaction(engine) as tx:
        told = [leaf.decode(entry) for entry in audit.entries(tx, 0, size(engine))]
        assert [key.vkey for key in audit.known_keys(tx)] == [VKEY, fresh]
    assert [said["vkey"] for said in told if said["type"] == "log.key_rotated"] == [fresh]


def test_a_log_whose_key_was_lost_goes_on_and_says_so_but_not_to_who_trusts_the_old_key(
    engine: Engine, tmp_path: Path
) -> None:
    drained(engine, sequencer(tmp_path / "log"))
    other = sequencer(tmp_path / "log", seeds=(OTHER_SEED,))
    drained(engine, other)
    fresh = str(other.signers[0].vkey)
    assert checkpoint_accepted(tmp_path / "log", fresh) == 0
    assert checkpoint_accepted(tmp_path / "log", VKEY) == 1
    with transaction(engine) as tx:
        told = [leaf.decode(entry) for entry in audit.entries(tx, 0, size(engine))]
    assert [said["vkey"] for said in told if said["type"] == "log.key_rotated"] == [fresh]


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_log_keeps_its_name(engine: Engine, tmp_path: Path, waiting: int) -> None:
    drained(engine, sequencer(tmp_path / "log"))
    enter_models(engine, waiting)
    with pytest.raises(Misconfigured, match="EXPUNGE_LOG_ORIGIN"):
        sequencer(tmp_path / "log", origin="another.example/log").turn(engine, now=datetime.now(UTC))


def test_a_guard_that_cannot_be_read_stops_the_log(engine: Engine, tmp_path: Path) -> None:
    drained(engine, sequencer(tmp_path / "log"))
    (tmp_path / "log" / "guard").unlink()
    with pytest.raises(LogStopped, match="guard is gone"):
        sequencer(tmp_path / "log").check(engine)
    (tmp_path / "log" / "guard").mkdir()
    with pytest.raises(LogStopped, match="can't be read"):
        sequencer(tmp_path / "log").check(engine)


def test_a_guard_that_cannot_be_written_stops_the_log_in_a_sentence(engine: Engine, tmp_path: Path) -> None:
    drained(engine, sequencer(tmp_path / "log"))
    enter_models(engine, 1)
    (tmp_path / "log" / "guard.new").mkdir()
    with pytest.raises(LogStopped, match=r"guard\.new can't be written"):
        drained(engine, sequencer(tmp_path / "log"))
    (tmp_path / "log" / "guard.new").rmdir()
    drained(engine, sequencer(tmp_path / "log"))
    need_everything_once(engine, tmp_path / "log")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("nonsense.type", "{}"),
        ("request.received", '{"due": "garbage"}'),
        ("request.received", '{"due": 7}'),
        ("model.registered", '{"model": {"to": "x"}}'),
        ("request.closed", '{"outcome": "completed", "in_time": true}'),
        ("config.changed", '{"é": 1}'),
        ("config.changed", "[1]"),
    ],
)
def test_an_entry_that_makes_no_leaf_stops_the_log_and_is_named(
    engine: Engine, tmp_path: Path, kind: str, fields: str
) -> None:
    ours = sequencer(tmp_path / "log")
    drained(engine, ours)
    with transaction(engine) as tx:
        row = {"type": kind, "fields": fields}
        made = "INSERT INTO audit_entries (type, at, fields) VALUES (:type, now(), CAST(:fields AS jsonb)) RETURNING id"
        number = tx.scalar(text(made), row)
    for act in (partial(drained, engine, ours), partial(ours.check, engine)):
        with pytest.raises(LogStopped, match=f"entry {number} of the outbox, a {kind}, makes no leaf"):
            act()


def test_an_entry_whose_key_another_wrapping_key_holds_stops_the_log(engine: Engine, tmp_path: Path) -> None:
    ours = sequencer(tmp_path / "log")
    with transaction(engine) as tx:
        request = ErasureRequest(id=uuid4(), received_at=NOON, deadline=NOON, subject_key=uuid4())
        tx.add(request)
        tx.flush()
        moves.receive(tx, request)
    drained(engine, ours)
    with transaction(engine) as tx:
        audit.enter(tx, "request.identity_confirmed", at=NOON, request_id=request.id)
    wrong = replace(ours, pen=replace(ours.pen, wrapping_key=bytes(range(32))))
    for act in (partial(drained, engine, wrong), partial(wrong.check, engine)):
        with pytest.raises(LogStopped, match="EXPUNGE_WRAPPING_KEY"):
            act()
    drained(engine, ours)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("nonsense.type", {}),
        ("retention.pruned", {"before": 1, "name": "Ann"}),
        ("model.registered", {}),
        ("config.changed", {"log": "x"}),
        ("request.withdrawn", {}),
    ],
)
def test_what_would_stop_the_log_does_not_get_into_its_outbox(
    engine: Engine, kind: str, fields: dict[str, object]
) -> None:
    with pytest.raises(ExpungeError, match=kind), transaction(engine) as tx:
        audit.enter(tx, kind, fields, at=NOON)


def test_files_that_are_gone_are_named_and_written_again(engine: Engine, tmp_path: Path) -> None:
    ours, public = sequencer(tmp_path / "log"), tmp_path / "log" / "public"
    enter_models(engine, 600)
    drained(engine, ours)
    before = {path: path.read_bytes() for path in public.rglob("*") if path.is_file()}
    assert ours.complaints(engine) == ours.mend(engine) == []
    shutil.rmtree(public / "tile" / "0")
    (public / "tile" / "entries" / "001").unlink()
    told = ours.complaints(engine)
    assert told == ["4 of the log's public files are gone, tile/0/000 the first"]
    assert ours.mend(engine) == told
    assert {path: path.read_bytes() for path in public.rglob("*") if path.is_file()} == before
    assert ours.complaints(engine) == []


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b""), lambda file: (file.unlink(), file.mkdir())])
def test_a_checkpoint_of_the_files_that_cannot_be_read_is_named(
    engine: Engine, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    drained(engine, sequencer(tmp_path / "log"))
    spoil(tmp_path / "log" / "public" / "checkpoint")
    with pytest.raises(LogStopped, match=r"public/checkpoint can't be read"):
        sequencer(tmp_path / "log").complaints(engine)


def test_files_are_not_mended_from_a_database_that_was_restored(engine: Engine, tmp_path: Path) -> None:
    ours = sequencer(tmp_path / "log")
    drained(engine, ours)
    with pytest.raises(LogStopped, match="restored"):
        replace(ours, mirror=Ahead(tmp_path / "log" / "public")).mend(engine)


class Ahead(Mirror):
    """Files that hold more than PostgreSQL."""

    def size(self) -> int:
        return 10**6
