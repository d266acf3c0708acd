"""The last checkpoint that was signed, kept outside PostgreSQL: a restored database must not fork the log.

A backup brings PostgreSQL back to yesterday. If it went on from there, it would sign another history under sizes that
people have seen already. So the newest checkpoint also lies in a file that no restore touches, and is compared and
swapped before anybody may see the next one (as Sunlight does with its lock).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge_verify import notes
from expunge_verify.errors import VerifyError
from expunge_verify.notes import Checkpoint

from app.audit.files import replace
from app.errors import LogStopped


class Guard:
    """The file ``guard`` in the log's directory: a signed checkpoint, replaced atomically under a lock.

    Its signature is not asked for: what counts is that PostgreSQL's tree has the same root, and a key may be lost.
    """

    def __init__(self, directory: Path, origin: str) -> None:
        self._directory, self._origin = directory, origin

    def held(self) -> Checkpoint | None:
        """The last checkpoint that was signed; none before the first.

        Raises:
            LogStopped: The file is damaged, of another log, or can't be read.
        """
        raw = self.note()
        if raw is None:
            return None
        try:
            found = Checkpoint.parse(notes.parse(raw).text)
        except VerifyError as error:
            raise LogStopped(f"{self._file} can't be trusted: {error}") from None
        if found.origin != self._origin:
            raise LogStopped(f"{self._file} can't be trusted: it is of another log")
        return found

    def note(self) -> bytes | None:
        """What the file holds, unchecked; none before the first checkpoint.

        Raises:
            LogStopped: It is there and can't be read, which is no reason to go on without it.
        """
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LogStopped(f"{self._file} can't be read ({type(error).__name__})") from None

    def swap(self, old: Checkpoint | None, note: bytes) -> None:
        """Hold this note from now on, if ``old`` is still held; on disk when this returns.

        Raises:
            LogStopped: Another process has moved on, or the file can't be written.
        """
        with self._locked():
            if self.held() != old:
                raise LogStopped("another sequencer has moved the log's guard; only one may run for this log")
            try:
                replace(self._file, note)
                _sync(self._directory)
            except OSError as error:
                raise LogStopped(f"{self._file}.new can't be written ({type(error).__name__})") from None

    @property
    def _file(self) -> Path:
        return self._directory / "guard"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "guard.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _sync(directory: Path) -> None:
    """Make a rename in this directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
