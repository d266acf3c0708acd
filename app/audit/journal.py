"""What a restored database would have forgotten to forget, kept beside the log: one JSON object per line.

    {"request": …}      a request that ended, with its certificate
    {"job": …}          samples that a job took out of a manifest, person by person, without the person
    {"suppression": …}  a keyed hash on the suppression list

Written before the checkpoint that shows the request's end is published; lines may come twice. The file is private
(mode 0600): it holds no user id and no key, but who has the index key can test a name against the suppressions.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

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
_LONGEST_TRANSACTION = timedelta(hours=1)


class Journal:
    """The file ``erasures.jsonl`` in the log's directory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "erasures.jsonl"

    def follow(self, tx: Session, head: LogCheckpoint, *, since: LogCheckpoint | None) -> None:
        """Append what ended between two checkpoints; on disk when this returns."""
        first = since.size if since else 0
        ended = list(
            tx.scalars(
                select(AuditEntry.request_id).where(
                    AuditEntry.leaf_index >= first,
                    AuditEntry.leaf_index < head.size,
                    AuditEntry.type == "request.closed",
                )
            )
        )
        if not ended:
            return
        lines = [*_requests(tx, ended), *_jobs(tx, ended), *_suppressions(tx, since.signed_at if since else None)]
        self._append(lines)

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
                yield json.loads(line)
            except ValueError:
                raise LogStopped(f"line {number} of {self._file} is damaged") from None

    def _append(self, lines: list[Json]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "ab") as file:
            file.write(b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def _requests(tx: Session, ids: list[Any]) -> Iterator[Json]:  # Any: UUID or None
    for request in tx.scalars(select(ErasureRequest).where(ErasureRequest.id.in_(ids))):
        issued = tx.scalar(
            select(Certificate.envelope)
            .where(Certificate.request_id == request.id)
            .order_by(Certificate.issued_at.desc())
            .limit(1)
        )
        yield {
            "request": {
                "id": str(request.id),
                "ref": request.ref,
                "status": request.status,
                "received_at": request.received_at.isoformat(),
                "deadline": request.deadline.isoformat(),
                "closed_at": (request.closed_at or request.received_at).isoformat(),
                "certificate": issued,
            }
        }


def _jobs(tx: Session, ids: list[Any]) -> Iterator[Json]:  # Any: as above
    jobs = select(Target.job_id).where(Target.request_id.in_(ids))
    rows = tx.execute(
        select(Forgotten, Model.name, Manifest.digest)
        .join(Manifest, Manifest.id == Forgotten.manifest_id)
        .join(Job, Job.id == Forgotten.job_id)
        .join(Model, Model.id == Job.model_id)
        .where(Forgotten.job_id.in_(jobs))
        .order_by(Forgotten.job_id, Forgotten.manifest_id, Forgotten.ordinal)
    ).all()
    for forgotten, model, digest in rows:
        said = {"job": str(forgotten.job_id), "model": model, "manifest": digest}
        yield {"job": {**said, "ordinal": forgotten.ordinal, "samples": forgotten.sample_ids}}


def _suppressions(tx: Session, since: datetime | None) -> Iterator[Json]:
    rows = select(Suppression)
    # A transaction may have begun before the last checkpoint was signed: an hour is more than any lasts.
    if since is not None:
        rows = rows.where(Suppression.since >= since - _LONGEST_TRANSACTION)
    for row in tx.scalars(rows):
        yield {"suppression": {"key": base64.b64encode(row.suppression_key).decode(), "model": row.model}}
