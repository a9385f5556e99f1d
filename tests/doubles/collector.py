"""What an OpenTelemetry collector is to a program that sends traces: OTLP over HTTP, in protobuf."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Sent:
    """A span as it arrived; ids in hexadecimal, `parent` empty for the beginning of a trace."""

    name: str
    process: str
    trace: str
    id: str
    parent: str
    kind: int
    failed: bool
    attributes: Mapping[str, Any]
    links: tuple[str, ...]


class Collector:
    """Keeps every span, and every byte that was sent."""

    def __init__(self) -> None:
        self.spans: list[Sent] = []
        self.raw = b""
        self.resources: list[Mapping[str, Any]] = []
        self.url = ""

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.raw += body
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            self.resources.append(resource)
            for scope in group.scope_spans:
                self.spans += [_span(one, str(resource["undrift.process"])) for one in scope.spans]

    def trace(self, id: str) -> list[Sent]:
        return [one for one in self.spans if one.trace == id]

    def named(self, name: str) -> list[Sent]:
        return [one for one in self.spans if one.name == name]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _span(one: Any, process: str) -> Sent:
    return Sent(
        name=one.name,
        process=process,
        trace=one.trace_id.hex(),
        id=one.span_id.hex(),
        parent=one.parent_span_id.hex(),
        kind=one.kind,
        failed=one.status.code == 2,
        attributes=_attributes(one.attributes),
        links=tuple(link.trace_id.hex() for link in one.links),
    )


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    """One on a free port; any other `status` takes nothing."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/x-protobuf"
            if status == 200:
                found.take(body)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
