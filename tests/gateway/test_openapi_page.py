"""The document is whole, and its page needs nothing from anywhere else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import aiohttp
import jsonschema
import msgspec
import pytest

from domain import errors
from services.gateway import dialects, openapi
from services.gateway.dialects import EONACAT, JOBS, NETWORK, OURS, PINAKES, WINGS, Timestamp

# npm rapidoc 9.3.8, dist/rapidoc-min.js
RAPIDOC_SHA256 = "affbd173a65e870e18f392cca963113bcdafb6e50e88cd2f6a834a65b22db94d"


@dataclass
class Parameter:
    name: str
    schema: dict[str, Any]
    description: str = ""
    required: bool = False
    where: str = "query"


async def listed() -> None:
    """All jobs, the newest first."""


async def bare() -> None: ...


@dataclass
class Route:
    method: str
    path: str
    dialect: dialects.Dialect
    handler: Any = bare
    summary: str = "Something"
    needs: str | None = None
    open: bool = False
    loopback_or: str | None = None
    body: Any = None
    body_required: bool = True
    query: Sequence[Parameter] = ()
    answers: Mapping[int, Any] = field(default_factory=lambda: {200: Job})
    errors: Sequence[int] = ()
    media: str = "application/json"
    streams: bool = False


class Options(msgspec.Struct, rename="camel"):
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=100)] = 50


class Create(msgspec.Struct, rename="camel"):
    integration_id: str
    type: Literal["full_sync", "incremental_sync"]
    options: Options = msgspec.field(default_factory=Options)


class Job(msgspec.Struct, rename="camel", omit_defaults=True):
    id: str
    created_at: Timestamp
    started_at: Timestamp | msgspec.UnsetType = msgspec.UNSET


def namesakes() -> list[type]:
    """Structs of one name in two modules, as contexts have them."""
    return [msgspec.defstruct("Listing", [("n", int)], module=f"services.gateway.{name}") for name in ("jobs", "files")]


LISTINGS = namesakes()
ROUTES = [
    Route(
        "GET", "/api/sync/jobs", JOBS, listed, "List jobs", "jobs:read", query=[Parameter("limit", {"type": "integer"})]
    ),
    Route("POST", "/api/sync/jobs", JOBS, body=Create, needs="jobs:write", answers={200: Job, 202: None}),
    Route("GET", "/api/sync/jobs/{job_id:str}", JOBS),
    Route("DELETE", "/api/sync/jobs/{job_id}", JOBS),
    Route("POST", "/api/v1/sync/files", EONACAT, body=Create, body_required=False, errors=[412, 507]),
    Route("POST", "/api/admin/sync", NETWORK),
    Route("GET", "/api/v1/sync/devices", PINAKES, errors=[410]),
    Route("POST", "/api/servers/{server:uuid}/sync", WINGS, answers={204: None}),
    Route("GET", "/a", OURS, answers={200: LISTINGS[0]}, loopback_or="admin"),
    Route("GET", "/b", OURS, answers={200: LISTINGS[1]}),
    Route("GET", "/metrics", OURS, open=True, answers={200: str}, media="text/plain"),
]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(openapi.schema(openapi.document(ROUTES, "1.2.3")).body)
    return found


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def operation(made: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = made["paths"][path][method]
    return found


def test_it_is_openapi_3_1_and_every_reference_leads_somewhere(made: dict[str, Any]) -> None:
    assert (made["openapi"], made["info"]["version"]) == ("3.1.0", "1.2.3")
    components = made["components"]["schemas"]
    references = {node["$ref"] for node in nodes(made) if "$ref" in node}
    assert references == {f"#/components/schemas/{name}" for name in components}
    for schema in components.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_namesakes_are_told_apart_by_their_context(made: dict[str, Any]) -> None:
    assert {"jobs.Listing", "files.Listing"} <= set(made["components"]["schemas"])
    shown = operation(made, "/a", "get")["responses"]["200"]["content"]["application/json"]["schema"]
    assert shown == {"$ref": "#/components/schemas/jobs.Listing"}


def test_every_operation_has_an_id_of_its_own_and_its_path_parameters(made: dict[str, Any]) -> None:
    operations = [one for path in made["paths"].values() for one in path.values()]

    assert len(operations) == len(ROUTES) == len({one["operationId"] for one in operations})
    for path, item in made["paths"].items():
        for one in item.values():
            named = {parameter["name"] for parameter in one["parameters"] if parameter["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


def test_every_error_is_documented_in_its_familys_schema(made: dict[str, Any]) -> None:
    for route in ROUTES:
        one = operation(made, re.sub(r":\w+", "", route.path), route.method.lower())
        for status in openapi.statuses(route):
            schema = one["responses"][str(status)]["content"]["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{route.dialect.fault.__name__}"}
    create = operation(made, "/api/sync/jobs", "post")
    assert set(create["responses"]) == {"200", "202"} | {
        str(status) for status in (400, 401, 403, 409, 413, 415, 422, 429, 500, 503)
    }
    assert {"429", "412", "507"} <= set(operation(made, "/api/v1/sync/files", "post")["responses"])
    assert {"401", "403"}.isdisjoint(operation(made, "/metrics", "get")["responses"])


def test_what_is_answered_matches_what_is_documented(made: dict[str, Any]) -> None:
    for dialect, path in ((NETWORK, "/api/admin/sync"), (JOBS, "/"), (EONACAT, "/"), (PINAKES, "/"), (WINGS, "/")):
        for kind in dialects.ERRORS:
            error: errors.Error = kind("x", plan="3f", resync={"cursor": "c"})
            schema = {"$ref": f"#/components/schemas/{dialect.fault.__name__}", "components": made["components"]}
            jsonschema.validate(json.loads(dialect.error(error, path).body), schema)


def test_bodies_keys_and_security_are_told(made: dict[str, Any]) -> None:
    create, files = operation(made, "/api/sync/jobs", "post"), operation(made, "/api/v1/sync/files", "post")

    assert create["requestBody"]["required"] is True
    assert files["requestBody"]["required"] is False
    assert made["components"]["schemas"]["Create"]["required"] == ["integrationId", "type"]
    assert "Idempotency-Key" in {one["name"] for one in create["parameters"]}
    assert create["security"] == [{"bearer": []}, {}]
    assert files["security"] == [{"bearer": []}]
    assert operation(made, "/metrics", "get")["security"] == []
    assert operation(made, "/a", "get")["security"] == [{"bearer": []}, {}]
    assert operation(made, "/api/sync/jobs", "get")["description"] == "All jobs, the newest first."
    assert list(operation(made, "/metrics", "get")["responses"]["200"]["content"]) == ["text/plain"]
    times = made["components"]["schemas"]["Job"]["properties"]["createdAt"]
    assert times == {"type": "string", "format": "date-time"}


async def test_the_page_is_made_of_our_own_files(serve: Any) -> None:
    pages = {
        "/schema": openapi.page(),
        "/schema/openapi.json": openapi.schema(openapi.document(ROUTES, "1.2.3")),
        "/schema/rapidoc-min.js": openapi.script(),
    }

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await pages[scope["path"]](scope, receive, send)

    url = await serve(app)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/schema") as answer:
            html = await answer.text()
            assert answer.content_type == "text/html"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        for path in re.findall(r'(?:src|spec-url)="([^"]+)"', html):
            async with session.get(url + path) as answer:
                assert answer.status == 200
                assert answer.content_type in ("text/javascript", "application/json")

    assert not re.search(r"""(?:src|href|url)=["'](?:https?:)?//""", html)
    assert 'load-fonts="false"' in html


def test_the_vendored_script_is_the_published_one_with_its_licence() -> None:
    script = (openapi.ASSETS / "rapidoc-min.js").read_bytes()

    assert hashlib.sha256(script).hexdigest() == RAPIDOC_SHA256
    assert "MIT License" in (openapi.ASSETS / "rapidoc-LICENSE.txt").read_text()
    assert (openapi.ASSETS / "rapidoc-min.js.LICENSE.txt").exists()


def test_what_is_left_of_a_limit_is_documented_on_every_answer_of_family_3(made: dict[str, Any]) -> None:
    for route in ROUTES:
        for answer in operation(made, re.sub(r":\w+", "", route.path), route.method.lower())["responses"].values():
            named = {name for name in answer.get("headers", ()) if name.startswith("X-RateLimit-")}
            assert len(named) == (3 if route.dialect.family == 3 else 0), (route.path, answer)
