"""What people decide about requests: every use case against PostgreSQL, what it allows and what it refuses."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import relativedelta
from sqlalchemy import func, select, text

from app import certificates, decisions, notices
from app.domain.decisions import EXPLAINED, Ground, HoldGround, IdentityLevel, Notice
from app.domain.lifecycle import WAITING
from app.errors import Conflict, Invalid, NotFound
from app.storage import audit, jobs, requests
from app.storage import decisions as stored
from app.storage.sessions import transaction
from app.storage.tables import AuditEntry, Decision, Event, Suppression, Target
from tests import toy
from tests.deciding import Office
from tests.pipeline import Bench, register
from workers import erase

pytestmark = pytest.mark.slow
SOON = timedelta(days=30)


def office(bench: Bench, **policy: object) -> Office:
    return Office(bench, **{"hold_share": 1.0, **policy})


def test_what_nobody_vouches_for_waits_and_goes_on_when_somebody_does(bench: Bench) -> None:
    people = office(bench, identity_needed="substantial")
    request_id = people.demand(3, level="low")
    bench.plan()
    assert people.status(request_id) == "awaiting_identity"
    with pytest.raises(Invalid, match="from the level substantial on"):
        people.confirm(request_id, "low")
    assert people.confirm(request_id, "high") == "received"
    assert bench.request(request_id).identity_level == "high"
    with pytest.raises(Conflict, match="only one that awaits identity"):
        people.confirm(request_id, "high")
    assert [d.kind for d in people.decided(request_id)] == ["identity_confirmed"]
    bench.plan()
    assert people.status(request_id) == "queued"


def test_by_policy_the_month_begins_with_the_confirmation_and_receipt_stays(empty: Bench) -> None:
    received, confirmed = datetime(2027, 1, 31, 23, 30, tzinfo=UTC), datetime(2027, 2, 20, 9, tzinfo=UTC)
    for suspends, due in ((False, "2027-03-01"), (True, "2027-03-20")):  # 1 February in Berlin
        people = office(
            empty, identity_needed="low", suspend_while_awaiting_identity=suspends, time_zone="Europe/Berlin"
        )
        request_id = people.demand(3 + suspends, level="none", at=received)
        people.confirm(request_id, at=confirmed)
        request = empty.request(request_id)
        assert request.received_at == received
        assert request.clock_from == (confirmed if suspends else None)
        assert request.deadline.astimezone(people.settings.zone).date().isoformat() == due


def test_two_must_agree_nobody_twice_and_not_who_asked(bench: Bench) -> None:
    people = office(bench, approval_policy="all", approvals_asked=2)
    request_id = people.demand(3)
    bench.plan()
    assert people.status(request_id) == "pending"
    with pytest.raises(Conflict, match="made the request"):
        people.approve(request_id, by=people.portal)
    assert people.approve(request_id, by=people.anna) == "pending"
    with pytest.raises(Conflict, match="somebody else must"):
        people.approve(request_id, by=people.anna)
    bench.plan()
    assert people.status(request_id) == "pending"
    assert people.approve(request_id, by=people.ben) == "approved"
    with pytest.raises(Conflict, match="only one that is pending"):
        people.approve(request_id, by=people.portal)
    bench.run_all()
    assert people.status(request_id) == "completed"
    assert people.events(request_id).count("decision.approved") == 2


def test_where_one_must_agree_it_may_be_who_asked(bench: Bench) -> None:
    people = office(bench, approval_policy="all")
    request_id = people.demand(3)
    bench.plan()
    assert people.approve(request_id, by=people.portal) == "approved"


def test_a_hold_takes_a_request_out_of_its_jobs_and_a_release_puts_it_back(bench: Bench) -> None:
    people = office(bench)
    request_id, other = people.demand(3), people.demand(4)
    (job_id,) = bench.plan()
    until = bench.now() + SOON
    assert people.hold(request_id, until=until) == "on_hold"
    with transaction(bench.ctx.engine) as tx:
        assert tx.scalars(select(Target.request_id).where(Target.job_id == job_id)).all() == [other]
    with pytest.raises(Conflict, match="on hold already"):
        people.hold(request_id, until=until)
    bench.run_all()
    assert (people.status(request_id), people.status(other)) == ("on_hold", "completed")
    with transaction(bench.ctx.engine) as tx:
        assert tx.scalar(select(func.count()).select_from(Suppression)) == 1  # the other's
    assert people.release(request_id) == "received"
    with pytest.raises(Conflict, match="only one that is on hold"):
        people.release(request_id)
    bench.run_all()
    assert people.status(request_id) == "completed"
    [held, released] = people.decided(request_id)
    assert (held.kind, held.ground, held.until) == ("held", "legal_hold", until)
    assert released.kind == "released"


def test_what_awaited_identity_before_a_hold_awaits_it_after(empty: Bench) -> None:
    people = office(empty, identity_needed="low")
    request_id = people.demand(3, level="none")
    people.hold(request_id, until=empty.now() + SOON)
    assert people.release(request_id) == "awaiting_identity"


def test_a_hold_needs_a_day_to_come(empty: Bench) -> None:
    people = office(empty)
    request_id = people.demand(3)
    with pytest.raises(Invalid, match="lies in the future"):
        people.hold(request_id, until=empty.now() - SOON)


def test_days_are_the_controllers_in_a_holds_reason_and_on_the_certificate(bench: Bench) -> None:
    elsewhere = ("Pacific/Kiritimati", "Pacific/Pago_Pago")  # in one of them it is always another day than in UTC
    zone = next(z for z in elsewhere if bench.now().astimezone(ZoneInfo(z)).date() != bench.now().date())
    register(bench, "second")
    people = office(bench, time_zone=zone)
    request_id = people.demand(3)
    people.hold(request_id, until=datetime(2999, 1, 15, tzinfo=ZoneInfo(zone)))
    assert bench.request(request_id).reason == "legal_hold, to be reviewed on 2999-01-15"
    people.release(request_id)
    people.refuse(request_id, models=["second"])
    bench.run_all()
    said = certificates.payload(bench.certificate(request_id))["predicate"]
    today = bench.now().astimezone(ZoneInfo(zone)).date().isoformat()
    assert [kept["decided"] for kept in said["retained"]] == [said["completed"]] == [today]


def test_what_is_taken_back_says_once_by_whom(empty: Bench) -> None:
    people = office(empty)
    request_id = people.demand(3)
    assert people.cancel(request_id) == people.cancel(request_id) == "cancelled"
    assert [(d.kind, d.client_id) for d in people.decided(request_id)] == [("cancelled", people.portal)]


def test_everything_that_waits_can_be_held_refused_and_taken_back(bench: Bench) -> None:
    people = office(bench, identity_needed="low")
    made = {
        "received": lambda: people.demand(10),
        "awaiting_identity": lambda: people.demand(11, level="none"),
        "on_hold": lambda: held(people, people.demand(12)),
        "queued": lambda: planned(people, people.demand(13)),
        "pending": lambda: asked(people, people.demand(14)),
        "approved": lambda: agreed(people, people.demand(15)),
    }
    assert set(made) == WAITING
    for act, then in ((people.refuse, "rejected"), (people.cancel, "cancelled")):
        for status, make in made.items():
            request_id = make()
            assert people.status(request_id) == status
            assert act(request_id) == then, status
            request = bench.request(request_id)
            assert (request.subject_key, request.suppression_key, request.sealed_user_id, request.dedupe_key) == (
                None,
            ) * 4
            assert request.reason
            with transaction(bench.ctx.engine) as tx:
                assert audit.key_of(tx, request_id, audit.WORKING) is None
                assert not tx.scalars(select(Target).where(Target.request_id == request_id)).all()
    for status, make in made.items():
        if status != "on_hold":
            assert held(people, make())


def held(people: Office, request_id):
    people.hold(request_id, until=people.bench.now() + SOON)
    return request_id


def planned(people: Office, request_id):
    people.bench.plan()
    return request_id


def asked(people: Office, request_id):
    """Wait for an approval that this request alone needs."""
    with transaction(people.bench.ctx.engine) as tx:
        tx.execute(text("UPDATE erasure_requests SET approvals_needed = 1 WHERE id = :id"), {"id": request_id})
    return planned(people, request_id)


def agreed(people: Office, request_id):
    people.approve(asked(people, request_id))
    return request_id


def test_what_is_worked_on_or_over_can_be_decided_no_more(bench: Bench) -> None:
    people = office(bench)
    done = people.demand(3)
    bench.run_all()
    running = people.demand(5)
    (job_id,) = bench.plan()
    begin(bench, job_id)
    assert (people.status(done), people.status(running)) == ("completed", "in_progress")
    until = bench.now() + SOON
    for request_id, why in ((done, "completed"), (running, "in_progress")):
        for act in (
            people.approve,
            people.refuse,
            people.cancel,
            people.release,
            people.confirm,
            people.retry,
            lambda i: people.hold(i, until=until),
        ):
            with pytest.raises(Conflict, match=why):
                act(request_id)
    with pytest.raises(Conflict, match="its clock has stopped"):
        people.extend(done)


def begin(bench: Bench, job_id) -> None:
    """Take a job as far as the announcement that its work begins."""
    from workers.lease import Lease  # noqa: PLC0415 - torch

    with transaction(bench.ctx.engine) as tx:
        held_job = jobs.claim(tx, job_id, lease=bench.ctx.settings.lease, max_attempts=5)
    assert held_job is not None
    with Lease(bench.ctx, held_job) as lease:
        assert erase.advance(bench.ctx, lease)


def test_what_needs_attention_can_be_refused_only_if_its_work_never_began(empty: Bench) -> None:
    people = office(empty)
    never = people.demand(3)
    empty.plan()  # no model
    assert people.status(never) == "needs_attention"
    assert people.refuse(never) == "rejected"
    register(empty)
    begun = people.demand(4)
    (job_id,) = empty.plan()
    begin(empty, job_id)
    empty.fail(job_id)
    assert people.status(begun) == "needs_attention"
    for act in (people.refuse, people.cancel):
        with pytest.raises(Conflict, match="has begun"):
            act(begun)
    assert people.retry(begun) == "queued"
    assert [d.kind for d in people.decided(begun)] == ["retried"]
    for act in (people.cancel, lambda i: people.hold(i, until=empty.now() + SOON)):
        with pytest.raises(Conflict, match="has begun"):
            act(begun)
    empty.run_all()
    assert people.status(begun) == "completed"


@pytest.mark.parametrize("ground", sorted(EXPLAINED))
def test_a_ground_that_says_nothing_by_itself_needs_an_explanation(empty: Bench, ground: Ground) -> None:
    people = office(empty)
    request_id = people.demand(3)
    for empty_words in (None, "", "  \n"):
        with pytest.raises(Invalid, match="needs an explanation"):
            people.refuse(request_id, ground, explanation=empty_words)
    assert people.refuse(request_id, ground, explanation="erasure would break the cohort study") == "rejected"


def test_refusing_all_models_one_by_one_is_refusing_the_request(bench: Bench) -> None:
    register(bench, "second")
    people = office(bench)
    request_id = people.demand(3)
    with pytest.raises(Invalid, match="none of this request's"):
        people.refuse(request_id, models=["nobody-knows"])
    assert people.refuse(request_id, models=["second"]) == "received"
    with pytest.raises(Conflict, match="already"):
        people.refuse(request_id, models=["second"])
    assert people.refuse(request_id, models=["toy"]) == "rejected"
    with transaction(bench.ctx.engine) as tx:
        assert not tx.scalar(select(func.count()).select_from(Suppression))


@pytest.mark.parametrize(
    ("received", "zone", "decided", "months"),
    [
        ("2027-01-31T12:00+00:00", "UTC", "2027-02-28T23:59:59.999999+00:00", 2),
        ("2027-01-31T12:00+00:00", "UTC", "2027-01-31T12:00+00:00", 1),
        ("2027-12-31T12:00+00:00", "UTC", "2028-01-31T23:59+00:00", 2),  # to 31 March, over a leap day
        ("2027-11-30T12:00+00:00", "UTC", "2027-12-30T12:00+00:00", 2),  # to 29 February
        ("2027-01-30T23:30+00:00", "Europe/Berlin", "2027-02-28T22:59+00:00", 2),  # received on the 31st there
        ("2027-08-31T21:30+00:00", "Europe/Berlin", "2027-09-30T21:59+00:00", 2),  # summer time ends meanwhile
        ("2027-03-01T04:30+00:00", "America/New_York", "2027-03-28T12:00+00:00", 2),  # 28 February there
    ],
)
def test_an_extension_is_counted_from_receipt_as_dateutil_counts(
    empty: Bench, received: str, zone: str, decided: str, months: int
) -> None:
    people = office(empty, time_zone=zone)
    arrived, moment = datetime.fromisoformat(received), datetime.fromisoformat(decided)
    request_id = people.demand(3, at=arrived)
    people.extend(request_id, months, at=moment)
    local = ZoneInfo(zone)
    oracle = arrived.astimezone(local).date() + relativedelta(months=1 + months)
    assert empty.request(request_id).deadline.astimezone(local).date() == oracle
    with pytest.raises(Conflict, match="allows it once"):
        people.extend(request_id, 1, at=moment)


def test_an_extension_comes_too_late_a_moment_after_the_first_month(empty: Bench) -> None:
    people = office(empty)
    request_id = people.demand(3, at=datetime(2027, 1, 31, tzinfo=UTC))
    with pytest.raises(Conflict, match="first month is over"):
        people.extend(request_id, at=datetime(2027, 3, 1, tzinfo=UTC))
    with pytest.raises(Invalid, match="between receipt and now"):
        people.extend(request_id, at=datetime(2027, 2, 2, tzinfo=UTC), notified_at=datetime(2027, 2, 3, tzinfo=UTC))


def test_a_suspended_clock_is_extended_from_where_it_began(empty: Bench) -> None:
    people = office(empty, identity_needed="low", suspend_while_awaiting_identity=True)
    request_id = people.demand(3, level="none", at=datetime(2027, 1, 1, tzinfo=UTC))
    with pytest.raises(Conflict, match="begins when"):
        people.extend(request_id, at=datetime(2027, 1, 2, tzinfo=UTC))
    people.confirm(request_id, at=datetime(2027, 2, 10, tzinfo=UTC))
    people.extend(request_id, 2, at=datetime(2027, 3, 10, tzinfo=UTC))
    assert empty.request(request_id).deadline.date().isoformat() == "2027-05-10"


def test_each_of_many_has_its_own_outcome(bench: Bench) -> None:
    people = office(bench, approval_policy="all")
    ids = [people.demand(person) for person in range(3)]
    bench.plan()
    people.cancel(ids[1])
    with transaction(bench.ctx.engine) as tx:
        found = decisions.each(tx, [*ids, ids[0]], lambda i: decisions.approve(tx, i, by=people.anna, now=bench.now()))
    assert [one.request_id for one in found] == ids
    assert [one.request.status if one.request else type(one.error) for one in found] == [
        "approved",
        Conflict,
        "approved",
    ]
    assert [people.status(i) for i in ids] == ["approved", "cancelled", "approved"]
    kinds = [[decision.kind for decision in people.decided(i)] for i in ids]
    assert kinds == [["approved"], ["cancelled"], ["approved"]]


def test_each_decision_that_the_log_has_a_word_for_is_in_it(empty: Bench) -> None:
    people = office(empty, identity_needed="low")
    request_id = people.demand(3, level="none")
    people.confirm(request_id)
    people.extend(request_id)
    people.refuse(request_id, data_class="invoices")
    with transaction(empty.ctx.engine) as tx:
        mine = select(AuditEntry.type).where(AuditEntry.request_id == request_id).order_by(AuditEntry.id)
        assert tx.scalars(mine).all() == [
            "request.received",
            "request.identity_confirmed",
            "request.extended",
            "request.refused",
        ]
        assert [d.kind for d in stored.of_request(tx, request_id)] == ["identity_confirmed", "extended", "refused"]


def test_a_decision_is_the_last_word_of_nobody_who_has_no_request(empty: Bench) -> None:
    people = office(empty)
    for act in (people.approve, people.refuse, people.release, people.retry, people.confirm, people.extend):
        with pytest.raises(NotFound):
            act(people.anna)
    with transaction(empty.ctx.engine) as tx:
        assert not tx.scalar(select(func.count()).select_from(Decision))


def test_no_model_is_registered_against_who_is_held_or_refused_for_it(bench: Bench) -> None:
    """What waits for people does not stop a registration; what nobody stopped does."""
    people = office(bench)
    waiting, kept = people.demand(3), people.demand(4)
    people.hold(waiting, until=bench.now() + SOON)
    people.refuse(kept)
    register(bench)
    people.release(waiting)
    with pytest.raises(Conflict, match="names 1 people"):
        register(bench)


def text_of(people: Office, request_id, kind: Notice, language: str = "en") -> str:
    with transaction(people.bench.ctx.engine) as tx:
        request = people.bench.request(request_id)
        return notices.text_of(tx, request, kind, language, people.settings)


def test_a_refusal_is_told_with_reasons_and_remedies_and_without_the_person(empty: Bench) -> None:
    people = office(empty, controller="Acme AG", contact="dpo@acme.example", authority="BlnBDI")
    request_id = people.demand(3, reference="T-9")
    people.refuse(request_id, "art17_3_e_legal_claims", explanation="A lawsuit is pending.")
    english, german = (text_of(people, request_id, Notice.REFUSAL, language) for language in ("en", "de"))
    for said in ("Acme AG", "dpo@acme.example", "BlnBDI", "T-9", "A lawsuit is pending.", str(request_id)):
        assert said in english
        assert said in german
    for said in ("legal claims (Art. 17(3)(e) GDPR)", "supervisory authority", "Art. 77", "judicial remedy", "Art. 79"):
        assert said in english
    for said in ("Rechtsansprüchen", "Aufsichtsbehörde", "Art. 77", "Rechtsbehelf", "Art. 79"):
        assert said in german
    assert toy.user_id(3) not in english + german
    with pytest.raises(NotFound, match="owes no notice of completion"):
        text_of(people, request_id, Notice.COMPLETION)


def test_every_ground_has_plain_words_in_every_language(empty: Bench) -> None:
    people = office(empty)
    for person, ground in enumerate(Ground):
        request_id = people.demand(person)
        people.refuse(request_id, ground, explanation="because")
        for language in notices.LANGUAGES:
            assert ground not in text_of(people, request_id, Notice.REFUSAL, language)


def test_every_notice_can_be_written_in_every_language(bench: Bench) -> None:
    people = office(bench, identity_needed="low")
    register(bench, "second")
    ids = {
        Notice.RECEIPT: people.demand(3, models=["toy"]),
        Notice.PARTIAL: people.demand(4),
        Notice.COMPLETION: people.demand(5),
        Notice.NO_DATA: people.demand(99_000),
        Notice.REFUSAL: people.demand(6),
        Notice.IDENTITY: people.demand(7, level="none"),
        Notice.EXTENSION: people.demand(8),
    }
    people.extend(ids[Notice.EXTENSION], explanation="Many models.")
    people.refuse(ids[Notice.PARTIAL], models=["second"])
    people.refuse(ids[Notice.REFUSAL])
    bench.run_all()
    assert set(ids) == set(Notice)
    for kind, request_id in ids.items():
        written = [text_of(people, request_id, kind, language) for language in notices.LANGUAGES]
        assert len(set(written)) == len(written)
        for said in written:
            assert not any(toy.user_id(person) in said for person in range(3, 9))
            assert "{" not in said
            assert max(map(len, said.split("\n"))) < 400
    assert "- toy: your data were removed" in text_of(people, ids[Notice.PARTIAL], Notice.PARTIAL)
    assert "second: the law obliges us" in text_of(people, ids[Notice.PARTIAL], Notice.PARTIAL)


def test_an_extension_is_not_lawful_until_the_person_is_told(empty: Bench) -> None:
    people = office(empty)
    received = datetime(2027, 1, 15, tzinfo=UTC)
    told, late = people.demand(3, at=received), people.demand(4, at=received)
    for request_id in (told, late):
        people.extend(request_id, at=received + timedelta(days=5))

    def problem(request_id) -> str | None:
        with transaction(empty.ctx.engine) as tx:
            owed = {one.kind: one for one in notices.owed(tx, empty.request(request_id), people.settings)}
        assert owed[Notice.EXTENSION].due == datetime(2027, 2, 15, 23, 59, 59, 999999, UTC)
        return owed[Notice.EXTENSION].problem

    assert "not lawful until" in (problem(told) or "")
    mark(people, told, Notice.EXTENSION, at=received + timedelta(days=6))
    mark(people, told, Notice.EXTENSION, at=received + timedelta(days=40))  # the first time counts
    mark(people, late, Notice.EXTENSION, at=received + timedelta(days=32))
    assert problem(told) is None
    assert "after the last day" in (problem(late) or "")
    assert people.decided(told)[0].notified_at == received + timedelta(days=6)
    with transaction(empty.ctx.engine) as tx:
        sent = select(Event.detail).where(Event.request_id == told, Event.type == "notice.sent")
        [detail] = tx.scalars(sent)
    assert detail["said_by"] == str(people.ben)


def mark(people: Office, request_id, kind: Notice, *, at: datetime) -> None:
    with transaction(people.bench.ctx.engine) as tx:
        request = people.bench.request(request_id)
        notices.note_sent(tx, request, kind, by=people.ben, at=at, now=at, settings=people.settings)


def test_an_operators_template_takes_the_place_of_ours(empty: Bench, tmp_path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "receipt.txt").write_text("Ours: {{ reference }}, {{ deadline.isoformat() }}")
    people = office(empty, notices=tmp_path)
    request_id = people.demand(3, reference="T-1", at=datetime(2027, 1, 31, tzinfo=UTC))
    assert text_of(people, request_id, Notice.RECEIPT) == "Ours: T-1, 2027-02-28\n"
    (tmp_path / "en" / "receipt.txt").write_text("{{ nobody_knows_this }}")
    with pytest.raises(notices.Misconfigured, match=r"en/receipt\.txt"):
        text_of(people, request_id, Notice.RECEIPT)
    assert "T-1" in text_of(people, request_id, Notice.RECEIPT, "de")


def test_a_clock_begins_once(empty: Bench) -> None:
    people = office(empty, identity_needed="low", suspend_while_awaiting_identity=True)
    request_id = people.demand(3, level="none", at=datetime(2027, 1, 1, tzinfo=UTC))
    people.confirm(request_id, "low", at=datetime(2027, 1, 10, tzinfo=UTC))
    people.settings = people.settings.model_copy(update={"identity_needed": IdentityLevel.SUBSTANTIAL})
    people.hold(request_id, until=empty.now() + 1000 * SOON)
    assert people.release(request_id) == "awaiting_identity"
    people.confirm(request_id, "high", at=datetime(2027, 3, 1, tzinfo=UTC))
    request = empty.request(request_id)
    assert request.clock_from == datetime(2027, 1, 10, tzinfo=UTC)
    assert request.deadline.date().isoformat() == "2027-02-10"


def test_what_the_service_asks_of_itself_is_not_for_people_to_stop(bench: Bench) -> None:
    people = office(bench)
    request_id = people.demand(3)
    bench.run_all()
    assert people.status(request_id) == "completed"
    register(bench, unlearn=True)  # trained on the person again
    [own] = [request.id for request in people.requests() if request.origin == "suppression"]
    for act in (
        people.cancel,
        people.refuse,
        lambda i: people.refuse(i, models=["toy"]),
        lambda i: people.hold(i, until=bench.now() + SOON),
    ):
        with pytest.raises(Conflict, match="the service made this request itself"):
            act(own)
    bench.run_all()
    assert abs(bench.live_weights()[0, 3]) < 1e-6


def test_what_is_refused_for_its_only_job_goes_on_with_a_model_registered_since(bench: Bench) -> None:
    people = office(bench)
    request_id = people.demand(3)
    bench.plan()
    register(bench, "second", without=(3,))
    assert people.refuse(request_id, models=["toy"]) == "received"
    bench.run_all()
    assert people.status(request_id) == "partially_completed"
    with transaction(bench.ctx.engine) as tx:
        assert [row.name for row in requests.targets(tx, [request_id])] == ["second"]


def test_a_model_that_is_being_worked_on_can_be_refused_no_more(bench: Bench) -> None:
    register(bench, "second")
    people = office(bench)
    request_id = people.demand(3)
    by_model = {bench.model_of(job_id): job_id for job_id in bench.plan()}
    begin(bench, by_model["second"])
    bench.fail(by_model["toy"])
    assert people.status(request_id) == "needs_attention"
    with pytest.raises(Conflict, match="1 of the models named are being worked on"):
        people.refuse(request_id, models=["second"])
    assert people.refuse(request_id, models=["toy"]) == "needs_attention"
    bench.expire_leases()
    erase.run(bench.ctx, by_model["second"])
    assert people.status(request_id) == "partially_completed"


def test_who_is_held_while_the_work_is_announced_is_not_begun(bench: Bench) -> None:
    people = office(bench)
    request_id = people.demand(3)
    (job_id,) = bench.plan()
    decided = threading.Event()

    def officer() -> None:
        with transaction(bench.ctx.engine) as tx:
            more = {"ground": HoldGround.LEGAL_HOLD, "until": bench.now() + SOON, "by": people.anna}
            decisions.hold(tx, request_id, now=bench.now(), settings=people.settings, **more)
            decided.set()
            time.sleep(1)  # the worker waits for the request meanwhile

    thread = threading.Thread(target=officer)
    thread.start()
    assert decided.wait(10)
    erase.run(bench.ctx, job_id)
    thread.join()
    assert (people.status(request_id), bench.job(job_id).status) == ("on_hold", "empty")
    with transaction(bench.ctx.engine) as tx:
        assert not tx.scalar(select(func.count()).select_from(Suppression))


def test_what_needs_attention_before_it_began_leaves_its_other_jobs(bench: Bench) -> None:
    """Else its weight would be gone without a word in the log, and people could still refuse it."""
    register(bench, "second")
    people = office(bench)
    request_id = people.demand(3)
    by_model = {bench.model_of(job_id): job_id for job_id in bench.plan()}
    bench.fail(by_model["toy"])
    erase.run(bench.ctx, by_model["second"])
    assert bench.job(by_model["second"]).status == "empty"
    people.retry(request_id)
    bench.run_all()
    assert people.status(request_id) == "completed"
