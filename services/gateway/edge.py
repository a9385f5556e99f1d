"""The outermost layer of the gateway: what holds for every request before any route is looked up."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from litestar.exceptions import LitestarException

from domain import errors
from services.gateway import auth, bodies, dialects, headers, limits
from services.gateway.cors import Cors

Meter = Callable[[Any, dialects.Dialect], Awaitable[limits.Allowance | None]]

WINGS = dialects.WINGS.family
_PANELS = ("/api/servers", "/api/system", "/api/update", "/api/deauthorize-user")


class Edge:
    """Wraps the application. Refuses paths and queries that are not clean text, answers preflights,
    adds CORS and rate-limit headers, and turns what escaped the application into an answer."""

    def __init__(
        self, app: Any, cors: Cors, meter: Meter | None = None, *, sockets: Any = None, widely: bool = False
    ) -> None:
        """`meter` counts what reached no route; `sockets` serves websockets; `widely` where not only family 3 is
        counted."""
        self._app, self._sockets = app, sockets or app
        self._cors = cors
        self._meter = meter
        self._widely = widely

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await (self._sockets if scope["type"] == "websocket" else self._app)(scope, receive, send)
            return
        origin, path = headers.of(scope).get(b"origin"), scope["path"]
        if path.startswith(_PANELS) and dialects.by_path(path).family == WINGS:
            send = self._for_the_panel(scope, send, origin)
            if scope["method"] == "OPTIONS":
                await dialects.Reply(204)(scope, receive, send)
                return
        if origin is not None or path.startswith("/api/v1/") or "//" in path or self._widely:
            send = self._adding(scope, send, origin)
        if scope["method"] == "OPTIONS" and self._is_preflight(scope, origin):
            await self._cors.preflight(origin)(scope, receive, send)
            return
        try:
            bodies.check_target(scope)
            await self._app(scope, receive, send)
        except Exception as error:
            await self._rescue(error, scope, receive, send)

    def _is_preflight(self, scope: Any, origin: bytes | None) -> bool:
        dialect = dialects.by_path(scope["path"])
        return dialect.family in (1, 2) or (
            origin is not None and b"access-control-request-method" in headers.of(scope)
        )

    def _for_the_panel(self, scope: Any, send: Any, origin: bytes | None) -> Any:
        """Every answer of family 5 has a request id, and names the Panel's pages as those that may ask."""
        fixed = self._cors.for_the_panel(origin)

        async def adding(message: Any) -> None:
            if message["type"] == "http.response.start":
                said = list(message.get("headers", ()))
                if not any(name == b"x-request-id" for name, _ in said):
                    said.append((b"x-request-id", str(uuid.uuid4()).encode()))
                message = {**message, "headers": [*said, *fixed]}
            await send(message)

        return adding

    def _adding(self, scope: Any, send: Any, origin: bytes | None) -> Any:
        shared = origin is not None and dialects.by_path(scope["path"]).family != WINGS

        async def adding(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = await self._rate(scope)
                cross = self._cors.headers(origin) if shared and origin is not None else ()
                message = {**message, "headers": [*message.get("headers", ()), *added, *cross]}
            await send(message)

        return adding

    async def _rate(self, scope: Any) -> Sequence[headers.Pair]:
        """What is left; where nothing was counted, because no route was reached, this request is counted now."""
        counted: limits.Allowance | None = scope.get(auth.RATE)
        if counted is None and self._meter is not None:
            counted = await self._meter(scope, dialects.of(scope))
        return () if counted is None else counted.headers()

    async def _rescue(self, error: Exception, scope: Any, receive: Any, send: Any) -> None:
        if type(error) is LitestarException and isinstance(error.__cause__, Exception):
            error = error.__cause__
        reply = dialects.failed(scope, error)
        try:
            await reply(scope, receive, send)
        except RuntimeError:
            # The response had begun: only ending the connection tells the client that it is incomplete.
            raise errors.Unavailable from error
