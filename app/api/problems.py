"""The only place where an error becomes HTTP: RFC 9457 problem documents that never echo what was sent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.api.call_log import CALL
from app.api.schemas.base import FieldProblem
from app.errors import ExpungeError, Invalid, TooMany, Unavailable
from app.logs import log, place

_RETRY_AFTER_SECONDS = "2"
FROM_THE_DOOR = (400, 413, 429)
"""What a call may be told before any route sees it."""


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
    every = sorted({*codes, *FROM_THE_DOOR})
    return {code: {"description": HTTPStatus(code).phrase, "content": content} for code in every}


PLAIN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}  # Any: OpenAPI
"""The OpenAPI entry of a route that answers with text."""


def install(app: FastAPI) -> None:
    """Let every error of ``app`` leave as a problem document, and its OpenAPI document say so."""
    app.openapi = _documented(app.openapi)  # type: ignore[method-assign] # FastAPI's own way to extend it
    app.add_exception_handler(ExpungeError, _expunge_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, surprise)


def _documented(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:  # Any: OpenAPI
    """The document with the shape of our errors, and without FastAPI's own for a 422, which nobody is sent."""

    @cache
    def document() -> dict[str, Any]:  # Any: OpenAPI
        made = openapi()
        shape = Problem.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
        schemas = made["components"]["schemas"]
        schemas |= shape.pop("$defs") | {"Problem": shape}
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for operation in (operation for path in made["paths"].values() for operation in path.values()):
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
        return made

    return document


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


def answer_to(request: Request, error: ExpungeError | RequestValidationError) -> JSONResponse:
    """The problem document of an error."""
    return refusal(error) if isinstance(error, ExpungeError) else _validation_error(request, error)


def _expunge_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ExpungeError)
    return refusal(error)


def refusal(error: ExpungeError) -> JSONResponse:
    """The problem document of an error of ours."""
    if error.status >= 500 and not isinstance(error, Unavailable):
        log.error("request failed", kind=type(error).__name__)
    fields = [FieldProblem(field=error.field, problem=str(error))] if isinstance(error, Invalid) else []
    answer = problem(error.status, error.code, str(error), fields)
    if isinstance(error, TooMany):
        answer.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    return answer


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    """What pydantic found, less the input: its messages are kept only where they can't quote it."""
    assert isinstance(error, RequestValidationError)
    fields = fields_of(error.errors())
    malformed = any(e["type"] == "json_invalid" for e in error.errors())
    detail = (
        "the body is not JSON"
        if malformed
        else f"{len(fields)} fields are wrong"
        if len(fields) > 1
        else "a field is wrong"
    )
    return problem(400 if malformed else 422, "malformed" if malformed else "invalid", detail, fields)


def fields_of(errors: Iterable[dict[str, Any]]) -> list[FieldProblem]:  # Any: pydantic's errors
    """What is wrong where, and never with which value."""
    return [FieldProblem(field=_place(error), problem=_sentence(error)) for error in errors]


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
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than_equal": f"at most {context.get('le')}",
        "too_long": f"at most {context.get('max_length')} items",
        "too_short": f"at least {context.get('min_length')} items",
        "string_pattern_mismatch": "this has not the form the documentation shows",
    }.get(kind, f"expected another type or value ({kind})")


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = problem(
        error.status_code, "http", HTTPStatus(error.status_code).description or HTTPStatus(error.status_code).phrase
    )
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(_allowed(request))
    return answer


def _allowed(request: Request) -> list[str]:
    """Every method that a path knows (RFC 9110 10.2.1); the framework names those of one route only."""
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.router.routes
        )
    ]


def surprise(request: Request, error: Exception) -> JSONResponse:
    """A bug of ours: its class and place go to the log, its message, which may quote anything, nowhere."""
    route, call = request.scope.get("route"), request.scope.get(CALL, "?")
    about = {"kind": type(error).__name__, "place": place(error.__traceback__)}
    log.error("request failed", path=getattr(route, "path", "?"), call=call, **about)
    answer = problem(500, "internal", "something went wrong on our side; nothing was half-written")
    answer.headers.update({"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"})  # past the door
    answer.headers["X-Request-Id"] = call  # and past the call log
    return answer


class _TwiceError(ValueError):
    """A JSON object has two members of one name."""


def read_once(content: bytes) -> Any:  # Any: JSON
    """JSON that can be read in one way only.

    Raises:
        Invalid: It is no JSON, or says a name twice.
    """
    try:
        return _ONCE.decode(content.decode())
    except _TwiceError:
        raise Invalid("body", TWICE) from None
    except (ValueError, RecursionError):
        raise Invalid("body", "this is not JSON") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    said = dict(pairs)
    if len(said) < len(pairs):
        raise _TwiceError
    return said


_ONCE = json.JSONDecoder(object_pairs_hook=_once)
TWICE = "a name appears twice in one JSON object; readers would disagree on it"


def says_a_name_twice(body: bytes) -> bool:
    """Whether two readers of this JSON could take different values; what isn't JSON is somebody else's to refuse."""
    if not body:
        return False
    try:
        _ONCE.decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except _TwiceError:
        return True
    except (ValueError, RecursionError):
        return False
    return False
