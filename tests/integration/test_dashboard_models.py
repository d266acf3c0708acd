"""What people see of models at the dashboard: lineages, limits, rollbacks before they are done, estimates."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app import catalog
from app.domain.ledger import Ledger
from app.domain.people import Role
from app.errors import Conflict
from app.main import create_app
from app.storage import jobs, lineage, versions
from app.storage.sessions import transaction
from app.storage.tables import Event, Forgotten, InternalEntry, Job, Manifest, ModelVersion
from tests import toy
from tests.dashboard import COOKIE, Guest, enter, text_of
from tests.house import installation
from tests.pipeline import Bench, in_this_process, register
from tests.services import new_database
from workers import erase

pytestmark = pytest.mark.slow
MOST_STATEMENTS = {"models": 8, "model": 14, "jobs": 5, "estimate": 10, "version": 9, "roll-back": 11}


@pytest.fixture(scope="module")
def bench(postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """An installation without a model; every test registers its own."""
    home = tmp_path_factory.mktemp("models")
    with (
        pytest.MonkeyPatch.context() as patch,
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", model=False) as house,
    ):
        patch.setattr(erase, "run_step", in_this_process)
        made = Bench(house)
        with made.sequencing():
            yield made


@pytest.fixture(scope="module")
def site(bench: Bench) -> Iterator[TestClient]:
    """The application in this process, so that its statements can be counted."""
    with TestClient(create_app(bench.house.settings), base_url="https://testserver") as client:
        yield client


@pytest.fixture(scope="module")
def engineer(bench: Bench) -> Guest:
    return enter(bench.house, Role.ENGINEER, name="Eve Engineer")


def look(site: TestClient, guest: Guest, path: str, **form: Any) -> httpx.Response:
    """Open a page, or press its button."""
    headers = {"Cookie": f"{COOKIE}={guest.cookie}", "Sec-Fetch-Site": "same-origin"}
    sent = {"data": form} if form else {}
    method = "POST" if form else "GET"
    answer: httpx.Response = site.request(method, f"/admin{path}", headers=headers, follow_redirects=False, **sent)
    return answer


def model_after(bench: Bench, name: str, *people: int) -> UUID:
    """The toy model under a name of its own, after so many erasures, one by one."""
    register(bench, name)
    for person in people:
        bench.demand(person, models=[name])
        bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        return versions.model(tx, name).id


def live(bench: Bench, name: str) -> int:
    with transaction(bench.ctx.engine) as tx:
        found = lineage.live_number(tx, versions.model(tx, name))
        assert found is not None
        return found


@contextmanager
def counting(site: TestClient) -> Iterator[list[str]]:
    """The statements of the application while a block runs."""
    said: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        said.append(statement)

    engine = site.app.state.context.engine  # type: ignore[attr-defined]  # an ASGI callable by its type
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", note)


def grow(bench: Bench, name: str, many: int) -> None:
    """Publish so many versions more, as the last one was made: copies of its report, with classes in gate G2."""
    with transaction(bench.ctx.engine) as tx:
        model = versions.model(tx, name)
        assert model.current_version_id is not None
        base = versions.version(tx, model.current_version_id)
        report = with_classes(base.report or {}, "<script>alert(1)</script>")
        ids = [uuid4() for _ in range(many)]
        tx.execute(insert(Job), [{"id": i, "model_id": model.id, "status": "certified", "fence": 1} for i in ids])
        tx.execute(text(_GROW), {"ids": ids, "base": base.id, "report": json.dumps(report)})
        tx.execute(text(_CHAIN), {"model": model.id, "since": base.number})
        gone = [{"job_id": i, "manifest_id": base.manifest_id, "ordinal": 0} for i in ids]
        tx.execute(insert(Forgotten), [{**row, "sample_ids": [place]} for place, row in enumerate(gone, 10**6)])
        kinds = ("job.queued", "job.located", "job.unlearned", "job.verified", "job.published", "job.certified")
        tx.execute(insert(Event), [{"type": kind, "job_id": i, "model_id": model.id} for i in ids for kind in kinds])
    with bench.ctx.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


_GROW = """
INSERT INTO model_versions (id, model_id, number, weights, residual, manifest_id, job_id, recipe, origin, report)
SELECT job, v.model_id, v.number + n, md5(n::text) || md5(n::text), v.residual, v.manifest_id, job, v.recipe,
  'unlearned', CAST(:report AS jsonb)
FROM model_versions v, unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS x (job, n) WHERE v.id = :base
"""
_CHAIN = """
WITH chained AS (
  UPDATE model_versions v SET parent_id = p.id FROM model_versions p
  WHERE v.model_id = :model AND v.number > :since AND p.model_id = v.model_id AND p.number = v.number - 1)
UPDATE models SET current_version_id = (SELECT id FROM model_versions WHERE model_id = :model
  ORDER BY number DESC LIMIT 1) WHERE id = :model
"""


def following(parent: ModelVersion, **more: Any) -> ModelVersion:
    kept = {"recipe": parent.recipe, "weights": f"{parent.number + 1:064x}", "residual": parent.residual}
    made = {"origin": "unlearned", "number": parent.number + 1, **kept, **more}
    return ModelVersion(
        id=uuid4(), model_id=parent.model_id, manifest_id=parent.manifest_id, parent_id=parent.id, **made
    )


def with_classes(report: dict[str, Any], group: str) -> dict[str, Any]:
    """The report as if the model had ten classes and a group."""
    told = copy.deepcopy(report)
    utility = next(gate for gate in told["verdict"]["gates"] if gate["name"] == "G2 utility")
    one = {"pairs": 300, "needed": 200, "worsening": 0.01, "error": 0.002, "margin": 0.05, "accuracy": [0.9, 0.89]}
    one |= {"loss": [0.3, 0.31], "changed": 0.01, "p_passing": 0.001, "p_failing": 1.0, "outcome": "passed"}
    names = [f"class {label}, {side}" for label in range(10) for side in ("strangers", "retained samples")]
    utility["segments"] = [{"name": name, **one} for name in names]
    utility["segments"].append({"name": f"group {group}, strangers", **one, "worsening": 0.04})
    return told


def test_three_erasures_are_a_line_and_a_rollback_branches_off(bench: Bench, site: TestClient, engineer: Guest) -> None:
    model_id = model_after(bench, "line", 3, 4, 5)
    assert look(site, engineer, "/models/line/versions/2/roll-back", confirm="line", live=4).status_code == 303
    bench.run_all()
    page = look(site, engineer, "/models/line")
    rows = re.findall(r"<tr><th scope=\"row\"><a[^>]*>(\d+)</a></th>\s*<td>(?:<a[^>]*>version (\d+)|<span)", page.text)
    assert rows == [("6", "5"), ("5", "2"), ("4", "3"), ("3", "2"), ("2", "1"), ("1", "")]
    assert page.text.count('<polyline class="line-grey" points') >= 1
    with transaction(bench.ctx.engine) as tx:
        standings = lineage.standings(lineage.nodes(tx, model_id))
        for version in versions.versions(tx, model_id):
            counted = versions.ledger(tx, version, leaving=0)
            assert (standings[version.number].trained_on, standings[version.number].gone) == (
                counted.trained_on,
                counted.forgotten_since,
            )
        assert [standings[n].gone for n in range(1, 7)] == [0, 1, 2, 3, 1, 3]


def test_the_ledger_in_one_statement_counts_what_walking_over_whole_rows_counts(bench: Bench) -> None:
    model_id = model_after(bench, "walked", 3)
    chance, made = random.Random(6), []
    with transaction(bench.ctx.engine) as tx:
        made = list(reversed(versions.versions(tx, model_id)))
        for number in range(3, 60):
            parent = chance.choice(made[-6:])
            origin = chance.choice(["unlearned"] * 4 + ["retrained", "rolled_back"])
            job = Job(model_id=model_id, status="certified", fence=1) if origin != "rolled_back" else None
            if job is not None:
                tx.add(job)
                tx.flush()
                bury = [[chance.randrange(1600)] for _ in range(chance.randrange(4))]
                versions.bury(tx, job_id=job.id, manifest_id=parent.manifest_id, groups=bury)
            report: dict[str, Any] | None = {"earlier": {}} if chance.random() < 0.6 else None
            fit = {"users_at": 390, "fitted_at_version": chance.randrange(1, number)} if chance.random() < 0.7 else None
            version = following(
                parent, number=number, origin=origin, job_id=job.id if job else None, report=report, calibration=fit
            )
            tx.add(version)
            tx.flush()
            made.append(version)
        for version in made:
            assert versions.ledger(tx, version, leaving=2) == walked(tx, version, leaving=2)
        assert len({walked(tx, version, leaving=0).failures for version in made}) > 3
        together = versions.ledgers(tx, [version.id for version in made])
        assert together == {version.id: walked(tx, version, leaving=0) for version in made}


def walked(tx: Session, at: ModelVersion, *, leaving: int) -> Ledger:
    """The ledger as it was counted before: every version of the line, whole, in Python."""
    past = [at]
    while past[-1].parent_id is not None:
        past.append(tx.get_one(ModelVersion, past[-1].parent_id))
    rows = tx.scalars(select(Forgotten.job_id).where(Forgotten.manifest_id == at.manifest_id)).all()
    gone = [rows.count(version.job_id) if version.job_id else 0 for version in past]
    trained = next(i for i, version in enumerate(past) if version.origin in {"registered", "retrained"})
    fit = at.calibration or {}
    since_fit = [n for n, version in zip(gone, past, strict=True) if version.number > fit.get("fitted_at_version", 0)]
    return Ledger(
        trained_on=tx.get_one(Manifest, at.manifest_id).users - sum(gone[trained:]),
        forgotten_since=sum(gone[:trained]) + leaving,
        fitted_on=fit.get("users_at"),
        forgotten_since_fit=sum(since_fit) + leaving,
        failures=len(list(takewhile(lambda version: "earlier" in (version.report or {}), past))),
    )


def test_a_rollback_undoes_what_its_page_said_before(bench: Bench, site: TestClient, engineer: Guest) -> None:
    model_id = model_after(bench, "told", 3, 4, 5)
    with transaction(bench.ctx.engine) as tx:
        for target in versions.versions(tx, model_id):
            told = lineage.would_undo(tx, target)
            assert told.people == len(versions.missing(tx, target)) == 4 - target.number
            assert told.requests == len(versions.undone_by(tx, target)) == told.certificates == told.ended
    page = text_of(look(site, engineer, "/models/told/versions/2/roll-back"))
    assert "2 deletions would be undone, made by versions 3 to 4" in page
    assert "2 requests would be queued again" in page
    assert "2 of them had ended; their clocks start anew" in page
    assert "2 certificates already given would be superseded" in page
    assert live(bench, "told") == 4  # to look is not to do
    with transaction(bench.ctx.engine) as tx:
        _, queued = catalog.roll_back(tx, "told", to=2, now=bench.now(), settings=bench.ctx.settings)
    assert queued == 2
    with transaction(
        bench.ctx.engine
    ) as tx:  # what the rollback undid is undone still, whatever else one rolls back to
        again = lineage.would_undo(tx, versions.numbered(tx, model_id, 3))
        assert (again.people, again.ended) == (1, 0)
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        assert lineage.would_undo(tx, versions.numbered(tx, model_id, 6)).people == 0


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OFFICER, Role.AUDITOR, Role.ADMIN])
def test_nobody_else_rolls_back_not_even_by_a_post_made_by_hand(
    bench: Bench, site: TestClient, kept: str, role: Role
) -> None:
    guest = enter(bench.house, role)
    assert look(site, guest, f"/models/{kept}/versions/1").status_code == 200
    assert "Roll back to this version" not in look(site, guest, f"/models/{kept}/versions/1").text
    assert look(site, guest, f"/models/{kept}/versions/1/roll-back").status_code == 403
    assert look(site, guest, f"/models/{kept}/versions/1/roll-back", confirm=kept, live=2).status_code == 403
    assert live(bench, kept) == 2


@pytest.fixture(scope="module")
def kept(bench: Bench) -> str:
    """A model after one erasure, which tests only look at."""
    model_after(bench, "kept", 7)
    return "kept"


def test_a_rollback_names_who_did_it_in_the_internal_log_only(bench: Bench, site: TestClient) -> None:
    model_after(bench, "signed", 3)
    guest = enter(bench.house, Role.ENGINEER)
    assert look(site, guest, "/models/signed/versions/1/roll-back", confirm=" signed ", live=2).status_code == 303
    with transaction(bench.ctx.engine) as tx:
        entry = tx.scalars(select(InternalEntry).where(InternalEntry.person_id == guest.person_id)).all()[-1]
        assert (entry.what, entry.detail) == (
            "model.rolled_back",
            {"model": "signed", "to": 1, "version": 3, "requests": 1},
        )
        told = tx.scalars(select(Event).where(Event.type == "model.rolled_back").order_by(Event.id.desc())).first()
        assert told is not None
        assert told.detail == {"version": 3, "to": 1}
    bench.run_all()


@pytest.mark.parametrize(
    ("form", "status"), [({"confirm": "kep", "live": 2}, 422), ({"confirm": "kept", "live": 1}, 409)]
)
def test_a_rollback_asks_for_the_name_and_for_the_version_that_was_seen(
    bench: Bench, site: TestClient, engineer: Guest, kept: str, form: dict[str, Any], status: int
) -> None:
    assert look(site, engineer, f"/models/{kept}/versions/1/roll-back", **form).status_code == status
    assert live(bench, kept) == 2


def test_a_rollback_page_says_why_it_would_be_refused(bench: Bench, site: TestClient, engineer: Guest) -> None:
    model_id = model_after(bench, "busy", 3)
    path = "/models/busy/versions/{}/roll-back"
    assert "version 2 is live already" in text_of(look(site, engineer, path.format(2)))
    with transaction(bench.ctx.engine) as tx:
        tx.execute(
            text("UPDATE model_versions SET recipe = :recipe WHERE model_id = :id AND number = 1"),
            {"id": model_id, "recipe": "<script>alert(1)</script>"},
        )
    page = look(site, engineer, path.format(1))
    assert "version 1 has another recipe (<script>alert(1)</script>)" in text_of_marks(page)
    assert "<script>alert" not in page.text
    assert "Type the model" not in page.text
    with transaction(bench.ctx.engine) as tx:
        tx.execute(
            text("UPDATE jobs SET status = 'published', closed_at = NULL WHERE model_id = :id"), {"id": model_id}
        )
    assert "certificates for the live version are being written" in text_of(look(site, engineer, path.format(1)))
    with transaction(bench.ctx.engine) as tx, pytest.raises(Conflict, match="certificates"):
        catalog.roll_back(tx, "busy", to=1, now=bench.now(), settings=bench.ctx.settings)
    with transaction(bench.ctx.engine) as tx:
        tx.execute(
            text("UPDATE jobs SET status = 'certified', closed_at = now() WHERE model_id = :id"), {"id": model_id}
        )


def text_of_marks(page: httpx.Response) -> str:
    return page.text.replace("&lt;", "<").replace("&gt;", ">")


def test_a_script_as_recipe_or_group_is_text(bench: Bench, site: TestClient, engineer: Guest) -> None:
    model_id = model_after(bench, "hostile", 3)
    grow(bench, "hostile", 3)
    with transaction(bench.ctx.engine) as tx:
        changed = {"id": model_id, "recipe": "<script>alert(2)</script>"}
        tx.execute(text("UPDATE models SET recipe = :recipe WHERE id = :id"), changed)
        tx.execute(text("UPDATE model_versions SET recipe = :recipe WHERE model_id = :id"), changed)
    for path in ("/models", "/models/hostile", "/models/hostile/versions/4", "/models/hostile/versions/2/roll-back"):
        page = look(site, engineer, path)
        assert page.status_code == 200
        assert "<script>alert" not in page.text
    assert "group <script>alert(1)</script>, strangers" in text_of_marks(look(site, engineer, "/models/hostile"))


def test_an_estimate_tells_what_the_next_job_then_finds_and_changes_nothing(
    bench: Bench, site: TestClient, engineer: Guest
) -> None:
    model_id = model_after(bench, "estimated", 3)
    for person in (8, 9, toy.MEMBERS + toy.STRANGERS + 5):
        bench.demand(person, models=["estimated"])
    bench.plan()
    bench.demand(10, models=["estimated"])  # not planned yet
    bench.demand(11, models=["estimated"])
    before = footprint(bench)
    page = text_of(look(site, engineer, "/models/estimated/estimate"))
    assert footprint(bench) == before
    assert "5 would go with it" in page
    assert "People in the model 4" in page
    assert "Their samples 16 of the manifest's 1 600" in page
    assert "begins with an influence update" in page
    assert "Median of 1 job" in page
    bench.run_all()
    with transaction(bench.ctx.engine) as tx:
        row = lineage.page(tx, model_id, before=None, limit=1)[0]
        assert (row.people, row.samples) == (4, 16)
    page = text_of(look(site, engineer, "/models/estimated/estimate"))
    assert "nobody who waits has samples in this model" in page


def footprint(bench: Bench) -> list[int]:
    """How many rows there are of what a job would write."""
    tables = ("events", "jobs", "targets", "model_versions", "forgotten_samples", "audit_entries", "internal_log")
    with transaction(bench.ctx.engine) as tx:
        counted = [tx.scalar(text(f"SELECT count(*) FROM {table}")) or 0 for table in tables]
        return [*counted, tx.scalar(text("SELECT count(*) FROM erasure_requests WHERE status = 'received'")) or 0]


def test_a_model_without_history_is_not_estimated(bench: Bench, site: TestClient, engineer: Guest) -> None:
    register(bench, "fresh")
    bench.demand(12, models=["fresh"])
    page = text_of(look(site, engineer, "/models/fresh/estimate"))
    assert "Work unknown: no job of this model" in page
    assert "Time unknown: no job of this model" in page
    bench.run_all()


def test_a_running_job_asks_for_itself_again_until_it_is_done(bench: Bench, site: TestClient, engineer: Guest) -> None:
    register(bench, "running")
    bench.demand(13, models=["running"])
    [job_id] = bench.plan()
    with transaction(bench.ctx.engine) as tx:
        job = jobs.claim(tx, job_id, lease=bench.ctx.settings.lease, max_attempts=5)
        assert job is not None
        jobs.renew(tx, job_id, fence=job.fence, lease=bench.ctx.settings.lease, progress=0.4)
    for path in ("/models", "/models/running", "/models/running/jobs"):
        page = look(site, engineer, path)
        assert 'hx-trigger="every 2s"' in page.text
        assert "40 % of this step, about" in text_of(page)
    bench.expire_leases()
    bench.run_all()
    for path in ("/models", "/models/running", "/models/running/jobs"):
        assert "hx-trigger" not in look(site, engineer, path).text


def test_home_names_the_models_near_their_limit(bench: Bench, site: TestClient, engineer: Guest) -> None:
    model_after(bench, "near", 3)
    assert "/models/near" not in look(site, engineer, "").text
    grow(bench, "near", 59)
    page = text_of(look(site, engineer, ""))
    assert "near 60 80 75 %" in page
    grow(bench, "near", 30)
    assert "of the people are gone since the last training: retraining" in text_of(look(site, engineer, "/models/near"))


def test_a_thousand_versions_cost_no_more_statements_than_ten(bench: Bench, site: TestClient, engineer: Guest) -> None:
    model_after(bench, "long", 3)
    grow(bench, "long", 8)
    few = {name: statements(site, engineer, path) for name, path in pages("long")}
    grow(bench, "long", 990)
    many = {name: statements(site, engineer, path) for name, path in pages("long")}
    assert many == few
    assert all(many[name] <= most for name, most in MOST_STATEMENTS.items()), many
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    if busy > 1.5:
        pytest.skip(f"{busy:.1f} processes for each core: how long a page takes would say nothing about the page")
    quickest = {name: min(seconds(site, engineer, path) for _ in range(5)) for name, path in pages("long")}
    assert max(quickest.values()) < 0.2, quickest


def pages(name: str) -> list[tuple[str, str]]:
    one = f"/models/{name}"
    return [
        ("models", "/models"),
        ("model", one),
        ("jobs", f"{one}/jobs"),
        ("estimate", f"{one}/estimate"),
        ("version", f"{one}/versions/5"),
        ("roll-back", f"{one}/versions/1/roll-back"),
    ]


def statements(site: TestClient, guest: Guest, path: str) -> int:
    with counting(site) as said:
        page = look(site, guest, path)
    assert page.status_code == 200, page.text
    return len(said)


def seconds(site: TestClient, guest: Guest, path: str) -> float:
    begun = time.monotonic()
    look(site, guest, path)
    return time.monotonic() - begun


def test_pages_of_fifty_show_every_version_once(bench: Bench, site: TestClient, engineer: Guest) -> None:
    model_after(bench, "paged", 3)
    grow(bench, "paged", 118)
    path, seen = "/models/paged", []
    while path:
        page = look(site, engineer, path).text
        numbers = [int(n) for n in re.findall(r'<tr><th scope="row"><a href="[^"]*">(\d+)</a>', page)]
        assert len(numbers) <= 50
        seen += numbers
        following_page = re.search(r'<a href="/admin([^"]*)" rel="next"', page)
        path = following_page[1] if following_page else ""
    assert seen == list(range(120, 0, -1))


def test_a_model_or_version_that_is_not_there_is_a_page_that_says_so(site: TestClient, engineer: Guest) -> None:
    for path in ("/models/nobody", "/models/nobody/estimate", "/models/NOT-A-NAME", "/models/nobody/versions/1"):
        assert look(site, engineer, path).status_code in {404, 422}
