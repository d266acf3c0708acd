"""Every page of the dashboard, by the template of its route: what people see, what is a part of it, what is a file.

A route that is on none of the lists fails tests/browser/test_every_page.py; so a new page is walked by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from sqlalchemy import Engine, text

from app.dashboard import site
from app.storage.sessions import transaction

OPEN_TO_ALL = {"sign-in": "/sign-in", "set-up": "/set-up"}
"""Pages for people who have not signed in, by the names of their pictures."""
PAGES: dict[str, str] = {
    "home": "",
    "requests": "/requests",
    "request-new": "/requests/new",
    "request-completed": "/requests/{completed}",
    "request-refused": "/requests/{rejected}",
    "request-on-hold": "/requests/{on_hold}",
    "request-awaiting-identity": "/requests/{awaiting_identity}",
    "certificate": "/requests/{completed}/certificate",
    "certificate-checked": "/requests/{completed}/certificate/verify",
    "notice": "/requests/{completed}/notices/completion",
    "models": "/models",
    "model": "/models/{model}",
    "estimate": "/models/{model}/estimate",
    "version": "/models/{model}/versions/{version}",
    "rollback": "/models/{model}/versions/1/roll-back",
    "webhooks": "/webhooks",
    "webhook": "/webhooks/{endpoint}",
    "webhook-new": "/webhooks/new",
    "delivery": "/webhooks/deliveries/{delivery}",
    "keys": "/keys",
    "key-new": "/keys/new",
    "client": "/keys/clients/{client}",
    "log": "/log",
    "log-entry": "/log/entries/0",
    "log-internal": "/log/internal",
    "settings": "/settings",
    "people": "/people",
    "person-new": "/people/new",
    "account": "/account",
    "second-factor": "/second-factor",
}
"""What somebody with every role sees, by the names of their pictures."""
NO_PAGES: frozenset[str] = frozenset(
    {
        "/admin/static/{name}",
        "/admin/requests.csv",
        "/admin/requests/{request_id}/progress",
        "/admin/requests/{request_id}/certificate.json",
        "/admin/requests/{request_id}/certificate.tlog-proof",
        "/admin/requests/{request_id}/certificate.tsr",
        "/admin/requests/{request_id}/certificate.html",
        "/admin/requests/{request_id}/receipt",
        "/admin/models/{name}/jobs",
        "/admin/sign-in/provider",
        "/admin/sign-in/provider/callback",
    }
)
"""Routes that answer with a file, or with a part of a page."""
_IDS = """
SELECT status AS name, max(id::text) AS id FROM erasure_requests
WHERE status NOT IN ('completed') OR EXISTS (SELECT FROM certificates c WHERE c.request_id = erasure_requests.id)
GROUP BY status
UNION ALL SELECT 'model', min(name) FROM models
UNION ALL SELECT 'version', max(number)::text FROM model_versions
UNION ALL SELECT 'endpoint', max(id::text) FROM webhook_endpoints
UNION ALL SELECT 'delivery', max(id::text) FROM webhook_deliveries
UNION ALL SELECT 'client', max(id::text) FROM clients WHERE id NOT IN (SELECT client_id FROM people)
"""


def paths(engine: Engine) -> dict[str, str]:
    """The pages' addresses below /admin, with ids of what there is to see; what there is not is left out."""
    with transaction(engine) as tx:
        ids = {row.name: row.id for row in tx.execute(text(_IDS)) if row.id}
    found = {name: _filled(path, ids) for name, path in PAGES.items()}
    return {name: path for name, path in found.items() if path is not None}


def _filled(path: str, ids: dict[str, str]) -> str | None:
    try:
        return path.format(**ids)
    except KeyError:
        return None


def routes(router: APIRouter = site.router) -> Iterator[tuple[str, str]]:
    """Every route of the dashboard: (method, template)."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            for method in sorted(route.methods):
                yield method, route.path
        else:
            inner: Any = route  # Any: FastAPI's wrapper of an included router, whose class is private
            yield from routes(inner.original_router)


def is_listed(template: str) -> bool:
    """Whether a GET route is a page that is walked, or no page."""
    if template in NO_PAGES:
        return True
    walked = [f"/admin{path}" for path in (*PAGES.values(), *OPEN_TO_ALL.values())]
    return any(_shape(template) == _shape(path) or _fits(template, path) for path in walked)


def _shape(path: str) -> list[str]:
    return ["{}" if part.startswith("{") else part for part in path.split("/")]


def _fits(template: str, path: str) -> bool:
    """Whether a path is an address of a template: a word may stand where the template has a name."""
    ours, theirs = template.split("/"), path.split("/")
    return len(ours) == len(theirs) and all(a == b or a.startswith("{") for a, b in zip(ours, theirs, strict=True))
