"""What a route is, what its handler gets, and how both meet HTTP: every route of the gateway takes this one way."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from litestar.handlers import ASGIRouteHandler
from msgspec import Struct

from domain import errors, messages
from infra import traces
from infra.eventstore.recorder import Key
from infra.eventstore.store import Done, Wish
from services.gateway import bodies, dialects, headers
from services.gateway.auth import Authenticator, Principal, is_loopback
from services.gateway.condition import Conditions
from services.gateway.consistency import Reads
from services.gateway.dialects import Dialect, Reply
from services.gateway.live import Feeds
from services.gateway.waits import Waits
from services.main import Process

T = TypeVar("T")

_TRACED = "undrift.traceparent"


class Parameter(Struct, frozen=True):
    """A parameter of the query, or of the header, as the OpenAPI document shows it; `schema` is JSON Schema."""

    name: str
    schema: dict[str, Any]
    description: str = ""
    required: bool = False
    where: Literal["query", "header"] = "query"


@dataclass
class Api:
    """What handlers share."""

    process: Process
    authenticator: Authenticator
    reads: Reads
    waits: Waits
    live: Feeds
    conditions: Conditions
    observe: Callable[[str, str, int, float], None]


class Call:
    """One request to one route, admitted and in the hands of its handler."""

    __slots__ = ("api", "principal", "raw", "receive", "route", "scope")

    def __init__(self, api: Api, route: Route, scope: Any, receive: Any) -> None:
        self.api, self.route, self.scope, self.receive = api, route, scope, receive
        self.raw = b""
        self.principal: Principal

    @property
    def fields(self) -> headers.Headers:
        """The request's headers."""
        return headers.of(self.scope)

    @property
    def tenant(self) -> str:
        return self.principal.tenant

    def path(self, name: str) -> str:
        return str(self.scope["path_params"][name])

    def query(self) -> dict[str, str]:
        return bodies.query(self.scope)

    async def body(self, kind: type[T]) -> T:
        """The JSON body. Raises Invalid, TooLarge, UnsupportedMedia."""
        found = await self.optional_body(kind)
        if found is None:
            raise errors.Invalid("A JSON body is required")
        return found

    async def optional_body(self, kind: type[T]) -> T | None:
        limit = self.api.process.settings.gateway.max_body_bytes
        self.raw = await bodies.raw_json(self.scope, self.receive, limit=limit)
        return await bodies.parse(self.raw, kind) if self.raw else None

    def key(self) -> Key | None:
        """The idempotency key within its principal, with the hash of what was asked. Read the body first."""
        text = headers.idempotency_key(self.fields)
        if text is None:
            return None
        asked = (self.scope["method"].encode(), self.scope["path"].encode(), self.scope["query_string"], self.raw)
        digest = hashlib.sha256(b"\0".join(asked)).digest()
        return Key(self.principal.actor, text, digest)

    def metadata(self) -> messages.Metadata:
        owner = self.principal.owner
        return messages.Metadata(
            actor=self.principal.actor,
            traceparent=self.scope.get(_TRACED) or traces.checked(self.fields.get(b"traceparent")),
            owner=owner or "_",
            subject=owner or None,
        )

    async def earlier(self, *contexts: Any, stream: str | None = None) -> Done | None:
        """What this idempotency key did before, if anything; `stream` is whose state answers when that was nothing."""
        key = self.key()
        return None if key is None else await self.api.process.store.earlier(contexts, self.tenant, key, stream)

    async def execute(self, wishes: Sequence[Wish]) -> Done:
        """Carries out commands under the request's key, and remembers their position for the principal's reads."""
        done = await self.api.process.store.execute_all(
            wishes, tenant=self.tenant, metadata=self.metadata(), key=self.key()
        )
        contexts = {one.stream.partition("/")[0] for one in done.events}
        self.api.reads.wrote(self.principal.actor, done.position, *contexts)
        return done

    async def caught_up(self, context: str = "") -> int:
        """Waits until the read models show what this principal wrote (in one context, where that is all the handler
        reads), and the position it asked for; answers theirs."""
        return await self.api.reads.wait(self.principal.actor, headers.min_position(self.fields), context)

    def reply(self, value: Any, position: int, status: int = 200, extra: Sequence[headers.Pair] = ()) -> Reply:
        return Reply(status, self.route.dialect.encode(value), [headers.position(position), *extra])


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """`needs` is the scope a principal must have, `open` admits anybody. `body`, `answers` and `errors` are what the
    OpenAPI document says; `answers` maps a status to the struct of its body; `streams` says that it is also
    offered as `text/event-stream`."""

    method: str
    path: str
    handler: Handler
    dialect: Dialect
    summary: str
    needs: str | None = None
    open: bool = False
    loopback_or: str | None = None
    body: Any = None
    body_required: bool = True
    query: Sequence[Parameter] = ()
    answers: Mapping[int, Any] = field(default_factory=dict)
    errors: Sequence[int] = ()
    media: str = "application/json"
    streams: bool = False


class Endpoint:
    """All methods of one path, as an ASGI application."""

    def __init__(self, api: Api, routes: Sequence[Route]) -> None:
        self._api = api
        self._routes = {route.method: route for route in routes}
        self.dialect = routes[0].dialect
        allowed = sorted(self._routes.keys() | ({"HEAD"} if "GET" in self._routes else set()))
        self._allow = [(b"allow", ", ".join(allowed).encode())]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        method = scope["method"]
        route = self._routes.get("GET" if method == "HEAD" else method)
        if route is None:
            await self.dialect.condition(405, scope["path"], headers=self._allow)(scope, receive, send)
            return
        started = time.perf_counter()
        reply = await (self._traced if traces.active() else self._reply)(route, scope, receive)
        if method == "HEAD" and isinstance(reply, Reply):
            reply = Reply(reply.status, b"", reply.headers)
        self._api.observe(route.method, route.path, getattr(reply, "status", 200), time.perf_counter() - started)
        await reply(scope, receive, send)

    async def _traced(self, route: Route, scope: Any, receive: Any) -> Any:
        """Part of the client's trace, where it says one; what comes of the request continues it."""
        given = traces.checked(headers.of(scope).get(b"traceparent"))
        path = route.path.replace(":str}", "}").replace(":path}", "}")
        about = {"http.request.method": route.method, "http.route": path}
        with traces.span(f"{route.method} {path}", given, about, "server") as span:
            scope[_TRACED] = span.traceparent
            reply = await self._reply(route, scope, receive)
            status = getattr(reply, "status", 200)
            span.note("http.response.status_code", status)
            if status >= 500:
                span.fail(str(status))
            return reply

    async def _reply(self, route: Route, scope: Any, receive: Any) -> Any:
        try:
            return await self._answer(route, scope, receive)
        except Exception as error:
            scope["route_dialect"] = route.dialect
            return dialects.failed(scope, error)

    async def _answer(self, route: Route, scope: Any, receive: Any) -> Any:
        call = Call(self._api, route, scope, receive)
        if not (route.open or (route.loopback_or is not None and is_loopback(scope))):
            call.principal = await self._api.authenticator.admit(scope, route.dialect, route.needs or route.loopback_or)
        else:
            await self._api.authenticator.welcome(scope, route.dialect)
        if route.method != "GET":
            headers.idempotency_key(call.fields)  # a key that is none is refused, also where nothing is recorded
        return await route.handler(call)


def endpoints(api: Api, routes: Sequence[Route]) -> dict[str, Endpoint]:
    """What serves each path. What is called by another of its names is counted, and documented, under its own."""
    paths: dict[str, list[Route]] = {}
    for route in routes:
        paths.setdefault(route.path, []).append(route)
    served = {path: Endpoint(api, group) for path, group in paths.items()}
    others = {dialects.unversioned(path): endpoint for path, endpoint in served.items()}
    return served | {other: endpoint for other, endpoint in others.items() if other is not None}


def handlers(served: Mapping[str, Endpoint]) -> list[ASGIRouteHandler]:
    """The same for Litestar."""
    found = []
    for path, endpoint in served.items():
        handler = ASGIRouteHandler(path, opt={"dialect": endpoint.dialect}, copy_scope=False)
        found.append(handler(_function(endpoint)))
    return found


def _function(endpoint: Endpoint) -> Any:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await endpoint(scope, receive, send)

    return serve
