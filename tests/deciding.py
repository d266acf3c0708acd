"""People who decide, and the log's verdict on what followed."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from expunge_verify import cli as verifier
from sqlalchemy import select

from app import decisions, intake, keymaking
from app.domain.decisions import ExtensionReason, Ground, HoldGround, IdentityLevel
from app.settings import Settings
from app.storage import audit, keys
from app.storage import decisions as stored
from app.storage.sessions import transaction
from app.storage.tables import Decision, ErasureRequest, Event
from tests import toy
from tests.faults import wait_until
from tests.pipeline import Bench


class Office:
    """An office with people who decide, each a client of its own, at times that the test gives."""

    def __init__(self, bench: Bench, **policy: Any) -> None:
        self.bench = bench
        self.settings: Settings = bench.ctx.settings.model_copy(update=policy)
        bench.ctx = type(bench.ctx)(settings=self.settings, engine=bench.ctx.engine)
        with transaction(bench.ctx.engine) as tx:
            self.portal = keymaking.operator(tx)
            self.anna, self.ben = (keys.add_client(tx, name=name).id for name in ("anna", "ben"))

    def demand(self, person: int, *, level: str = "low", at: datetime | None = None, **more: Any) -> UUID:
        demand = intake.Demand(user_id=toy.user_id(person), identity_level=IdentityLevel(level), **more)
        with transaction(self.bench.ctx.engine) as tx:
            return intake.accept(
                tx,
                demand,
                client_id=self.portal,
                idempotency_key=None,
                now=at or self.bench.now(),
                settings=self.settings,
            ).request.id

    def approve(self, request_id: UUID, by: UUID | None = None) -> str:
        return self._act(decisions.approve, request_id, by=by or self.anna)

    def hold(
        self, request_id: UUID, *, until: datetime, ground: str = HoldGround.LEGAL_HOLD, at: datetime | None = None
    ) -> str:
        more = {"by": self.anna, "ground": HoldGround(ground), "until": until, "settings": self.settings, "now": at}
        return self._act(decisions.hold, request_id, **more)

    def release(self, request_id: UUID) -> str:
        return self._act(decisions.release, request_id, by=self.anna, settings=self.settings)

    def confirm(self, request_id: UUID, level: str = "substantial", *, at: datetime | None = None) -> str:
        more = {"by": self.portal, "seen_by": None, "settings": self.settings, "now": at}
        return self._act(decisions.confirm_identity, request_id, IdentityLevel(level), **more)

    def refuse(self, request_id: UUID, ground: str = Ground.LEGAL_OBLIGATION, **what: Any) -> str:
        refusal = decisions.Refusal(ground=Ground(ground), **what)
        return self._act(decisions.refuse, request_id, refusal, by=self.anna, settings=self.settings)

    def extend(self, request_id: UUID, months: int = 2, *, at: datetime | None = None, **more: Any) -> str:
        extension = decisions.Extension(further_months=months, reason=ExtensionReason.COMPLEXITY, **more)
        return self._act(decisions.extend, request_id, extension, by=self.anna, settings=self.settings, now=at)

    def retry(self, request_id: UUID) -> str:
        return self._act(decisions.retry, request_id, by=self.anna, settings=self.settings)

    def cancel(self, request_id: UUID) -> str:
        return self._act(decisions.cancel, request_id, by=self.portal, settings=self.settings)

    def _act(self, use_case: Any, *arguments: Any, now: datetime | None = None, **more: Any) -> str:
        with transaction(self.bench.ctx.engine) as tx:
            return str(use_case(tx, *arguments, now=now or self.bench.now(), **more).status)

    def status(self, request_id: UUID) -> str:
        return self.bench.request(request_id).status

    def decided(self, request_id: UUID) -> list[Decision]:
        with transaction(self.bench.ctx.engine) as tx:
            return list(stored.of_request(tx, request_id))

    def events(self, request_id: UUID) -> list[str]:
        with transaction(self.bench.ctx.engine) as tx:
            mine = select(Event.type).where(Event.request_id == request_id).order_by(Event.id)
            return list(tx.scalars(mine))

    def requests(self) -> list[ErasureRequest]:
        with transaction(self.bench.ctx.engine) as tx:
            return list(tx.scalars(select(ErasureRequest).order_by(ErasureRequest.sequence)))


def check_log(bench: Bench) -> None:
    """The verifier that strangers use accepts the log and every story in it, once all is published."""

    wait_until(bench.is_published, 30, "the log is published")
    with transaction(bench.ctx.engine) as tx:
        vkey = audit.known_keys(tx)[0].vkey
    for what in ("log", "requests"):
        assert verifier.main([what, str(bench.ctx.settings.log_path / "public"), "--vkey", vkey]) == 0, what
