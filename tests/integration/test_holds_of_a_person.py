"""How a hold on a person's data goes from one request to the others, and ends for all that it bound."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from app import decisions
from app.domain.decisions import Ground, HoldGround
from app.errors import Conflict
from app.storage import recovery
from app.storage.sessions import transaction
from tests.deciding import Office, check_log
from tests.pipeline import Bench, register

pytestmark = pytest.mark.slow
SOON = timedelta(days=30)


def test_a_hold_whose_request_was_withdrawn_stops_a_new_attempt_too(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    failed = people.demand(3, reference="T-0")
    (job_id,) = bench.plan()
    bench.fail(job_id)
    held = people.demand(3, reference="T-1")
    people.hold(held, until=bench.now() + SOON)
    bound = people.demand(3, reference="T-2")
    bench.plan()
    people.cancel(held)
    with pytest.raises(Conflict, match="on hold by request"):
        people.retry(failed)
    bench.run_all()
    assert (people.status(failed), people.status(bound)) == ("needs_attention", "on_hold")


def test_a_hold_binds_by_the_models_of_the_request_that_was_held(bench: Bench) -> None:
    register(bench, "second")
    people = Office(bench, hold_share=1.0)
    held = people.demand(3, reference="T-1", models=["toy"])
    people.hold(held, until=bench.now() + SOON)
    of_all, of_second = people.demand(3, reference="T-2"), people.demand(3, reference="T-3", models=["second"])
    bench.run_all()
    assert [people.status(one) for one in (held, of_all, of_second)] == ["on_hold", "on_hold", "completed"]
    people.release(held)
    bench.run_all()
    assert [people.status(one) for one in (held, of_all)] == ["completed", "completed"]
    check_log(bench)


def test_after_a_withdrawal_releasing_one_that_was_bound_releases_all(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    held = people.demand(3, reference="T-1")
    people.hold(held, until=bench.now() + SOON)
    first, second = people.demand(3, reference="T-2"), people.demand(3, reference="T-3")
    bench.plan()
    people.cancel(held)
    later = people.demand(3, reference="T-4")
    bench.run_all()
    assert {people.status(one) for one in (first, second, later)} == {"on_hold"}
    people.release(second)
    bench.run_all()
    assert {people.status(one) for one in (first, second, later)} == {"completed"}


def test_to_release_one_hold_ends_no_other(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    held = people.demand(3, reference="T-1")
    other = people.demand(3, reference="T-2")
    people.hold(other, until=bench.now() + SOON, ground=HoldGround.CLARIFICATION)
    people.hold(held, until=bench.now() + SOON)
    bound = people.demand(3, reference="T-3")
    bench.plan()
    people.cancel(held)
    assert people.release(other) == "on_hold", "the data are on hold by the other one still"
    bench.run_all()
    assert (people.status(other), people.status(bound)) == ("on_hold", "on_hold")
    people.release(bound)
    bench.run_all()
    assert (people.status(other), people.status(bound)) == ("completed", "completed")


@pytest.mark.parametrize("waits", ["awaiting_identity", "pending"])
def test_who_waits_for_people_is_bound_at_once(bench: Bench, waits: str) -> None:
    policy = {"identity_needed": "low"} if waits == "awaiting_identity" else {"approval_policy": "all"}
    people = Office(bench, hold_share=1.0, **policy)
    waiting = people.demand(3, reference="T-1", level="none" if waits == "awaiting_identity" else "low")
    bench.plan()
    assert people.status(waiting) == waits
    held = people.demand(3, reference="T-2")
    people.hold(held, until=bench.now() + SOON)
    people.cancel(held)
    assert people.status(waiting) == "on_hold"
    people.release(waiting)
    bench.plan()
    assert people.status(waiting) == waits


def test_a_demand_that_comes_in_while_a_hold_is_being_released_is_not_bound_by_it(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    held = people.demand(3, reference="T-1")
    people.hold(held, until=bench.now() + SOON)
    released, planned = threading.Event(), threading.Event()

    def release() -> None:
        with transaction(bench.ctx.engine) as tx:
            decisions.release(tx, held, by=people.anna, now=bench.now(), settings=people.settings)
            released.set()
            planned.wait(2)

    def plan() -> None:
        bench.plan()
        planned.set()

    thread = threading.Thread(target=release)
    thread.start()
    assert released.wait(5)
    late = people.demand(3, reference="T-2")
    planner = threading.Thread(target=plan)
    planner.start()
    for one in (thread, planner):
        one.join()
    bench.run_all()
    assert (people.status(held), people.status(late)) == ("completed", "completed")


def test_a_bulk_decision_and_a_hold_do_not_deadlock(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    asked = people.demand(3, reference="T-1")
    bench.plan()
    begun, outcomes = threading.Event(), []

    def refuse_many() -> None:
        refusal = decisions.Refusal(ground=Ground.LEGAL_OBLIGATION)
        with transaction(bench.ctx.engine) as tx:

            def act(request_id: object) -> object:
                begun.set()
                time.sleep(0.5)
                return decisions.refuse(tx, asked, refusal, by=people.anna, now=bench.now(), settings=people.settings)

            outcomes.extend(decisions.each(tx, [asked], act))  # type: ignore[arg-type]

    thread = threading.Thread(target=refuse_many)
    thread.start()
    assert begun.wait(5)
    with pytest.raises(Conflict):  # it has been refused, and nothing worse
        people.hold(asked, until=bench.now() + SOON)
    thread.join()
    assert (people.status(asked), outcomes[0].error) == ("rejected", None)


def test_a_request_that_a_restore_put_on_hold_revives_no_hold_that_was_released(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    refused_in_part = people.demand(3, reference="T-1")
    people.hold(refused_in_part, until=bench.now() + SOON)
    people.release(refused_in_part)
    with transaction(bench.ctx.engine) as tx:
        recovery.hold_back(tx, refused_in_part, at=bench.now())
    other = people.demand(3, reference="T-2")
    bench.run_all()
    assert (people.status(refused_in_part), people.status(other)) == ("on_hold", "completed")
