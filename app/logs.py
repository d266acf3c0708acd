"""JSON logs on stderr: an event name, ids and numbers; never a body, a query string or an exception's message."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_ALLOWED = frozenset(
    {"event", "level", "timestamp", "job", "request", "delivery", "step", "fence", "path", "code", "kind", "count"}
    | {"process", "port", "outcome", "signal", "reason", "witness"}
)


def configure(level: str) -> None:
    """Set up structlog and the standard library's loggers of this process."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _only_allowed,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper(), logging.INFO)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    for name in ("uvicorn.error", "celery.app.trace"):
        logging.getLogger(name).addFilter(_without_message)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")


def _without_message(record: logging.LogRecord) -> bool:
    """What others log of an exception quotes its message, which may hold anything; keep the class."""
    if record.exc_info:
        kind = record.exc_info[0]
        record.msg, record.args, record.exc_info = f"failed: {kind.__name__ if kind else 'unknown'}", None, None
    return True


def _only_allowed(
    _: Any, __: str, fields: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:  # Any: structlog's API
    """Drop every field that isn't on the list: what isn't named can't leak."""
    return {name: value for name, value in fields.items() if name in _ALLOWED}


log: structlog.typing.FilteringBoundLogger = structlog.get_logger()
