"""What Prometheus is told: HTTP as this process served it, and the house as PostgreSQL knows it.

Nothing about the house is counted in a process: a worker that dies would take its numbers along, and two API processes
would disagree. Labels are words of ours: states, steps, routes; never an id.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, generate_latest, multiprocess
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from app.storage import facts, totals
from app.storage.facts import Facts
from app.storage.sessions import transaction

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_KEPT_SECONDS: Final = 5.0
_MILLISECONDS: Final = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 5000)

_process = CollectorRegistry()
http: Final = Histogram(
    "expunge_http_request_seconds",
    "From a call's first line to its answer's last byte; 429 is whoever came too often.",
    ["method", "route", "code"],
    buckets=[milliseconds / 1000 for milliseconds in _MILLISECONDS],
    registry=_process,
)


class House(Collector):
    """The facts in PostgreSQL, read once in a few seconds however many ask."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._lock = engine, threading.Lock()
        self._read_at = float("-inf")
        self._found: tuple[Facts, datetime] | None = None

    def bring_up_to_date(self, now: datetime) -> None:
        """Read the facts, unless they were read just now.

        Raises:
            Unavailable: PostgreSQL can't be reached; old numbers would be taken for new ones.
        """
        with self._lock:
            if time.monotonic() - self._read_at < _KEPT_SECONDS:
                return
            with transaction(self._engine) as tx:
                self._found = facts.read(tx, now=now), now
            self._read_at = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        """Everything, as Prometheus' library wants it."""
        if self._found is not None:
            yield from _families(*self._found)


def exposition(house: House, *, now: datetime, processes: Path | None) -> bytes:
    """Everything in Prometheus' text format.

    Args:
        house: The facts.
        now: The time.
        processes: Where several API processes write down what they served; none: there is only this one.

    Raises:
        Unavailable: PostgreSQL can't be reached.
    """
    house.bring_up_to_date(now)
    served = _process
    if processes is not None:
        served = CollectorRegistry()
        multiprocess.MultiProcessCollector(served, path=str(processes))  # type: ignore[no-untyped-call] # theirs
    told = CollectorRegistry()
    told.register(house)
    return generate_latest(told) + generate_latest(served)


def _families(found: Facts, now: datetime) -> Iterator[Metric]:
    yield from _requests(found, now)
    yield _gauge("expunge_jobs", "Open jobs by status.", "status", found.jobs)
    waits = {queue: seconds or 0.0 for queue, seconds in found.queues.items()}
    yield _gauge("expunge_queue_oldest_seconds", "For how long the oldest work could have begun.", "queue", waits)
    yield _gauge("expunge_queue_silent_seconds", "Since a consumer last heard us.", "queue", found.silent)
    yield _one("expunge_log_waiting_seconds", "Wait of the public log's oldest entry.", found.log_waits or 0.0)
    yield _one("expunge_webhooks_waiting", "Messages promised and not delivered.", found.deliveries)
    yield from _counted(found.counted)


def _requests(found: Facts, now: datetime) -> Iterator[Metric]:
    every = found.requests
    by_status = {one.status: one.count for one in every}
    yield _gauge("expunge_requests", "Requests without an end, by status.", "status", by_status)
    yield _one("expunge_requests_overdue", "Requests beyond their deadline.", sum(one.overdue for one in every))
    within = {str(days): sum(one.within_days[place] for one in every) for place, days in enumerate(facts.DAYS)}
    yield _gauge("expunge_requests_due", "Requests due within so many days or overdue.", "days", within)
    if every:
        slack = min(one.earliest_deadline for one in every) - now
        yield _one("expunge_deadline_slack_seconds", "Until the next deadline; negative: since.", slack.total_seconds())


def _counted(found: Mapping[tuple[str, str], totals.Sum]) -> Iterator[Metric]:
    yield _counter("expunge_requests_ended", "Ends of requests by outcome.", "outcome", _of(found, "requests_ended"))
    yield _counter("expunge_webhook_attempts", "Attempts at webhooks by outcome.", "outcome", _of(found, "webhook"))
    disabled = sum(one.value for one in _of(found, "webhook_endpoint_disabled").values())
    yield CounterMetricFamily("expunge_webhook_endpoints_disabled", "Endpoints that were switched off.", disabled)
    expired = sum(one.value for one in _of(found, "lease_expired").values())
    yield CounterMetricFamily("expunge_lease_expiries", "Jobs taken over from a holder who fell silent.", expired)
    listed = sum(one.value for one in _of(found, "suppressed").values())
    yield _one("expunge_suppressions", "Rows of the suppression list.", listed)
    steps = HistogramMetricFamily("expunge_step_seconds", "Duration of the steps that were settled.", labels=["step"])
    for step, one in _of(found, "step").items():
        steps.add_metric([step], _buckets(one), one.value)
    yield steps


def _of(found: Mapping[tuple[str, str], totals.Sum], name: str) -> dict[str, totals.Sum]:
    return {label: one for (measure, label), one in sorted(found.items()) if measure == name}


def _buckets(one: totals.Sum) -> list[tuple[str, float]]:
    """Cumulative counts, as the format has them."""
    counts, total = [], 0
    for place, bound in enumerate([*map(str, totals.SECONDS), "+Inf"]):
        total += one.buckets.get(place, 0)
        counts.append((bound, float(total)))
    return counts


def _one(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value)


def _gauge(name: str, what: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=[label])
    for word, value in sorted(values.items()):
        family.add_metric([word], float(value))
    return family


def _counter(name: str, what: str, label: str, values: Mapping[str, totals.Sum]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, what, labels=[label])
    for word, one in values.items():
        family.add_metric([word], one.value)
    return family
