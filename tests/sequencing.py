"""A sequencer and a writer as processes of their own: ``python -m tests.sequencing sequence DATABASE_URL DIRECTORY``.

The sequencer takes turns without a pause until it is killed; the writer (``write DATABASE_URL SECONDS SEED``) commits
business transactions that sleep between their entry and COMMIT, so that they become visible in another order than
that of their ids. The log's key is that of every test here: seeds in EXPUNGE_TEST_SEEDS, comma-separated hexadecimal.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

from expunge_verify.notes import Signer
from sqlalchemy import Engine, text

from app.audit.guard import Guard
from app.audit.journal import Journal
from app.audit.leaves import Pen
from app.audit.mirror import Mirror
from app.audit.sequencer import Sequencer
from app.errors import LogStopped
from app.storage import audit, moves
from app.storage.sessions import connect, transaction
from app.storage.tables import ErasureRequest

ORIGIN = "log.example/erasures"
SEED = bytes(range(32))
DUE = datetime(2030, 1, 1, tzinfo=UTC)


def sequencer(directory: Path, *, seeds: Sequence[bytes] = (SEED,), origin: str = ORIGIN) -> Sequencer:
    """A sequencer without witnesses that needs no installation around it."""
    signers = [Signer(origin, seed) for seed in seeds]
    return Sequencer(
        Pen(origin, ZoneInfo("Europe/Warsaw"), bytes(32)),
        signers,
        Guard(directory, [signer.vkey for signer in signers]),
        Mirror(directory / "public"),
        Journal(directory),
        lambda _, checkpoint: bytes(checkpoint.note),
    )


def write(engine: Engine, *, pause_seconds: float = 0.0, digests: random.Random | None = None) -> None:
    """One business transaction: a request that comes in, or something about a model."""
    with transaction(engine) as tx:
        now = datetime.now(UTC)
        if digests is None or digests.random() < 0.5:
            request = ErasureRequest(id=uuid4(), received_at=now, deadline=DUE, subject_key=uuid4())
            tx.add(request)
            tx.flush()
            moves.receive(tx, request)
        else:
            weights = f"sha256:{digests.randbytes(32).hex()}"
            audit.enter(tx, "model.registered", {"model": {"to": weights}}, at=now)
        tx.execute(
            text("INSERT INTO written (entry) SELECT max(id) FROM audit_entries WHERE xmin = pg_current_xact_id()::xid")
        )
        time.sleep(pause_seconds)


def _sequence(url: str, directory: str) -> None:
    engine, small = connect(url, pool_size=2), sequencer(Path(directory))
    slow = replace(small, cosign=lambda _, checkpoint: time.sleep(0.01) or bytes(checkpoint.note))  # type: ignore[func-returns-value] # a witness far away
    while True:
        try:
            slow.turn(engine, now=datetime.now(UTC), limit=64)
        except LogStopped as stopped:  # the other one had the guard first
            print(stopped, flush=True)


def _write(url: str, seconds: str, seed: str) -> None:
    engine, rng, until = connect(url, pool_size=1), random.Random(int(seed)), time.monotonic() + float(seconds)
    while time.monotonic() < until:
        write(engine, pause_seconds=rng.expovariate(200), digests=rng)


if __name__ == "__main__":
    {"sequence": _sequence, "write": _write}[sys.argv[1]](*sys.argv[2:])
