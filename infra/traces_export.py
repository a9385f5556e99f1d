"""Spans by OpenTelemetry's SDK, sent by OTLP over HTTP from a thread of its own. Only imported where that is wanted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from infra import config
from infra.traces import Attribute, Kind, Span, checked

log = structlog.get_logger("traces")

_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_EVERY_MS = 1000
_PATIENCE_S = 3
_LAST_S = 2
_LINKS = 32


class Recording(Span):
    """One that is sent once it has ended, if its trace is sampled."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        super().__init__(_said(span.get_span_context()))

    def note(self, name: str, value: Attribute) -> None:
        self._span.set_attribute(name, value)

    def fail(self, kind: str) -> None:
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        self._span.end()


class _Told(SpanExporter):
    """Says once that the collector takes nothing, and once that it does again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter, self._failing = exporter, False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing != self._failing:
            self._failing = failing
            log.warning("traces are lost: the collector takes none" if failing else "the collector takes traces again")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = _PATIENCE_S * 1000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class Exporting:
    """What a client asked to trace, or not to, is done so; of the rest a part. A collector that is away costs spans and
    nothing else."""

    def __init__(self, settings: config.Traces, process: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)  # it says so each second
        resource = Resource.create({"service.name": settings.service, "undrift.process": process})
        sampler = ParentBased(TraceIdRatioBased(settings.ratio))
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        exporter = _Told(OTLPSpanExporter(endpoint=settings.endpoint, timeout=_PATIENCE_S))
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EVERY_MS))
        self._tracer = self._provider.get_tracer("undrift")

    def begin(
        self, name: str, traceparent: str | None, attributes: Mapping[str, Attribute], kind: Kind, links: Iterable[str]
    ) -> Span:
        context = Context()
        if traceparent is not None:
            context = trace.set_span_in_context(NonRecordingSpan(_context(traceparent)), context)
        linked = [Link(_context(one)) for one in dict.fromkeys(filter(checked, links))]
        return Recording(
            self._tracer.start_span(
                name, context, kind=_KINDS[kind], attributes=dict(attributes), links=linked[:_LINKS]
            )
        )

    def close(self) -> None:
        """A collector that does not answer is not waited for: the rest of its spans is lost."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_LAST_S)


def _context(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _said(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
