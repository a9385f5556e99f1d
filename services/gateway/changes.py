"""A user's feed: pages, long polls and streams of changes, and the library as it was at one position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from domain import errors, library
from projections import library as library_read
from projections.library import Version
from projections.library_changes import Change
from services.gateway import as_of, bodies, headers
from services.gateway import devices as device_routes
from services.gateway.as_of import AS_OF
from services.gateway.cursors import Cursors
from services.gateway.devices import DEVICE, Seen
from services.gateway.dialects import PINAKES, Reply, Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route
from services.gateway.streams import Live

LIMIT = 100
LIMIT_MAX = 1000


class Changes(Struct):
    """`cursor` is after the last change here; the one that was given where there is none."""

    changes: list[Change]
    cursor: str
    has_more: bool


class File(Struct):
    media_id: str
    path: str
    content_hash: str
    file_size: int
    mtime: Timestamp | None
    sequence: int


class Snapshot(Struct):
    """Files by path, as they were at one position; `next` is the `after` of the following page, absent on the last.
    The feed goes on at `cursor`."""

    files: list[File]
    cursor: str
    next: str | UnsetType = UNSET


async def position_of(call: Call, text: str | None) -> int:
    """The position of a cursor, 0 without one. Raises errors.Invalid, and Gone with where to begin again."""
    if text is None:
        return 0
    process = call.api.process
    cursor = Cursors(process.master).read(call.tenant, call.principal.owner, text)
    if cursor.epoch != process.epoch:
        resync = {"snapshot": "/api/v1/sync/snapshot", "cursor": None}
        raise errors.Gone("That cursor belongs to another history; begin again with a snapshot", resync=resync)
    if cursor.position > call.api.reads.position and cursor.position > await process.store.head():
        raise errors.Invalid("That cursor is ahead of the feed")
    return cursor.position


def _cursor(call: Call, position: int) -> str:
    process = call.api.process
    return Cursors(process.master).make(call.tenant, call.principal.owner, process.epoch, position)


async def changes(call: Call) -> Any:
    """With `Accept: text/event-stream` a stream without end; the `id` of its events is a cursor, as `Last-Event-ID`
    too."""
    query = call.query()
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    settings = call.api.process.settings.gateway
    wait_s = min(bodies.integer(query, "wait", 0, 0, 3600), settings.long_poll_s)
    seen = await device_routes.of_call(call, query.get("device_id"))
    read = await call.caught_up(library.STREAM)
    given = query.get("cursor") or None
    if b"text/event-stream" in call.fields.get(b"accept", b""):
        return await _stream(call, seen, given)
    after = await position_of(call, given)
    mine = (call.tenant, call.principal.owner)
    page = await call.api.live.changes.page(mine, after, limit, wait_s, call.api.process.stopping)
    last = after if page.last is None else page.last
    await delivered(call, seen, last)
    cursor = given if given is not None and page.last is None else _cursor(call, last)
    return Reply(200, page.body(cursor), [headers.position(max(read, last))])


async def delivered(call: Call, seen: Seen, position: int) -> None:
    """Only what was delivered may be acknowledged."""
    if position > seen.state.delivered:
        await call.api.live.changes.deliveries.note({seen.row.id: position})


async def _stream(call: Call, seen: Seen, given: str | None) -> Any:
    after = await position_of(call, headers.last_event_id(call.fields) or given)
    live, mine = call.api.live, (call.tenant, call.principal.owner)
    stream = live.changes.stream(live.streams, call.principal.credential, mine, seen.row.id, after)
    return Live(stream, [headers.position(after)])


async def snapshot(call: Call) -> Any:
    """Begin without a cursor, then ask with the `cursor` and the `next` of each page: all pages show one moment.
    `as_of` begins at another than the present."""
    query = call.query()
    limit = bodies.integer(query, "limit", LIMIT_MAX, 1, LIMIT_MAX)
    seen = await device_routes.of_call(call, query.get("device_id"))
    read = await call.caught_up(library.STREAM)
    given = query.get("cursor") or None
    if given is not None and "as_of" in query:
        raise errors.Invalid("The cursor says already as of when")
    at = await _moment(call, read) if given is None else await position_of(call, given)
    found = await library_read.listing(
        call.api.process.db, call.tenant, call.principal.owner, at, query.get("after", ""), limit + 1
    )
    page = found[:limit]
    if len(found) <= limit:
        await delivered(call, seen, at)
    more = page[-1].path if len(found) > limit else UNSET
    return call.reply(Snapshot([file(one) for one in page], _cursor(call, at), more), read)


async def _moment(call: Call, read: int) -> int:
    """Where a snapshot begins: at what the read models know, or at `as_of`."""
    if (moment := await as_of.wanted(call)) is None:
        return read
    await as_of.reached(call, moment)
    return moment.position


def file(version: Version) -> File:
    assert version.hash is not None
    assert version.size is not None
    mtime = None if version.mtime is None else timestamp_ms(version.mtime)
    return File(version.file, version.path, version.hash, version.size, mtime, version.from_pos)


_ERRORS = (400, 401, 403, 404, 410, 503)
_LIMIT = Parameter("limit", {"type": "integer"}, f"clamped to 1..{LIMIT_MAX}")
_CURSOR = Parameter("cursor", {"type": "string"}, "where to go on; from the start without it")

ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/v1/sync/changes",
        changes,
        PINAKES,
        "What changed behind a cursor; `wait` holds the request until something does",
        query=(
            _CURSOR,
            _LIMIT,
            Parameter("wait", {"type": "integer", "default": 0}, "seconds to wait for a change"),
            Parameter("Last-Event-ID", {"type": "string"}, "of a stream", where="header"),
            *DEVICE,
        ),
        answers={200: Changes},
        streams=True,
        errors=_ERRORS,
    ),
    Route(
        "GET",
        "/api/v1/sync/snapshot",
        snapshot,
        PINAKES,
        "The whole library at one position, by path",
        query=(
            _CURSOR,
            _LIMIT,
            Parameter("after", {"type": "string"}, "the `next` of the page before"),
            AS_OF,
            *DEVICE,
        ),
        answers={200: Snapshot},
        errors=_ERRORS,
    ),
)
