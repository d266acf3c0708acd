"""All pages under one roof."""

from __future__ import annotations

from fastapi import APIRouter

from app.dashboard import assets, home, sign_in

router = APIRouter(include_in_schema=False)
for page in (sign_in.router, assets.router, home.router):
    router.include_router(page)
