"""What became of a request in each of its models: progress while a job runs, and the report on what it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from app.dashboard import request_words, standing
from app.dashboard.rendering import ago
from app.domain.lifecycle import JOB_OPEN, JobStatus, RequestStatus
from app.storage.request_story import Report, Work

Json = Mapping[str, Any]  # Any: JSON
MOST_REPORTS: Final = 20
"""Models of one request whose reports are read for its page."""
LIVE: Final = frozenset(
    {RequestStatus.RECEIVED, RequestStatus.APPROVED, RequestStatus.QUEUED, RequestStatus.IN_PROGRESS}
)
"""Statuses that the service ends by itself, so that a page looks again."""
_LEAST_SHARE: Final = 0.02
LEVELS: Final = {
    "A0": ("A0: trained again without the person", "The owner's own training ran again on the remaining samples only."),
    "A1": ("A1: certified within a bound", "A mathematical bound on what is left holds, under its stated assumptions."),
    "A2": (
        "A2: verified by tests",
        "Tests found no remaining influence, with the error rates below: evidence, no proof.",
    ),
    "A3": ("A3: inconclusive", "The tests could not see enough to say anything either way."),
}
LIMIT: Final = "One person's test can catch a gross failure. It cannot show that nothing is left."


@dataclass(frozen=True)
class Result:
    """One model of a request."""

    work: Work
    report: Report | None
    now: datetime

    @property
    def is_running(self) -> bool:
        """Whether its job has something to do."""
        return self.work.status in JOB_OPEN

    @property
    def is_held(self) -> bool:
        """Whether a worker is at it."""
        return self.is_running and self.work.lease_until is not None and self.work.lease_until > self.now

    @property
    def step(self) -> str:
        """What is being done."""
        step = request_words.STEPS.get(self.work.status, "")
        return f"{step}: {self.method}" if self.work.status == JobStatus.LOCATED else step

    @property
    def method(self) -> str:
        """The rung of the ladder, in words."""
        rung = (self.report and self.report.rung) or request_words.LADDER[self.work.rung]
        return request_words.RUNGS.get(rung, rung)

    @property
    def share(self) -> float | None:
        """How much of the step is done, where it is known; a step that says "all" has begun another part."""
        done = self.work.progress
        return done if self.is_held and done is not None and 0 <= done < 1 else None

    @property
    def left(self) -> str | None:
        """How long the step will take, by how long it took so far."""
        if self.share is None or self.share < _LEAST_SHARE:
            return None
        passed = (self.now - self.work.moved_at).total_seconds()
        return ago(passed * (1 - self.share) / self.share)

    @property
    def gates(self) -> Sequence[Json]:
        """What was tested."""
        return self.report.verdict.get("gates") or () if self.report else ()

    def gate(self, name: str) -> Json:
        """One gate's numbers, such as those of ``G3``; nothing if it did not run."""
        return next((gate for gate in self.gates if gate.get("name", "").split(" ")[0] == name), {})

    @property
    def level(self) -> tuple[str, str] | None:
        """The assurance level: its name, and what it rests on."""
        return LEVELS.get(self.report.verdict.get("level") or "") if self.report else None

    @cached_property
    def rows(self) -> list[standing.Row]:
        """Who stands where."""
        return standing.rows(self.gate("G3"))

    @property
    def scale(self) -> str:
        """What the statistic is."""
        return standing.SCALES.get(self.gate("G3").get("statistic", "raw"), "")

    @property
    def people(self) -> int:
        """How many people the version has forgotten at once."""
        return int(self.gate("G3").get("users") or 0)

    @property
    def usefulness(self) -> list[tuple[str, Json]]:
        """Each comparison of the usefulness before and after."""
        return list((self.gate("G2").get("checks") or {}).items())

    @property
    def error_rates(self) -> list[str]:
        """How far the tests can be trusted."""
        return [*_of_usefulness(self.gate("G2")), *_of_forgetting(self.gate("G3"))]


def _of_usefulness(n: Json) -> list[str]:
    if n.get("alpha") is None:
        return []
    return [f"Usefulness: a model that is worse by the margin would be accepted in {n['alpha']:.0%} of cases."]


def _of_forgetting(n: Json) -> list[str]:
    if any(n.get(key) is None for key in ("power_on_members", "power_interval_95", "alpha_each_tail", "members")):
        return []
    low, high = n["power_interval_95"]
    level, power, members = n["alpha_each_tail"], n["power_on_members"], n["members"]
    alarms = (
        f"False alarms: somebody who is fully forgotten would be flagged in {level:.1%} of cases as remembered, and in "
        f"{level:.1%} as suspiciously forgotten."
    )
    misses = (
        f"Missed memories: before the update the test recognised {power:.0%} of {members} people who were in the model "
        f"(95 % interval {low:.0%} to {high:.0%}); others like them would go unnoticed."
    )
    return [alarms, misses]


def results(work: Sequence[Work], reports: Mapping[UUID, Report], *, now: datetime) -> list[Result]:
    """A request's models, each with the report on its own version, if that was read."""
    return [Result(one, reports.get(one.version_id) if one.version_id else None, now) for one in work]


def wanted(work: Sequence[Work]) -> list[UUID]:
    """Versions whose report says something about this person: those that forgot them."""
    return [one.version_id for one in work if one.version_id and one.result == "forgotten"][:MOST_REPORTS]
