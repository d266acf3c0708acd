"""Two demands for one person: what one is told when the other had the person forgotten, and holds that bind both."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text

from app import catalog, certificates, decisions
from app.domain.decisions import HOLDS_OF_DATA, ExtensionReason, HoldGround
from app.errors import Conflict
from app.storage import requests
from app.storage.sessions import transaction
from app.storage.tables import ErasureRequest
from tests.deciding import Office, check_log
from tests.integration.test_decisions import begin
from tests.pipeline import Bench, register
from workers import erase

pytestmark = pytest.mark.slow
SOON = timedelta(days=30)


def told(bench: Bench, request_id: UUID) -> dict[str, str | None]:
    """What became of the request with each model."""
    with transaction(bench.ctx.engine) as tx:
        return {row.name: row.result for row in requests.targets(tx, [request_id])}


def certified(bench: Bench, request_id: UUID) -> dict[str, str]:
    assets = certificates.payload(bench.certificate(request_id))["predicate"]["assets"]
    return {asset["model"]: asset["result"] for asset in assets}


# Who was forgotten by somebody else's request


@pytest.mark.parametrize("waits", ["on_hold", "awaiting_identity", "needs_attention", "received"])
def test_who_waited_while_another_request_had_the_person_forgotten_is_told_so(bench: Bench, waits: str) -> None:
    people = Office(bench, hold_share=1.0, identity_needed="low")
    older = people.demand(3, reference="T-1", level="none" if waits == "awaiting_identity" else "low")
    if waits == "on_hold":
        people.hold(older, until=bench.now() + SOON, ground=HoldGround.CLARIFICATION)
    if waits == "needs_attention":
        (job_id,) = bench.plan()
        bench.fail(job_id)
    if waits == "received":
        people.hold(older, until=bench.now() + SOON, ground=HoldGround.CLARIFICATION)
    younger = people.demand(3, reference="T-2")
    (job_id, *_) = bench.plan()
    if waits == "received":
        with transaction(bench.ctx.engine) as tx:  # somebody has the younger one's job: nobody joins any more
            tx.execute(text("UPDATE jobs SET fence = 1"))
        people.release(older)
        bench.plan()
    erase.run(bench.ctx, job_id)
    assert told(bench, younger) == {"toy": "forgotten"}
    links = (bench.request(older).duplicate_of, bench.request(younger).duplicate_of)
    assert links == ((None, older) if waits == "needs_attention" else (younger, None))
    number = bench.live().number
    go_on = {"on_hold": people.release, "awaiting_identity": people.confirm, "needs_attention": people.retry}
    if waits in go_on:
        assert people.status(older) == waits
        go_on[waits](older)
    bench.run_all()
    assert people.status(older) == "completed"
    assert told(bench, older) == certified(bench, older) == {"toy": "already_forgotten"}
    assert bench.live().number == number
    check_log(bench)


def test_who_was_forgotten_by_several_requests_one_model_each_is_told_of_every_model(bench: Bench) -> None:
    register(bench, "second")
    register(bench, "third", without=(3,))
    people = Office(bench, hold_share=1.0)
    older = people.demand(3, reference="T-1")
    people.hold(older, until=bench.now() + SOON, ground=HoldGround.CLARIFICATION)
    for model in ("toy", "second", "third"):
        people.demand(3, reference=model, models=[model])
        bench.run_all()
    people.release(older)
    bench.run_all()
    assert told(bench, older) == {"toy": "already_forgotten", "second": "already_forgotten", "third": "no_data"}
    check_log(bench)


def test_a_link_to_who_had_the_person_forgotten_outlives_links_to_who_only_meant_to(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    oldest, older = people.demand(3, reference="T-1"), people.demand(3, reference="T-2")
    for one in (oldest, older):
        people.hold(one, until=bench.now() + SOON, ground=HoldGround.CLARIFICATION)
    younger = people.demand(3, reference="T-3")
    bench.run_all()
    for one in (oldest, older):
        people.release(one)
    bench.plan()
    people.cancel(oldest)
    assert bench.request(older).duplicate_of == younger
    bench.run_all()
    assert told(bench, older) == {"toy": "already_forgotten"}


def test_who_waits_is_told_so_also_when_it_goes_on_beside_a_repetition(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    older = people.demand(3, reference="T-1")
    people.hold(older, until=bench.now() + SOON, ground=HoldGround.CLARIFICATION)
    younger = people.demand(3, reference="T-2")
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=people.settings)
    people.release(older)
    bench.run_all()
    assert (people.status(older), people.status(younger)) == ("completed", "completed")
    assert told(bench, older) == {"toy": "already_forgotten"}
    assert bench.undone() == []
    check_log(bench)


def test_somebody_of_whom_nothing_was_found_leaves_no_link(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    older = people.demand(99_000, reference="T-1")
    people.hold(older, until=bench.now() + SOON, ground=HoldGround.CLARIFICATION)
    people.demand(99_000, reference="T-2")
    bench.run_all()
    people.release(older)
    bench.run_all()
    assert (people.status(older), bench.request(older).duplicate_of) == ("no_data", None)


# Holds of a person's data


@pytest.mark.parametrize("ground", sorted(HOLDS_OF_DATA))
def test_a_hold_of_the_data_binds_every_request_for_the_person_until_it_is_released(bench: Bench, ground: str) -> None:
    people = Office(bench, hold_share=1.0)
    first = people.demand(3, reference="T-1")
    until = bench.now() + SOON
    people.hold(first, until=until, ground=ground)
    again, other = people.demand(3, reference="T-2"), people.demand(4)
    before = bench.live_weights()[0, 3].item()
    bench.run_all()
    assert (people.status(again), people.status(other)) == ("on_hold", "completed")
    assert bench.live_weights()[0, 3].item() == pytest.approx(before, abs=0.01)
    [held] = people.decided(again)
    assert (held.kind, held.ground, held.until, held.client_id) == ("held", ground, until, None)
    assert bench.request(again).reason == bench.request(first).reason
    assert "decision.held" in people.events(again)
    bench.plan()
    assert len(people.decided(again)) == 1
    people.release(first)
    assert [d.kind for d in people.decided(again)] == ["held", "released"]
    bench.run_all()
    assert (people.status(first), people.status(again)) == ("completed", "completed")
    assert abs(bench.live_weights()[0, 3]) < 1e-6
    check_log(bench)


@pytest.mark.parametrize("held", ["older", "younger"])
def test_a_hold_of_the_data_calls_back_what_is_queued_for_the_person(bench: Bench, held: str) -> None:
    people = Office(bench, hold_share=1.0)
    ids = [people.demand(3, reference="T-1"), people.demand(3, reference="T-2")]
    bench.plan()
    assert {people.status(i) for i in ids} == {"queued"}
    people.hold(ids[held == "younger"], until=bench.now() + SOON)
    assert {people.status(i) for i in ids} == {"on_hold"}
    assert told(bench, ids[0]) == told(bench, ids[1]) == {}
    bench.run_all()
    assert {people.status(i) for i in ids} == {"on_hold"}
    people.release(ids[held == "younger"])
    bench.run_all()
    assert {people.status(i) for i in ids} == {"completed"}


def test_a_request_that_only_another_one_holds_is_not_released_by_itself(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    first = people.demand(3, reference="T-1")
    people.hold(first, until=bench.now() + SOON)
    bound = [people.demand(3, reference="T-2"), people.demand(3, reference="T-3")]
    bench.plan()
    for again in bound:
        with pytest.raises(Conflict, match=f"on hold by request {first}"):
            people.release(again)
        assert people.status(again) == "on_hold"


def test_of_two_holds_that_people_decided_each_is_released_by_itself(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    first, again = people.demand(3, reference="T-1"), people.demand(3, reference="T-2")
    people.hold(first, until=bench.now() + SOON, ground=HoldGround.CLARIFICATION)
    people.hold(again, until=bench.now() + SOON)
    people.release(first)
    bench.plan()
    assert people.status(first) == "on_hold"  # the other one's
    people.hold(third := people.demand(3, reference="T-3"), until=bench.now() + SOON)
    assert people.release(again) == "on_hold"  # the third one's, at once
    bench.plan()
    assert {people.status(i) for i in (first, again, third)} == {"on_hold"}
    people.release(third)
    bench.run_all()
    assert {people.status(i) for i in (first, again, third)} == {"completed"}


def test_to_withdraw_the_request_that_is_held_and_send_it_again_is_no_way_around_the_hold(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    first = people.demand(3, reference="T-1")
    people.hold(first, until=bench.now() + SOON)
    again = people.demand(3, reference="T-2")
    bench.plan()
    people.cancel(first)
    third = people.demand(3, reference="T-3")
    bench.plan()
    assert (people.status(again), people.status(third)) == ("on_hold", "on_hold")
    people.release(again)
    bench.run_all()
    assert (people.status(again), people.status(third)) == ("completed", "completed")


def test_a_hold_stops_neither_what_has_begun_nor_what_asks_for_other_models(bench: Bench) -> None:
    register(bench, "second")
    people = Office(bench, hold_share=1.0)
    started = people.demand(3, reference="T-1", models=["toy"])
    (job_id,) = bench.plan()
    begin(bench, job_id)
    held, other = people.demand(3, reference="T-2", models=["toy"]), people.demand(3, models=["second"])
    people.hold(held, until=bench.now() + SOON)
    assert people.status(started) == "in_progress"
    bench.expire_leases()
    bench.run_all()
    assert [people.status(i) for i in (started, held, other)] == ["completed", "on_hold", "completed"]
    people.release(held)
    bench.run_all()
    assert told(bench, held) == {"toy": "already_forgotten"}


def test_nothing_is_tried_again_past_a_hold(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    failed = people.demand(3, reference="T-1")
    (job_id,) = bench.plan()
    bench.fail(job_id)
    held = people.demand(3, reference="T-2")
    people.hold(held, until=bench.now() + SOON)
    with pytest.raises(Conflict, match=f"on hold by request {held}"):
        people.retry(failed)
    people.release(held)
    assert people.retry(failed) == "queued"


def test_a_demand_that_comes_in_while_the_hold_is_being_decided_is_bound_by_it(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    first, decided = people.demand(3, reference="T-1"), threading.Event()

    def officer() -> None:
        with transaction(bench.ctx.engine) as tx:
            more = {"ground": HoldGround.LEGAL_HOLD, "until": bench.now() + SOON, "by": people.anna}
            decisions.hold(tx, first, now=bench.now(), settings=people.settings, **more)
            decided.set()
            time.sleep(1)  # the planner waits for the decision meanwhile

    thread = threading.Thread(target=officer)
    thread.start()
    assert decided.wait(10)
    again = people.demand(3, reference="T-2")
    bench.plan()
    thread.join()
    assert people.status(again) == "on_hold"


# Locks


def test_a_bulk_decision_and_a_job_that_want_the_same_requests_do_not_deadlock(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    older, younger = against_the_ids(people)
    (job_id,) = bench.plan()
    begun = threading.Event()

    def officer() -> None:
        def extend(request_id: UUID) -> ErasureRequest:
            extension = decisions.Extension(further_months=1, reason=ExtensionReason.NUMBER)
            more = {"by": people.anna, "now": bench.now(), "settings": people.settings}
            done = decisions.extend(tx, request_id, extension, **more)
            begun.set()
            time.sleep(0.5)
            return done

        with transaction(bench.ctx.engine) as tx:
            outcomes.extend(decisions.each(tx, [older, younger], extend))

    outcomes: list[decisions.Outcome] = []
    thread = threading.Thread(target=officer)
    thread.start()
    assert begun.wait(10)
    with transaction(bench.ctx.engine) as tx:
        served = [request.id for request, _ in requests.of_job(tx, job_id)]
    thread.join()
    assert {older, younger} <= set(served)
    assert [one.error for one in outcomes] == [None, None]


def against_the_ids(people: Office) -> tuple[UUID, UUID]:
    """Two requests of which the older one has the greater id."""
    older = people.demand(10)
    for person in range(11, 80):
        younger = people.demand(person)
        if younger < older:
            return older, younger
        older = max(older, younger)
    raise AssertionError("70 ids in ascending order")


# What a rollback repeats


def test_a_repetition_that_is_tried_again_says_nothing_of_models_registered_since(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    request_id = people.demand(3)
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=people.settings)
    (job_id,) = bench.plan()
    register(bench, "since", without=(3,))
    bench.fail(job_id)
    people.retry(request_id)
    bench.run_all()
    assert people.status(request_id) == "completed"
    assert told(bench, request_id) == certified(bench, request_id) == {"toy": "forgotten"}
    assert bench.undone() == []
    check_log(bench)


def test_a_rollback_repeats_nothing_for_who_had_no_data_in_that_model(bench: Bench) -> None:
    register(bench, "second", without=(3,))
    people = Office(bench, hold_share=1.0)
    mine, other = people.demand(3), people.demand(4)
    bench.run_all()
    assert told(bench, mine) == {"toy": "forgotten", "second": "no_data"}
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "second", to=1, now=bench.now(), settings=people.settings)
    assert (people.status(mine), people.status(other)) == ("completed", "queued")
    bench.run_all()
    assert told(bench, mine) == {"toy": "forgotten", "second": "no_data"}
    assert told(bench, other) == {"toy": "forgotten", "second": "forgotten"}


def test_what_a_rollback_undid_for_a_request_that_is_still_open_is_told_as_forgotten(bench: Bench) -> None:
    register(bench, "second")
    people = Office(bench, hold_share=1.0)
    request_id = people.demand(3)
    by_model = {bench.model_of(job_id): job_id for job_id in bench.plan()}
    erase.run(bench.ctx, by_model["toy"])
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=people.settings)
    erase.run(bench.ctx, by_model["second"])
    bench.run_all()
    assert people.status(request_id) == "completed"
    assert told(bench, request_id) == certified(bench, request_id) == {"toy": "forgotten", "second": "forgotten"}
    assert bench.undone() == []
    check_log(bench)
