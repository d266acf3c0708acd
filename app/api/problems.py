"""The only place where an error becomes HTTP: RFC 9457 problem documents that never echo what was sent."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ExpungeError, Invalid, Unavailable
from app.logs import log

_LARGEST_BODY = 64 * 1024
_RETRY_AFTER_SECONDS = "2"


class FieldProblem(BaseModel):
    """One thing that is wrong with one field."""

    field: str
    problem: str


class Problem(BaseModel):
    """RFC 9457 problem document; ``errors`` names fields, never their values."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []


def answers(*codes: int) -> dict[int | str, dict[str, Any]]:  # Any: FastAPI's type of ``responses=``
    """OpenAPI entries for the problems that a route can answer with."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {code: {"description": HTTPStatus(code).phrase, "content": content, "model": Problem} for code in codes}


def install(app: FastAPI) -> None:
    """Let every error of ``app`` leave as a problem document."""
    app.add_exception_handler(ExpungeError, _expunge_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _surprise)
    app.add_middleware(ReadBody, largest=_LARGEST_BODY)


def problem(status: int, code: str, detail: str, errors: list[FieldProblem] | None = None) -> JSONResponse:
    """A problem response."""
    body = Problem(
        type=f"https://expunge.dev/problems/{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=errors or [],
    )
    headers = {"Cache-Control": "no-store"}  # what is not there may come
    headers |= {"Retry-After": _RETRY_AFTER_SECONDS} if status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(body.model_dump(), status, headers=headers, media_type="application/problem+json")


def _expunge_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ExpungeError)
    if error.status >= 500 and not isinstance(error, Unavailable):
        log.error("request failed", kind=type(error).__name__)
    fields = [FieldProblem(field=error.field, problem=str(error))] if isinstance(error, Invalid) else []
    return problem(error.status, error.code, str(error), fields)


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    """What pydantic found, less the input: its messages are kept only where they can't quote it."""
    assert isinstance(error, RequestValidationError)
    fields = [FieldProblem(field=_place(e), problem=_sentence(e)) for e in error.errors()]
    malformed = any(e["type"] == "json_invalid" for e in error.errors())
    detail = (
        "the body is not JSON"
        if malformed
        else f"{len(fields)} fields are wrong"
        if len(fields) > 1
        else "a field is wrong"
    )
    return problem(400 if malformed else 422, "malformed" if malformed else "invalid", detail, fields)


def _place(error: dict[str, Any]) -> str:  # Any: pydantic's error
    """Where it is wrong; an unknown field's name is the caller's own text, so it is not said."""
    parts = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        parts[-1] = "(unknown field)"
    return ".".join(parts[1:]) or parts[0]


def _sentence(error: dict[str, Any]) -> str:  # Any: pydantic's error
    kind, context = error["type"], error.get("ctx", {})
    return {
        "missing": "this field is required",
        "extra_forbidden": "there is no such field; remove it",
        "json_invalid": "this is not JSON",
        "string_too_long": f"at most {context.get('max_length')} characters",
        "string_too_short": f"at least {context.get('min_length')} characters",
        "too_long": f"at most {context.get('max_length')} items",
        "too_short": f"at least {context.get('min_length')} items",
        "string_pattern_mismatch": "this has not the form the documentation shows",
    }.get(kind, f"expected another type or value ({kind})")


def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(
        error.status_code, "http", HTTPStatus(error.status_code).description or HTTPStatus(error.status_code).phrase
    )


def _surprise(request: Request, error: Exception) -> JSONResponse:
    """A bug of ours: its class goes to the log, its message, which may quote anything, nowhere."""
    route = request.scope.get("route")
    log.error("request failed", kind=type(error).__name__, path=getattr(route, "path", "?"))
    return problem(500, "internal", "something went wrong on our side; nothing was half-written")


class ReadBody:
    """Read the body before anybody else does: refuse what is too large or says two things at once."""

    def __init__(self, app: ASGIApp, largest: int) -> None:
        self.app, self.largest = app, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry: read at most ``largest`` bytes, then hand the body on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await self._read(receive)
        refusal = self._refusal(scope, body)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes:
        body, message = b"", await receive()
        while message["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > self.largest or not message.get("more_body", False):
                break
            message = await receive()
        return body

    def _refusal(self, scope: Scope, body: bytes) -> JSONResponse | None:
        if len(body) > self.largest:
            return problem(413, "too-large", f"the body is larger than {self.largest} bytes")
        if sum(name == b"idempotency-key" for name, _ in scope["headers"]) > 1:
            return problem(400, "malformed", "send one Idempotency-Key")
        if _says_a_name_twice(body):
            return problem(400, "malformed", "a name appears twice in one JSON object; readers would disagree on it")
        return None


class _TwiceError(ValueError):
    """A JSON object has two members of one name."""


def _says_a_name_twice(body: bytes) -> bool:
    """Whether two readers of this JSON could take different values; what isn't JSON is somebody else's to refuse."""

    def once(pairs: list[tuple[str, object]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            raise _TwiceError

    try:
        json.loads(body, object_pairs_hook=once)
    except _TwiceError:
        return True
    except (ValueError, RecursionError):
        return False
    return False
