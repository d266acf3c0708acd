"""The pipeline on a real database with real torch processes, driven step by step."""

import base64
import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from pydantic import SecretStr
from sqlalchemy import func, select

from app import catalog, certificates, decisions, keymaking, planning
from app.domain.lifecycle import JobStatus
from app.errors import Conflict, LeaseLost, Misconfigured
from app.storage import jobs, keys, moves, requests
from app.storage.sessions import transaction
from app.storage.tables import Job, Posting, RequestKey, Suppression, WebhookDelivery, WebhookEndpoint
from tests import toy
from tests.house import installation
from tests.pipeline import Bench, in_this_process, register
from workers import erase, torch_step
from workers.lease import Lease

pytestmark = pytest.mark.slow


def count(bench: Bench, table: type) -> int:
    with transaction(bench.ctx.engine) as tx:
        return tx.scalar(select(func.count()).select_from(table)) or 0


def test_a_person_is_forgotten_as_if_they_had_never_been_there(bench: Bench) -> None:
    request_id = bench.demand(3)
    before = bench.live()
    bench.run_all()
    request = bench.request(request_id)
    assert request.status == "completed", request.reason
    assert bench.live().number == before.number + 1
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[3]), rtol=0, atol=1e-4)
    assert [what for _, what in bench.trail()] == [
        "model.registered",
        "request.received",
        "job.queued",
        "request.queued",
        "request.in_progress",
        "job.located",
        "job.unlearned",
        "job.verified",
        "job.published",
        "job.certified",
        "request.completed",
    ]


def test_at_the_end_nothing_names_the_person_but_the_ledger(bench: Bench) -> None:
    postings = count(bench, Posting)
    request_id = bench.demand(3)
    bench.run_all()
    request = bench.request(request_id)
    assert (request.subject_key, request.suppression_key, request.sealed_user_id, request.dedupe_key) == (None,) * 4
    with transaction(bench.ctx.engine) as tx:
        assert tx.scalars(select(RequestKey.purpose)).all() == ["evidence"]  # the working key is gone
    assert count(bench, Posting) == postings - 1
    assert count(bench, Suppression) == 1


def test_the_certificate_says_what_was_done_and_is_signed(bench: Bench) -> None:
    request_id = bench.demand(3)
    bench.run_all()
    public = certificates.public_key(bench.ctx.settings.key("signing_key"))
    statement = certificates.verify(bench.certificate(request_id), public)
    asset = statement["predicate"]["assets"][0]
    assert statement["subject"] == [{"name": "toy", "digest": {"sha256": bench.live().weights}}]
    assert (asset["result"], asset["assurance"], asset["claim_strength"]) == (
        "forgotten",
        "A2",
        "approximate-unlearning",
    )
    assert toy.user_id(3) not in str(statement)
    with pytest.raises(certificates.Invalid):
        certificates.verify(bench.certificate(request_id), certificates.public_key(b"another seed of 32 bytes.......!"))


def test_a_person_whom_no_model_saw_ends_as_no_data(bench: Bench) -> None:
    before = bench.live().id
    request_id, stranger = bench.demand(99_999), bench.demand(toy.MEMBERS + 5)
    bench.run_all()
    assert bench.request(request_id).status == bench.request(stranger).status == "no_data"
    assert bench.live().id == before
    asset = certificates.verify(
        bench.certificate(request_id), certificates.public_key(bench.ctx.settings.key("signing_key"))
    )["predicate"]["assets"][0]
    assert asset["result"] == "no_data"


def test_requests_of_one_window_are_one_job_and_one_version(bench: Bench) -> None:
    ids = [bench.demand(person) for person in (1, 2, 3)]
    before = bench.live().number
    bench.run_all()
    assert {bench.request(i).status for i in ids} == {"completed"}
    assert bench.live().number == before + 1
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[1, 2, 3]), rtol=0, atol=1e-4)


def test_two_jobs_on_one_model_leave_both_deletions_in_the_final_version(bench: Bench) -> None:
    """Both start from the same base; whoever publishes second finds it moved and begins again."""
    first_request = bench.demand(3)
    (first,) = bench.plan()
    with transaction(bench.ctx.engine) as tx:
        held = jobs.claim(tx, first, lease=bench.ctx.settings.lease, max_attempts=5)
    assert held is not None
    with Lease(bench.ctx, held) as lease:
        for _ in range(3):  # locate, unlearn, verify: ready to publish
            assert erase.advance(bench.ctx, lease)
        second_request = bench.demand(2)
        second = bench.plan()[-1]
        assert second != first
        erase.run(bench.ctx, second)  # overtakes
        while erase.advance(bench.ctx, lease):
            pass
    assert bench.request(first_request).status == bench.request(second_request).status == "completed"
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[2, 3]), rtol=0, atol=1e-4)
    with transaction(bench.ctx.engine) as tx:
        trail = [e.type for e in requests.events(tx, first_request) if e.type.startswith("job.")]
    assert trail.count("job.located") == 2
    assert trail.count("job.published") == 1


def test_the_slower_of_two_workers_loses_and_changes_nothing(bench: Bench) -> None:
    bench.demand(1)
    (job_id,) = bench.plan()
    with transaction(bench.ctx.engine) as tx:
        slow = jobs.claim(tx, job_id, lease=bench.ctx.settings.lease, max_attempts=5)
    assert slow is not None
    lease = Lease(bench.ctx, slow)  # a paused worker: its heartbeat never beats
    settle = erase.locate(bench.ctx, lease, slow)
    bench.expire_leases()
    erase.run(bench.ctx, job_id)
    trail, live = bench.trail(), bench.live().id
    with pytest.raises(LeaseLost), transaction(bench.ctx.engine) as tx:
        settle(tx, jobs.held(tx, job_id, fence=slow.fence))
    with pytest.raises(LeaseLost), transaction(bench.ctx.engine) as tx:
        moves.move_job(tx, slow, JobStatus.LOCATED)
    assert (bench.trail(), bench.live().id) == (trail, live)


def test_a_held_job_is_nobody_elses(bench: Bench) -> None:
    bench.demand(1)
    (job_id,) = bench.plan()
    winners: list[Job] = []

    def claim() -> None:
        with transaction(bench.ctx.engine) as tx:
            held = jobs.claim(tx, job_id, lease=bench.ctx.settings.lease, max_attempts=5)
        if held is not None:
            winners.append(held)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1


def test_a_rollback_queues_again_what_it_undid_and_the_next_version_makes_it_good(bench: Bench) -> None:
    first, second = bench.demand(1), None
    bench.run_all()
    second = bench.demand(2)
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        _, queued = catalog.roll_back(
            tx, "toy", to=2, now=bench.now(), settings=bench.ctx.settings
        )  # version 2 holds the first deletion only
    assert queued == 1
    assert (bench.request(first).status, bench.request(second).status) == ("completed", "queued")
    assert bench.live().number == 4
    bench.run_all()
    assert bench.request(second).status == "completed"
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[1, 2]), rtol=0, atol=1e-4)


def test_a_rollback_to_the_beginning_undoes_and_makes_good_everything(bench: Bench) -> None:
    ids = []
    for person in (1, 2):
        ids.append(bench.demand(person))
        bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        _, queued = catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
    assert queued == 2
    bench.run_all()
    assert {bench.request(i).status for i in ids} == {"completed"}
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[1, 2]), rtol=0, atol=1e-4)
    with transaction(bench.ctx.engine) as tx, pytest.raises(Conflict, match="live already"):
        catalog.roll_back(tx, "toy", to=bench.live().number, now=bench.now(), settings=bench.ctx.settings)


def test_a_version_trained_on_an_erased_person_is_refused_or_unlearned(bench: Bench) -> None:
    bench.demand(1)
    bench.run_all()
    before = bench.live().id
    weights, manifest = toy.write_model(bench.house.directory)
    arguments = [
        "models",
        "register",
        "toy",
        "--recipe",
        toy.REFERENCE,
        "--weights",
        str(weights),
        "--manifest",
        str(manifest),
    ]
    refused = bench.house.cli(*arguments)
    assert refused.returncode == 1
    assert "names 1 people" in refused.stderr
    assert toy.user_id(1) not in refused.stdout + refused.stderr
    assert bench.live().id == before
    accepted = bench.house.cli(*arguments, "--unlearn")
    assert accepted.returncode == 0, accepted.stderr
    bench.run_all()
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[1]), rtol=0, atol=1e-4)


def test_a_rollback_to_an_older_manifest_forgets_who_was_erased_since(bench: Bench) -> None:
    """Person 2 was erased from version 2 (another manifest); going back to version 1 must not bring them back."""
    register(bench, without=(50,))
    request_id = bench.demand(2)
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        _, queued = catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
    assert queued == 1
    bench.run_all()
    assert bench.request(request_id).status == "completed"
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[2]), rtol=0, atol=1e-4)


def test_without_any_model_a_request_needs_attention_and_can_be_retried(empty: Bench) -> None:
    request_id = empty.demand(1)
    empty.run_all()
    assert empty.request(request_id).status == "needs_attention"
    assert "no model is registered" in (empty.request(request_id).reason or "")
    register(empty, unlearn=True)
    with transaction(empty.ctx.engine) as tx:
        planning.retry(tx, request_id, now=empty.now(), settings=empty.ctx.settings)
    empty.run_all()
    assert empty.request(request_id).status == "completed"


def asset(bench: Bench, request_id: UUID) -> dict[str, Any]:
    public = certificates.public_key(bench.ctx.settings.key("signing_key"))
    assets: list[dict[str, Any]] = certificates.verify(bench.certificate(request_id), public)["predicate"]["assets"]
    return assets[0]


def test_what_the_test_cannot_see_is_retrained(empty: Bench) -> None:
    """Without strangers nothing can be shown: the influence update is not published, a retraining is."""
    register(empty, strangers=0)
    request_id = empty.demand(1)
    empty.run_all()
    assert empty.request(request_id).status == "completed"
    assert empty.live().origin == "retrained"
    assert (asset(empty, request_id)["assurance"], asset(empty, request_id)["claim_strength"]) == (
        "A0",
        "exact-retrain",
    )
    jobs_trail = [what for who, what in empty.trail() if who == "job"]
    assert jobs_trail.count("job.unlearned") == 2
    assert torch.allclose(empty.live_weights(), empty.retrained(without=[1]), rtol=0, atol=1e-12)


def test_what_cannot_be_shown_nor_retrained_needs_attention(empty: Bench) -> None:
    register(empty, recipe="tests.toy:Untrainable", strangers=0)
    before = empty.live().id
    request_id = empty.demand(1)
    empty.run_all()
    assert empty.request(request_id).status == "needs_attention"
    assert "inconclusive" in (empty.request(request_id).reason or "")
    assert empty.live().id == before


def test_a_sample_of_two_people_goes_with_the_first_and_the_other_is_told_the_truth(empty: Bench) -> None:
    """All of person 500's data lies in samples of person 7."""
    register(empty, shared=dict.fromkeys(toy.samples_of(7), 500), strangers=100)
    first = empty.demand(7)
    empty.run_all()
    other = empty.demand(500)
    empty.run_all()
    assert empty.request(first).status == empty.request(other).status == "completed"
    assert asset(empty, other)["result"] == "already_forgotten"
    assert empty.live().number == 2


def test_a_request_over_two_models_ends_when_both_have_ended(bench: Bench) -> None:
    register(bench, "other", without=(1,))
    request_id = bench.demand(1)
    first, second = bench.plan()
    erase.run(bench.ctx, first)
    assert bench.request(request_id).status == "in_progress"
    erase.run(bench.ctx, second)
    assert bench.request(request_id).status == "completed"
    results = {
        a["model"]: a["result"]
        for a in certificates.verify(
            bench.certificate(request_id), certificates.public_key(bench.ctx.settings.key("signing_key"))
        )["predicate"]["assets"]
    }
    assert results == {"toy": "forgotten", "other": "no_data"}


def test_a_request_for_one_model_leaves_the_other_ones_index_alone(bench: Bench) -> None:
    register(bench, "other")
    postings = count(bench, Posting)
    request_id = bench.demand(1, models=["other"])
    bench.run_all()
    assert bench.request(request_id).status == "completed"
    assert count(bench, Posting) == postings - 1
    assert bench.live().number == 1  # of "toy"


def give_up_after(bench: Bench, attempts: int) -> None:
    for _ in range(attempts):
        for job_id in bench.plan():
            erase.run(bench.ctx, job_id)
        bench.expire_leases()
        with transaction(bench.ctx.engine) as tx:
            planning.sweep(tx, now=bench.now(), settings=bench.ctx.settings)


def test_a_step_that_cannot_succeed_is_given_to_a_person_and_later_retried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "run_step", torch_step.run_step)
    request_id = bench.demand(1)
    (bench.house.directory / "recipes.toml").rename(bench.house.directory / "recipes.away")
    give_up_after(bench, 1)
    assert bench.request(request_id).status == "needs_attention"
    assert "recipes.toml" in (bench.request(request_id).reason or "")
    (bench.house.directory / "recipes.away").rename(bench.house.directory / "recipes.toml")
    with transaction(bench.ctx.engine) as tx:
        planning.retry(tx, request_id, now=bench.now(), settings=bench.ctx.settings)
    bench.run_all()
    assert bench.request(request_id).status == "completed"


def test_a_step_that_hangs_is_killed_at_its_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase, "run_step", torch_step.run_step)
    bench.ctx = type(bench.ctx)(
        settings=bench.ctx.settings.model_copy(update={"step_seconds": 0.5, "max_attempts": 2}), engine=bench.ctx.engine
    )
    request_id = bench.demand(1)
    give_up_after(bench, 8)  # on every rung
    assert bench.request(request_id).status == "needs_attention"
    assert "ran out of time" in (bench.request(request_id).reason or "")


def test_a_terminal_request_has_promised_one_delivery_per_endpoint(bench: Bench) -> None:
    with transaction(bench.ctx.engine) as tx:
        client_id = keymaking.operator(tx)
        keymaking.create(tx, name="office", scopes=["requests:read_all"], client_id=client_id)
        tx.add(WebhookEndpoint(client_id=client_id, every_client=True, url="https://portal.example/"))
    bench.demand(1)
    bench.run_all()
    assert count(bench, WebhookDelivery) == 1


def test_a_repeated_ring_of_a_finished_job_does_nothing(bench: Bench) -> None:
    bench.demand(1)
    (job_id,) = bench.plan()
    erase.run(bench.ctx, job_id)
    trail = bench.trail()
    erase.run(bench.ctx, job_id)
    erase.run(bench.ctx, UUID(int=0))
    assert bench.trail() == trail


def test_the_oldest_request_is_planned_first_and_a_full_job_makes_the_rest_wait(bench: Bench) -> None:
    settings = bench.ctx.settings.model_copy(update={"batch_requests": 2})
    ids = [bench.demand(person) for person in range(5)]
    with transaction(bench.ctx.engine) as tx:
        planning.plan(tx, now=bench.now(), settings=settings)
    assert [bench.request(i).status for i in ids] == ["queued", "queued", "received", "received", "received"]


def test_the_oldest_request_finishes_first(bench: Bench) -> None:
    """With jobs of one request each, dispatch rings only for the oldest open job of a model."""
    bench.ctx = type(bench.ctx)(
        settings=bench.ctx.settings.model_copy(update={"batch_requests": 1}), engine=bench.ctx.engine
    )
    ids = [bench.demand(person) for person in (5, 3, 4)]
    for _ in ids:
        bench.plan()
        with transaction(bench.ctx.engine) as tx:
            (due,) = jobs.to_ring(tx, max_attempts=5, limit=10)
        erase.run(bench.ctx, due)
    closed = [bench.request(i).closed_at for i in ids]
    assert all(closed)
    assert closed == sorted(c for c in closed if c)


def test_a_rollback_while_another_model_is_at_work_still_ends_the_request_only_when_both_hold(bench: Bench) -> None:
    register(bench, "other")
    request_id = bench.demand(1)
    first, second = bench.plan()
    erase.run(bench.ctx, first)
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, bench.model_of(first), to=1, now=bench.now(), settings=bench.ctx.settings)
    erase.run(bench.ctx, second)
    assert bench.request(request_id).status == "in_progress"
    bench.run_all()
    assert bench.request(request_id).status == "completed"
    assert bench.undone() == []


def test_a_rollback_under_an_empty_job_is_made_good_by_the_next_look(bench: Bench) -> None:
    """Version 1 knows person 2, version 2 does not; the request meets version 2, then somebody goes back to 1."""
    register(bench, without=(2,))
    request_id = bench.demand(2)
    bench.run_all()
    assert bench.request(request_id).status == "no_data"
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
    with transaction(bench.ctx.engine) as tx:
        planning.repair(tx, now=bench.now())
    bench.run_all()
    assert bench.undone() == []
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[2]), rtol=0, atol=1e-4)


def test_a_deletion_being_repeated_after_a_rollback_cannot_be_cancelled(bench: Bench) -> None:
    request_id = bench.demand(1)
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)
    with pytest.raises(Conflict, match="repeated"), transaction(bench.ctx.engine) as tx:
        decisions.cancel(tx, request_id, by=keymaking.operator(tx), now=bench.now(), settings=bench.ctx.settings)


def test_whoever_takes_the_request_back_is_not_on_the_ledger(bench: Bench) -> None:
    request_id = bench.demand(1)
    bench.plan()
    with transaction(bench.ctx.engine) as tx:
        decisions.cancel(tx, request_id, by=keymaking.operator(tx), now=bench.now(), settings=bench.ctx.settings)
    register(bench)  # trained on person 1, and accepted
    assert count(bench, Suppression) == 0


def test_a_model_trained_on_a_person_whose_request_is_open_is_refused(bench: Bench) -> None:
    bench.demand(1)
    with pytest.raises(Conflict, match="names 1 people"):
        register(bench, "newcomer")


def test_an_engine_that_refuses_leaves_the_work_to_retraining(empty: Bench) -> None:
    """A sum that training gathers lies outside the curvature operator: influence says no, the owner's train() does."""
    register(empty, recipe="tests.noisy:Counting")
    request_id = empty.demand(1)
    empty.run_all()
    assert empty.request(request_id).status == "completed", empty.request(request_id).reason
    assert empty.live().origin == "retrained"


def test_batch_statistics_are_no_reason_to_retrain(empty: Bench) -> None:
    """They are estimated anew on the people who stay."""
    register(empty, recipe="tests.toy:Normalised")
    request_id = empty.demand(3)
    empty.run_all()
    assert empty.request(request_id).status == "completed", empty.request(request_id).reason
    assert empty.live().origin == "unlearned"


def test_another_index_key_is_noticed_before_it_finds_nobody(bench: Bench) -> None:
    other = bench.ctx.settings.model_copy(update={"index_key": SecretStr(base64.b64encode(bytes(range(32))).decode())})
    with transaction(bench.ctx.engine) as tx:
        keys.check_secrets(tx, bench.ctx.settings)
        with pytest.raises(Misconfigured, match="EXPUNGE_INDEX_KEY"):
            keys.check_secrets(tx, other)


def test_a_retry_leaves_a_job_that_is_running_alone(bench: Bench) -> None:
    register(bench, "other")
    request_id = bench.demand(1)
    first, second = bench.plan()
    bench.fail(first)
    with transaction(bench.ctx.engine) as tx:
        planning.retry(tx, request_id, now=bench.now(), settings=bench.ctx.settings)
        served = {row.id for row in requests.targets(tx, [request_id])}
    assert second in served
    assert first not in served
    bench.run_all()
    assert bench.request(request_id).status == "completed"


def test_a_full_job_holds_up_nobody_elses_model(bench: Bench) -> None:
    register(bench, "other")
    settings = bench.ctx.settings.model_copy(update={"batch_requests": 1})
    ids = [bench.demand(1, models=["toy"]), bench.demand(2, models=["toy"]), bench.demand(3, models=["other"])]
    with transaction(bench.ctx.engine) as tx:
        planning.plan(tx, now=bench.now(), settings=settings)
    assert [bench.request(i).status for i in ids] == ["queued", "received", "queued"]


def test_a_version_of_another_recipe_is_not_rolled_back_to(bench: Bench) -> None:
    register(bench, recipe="tests.toy:Toy")
    with pytest.raises(Conflict, match="another recipe"), transaction(bench.ctx.engine) as tx:
        catalog.roll_back(tx, "toy", to=1, now=bench.now(), settings=bench.ctx.settings)


def test_a_certificate_says_nothing_of_what_was_done_for_others(bench: Bench) -> None:
    """A known and an unknown person share a job; only the known one's certificate speaks of the update."""
    known, unknown = bench.demand(1), bench.demand(99_999)
    bench.run_all()
    assert asset(bench, known)["verification"]["outcome"] == "passed"
    told = asset(bench, unknown)
    assert (told["result"], told["from"], told["verification"], told["assurance"]) == ("no_data", None, None, None)
    assert told["to"] == f"sha256:{bench.live().weights}"


def test_what_an_earlier_rung_found_is_kept(empty: Bench) -> None:
    register(empty, strangers=0)
    empty.demand(1)
    empty.run_all()
    assert (empty.live().report or {})["earlier"]["verdict"]["outcome"] == "inconclusive"


def test_a_rung_whose_process_is_killed_again_and_again_gives_way_to_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_memory(name: str, order: dict[str, Any], **more: Any) -> dict[str, Any]:
        if order["rung"] != "retrain":
            raise torch_step.ChildDied("the unlearn process died with exit code -9")
        return in_this_process(name, order, **more)

    monkeypatch.setattr(erase, "run_step", short_of_memory)
    request_id = bench.demand(3)
    for _ in range(3):  # the claim that located, and two more
        bench.run_all()
        bench.expire_leases()
    assert bench.request(request_id).status == "completed"
    assert bench.live().origin == "retrained"
    report = bench.live().report
    assert report is not None
    assert "exit code -9, again and again" in json.dumps(report["earlier"])


def test_waiting_for_the_log_uses_up_no_attempt(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "run_step", in_this_process)
    monkeypatch.setattr(erase, "_LOG_WAITS_SECONDS", 0.05)
    with installation(tmp_path, database_url, "", model=False) as house:
        waiting = Bench(house)
        register(waiting)
        request_id = waiting.demand(1)
        (job_id,) = waiting.plan()
        for _ in range(10):  # nobody sequences
            erase.run(waiting.ctx, job_id)
            job = waiting.job(job_id)
            assert (job.status, job.attempts, job.lease_until) == ("queued", 0, None)
            assert "the public log takes no entries" in (job.error or "")
            assert job.not_before > waiting.now() + timedelta(seconds=20)
            waiting.expire_leases()
            with transaction(house.engine) as tx:
                planning.sweep(tx, now=waiting.now(), settings=waiting.ctx.settings)
        assert waiting.request(request_id).status == "in_progress"
        monkeypatch.setattr(erase, "_LOG_WAITS_SECONDS", 30)
        with waiting.sequencing():
            waiting.run_all()
        assert waiting.request(request_id).status == "completed"


def test_a_worker_under_another_logs_name_certifies_nothing(bench: Bench) -> None:
    typo = bench.ctx.settings.model_copy(update={"log_origin": "typo.example/log"})
    request_id = bench.demand(1)
    (job_id,) = bench.plan()
    erase.run(type(bench.ctx)(settings=typo, engine=bench.ctx.engine), job_id)
    assert bench.request(request_id).status == "in_progress"
    assert "EXPUNGE_LOG_ORIGIN" in (bench.job(job_id).error or "")
    bench.expire_leases()
    bench.run_all()
    assert bench.request(request_id).status == "completed"
    said = json.loads(base64.b64decode(bench.certificate(request_id)["payload"]))
    assert said["predicate"]["log"]["origin"] == bench.ctx.settings.log_origin


def test_an_update_that_changes_nothing_is_refused_and_the_next_rung_is_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(name: str, order: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = in_this_process(name, order, **more)
        return {**answer, "weights": order["base"]} if order["rung"] == "influence" and name == "unlearn" else answer

    monkeypatch.setattr(erase, "run_step", lazy)
    request_id = bench.demand(3)
    bench.run_all()
    assert bench.request(request_id).status == "completed"
    assert bench.live().origin == "retrained"
