"""Metrics over HTTP, for Prometheus: a scrape with a bearer key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app import metrics
from app.api.auth import Caller, Scope, needs
from app.api.context import CurrentSettings, Now
from app.api.problems import PLAIN, answers

router = APIRouter(tags=["health"])
Scraper = Annotated[Caller, Depends(needs(Scope.METRICS_READ))]


@router.get("/metrics", responses=answers(401, 403, 503) | PLAIN, response_class=Response)
def scrape(request: Request, _: Scraper, now: Now, settings: CurrentSettings) -> Response:
    """Read all metrics in Prometheus' text format."""
    house: metrics.House = request.app.state.metrics
    told = metrics.exposition(house, now=now, processes=settings.prometheus_multiproc_dir)
    return Response(told, media_type=metrics.CONTENT_TYPE)
