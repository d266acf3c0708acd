"""All pages under one roof."""

from __future__ import annotations

from fastapi import APIRouter

from app.dashboard import (
    account,
    actions,
    assets,
    bulk,
    by_hand,
    certificate,
    home,
    keys,
    log,
    models,
    people,
    provider,
    request,
    requests,
    settings,
    sign_in,
    webhooks,
)

router = APIRouter(include_in_schema=False)
for page in (
    sign_in.router,
    provider.router,
    assets.router,
    home.router,
    by_hand.router,
    bulk.router,
    requests.router,
    request.router,
    actions.router,
    certificate.router,
    webhooks.router,
    keys.router,
    models.router,
    settings.router,
    log.router,
    people.router,
    account.router,
):
    router.include_router(page)
