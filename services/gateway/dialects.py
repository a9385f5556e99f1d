"""The five families' styles of errors and times, and the one map from errors to statuses."""

from __future__ import annotations

import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException
from msgspec import UNSET, Meta, Struct, UnsetType, field

from domain import errors
from infra import db
from services.gateway import bodies
from services.gateway import headers as headers_
from services.gateway.cycle import WHOLE

log = structlog.get_logger("gateway")

Pair = tuple[bytes, bytes]
Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]

JSON = b"application/json"
_LONGEST = 1000
_DEEPEST = 20
_PRIVATE = frozenset({"kind", "retry_after", "at", "position"})
_encode = msgspec.json.Encoder().encode

# error -> status, code in family 2, code in family 3
ERRORS: Mapping[type[errors.Error], tuple[int, str, str]] = {
    errors.Invalid: (400, "VALIDATION_ERROR", "INVALID_REQUEST"),
    errors.Unauthenticated: (401, "UNAUTHORIZED", "UNAUTHORIZED"),
    errors.Forbidden: (403, "FORBIDDEN", "FORBIDDEN"),
    errors.NotFound: (404, "JOB_NOT_FOUND", "NOT_FOUND"),
    errors.AlreadyExists: (409, "ALREADY_EXISTS", "CONFLICT"),
    errors.InvalidState: (409, "INVALID_STATE", "CONFLICT"),
    errors.Ended: (409, "INVALID_STATE", "CONFLICT"),
    errors.RecentSync: (409, "RECENT_SYNC", "CONFLICT"),
    errors.Conflict: (409, "CONFLICT", "CONFLICT"),
    errors.LeaseLost: (409, "CONFLICT", "CONFLICT"),
    errors.Gone: (410, "GONE", "GONE"),
    errors.PlanChanged: (412, "PLAN_CHANGED", "PRECONDITION_FAILED"),
    errors.TooLarge: (413, "PAYLOAD_TOO_LARGE", "INVALID_REQUEST"),
    errors.UnsupportedMedia: (415, "UNSUPPORTED_MEDIA_TYPE", "INVALID_REQUEST"),
    errors.KeyReused: (422, "KEY_REUSED", "INVALID_REQUEST"),
    errors.RateLimited: (429, "RATE_LIMIT_EXCEEDED", "RATE_LIMIT_EXCEEDED"),
    errors.Held: (500, "HELD", "SYNC_FAILED"),
    errors.SyncFailed: (500, "SYNC_FAILED", "SYNC_FAILED"),
    errors.RemoteRefused: (500, "REMOTE_REFUSED", "SYNC_FAILED"),
    errors.RemoteUnavailable: (503, "REMOTE_UNAVAILABLE", "UNAVAILABLE"),
    errors.RemoteBusy: (503, "REMOTE_BUSY", "UNAVAILABLE"),
    errors.Unavailable: (503, "UNAVAILABLE", "UNAVAILABLE"),
    errors.TimedOut: (503, "TIMED_OUT", "UNAVAILABLE"),
    errors.StorageFull: (507, "INSUFFICIENT_STORAGE", "INSUFFICIENT_STORAGE"),
}

# what HTTP itself has to say -> the same, and the title
CONDITIONS: Mapping[int, tuple[str, str, str]] = {
    400: ("VALIDATION_ERROR", "INVALID_REQUEST", "The request is not valid"),
    401: ("UNAUTHORIZED", "UNAUTHORIZED", "A valid credential is required"),
    403: ("FORBIDDEN", "FORBIDDEN", "The credential does not allow this"),
    404: ("NOT_FOUND", "NOT_FOUND", "There is no such path"),
    405: ("METHOD_NOT_ALLOWED", "INVALID_REQUEST", "The method is not allowed here"),
    408: ("REQUEST_TIMEOUT", "INVALID_REQUEST", "The request did not arrive in time"),
    413: ("PAYLOAD_TOO_LARGE", "INVALID_REQUEST", "The request is larger than allowed"),
    414: ("URI_TOO_LONG", "INVALID_REQUEST", "The address is longer than allowed"),
    415: ("UNSUPPORTED_MEDIA_TYPE", "INVALID_REQUEST", "The content type or encoding is not supported"),
    429: ("RATE_LIMIT_EXCEEDED", "RATE_LIMIT_EXCEEDED", "Too many requests"),
    431: ("HEADERS_TOO_LARGE", "INVALID_REQUEST", "The header is larger than allowed"),
    500: ("INTERNAL_ERROR", "INTERNAL_ERROR", "An unexpected error was encountered"),
    503: ("UNAVAILABLE", "UNAVAILABLE", "The service cannot do this right now; try again"),
}


class Failure(Struct, frozen=True):
    """An error on its way out, in no family's shape yet. `code` is family 2's, `sync_code` family 3's; `at` is when
    it happened, where that is not now."""

    status: int
    code: str
    sync_code: str
    title: str
    message: str
    path: str
    headers: list[Pair] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    at: datetime | None = None


class NetworkFault(Struct, omit_defaults=True):
    """Family 1. `plan` is the hash with which `If-Match` carries out what a guard held."""

    status: Literal["error"]
    message: str
    error: str
    users_synced: int | UnsetType = UNSET
    servers_synced: int | UnsetType = UNSET
    timestamp: Timestamp | UnsetType = UNSET
    plan: str | UnsetType = UNSET


class JobsFault(Struct):
    """Family 2. `details` holds what a program may need, such as a plan's hash."""

    success: bool
    error: str
    code: str
    details: dict[str, Any] | UnsetType = UNSET


class SyncFault(Struct, rename="camel"):
    """Family 3, and ours. `context` repeats the details for programs."""

    error_code: str
    message: str
    details: str | None
    timestamp: Timestamp
    context: dict[str, Any] | UnsetType = UNSET


class LibraryFault(Struct):
    """Family 4. `resync` comes with 410."""

    error: str
    resync: dict[str, Any] | UnsetType = UNSET


class ServersFault(Struct):
    """Family 5."""

    error: str
    request_id: str | UnsetType = UNSET


class Reply:
    """A whole answer, not yet sent. It is an ASGI application, so it may be returned where one is wanted."""

    __slots__ = ("body", "headers", "media", "status")

    def __init__(self, status: int, body: bytes = b"", headers: Iterable[Pair] = (), media: bytes = JSON) -> None:
        self.status = status
        self.body = body
        self.headers = list(headers)
        self.media = media

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent = [*self.headers]
        if self.body:
            sent.append((b"content-type", self.media))
        if self.status != 204:
            sent.append((b"content-length", b"%d" % len(self.body)))
        start = {"type": "http.response.start", "status": self.status, "headers": sent}
        if WHOLE in scope.get("extensions", ()):
            await send({**start, WHOLE: self.body})
            return
        await send(start)
        await send({"type": "http.response.body", "body": self.body})


class Dialect(Struct, frozen=True):
    """One family: its number, the kinds of principal that may open it, its times, its errors."""

    family: int
    admits: frozenset[str]
    timestamp: Callable[[datetime], str]
    fault: type[Struct]
    shape: Callable[[Failure], Struct]
    statuses: Mapping[type[errors.Error], int] = {}

    def encode(self, value: Any) -> bytes:
        """A success body; times in it are strings that `timestamp` made."""
        return _encode(value)

    def reply(self, failure: Failure) -> Reply:
        headers = failure.headers
        if failure.request_id:
            headers = [*headers, (b"x-request-id", failure.request_id.encode())]
        return Reply(failure.status, _encode(self.shape(failure)), headers)

    def error(self, error: errors.Error, path: str) -> Reply:
        """The answer to an error of the catalogue."""
        status, code, sync_code = _entry(error)
        status = self.statuses.get(type(error), status)
        if isinstance(error, errors.NotFound):
            code = _missing(error, path)
        headers: list[Pair] = []
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        elif status in (429, 503):
            headers.append((b"retry-after", b"%d" % max(1, round(error.details.get("retry_after", 1)))))
        if "position" in error.details:
            headers.append(headers_.position(error.details["position"]))
        details = {name: value for name, value in error.details.items() if name not in _PRIVATE}
        title = (type(error).__doc__ or "").partition("\n")[0].rstrip(".")
        request_id = str(uuid.uuid4()) if self.family == 5 else None
        at = error.details.get("at")
        return self.reply(
            Failure(status, code, sync_code, title, clean(error.message), path, headers, details, request_id, at)
        )

    def condition(self, status: int, path: str, message: str = "", headers: Iterable[Pair] = ()) -> Reply:
        """The answer where HTTP itself says no: an unknown path, a method that is not allowed."""
        if status not in CONDITIONS:
            status = 400 if status < 500 else 500
        code, sync_code, title = CONDITIONS[status]
        request_id = str(uuid.uuid4()) if self.family == 5 or status == 500 else None
        said = clean(message) or title
        return self.reply(Failure(status, code, sync_code, title, said, path, [*headers], {}, request_id))


def timestamp_ms(at: datetime) -> str:
    """`2024-01-01T12:00:00.000Z`, truncated to milliseconds: families 1, 2, 4 and 5."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def timestamp_s(at: datetime) -> str:
    """`2024-01-15T10:30:00Z`, truncated to seconds: family 3."""
    return at.astimezone(UTC).isoformat(timespec="seconds")[:-6] + "Z"


def clean(text: str) -> str:
    """One printable line of at most 1,000 characters: controls and surrogates become escapes."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_LONGEST])
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def of(scope: Any) -> Dialect:
    """The dialect of a request: what its route says, as `scope["route_dialect"]` or in `opt["dialect"]` of a
    Litestar handler, else that of the longest prefix."""
    found: Dialect | None = scope.get("route_dialect")
    if found is None and (handler := scope.get("route_handler")) is not None:
        found = handler.opt.get("dialect")
    return found or by_path(scope.get("path", ""))


def by_path(path: str) -> Dialect:
    """The dialect of an unknown path, by its longest prefix."""
    parts = [part for part in path.split("/") if part]
    for length in range(min(len(parts), 4), 0, -1):
        if (found := _PREFIXES.get("/".join(parts[:length]))) is not None:
            return found
    return OURS


def unversioned(path: str) -> str | None:
    """The other name under which a route of the library is served, where it has one."""
    head, _, rest = path.removeprefix(f"{_VERSIONED}/").partition("/")
    return f"{_UNVERSIONED}/{head}{rest and '/'}{rest}" if head in _LIBRARY_NAMES else None


def failed(scope: Any, error: Exception) -> Reply:
    """The answer to any exception at all. What nobody expected is logged here, once, with a request id."""
    dialect, path = of(scope), str(scope.get("path", ""))
    if isinstance(error, errors.Error):
        return dialect.error(error, path)
    if isinstance(error, HTTPException):
        return _http(dialect, path, error)
    if isinstance(error, bodies.Disconnected):
        return dialect.condition(400, path, "The request ended early")
    if isinstance(error, db.CONNECTION_LOST):
        log.warning("store out of reach", path=clean(path), error=type(error).__name__)
        return dialect.error(errors.Unavailable(), path)
    reply = dialect.condition(500, path)
    request_id = dict(reply.headers)[b"x-request-id"].decode()
    log.error(
        "request failed unexpectedly",
        request_id=request_id,
        method=scope.get("method"),
        path=clean(path),
        error=type(error).__name__,
        frames=_frames(error),
    )
    return reply


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's exception handler for every class: `exception_handlers={Exception: dialects.handle}`."""
    reply = failed(request.scope, error)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reply.headers}
    return Response(reply.body, status_code=reply.status, headers=headers, media_type="application/json")


def _entry(error: errors.Error) -> tuple[int, str, str]:
    for kind in type(error).__mro__:
        if kind in ERRORS:
            return ERRORS[kind]
    return (500, *CONDITIONS[500][:2])


def _missing(error: errors.NotFound, path: str) -> str:
    kind = error.details.get("kind") or ("integration" if "/integrations" in path else "job")
    return f"{str(kind).upper()}_NOT_FOUND"


def _http(dialect: Dialect, path: str, error: HTTPException) -> Reply:
    headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    message = ""
    if error.status_code == 400 and isinstance(error.extra, list):
        message = "; ".join(_place(one) for one in error.extra if isinstance(one, dict))
    elif error.status_code == 400 and error.detail.startswith("Missing required"):
        message = error.detail.partition(" for path ")[0]
    return dialect.condition(error.status_code, path, message, headers)


def _place(one: Mapping[str, Any]) -> str:
    message = bodies.unechoed(str(one.get("message", "")))
    source = getattr(one.get("source"), "value", one.get("source"))
    return f"{message} - at {source or 'request'} `{one['key']}`" if "key" in one else message


def _frames(error: BaseException) -> list[str]:
    # Where, not what: the text of a foreign exception may hold what must not be logged.
    frames = traceback.extract_tb(error.__traceback__, limit=-_DEEPEST)
    found = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    if (cause := error.__cause__) is not None:
        found += [f"from {type(cause).__name__}", *_frames(cause)]
    return found[:_DEEPEST]


def _network(failure: Failure) -> Struct:
    fault = NetworkFault(status="error", message=failure.message, error=failure.message)
    if failure.path.startswith("/api/admin/sync"):
        fault.users_synced = fault.servers_synced = 0
        fault.timestamp = timestamp_ms(failure.at or datetime.now(UTC))
        fault.plan = failure.details.get("plan", UNSET)
    return fault


def _jobs(failure: Failure) -> Struct:
    return JobsFault(success=False, error=failure.message, code=failure.code, details=failure.details or UNSET)


def _sync(failure: Failure) -> Struct:
    said = [] if failure.message == failure.title else [failure.message]
    said += [clean(f"{k}: {v}") for k, v in failure.details.items() if not isinstance(v, dict | list)]
    at = timestamp_s(failure.at or datetime.now(UTC))
    return SyncFault(failure.sync_code, failure.title, "; ".join(said) or None, at, failure.details or UNSET)


def _library(failure: Failure) -> Struct:
    return LibraryFault(error=failure.message, resync=failure.details.get("resync", UNSET))


def _servers(failure: Failure) -> Struct:
    text = _SERVERS_TEXTS.get(failure.code, failure.message)
    traced = failure.status >= 500 or failure.code == "PANEL_NOT_FOUND"
    return ServersFault(error=text, request_id=(traced and failure.request_id) or UNSET)


# The words of the real thing, misspelling included.
_SERVERS_TEXTS = {
    "UNAUTHORIZED": "The required authorization heads were not present in the request.",
    "FORBIDDEN": "You are not authorized to access this endpoint.",
    "JOB_NOT_FOUND": "The requested resource does not exist on this instance.",
    "NOT_FOUND": "The requested resource does not exist on this instance.",
    "SERVER_NOT_FOUND": "The requested resource does not exist on this instance.",
    "PANEL_NOT_FOUND": "The requested resource does not exist on this instance.",
    "TIMED_OUT": "The server could not process this request in time, please try again.",
    "SYNC_FAILED": "An unexpected error was encountered while processing this request",
    "INTERNAL_ERROR": "An unexpected error was encountered while processing this request",
}

_KEYS = frozenset({"key"})
_OPEN = frozenset({"key", "loopback"})
NETWORK = Dialect(1, _OPEN, timestamp_ms, NetworkFault, _network, {errors.TimedOut: 500})
JOBS = Dialect(2, _OPEN, timestamp_ms, JobsFault, _jobs)
EONACAT = Dialect(3, _KEYS, timestamp_s, SyncFault, _sync)
PINAKES = Dialect(4, frozenset({"user", "device"}), timestamp_ms, LibraryFault, _library, {errors.InvalidState: 400})
WINGS = Dialect(5, frozenset({"node"}), timestamp_ms, ServersFault, _servers, {errors.TimedOut: 500})
OURS = Dialect(0, _KEYS, timestamp_s, SyncFault, _sync)

_VERSIONED, _UNVERSIONED = "/api/v1/sync", "/api/sync"
_LIBRARY_NAMES = ("devices", "changes", "report", "ack", "conflicts", "upload", "download")
_OUR_LIBRARY_NAMES = ("snapshot", "versions", "restore", "tus", "media")
_PREFIXES: Mapping[str, Dialect] = {
    "api/admin/sync": NETWORK,
    "api/admin/servers": NETWORK,
    "api/data": NETWORK,
    "api/sync": JOBS,
    "api/v1": EONACAT,
    "api/v1/feeds": OURS,
    "api/v1/why": OURS,
    "api/v1/auth": PINAKES,
    "api/v1/admin": PINAKES,
    **{f"api/v1/sync/{name}": PINAKES for name in (*_LIBRARY_NAMES, *_OUR_LIBRARY_NAMES)},
    **{f"api/sync/{name}": PINAKES for name in _LIBRARY_NAMES},
    "api/servers": WINGS,
    "api/update": WINGS,
    "api/deauthorize-user": WINGS,
    "api/system": WINGS,
}
