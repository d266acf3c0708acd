"""What the owner of the database can do to the log's past, and who notices: the next turn, and any old checkpoint."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from expunge_verify import cli as verifier
from expunge_verify import leaf, merkle, notes, tiles
from expunge_verify.notes import Checkpoint
from sqlalchemy import Connection, Engine, text

from app.audit.mirror import Mirror
from app.audit.sequencer import Sequencer
from app.errors import LogStopped, NotFound
from app.storage import audit
from app.storage.sessions import connect, transaction
from tests.outside.test_go import go
from tests.sequencing import ORIGIN, SEED, sequencer

pytestmark = pytest.mark.slow
__all__ = ["go"]

SIGNER = notes.Signer(ORIGIN, SEED)
VKEY = str(SIGNER.vkey)
VICTIM = 7
SIZE = 301
Tamper = Callable[[Connection], None]


@dataclass(frozen=True)
class Log:
    """A log of 301 entries, and what a reader kept of it before anything was changed."""

    engine: Engine
    sequencer: Sequencer
    directory: Path

    @property
    def kept(self) -> Path:
        return self.directory / "kept"

    def turn(self) -> int:
        return self.sequencer.turn(self.engine, now=datetime.now(UTC))

    def grow(self, count: int) -> None:
        with transaction(self.engine) as tx:
            tx.execute(
                text(
                    "INSERT INTO audit_entries (type, at, fields) SELECT 'model.registered', now(), jsonb_build_object("
                    "'model', jsonb_build_object('to', 'sha256:' || encode(sha256(n::text::bytea), 'hex')))"
                    " FROM generate_series(1, :count) n"
                ),
                {"count": count},
            )

    def exported(self, name: str) -> Path:
        """The log as PostgreSQL tells it now."""
        with transaction(self.engine) as tx:
            shown = audit.published(tx)
            assert shown is not None
            mirror = Mirror(self.directory / name)
            mirror.prepare(tx, shown)
            mirror.show(shown, bytes(shown.published or b""))
        return self.directory / name

    def tampered(self, tamper: Tamper) -> None:
        """As the owner of the database, who can switch off what keeps everybody else from it."""
        with self.engine.begin() as connection:
            for table in ("audit_entries", "log_tiles", "log_checkpoints"):
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
            tamper(connection)
            for table in ("audit_entries", "log_tiles", "log_checkpoints"):
                connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))


@pytest.fixture
def log(database_url: str, tmp_path: Path) -> Iterator[Log]:
    engine = connect(database_url, pool_size=2)
    made = Log(engine, sequencer(tmp_path / "log"), tmp_path)
    made.grow(SIZE - 1)
    assert made.turn() == SIZE
    made.exported("kept")
    made.grow(1)
    yield made
    engine.dispose()


def forged(entry: bytes) -> bytes:
    """Another history, as well-formed as the true one."""
    return leaf.encode({**leaf.decode(entry), "model": {"to": f"sha256:{bytes(32).hex()}"}})


def entries(connection: Connection) -> list[bytes]:
    found = connection.execute(text("SELECT entry FROM audit_entries WHERE leaf_index IS NOT NULL ORDER BY leaf_index"))
    return [bytes(row.entry) for row in found]


def edit(connection: Connection) -> None:
    change = {"at": VICTIM, "entry": forged(entries(connection)[VICTIM])}
    connection.execute(text("UPDATE audit_entries SET entry = :entry WHERE leaf_index = :at"), change)


def edit_the_newest(connection: Connection) -> None:
    change = {"at": SIZE - 1, "entry": forged(entries(connection)[-1])}
    connection.execute(text("UPDATE audit_entries SET entry = :entry WHERE leaf_index = :at"), change)


def delete(connection: Connection) -> None:
    victim = "(SELECT id FROM audit_entries WHERE leaf_index = 7)"
    connection.execute(text(f"DELETE FROM audit_evidence WHERE entry_id = {victim}"))
    connection.execute(text(f"DELETE FROM audit_entries WHERE id = {victim}"))


def swap(connection: Connection) -> None:
    for before, after in ((7, -1), (8, 7), (-1, 8)):
        move = {"before": before, "after": after}
        connection.execute(text("UPDATE audit_entries SET leaf_index = :after WHERE leaf_index = :before"), move)


def edit_with_its_tile(connection: Connection) -> None:
    """The entry and the hash beside it, and nothing above."""
    edit(connection)
    hashes = b"".join(merkle.leaf_hash(entry) for entry in entries(connection)[: tiles.TILE_WIDTH])
    connection.execute(text("UPDATE log_tiles SET hashes = :h WHERE level = 0 AND index = 0"), {"h": hashes})


def drop_a_tile(connection: Connection) -> None:
    connection.execute(text("DELETE FROM log_tiles WHERE level = 0 AND index = 0"))


def drop_the_last_tile(connection: Connection) -> None:
    connection.execute(text("DELETE FROM log_tiles WHERE level = 0 AND index = 1"))


def forget_a_checkpoint(connection: Connection) -> None:
    connection.execute(text("DELETE FROM log_checkpoints"))


def rewrite(connection: Connection) -> None:
    """One entry, every hash, and the checkpoint, signed by the log's own key."""
    edit(connection)
    _hash_again(connection)


def delete_and_close_the_gap(connection: Connection) -> None:
    delete(connection)
    connection.execute(text("UPDATE audit_entries SET leaf_index = -leaf_index WHERE leaf_index > 7"))
    connection.execute(text("UPDATE audit_entries SET leaf_index = -leaf_index - 1 WHERE leaf_index < 0"))
    _hash_again(connection)


def _hash_again(connection: Connection) -> None:
    leaves = [merkle.leaf_hash(entry) for entry in entries(connection)]
    connection.execute(text("DELETE FROM log_tiles"))
    for tile, hashes in tiles.grown(lambda _: b"", 0, leaves).items():
        row = {"level": tile.level, "index": tile.index, "hashes": hashes}
        connection.execute(text("INSERT INTO log_tiles (level, index, hashes) VALUES (:level, :index, :hashes)"), row)
    checkpoint = Checkpoint(ORIGIN, len(leaves), merkle.root_of(leaves))
    note = notes.sealed(checkpoint.text, [SIGNER.sign(checkpoint.text)])
    change = {"size": checkpoint.size, "root": checkpoint.root, "note": note}
    connection.execute(
        text("UPDATE log_checkpoints SET size = :size, root = :root, note = :note, published = :note"), change
    )


def verdict(*arguments: object) -> int:
    return verifier.main([*map(str, arguments), "--vkey", VKEY])


def consistency(old: Path, new: Path) -> int:
    return verdict("consistency", old / "checkpoint", new / "checkpoint", "--log", new)


def test_an_untouched_log_goes_on(log: Log) -> None:
    assert log.turn() == 1
    now = log.exported("now")
    assert verdict("log", now) == consistency(log.kept, now) == 0


@pytest.mark.parametrize(
    "tamper",
    [
        edit,
        edit_the_newest,
        delete,
        swap,
        edit_with_its_tile,
        drop_a_tile,
        drop_the_last_tile,
        forget_a_checkpoint,
        rewrite,
        delete_and_close_the_gap,
    ],
)
def test_the_next_turn_stops_the_log_and_nothing_is_signed(log: Log, tamper: Tamper) -> None:
    log.tampered(tamper)
    shown = (log.sequencer.mirror.directory / "checkpoint").read_bytes()
    for _ in range(2):
        with pytest.raises(LogStopped):
            log.turn()
    with pytest.raises(LogStopped):
        log.sequencer.check(log.engine)
    with transaction(log.engine) as tx:
        assert audit.has_pending(tx)
    assert (log.sequencer.mirror.directory / "checkpoint").read_bytes() == shown
    assert verdict("log", log.sequencer.mirror.directory) == 0


@pytest.mark.parametrize("tamper", [edit, edit_the_newest, swap, edit_with_its_tile])
def test_an_altered_log_does_not_pass_the_verifier(log: Log, tamper: Tamper) -> None:
    log.tampered(tamper)
    assert verdict("log", log.exported("now")) == 1
    assert verdict("requests", log.directory / "now") == 1


@pytest.mark.parametrize("tamper", [delete, drop_a_tile, drop_the_last_tile])
def test_a_log_with_a_hole_can_not_be_served(log: Log, tamper: Tamper) -> None:
    log.tampered(tamper)
    with pytest.raises(NotFound):
        log.exported("now")
    now = log.directory / "now"
    now.mkdir(exist_ok=True)
    (now / "checkpoint").write_bytes((log.kept / "checkpoint").read_bytes())
    assert verdict("log", now) == 2


@pytest.mark.parametrize("tamper", [rewrite, delete_and_close_the_gap])
def test_a_history_written_anew_is_whole_and_any_old_checkpoint_betrays_it(log: Log, tamper: Tamper) -> None:
    log.tampered(tamper)
    now = log.exported("now")
    assert verdict("log", now) == 0
    assert consistency(log.kept, now) == 1


def test_a_history_written_anew_betrays_itself_also_after_it_has_grown(log: Log) -> None:
    log.tampered(rewrite)
    (log.directory / "log" / "guard").unlink()  # the owner of the log's files helps, too
    with transaction(log.engine) as tx:
        head = audit.head(tx)
        assert head is not None
        log.sequencer.guard.swap(None, head.note)
    assert log.turn() == 1
    now = log.exported("now")
    assert verdict("log", now) == 0
    assert consistency(log.kept, now) == 1


def test_two_views_of_one_size_are_evidence_whoever_holds_both(log: Log) -> None:
    log.tampered(rewrite)
    other = log.exported("other")
    sizes = [notes.open_checkpoint((d / "checkpoint").read_bytes(), [SIGNER.vkey])[0].size for d in (log.kept, other)]
    assert sizes == [SIZE, SIZE]
    assert verdict("log", log.kept) == verdict("log", other) == 0
    assert consistency(log.kept, other) == consistency(other, log.kept) == 1


def test_in_a_long_log_an_altered_entry_is_found_within_a_few_turns(log: Log) -> None:
    log.grow(9000)
    while log.turn():
        pass
    log.tampered(edit)
    with pytest.raises(LogStopped, match="entries 0 to 255"):  # a turn draws one of two stretches
        check_often(log)


def check_often(log: Log) -> None:
    for _ in range(100):
        log.sequencer.check(log.engine)


@pytest.mark.parametrize(("tamper", "answer"), [(edit, "bad"), (swap, "bad"), (rewrite, "good")])
def test_gos_verifier_says_the_same(log: Log, go: Path, tamper: Tamper, answer: str) -> None:
    log.tampered(tamper)
    true, now = answers(go, [log.kept, log.exported("now")])
    assert true.startswith(f"good {SIZE} ")
    assert now.startswith(answer)
    assert now != true


def answers(go: Path, directories: Sequence[Path]) -> list[str]:
    command: list[str | Path] = [go, "check", VKEY, *directories]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
