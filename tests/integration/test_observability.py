"""What people see from outside: a line per call, metrics of the whole house, health that tells the truth."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from math import inf
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from app import keymaking
from app.api.auth import Scope
from app.storage import facts, jobs, totals
from app.storage.sessions import transaction
from tests import toy
from tests.faults import wait_until
from tests.house import Installation, installation
from tests.pipeline import Bench, register
from tests.services import new_database
from workers import erase

pytestmark = pytest.mark.slow

PATH = "/v1/erasure-requests"
CANARY = "canary-4711@people.example"


def lines(house: Installation, call: str, *, expected: int = 1) -> list[dict[str, Any]]:
    """What the processes have said of a call; every line must be JSON, and the last may come after the answer."""

    def said() -> list[dict[str, Any]]:
        text_of = house.log.read_text()
        every = [json.loads(line) for line in text_of[: text_of.rfind("\n") + 1].splitlines()]
        return [line for line in every if line.get("call") == call]

    wait_until(lambda: len(said()) >= expected, 10, "the line is written")
    return said()


def sql(house: Installation, statement: str, **values: Any) -> None:
    with transaction(house.engine) as tx:
        tx.execute(text(statement), values)


def scrape(house: Installation, key: str = "") -> dict[tuple[str, ...], float]:
    """Every sample: (name, values of its labels by the labels' names) → value."""
    with house.client() as client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }


# --- logs -------------------------------------------------------------------------------------------------------------


def test_every_call_is_a_line_with_the_number_that_its_answer_carries(front_door: Installation) -> None:
    with front_door.client() as client:
        answer = client.get(f"{PATH}/{uuid4()}", params={"who": CANARY})
    [line] = lines(front_door, answer.headers["X-Request-Id"])
    assert {name: line[name] for name in ("event", "level", "method", "path", "code")} == {
        "event": "http",
        "level": "info",
        "method": "GET",
        "path": f"{PATH}/{{request_id}}",
        "code": 404,
    }
    assert 0 < line["ms"] < 5000
    assert set(line) == {"event", "level", "method", "path", "code", "ms", "call", "timestamp"}


@pytest.mark.parametrize(
    "header", ["X-Request-Id", "traceparent", "User-Agent", "Referer", "X-Forwarded-For", "Cookie"]
)
def test_nothing_that_a_caller_chose_is_repeated(front_door: Installation, header: str) -> None:
    with front_door.client() as client:
        answer = client.get(PATH, headers={header: CANARY})
        lost = client.get(f"/{CANARY}")
        odd = client.request("PROPFIND", PATH)
    assert CANARY not in repr(answer.headers) + lost.text + odd.text
    assert [line["path"] for line in lines(front_door, lost.headers["X-Request-Id"])] == ["?"]
    assert [line["method"] for line in lines(front_door, odd.headers["X-Request-Id"])] == ["other"]
    assert "canary" not in front_door.log.read_text().lower()


def test_machines_that_ask_every_second_leave_no_lines(front_door: Installation) -> None:
    with front_door.client() as client:
        calls = [client.get(path).headers["X-Request-Id"] for path in ("/livez", "/readyz", "/health/live", "/metrics")]
    assert [line for call in calls for line in lines(front_door, call, expected=0)] == []


@pytest.fixture
def broken(front_door: Installation) -> Iterator[Installation]:
    """PostgreSQL raises an error that quotes a person whenever somebody asks to be forgotten or asks for models."""
    sql(
        front_door,
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no: {CANARY}'; END $$",
    )
    sql(front_door, "CREATE TRIGGER refuse BEFORE INSERT ON erasure_requests EXECUTE FUNCTION refuse()")
    sql(front_door, "CREATE TRIGGER refuse BEFORE INSERT ON webhook_endpoints EXECUTE FUNCTION refuse()")
    yield front_door
    sql(front_door, "DROP FUNCTION refuse CASCADE")


@pytest.mark.parametrize(
    ("path", "body"),
    [(PATH, {"user_id": CANARY}), ("/v1/webhook-endpoints", {"url": "https://example.com/hook"})],
)
def test_a_bug_leaves_its_class_and_place_and_no_message(broken: Installation, path: str, body: dict[str, str]) -> None:
    with broken.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 500
    line, told = lines(broken, answer.headers["X-Request-Id"], expected=2)
    assert told["event"] == "request failed"
    assert told["kind"] in {"ProgrammingError", "RaiseException"}, "PostgreSQL's error, wrapped or not"
    assert (line["event"], line["path"], line["code"]) == ("http", path, 500)
    assert ".py:" in told["place"]
    assert CANARY not in answer.text + broken.log.read_text()


@pytest.mark.parametrize(
    "death",
    [
        f"raise RuntimeError('{CANARY}')",
        f"import threading; t = threading.Thread(target=lambda: int('{CANARY}')); t.start(); t.join()",
        f"import logging; logging.getLogger('a.library').warning('got %s', '{CANARY}')",
        f"import warnings; warnings.warn('{CANARY}')",
        f"import logging\ntry: int('{CANARY}')\nexcept ValueError: logging.getLogger('b').exception('%s', '{CANARY}')",
        f"logs.log.error('ours', user='{CANARY}', job='j')",
    ],
)
def test_a_process_can_not_say_what_it_died_of_in_anybodys_words(death: str) -> None:
    code = f"from app import logs; logs.configure('INFO'); logs.own_process()\n{death}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert CANARY not in done.stderr + done.stdout
    [line] = map(json.loads, done.stderr.splitlines())
    assert line["level"] in {"warning", "error"}


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_need_their_scope(front_door: Installation) -> None:
    with front_door.client() as client:
        assert client.get("/metrics", headers={"Authorization": ""}).status_code == 401
    with transaction(front_door.engine) as tx:
        others = [scope for scope in Scope if scope is not Scope.METRICS_READ]
        _, key = keymaking.create(tx, name="curious", scopes=others)
    with front_door.client() as client:
        assert client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 403


def test_http_is_counted_by_route_and_code(front_door: Installation) -> None:
    def served(code: str) -> float:
        return scrape(front_door).get(("expunge_http_request_seconds_count", code, "GET", f"{PATH}/{{request_id}}"), 0)

    before = served("404")
    with front_door.client() as client:
        for _ in range(3):
            client.get(f"{PATH}/{uuid4()}")
    assert served("404") == before + 3


def test_two_api_processes_tell_one_sum(postgres_server: str, template_database: str, tmp_path: Path) -> None:
    with (
        new_database(postgres_server, template_database) as url,
        installation(tmp_path, url, "", processes=(), model=False) as house,
    ):
        house.commands["api"] = (*house.commands["api"], "--workers", "2")
        house.start("api")
        house.wait_for_api()
        for _ in range(40):
            httpx.get(f"http://127.0.0.1:{house.port}/.well-known/nothing-here")  # a connection, and so a process, each
        name = ("expunge_http_request_seconds_count", "404", "GET", "?")
        assert {scrape(house)[name] for _ in range(10)} == {40.0}


def _as_of(house: Installation, bench_now: Any) -> facts.Facts:
    with transaction(house.engine) as tx:
        return facts.read(tx, now=bench_now)


def test_requests_are_counted_by_state_and_by_what_is_left_of_their_time(empty: Bench) -> None:
    for days in (-2, 0.5, 2, 20, 50):
        sql(
            empty.house,
            "INSERT INTO erasure_requests (id, ref, status, received_at, deadline) VALUES"
            " (gen_random_uuid(), gen_random_uuid()::text, 'received', now(), now() + make_interval(hours => :h))",
            h=int(days * 24),
        )
    sql(
        empty.house,
        "INSERT INTO erasure_requests (id, ref, status, received_at, deadline, closed_at) VALUES"
        " (gen_random_uuid(), 'x', 'completed', now(), now() - interval '9 days', now())",
    )
    found = _as_of(empty.house, empty.now())
    assert [(one.status, one.count, one.overdue, one.within_days) for one in found.requests] == [
        ("received", 5, 1, (2, 3, 3, 3, 4))
    ]
    assert (found.requests[0].earliest_deadline - empty.now()).total_seconds() == pytest.approx(-2 * 86400, abs=60)


def test_a_pipeline_is_measured_step_by_step_and_the_numbers_survive_their_process(empty: Bench) -> None:
    register(empty)
    empty.demand(1)
    empty.demand(99_000)
    empty.run_all()
    with transaction(empty.house.engine) as tx:
        before = totals.read(tx)
        totals.add_up(tx)
    with transaction(empty.house.engine) as tx:
        after = totals.read(tx)
        assert tx.scalar(text("SELECT count(*) FROM measurements")) == 0
        totals.add_up(tx)
        assert totals.read(tx) == after == before
    steps = {label: sum(one.buckets.values()) for (name, label), one in after.items() if name == "step"}
    moves = [kind for _, kind in empty.trail() if kind.startswith("job.") and kind != "job.queued"]
    assert set(steps) == {"locate", "unlearn", "verify", "publish", "certify"}
    assert sum(steps.values()) == len(moves)
    assert {label: one.value for (name, label), one in after.items() if name == "requests_ended"} == {
        "completed": 1.0,
        "no_data": 1.0,
    }
    assert after["suppressed", ""].value == 2
    assert after["step", "unlearn"].value == pytest.approx(0.5, abs=30)


def test_only_a_lease_that_ran_out_counts_as_one(empty: Bench) -> None:
    register(empty)
    empty.demand(1)
    [job_id] = empty.plan()
    lease, most = empty.ctx.settings.lease, 9

    def claim() -> None:
        with transaction(empty.house.engine) as tx:
            assert jobs.claim(tx, job_id, lease=lease, max_attempts=most) is not None

    def expired() -> float:
        with transaction(empty.house.engine) as tx:
            return totals.read(tx).get(("lease_expired", ""), totals.Sum({}, 0.0)).value

    claim()
    assert expired() == 0
    empty.expire_leases()
    claim()
    assert expired() == 1
    with transaction(empty.house.engine) as tx:
        jobs.release(tx, job_id, fence=2, error=None, after=-lease)
    erase.run(empty.ctx, job_id)
    assert expired() == 1


def test_a_queue_that_nobody_ever_heard_is_silent_and_one_that_works_is_not(empty: Bench) -> None:
    register(empty)
    empty.demand(1)
    [job_id] = empty.plan()
    with transaction(empty.ctx.engine) as tx:
        assert facts.read(tx, now=empty.now()).silent == {"unlearn": inf, "io": inf}
        jobs.claim(tx, job_id, lease=timedelta(seconds=60), max_attempts=5)
        jobs.hear(tx, "io")
        tx.flush()
        silent = facts.read(tx, now=empty.now()).silent
    assert silent["unlearn"] == 0.0
    assert silent["io"] < 60


def test_measurements_of_two_at_once_are_both_counted(empty: Bench) -> None:
    """One adds up while the other has not committed: nothing is lost, nothing counted twice."""
    with transaction(empty.house.engine) as slow:
        totals.measure(slow, "step", "x", value=2.0)
        with transaction(empty.house.engine) as tx:
            totals.measure(tx, "step", "x", value=700.0)
        with transaction(empty.house.engine) as tx:
            totals.add_up(tx)
    with transaction(empty.house.engine) as tx:
        assert totals.read(tx)["step", "x"] == totals.Sum({3: 1, 7: 1}, 702.0)
        totals.add_up(tx)
        assert totals.read(tx)["step", "x"] == totals.Sum({3: 1, 7: 1}, 702.0)


def test_a_histogram_of_steps_is_one_that_prometheus_understands(front_door: Installation) -> None:
    with transaction(front_door.engine) as tx:
        for value in (0.05, 0.3, 10.0, 99_999.0):
            totals.measure(tx, "step", "unlearn", value=value)
    time.sleep(5.1)  # what a scrape says is kept for five seconds
    told = scrape(front_door)
    buckets = [told["expunge_step_seconds_bucket", bound, "unlearn"] for bound in ("0.1", "0.5", "1.0", "15.0", "+Inf")]
    assert buckets == [1, 2, 2, 3, 4]
    assert told["expunge_step_seconds_count", "unlearn"] == 4
    assert told["expunge_step_seconds_sum", "unlearn"] == pytest.approx(100_009.35)


def test_a_scrape_of_a_hundred_thousand_open_requests_takes_less_than_fifty_milliseconds(empty: Bench) -> None:
    sql(
        empty.house,
        "INSERT INTO erasure_requests (id, ref, status, received_at, deadline, subject_key, suppression_key,"
        " sealed_user_id, dedupe_key) SELECT gen_random_uuid(), n::text, 'received', now() - n * interval '1 s',"
        " now() + n * interval '1 m', gen_random_uuid(), sha256(n::text::bytea), sha256(n::text::bytea),"
        " sha256(n::text::bytea) FROM generate_series(1, 100000) AS n",
    )
    sql(empty.house, "ANALYZE erasure_requests")
    now = empty.now()
    assert sum(one.count for one in _as_of(empty.house, now).requests) == 100_000
    with transaction(empty.house.engine) as tx:
        bare = _quickest(lambda: tx.scalar(text("SELECT count(status) FROM erasure_requests WHERE closed_at IS NULL")))
    # A busy machine takes its time for anything: then at most four times what PostgreSQL needs to look at the rows.
    assert _quickest(lambda: _as_of(empty.house, now)) < max(0.05, 4 * bare)


def _quickest(act: Callable[[], object]) -> float:
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return min(times)


def test_what_has_ended_costs_a_scrape_nothing(empty: Bench) -> None:
    sql(
        empty.house,
        "INSERT INTO erasure_requests (id, ref, status, received_at, deadline, closed_at)"
        " SELECT gen_random_uuid(), n::text, 'completed', now(), now(), now() FROM generate_series(1, 100000) AS n",
    )
    sql(empty.house, "ANALYZE erasure_requests")
    now = empty.now()
    with transaction(empty.house.engine) as tx:
        bare = _quickest(lambda: tx.scalar(text("SELECT count(closed_at) FROM erasure_requests")))
    assert _quickest(lambda: _as_of(empty.house, now)) < max(0.02, bare)


# --- health -----------------------------------------------------------------------------------------------------------


def test_ready_is_ready_under_both_names(front_door: Installation) -> None:
    with front_door.client() as client:
        for path in ("/readyz", "/health/ready"):
            answer = client.get(path, headers={"Authorization": ""})
            assert (answer.status_code, answer.json()["accepting"], answer.json()["working"]) == (200, True, False)
        for path in ("/livez", "/health/live"):
            assert client.get(path).json() == {"live": True}


def _read_only(house: Installation) -> Callable[[], None]:
    with transaction(house.engine) as tx:
        name = tx.scalar(text("SELECT quote_ident(current_database())"))
    sql(house, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    _forget_connections(house)
    return lambda: _writable_again(house, str(name))


def _writable_again(house: Installation, name: str) -> None:
    sql(house, f"SET TRANSACTION READ WRITE; ALTER DATABASE {name} RESET default_transaction_read_only")
    _forget_connections(house)


def _forget_connections(house: Installation) -> None:
    with transaction(house.engine) as tx:
        tx.execute(text("SET TRANSACTION READ WRITE"))
        tx.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    house.engine.dispose()
    time.sleep(1.1)  # a connection that was used within the last second is not asked whether it lives


def _old_schema(house: Installation) -> Callable[[], None]:
    with transaction(house.engine) as tx:
        head = tx.scalar(text("SELECT version_num FROM alembic_version"))
    sql(house, "UPDATE alembic_version SET version_num = '0003'")
    return lambda: sql(house, "UPDATE alembic_version SET version_num = :head", head=head)


def _other_key(house: Installation) -> Callable[[], None]:
    sql(house, "CREATE TABLE kept AS SELECT * FROM key_checks")
    sql(house, "UPDATE key_checks SET fingerprint = 'another' WHERE name = 'index_key'")
    back = "UPDATE key_checks SET fingerprint = kept.fingerprint FROM kept WHERE kept.name = key_checks.name"
    return lambda: sql(house, back)


@pytest.mark.parametrize(
    ("breaking", "sentence"),
    [
        (_read_only, "takes no writes"),
        (_old_schema, "is at schema 0003 and needs"),
        (_other_key, "EXPUNGE_INDEX_KEY is not the key"),
    ],
)
def test_not_ready_says_what_is_wrong(
    front_door: Installation, breaking: Callable[[Installation], Callable[[], None]], sentence: str
) -> None:
    mend = breaking(front_door)
    try:
        with front_door.client() as client:
            answer = client.get("/readyz")
            assert (answer.status_code, client.get("/livez").status_code) == (503, 200)
            assert sentence in answer.json()["detail"]
            assert answer.headers["Retry-After"]
    finally:
        mend()
    with front_door.client() as client:
        assert client.get("/readyz").status_code == 200


def test_a_newer_schema_than_ours_is_no_reason_to_refuse(front_door: Installation) -> None:
    """Old and new processes run side by side during an upgrade."""
    mend = _old_schema(front_door)
    sql(front_door, "UPDATE alembic_version SET version_num = '9999'")
    try:
        with front_door.client() as client:
            assert client.get("/readyz").status_code == 200
    finally:
        mend()


def test_canary_is_a_person_of_nobodys_model() -> None:
    assert CANARY not in {toy.user_id(person) for person in range(toy.MEMBERS)}
