"""The log as static files, as C2SP tlog-tiles lays them out: for a web server, for an export, and for a restore."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from expunge_verify import notes
from expunge_verify.errors import VerifyError
from expunge_verify.notes import Checkpoint
from expunge_verify.tiles import TILE_WIDTH, Bundle, Tile
from sqlalchemy.orm import Session

from app.audit.files import replace
from app.errors import LogStopped
from app.storage import audit
from app.storage.tables import LogCheckpoint


class Mirror:
    """A directory that follows the published log; whoever writes it again writes the same bytes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def size(self) -> int:
        """How many entries the mirror's checkpoint covers.

        Raises:
            LogStopped: Its checkpoint can't be read.
        """
        try:
            raw = (self.directory / "checkpoint").read_bytes()
            return Checkpoint.parse(notes.parse(raw).text).size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise LogStopped(f"{self.directory / 'checkpoint'} can't be read ({type(error).__name__})") from None
        except VerifyError as error:
            raise LogStopped(f"{self.directory / 'checkpoint'} can't be read: {error}") from None

    def note(self) -> bytes:
        """The checkpoint in force, as it is served."""
        return (self.directory / "checkpoint").read_bytes()

    def prepare(self, tx: Session, checkpoint: LogCheckpoint) -> None:
        """Write tiles and bundles that are new with this checkpoint; the old one stays in force."""
        for part in _parts(self.size(), checkpoint.size):
            self._write(part.path, partial(audit.file, tx, part))

    def lacks(self, head: LogCheckpoint) -> list[Tile | Bundle]:
        """Files that the mirror's own checkpoint covers and that are gone; nothing is read but names.

        Raises:
            LogStopped: The checkpoint can't be read, or covers more than PostgreSQL has.
        """
        size = self.size()
        if size > head.size:
            raise LogStopped(f"the log's files hold {size} entries and PostgreSQL {head.size}: it was restored")
        return [part for part in _parts(0, size) if not (self.directory / part.path).exists()]

    def mend(self, tx: Session, gone: Iterable[Tile | Bundle]) -> None:
        """Write files that are gone again."""
        for part in gone:
            self._write(part.path, partial(audit.file, tx, part))

    def show(self, checkpoint: LogCheckpoint, note: bytes) -> None:
        """Put a prepared checkpoint in force."""
        old = self.size()
        self.directory.mkdir(parents=True, exist_ok=True)
        replace(self.directory / "checkpoint", note)
        self._drop_partials(old, checkpoint.size)

    def _write(self, path: str, content: Callable[[], bytes]) -> None:
        # Compared, not only looked for: a file may be there of a history that was written and never signed, if
        # PostgreSQL lost its last commits just then.
        file, wanted = self.directory / path, content()
        if not file.exists() or file.read_bytes() != wanted:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace(file, wanted)

    def _drop_partials(self, old: int, new: int) -> None:
        """Partial files go once the full one is there, as the specification allows."""
        for full in _parts(old, new):
            if full.width == TILE_WIDTH:
                shutil.rmtree(self.directory / f"{full.path}.p", ignore_errors=True)


def _parts(old: int, new: int) -> Iterator[Tile | Bundle]:
    """Every file that a log has with ``new`` entries and had not with ``old``."""
    yield from _new_tiles(old, new)
    yield from _new_bundles(old, new)


def _new_tiles(old: int, new: int) -> Iterator[Tile]:
    level = 0
    while new >> 8 * level:
        yield from (Tile(level, *place) for place in _places(old >> 8 * level, new >> 8 * level))
        level += 1


def _new_bundles(old: int, new: int) -> Iterator[Bundle]:
    return (Bundle(*place) for place in _places(old, new))


def _places(old: int, new: int) -> Iterator[tuple[int, int]]:
    """Index and width of every tile of a row that grew from ``old`` to ``new`` hashes."""
    for index in range(old // TILE_WIDTH, -(-new // TILE_WIDTH)):
        yield index, min(TILE_WIDTH, new - index * TILE_WIDTH)
