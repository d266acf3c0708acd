"""Canaries: people whose ids can be recognised go through everything; afterwards nothing but the ledger knows them.

An id counts as found in clear, as hex, as base64, as one of the usual hashes, and as either of our keyed hashes. The
one designed exception is the suppression ledger, in the database.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit
from uuid import UUID

import pytest
import redis
from sqlalchemy import text

from app import planning
from app.domain import identifiers, webhook
from app.embedded import Postgres, Valkey
from app.storage import migrate
from app.storage.sessions import transaction
from tests import telltale, toy
from tests.e2e.listener import Listener
from tests.faults import process_tree, wait_until
from tests.house import Installation, installation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the way of six people, three times failed

PATH = "/v1/erasure-requests"
FORGOTTEN = {"retried": 1, "keyed": 2, "by hand": 4, "batched": 5}
CANCELLED, NOBODY = 3, 99_000
QUOTED = 98_000  # whom PostgreSQL's errors name, and so PostgreSQL's own log
EVERYBODY = [*FORGOTTEN.values(), CANCELLED, NOBODY]
LEDGER = "suppressions"
STATUS_QUERY = "SELECT status FROM erasure_requests WHERE id = :id"


@dataclass(frozen=True)
class Forms:
    """What an id may look like in a place where it must not be; all in lower case."""

    unkeyed: dict[str, bytes]
    subject: dict[str, bytes]
    ledger: dict[str, bytes]

    @property
    def all(self) -> dict[str, bytes]:
        return {**self.unkeyed, **self.subject, **self.ledger}


def forms(person: int, index_key: bytes) -> Forms:
    user_id = toy.user_id(person).encode()
    subject = identifiers.subject_key(index_key, user_id.decode())
    hashes = {name: hashlib.new(name, user_id).digest() for name in ("sha256", "sha1", "md5")}
    unkeyed = {"clear": user_id.partition(b"@")[0], "hex": user_id.hex().encode(), **_base64("id", user_id)}
    for name, digest in hashes.items():
        unkeyed |= _binary(name, digest)
    keyed = {"subject uuid": str(subject).encode(), **_binary("subject", subject.bytes)}
    ledger = _binary("ledger", identifiers.suppression_key(index_key, user_id.decode()))
    return Forms(*({name: form.lower() for name, form in found.items()} for found in (unkeyed, keyed, ledger)))


def _binary(name: str, value: bytes) -> dict[str, bytes]:
    return {name: value, f"{name} hex": value.hex().encode(), **_base64(name, value)}


def _base64(name: str, value: bytes) -> dict[str, bytes]:
    """Both alphabets; without the last characters, which depend on what comes next."""
    whole = value[: len(value) // 3 * 3]
    return {f"{name} base64": base64.b64encode(whole), f"{name} base64url": base64.urlsafe_b64encode(whole)}


class Monitor:
    """Everything that anybody says to the broker."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.heard = bytearray()
        self._socket = socket.create_connection((parts.hostname, parts.port))
        self._socket.sendall(f"AUTH {parts.password}\r\nMONITOR\r\n".encode())
        self._thread = threading.Thread(target=self._listen, name="monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while heard := self._socket.recv(65536):
            self.heard += heard


@dataclass
class Places:
    """Everything that was written or said, by place."""

    house: Installation
    found: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    tables_pending: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)

    def forms(self, person: int) -> Forms:
        return forms(person, self.house.settings.key("index_key"))


def sightings(places: dict[str, bytes], wanted: dict[str, bytes]) -> list[tuple[str, str]]:
    """(place, form) of everything wanted that is there."""
    return [(place, form) for place, hay in places.items() for form, needle in wanted.items() if needle in hay.lower()]


def every_table(house: Installation) -> dict[str, bytes]:
    """All rows of all tables as text; PostgreSQL writes bytea in hex, so its bytes are read as such, too."""
    with house.engine.connect() as connection:
        names = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        tables = {}
        for name in names:
            rows = connection.execute(text(f'SELECT t.*, t::text FROM "{name}" AS t')).all()
            tables[name] = b"\n".join(_as_bytes(value) for row in rows for value in row)
    return tables


def _as_bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()


def every_file(directory: Path, *, but: Iterable[Path]) -> dict[str, bytes]:
    left_out = set(but)
    files = (path for path in directory.rglob("*") if path.is_file() and path not in left_out)
    return {f"{path}": str(path).encode() + path.read_bytes() for path in files}


def every_key(broker: redis.Redis) -> bytes:
    """All keys and values of the broker, raw: DUMP works for every type; lists are read as well, uncompressed."""
    said = []
    for key in broker.scan_iter():
        said += [key, broker.dump(key) or b""]
        if broker.type(key) == b"list":
            said += broker.lrange(key, 0, -1)
    decoded = [base64.b64decode(part) for part in b" ".join(said).split(b'"') if _is_base64(part)]
    return b"\n".join([*said, *decoded])


def _is_base64(part: bytes) -> bool:
    try:
        return len(part) > 20 and base64.b64encode(base64.b64decode(part, validate=True)) == part
    except ValueError:
        return False


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """The whole life of six people in one house; all that was written or said on the way."""
    directory: Path = tmp_path_factory.mktemp("canary")
    home = directory / "home"
    home.mkdir()
    spans = directory / "spans"
    spans.touch()
    with (
        tracing_to(spans),
        Postgres(directory / "postgres", durable=False) as postgres,
        Valkey(directory / "valkey") as valkey,
        Monitor(valkey.url) as monitor,
        Listener("127.0.0.1") as listener,
    ):
        migrate.upgrade(postgres.url)
        allowed = (ip_network("127.0.0.1/32"),)
        with installation(
            home, postgres.url, valkey.url, processes=("api", "worker-io"), webhook_allow=allowed, max_attempts=2
        ) as house:
            seen = Places(house)
            live(seen, listener, redis.Redis.from_url(valkey.url))
            seen.tables = every_table(house)
            seen.found |= every_file(home, but=[home / "toy.csv"])
            seen.found |= {f"webhook {m.id}": repr(m).encode() for m in listener.messages}
            seen.found |= {"broker after": every_key(redis.Redis.from_url(valkey.url)), "broker": bytes(monitor.heard)}
            seen.found |= {f"{s} log": (directory / s / "log").read_bytes() for s in ("postgres", "valkey")}
            seen.found["traces"] = spans.read_bytes()
            with house.client() as client:
                seen.found["metrics"] = client.get("/metrics").content
            assert b"expunge.erase" in monitor.heard
            told = {json.loads(message.body)["type"] for message in listener.messages}
            outcomes = ("completed", "no_data", "cancelled", "needs_attention", "reopened", "queued", "in_progress")
            assert told >= {f"erasure_request.{outcome}" for outcome in outcomes}
            yield seen


def live(seen: Places, listener: Listener, broker: redis.Redis) -> None:
    """Everything that can happen to a person, in order."""
    house = seen.house
    with house.client() as client:
        endpoint = {"url": listener.url, "events": list(webhook.EVENTS), "schemes": ["v1", "v1a"]}
        seen.answers["endpoint"] = client.post("/v1/webhook-endpoints", json=endpoint).content
    ids = ask(seen)
    misuse(seen)
    misuse_every_route(seen)
    ask_about(seen)
    with failing(seen, "INSERT ON erasure_requests") as failed:
        with house.client() as client:
            answer = client.post(PATH, json={"user_id": toy.user_id(NOBODY + 1)})
        assert answer.status_code == 500
        seen.answers["a bug"] = repr((answer.headers, answer.content)).encode()
        failed("request failed")
    with failing(seen, "INSERT ON targets") as failed:
        house.start("dispatch")
        failed("dispatch waits")
    wait_until(lambda: b"expunge.erase" in every_key(broker), 30, "the job is rung")
    look_while_work_is_pending(seen, broker)
    fail_and_retry(seen, ids)
    undo_and_register_again(seen)
    ask_about(seen)
    seen.statuses = {name: status(house, request_id) for name, request_id in ids.items()}


def ask(seen: Places) -> dict[str, UUID]:
    """Four ways in: plain, under a key that is the id itself, taken back, by hand."""
    house, keyed = seen.house, toy.user_id(FORGOTTEN["keyed"])
    ids = {"retried": house.demand(FORGOTTEN["retried"]), "nobody": house.demand(NOBODY)}
    ids["cancelled"] = house.demand(CANCELLED)
    with house.client() as client:
        for _ in range(2):
            answer = client.post(PATH, json={"user_id": keyed}, headers={"Idempotency-Key": keyed})
            ids["keyed"] = UUID(answer.json()["id"])
        seen.answers["keyed"] = repr((answer.headers, answer.content)).encode()
        seen.answers["cancel"] = client.post(f"{PATH}/{ids['cancelled']}:cancel").content
    made = run_cli(seen, "requests", "create", stdin=toy.user_id(FORGOTTEN["by hand"]) + "\n")
    ids["by hand"] = UUID(made.split()[0])
    with house.client() as client:
        answer = client.post(f"{PATH}:batch", json={"items": [{"user_id": toy.user_id(FORGOTTEN["batched"])}]})
        seen.answers["batch"] = repr((answer.headers, answer.content)).encode()
    ids["batched"] = UUID(answer.json()["items"][0]["id"])
    return ids


def misuse(seen: Places) -> None:
    """Ids in every wrong place that a careless caller finds."""
    person = toy.user_id(FORGOTTEN["retried"])
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", PATH, {"json": {"user_id": person * 20}}),
        ("POST", PATH, {"json": {"user_id": person + "\n"}}),
        ("POST", PATH, {"json": {"user_id": [person]}}),
        ("POST", PATH, {"json": {"user_id": "u", "models": [person]}}),
        ("POST", PATH, {"json": {"user_id": "u", "models": ["toy", person.partition("@")[0]]}}),
        ("POST", PATH, {"json": {"user_id": "u", "reference": person + "\u00e9"}}),
        ("POST", PATH, {"content": f'{{"user_id": "{person}"'}),
        ("POST", PATH, {"content": person * 3000}),
        ("POST", PATH, {"json": {"user_id": person}, "headers": {"Idempotency-Key": f"{person} {person}"}}),
        ("POST", PATH, {"json": {"user_id": "another"}, "headers": {"Idempotency-Key": toy.user_id(2)}}),
        ("POST", PATH, {"json": {"user_id": person}, "headers": {"Authorization": f"Bearer {person}"}}),
        ("GET", f"{PATH}/{quote(person)}", {}),
        ("GET", PATH, {"params": {"cursor": person}}),
        ("GET", PATH, {"params": {"status": person}}),
        ("GET", f"/v1/models/{quote(person)}", {}),
        ("GET", f"/{quote(person)}", {}),
        ("POST", "/v1/webhook-endpoints", {"json": {"url": f"http://{person}/"}}),
    ]
    with seen.house.client() as client:
        for number, (method, url, options) in enumerate(calls):
            answer = client.request(method, url, **options)
            assert 400 <= answer.status_code < 500, (number, answer.status_code)
            seen.answers[f"misuse {number}"] = repr((answer.headers, answer.content)).encode()


def misuse_every_route(seen: Places) -> None:
    """An id in every place that a route has, and in headers that nobody asked for; whatever it is, it is no bug."""
    person = toy.user_id(FORGOTTEN["retried"])
    headers = dict.fromkeys(("X-Request-Id", "traceparent", "tracestate", "baggage", "User-Agent", "Referer"), person)
    bodies: list[dict[str, Any]] = [
        {"json": {person: person, "user_id": [person], "user_ids": [person, 1], "model": person, "url": person}},
        {"json": [person]},
        {"content": person, "headers": {"Content-Type": person}},
        {"content": f"{person}\n", "headers": {"Content-Type": "application/x-ndjson"}},
    ]
    with seen.house.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
        for path, operations in paths.items():
            for method, operation in operations.items():
                url = re.sub(r"\{\w+\}", quote(person), path)
                query = {p["name"]: person for p in operation.get("parameters", ()) if p["in"] == "query"}
                for number, body in enumerate(bodies if method in {"post", "patch", "put"} else [{}]):
                    sent = {**headers, **body.get("headers", {})}
                    answer = client.request(method, url, params=query, **{**body, "headers": sent})
                    seen.answers[f"{method} {path} {number}"] = repr((answer.headers, answer.content)).encode()
                    assert answer.status_code < 500 or path in ("/metrics", "/readyz", "/health/ready"), (path, method)


def ask_about(seen: Places) -> None:
    """What a training pipeline asks about everybody, and the list it takes along."""
    people = [toy.user_id(person) for person in EVERYBODY]
    with seen.house.client() as client:
        for route, body in (("check", {"model": "toy", "user_ids": people}), ("tokens", {"user_ids": people})):
            answer = client.post(f"/v1/suppressions:{route}", json=body)
            assert answer.status_code == 200
            seen.answers[f"suppressions {route} {len(seen.answers)}"] = repr((answer.headers, answer.content)).encode()
        for form in ("ndjson", "bloom"):
            answer = client.get(f"/v1/suppressions.{form}", params={"model": "toy"})
            assert answer.status_code == 200
            seen.answers[f"suppressions {form} {len(seen.answers)}"] = repr((answer.headers, answer.content)).encode()
        answer = client.get(f"{PATH}:export", params={"format": "csv"})
        assert answer.status_code == 200
        seen.answers["export"] = repr((answer.headers, answer.content)).encode()


@contextmanager
def failing(seen: Places, what: str) -> Iterator[Callable[[str], None]]:
    """Let PostgreSQL refuse something with an error that quotes a person, until the log has a line about that."""
    house = seen.house
    error = f"RAISE EXCEPTION 'not for {toy.user_id(QUOTED)}'"
    with house.engine.begin() as connection:
        connection.execute(
            text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {error}; END $$")
        )
        connection.execute(text(f"CREATE TRIGGER refuse BEFORE {what} EXECUTE FUNCTION refuse()"))
    begun = house.log.stat().st_size

    def failed(event: str) -> None:
        wait_until(lambda: event.encode() in house.log.read_bytes()[begun:], 60, f"the log says {event!r}")

    try:
        yield failed
    finally:
        with house.engine.begin() as connection:
            connection.execute(text("DROP FUNCTION refuse CASCADE"))


@contextmanager
def tracing_to(spans: Path) -> Iterator[None]:
    """A collector for every process that is started in the block."""
    command = [sys.executable, "-m", "tests.collector", str(spans)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collector, pytest.MonkeyPatch.context() as our:
        assert collector.stdout is not None
        our.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.stdout.readline().strip()}")
        our.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        try:
            yield
        finally:
            collector.kill()


def look_while_work_is_pending(seen: Places, broker: redis.Redis) -> None:
    seen.found["broker while work is pending"] = every_key(broker)
    seen.tables_pending = every_table(seen.house)
    for name, process in seen.house.processes.items():
        for pid in process_tree(process.pid):
            for part in ("cmdline", "environ"):
                seen.found[f"{part} of {name} ({pid})"] = Path(f"/proc/{pid}/{part}").read_bytes()


def fail_and_retry(seen: Places, ids: dict[str, UUID]) -> None:
    """PostgreSQL refuses the worker; then the list of recipes is lost; then the recipe dies and quotes a person."""
    house = seen.house
    recipes = house.settings.recipes_path
    with failing(seen, "INSERT ON suppressions") as failed:
        house.start("worker-unlearn")
        failed("step failed")
    recipes.rename(recipes.with_suffix(".away"))
    asked = [ids[name] for name in (*FORGOTTEN, "nobody")]
    needing_attention(house, asked)
    recipes.write_text(f'[recipes]\ntoy = "{telltale.REFERENCE}"\n')
    retry(seen, asked)
    needing_attention(house, [request_id for request_id in asked if request_id != ids["nobody"]])
    assert b"TelltaleError" in house.log.read_bytes(), "the recipe was asked, and died of it"
    recipes.with_suffix(".away").rename(recipes)
    retry(seen, [request_id for request_id in asked if status(house, request_id) == "needs_attention"])
    for request_id in asked:
        wait_until(partial(has_its_end, house, request_id), 90, "it ends", every_seconds=0.2)


def needing_attention(house: Installation, asked: list[UUID]) -> None:
    for request_id in asked:
        assert house.wait_until_ended(request_id)["status"] == "needs_attention"


def retry(seen: Places, asked: list[UUID]) -> None:
    """The first by hand."""
    house = seen.house
    run_cli(seen, "requests", "retry", str(asked[0]))
    for request_id in asked[1:]:
        with transaction(house.engine) as tx:
            now = tx.scalar(text("SELECT now()"))
            planning.retry(tx, request_id, now=now, settings=house.settings)


def undo_and_register_again(seen: Places) -> None:
    """Both bring the forgotten people back; one job forgets them again."""
    house = seen.house
    worker = house.processes.pop("worker-unlearn")
    worker.kill()
    worker.wait()
    run_cli(seen, "models", "rollback", "toy", "--to", "1")
    weights, manifest = toy.write_model(house.directory)
    options = ["--recipe", toy.REFERENCE, "--weights", str(weights), "--manifest", str(manifest)]
    run_cli(seen, "models", "register", "toy", *options, "--unlearn")
    house.start("worker-unlearn")
    wait_until(lambda: all_ended(house), 120, "every request has ended", every_seconds=0.3)
    run_cli(seen, "requests", "list")


def run_cli(seen: Places, *arguments: str, stdin: str | None = None) -> str:
    done = seen.house.cli(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    seen.found[f"expunge {' '.join(arguments)}"] = (done.stdout + done.stderr).encode()
    return done.stdout


def status(house: Installation, request_id: UUID) -> str:
    with house.engine.connect() as connection:
        return str(connection.scalar(text(STATUS_QUERY), {"id": request_id}))


def has_its_end(house: Installation, request_id: UUID) -> bool:
    return status(house, request_id) in {"completed", "no_data"}


def all_ended(house: Installation) -> bool:
    with house.engine.connect() as connection:
        open_requests = connection.scalar(text("SELECT count(*) FROM erasure_requests WHERE closed_at IS NULL"))
        undelivered = connection.scalar(
            text("SELECT count(*) FROM webhook_deliveries WHERE next_attempt_at IS NOT NULL")
        )
        return not open_requests and not undelivered


def test_everything_happened_to_them(places: Places) -> None:
    assert places.statuses == {
        "retried": "completed",
        "keyed": "completed",
        "by hand": "completed",
        "batched": "completed",
        "nobody": "no_data",
        "cancelled": "cancelled",
    }
    told = places.tables["events"]
    for what in (b"request.needs_attention", b"job.failed", b"model.rolled_back", b"suppression", b"request.cancelled"):
        assert what in told


def test_every_line_of_every_process_is_json_and_every_process_failed_once(places: Places) -> None:
    lines = [json.loads(line) for line in places.house.log.read_text().splitlines() if line[:1] == "{"]
    said = {line["event"] for line in lines}
    assert {"http", "request failed", "dispatch waits", "step failed", "process died"} <= said
    other = [line for line in places.house.log.read_text().splitlines() if line[:1] != "{"]
    assert other == []


def test_errors_that_quote_a_person_quote_nobody_beyond_postgresql_itself(places: Places) -> None:
    said = sightings({**places.found, **places.answers, **places.tables}, places.forms(QUOTED).all)
    assert said == [("postgres log", "clear")]


def test_traces_and_metrics_tell_of_all_of_it(places: Places) -> None:
    names = {json.loads(line)["name"] for line in places.found["traces"].splitlines()}
    assert {"POST /v1/erasure-requests", "ring", "job", "locate", "certificate"} <= names
    assert b'expunge_requests_ended_total{outcome="completed"}' in places.found["metrics"]
    assert b'code="500"' in places.found["metrics"]


def test_the_search_finds_what_is_there(places: Places) -> None:
    """The manifest names everybody; while work is pending, the database knows them by keyed hashes."""
    manifest = {"manifest": (places.house.directory / "toy.csv").read_bytes()}
    for person in FORGOTTEN.values():
        assert ("manifest", "clear") in sightings(manifest, places.forms(person).all)
        pending = sightings(places.tables_pending, places.forms(person).all)
        assert {("erasure_requests", "subject uuid"), ("erasure_requests", "ledger hex")} <= set(pending)
        assert (LEDGER, "ledger hex") in sightings(places.tables, places.forms(person).all)


@pytest.mark.parametrize("person", EVERYBODY)
def test_nothing_outside_the_database_ever_knew_them(places: Places, person: int) -> None:
    assert sightings(places.found, places.forms(person).all) == []


@pytest.mark.parametrize("person", EVERYBODY)
def test_no_answer_repeats_what_was_sent(places: Places, person: int) -> None:
    assert sightings(places.answers, places.forms(person).all) == []


@pytest.mark.parametrize("person", EVERYBODY)
def test_even_while_work_is_pending_no_table_holds_an_id_or_an_unkeyed_hash_of_it(places: Places, person: int) -> None:
    assert sightings(places.tables_pending, places.forms(person).unkeyed) == []


@pytest.mark.parametrize("person", [*FORGOTTEN.values(), NOBODY])
def test_after_the_end_only_the_ledger_knows_them(places: Places, person: int) -> None:
    known = places.forms(person)
    others = {name: rows for name, rows in places.tables.items() if name != LEDGER}
    assert sightings(others, known.all) == []
    assert sightings({LEDGER: places.tables[LEDGER]}, {**known.unkeyed, **known.subject}) == []


def test_who_took_the_request_back_is_known_to_the_index_alone_as_before(places: Places) -> None:
    """Nothing was forgotten about them: they stay a member like any other, and are not in the ledger."""
    assert {place for place, _ in sightings(places.tables, places.forms(CANCELLED).all)} == {"postings"}
