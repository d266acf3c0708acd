"""A sequencer and a writer as processes of their own: ``python -m tests.sequencing sequence DATABASE_URL DIRECTORY``.

The sequencer takes turns without a pause until it is killed. The writers (``write DATABASE_URL COUNT``), too, commit
business transactions without end, which sleep between their entry and COMMIT, so that they become visible in another
order than that of their ids.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

from expunge_verify.notes import Signer
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.audit.guard import Guard
from app.audit.journal import Journal
from app.audit.leaves import Pen
from app.audit.mirror import Mirror
from app.audit.sequencer import Cosign, Sequencer
from app.storage import audit, moves
from app.storage.sessions import connect, transaction
from app.storage.tables import ErasureRequest, LogCheckpoint

ORIGIN = "log.example/erasures"
SEED = bytes(range(32))
DUE = datetime(2030, 1, 1, tzinfo=UTC)


def at_once(_: Session, checkpoint: LogCheckpoint) -> bytes:
    """A log without witnesses."""
    return bytes(checkpoint.note)


def sequencer(
    directory: Path, *, seeds: Sequence[bytes] = (SEED,), origin: str = ORIGIN, cosign: Cosign = at_once
) -> Sequencer:
    """A sequencer that needs no installation around it."""
    signers = [Signer(origin, seed) for seed in seeds]
    return Sequencer(
        Pen(origin, ZoneInfo("Europe/Warsaw"), bytes(32)),
        signers,
        Guard(directory, origin),
        Mirror(directory / "public"),
        Journal(directory, bytes(32)),
        cosign,
    )


def write(engine: Engine, *, rng: random.Random, pause_seconds: float = 0.0) -> None:
    """One business transaction, an entry and an event: a request that comes in, or a model that is registered."""
    with transaction(engine) as tx:
        now = datetime.now(UTC)
        if rng.random() < 0.5:
            request = ErasureRequest(id=uuid4(), received_at=now, deadline=DUE, subject_key=uuid4())
            tx.add(request)
            tx.flush()
            moves.receive(tx, request)
        else:
            weights = f"sha256:{rng.randbytes(32).hex()}"
            audit.enter(tx, "model.registered", {"model": {"to": weights}}, at=now)
            moves.record(tx, "model.registered", detail={"weights": weights})
        time.sleep(pause_seconds)


def _sequence(url: str, directory: str) -> None:
    engine, ours = connect(url, pool_size=2), sequencer(Path(directory), cosign=_slowly)
    while True:
        ours.turn(engine, now=datetime.now(UTC), limit=64)


def _slowly(_: Session, checkpoint: LogCheckpoint) -> bytes:
    time.sleep(0.01)  # a witness far away
    return bytes(checkpoint.note)


def _write(url: str, count: str) -> None:
    engine = connect(url, pool_size=int(count))

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while True:
            write(engine, rng=rng, pause_seconds=rng.expovariate(50))

    with ThreadPoolExecutor(int(count)) as pool:
        for failed in as_completed([pool.submit(work, seed) for seed in range(int(count))]):
            failed.result()


if __name__ == "__main__":
    {"sequence": _sequence, "write": _write}[sys.argv[1]](*sys.argv[2:])
