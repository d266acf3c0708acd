"""Who must not be trained on: asked by a pipeline, taken along as a list, and enforced by registration alike."""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import os
import subprocess
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from rbloom import Bloom
from sqlalchemy import text
from sqlalchemy.orm import Session

from app import keymaking, manifest_filter, suppression
from app.api.auth import Scope
from app.domain import identifiers
from app.errors import Conflict, Invalid, Unavailable
from app.storage import samples, suppressions
from app.storage.sessions import transaction
from app.storage.tables import Model
from tests import command_line, toy
from tests.architecture.source import ROOT
from tests.house import Installation
from tests.pipeline import Bench, register

pytestmark = pytest.mark.slow

CHECK = "/v1/suppressions:check"
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def key_of(house: Installation, user_id: str) -> bytes:
    return identifiers.suppression_key(house.settings.key("index_key"), user_id)


def listed(house: Installation, user_id: str, row: str = "*", *, days_ago: int = 1) -> None:
    """Put somebody on the list as of some days ago."""
    since = TODAY - timedelta(days=days_ago)
    row_of = {"key": key_of(house, user_id), "model": row, "since": since}
    with transaction(house.engine) as tx:
        tx.execute(
            text("INSERT INTO suppressions (suppression_key, model, since) VALUES (:key, :model, :since)"), row_of
        )


def pipeline_key(house: Installation, *scopes: Scope) -> str:
    with transaction(house.engine) as tx:
        _, secret = keymaking.create(tx, name=f"pipeline {uuid4().hex[:6]}", scopes=scopes or [Scope.SUPPRESSIONS_READ])
    return secret


def ask(house: Installation, user_ids: list[str], *, model: str = "wages", key: str = "") -> httpx.Response:
    with house.client() as client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return client.post(CHECK, json={"model": model, "user_ids": user_ids}, headers=headers)


def suppressed(house: Installation, user_ids: list[str], *, model: str = "wages") -> list[int]:
    answer = ask(house, user_ids, model=model)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["suppressed"])


def test_the_answer_names_places_and_nobody(front_door: Installation) -> None:
    listed(front_door, "erased@people.example")
    answer = ask(front_door, ["a", "erased@people.example", "b", "erased@people.example"])
    assert answer.json() == {"asked": 4, "suppressed": [1, 3]}


def test_a_pipelines_key_is_enough_and_another_scope_is_not(front_door: Installation) -> None:
    assert ask(front_door, ["a"], key=pipeline_key(front_door)).status_code == 200
    others = [scope for scope in Scope if scope is not Scope.SUPPRESSIONS_READ]
    assert ask(front_door, ["a"], key=pipeline_key(front_door, *others)).status_code == 403


def test_ten_thousand_ids_are_one_question_and_one_more_is_refused(front_door: Installation) -> None:
    listed(front_door, "the last of many")
    many = [f"{number:032d}" for number in range(9_999)]
    assert suppressed(front_door, [*many, "the last of many"]) == [9_999]
    answer = ask(front_door, [*many, "one", "too many"])
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 1


def test_a_body_beyond_four_mebibytes_is_refused(front_door: Installation) -> None:
    assert ask(front_door, ["x" * 250] * 9_000).status_code == 200
    assert ask(front_door, ["\u00e9" * 250] * 9_000).status_code == 413


@pytest.mark.parametrize("wrong", ["", "a\nb", "x" * 257])
def test_an_id_that_breaks_the_rule_is_named_by_its_place(front_door: Installation, wrong: str) -> None:
    answer = ask(front_door, ["fine", wrong, "fine"])
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "user_ids.1"
    assert not wrong or wrong not in answer.text


def test_ten_thousand_wrong_ids_are_one_mistake(front_door: Installation) -> None:
    with front_door.client() as client:
        answer = client.post(CHECK, json={"model": "wages", "user_ids": [7] * 10_000})
    assert (answer.status_code, len(answer.json()["errors"])) == (422, 1)


# --- who counts -------------------------------------------------------------------------------------------------------

ON_THE_LIST: dict[str, tuple[list[str], bool]] = {
    "for every model": (["*"], True),
    "for this model": (["toy"], True),
    "for another model": (["other"], False),
    "for every model but this one": (["*", "!toy"], False),
    "for every model but another": (["*", "!other"], True),
    "for every model but this one, and later for it, too": (["*", "!toy", "toy"], True),
}
OPEN: dict[str, tuple[str, list[str] | None, bool]] = {
    "received": ("received", None, True),
    "received for this model": ("received", ["toy"], True),
    "received for another model": ("received", ["other"], False),
    "waiting for a colleague's word": ("pending", None, True),
    "in the works": ("in_progress", None, True),
    "in need of attention": ("needs_attention", None, True),
    "of somebody who may be anybody": ("awaiting_identity", None, False),
    "on hold": ("on_hold", None, False),
}


def _demanded(bench: Bench, user_id: str, status: str, models: list[str] | None) -> UUID:
    request_id, settings = uuid4(), bench.house.settings
    with transaction(bench.house.engine) as tx:
        tx.execute(
            text(
                "INSERT INTO erasure_requests (id, ref, status, models, received_at, deadline, subject_key,"
                " suppression_key) VALUES (:id, :ref, :status, :models, now(), now(), :subject, :key)"
            ),
            {
                "id": request_id,
                "ref": request_id.hex,
                "status": status,
                "models": models,
                "subject": identifiers.subject_key(settings.key("index_key"), user_id),
                "key": key_of(bench.house, user_id),
            },
        )
    return request_id


def _everybody(bench: Bench) -> dict[str, bool]:
    """People by id, and whether the toy model must not be trained on them."""
    expected = {}
    for number, (rows, counts) in enumerate(ON_THE_LIST.values()):
        expected[f"listed-{number}"] = counts
        for row in rows:
            listed(bench.house, f"listed-{number}", row)
    for number, (status, models, counts) in enumerate(OPEN.values()):
        expected[f"open-{number}"] = counts
        _demanded(bench, f"open-{number}", status, models)
    refused = _demanded(bench, "refused", "in_progress", None)
    with transaction(bench.house.engine) as tx:
        tx.execute(
            text(
                "INSERT INTO decisions (request_id, kind, decided_at, models)"
                " VALUES (:id, 'refused', now(), ARRAY['toy'])"
            ),
            {"id": refused},
        )
    return {**expected, "refused": False, "nobody": False}


def test_pipelines_are_told_of_exactly_those_whom_registration_refuses(empty: Bench) -> None:
    expected, settings = _everybody(empty), empty.house.settings
    people = list(expected)
    with transaction(empty.house.engine) as tx:
        told = {people[place] for place in suppression.barred(tx, people, model="toy", settings=settings)}
        refused = _refused_at_registration(tx, people, settings.key("index_key"))
    assert told == refused == {person for person, counts in expected.items() if counts}


def _refused_at_registration(tx: Session, people: list[str], index_key: bytes) -> set[str]:
    rows = [
        samples.Row(
            number,
            identifiers.subject_key(index_key, user),
            identifiers.suppression_key(index_key, user),
            samples.TRAIN,
        )
        for number, user in enumerate(people)
    ]
    model = Model(name="toy", recipe="r")
    tx.add(model)
    tx.flush()
    loaded = samples.load(tx, model.id, digest="d", rows=rows, model_name="toy")
    names = {identifiers.suppression_key(index_key, user): user for user in people}
    return {names[bytes(key)] for _, key in loaded.suppressed_subjects}


@pytest.mark.parametrize(
    ("demands", "rows"),
    [
        ([(None, ())], {"*"}),
        ([(["a", "b"], ())], {"a", "b"}),
        ([(["a", "b"], ("b",))], {"a"}),
        ([(None, ("a",))], {"*", "!a"}),
        ([(None, ("a",)), (None, ())], {"*", "!a", "a"}),
        ([(None, ()), (None, ("a",))], {"*"}),
        ([(None, ("a",)), (["a"], ())], {"*", "!a", "a"}),
    ],
)
def test_what_was_once_to_be_forgotten_stays_on_the_list(
    empty: Bench, demands: list[tuple[list[str] | None, tuple[str, ...]]], rows: set[str]
) -> None:
    with transaction(empty.house.engine) as tx:
        for models, refused in demands:
            suppressions.add(tx, b"k" * 32, models, refused=refused)
        assert set(tx.scalars(text("SELECT model FROM suppressions"))) == rows


# --- the list to take along -------------------------------------------------------------------------------------------


@pytest.fixture
def shop(front_door: Installation) -> Installation:
    """A list of its own: two people for every model, one for wages, one for another, and one of today."""
    forget_the_list(front_door)
    listed(front_door, "ann")
    listed(front_door, "bob", days_ago=3)
    listed(front_door, "cem", "wages", days_ago=2)
    listed(front_door, "dee", "other")
    listed(front_door, "eve", days_ago=0)
    return front_door


def forget_the_list(house: Installation) -> None:
    with transaction(house.engine) as tx:
        tx.execute(text("ALTER TABLE suppressions DISABLE TRIGGER USER"))  # nothing else lets a row go
        tx.execute(text("DELETE FROM suppressions"))
        tx.execute(text("ALTER TABLE suppressions ENABLE TRIGGER USER"))


def tokens_of(house: Installation, user_ids: list[str], key: str) -> list[str]:
    with house.client() as client:
        answer = client.post(
            "/v1/suppressions:tokens", json={"user_ids": user_ids}, headers={"Authorization": f"Bearer {key}"}
        )
    assert answer.status_code == 200, answer.text
    return list(answer.json()["tokens"])


def taken(house: Installation, form: str, key: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
    with house.client() as client:
        return client.get(f"/v1/suppressions.{form}", params={"model": "wages", **more}, headers=headers)


def lines_of(answer: httpx.Response) -> list[str]:
    return [json.loads(line)["token"] for line in answer.text.splitlines()]


def test_the_list_holds_the_tokens_of_those_listed_before_today(shop: Installation) -> None:
    key = pipeline_key(shop)
    ann, bob, cem, dee, eve, fay = tokens_of(shop, ["ann", "bob", "cem", "dee", "eve", "fay"], key)
    assert sorted(lines_of(taken(shop, "ndjson", key))) == sorted([ann, bob, cem])
    assert not {dee, eve, fay} & set(lines_of(taken(shop, "ndjson", key)))


def test_the_filter_says_the_same_as_the_list_when_it_is_read_as_the_page_says(shop: Installation) -> None:
    page = (ROOT / "docs" / "suppression.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    people = ["ann", "bob", "cem", "dee", "eve", "fay"]
    names: dict[str, Any] = {"user_ids": people, "samples": [person.upper() for person in people]}
    with shop.client() as http:
        http.headers["Authorization"] = f"Bearer {pipeline_key(shop)}"
        names["http"] = http
        exec(code, names)
    assert names["clean"] == ["DEE", "EVE", "FAY"]


def test_a_token_is_an_hmac_under_a_key_that_only_the_house_can_derive(shop: Installation) -> None:
    secret = pipeline_key(shop)
    with transaction(shop.engine) as tx:
        client_id = tx.scalar(text("SELECT client_id FROM api_keys ORDER BY created_at DESC LIMIT 1"))
    index_key, reader = shop.settings.key("index_key"), hashlib.sha256
    parts = [b"suppression list of a reader", client_id.bytes]
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    derived = hmac.new(index_key, message, reader).digest()
    stored = hmac.new(index_key, b"expunge/suppression/v1\0ann", reader).digest()
    token = hmac.new(derived, b"expunge/suppression-token/v1\0" + stored, reader).digest()[:16]
    assert tokens_of(shop, ["ann"], secret) == [token.hex()]


def test_two_readers_can_not_find_the_same_person_in_their_lists(shop: Installation) -> None:
    for number in range(60):
        listed(shop, f"more-{number}")
    mine, theirs = pipeline_key(shop), pipeline_key(shop)
    people = ["ann", "bob", "cem", *(f"more-{number}" for number in range(60))]
    orders = []
    for key in (mine, theirs):
        names = dict(zip(tokens_of(shop, people, key), people, strict=True))
        orders.append([names[token] for token in lines_of(taken(shop, "ndjson", key))])
    assert set(orders[0]) == set(orders[1]) == set(people)
    same_place = sum(one == other for one, other in zip(*orders, strict=True))
    assert same_place < 10  # one in expectation
    assert not set(tokens_of(shop, people, mine)) & set(tokens_of(shop, people, theirs))


@pytest.mark.parametrize("form", ["ndjson", "bloom"])
def test_an_unchanged_list_is_not_sent_again_and_tells_only_a_day(shop: Installation, form: str) -> None:
    key = pipeline_key(shop)
    first = taken(shop, form, key)
    listed(shop, "gus", days_ago=0)
    again = taken(shop, form, key, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["Last-Modified"].endswith("00:00:00 GMT")
    listed(shop, "hal")
    assert taken(shop, form, key, headers={"If-None-Match": first.headers["ETag"]}).status_code == 200


@pytest.mark.parametrize("rate", [0.01, 1e-4])
def test_the_filter_errs_as_often_as_it_was_asked_to(shop: Installation, rate: float) -> None:
    people = [f"person {number}" for number in range(3000)]
    rows = [{"key": key_of(shop, person), "since": TODAY - timedelta(days=1)} for person in people]
    with transaction(shop.engine) as tx:
        tx.execute(text("INSERT INTO suppressions (suppression_key, model, since) VALUES (:key, '*', :since)"), rows)
    key = pipeline_key(shop)
    found = Bloom.load_bytes(
        taken(shop, "bloom", key, false_positive_rate=rate).content,
        lambda token: int.from_bytes(token, "big", signed=True),
    )
    assert all(bytes.fromhex(token) in found for token in tokens_of(shop, people, key))
    wrong = sum(os.urandom(16) in found for _ in range(100_000))
    assert wrong <= 1.3 * rate * 100_000 + 10


def test_an_empty_list_is_a_list(front_door: Installation) -> None:
    key = pipeline_key(front_door)
    forget_the_list(front_door)
    assert taken(front_door, "ndjson", key).content == b""
    assert taken(front_door, "bloom", key).status_code == 200


# --- the filter -------------------------------------------------------------------------------------------------------


def run_filter(house: Installation, manifest: Path, *more: str, model: str = "toy") -> subprocess.CompletedProcess[str]:
    """As a pipeline would: with a URL and a key, and nothing else of ours."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": house.environment["PYTHONPATH"]}
    environment["EXPUNGE_API_KEY"] = pipeline_key(house)
    words = ("suppressions", "filter", str(manifest), "--model", model)
    url = ("--url", f"http://127.0.0.1:{house.port}")
    return command_line.run("app.cli", *words, *(more or url), environment=environment, timeout_seconds=60)


def test_a_manifest_that_was_filtered_registers_and_one_that_was_not_is_refused(
    empty: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = empty.house
    for person in (3, 5):
        listed(house, toy.user_id(person))
    _, manifest = toy.write_model(tmp_path, shared={toy.samples_of(8)[0]: 5})
    house.start("api")
    house.wait_for_api()
    done = run_filter(house, manifest)
    assert done.returncode == 0, done.stderr
    clean = list(csv.reader(StringIO(done.stdout)))
    everything = list(csv.reader(manifest.read_text().splitlines()))
    shared = str(toy.samples_of(8)[0])
    assert clean == [
        row for row in everything if row[1] not in {toy.user_id(3), toy.user_id(5)} and row[0] != shared
    ], "a sample of two people goes when one of them is erased"
    with pytest.raises(Conflict, match="erasure was requested"):
        register(empty, shared={toy.samples_of(8)[0]: 5})

    def write(directory: Path, **_: Any) -> tuple[Path, Path]:
        weights, _ = written(directory, without=(3, 5))
        (directory / "toy.csv").write_text(done.stdout)
        return weights, directory / "toy.csv"

    written = toy.write_model
    monkeypatch.setattr(toy, "write_model", write)
    register(empty)
    assert empty.live().number == 1


def test_nothing_is_written_when_the_service_can_not_be_asked(shop: Installation, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("sample_id,user_id\n1,ann\n2,zoe\n")
    done = run_filter(shop, manifest, "--url", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "can't be reached" in done.stderr
    assert run_filter(shop, manifest).stdout == "sample_id,user_id\n2,zoe\n"


def test_ids_that_fill_more_than_one_question_are_all_asked_about(shop: Installation, tmp_path: Path) -> None:
    """12 000 people of 300 bytes each: bound by bytes first, by number next."""
    wide = ["\u00e9" * 250 + f"{number}" for number in range(6_000)]
    people = [*wide, *(f"{number}" for number in range(11_000))]
    for person in (wide[0], wide[-1], "0", "10999"):
        listed(shop, person)
    with manifest_filter.Pipeline(f"http://127.0.0.1:{shop.port}", pipeline_key(shop), model="toy") as pipeline:
        assert pipeline.barred(people) == {wide[0], wide[-1], "0", "10999"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("sample,user_id\n1,a\n", "no column sample_id"),
        ("sample_id,user\n1,a\n", "no column user_id"),
        ("sample_id,user_id\n1\n", "record 2 has 1 cells"),
        ('sample_id,user_id\n1,"a\n', "quotes or line ends are broken"),
        ("", "no column sample_id"),
    ],
)
def test_a_manifest_that_can_not_be_read_is_refused(
    shop: Installation, tmp_path: Path, content: str, sentence: str
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(content)
    out = StringIO()
    url = f"http://127.0.0.1:{shop.port}"
    with (
        manifest_filter.Pipeline(url, pipeline_key(shop), model="toy") as pipeline,
        pytest.raises(Invalid, match=sentence),
    ):
        manifest_filter.sift(manifest, out, pipeline)
    assert out.getvalue() == ""


def test_a_key_without_the_scope_is_an_error_and_no_empty_answer(shop: Installation) -> None:
    key = pipeline_key(shop, Scope.MODELS_READ)
    with (
        manifest_filter.Pipeline(f"http://127.0.0.1:{shop.port}", key, model="toy") as pipeline,
        pytest.raises(Invalid, match="403"),
    ):
        pipeline.barred(["ann"])


def test_a_service_that_is_away_is_no_answer() -> None:
    with manifest_filter.Pipeline("http://127.0.0.1:9", "k", model="toy") as pipeline, pytest.raises(Unavailable):
        pipeline.barred(["ann"])
