"""Running torch in a process of its own, so that it can hang, leak or be killed without taking the worker along.

The order goes in as one JSON line on stdin, progress and the answer come back as JSON lines on stdout. The child
leaves when its stdin closes: a worker that is killed takes its child with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import IO, Any

from app.errors import LeaseLost, StepFailed
from workers.lease import Lease

Json = dict[str, Any]  # Any: JSON
_POLL_SECONDS = 0.1
_ERROR_MOST = 300


class ChildDied(StepFailed):
    """The process was killed or ran out of time, without a word: for memory, normally, and again the next time."""


def run_step(name: str, order: Json, *, lease: Lease, limit_seconds: float) -> Json:
    """Run ``workers.step NAME`` and return its answer.

    Raises:
        LeaseLost: Somebody else took the job over; the child was killed.
        StepFailed: The child ran out of time, died, or said why it can't (then final).
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "workers.step", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_bare_environment(),
    )
    answer: Json = {}
    reader = threading.Thread(target=_read, args=(child.stdout, answer, lease), daemon=True)
    reader.start()
    try:
        _say(child, order)
        _wait(child, lease, time.monotonic() + limit_seconds)
    finally:
        child.kill()
        child.wait()
    reader.join(timeout=5)
    if "error" in answer:
        raise StepFailed(str(answer["error"])[:_ERROR_MOST], final=bool(answer.get("final")))
    if child.returncode != 0 or "result" not in answer:
        raise ChildDied(f"the {name} process died with exit code {child.returncode}")
    result: Json = answer["result"]
    return result


def _bare_environment() -> dict[str, str]:
    """The child computes; it gets no database, no broker, no keys and nobody's address."""
    ours = ("DATABASE_URL", "REDIS_URL", "EXPUNGE_", "OTEL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _say(child: subprocess.Popen[str], order: Json) -> None:
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(order) + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once; its exit code tells


def _wait(child: subprocess.Popen[str], lease: Lease, until: float) -> None:
    while child.poll() is None:
        if lease.lost:
            raise LeaseLost("another worker holds this job; its result counts")
        if time.monotonic() > until:
            raise ChildDied("the step ran out of time and was killed")
        time.sleep(_POLL_SECONDS)


def _read(lines: IO[str] | None, answer: Json, lease: Lease) -> None:
    assert lines is not None
    for line in lines:
        message = json.loads(line)
        if "progress" in message:
            lease.progress = message["progress"]
        else:
            answer.update(message)
