"""The OpenAPI 3.1 document of the routes, and a page for it from our own files."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from services.gateway import dialects
from services.gateway.dialects import Dialect, Reply
from services.gateway.headers import Pair

ASSETS = Path(__file__).parent / "assets"

_PARAMETER = re.compile(r"\{([A-Za-z_]+)(?::([a-z]+))?\}")
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$"}
_PARAMETER_SCHEMAS = {"int": {"type": "integer"}, "uuid": {"type": "string", "format": "uuid"}}
_REFERENCE = "#/components/schemas/"
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key with the same request is carried out once, and answered alike.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_POSITION = {"description": "Where in the log the answer stands.", "schema": {"type": "integer"}}
_RATE = {
    "X-RateLimit-Limit": {"description": "Requests in any minute, of this credential.", "schema": {"type": "integer"}},
    "X-RateLimit-Remaining": {"description": "How many of them are left.", "schema": {"type": "integer"}},
    "X-RateLimit-Reset": {
        "description": "Seconds until the oldest one counted is a minute ago.",
        "schema": {"type": "integer"},
    },
}
_RETRY_AFTER = {"description": "Seconds.", "schema": {"type": "integer"}}
_STREAM = "text/event-stream"
_EVENT = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
}
_TITLES = {409: "Something else is in the way", 410: "No longer served", 412: "The world has moved since"} | {
    422: "The idempotency key was used with another request",
    507: "There is no space left",
}
# Nothing from elsewhere: the page's styles are inline, everything else is a file of ours.
_POLICY = b"default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'"


class Parameter(Protocol):
    """A parameter of the query or, by `where`, of the header; `schema` is JSON Schema."""

    @property
    def name(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def schema(self) -> dict[str, Any]: ...
    @property
    def description(self) -> str: ...
    @property
    def required(self) -> bool: ...


class Route(Protocol):
    """What the document says of one method of one path.

    `body` and `answers` are types; None is no body, a tuple any of them.
    """

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def handler(self) -> Callable[..., Any]: ...
    @property
    def dialect(self) -> Dialect: ...
    @property
    def summary(self) -> str: ...
    @property
    def needs(self) -> str | None: ...
    @property
    def open(self) -> bool: ...
    @property
    def loopback_or(self) -> str | None: ...
    @property
    def body(self) -> Any: ...
    @property
    def body_required(self) -> bool: ...
    @property
    def query(self) -> Sequence[Parameter]: ...
    @property
    def answers(self) -> Mapping[int, Any]: ...
    @property
    def errors(self) -> Sequence[int]: ...
    @property
    def media(self) -> str: ...
    @property
    def streams(self) -> bool: ...


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The document. Each operation lists every status it can answer, in its family's schema of errors."""
    routes = list(routes)
    types = list(dict.fromkeys(kind for route in routes for kind in _types(route)))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE + "{name}")
    found = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, found)
    bearer = {"type": "http", "scheme": "bearer", "description": "An API key, made by `undrift keys add`."}
    named = {_short_name(name): _short(made) for name, made in components.items()}
    assert len(named) == len(components), "structs of one name in modules of one name"
    return {
        "openapi": "3.1.0",
        "info": {"title": "Undrift", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": _short(paths),
        "components": {"schemas": named, "securitySchemes": {"bearer": bearer}},
    }


def statuses(route: Route) -> list[int]:
    """The errors that a route can answer: its own, and those that come with what it is."""
    found = {400, 500, 503, *route.errors}
    if not route.open:
        found |= {401, 403}
    if route.dialect.family:  # each has a limit, if only where one is set
        found.add(429)
    if "{" in route.path:
        found.add(404)
    if route.body is not None:
        found |= {413, 415}
    if route.method != "GET":
        found |= {409, 422}
    return sorted(found)


def schema(made: Mapping[str, Any] | msgspec.Raw) -> Reply:
    """`/schema/openapi.json`, and what else is a document for anybody."""
    return Reply(200, msgspec.json.encode(made), [(b"access-control-allow-origin", b"*")])


def page() -> Reply:
    """`/schema`."""
    headers: list[Pair] = [(b"content-security-policy", _POLICY), (b"x-content-type-options", b"nosniff")]
    return Reply(200, _asset("schema.html"), headers, b"text/html; charset=utf-8")


def script() -> Reply:
    """`/schema/rapidoc-min.js`."""
    headers: list[Pair] = [(b"cache-control", b"public, max-age=86400"), (b"x-content-type-options", b"nosniff")]
    return Reply(200, _asset("rapidoc-min.js"), headers, b"text/javascript; charset=utf-8")


@functools.cache
def _asset(name: str) -> bytes:
    return (ASSETS / name).read_bytes()


def _short_name(name: str) -> str:
    # Two structs of the same name come with their whole module path; its last part tells them apart.
    return ".".join(name.split(".")[-2:])


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    found = {key: _short(inner) for key, inner in value.items()}
    if isinstance(reference := found.get("$ref"), str):
        found["$ref"] = _REFERENCE + _short_name(reference.removeprefix(_REFERENCE))
    return found


def _types(route: Route) -> Iterable[Any]:
    yield route.dialect.fault
    for kind in (route.body, *route.answers.values()):
        yield from kind if isinstance(kind, tuple) else [kind] if kind is not None else []


def _operation(route: Route, found: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{route.method}{route.path}".lower()).strip("_"),
        "tags": [route.handler.__module__.rpartition(".")[2].partition("_")[0]],
        "summary": route.summary,
        "parameters": [*_in_path(route.path), *map(_shown, route.query)],
        "responses": {str(status): _answer(route, found, kind) for status, kind in route.answers.items()},
        "security": _security(route),
    }
    made["responses"] |= {str(status): _fault(route, found, status) for status in statuses(route)}
    if said := inspect.getdoc(route.handler):
        made["description"] = said
    if route.method != "GET":
        made["parameters"].append(_IDEMPOTENCY_KEY)
    if route.body is not None:
        made["requestBody"] = {
            "required": route.body_required,
            "content": {"application/json": {"schema": found[route.body]}},
        }
    return made


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.open:
        return []
    optional = "loopback" in route.dialect.admits or route.loopback_or is not None
    return [{"bearer": []}, {}] if optional else [{"bearer": []}]


def _in_path(path: str) -> Iterable[dict[str, Any]]:
    for name, kind in _PARAMETER.findall(path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _PARAMETER_SCHEMAS.get(kind, _NAME),
        }


def _shown(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.required,
        "schema": parameter.schema,
        **({"description": parameter.description} if parameter.description else {}),
    }


def _answer(route: Route, found: Mapping[Any, dict[str, Any]], kind: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"description": route.summary}
    if kind is not None:
        one = {"anyOf": [found[each] for each in kind]} if isinstance(kind, tuple) else found[kind]
        made["content"] = {route.media: {"schema": _EVENT if route.media == _STREAM else one}}
        if route.streams:
            made["content"][_STREAM] = {"schema": _EVENT}
    told = {"Undrift-Position": _POSITION} if route.method != "GET" else {}
    if told := told | _rate(route):
        made["headers"] = told
    return made


def _fault(route: Route, found: Mapping[Any, dict[str, Any]], status: int) -> dict[str, Any]:
    title = dialects.CONDITIONS[status][2] if status in dialects.CONDITIONS else _TITLES.get(status, "Refused")
    if status == 404:
        title = "There is no such thing"
    made: dict[str, Any] = {
        "description": title,
        "content": {"application/json": {"schema": found[route.dialect.fault]}},
    }
    told = {"Retry-After": _RETRY_AFTER} if status in (429, 503) else {}
    if told := told | _rate(route):
        made["headers"] = told
    return made


def _rate(route: Route) -> dict[str, Any]:
    """Without a limit there is nothing to tell; family 3 has one unless somebody takes it away."""
    return _RATE if route.dialect.family == 3 else {}
