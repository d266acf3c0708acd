"""The state machine, the pipeline and the one writer of a status are the same story."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import pytest

from app.domain.lifecycle import (
    CANCELLABLE,
    JOB_MOVES,
    JOB_OPEN,
    REQUEST_ENDED,
    REQUEST_MOVES,
    JobStatus,
    RequestStatus,
)
from tests.architecture.source import modules
from workers.erase import STEPS

WRITER = "app/storage/moves.py"
S = TypeVar("S", JobStatus, RequestStatus)


def test_every_status_that_a_worker_can_leave_has_a_step() -> None:
    assert {status for status, exits in JOB_MOVES.items() if exits - {JobStatus.FAILED}} == set(STEPS)


def test_a_job_is_open_exactly_while_it_has_a_step() -> None:
    assert set(STEPS) == JOB_OPEN


def test_no_step_serves_two_statuses() -> None:
    assert len(set(STEPS.values())) == len(STEPS)


def test_every_status_has_a_line_in_its_machine() -> None:
    assert set(JOB_MOVES) == set(JobStatus)
    assert set(REQUEST_MOVES) == set(RequestStatus)


def test_every_status_can_be_reached() -> None:
    assert _reachable(JOB_MOVES, JobStatus.QUEUED) == set(JobStatus)
    assert _reachable(REQUEST_MOVES, RequestStatus.RECEIVED) == set(RequestStatus)


def test_from_everywhere_there_is_a_way_to_an_end() -> None:
    for status in JobStatus:
        assert _reachable(JOB_MOVES, status) - JOB_OPEN, status
    for request_status in RequestStatus:
        assert _reachable(REQUEST_MOVES, request_status) & REQUEST_ENDED, request_status


def test_what_can_be_cancelled_has_the_move() -> None:
    assert {s for s, exits in REQUEST_MOVES.items() if RequestStatus.CANCELLED in exits} == CANCELLABLE


def test_only_one_module_writes_a_status() -> None:
    writers = {module.path: list(_writes(module.tree)) for module in modules()}
    assert writers.pop(WRITER), f"{WRITER} no longer writes a status: this test looks for the wrong thing"
    assert not {path: lines for path, lines in writers.items() if lines}


@pytest.mark.parametrize(
    "smuggled",
    [
        "tx.execute(update(Job).where(Job.id == i).values(status='failed'))",
        "tx.execute(update(Job).values({'status': 'failed'}))",
        "tx.execute(update(Job).values({Job.status: 'failed'}))",
        "tx.execute(update(Job).values(**{'status': 'failed'}))",
        "job.status = 'failed'",
        "job.status: str = 'failed'",
        "a, job.status = 1, 'failed'",
        "setattr(job, 'status', 'failed')",
        "tx.add(Job(model_id=m, status='failed'))",
        "tx.execute(text('UPDATE jobs SET fence = 1, status = :s'))",
        "tx.execute(text('''UPDATE erasure_requests\n SET status = 'queued' '''))",
        "tx.execute(text(f\"update jobs set status = '{s}' where id = :id\"))",
        "tx.execute(text('INSERT INTO jobs (id, status) VALUES (:i, :s)'))",
    ],
)
def test_a_second_writer_is_noticed(smuggled: str) -> None:
    assert list(_writes(ast.parse(smuggled)))


@pytest.mark.parametrize(
    "reading",
    [
        "select(Job).where(Job.status == JobStatus.QUEUED)",
        "response.status_code = 200",
        "status = job.status",
        "problem(status=404)",
        "text(\"status = 'received'\")",
    ],
)
def test_reading_a_status_is_no_writing(reading: str) -> None:
    assert not list(_writes(ast.parse(reading)))


_SQL = re.compile(
    r"\bupdate\s+(erasure_requests|jobs)\b.*\bset\b.*\bstatus\s*=|\binsert\s+into\s+(erasure_requests|jobs)\b.*\bstatus\b",
    re.IGNORECASE | re.DOTALL,
)


def _writes(tree: ast.AST) -> Iterator[int]:
    """Lines that give something a status."""
    for node in ast.walk(tree):
        if (
            (isinstance(node, ast.Call) and _gives_status(node))
            or (isinstance(node, ast.Attribute) and node.attr == "status" and isinstance(node.ctx, ast.Store))
            or (isinstance(node, ast.Constant | ast.JoinedStr) and _SQL.search(_literal(node)))
        ):
            yield node.lineno


def _gives_status(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "setattr":
        return any(isinstance(argument, ast.Constant) and argument.value == "status" for argument in call.args)
    if name not in {"values", "Job", "ErasureRequest"}:
        return False
    mappings = [argument for argument in call.args if isinstance(argument, ast.Dict)]
    mappings += [word.value for word in call.keywords if word.arg is None and isinstance(word.value, ast.Dict)]
    keys = [key for mapping in mappings for key in mapping.keys]
    return any(word.arg == "status" for word in call.keywords) or any(map(_names_status, keys))


def _names_status(key: ast.expr | None) -> bool:
    return (isinstance(key, ast.Constant) and key.value == "status") or (
        isinstance(key, ast.Attribute) and key.attr == "status"
    )


def _literal(node: ast.Constant | ast.JoinedStr) -> str:
    parts: Iterable[ast.expr] = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))


def _reachable(moves: Mapping[S, frozenset[S]], start: S) -> set[S]:
    seen, waiting = {start}, [start]
    while waiting:
        fresh = moves[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return seen
