"""Which pages of other origins a browser may let talk to us, and what it is told."""

from __future__ import annotations

from collections.abc import Iterable

from infra import config
from services.gateway import dialects, headers

_NAMES = ("localhost", "127.0.0.1", "[::1]")
_DEFAULT_PORTS = {80: "http", 443: "https"}
_PREFLIGHT: tuple[headers.Pair, ...] = (
    (b"access-control-allow-methods", b"GET, POST, PUT, DELETE, OPTIONS, HEAD, PATCH"),
    (
        b"access-control-allow-headers",
        b"Content-Type, Authorization, Idempotency-Key, If-Match, Last-Event-ID, Prefer,"
        b" Undrift-Min-Position, Undrift-Session, Tus-Resumable, Upload-Length, Upload-Offset, Upload-Metadata,"
        b" Upload-Checksum, Upload-Concat, X-HTTP-Method-Override, X-Device-Token",
    ),
    (b"access-control-max-age", b"3600"),
)
_EXPOSED: headers.Pair = (
    b"access-control-expose-headers",
    b"Location, Retry-After, Undrift-Position, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset,"
    b" X-Request-Id,"
    b" Tus-Resumable, Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm, Upload-Offset, Upload-Length,"
    b" Upload-Metadata, Upload-Expires, Upload-Concat, Undrift-Conflict, Undrift-Sequence",
)
_PANEL: tuple[headers.Pair, ...] = (
    (b"access-control-allow-credentials", b"true"),
    (b"access-control-allow-methods", b"GET, POST, PATCH, PUT, DELETE, OPTIONS"),
    (
        b"access-control-allow-headers",
        b"Accept, Accept-Encoding, Authorization, Cache-Control, Content-Type, Content-Length, Origin, X-Real-IP,"
        b" X-CSRF-Token",
    ),
    (b"access-control-max-age", b"7200"),
)
_VARY: headers.Pair = (b"vary", b"Origin")


class Cors:
    """The allow-list: loopback names with `cors_ports` and the ports we listen on, and `cors_origins`."""

    def __init__(self, settings: config.Gateway, ports: Iterable[int] = (), panel: str = "") -> None:
        self._panel = panel.rstrip("/").encode()
        self._origins = frozenset(origin.lower().encode() for origin in settings.cors_origins) | {
            origin.encode() for port in {*settings.cors_ports, *ports} for origin in _loopback(port)
        }

    def allows(self, origin: bytes) -> bool:
        return origin.lower() in self._origins

    def for_the_panel(self, origin: bytes | None) -> list[headers.Pair]:
        """What every answer of family 5 carries: its own pages may ask, and those of the allow-list."""
        known = origin if origin is not None and self.allows(origin) else self._panel
        return [(b"access-control-allow-origin", known), *_PANEL] if known else [*_PANEL]

    def headers(self, origin: bytes) -> list[headers.Pair]:
        """What every response to a request with this `Origin` carries."""
        if not self.allows(origin):
            return [_VARY]
        return [(b"access-control-allow-origin", origin), _EXPOSED, _VARY]

    def preflight(self, origin: bytes | None) -> dialects.Reply:
        """The answer to OPTIONS."""
        return dialects.Reply(200, b"", [*_PREFLIGHT, *(self.headers(origin) if origin else [])])


def _loopback(port: int) -> Iterable[str]:
    for name in _NAMES:
        for scheme in ("http", "https"):
            yield f"{scheme}://{name}:{port}"
            if _DEFAULT_PORTS.get(port) == scheme:
                yield f"{scheme}://{name}"
