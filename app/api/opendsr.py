"""OpenDSR over HTTP, versions 1.0, 2.0 and mParticle's 3.0, each under its own base.

The specification puts them under ``/v1`` … ``/v3``, where our own API lives; so they have a base before that, and a
reverse proxy may serve ``https://opendsr.example/v2`` from ``/opendsr/v2``. Every answer is signed over its raw bytes.
"""

from __future__ import annotations

import base64
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from app import portals
from app.api.auth import Reader, Writer
from app.api.context import Body, CurrentSettings, Now, Transaction
from app.api.problems import FROM_THE_DOOR
from app.api.schemas import opendsr as schemas
from app.domain.lifecycle import RequestStatus
from app.domain.portals import opendsr, reading
from app.domain.portals.base import Document, Portal, Sent, instant
from app.errors import Invalid, NotFound
from app.opendsr import Processor, load
from app.storage import portals as storage

_STATUS_IS_ELSEWHERE = "there is no such route: status is GET {path}/{{subject_request_id}} (OpenDSR 2.0 §8.1)"
_PEM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-pem-file": {}}}}  # Any: OpenAPI


def _processor(settings: CurrentSettings) -> Processor:
    return load(settings)


Signer = Annotated[Processor, Depends(_processor)]
GroupId = Annotated[str, Query(min_length=1, max_length=200)]
StatusFilter = Annotated[str | None, Query(max_length=20, description="One of OpenDSR's four words")]


def _routes(dialect: opendsr.Dialect, portal: Portal) -> APIRouter:
    """The routes of one version; its paths also with a slash behind, as some clients send them."""
    routes = APIRouter(prefix=dialect.prefix, tags=[f"OpenDSR {dialect.version}"])
    _discovery(routes, dialect)
    _creation(routes, dialect, portal)
    _reading(routes, dialect, portal)
    _cancellation(routes, dialect, portal)
    return routes


def _discovery(routes: APIRouter, dialect: opendsr.Dialect) -> None:
    @routes.get("/discovery/", include_in_schema=False)
    @routes.get("/discovery", responses=_answers(dialect, 404) | {200: {"model": schemas.DiscoveryOut}})
    def discovery(signer: Signer) -> Response:
        """Say what is supported here, and where the certificate is."""
        return _signed(signer, dialect, opendsr.discovery(dialect, signer.domain))

    @routes.get("/certificate.pem", responses=_answers(dialect, 404) | _PEM)
    def certificate(signer: Signer) -> Response:
        """Download the certificate by which answers and callbacks are checked."""
        return Response(signer.pem, media_type="application/x-pem-file")

    @routes.get("/status", responses=_answers(dialect, 404), status_code=404)
    def no_status() -> Response:
        """Point to where status is: §3.1 of the specification asks for this route, §8.1 defines another."""
        raise NotFound(_STATUS_IS_ELSEWHERE.format(path=dialect.path))


def _creation(routes: APIRouter, dialect: opendsr.Dialect, portal: Portal) -> None:
    @routes.post(f"/{dialect.path}/", include_in_schema=False)
    @routes.post(
        f"/{dialect.path}",
        status_code=201,
        responses=_answers(dialect, 400, 401, 403, 404, 413, 503) | {201: {"model": schemas.ReceiptOut}},
        openapi_extra=_takes(schemas.RequestIn),
    )
    def create(
        body: Body, tx: Transaction, client: Writer, signer: Signer, now: Now, settings: CurrentSettings
    ) -> Response:
        """Accept a demand; the same one under the same subject_request_id is answered with the same receipt."""
        sent = Sent(document=reading.document(body), headers={}, knobs=portals.knobs(portal, settings))
        done = portals.accept(
            tx,
            portal,
            portal.read(sent),
            demand=sent.document,
            client_id=client.client_id,
            now=now,
            settings=settings,
        )
        receipt = portal.answer(sent, done.story) | {"encoded_request": base64.b64encode(body).decode()}
        return _signed(signer, dialect, receipt, HTTPStatus.CREATED)


def _reading(routes: APIRouter, dialect: opendsr.Dialect, portal: Portal) -> None:
    @routes.get(f"/{dialect.path}/{{subject_request_id}}/", include_in_schema=False)
    @routes.get(
        f"/{dialect.path}/{{subject_request_id}}",
        responses=_answers(dialect, 401, 403, 404, 503) | {200: {"model": schemas.StatusOut}},
    )
    def show(
        subject_request_id: str, tx: Transaction, client: Reader, signer: Signer, settings: CurrentSettings
    ) -> Response:
        """Read where a request stands."""
        row = storage.need(tx, client.client_id, opendsr.NAME, _ticket(subject_request_id))
        knobs = portals.knobs(portal, settings)
        return _signed(signer, dialect, opendsr.status(dialect, storage.story(tx, row), knobs))

    if not dialect.groups:
        return

    @routes.get(f"/{dialect.path}/", include_in_schema=False)
    @routes.get(
        f"/{dialect.path}",
        responses=_answers(dialect, 400, 401, 403, 404, 503) | {200: {"model": list[schemas.StatusOut]}},
    )
    def group(
        tx: Transaction,
        client: Reader,
        signer: Signer,
        settings: CurrentSettings,
        group_id: GroupId,
        request_status: StatusFilter = None,
    ) -> Response:
        """List the requests of a group."""
        states = opendsr.states(request_status) if request_status else frozenset(RequestStatus)
        rows = storage.group(tx, client.client_id, opendsr.NAME, _group(group_id), states=states)
        told, knobs = storage.stories(tx, rows), portals.knobs(portal, settings)
        return _signed(signer, dialect, [opendsr.status(dialect, told[row.request_id], knobs) for row in rows])


def _cancellation(routes: APIRouter, dialect: opendsr.Dialect, portal: Portal) -> None:
    @routes.delete(f"/{dialect.path}/{{subject_request_id}}/", include_in_schema=False)
    @routes.delete(
        f"/{dialect.path}/{{subject_request_id}}",
        status_code=202,
        responses=_answers(dialect, 400, 401, 403, 404, 503) | {202: {"model": schemas.CancellationOut}},
    )
    def cancel(
        subject_request_id: str, tx: Transaction, client: Writer, signer: Signer, now: Now, settings: CurrentSettings
    ) -> Response:
        """Take a request back; possible until work on it begins, otherwise 400."""
        ticket = _ticket(subject_request_id)
        story = portals.cancel(tx, portal, ticket, client_id=client.client_id, now=now, settings=settings)
        return _signed(signer, dialect, opendsr.cancellation(dialect, story, instant(now)), HTTPStatus.ACCEPTED)


def _ticket(subject_request_id: str) -> str:
    try:
        return opendsr.ticket(subject_request_id)
    except Invalid:
        raise NotFound("there is no request with this id") from None


def _group(group_id: str) -> str:
    return reading.label({"group_id": group_id}, "group_id")


def _signed(
    signer: Processor, dialect: opendsr.Dialect, told: Document | list[Document], status: int = 200
) -> Response:
    content = opendsr.written(told)
    headers = signer.headers(content, dialect.signed_as) | {"Cache-Control": "no-store"}
    return Response(content, status, headers, media_type="application/json")


def _answers(dialect: opendsr.Dialect, *codes: int) -> dict[int | str, dict[str, Any]]:  # Any: FastAPI's type
    """OpenAPI entries for the errors of a route, in the version's shape."""
    shape = schemas.ErrorBody if dialect.groups else schemas.ErrorOut
    every = sorted({*codes, *FROM_THE_DOOR})
    return {code: {"description": HTTPStatus(code).phrase, "model": shape} for code in every}


def _takes(shape: type[schemas.RequestIn]) -> dict[str, Any]:  # Any: OpenAPI
    schema = shape.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:  # Any: JSON Schema
    """A schema without references: FastAPI gives a place only to shapes that it reads itself."""
    if isinstance(schema, list):
        return [_inlined(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {name: _inlined(one, parts) for name, one in schema.items()}


router = APIRouter()
for _dialect, _portal in zip(opendsr.DIALECTS, opendsr.PORTALS, strict=True):
    router.include_router(_routes(_dialect, _portal))
