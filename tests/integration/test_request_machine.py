"""The whole machine of a request: every move has a use case, every end a reason; no order of decisions leaves it."""

from __future__ import annotations

import itertools
from collections import defaultdict
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, text

from app import catalog, planning
from app.domain.lifecycle import REQUEST_ENDED, REQUEST_MOVES, WAITING, RequestStatus
from app.errors import Conflict, IllegalMove
from app.storage import moves
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest, Event, Target
from tests.deciding import Office, check_log
from tests.pipeline import Bench, register
from workers import erase

pytestmark = pytest.mark.slow
SOON = timedelta(days=30)
ENDINGS = ("cancel", "refuse")


def trails(bench: Bench) -> dict[UUID, list[str]]:
    """The statuses that each request went through, by its events."""
    found = defaultdict(list)
    mine = Event.type.in_([f"request.{status}" for status in RequestStatus])
    with transaction(bench.ctx.engine) as tx:
        for row in tx.execute(select(Event.request_id, Event.type).where(mine).order_by(Event.id)):
            found[row.request_id].append(row.type.removeprefix("request."))
    # Whoever comes in unknown has two first events: that they came, and what they wait for.
    return {key: trail[1:] if trail[1:2] == ["awaiting_identity"] else trail for key, trail in found.items()}


def made(bench: Bench) -> set[tuple[str, str]]:
    return {pair for trail in trails(bench).values() for pair in itertools.pairwise(trail)}


class Tour:
    """Brings requests into each status and out of it by each door, through use cases alone."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.people = Office(bench, identity_needed="low", hold_share=1.0, hold_least=1000)
        self.persons = itertools.count(1)

    def asks(self, **policy: object) -> None:
        self.people.settings = self.people.settings.model_copy(update=policy)
        self.bench.ctx = type(self.bench.ctx)(settings=self.people.settings, engine=self.bench.ctx.engine)

    def in_status(self, status: str) -> UUID:
        people = self.people
        request_id = people.demand(next(self.persons), level="none" if status == "awaiting_identity" else "low")
        if status in {"pending", "approved"}:
            self.asks(approval_policy="all")
            self.bench.plan()
            self.asks(approval_policy="none")
        if status == "approved":
            people.approve(request_id)
        if status == "queued":
            self.bench.plan()
        if status == "on_hold":
            people.hold(request_id, until=self.bench.now() + SOON)
        assert people.status(request_id) == status
        return request_id

    def give_up(self) -> None:
        """Every open job is handed to people."""
        for job_id in self.bench.plan():
            with transaction(self.bench.ctx.engine) as tx:
                job = tx.get_one(planning.Job, job_id)
                planning.give_up(tx, job, now=self.bench.now(), reason="a drill")


def test_every_move_of_the_machine_has_a_use_case_and_every_end_a_reason(empty: Bench) -> None:
    bench, tour = empty, Tour(empty)
    people = tour.people
    for status in ("received", "approved"):  # no model to work on
        request_id = tour.in_status(status)
        bench.plan()
        for end in ENDINGS if status == "received" else ():
            again = tour.in_status("received")
            bench.plan()
            getattr(people, end)(again)
        assert people.status(request_id) == "needs_attention"
        people.cancel(request_id)
    register(bench)
    register(bench, "second")
    for status in sorted(WAITING):
        for end in ENDINGS:
            getattr(people, end)(tour.in_status(status))
        if status != "on_hold":
            people.hold(tour.in_status(status), until=bench.now() + SOON)
    people.confirm(tour.in_status("awaiting_identity"))
    people.release(tour.in_status("on_hold"))
    unknown = tour.in_status("awaiting_identity")
    people.hold(unknown, until=bench.now() + SOON)
    people.release(unknown)
    more = tour.in_status("approved")
    tour.asks(approval_policy="all", approvals_asked=2)
    bench.plan()
    tour.asks(approval_policy="none", approvals_asked=1)
    assert people.status(more) == "pending"
    tour.in_status("approved")
    called_back = tour.in_status("queued")
    tour.asks(hold_share=0.0001, hold_least=0)
    tour.people.demand(next(tour.persons))
    bench.plan()
    tour.asks(hold_share=1.0, hold_least=1000)
    assert people.status(called_back) == "pending"
    tour.in_status("queued")
    tour.give_up()  # queued → needs_attention
    done, part, nobody = tour.in_status("queued"), people.demand(next(tour.persons)), people.demand(99_000)
    people.refuse(part, models=["second"])
    bench.run_all()
    assert [people.status(i) for i in (done, part, nobody)] == ["completed", "partially_completed", "no_data"]
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
    assert people.status(done) == people.status(part) == "queued"
    bench.run_all()
    half = tour.in_status("queued")
    by_model = {bench.model_of(job_id): job_id for job_id in bench.plan()}
    erase.run(bench.ctx, by_model["toy"])
    tour.give_up()  # in_progress → needs_attention
    again = tour.in_status("received")
    tour.give_up()
    people.retry(again)
    people.refuse(half, models=["second"])
    assert people.status(half) == "partially_completed"
    everything = {(now.value, then.value) for now, exits in REQUEST_MOVES.items() for then in exits}
    assert made(bench) == everything
    ends = {f"request.{status}" for status in REQUEST_ENDED}
    with transaction(bench.ctx.engine) as tx:
        details = tx.execute(select(Event.type, Event.detail).where(Event.type.in_(ends))).all()
        assert {row.type for row in details} == ends
        assert all(row.detail.get("reason") for row in details)
    check_log(bench)


def test_an_end_without_a_reason_is_no_move(empty: Bench) -> None:
    request_id = Office(empty).demand(3)
    with pytest.raises(IllegalMove, match="needs a reason"), transaction(empty.ctx.engine) as tx:
        moves.move_request(
            tx,
            request_id,
            now=RequestStatus.RECEIVED,
            then=RequestStatus.CANCELLED,
            at=empty.now(),
            ending=moves.Ending(),
        )


ACTS = ("approve", "hold", "release", "confirm", "refuse", "refuse_part", "cancel", "extend", "retry")
ALLOWED = {
    "approve": {"pending": "approved"},
    "hold": dict.fromkeys(WAITING - {RequestStatus.ON_HOLD}, "on_hold"),
    "release": {"on_hold": "received"},
    "confirm": {"awaiting_identity": "received"},
    "refuse": dict.fromkeys(WAITING, "rejected"),
    "cancel": {**dict.fromkeys(WAITING, "cancelled"), "cancelled": "cancelled"},
}
"""What each decision makes of which status, said a second time and without the machine."""


def test_no_order_of_decisions_leads_where_the_law_has_no_way(empty: Bench) -> None:
    register(empty)
    register(empty, "second")
    people = Office(empty, identity_needed="low", hold_share=1.0, hold_least=10_000)
    persons = itertools.count(1)

    class Decisions(RuleBasedStateMachine):
        """Requests under any order of decisions and plannings."""

        requests = Bundle("requests")

        def __init__(self) -> None:
            super().__init__()
            self.expected: dict[UUID, str] = {}
            self.decided: dict[UUID, list[str]] = {}
            self.known: dict[UUID, bool] = {}

        @initialize()
        def begin(self) -> None:
            with transaction(empty.ctx.engine) as tx:  # each example is for itself
                tx.execute(text("UPDATE erasure_requests SET received_at = received_at - interval '1 day'"))

        @rule(target=requests, level=st.sampled_from(["none", "low"]), needs=st.booleans())
        def demand(self, level: str, needs: bool) -> UUID:
            request_id = people.demand(next(persons), level=level)
            if needs:
                with transaction(empty.ctx.engine) as tx:
                    needed = text("UPDATE erasure_requests SET approvals_needed = 1 WHERE id = :id")
                    tx.execute(needed, {"id": request_id})
            self.expected[request_id] = "received" if level == "low" else "awaiting_identity"
            self.decided[request_id], self.known[request_id] = ["needs"] * needs, level == "low"
            return request_id

        @rule()
        def plan(self) -> None:
            empty.plan()
            for request_id, status in self.expected.items():
                waits = "needs" in self.decided[request_id] and "approve" not in self.decided[request_id]
                if status == "received":
                    self.expected[request_id] = "pending" if waits else "queued"
                elif status == "approved":
                    self.expected[request_id] = "queued"

        @rule(request_id=requests, act=st.sampled_from(ACTS))
        def decide(self, request_id: UUID, act: str) -> None:
            before, mine = self.expected[request_id], self.decided[request_id]
            then = ALLOWED.get(act, {}).get(before)
            if act == "extend" and before not in REQUEST_ENDED and "extend" not in mine:
                then = before
            if act == "refuse_part" and before in WAITING:
                then = "rejected" if "refuse_toy" in mine else before
            if act == "release" and then and not self.known[request_id]:
                then = "awaiting_identity"
            try:
                self._do(act, request_id)
            except Conflict:
                assert then is None, (act, before)
                return
            assert then is not None, (act, before)
            self.expected[request_id] = then
            mine.append("refuse_toy" if act == "refuse_part" else act)
            self.known[request_id] |= act == "confirm"

        def _do(self, act: str, request_id: UUID) -> None:
            if act == "hold":
                people.hold(request_id, until=empty.now() + SOON)
            elif act == "refuse_part":
                first = "refuse_toy" not in self.decided[request_id]
                people.refuse(request_id, models=["toy" if first else "second"])
            else:
                getattr(people, act)(request_id)

        @invariant()
        def the_rows_say_what_was_decided(self) -> None:
            with transaction(empty.ctx.engine) as tx:
                rows = {r.id: r for r in tx.scalars(select(ErasureRequest).where(ErasureRequest.id.in_(self.expected)))}
                targets = {row.request_id for row in tx.execute(select(Target.request_id))}
            for request_id, status in self.expected.items():
                row = rows[request_id]
                assert row.status == status
                assert (row.closed_at is not None) is (row.subject_key is None) is (status in REQUEST_ENDED)
                assert (request_id in targets) is (status == "queued")

    run_state_machine_as_test(
        Decisions,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    for trail in trails(empty).values():
        for now, then in itertools.pairwise(trail):
            assert RequestStatus(then) in REQUEST_MOVES[RequestStatus(now)]
