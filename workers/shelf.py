"""Where the model store keeps the file of a digest, and how it loses one: paths, age, deletion; no torch."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from app.errors import Invalid, Misconfigured

BLOBS: Final = "blobs"
REFERENCES: Final = "references"
"""Predictions about people, apart from weights: what no live version needs is deleted, not kept for rollback."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SUFFIX: Final = ".safetensors"


class Shelf:
    """One shelf of the model store.

    Args:
        url: of the store; created with the first file.
        name: of the shelf.

    Raises:
        Misconfigured: fsspec does not know the protocol, or lacks its package.
    """

    def __init__(self, url: str, name: str = BLOBS) -> None:
        try:
            files, self.root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise Misconfigured(f"EXPUNGE_STORE can't be used: {error}") from None
        self.files: Any = files  # Any: fsspec publishes no types
        self._name = name

    @property
    def is_local(self) -> bool:
        """Whether the store is a directory of this machine."""
        return isinstance(self.files, LocalFileSystem)

    def place(self, digest: str) -> str:
        """Tell the path of a digest, whether a file is there or not."""
        if not _DIGEST.fullmatch(digest):
            raise Invalid("weights", "a digest is 64 lower-case hexadecimal digits")
        return f"{self.root}/{self._name}/sha256/{digest[:2]}/{digest}{_SUFFIX}"

    def exists(self, digest: str) -> bool:
        """Tell whether a complete file has this name."""
        return bool(self.files.exists(self.place(digest)))

    def delete(self, digest: str) -> None:
        """Remove a file; one that is gone already is no error, since deletions are repeated after crashes."""
        try:
            self.files.rm_file(self.place(digest))
        except FileNotFoundError:
            return

    def digests(self, *, older_than: datetime) -> set[str]:
        """List what was complete on this shelf before a time (with its zone)."""
        found = self.files.find(f"{self.root}/{self._name}")
        names = {Path(path).name.removesuffix(_SUFFIX): path for path in found}
        return {n for n, path in names.items() if _DIGEST.fullmatch(n) and self._written(path) < older_than}

    def _written(self, path: str) -> datetime:
        try:
            written: datetime = self.files.modified(path)
        except FileNotFoundError:  # somebody else deleted it meanwhile
            return datetime.now().astimezone()
        return written if written.tzinfo else written.astimezone()


def folds_directory(url: str, home: Path) -> Path:
    """Where calibrations in progress keep one directory per version: in the store if that is local, else at home."""
    shelf = Shelf(url)
    return Path(shelf.root if shelf.is_local else home) / "calibrating"
