"""OpenTelemetry traces, where somebody collects them: names, ids and numbers; off unless an OTLP endpoint is set.

What a trace may say is decided here and nowhere else: attributes on a list, of a failure the class. We make every span
ourselves and no library does, since theirs would carry URLs, statements and messages. A caller's own ``traceparent`` is
not taken over: 32 hexadecimal digits hold a hash of somebody's name.

A request's trace goes with its row (``erasure_requests.traceparent``), since a message carries one id and nothing else.
One job serves many requests: it continues the oldest one's trace and is linked to the others'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

_ALLOWED: Final = frozenset(
    {"request", "job", "delivery", "step", "fence", "count", "outcome", "kind"}
    | {"http.request.method", "http.route", "http.response.status_code"}
)
_MOST_LINKS: Final = 128


class _Tracer:
    """The tracer of this process; none while nobody collects."""

    tracer: trace.Tracer | None = None
    flush: Callable[[], object] = staticmethod(lambda: None)


def configure(process: str, *, endpoint: str) -> None:
    """Send this process's spans to ``endpoint``, if there is one; the exporter reads the other OTEL_* variables."""
    if not endpoint:
        return
    # Half a second of imports that only those pay who collect.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    # Not Resource.create(): its detectors would add command lines and users of this machine.
    provider = TracerProvider(resource=Resource({SERVICE_NAME: f"expunge-{process}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _Tracer.flush = provider.force_flush
    _Tracer.tracer = provider.get_tracer("expunge")  # and not global, where other libraries would find it


def flush() -> None:
    """Send what is waiting; a process that ends by itself does so, too."""
    _Tracer.flush()


def is_on() -> bool:
    """Whether somebody collects."""
    return _Tracer.tracer is not None


@contextmanager
def span(
    name: str,
    *,
    parents: Sequence[str | None] = (),
    kind: SpanKind = SpanKind.INTERNAL,
    **about: AttributeValue,
) -> Iterator[Span]:
    """Trace a block; what it raises passes through, and only its class is told.

    Args:
        name: One of our own words.
        parents: What :func:`traceparent` gave: the first is continued, the others linked; none: whatever is current.
        kind: As OpenTelemetry defines it.
        about: Attributes; dropped unless they are on the list.
    """
    if _Tracer.tracer is None:
        yield trace.INVALID_SPAN
        return
    found = [context for context in map(_context, parents) if context]
    begun = _Tracer.tracer.start_as_current_span(
        name,
        context=trace.set_span_in_context(NonRecordingSpan(found[0])) if found else None,
        kind=kind,
        links=[Link(other) for other in found[1 : 1 + _MOST_LINKS]],
        attributes=allowed(about),
        record_exception=False,
        set_status_on_exception=False,
    )
    with begun as current:
        try:
            yield current
        except BaseException as error:
            current.set_attributes(allowed({"kind": type(error).__name__}))
            current.set_status(Status(StatusCode.ERROR))
            raise


def allowed(about: dict[str, AttributeValue]) -> dict[str, AttributeValue]:
    """What of it may be told."""
    return {name: value for name, value in about.items() if name in _ALLOWED}


def traceparent() -> str | None:
    """What a row keeps to be found again: the current span as W3C Trace Context; none while nobody collects."""
    if _Tracer.tracer is None:
        return None
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return None
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"


def _context(kept: str | None) -> SpanContext | None:
    """The span that a row keeps; none when it was written while nobody collected."""
    if not kept:
        return None
    _, trace_id, span_id, flags = kept.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
