"""The pipeline on a real database with real torch processes, driven step by step."""

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import torch
from sqlalchemy import func, select, text

from app import catalog, certificates, planning
from app.domain.lifecycle import JobStatus
from app.errors import Conflict, LeaseLost
from app.storage import jobs, moves, requests
from app.storage.sessions import transaction
from app.storage.tables import Job, Posting, RequestKey, Suppression, WebhookDelivery
from tests import toy
from tests.house import installation
from tests.pipeline import Bench
from workers import erase
from workers.lease import Lease

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(database_url: str, tmp_path: Path) -> Iterator[Bench]:
    """An installation with the toy model registered and nothing running."""
    with installation(tmp_path, database_url, "") as house:
        yield Bench(house)


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
    assert count(bench, RequestKey) == 0
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
    first_request = bench.demand(1)
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
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[1, 2]), rtol=0, atol=1e-4)
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
        _, queued = catalog.roll_back(tx, "toy", to=2, now=bench.now())  # version 2 holds the first deletion only
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
        _, queued = catalog.roll_back(tx, "toy", to=1, now=bench.now())
    assert queued == 2
    bench.run_all()
    assert {bench.request(i).status for i in ids} == {"completed"}
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[1, 2]), rtol=0, atol=1e-4)
    with transaction(bench.ctx.engine) as tx, pytest.raises(Conflict, match="live already"):
        catalog.roll_back(tx, "toy", to=bench.live().number, now=bench.now())


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
    bench.house.register(without=(50,))
    request_id = bench.demand(2)
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        _, queued = catalog.roll_back(tx, "toy", to=1, now=bench.now())
    assert queued == 1
    bench.run_all()
    assert bench.request(request_id).status == "completed"
    assert torch.allclose(bench.live_weights(), bench.retrained(without=[2]), rtol=0, atol=1e-4)


def test_without_any_model_a_request_needs_attention_and_can_be_retried(database_url: str, tmp_path: Path) -> None:
    with installation(tmp_path, database_url, "", model=False) as house:
        bench = Bench(house)
        request_id = bench.demand(1)
        bench.run_all()
        assert bench.request(request_id).status == "needs_attention"
        assert "no model is registered" in (bench.request(request_id).reason or "")
        house.register("--unlearn")
        with transaction(bench.ctx.engine) as tx:
            planning.retry(tx, request_id, now=bench.now(), settings=bench.ctx.settings)
        bench.run_all()
        assert bench.request(request_id).status == "completed"


def give_up_after(bench: Bench, attempts: int) -> None:
    for _ in range(attempts):
        for job_id in bench.plan():
            erase.run(bench.ctx, job_id)
        bench.expire_leases()
        with transaction(bench.ctx.engine) as tx:
            planning.sweep(tx, now=bench.now(), settings=bench.ctx.settings)


def test_a_step_that_always_dies_is_given_to_a_person_and_later_retried(bench: Bench) -> None:
    store = Path(bench.ctx.settings.store_url.removeprefix("file://"))
    hidden = store.with_name("store-hidden")
    request_id = bench.demand(1)
    (bench.house.directory / "recipes.toml").rename(bench.house.directory / "recipes.away")
    give_up_after(bench, 1)
    assert bench.request(request_id).status == "needs_attention"
    assert "recipes.toml" in (bench.request(request_id).reason or "")
    assert not hidden.exists()
    (bench.house.directory / "recipes.away").rename(bench.house.directory / "recipes.toml")
    with transaction(bench.ctx.engine) as tx:
        planning.retry(tx, request_id, now=bench.now(), settings=bench.ctx.settings)
    bench.run_all()
    assert bench.request(request_id).status == "completed"


def test_a_step_that_hangs_is_killed_at_its_limit(bench: Bench) -> None:
    bench.ctx = type(bench.ctx)(
        settings=bench.ctx.settings.model_copy(update={"step_seconds": 0.5, "max_attempts": 2}), engine=bench.ctx.engine
    )
    request_id = bench.demand(1)
    give_up_after(bench, 3)
    assert bench.request(request_id).status == "needs_attention"
    assert "ran out of time" in (bench.request(request_id).reason or "")


def test_a_terminal_request_has_promised_one_delivery_per_endpoint(bench: Bench) -> None:
    with bench.house.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO webhook_endpoints (id, url, sealed_secret) VALUES (gen_random_uuid(), 'https://x.example', '')"
            )
        )
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
