"""Models: their versions as a lineage, what gates measured over time, what a rollback would mean, what waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Query
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup
from pydantic import BaseModel, Field

from app import catalog
from app.api.auth import PAGES as BASE
from app.api.schemas.base import ModelName
from app.dashboard import branches, charts
from app.dashboard.charts import Line
from app.dashboard.visits import Reading, RollingBack, Visit
from app.domain import ledger as ladder
from app.domain.lifecycle import JobStatus
from app.errors import Invalid, NotFound
from app.storage import lineage, versions
from app.storage.lineage import OpenJob, Overview, Standing
from app.storage.tables import Model, ModelVersion

router = APIRouter(prefix=BASE)
_PAGE: Final = 50
_DRAWN: Final = 50
_SEGMENTS: Final = 60
_LEAST_PROGRESS: Final = 0.05
"""Below it, the time left would be a guess about a guess."""
STEPS: Final[Mapping[str, str]] = {
    JobStatus.QUEUED: "finding the people's samples",
    JobStatus.LOCATED: "computing new weights",
    JobStatus.UNLEARNED: "verifying them",
    JobStatus.VERIFIED: "publishing them",
    JobStatus.PUBLISHED: "writing certificates",
}
"""What a worker does with a job in each status."""
_RUNGS: Final = ("influence", "renewal", "retrain")
_TONES: Final = ("accent", "info", "warn", "bad")
_Number = Annotated[int, Field(ge=1, le=2**31 - 1)]


class RollbackForm(BaseModel):
    """A rollback as somebody confirms it."""

    confirm: Annotated[str, Field(max_length=200)] = ""
    live: _Number


@dataclass(frozen=True)
class Running:
    """An open job in words."""

    job: OpenJob
    doing: str
    left: timedelta | None
    """About how long its present step will take yet."""


@dataclass(frozen=True)
class Range:
    """What was measured so many times."""

    middle: float
    least: float
    most: float
    times: int


@router.get("/models")
def index(visit: Reading) -> HTMLResponse:
    """All models, and what runs."""
    found, jobs = lineage.every(visit.tx), _running(visit, lineage.open_jobs(visit.tx))
    by_model = {one.name: [job for job in jobs if job.job.model == one.name] for one in found}
    return visit.page("models.html", models=found, jobs=by_model, runs=bool(jobs), starts=_starts(found))


@router.get("/models/{name}")
def show(
    visit: Reading, name: ModelName, before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> HTMLResponse:
    """One model."""
    one = _overview(visit, name)
    rows = lineage.page(visit.tx, one.id, before=before, limit=_PAGE)
    nodes = lineage.nodes(visit.tx, one.id)
    measured, standings = lineage.measured(visit.tx, one.id), lineage.standings(nodes)
    return visit.page(
        "model.html",
        one=one,
        start=_starts([one]).get(one.name),
        runs=_running(visit, lineage.open_jobs(visit.tx, model_id=one.id)),
        rows=rows[:_PAGE],
        older=rows[_PAGE - 1].number if len(rows) > _PAGE else None,
        before=before,
        picture=branches.drawn(nodes[-_DRAWN:], live=one.number),
        drawn=min(len(nodes), _DRAWN),
        pictures=_pictures(measured, standings),
        drift=_drift(lineage.worst_segments(visit.tx, one.id), measured),
        measured=measured[::-1],
        standings=standings,
        segments=lineage.segments(visit.tx, one.version_id, limit=_SEGMENTS) if one.version_id else [],
        fitted_at=_fitted_at(visit, one),
        refresh_beyond=ladder.REFRESH_BEYOND,
        retrain_beyond=ladder.RETRAIN_BEYOND,
    )


@router.get("/models/{name}/jobs")
def jobs(visit: Reading, name: ModelName) -> HTMLResponse:
    """The part of a model's page that changes while a job runs."""
    model = versions.model(visit.tx, name)
    runs = _running(visit, lineage.open_jobs(visit.tx, model_id=model.id))
    return visit.page("model_jobs.html", name=model.name, runs=runs, asked_again=True)


@router.get("/models/{name}/estimate")
def estimate(visit: Reading, name: ModelName) -> HTMLResponse:
    """What the next job would find and cost; nothing is changed."""
    one = _overview(visit, name)
    if one.version_id is None or one.ledger is None:
        raise NotFound("the model has no live version: nothing can be estimated")
    live = versions.version(visit.tx, one.version_id)
    limit = visit.settings.batch_requests
    batch = lineage.batch(visit.tx, live, name=one.name, limit=limit)
    start, past = _start(one.ledger, leaving=batch.people), lineage.history(visit.tx, one.id)
    alike = [job for job in past if job.rung == start.rung]
    left = (next((job.retained for job in past if job.retained), None) or one.samples or 0) - batch.samples
    passes = _range([job.work / job.retained for job in alike if job.work is not None and job.retained])
    return visit.page(
        "estimate.html",
        one=one,
        batch=batch,
        start=start,
        limit=limit,
        left=left,
        passes=passes,
        seconds=_range([job.seconds for job in alike if job.seconds is not None]),
        others=len(past) - len(alike),
        part=visit.request.headers.get("hx-request") == "true",
    )


@router.get("/models/{name}/versions/{number}")
def version(visit: Reading, name: ModelName, number: _Number) -> HTMLResponse:
    """One version: where it came from, what was done, what the gates said."""
    model, found = _found(visit, name, number)
    report = found.report or {}
    return visit.page(
        "version.html",
        model=model,
        version=found,
        parent=lineage.parent_of(visit.tx, found),
        live=lineage.live_number(visit.tx, model),
        manifest=lineage.manifest_of(visit.tx, found),
        people=lineage.people_of(visit.tx, found),
        update=report.get("update") or {},
        verdict=report.get("verdict") or {},
        report=report,
        earlier=list(_earlier(report)),
        gates=_gates(report),
    )


@router.get("/models/{name}/versions/{number}/roll-back")
def ask(visit: RollingBack, name: ModelName, number: _Number) -> HTMLResponse:
    """What a rollback would mean; nothing is changed."""
    model, target = _found(visit, name, number)
    would = lineage.would_undo(visit.tx, target)
    return visit.page(
        "rollback.html",
        model=model,
        version=target,
        live=lineage.live_number(visit.tx, model),
        would=would,
        undone=spans(would.versions),
        refused=catalog.why_not(visit.tx, model, target),
    )


@router.post("/models/{name}/versions/{number}/roll-back")
def roll_back(
    visit: RollingBack, name: ModelName, number: _Number, form: Annotated[RollbackForm, Form()]
) -> RedirectResponse:
    """Do it, and write down who did."""
    if form.confirm.strip() != name:
        raise Invalid("confirm", f"type the model's name, {name}, to confirm")
    made, queued = catalog.roll_back(visit.tx, name, to=number, now=visit.now, settings=visit.settings, seen=form.live)
    visit.note("model.rolled_back", model=name, to=number, version=made.number, requests=queued)
    return visit.go(f"/models/{name}", done="rolled_back")


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as people write them.

    >>> spans([3, 4, 5, 9]), spans([])
    ('3 to 5, 9', '')
    """
    return ", ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in _runs(numbers))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    begun: int | None = None
    for place, number in enumerate(numbers):
        begun = number if begun is None else begun
        if place + 1 == len(numbers) or numbers[place + 1] != number + 1:
            yield begun, number
            begun = None


def _overview(visit: Visit, name: str) -> Overview:
    found = lineage.every(visit.tx, name=name)
    if not found:
        raise NotFound("no model of this name is registered")
    return found[0]


def _found(visit: Visit, name: str, number: int) -> tuple[Model, ModelVersion]:
    model = versions.model(visit.tx, name)
    return model, versions.numbered(visit.tx, model.id, number)


def _starts(found: Sequence[Overview]) -> dict[str, ladder.Start]:
    """Where each model's next job would begin; at least one person would leave."""
    return {one.name: _start(one.ledger, leaving=one.asked) for one in found if one.ledger is not None}


def _start(counted: ladder.Ledger, *, leaving: int) -> ladder.Start:
    more = max(leaving, 1)
    return ladder.decide(
        ladder.Ledger(
            trained_on=counted.trained_on,
            forgotten_since=counted.forgotten_since + more,
            fitted_on=counted.fitted_on,
            forgotten_since_fit=counted.forgotten_since_fit + more,
            failures=counted.failures,
        )
    )


def _running(visit: Visit, found: Sequence[OpenJob]) -> list[Running]:
    return [Running(job, _doing(job, visit), _left(job, visit)) for job in found]


def _doing(job: OpenJob, visit: Visit) -> str:
    if job.held:
        step = STEPS[job.status]
        return f"{step} ({_RUNGS[job.rung]})" if job.status == JobStatus.LOCATED else step
    if job.not_before > visit.now:
        return "waits to be tried again" if job.error else "collects requests"
    return "waits for a worker"


def _left(job: OpenJob, visit: Visit) -> timedelta | None:
    if not job.held or job.progress is None or not _LEAST_PROGRESS <= job.progress < 1:
        return None
    return (visit.now - job.moved_at) * ((1 - job.progress) / job.progress)


def _fitted_at(visit: Visit, one: Overview) -> timedelta | None:
    """The age of what the live version is calibrated with."""
    number = (one.calibration or {}).get("fitted_at_version")
    at = lineage.fitted_at(visit.tx, one.id, number) if number is not None else None
    return visit.now - at if at is not None else None


@dataclass(frozen=True)
class Picture:
    """A chart with its title, what it shows, and its lines by name and colour."""

    title: str
    told: str
    series: Sequence[Line]
    drawn: Markup


def _pictures(measured: Sequence[Any], standings: Mapping[int, Standing]) -> list[Picture]:  # Any: rows
    """Charts over the last versions; those without any number are left out."""
    made = [
        (title, told, [Line(name, [_value(row, column) for row in measured], tone) for name, column, tone in wanted])
        for title, told, wanted in _CHARTS
    ]
    recent = [standings[row.number] for row in measured]
    gone = Line("people removed", [float(one.gone) for one in recent], "accent")
    limit = Line("limit", [one.limit for one in recent], "grey")
    made.append(("People removed since the last training", _REMOVED, [gone, limit]))
    names = [f"v{row.number}" for row in measured]
    return [
        Picture(title, told, series, charts.lines(series, names=names, says=told, bottom=0.0))
        for title, told, series in made
        if any(value is not None for value in series[0].values)
    ]


def _value(row: Any, column: str | float) -> float | None:  # Any: a row
    return getattr(row, column) if isinstance(column, str) else column


_CHARTS: Final[Sequence[tuple[str, str, Sequence[tuple[str, str | float, str]]]]] = (
    (
        "Loss on people the model never saw",
        "Their mean loss before each update, by version",
        [("held-out loss", "loss", "accent")],
    ),
    (
        "Accuracy on people the model never saw",
        "Their accuracy after each update, by version",
        [("held-out accuracy", "accuracy", "accent")],
    ),
    (
        "Utility paid for each update",
        "The worst comparison of gate G2 as a share of its margin, by version; at 1 the gate stops the update",
        [("share of the margin", "of_margin", "accent"), ("margin", 1.0, "grey")],
    ),
    (
        "Forgetting",
        "Where the forgotten stood among strangers before and after each update: 0 is remembered best, half is usual",
        [
            ("before, median", "p_before", "bad"),
            ("after, who stood out most", "p_least", "info"),
            ("after, median", "p_after", "good"),
            ("level", "level", "grey"),
        ],
    ),
)
_REMOVED: Final = "People removed since the last training, by version; above the dashed limit the next job retrains"


def _drift(found: Mapping[str, Mapping[int, float]], measured: Sequence[Any]) -> Picture | None:  # Any: rows
    """The segments nearest to their margins, over the last versions."""
    if not found:
        return None
    numbers = [row.number for row in measured]
    series = [
        Line(name, [shares.get(number) for number in numbers], tone)
        for (name, shares), tone in zip(found.items(), _TONES, strict=False)
    ]
    series.append(Line("margin", [1.0] * len(numbers), "grey"))
    told = "How much worse each update made a class or group, as a share of its margin: " + ", ".join(found)
    names = [f"v{number}" for number in numbers]
    return Picture(
        "Classes and groups nearest to their margins", told, series, charts.lines(series, names=names, says=told)
    )


def _earlier(report: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:  # Any: JSON
    """What rungs before the one that was published came to, the last one first."""
    before = report.get("earlier")
    while before:
        if before.get("verdict"):
            yield before
        before = before.get("earlier")


def _gates(report: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:  # Any: JSON
    gates: Sequence[Mapping[str, Any]] = (report.get("verdict") or {}).get("gates") or []  # Any: JSON
    return gates


def _range(values: Sequence[float]) -> Range | None:
    return Range(median(values), min(values), max(values), len(values)) if values else None
