"""Every error in every family's shape; nothing in it that must not leave."""

from __future__ import annotations

import inspect
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import aiohttp
import asyncpg
import msgspec
import pytest
import structlog
from litestar import Litestar, get, post
from litestar.handlers import asgi
from litestar.params import FromPath, FromQuery
from litestar.types import Receive, Scope, Send

from domain import errors
from infra import config
from services.gateway import bodies, dialects
from services.gateway.cors import Cors
from services.gateway.dialects import EONACAT, JOBS, NETWORK, OURS, PINAKES, WINGS
from services.gateway.edge import Edge

MS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
S = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
CATALOGUE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Error)]


def body(reply: dialects.Reply) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply.body)
    return found


def test_every_error_of_the_catalogue_has_its_status() -> None:
    assert {kind for kind in CATALOGUE if kind is not errors.Error} == set(dialects.ERRORS)


@pytest.mark.parametrize("dialect", [NETWORK, JOBS, EONACAT, PINAKES, WINGS, OURS])
@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_error_fits_the_struct_that_documents_it(dialect: dialects.Dialect, kind: type[errors.Error]) -> None:
    error = kind("Over there", plan="3fab", resync={"cursor": "x"})
    reply = dialect.error(error, "/api/sync/jobs/1")

    assert 400 <= reply.status < 600
    msgspec.json.decode(reply.body, type=dialect.fault)


def test_network_errors_under_admin_sync_carry_what_its_client_reads() -> None:
    found = body(NETWORK.error(errors.Unauthenticated(), "/api/admin/sync"))

    assert MS.fullmatch(found.pop("timestamp"))
    assert found == {
        "status": "error",
        "message": "A valid credential is required",
        "error": "A valid credential is required",
        "users_synced": 0,
        "servers_synced": 0,
    }
    assert body(NETWORK.error(errors.Invalid("Missing query"), "/api/data/users/search")) == {
        "status": "error",
        "message": "Missing query",
        "error": "Missing query",
    }
    assert NETWORK.error(errors.TimedOut(), "/api/admin/sync").status == 500


def test_jobs_errors_have_a_code_and_say_what_is_missing() -> None:
    assert body(JOBS.error(errors.NotFound("There is no such job"), "/api/sync/jobs/x")) == {
        "success": False,
        "error": "There is no such job",
        "code": "JOB_NOT_FOUND",
    }
    missing = errors.NotFound("There is no such integration", kind="integration")
    assert body(JOBS.error(missing, "/api/sync/jobs"))["code"] == "INTEGRATION_NOT_FOUND"
    elsewhere = errors.NotFound("There is no such integration")
    assert body(JOBS.error(elsewhere, "/api/sync/integrations/x/start"))["code"] == "INTEGRATION_NOT_FOUND"
    changed = body(JOBS.error(errors.PlanChanged(plan="3fab"), "/api/sync/jobs/x/resume"))
    assert (changed["code"], changed["details"]) == ("PLAN_CHANGED", {"plan": "3fab"})
    assert body(JOBS.condition(404, "/api/sync/x"))["code"] == "NOT_FOUND"


def test_the_sample_error_of_family_3() -> None:
    found = body(EONACAT.error(errors.SyncFailed("Source directory not found"), "/api/v1/sync/files"))

    assert S.fullmatch(found.pop("timestamp"))
    assert found == {
        "errorCode": "SYNC_FAILED",
        "message": "Synchronization operation failed",
        "details": "Source directory not found",
    }


def test_a_held_plan_of_family_3_names_its_hash_for_people_and_for_programs() -> None:
    reply = EONACAT.error(errors.Held("12 of 20 files would go", deletions=12, plan="3fab"), "/api/v1/sync/files")
    found = body(reply)

    assert (reply.status, found["errorCode"]) == (500, "SYNC_FAILED")
    assert found["details"] == "12 of 20 files would go; deletions: 12; plan: 3fab"
    assert found["context"] == {"deletions": 12, "plan": "3fab"}


def test_details_of_family_3_are_null_when_there_is_nothing_to_add() -> None:
    found = body(EONACAT.error(errors.Forbidden(), "/api/v1/health"))

    assert (found["errorCode"], found["details"]) == ("FORBIDDEN", None)


def test_pinakes_errors_are_one_key_and_a_way_back() -> None:
    assert body(PINAKES.error(errors.InvalidState("Already resolved"), "/")) == {"error": "Already resolved"}
    assert PINAKES.error(errors.InvalidState(), "/").status == 400
    gone = PINAKES.error(errors.Gone(resync={"snapshot": "/s", "cursor": "c"}), "/")
    assert (gone.status, body(gone)["resync"]) == (410, {"snapshot": "/s", "cursor": "c"})


def test_wings_errors_use_the_words_of_the_real_thing() -> None:
    for error, status, text in (
        (errors.Unauthenticated(), 401, "The required authorization heads were not present in the request."),
        (errors.Forbidden(), 403, "You are not authorized to access this endpoint."),
        (errors.NotFound(), 404, "The requested resource does not exist on this instance."),
    ):
        reply = WINGS.error(error, "/api/servers/x/sync")
        assert (reply.status, body(reply)) == (status, {"error": text})
        assert b"x-request-id" in dict(reply.headers)
    failed = WINGS.error(errors.TimedOut(), "/api/servers/x/sync")
    assert failed.status == 500
    assert body(failed)["request_id"] == dict(failed.headers)[b"x-request-id"].decode()


def test_headers_that_belong_to_a_status() -> None:
    assert (b"www-authenticate", b"Bearer") in JOBS.error(errors.Unauthenticated(), "/").headers
    assert (b"retry-after", b"7") in JOBS.error(errors.RateLimited(retry_after=7), "/").headers
    assert (b"retry-after", b"1") in EONACAT.error(errors.Unavailable(), "/").headers


def test_text_becomes_one_printable_line() -> None:
    hostile = "a\r\nb\x1b[31m\u202e\x00\udc80" + "x" * 100_000

    assert dialects.clean("häns 😀") == "häns 😀"
    assert dialects.clean(hostile).startswith(r"a\r\nb\x1b[31m\u202e\x00\udc80x")
    assert len(dialects.clean(hostile)) == 1000
    for dialect in (NETWORK, JOBS, EONACAT, PINAKES, WINGS, OURS):
        text = dialect.error(errors.Conflict(hostile), "/").body.decode()
        assert "\\\\r\\\\n" in text
        assert len(text) < 3000


@pytest.mark.parametrize(
    ("at", "ms", "s"),
    [
        (datetime(2024, 1, 1, 12, tzinfo=UTC), "2024-01-01T12:00:00.000Z", "2024-01-01T12:00:00Z"),
        (
            datetime(2024, 1, 1, 23, 59, 59, 999_999, tzinfo=UTC),
            "2024-01-01T23:59:59.999Z",
            "2024-01-01T23:59:59Z",
        ),
        (
            datetime(2024, 1, 1, 1, 30, 0, 1000, tzinfo=timezone(timedelta(hours=2))),
            "2023-12-31T23:30:00.001Z",
            "2023-12-31T23:30:00Z",
        ),
    ],
)
def test_times_have_a_fixed_width(at: datetime, ms: str, s: str) -> None:
    assert (dialects.timestamp_ms(at), dialects.timestamp_s(at)) == (ms, s)
    assert (NETWORK.timestamp(at), JOBS.timestamp(at), EONACAT.timestamp(at)) == (ms, ms, s)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/api/admin/sync", NETWORK),
        ("/api/admin/sync/more", NETWORK),
        ("/api/data/servers", NETWORK),
        ("/api/sync/jobs/1/stop", JOBS),
        ("//api//sync/nothing/", JOBS),
        ("/api/sync/changes", PINAKES),
        ("/api/v1/sync/files", EONACAT),
        ("/api/v1/sync/session/x", EONACAT),
        ("/api/v1/nothing", EONACAT),
        ("/api/v1/feeds/events", OURS),
        ("/api/v1/sync/devices/1", PINAKES),
        ("/api/v1/sync/upload/1/chunks/0", PINAKES),
        ("/api/v1/sync/snapshot", PINAKES),
        ("/api/v1/sync/versions/a/b", PINAKES),
        ("/api/v1/auth/login", PINAKES),
        ("/api/servers/8d3f/sync", WINGS),
        ("/", OURS),
        ("/api", OURS),
        ("/healthz", OURS),
        ("/api/syncx", OURS),
    ],
)
def test_an_unknown_path_is_answered_by_its_longest_prefix(path: str, dialect: dialects.Dialect) -> None:
    assert dialects.by_path(path) is dialect


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("/api/v1/sync/changes", "/api/sync/changes"),
        ("/api/v1/sync/devices/{device_id:str}/token", "/api/sync/devices/{device_id:str}/token"),
        ("/api/v1/sync/download/{path:path}", "/api/sync/download/{path:path}"),
        ("/api/v1/sync/files", None),
        ("/api/v1/sync/snapshot", None),
        ("/api/v1/auth/login", None),
        ("/api/sync/changes", None),
        ("/api/sync/jobs", None),
        ("/", None),
    ],
)
def test_only_the_document_of_the_library_names_paths_without_a_version(path: str, other: str | None) -> None:
    assert dialects.unversioned(path) == other


SECRET = "postgresql://u:hunter2@db/x"


@get(["/api/sync/jobs", "/api/v1/sync/files", "/api/servers/x/sync"])
async def fail(how: FromQuery[str]) -> None:
    match how:
        case "unexpected":
            raise ValueError(SECRET)
        case "lost":
            raise asyncpg.PostgresConnectionError(SECRET)
        case "late":
            raise TimeoutError(SECRET)
        case _:
            raise errors.RecentSync


@get("/api/sync/jobs/{number:int}", opt={"dialect": PINAKES})
async def numbered(number: FromPath[int], limit: FromQuery[int] = 1) -> None: ...


@post("/api/data/servers")
async def posted() -> None: ...


@asgi("/api/v1/torn", copy_scope=False)
async def torn(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise ValueError(SECRET)


@pytest.fixture
async def url(serve: Any) -> str:
    app = Litestar(
        [fail, numbered, posted, torn],
        exception_handlers={Exception: dialects.handle},
        openapi_config=None,
        logging_config=None,
    )
    found: str = await serve(Edge(app, Cors(config.Gateway())))
    return found


async def ask(url: str, method: str = "GET") -> tuple[int, Any, dict[str, str]]:
    async with aiohttp.ClientSession() as session, session.request(method, url) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text else None, {k.lower(): v for k, v in answer.headers.items()}


async def test_what_nobody_expected_is_logged_once_and_told_without_a_word_of_it(url: str) -> None:
    with structlog.testing.capture_logs() as logs:
        status, found, sent = await ask(f"{url}/api/v1/sync/files?how=unexpected")

    assert (status, found["errorCode"]) == (500, "INTERNAL_ERROR")
    assert [sent["x-request-id"]] == [line["request_id"] for line in logs]
    assert "hunter2" not in json.dumps(found) + json.dumps(logs)
    assert any("in fail" in frame or " fail" in frame for frame in logs[0]["frames"])


@pytest.mark.parametrize("how", ["lost", "late"])
async def test_a_store_out_of_reach_is_503(url: str, how: str) -> None:
    with structlog.testing.capture_logs() as logs:
        status, found, sent = await ask(f"{url}/api/sync/jobs?how={how}")

    assert (status, found["code"], sent["retry-after"]) == (503, "UNAVAILABLE", "1")
    assert len(logs) == 1
    assert "hunter2" not in json.dumps(found) + json.dumps(logs)


async def test_the_route_names_the_dialect_and_else_the_prefix_does(url: str) -> None:
    assert (await ask(f"{url}/api/sync/jobs?how=x"))[:2] == (
        409,
        {"success": False, "error": errors.RecentSync().message, "code": "RECENT_SYNC"},
    )
    assert (await ask(f"{url}/api/sync/jobs/1?limit=x"))[1] == {"error": "Expected `int`, got `str` - at query `limit`"}


async def test_conditions_of_http_come_in_the_familys_shape(url: str) -> None:
    status, found, sent = await ask(f"{url}/api/data/servers")
    assert (status, found["status"], set(sent["allow"].split(", "))) == (405, "error", {"POST", "OPTIONS"})
    status, found, _ = await ask(f"{url}/api/v1/nothing")
    assert (status, found["errorCode"], found["message"]) == (404, "NOT_FOUND", "There is no such path")
    status, found, _ = await ask(f"{url}/api/sync/jobs")
    assert (status, found["code"], found["error"]) == (
        400,
        "VALIDATION_ERROR",
        "Missing required query parameter 'how'",
    )
    status, found, _ = await ask(f"{url}/api/sync/jobs/nan")
    assert (status, found["code"]) == (404, "NOT_FOUND")
    status, found, sent = await ask(f"{url}/api/servers/%00/sync")
    assert (status, found["error"]) == (400, "The path holds a control character")
    status, found, _ = await ask(f"{url}/api/sync/x?a=%ff")
    assert (status, found["error"]) == (400, "The query is not valid UTF-8")


async def test_an_answer_that_breaks_off_ends_the_connection(url: str) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(aiohttp.ClientPayloadError):
        await ask(f"{url}/api/v1/torn")

    assert [line["event"] for line in logs] == ["request failed unexpectedly"]
    assert "hunter2" not in json.dumps(logs)


def test_a_client_that_left_is_not_an_incident() -> None:
    with structlog.testing.capture_logs() as logs:
        reply = dialects.failed({"path": "/api/sync/jobs"}, bodies.Disconnected())

    assert (reply.status, logs) == (400, [])
