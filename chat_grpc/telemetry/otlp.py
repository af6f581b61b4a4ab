"""Spans by OpenTelemetry, sent by OTLP over gRPC. Only imported where a collector is configured."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from chat_grpc import __version__
from chat_grpc.telemetry import context
from chat_grpc.telemetry.traces import Kind, Span, Value, reason_of

SEND_SECONDS = 3.0
"""How long one sending may take, and how long the end of the process waits for the last one."""
SAMPLED = 1

KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}


class OTLPTracer:
    """Makes spans and sends them to a collector from a thread of its own.

    OpenTelemetry's own variables are honoured: OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, ...

    Args:
        endpoint: the collector's URL; https means TLS.
    """

    active = True

    def __init__(self, endpoint: str) -> None:
        own = Resource.create({"service.name": "chat-grpc", "service.version": __version__})
        # What the variables say goes before what the program says.
        self._provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=SEND_SECONDS
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("chat_grpc", __version__)

    def begin(self, name: str, kind: Kind) -> OTLPSpan:
        """Begin a span under the place that the program is at; see traces.Tracer."""
        return OTLPSpan(self._tracer.start_span(name, context=_parent(context.trace()), kind=KINDS[kind]))

    @contextmanager
    def enter(self, span: Span) -> Iterator[None]:
        """Be within a span; see traces.Tracer."""
        assert isinstance(span, OTLPSpan)  # noqa: S101 (this tracer has made it)
        with context.tracing(span.place):
            yield

    @contextmanager
    def span(self, name: str, kind: Kind) -> Iterator[Span]:
        """Do the work of the block in a span; see traces.Tracer."""
        span = self.begin(name, kind)
        try:
            with context.tracing(span.place):
                yield span
        except BaseException as error:
            span.fail(reason_of(error))
            raise
        finally:
            span.end()

    async def close(self) -> None:
        """Send what is left; see traces.Tracer."""
        await asyncio.to_thread(self._provider.shutdown)


class OTLPSpan:
    """A span of OpenTelemetry, without what could carry a text into it; see traces.Span."""

    __slots__ = ("_span", "place")

    def __init__(self, span: otel.Span) -> None:
        self._span = span
        told = span.get_span_context()
        self.place = context.Trace(
            otel.format_trace_id(told.trace_id),
            otel.format_span_id(told.span_id),
            f"{int(told.trace_flags):02x}",
            told.trace_state.to_header(),
            remote=False,
        )

    def set(self, name: str, value: Value | tuple[str, ...]) -> None:
        """Set an attribute."""
        self._span.set_attribute(name, value)

    def fail(self, reason: str) -> None:
        """Set the status."""
        self._span.set_status(StatusCode.ERROR)
        self._span.set_attribute("error.type", reason)

    def end(self) -> None:
        """End it; doing so twice does nothing."""
        if self._span.is_recording():
            self._span.end()


def _parent(place: context.Trace | None) -> Any:
    """Return OpenTelemetry's word for a place in a trace. Empty rather than None, which would mean its own globals."""
    nowhere = Context()
    if place is None:
        return nowhere
    parent = SpanContext(
        int(place.trace_id, 16),
        int(place.span_id, 16),
        is_remote=place.remote,
        trace_flags=TraceFlags(int(place.flags, 16) & SAMPLED),
        trace_state=TraceState.from_header([place.state]) if place.state else None,
    )
    return otel.set_span_in_context(otel.NonRecordingSpan(parent), nowhere)
