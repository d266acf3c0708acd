"""The public log over HTTP: C2SP tlog-tiles as static, cacheable GETs, and proofs for whoever has no tree at hand."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated, Any

from expunge_verify.errors import VerifyError
from expunge_verify.tiles import TILE_WIDTH, Bundle, Tile
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from app.api.context import CurrentSettings, Transaction
from app.api.problems import PLAIN, answers
from app.api.schemas import log as schemas
from app.audit import evidence, tree, witnesses
from app.errors import Invalid, NotFound
from app.storage import audit

router = APIRouter(tags=["log"])
_FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
_NOW = {"Cache-Control": "no-cache"}
_TEXT, _BYTES = "text/plain; charset=utf-8", "application/octet-stream"
_OCTETS: dict[int | str, dict[str, Any]] = {200: {"content": {_BYTES: {}}}}  # Any: OpenAPI


def _need_one_address(request: Request) -> None:
    """Refuse other spellings of a tile's address: a cache would keep each for a year."""
    if request.url.query or b"%" in request.scope.get("raw_path", b""):
        raise NotFound("the log has no such file")


_STATIC = [Depends(_need_one_address)]
Size = Annotated[int, Query(ge=0, le=2**53)]


@router.get("/.well-known/erasure-log.json", responses=answers(503))
def about(tx: Transaction, settings: CurrentSettings) -> schemas.LogOut:
    """Read the log's name, its keys past and present, its witnesses, and how long records behind it can be opened."""
    policy = witnesses.policy_of(settings)
    return schemas.LogOut(
        origin=settings.log_origin,
        keys=[schemas.LogKeyOut(vkey=k.vkey, since=k.since, since_size=k.since_size) for k in audit.known_keys(tx)],
        policy=str(policy) if policy else None,
        evidence_days=settings.evidence_days,
    )


@router.head("/log/checkpoint", include_in_schema=False)
@router.get("/log/checkpoint", responses=answers(404, 503) | PLAIN, response_class=Response)
def checkpoint(tx: Transaction) -> Response:
    """Read the newest published checkpoint, a signed note."""
    return Response(_shown(tx)[1], media_type=_TEXT, headers=_NOW)


@router.head("/log/tile/entries/{path:path}", include_in_schema=False, dependencies=_STATIC)
@router.get(
    "/log/tile/entries/{path:path}",
    responses=answers(404, 503) | _OCTETS,
    response_class=Response,
    dependencies=_STATIC,
)
def entries(path: str, tx: Transaction) -> Response:
    """Read an entry bundle."""
    return _served(tx, Bundle.parse, f"tile/entries/{path}", what="entry bundle")


@router.head("/log/tile/{path:path}", include_in_schema=False, dependencies=_STATIC)
@router.get(
    "/log/tile/{path:path}",
    responses=answers(404, 503) | _OCTETS,
    response_class=Response,
    dependencies=_STATIC,
)
def tile(path: str, tx: Transaction) -> Response:
    """Read a tile of hashes."""
    return _served(tx, Tile.parse, f"tile/{path}", what="tile")


@router.get("/log/proof/inclusion", responses=answers(404, 422, 503))
def inclusion(tx: Transaction, index: Size, size: Size) -> schemas.ProofOut:
    """Read the audit path of an entry in the tree of a size (RFC 6962), hashes in base64."""
    if not index < size <= _shown(tx)[0]:
        raise Invalid("index", "it must be below size, and size at most that of the newest checkpoint")
    return schemas.ProofOut(hashes=[_b64(part) for part in tree.inclusion_proof(tx, index, size)])


@router.get("/log/proof/consistency", responses=answers(404, 422, 503))
def consistency(
    tx: Transaction,
    old: Annotated[int, Query(alias="from", ge=0, le=2**53)],
    new: Annotated[int, Query(alias="to", ge=0, le=2**53)],
) -> schemas.ProofOut:
    """Read the proof that the tree of size ``to`` begins with that of size ``from`` (RFC 6962), in base64."""
    if not old <= new <= _shown(tx)[0]:
        raise Invalid("from", "it must be at most to, and to at most the size of the newest checkpoint")
    return schemas.ProofOut(hashes=[_b64(part) for part in tree.consistency_proof(tx, old, new)])


@router.get("/log/entry/{index}.tlog-proof", responses=answers(404, 422, 503) | PLAIN, response_class=Response)
def proof(index: int, tx: Transaction) -> Response:
    """Read the proof that an entry is in the log, as one C2SP tlog-proof file with its checkpoint."""
    return Response(evidence.proof_of(tx, index), media_type=_TEXT, headers=_NOW)


def _served(tx: Transaction, parse: Callable[[str], Tile | Bundle], path: str, *, what: str) -> Response:
    """A file of the log, if the newest published checkpoint covers it."""
    try:
        wanted = parse(path)
    except VerifyError:
        raise NotFound(f"the log has no such {what}") from None
    level = wanted.level if isinstance(wanted, Tile) else 0
    if (wanted.index * TILE_WIDTH + wanted.width) << 8 * level > _shown(tx)[0]:
        raise NotFound(f"the log has no such {what}")
    return Response(audit.file(tx, wanted), media_type=_BYTES, headers=_FOR_EVER)


def _shown(tx: Transaction) -> tuple[int, bytes]:
    """Size and note of the newest published checkpoint; nothing beyond it is shown."""
    newest = audit.published(tx)
    if newest is None or newest.published is None:
        raise NotFound("the log has published no checkpoint yet")
    return newest.size, bytes(newest.published)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
