"""Holding a job: a thread renews the lease, and everything this worker does stops when it is lost."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from app.errors import ExpungeError, LeaseLost
from app.logs import log
from app.storage import jobs
from app.storage.sessions import transaction
from app.storage.tables import Job
from workers.context import Context


class Lease:
    """A claimed job's heartbeat; a context manager.

    PostgreSQL being away for a while is survived as long as nobody else could have claimed the job; whether somebody
    did is decided by the fencing token in every write, never by this thread.
    """

    def __init__(self, ctx: Context, job: Job) -> None:
        self.job_id, self.fence = job.id, job.fence
        self.progress: float | None = None
        self._ctx, self._lost, self._stop = ctx, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{job.id}", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether somebody else holds the job now."""
        return self._lost.is_set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._ctx.settings.lease_seconds / 4):
            try:
                with transaction(self._ctx.engine) as tx:
                    jobs.renew(
                        tx, self.job_id, fence=self.fence, lease=self._ctx.settings.lease, progress=self.progress
                    )
            except LeaseLost:
                self._lost.set()
                return
            except (ExpungeError, SQLAlchemyError) as error:
                log.warning("heartbeat missed", job=str(self.job_id), kind=type(error).__name__)
