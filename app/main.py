"""The HTTP application; nothing happens at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import logs
from app.api import health, log, models, problems, requests, webhooks
from app.api.context import Context
from app.errors import Unavailable
from app.settings import Settings, load
from app.storage import keys
from app.storage.sessions import connect, transaction

_DESCRIPTION = """Carries GDPR erasure requests through to trained models.

Authenticate with `Authorization: Bearer exk_…` (`expunge keys create`). Errors are RFC 9457 problem documents and
never repeat what you sent. All times are RFC 3339 with a zone."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; without ``settings`` they come from the environment when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chosen = settings or load()
        logs.configure(chosen.log_level)
        for name in ("index_key", "wrapping_key", "signing_key"):
            chosen.key(name)  # a missing secret stops the start, not the first request
        engine = connect(chosen.sqlalchemy_url(), pool_size=20)
        try:
            with transaction(engine) as tx:
                keys.check_secrets(tx, chosen)
        except Unavailable:
            logs.log.warning("started without a database")  # every route answers 503 until it is there
        app.state.context = Context(settings=chosen, engine=engine)
        yield
        engine.dispose()

    # No /docs: FastAPI's page loads scripts from elsewhere. docs/openapi.json and /openapi.json say the same.
    app = FastAPI(
        title="Expunge", version="1", description=_DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    for router in (requests.router, models.router, webhooks.router, log.router, health.router):
        app.include_router(router)
    problems.install(app)
    return app
