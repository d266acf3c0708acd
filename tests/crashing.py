"""A worker that dies on purpose: ``python -m tests.crashing STEP MOMENT JOB_ID``.

It takes the job like any worker and kills itself, as ``kill -9`` from outside would, in the transaction that settles
STEP: everything has been sent to PostgreSQL but COMMIT (MOMENT = before), or COMMIT was answered (after).
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.orm import Session

from app.storage.tables import Job
from workers import erase
from workers.context import Context, context
from workers.lease import Lease

BEFORE, AFTER = "before", "after"
MOMENTS = (BEFORE, AFTER)


def main(step: str, moment: str, job_id: str) -> int:
    """Never returns when the job was at STEP; otherwise exit code 1."""
    for status, alive in list(erase.STEPS.items()):
        if alive.__name__ == step:
            erase.STEPS[status] = _deadly(alive, moment)
    erase.run(context(), UUID(job_id))
    return 1


def _deadly(step: erase.Step, moment: str) -> erase.Step:
    @functools.wraps(step)
    def work(ctx: Context, lease: Lease, job: Job) -> erase.Settle:
        return _last_act(step(ctx, lease, job), moment)

    return work


def _last_act(settle: erase.Settle, moment: str) -> erase.Settle:
    def settle_and_die(tx: Session, job: Job) -> None:
        settle(tx, job)
        if moment == BEFORE:
            tx.flush()  # nothing but COMMIT is missing
            event.listen(tx.connection(), "commit", _die)
        else:
            event.listen(tx, "after_commit", _die)

    return settle_and_die


def _die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
