"""One trace leads from the POST to the certificate, through three processes that share nothing but PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import tracing
from tests import toy
from tests.e2e.conftest import Registered
from tests.faults import wait_until

pytestmark = pytest.mark.slow

WAY = ("POST /v1/erasure-requests", "ring", "job", "locate", "unlearn", "verify", "publish", "certify", "certificate")
THEIRS = "00-" + "c0ffee" * 5 + "c0-" + "ba" * 8 + "-01"


@pytest.fixture
def collected(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A collector's file and address."""
    file = tmp_path / "spans"
    file.touch()
    command = [sys.executable, "-m", "tests.collector", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        yield file, f"http://127.0.0.1:{collector.stdout.readline().strip()}"
        collector.kill()


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def names_of(file: Path, trace: str) -> set[str]:
    return {span["name"] for span in read(file) if span["trace"] == trace}


def test_one_trace_leads_from_the_post_to_the_certificate(
    registered: Registered, valkey_server: str, collected: tuple[Path, str]
) -> None:
    file, address = collected
    with registered.cloned(valkey_server) as house:
        house.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        house.start("api")
        house.wait_for_api()
        with house.client() as client:
            first = client.post(
                "/v1/erasure-requests", json={"user_id": toy.user_id(1)}, headers={"traceparent": THEIRS}
            ).json()["id"]
            second = client.post("/v1/erasure-requests", json={"user_id": toy.user_id(2)}).json()["id"]
            client.get(f"/v1/models/{toy.user_id(3)}")
        for name in ("dispatch", "worker-unlearn"):
            house.start(name)
        for request_id in (first, second):
            assert house.wait_until_ended(request_id)["status"] == "completed"
        posts = [span["trace"] for span in read(file) if span["name"] == WAY[0]]
        assert len(posts) == 2
        wait_until(partial(_is_whole, file, posts), 20, "the spans arrive")
    spans = read(file)
    own, other = sorted(posts, key=lambda trace: -len(names_of(file, trace)))
    assert {span["resource"]["service.name"] for span in spans if span["trace"] == own} == {
        "expunge-api",
        "expunge-dispatch",
        "expunge-worker",
    }
    assert names_of(file, other) == {WAY[0], "certificate"}
    [job] = [span for span in spans if span["name"] == "job" and span["trace"] == own]
    assert job["links"] == [other], "a job serves both, and says so"
    assert THEIRS[3:35] not in file.read_text()
    _say_only_what_is_on_the_list(spans)
    assert "canary" not in file.read_text().lower()


def _is_whole(file: Path, posts: list[str]) -> bool:
    ways = [names_of(file, trace) for trace in posts]
    return any(set(WAY) <= way for way in ways) and all("certificate" in way for way in ways)


def _say_only_what_is_on_the_list(spans: list[dict[str, Any]]) -> None:
    for span in spans:
        assert span["attributes"] == tracing.allowed(span["attributes"])
        assert set(span["resource"]) == {"service.name"}
        assert span["events"] == []
        assert span["status"][1] == ""


def test_a_failure_tells_its_class_and_not_its_message(collected: tuple[Path, str]) -> None:
    """A span of ours around an error that quotes somebody, sent off for real."""
    file, address = collected
    code = (
        "from app import tracing; tracing.configure('x', endpoint='on')\n"
        "try:\n"
        "    with tracing.span('locate', job='j', user='canary', step='locate'): raise KeyError('canary')\n"
        "except KeyError: pass\n"
        "tracing.flush()"
    )
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": address}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    [span] = read(file)
    assert span["status"] == [2, ""]
    assert set(span["attributes"]) == {"job", "step", "kind"}
    assert "KeyError" in span["attributes"]["kind"]
    assert "canary" not in file.read_text()


def test_requests_are_served_when_nobody_collects_where_somebody_should(
    registered: Registered, valkey_server: str
) -> None:
    with registered.cloned(valkey_server) as house:
        house.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        house.start("api")
        house.wait_for_api()
        for person in range(5):
            house.demand(person)
        assert httpx.get(f"http://127.0.0.1:{house.port}/readyz").status_code == 200
        assert "canary" not in house.log.read_text().lower()
