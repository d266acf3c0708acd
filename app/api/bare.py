"""Routes that FastAPI documents and otherwise leaves alone: reading a body in its way costs 140 µs, in this way 10.

What such a route takes is declared by a dependency that never runs; it reads with what is here, and refuses as FastAPI
would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final, TypeVar

from fastapi import Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import problems
from app.errors import ExpungeError

_LONGEST_KEY = 255
_KEY_FORM = r"^[\x21-\x7e]+$"
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=_LONGEST_KEY,
        pattern=_KEY_FORM,
        description="Repeat a create safely: the same key gives the same request for 24 hours.",
    ),
]
_KEY: Final = TypeAdapter(Annotated[str, StringConstraints(min_length=1, max_length=_LONGEST_KEY, pattern=_KEY_FORM)])
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]  # Any: FastAPI's signature
Shape = TypeVar("Shape", bound=BaseModel)


class Bare(APIRoute):
    """A route whose endpoint gets the request and gives the response."""

    def get_route_handler(self) -> Endpoint:
        """The endpoint itself."""
        handler: Endpoint = self.endpoint
        return handler


class Shortcut:
    """ASGI middleware, the innermost: the busiest route without the router, a tenth of what a create costs the API.

    The route stays where it is, for the OpenAPI document and for other methods; this only gets there first.
    """

    def __init__(self, app: ASGIApp, path: str, endpoint: Endpoint) -> None:
        self.app, self.path, self.endpoint = app, path, endpoint
        self.route = Route(path, endpoint, methods=["POST"])
        """What the log and the metrics call it by."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry: answer a POST to the path, hand on everything else."""
        if scope["type"] != "http" or scope["path"] != self.path or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        scope["route"] = self.route
        request = Request(scope, receive, send)
        try:
            response = await self.endpoint(request)
        except (ExpungeError, RequestValidationError) as error:
            response = problems.answer_to(request, error)
        await response(scope, receive, send)


def idempotency_key(request: Request) -> str | None:
    """The caller's Idempotency-Key, if it sent one.

    Raises:
        RequestValidationError: It breaks the rule.
    """
    value = request.headers.get("idempotency-key")
    if value is None:
        return None
    try:
        return _KEY.validate_python(value)
    except ValidationError as error:
        raise _refusal(error, "header", "Idempotency-Key") from None


def read(shape: type[Shape], content: bytes, *, content_type: str | None) -> Shape:
    """The body as a shape.

    Raises:
        RequestValidationError: It is not JSON, or not of the shape.
    """
    if not is_json(content_type):
        raise RequestValidationError([{"type": "model_attributes_type", "loc": ("body",)}])
    try:
        return shape.model_validate_json(content)
    except ValidationError:
        return _read_again(shape, content)


def is_json(content_type: str | None) -> bool:
    """Whether a body says that it is JSON."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _read_again(shape: type[Shape], content: bytes) -> Shape:
    """What pydantic's reader calls no JSON, others may read: a lone surrogate is a wrong value, not a typo."""
    try:
        value = json.loads(content) if content else None
    except (ValueError, RecursionError):
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",)}]) from None
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise _refusal(error, "body") from None


def _refusal(error: ValidationError, *place: str) -> RequestValidationError:
    """Less the input, which may be a user id: nothing that is raised from here carries it."""
    found = error.errors(include_url=False, include_input=False)
    return RequestValidationError([{**one, "loc": (*place, *one["loc"])} for one in found])
