"""Traces from a request to all that comes of it, for OpenTelemetry; without an exporter none are made, and nothing of
it is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Literal, Protocol
from urllib.parse import urlsplit

from infra import config

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | int | float | bool
NONE: Mapping[str, Attribute] = {}

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def checked(said: bytes | str | None) -> str | None:
    """A `traceparent` of W3C Trace Context as somebody sent it, or None where it is none."""
    if said is None:
        return None
    text = said if isinstance(said, str) else said.decode("latin-1")
    return text if _TRACEPARENT.fullmatch(text) else None


class Span:
    """A piece of work. This one is not recorded, and only passes on what it continues.

    Attributes hold neither secrets nor what belongs to a person: names of routes, kinds, ids of ours, numbers.
    """

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        #: What continues it; None where nobody traces.
        self.traceparent = traceparent

    def note(self, name: str, value: Attribute) -> None:
        """Adds an attribute."""

    def fail(self, kind: str) -> None:
        """Says that the work failed, and of what kind of error."""

    def end(self) -> None:
        """Once; `with` does it."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        if kind is not None:
            self.fail(kind.__name__)  # its text may hold what nobody should read
        self.end()


class Maker(Protocol):
    """What makes spans that are exported."""

    def begin(
        self, name: str, traceparent: str | None, attributes: Mapping[str, Attribute], kind: Kind, links: Iterable[str]
    ) -> Span: ...

    def close(self) -> None: ...


_maker: Maker | None = None


def check(settings: config.Traces) -> None:
    """Raises InvalidSetting."""
    if not settings.endpoint:
        return
    parts = urlsplit(settings.endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise config.InvalidSetting("traces.endpoint is like http://localhost:4318/v1/traces")
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise config.InvalidSetting("traces.endpoint needs the packages that `undrift[otel]` brings")


def setup(settings: config.Traces, process: str) -> None:
    """Begins to export, where there is somewhere to. Raises InvalidSetting."""
    global _maker
    check(settings)
    if settings.endpoint:
        from infra import traces_export  # half a second, and twenty megabytes

        _maker = traces_export.Exporting(settings, process)


def close() -> None:
    """Sends what is still to be sent; blocks for seconds at most."""
    global _maker
    if _maker is not None:
        _maker.close()
        _maker = None


def active() -> bool:
    """Whether spans are made at all."""
    return _maker is not None


def span(
    name: str,
    traceparent: str | None = None,
    attributes: Mapping[str, Attribute] = NONE,
    kind: Kind = "internal",
    links: Iterable[str] = (),
) -> Span:
    """Begins one, to be used by `with`: part of the trace that `traceparent` names, else the beginning of another."""
    if _maker is None:
        return Span(traceparent)
    return _maker.begin(name, checked(traceparent), attributes, kind, links)
