"""Metrics over HTTP, for Prometheus: a scrape with a bearer key."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app import metrics
from app.api.auth import Caller, Scope, needs
from app.api.context import CurrentSettings, Now
from app.api.problems import answers

router = APIRouter(tags=["health"])
Scraper = Annotated[Caller, Depends(needs(Scope.METRICS_READ))]
_PLAIN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}  # Any: OpenAPI


@router.get("/metrics", responses=answers(401, 403, 503) | _PLAIN, response_class=Response)
def scrape(request: Request, _: Scraper, now: Now, settings: CurrentSettings) -> Response:
    """Read all metrics in Prometheus' text format."""
    house: metrics.House = request.app.state.metrics
    told = metrics.exposition(house, now=now, processes=settings.prometheus_multiproc_dir)
    return Response(told, media_type=metrics.CONTENT_TYPE)
