"""The HTTP application; nothing happens at import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from app import logs, tracing
from app.api import (
    bulk,
    decisions,
    dialects,
    exports,
    health,
    intake,
    log,
    metrics,
    models,
    opendsr,
    portals,
    problems,
    requests,
    suppressions,
    webhooks,
)
from app.api.bare import Shortcut
from app.api.bodies import ReadBody
from app.api.call_log import CallLog
from app.api.context import Context
from app.api.door import Door, Doorkeeper
from app.api.group_commit import GroupCommit
from app.dashboard import site
from app.dashboard.frame import Frame
from app.errors import Unavailable
from app.metrics import House
from app.settings import Settings, load
from app.storage import keys
from app.storage.sessions import connect, transaction

_DESCRIPTION = """Carries GDPR erasure requests through to trained models.

Authenticate with `Authorization: Bearer …`: an API key (`expunge keys create`), or a token of the operator's identity
provider. Errors are RFC 9457 problem documents and never repeat what you sent. All times are RFC 3339 with a zone."""


_OWN_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own would tell paths, bodies and messages; app/api/call_log.py tells routes and numbers."""


_NOUNS = (
    *(
        intake,
        bulk,
        exports,
        requests,
        decisions,
        models,
        webhooks,
        log,
        suppressions,
        opendsr,
        portals,
        health,
        metrics,
    ),
    site,
)
"""Whose routes there are, in the order in which they are tried."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; without ``settings`` they come from the environment when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chosen = settings or load()
        logs.configure(chosen.log_level)
        logs.own_process()
        tracing.configure("api", endpoint=chosen.otlp_endpoint)
        for name in ("index_key", "wrapping_key", "signing_key"):
            chosen.key(name)  # a missing secret stops the start, not the first request
        engine = connect(chosen.sqlalchemy_url(), pool_size=20)
        try:
            with transaction(engine) as tx:
                keys.check_secrets(tx, chosen)
        except Unavailable:
            logs.log.warning("started without a database")  # every route answers 503 until it is there
        app.state.context = Context(settings=chosen, engine=engine)
        app.state.metrics = House(engine)
        app.state.intake = GroupCommit(partial(intake.file, app.state.context))
        app.state.doorkeeper = Doorkeeper(chosen)
        async with app.state.doorkeeper.on_duty():
            yield
        await app.state.intake.drain()
        engine.dispose()

    # No /docs: FastAPI's page loads scripts from elsewhere. docs/openapi.json and /openapi.json say the same.
    app = FastAPI(
        title="Expunge",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to a host that the caller names, and its key would be sent again
        telemetry=_OWN_TELEMETRY,
    )
    for noun in _NOUNS:
        app.include_router(noun.router)
    app.add_middleware(Shortcut, path=intake.router.prefix, endpoint=intake.create)
    problems.install(app)
    app.add_middleware(ReadBody)
    app.add_middleware(Door)  # who is refused here is not listened to
    app.add_middleware(dialects.Dialects)  # before the door: it is shown a portal's key, and its errors are translated
    app.add_middleware(Frame)  # before the door: its refusals are pages, too
    app.add_middleware(CallLog)  # outermost: whatever becomes of a call is counted
    return app
