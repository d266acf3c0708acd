"""Predictions about people that no live version needs any more: found and deleted.

References are written before the version that names them, so that a crash leaves a file that nobody names, never a
version without its file. Such files go an hour later; those of a version that is no longer live go at once.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from app.logs import log
from app.storage import versions
from app.storage.sessions import transaction
from workers.context import Context
from workers.shelf import REFERENCES, Shelf, folds_directory

_UNNAMED_LIVE = timedelta(hours=1)  # far longer than from a file's last byte to its version's COMMIT


def sweep(ctx: Context) -> None:
    """Delete references and unfinished folds that belong to no live version."""
    shelf = Shelf(ctx.settings.store_url, REFERENCES)
    found = shelf.digests(
        older_than=ctx.now() - _UNNAMED_LIVE
    )  # before the names are read: a younger name is no matter
    with transaction(ctx.engine) as tx:
        named, live = versions.references(tx, live=True), versions.live_ids(tx)
        retired = versions.references(tx, live=False) - named
    gone = {digest for digest in (found - named) | retired if shelf.exists(digest)}
    for digest in gone:
        shelf.delete(digest)
    if gone:
        log.info("references deleted", count=len(gone))
    for directory in folds_directory(ctx.settings.store_url, ctx.settings.home).glob("*"):
        if directory.name not in {version_id.hex for version_id in live}:
            _empty(directory)


def _empty(directory: Path) -> None:
    """Delete the files and leave the directory: a calibration may still be running in it, in vain."""
    for path in directory.glob("*"):
        path.unlink(missing_ok=True)
