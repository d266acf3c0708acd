"""What the planner makes of demands: policies, bursts, cooling off, and two demands for one person."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, func, select, text

from app import catalog, certificates, intake, planning
from app.domain.decisions import Ground, HoldGround
from app.errors import Conflict
from app.storage import requests, versions
from app.storage.sessions import transaction
from app.storage.tables import Forgotten, Job, Suppression, Target
from tests import toy
from tests.deciding import Office, check_log
from tests.pipeline import Bench, register
from workers import erase

pytestmark = pytest.mark.slow
SOON = timedelta(days=30)


def test_a_burst_that_would_ruin_a_model_waits_for_people_and_the_model_stays(bench: Bench) -> None:
    people = Office(bench, hold_share=0.1, hold_least=20)
    before = bench.live()
    strangers = [people.demand(90_000 + n) for n in range(20)]
    first = [people.demand(person) for person in range(40)]
    assert len(bench.plan()) == 1
    assert {people.status(i) for i in first} == {"queued"}  # a tenth of 400: nobody waits
    more = [people.demand(person) for person in range(40, 300)]
    bench.plan()
    assert {people.status(i) for i in first + more} == {"pending"}  # and those in the collecting job are called back
    assert {people.status(i) for i in strangers} == {"queued"}
    bench.run_all()
    assert bench.live().id == before.id
    request = bench.request(more[0])
    assert request.approvals_needed == 1
    assert request.reason == (
        "more than 10% of a model's people would go within a day; somebody else than the requester must agree"
    )
    people.approve(more[0])
    bench.run_all()
    assert people.status(more[0]) == "completed"
    assert {people.status(i) for i in first + more[1:]} == {"pending"}


def test_a_burst_is_counted_over_a_day_and_a_small_model_has_a_floor(bench: Bench) -> None:
    people = Office(bench, hold_share=0.001, hold_least=3)
    first = [people.demand(person) for person in range(3)]
    bench.run_all()
    assert {people.status(i) for i in first} == {"completed"}
    fourth = people.demand(3)
    bench.plan()
    assert people.status(fourth) == "pending"
    people.cancel(fourth)
    fifth = people.demand(4)
    with transaction(bench.ctx.engine) as tx:
        planning.plan(tx, now=bench.now() + timedelta(hours=25), settings=people.settings)
    assert people.status(fifth) == "queued"


def test_one_person_is_one_in_a_burst_however_many_demands_they_make(bench: Bench) -> None:
    people = Office(bench, hold_share=0.001, hold_least=1)
    ids = [people.demand(3, reference=f"T-{n}") for n in range(5)]
    bench.plan()
    assert {people.status(i) for i in ids} == {"queued"}


def test_what_was_agreed_to_is_neither_counted_nor_held_again(bench: Bench) -> None:
    people = Office(bench, hold_share=0.001, hold_least=2)
    many = [people.demand(person) for person in range(5)]
    bench.plan()
    for request_id in many:
        people.approve(request_id)
    bench.plan()
    assert {people.status(i) for i in many} == {"queued"}
    late = people.demand(10)
    bench.plan()
    assert people.status(late) == "queued"


def test_nobody_agrees_to_a_burst_of_their_own(bench: Bench) -> None:
    people = Office(bench, hold_share=0.001, hold_least=2)
    many = [people.demand(person) for person in range(5)]
    bench.plan()
    for request_id in many:
        with pytest.raises(Conflict, match="made the request"):
            people.approve(request_id, by=people.portal)
        assert people.approve(request_id, by=people.anna) == "approved"
        assert [d.kind for d in people.decided(request_id)] == ["burst", "approved"]
    bench.plan()
    assert {people.status(i) for i in many} == {"queued"}


def test_a_burst_asks_as_many_people_as_the_policy(bench: Bench) -> None:
    people = Office(bench, hold_share=0.001, hold_least=2, approvals_asked=2)
    first = [people.demand(person) for person in range(2)]
    bench.plan()
    assert {people.status(i) for i in first} == {"queued"}
    many = [*first, *(people.demand(person) for person in range(2, 5))]
    bench.plan()  # those queued are called back
    assert {(people.status(i), bench.request(i).approvals_needed) for i in many} == {("pending", 2)}
    assert {people.approve(i, by=people.anna) for i in many} == {"pending"}
    assert {people.approve(i, by=people.ben) for i in many} == {"approved"}
    bench.plan()
    assert {people.status(i) for i in many} == {"queued"}


def test_what_requesters_agreed_to_themselves_is_held_in_a_burst_and_needs_somebody_else(bench: Bench) -> None:
    people = Office(bench, hold_share=0.001, hold_least=2, approval_policy="all")
    many = [people.demand(person) for person in range(5)]
    bench.plan()
    assert {people.approve(i, by=people.portal) for i in many} == {"approved"}
    bench.plan()
    assert {people.status(i) for i in many} == {"pending"}
    assert {people.approve(i, by=people.anna) for i in many} == {"approved"}
    bench.plan()
    assert {people.status(i) for i in many} == {"queued"}


def test_a_request_can_be_taken_back_at_leisure_while_it_cools_off(bench: Bench) -> None:
    people = Office(bench, cooling_off_hours=24)
    request_id = people.demand(3)
    bench.plan()
    assert people.status(request_id) == "received"
    with transaction(bench.ctx.engine) as tx:
        planning.plan(tx, now=bench.now() + timedelta(hours=23, minutes=59), settings=people.settings)
    assert people.status(request_id) == "received"
    with transaction(bench.ctx.engine) as tx:
        planning.plan(tx, now=bench.now() + timedelta(hours=24), settings=people.settings)
    assert people.status(request_id) == "queued"


def test_two_demands_for_one_person_are_one_update_and_two_certificates(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    older, younger = people.demand(3, reference="T-1"), people.demand(3, reference="T-2")
    before = bench.live().number
    bench.run_all()
    assert bench.request(younger).duplicate_of == older
    assert bench.request(older).duplicate_of is None
    assert (people.status(older), people.status(younger)) == ("completed", "completed")
    assert bench.live().number == before + 1
    assert bench.certificate(older) != bench.certificate(younger)
    with transaction(bench.ctx.engine) as tx:
        assert tx.scalar(select(func.count()).select_from(Forgotten)) == 1  # one person
        assert tx.scalar(select(func.count()).select_from(Job)) == 1
    check_log(bench)


def test_a_demand_that_comes_while_an_older_one_is_worked_on_is_told_what_became_of_the_person(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    older = people.demand(3, reference="T-1")
    (first,) = bench.plan()
    with transaction(bench.ctx.engine) as tx:  # somebody has it: nobody joins any more
        tx.execute(text("UPDATE jobs SET fence = 1"))
    younger = people.demand(3, reference="T-2")
    second = bench.plan()[-1]
    assert second != first
    erase.run(bench.ctx, first)
    number = bench.live().number
    erase.run(bench.ctx, second)
    assert (people.status(older), people.status(younger)) == ("completed", "completed")
    with transaction(bench.ctx.engine) as tx:
        assert {row.result for row in requests.targets(tx, [younger])} == {"already_forgotten"}
    assert bench.live().number == number
    check_log(bench)


@pytest.mark.parametrize("act", ["cancel", "refuse", "hold"])
def test_when_the_older_one_stops_the_younger_goes_on_by_itself(bench: Bench, act: str) -> None:
    people = Office(bench, hold_share=1.0)
    older, younger = people.demand(3, reference="T-1"), people.demand(3, reference="T-2")
    bench.plan()
    assert bench.request(younger).duplicate_of == older
    more = {"until": bench.now() + SOON, "ground": HoldGround.CLARIFICATION} if act == "hold" else {}
    getattr(people, act)(older, **more)
    assert bench.request(younger).duplicate_of is None
    bench.run_all()
    assert people.status(younger) == "completed"


def test_who_nobody_vouched_for_neither_delays_nor_suppresses_anybody(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0, identity_needed="low")
    unverified = people.demand(3, level="none", reference="T-0")
    verified = people.demand(3, reference="T-1")
    bench.run_all()
    assert people.status(verified) == "completed"
    assert people.status(unverified) == "awaiting_identity"
    assert bench.request(verified).duplicate_of is None
    people.confirm(unverified)
    bench.run_all()
    assert people.status(unverified) == "completed"
    with transaction(bench.ctx.engine) as tx:
        assert {row.result for row in requests.targets(tx, [unverified])} == {"already_forgotten"}


@pytest.mark.parametrize(
    ("older", "younger", "joins"),
    [(None, None, True), (None, ["toy"], True), (["toy"], ["toy"], True), (["toy"], None, False)],
)
def test_an_older_demand_counts_if_it_asks_for_no_less(bench: Bench, older, younger, joins: bool) -> None:
    people = Office(bench, hold_share=1.0)
    first = people.demand(3, models=older, reference="T-1")
    second = people.demand(3, models=younger, reference="T-2")
    bench.plan()
    assert (bench.request(second).duplicate_of == first) is joins


def test_a_thousand_requests_are_planned_by_a_few_statements(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0, batch_requests=2000)
    insert = text(
        "INSERT INTO erasure_requests (id, ref, received_at, deadline, subject_key, client_id)"
        " SELECT gen_random_uuid(), md5(n::text), now(), now() + '30 d', coalesce(p.subject_key, gen_random_uuid()), :c"
        " FROM generate_series(1, 1000) n LEFT JOIN ("
        "   SELECT subject_key, row_number() OVER () AS n FROM postings WHERE split = 'train') p USING (n)"
    )
    with transaction(bench.ctx.engine) as tx:
        tx.execute(insert, {"c": people.portal})
    statements = []

    def count(*arguments: object) -> None:
        if threading.current_thread() is threading.main_thread():  # not the sequencer's
            statements.append(arguments[2])

    event.listen(bench.ctx.engine, "before_cursor_execute", count)
    began = time.monotonic()
    with transaction(bench.ctx.engine) as tx:
        assert planning.plan(tx, now=bench.now(), settings=people.settings) == 1000
    seconds = time.monotonic() - began
    print(f"1000 requests planned in {seconds:.2f} s by {len(statements)} statements")
    assert len(statements) < 20
    assert seconds < 10
    with transaction(bench.ctx.engine) as tx:
        statements.clear()
        planning.plan(tx, now=bench.now(), settings=people.settings)
    assert len(statements) <= 3  # an idle tick


# Ends


def test_what_is_refused_in_part_ends_in_part_and_says_what_stays(bench: Bench) -> None:
    register(bench, "second")
    people = Office(bench, hold_share=1.0)
    request_id = people.demand(3)
    people.refuse(request_id, Ground.LEGAL_CLAIMS, models=["second"])
    bench.run_all()
    assert people.status(request_id) == "partially_completed"
    said = predicate(bench, request_id)
    assert said["outcome"] == "partially_completed"
    assert [asset["model"] for asset in said["assets"]] == ["toy"]
    [kept] = said["retained"]
    assert (kept["models"], kept["ground"]) == (["second"], "art17_3_e_legal_claims")
    with transaction(bench.ctx.engine) as tx:
        rows = set(tx.scalars(select(Suppression.model)))
    assert rows == {"*", "!second"}
    register(bench, "second")  # the person may stay in there
    with pytest.raises(Conflict, match="names 1 people"):
        register(bench, "toy")
    check_log(bench)


def test_a_class_of_data_that_stays_leaves_no_model_out(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0)
    request_id, nobody = people.demand(3), people.demand(99_000)
    for one in (request_id, nobody):
        people.refuse(one, data_class="invoices")
    bench.run_all()
    assert {people.status(i) for i in (request_id, nobody)} == {"partially_completed"}  # also without data in a model
    assert predicate(bench, request_id)["retained"][0]["data_class"] == "invoices"
    assert predicate(bench, request_id)["assets"][0]["result"] == "forgotten"
    assert predicate(bench, nobody)["assets"][0]["result"] == "no_data"
    check_log(bench)


def test_every_other_end_is_a_true_story_too(bench: Bench) -> None:
    people = Office(bench, hold_share=1.0, identity_needed="low", suspend_while_awaiting_identity=True)
    refused, withdrawn, extended = people.demand(3), people.demand(4), people.demand(5)
    late = people.demand(6, level="none", at=bench.now() - timedelta(days=40))
    people.confirm(late)
    people.extend(extended)
    people.refuse(withdrawn, data_class="invoices")
    people.cancel(withdrawn)
    people.refuse(refused)
    bench.run_all()
    ends = [people.status(i) for i in (refused, withdrawn, extended, late)]
    assert ends == ["rejected", "cancelled", "completed", "completed"]
    assert predicate(bench, late)["in_time"] is True
    check_log(bench)


def test_a_rollback_repeats_what_was_done_and_leaves_alone_what_was_refused(bench: Bench) -> None:
    register(bench, "second")
    people = Office(bench, hold_share=1.0)
    request_id = people.demand(3)
    people.refuse(request_id, models=["second"])
    bench.run_all()
    second = live(bench, "second")
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
    assert people.status(request_id) == "queued"
    for act in (people.refuse, people.cancel, lambda i: people.hold(i, until=bench.now() + SOON), people.extend):
        with pytest.raises(Conflict, match="repeated after a rollback"):
            act(request_id)
    bench.run_all()
    assert people.status(request_id) == "partially_completed"
    assert live(bench, "second") == second
    assert not bench.undone()
    assert predicate(bench, request_id)["retained"][0]["models"] == ["second"]
    check_log(bench)


def test_when_one_model_fails_and_is_refused_the_rest_is_certified(bench: Bench) -> None:
    register(bench, "second")
    people = Office(bench, hold_share=1.0)
    request_id = people.demand(3)
    jobs_by_model = {bench.model_of(job_id): job_id for job_id in bench.plan()}
    erase.run(bench.ctx, jobs_by_model["toy"])
    bench.fail(jobs_by_model["second"])
    assert people.status(request_id) == "needs_attention"
    with pytest.raises(Conflict, match="have forgotten the person"):
        people.refuse(request_id, models=["toy"])
    assert people.refuse(request_id, models=["second"]) == "partially_completed"
    assert [asset["model"] for asset in predicate(bench, request_id)["assets"]] == ["toy"]
    with transaction(bench.ctx.engine) as tx:
        assert len(tx.scalars(select(Target).where(Target.request_id == request_id)).all()) == 1
    check_log(bench)


def predicate(bench: Bench, request_id: UUID) -> dict:
    return certificates.payload(bench.certificate(request_id))["predicate"]


def live(bench: Bench, name: str) -> UUID | None:
    with transaction(bench.ctx.engine) as tx:
        return versions.model(tx, name).current_version_id


# What a hostile client tried


def test_who_waits_for_people_is_not_forgotten_by_being_sent_again_alone(bench: Bench) -> None:
    people = Office(bench, hold_share=0.05, hold_least=5)  # 20 of 400
    many = [intake.Filing(intake.Demand(user_id=toy.user_id(person)), people.portal) for person in range(60)]
    with transaction(bench.ctx.engine) as tx:
        intake.accept_many(tx, many, now=bench.now(), settings=people.settings, batch=intake.Batch(uuid4(), 2))
    same_tick = people.demand(0, reference="at once")
    bench.plan()
    later = [people.demand(person, reference="alone") for person in range(60)]
    for _ in range(3):
        bench.run_all()
    assert {one.status for one in people.requests()} == {"pending"}
    assert {(r.approvals_needed, r.duplicate_of) for r in map(bench.request, [same_tick, *later])} == {(2, None)}
    people.approve(later[0], by=people.anna)
    assert people.approve(later[0], by=people.ben) == "approved"
    bench.run_all()
    assert people.status(later[0]) == "completed"


def test_a_day_counts_everybody_who_went_whatever_demand_they_are_linked_to(bench: Bench) -> None:
    people = Office(bench, hold_share=0.001, hold_least=3)
    idle = people.demand(90_000)
    people.hold(idle, until=bench.now() + SOON)
    first = [people.demand(person) for person in range(3)]
    bench.plan()
    linked = text("UPDATE erasure_requests SET duplicate_of = CASE WHEN id = :a THEN CAST(:idle AS uuid) END")
    with transaction(bench.ctx.engine) as tx:  # to one that nobody works on
        tx.execute(linked, {"a": first[0], "idle": idle})
    bench.run_all()
    assert {people.status(i) for i in first} == {"completed"}
    fourth = people.demand(3)
    bench.plan()
    assert people.status(fourth) == "pending"


def test_what_is_called_back_to_people_serves_nobody_meanwhile(bench: Bench) -> None:
    people = Office(bench, hold_share=0.001, hold_least=2)
    older, younger = people.demand(3, reference="T-1"), people.demand(3, reference="T-2")
    bench.plan()
    assert bench.request(younger).duplicate_of == older
    more = [people.demand(person) for person in range(10, 15)]
    bench.plan()
    assert {people.status(i) for i in [older, younger, *more]} == {"pending"}
    assert bench.request(younger).duplicate_of is None


def test_a_full_job_of_one_model_does_not_stop_requests_for_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(bench, "second")
    people = Office(bench, hold_share=1.0, batch_requests=1)
    monkeypatch.setattr(planning, "_LOOK_AHEAD", 5)
    for person in range(10):
        people.demand(person, models=["toy"])
    other, refused = people.demand(30, models=["second"]), people.demand(31)
    bench.plan()
    bench.plan()
    assert people.status(other) == "queued"
    with transaction(bench.ctx.engine) as tx:
        tx.execute(text("UPDATE jobs SET fence = 1 WHERE model_id = (SELECT id FROM models WHERE name = 'second')"))
    people.refuse(refused, models=["toy"])  # the full job is none of its
    bench.plan()
    assert people.status(refused) == "queued"
