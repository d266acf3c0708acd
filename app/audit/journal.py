"""What a restored database would have forgotten to forget, kept beside the log: one sealed JSON object per line.

    {"request": …}      a request that ended, with its certificate
    {"job": …}          samples that a job took out of a manifest, person by person, without the person
    {"suppression": …}  a keyed hash on the suppression list

Written before the checkpoint that shows the request's end is published; lines may come twice. A request comes after
all that ended with it, so a file that was cut off lacks requests before it lacks anything else. Each line is sealed by
the wrapping key (AES-256-GCM, base64): there is no user id in it, but a keyed hash must not lie in the open either.

A line that a crash cut short belongs to a checkpoint that was not signed for anybody: it is written again in full.
A file that is gone or shorter than it was is written again from PostgreSQL, which knows it all until it is restored.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from sqlalchemy import Select, false, func, or_, select
from sqlalchemy.orm import Session

from app import keyring
from app.errors import LogStopped
from app.storage.tables import (
    AuditEntry,
    Certificate,
    ErasureRequest,
    Forgotten,
    Job,
    LogCheckpoint,
    Manifest,
    Model,
    Suppression,
    Target,
)

Json = dict[str, Any]  # Any: JSON
Ids = Select[Any]  # Any: UUID of a request
_CONTEXT = b"journal"
_A_DAY = timedelta(days=1)
"""Suppressions are dated by PostgreSQL, requests by us: an hour is more than any two clocks are apart."""


class Journal:
    """The file ``erasures.jsonl`` in the log's directory."""

    def __init__(self, directory: Path, key: bytes) -> None:
        self._file, self._key = directory / "erasures.jsonl", key
        self._seen = 0

    def follow(self, tx: Session, head: LogCheckpoint, *, since: LogCheckpoint | None) -> None:
        """Append what ended between two checkpoints; on disk when this returns."""
        if self.has_shrunk() or not self._file.exists():
            self.write_again(tx, head)
            return
        ended = _ended(since.size if since else 0, head.size)
        if tx.scalar(ended.limit(1)) is not None:
            self._append([*_suppressions(tx, ended), *_jobs(tx, ended), *_requests(tx, ended)])

    def write_again(self, tx: Session, head: LogCheckpoint) -> None:
        """Append everything that PostgreSQL knows of what ended before a checkpoint."""
        ended = _ended(0, head.size)
        if tx.scalar(ended.limit(1)) is not None:
            self._append([*_suppressions(tx, ended), *_jobs(tx, ended, also_left=True), *_requests(tx, ended)])

    def has_shrunk(self) -> bool:
        """Whether the file is shorter than this process has seen it, or gone; costs no reading."""
        return (self._file.stat().st_size if self._file.exists() else 0) < self._seen

    def lacks(self, tx: Session, head: LogCheckpoint) -> int:
        """How many requests that the log says were closed before a checkpoint have no line; reads the whole file.

        Raises:
            LogStopped: A line in the middle is damaged.
        """
        self._seen = self._whole() if self._file.exists() else 0
        written = {line["request"]["id"] for line in self.lines() if "request" in line}
        return len({str(request_id) for request_id in tx.scalars(_ended(0, head.size))} - written)

    def lines(self) -> Iterator[Json]:
        """Everything written so far; a line that a crash cut short is left out.

        Raises:
            LogStopped: A line in the middle is damaged.
        """
        if not self._file.exists():
            return
        raw = self._file.read_bytes().split(b"\n")
        for number, line in enumerate(raw[:-1], 1):
            try:
                plain = keyring.unseal(self._key, base64.b64decode(line, validate=True), context=_CONTEXT)
                yield json.loads(plain)
            except (ValueError, InvalidTag):
                raise LogStopped(
                    f"line {number} of {self._file} is damaged, or sealed by another EXPUNGE_WRAPPING_KEY"
                ) from None

    def _append(self, lines: list[Json]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "ab") as file:
            file.truncate(self._whole())
            file.writelines(self._sealed(line) for line in lines)
            file.flush()
            os.fsync(file.fileno())
            self._seen = file.tell()

    def _sealed(self, line: Json) -> bytes:
        return base64.b64encode(keyring.seal(self._key, json.dumps(line).encode(), context=_CONTEXT)) + b"\n"

    def _whole(self) -> int:
        """How many bytes of the file are whole lines; the next line must not grow onto half of one."""
        size = self._file.stat().st_size
        with self._file.open("rb") as file:
            file.seek(max(0, size - 1))
            if file.read() in {b"", b"\n"}:
                return size
            file.seek(0)
            return file.read().rfind(b"\n") + 1


def _ended(first: int, end: int) -> Ids:
    """Requests whose end stands in the log at these places; without those that a restore could not bring back."""
    return select(AuditEntry.request_id).where(
        AuditEntry.leaf_index >= first,
        AuditEntry.leaf_index < end,
        AuditEntry.type == "request.closed",
        AuditEntry.request_id.is_not(None),
    )


def _requests(tx: Session, ids: Ids) -> Iterator[Json]:
    issued = (
        select(Certificate.request_id, Certificate.envelope)
        .where(Certificate.request_id.in_(ids))
        .order_by(Certificate.issued_at)
    )
    newest = {row.request_id: row.envelope for row in tx.execute(issued)}
    for request in tx.scalars(select(ErasureRequest).where(ErasureRequest.id.in_(ids))):
        yield {
            "request": {
                "id": str(request.id),
                "ref": request.ref,
                "status": request.status,
                "received_at": request.received_at.isoformat(),
                "deadline": request.deadline.isoformat(),
                "closed_at": (request.closed_at or request.received_at).isoformat(),
                "backups_expire_at": request.backups_expire_at.isoformat() if request.backups_expire_at else None,
                "certificate": newest.get(request.id),
            }
        }


def _jobs(tx: Session, ids: Ids, *, also_left: bool = False) -> Iterator[Json]:
    """What the requests' jobs took out; ``also_left``: and jobs whose requests went on to a later one."""
    jobs = select(Target.job_id).where(Target.request_id.in_(ids))
    left = Forgotten.job_id.not_in(select(Target.job_id)) if also_left else false()
    rows = tx.execute(
        select(Forgotten, Model.name, Manifest.digest)
        .join(Manifest, Manifest.id == Forgotten.manifest_id)
        .join(Job, Job.id == Forgotten.job_id)
        .join(Model, Model.id == Job.model_id)
        .where(or_(Forgotten.job_id.in_(jobs), left))
        .order_by(Forgotten.job_id, Forgotten.manifest_id, Forgotten.ordinal)
    ).all()
    for forgotten, model, digest in rows:
        said = {"job": str(forgotten.job_id), "model": model, "manifest": digest}
        yield {"job": {**said, "ordinal": forgotten.ordinal, "samples": forgotten.sample_ids}}


def _suppressions(tx: Session, ids: Ids) -> Iterator[Json]:
    # Nothing connects a request that ended with its row here, which tells its day alone. But that is no earlier than
    # the request's, however long the work on it took, and lines may come twice.
    oldest = select(func.min(ErasureRequest.received_at)).where(ErasureRequest.id.in_(ids)).scalar_subquery()
    for row in tx.scalars(select(Suppression).where(Suppression.since >= oldest - _A_DAY)):
        yield {"suppression": {"key": base64.b64encode(row.suppression_key).decode(), "model": row.model}}
