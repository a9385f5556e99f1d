"""The event feed over HTTP: all of the tenant's history, in order, at the positions that NATS has too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from domain import errors
from services.gateway import bodies, headers
from services.gateway.dialects import OURS
from services.gateway.feeds_shapes import Event, shown
from services.gateway.routes import Call, Parameter, Route
from services.gateway.streams import Live

LIMIT = 100
LIMIT_MAX = 1000
_ID = re.compile(r"(?:([0-9]{1,9})\.)?([0-9]{1,18})")


class Page(Struct):
    """`next` is the `after` of the following page, `head` the last position of the log, both in this `epoch`."""

    events: list[Event]
    next: int
    head: int
    epoch: int


async def events(call: Call) -> Any:
    """With `Accept: text/event-stream` a stream without end, of events whose `id` is `<epoch>.<position>`; with that,
    or a position alone, as `Last-Event-ID` it goes on behind it. `limit` and `wait` mean nothing then."""
    query = call.query()
    process = call.api.process
    after = bodies.integer(query, "after", 0, -1, 2**62)
    epoch = bodies.integer(query, "epoch", process.epoch, 0, 2**31)
    if b"text/event-stream" in call.fields.get(b"accept", b""):
        return await _stream(call, after, epoch)
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    wait_s = min(bodies.integer(query, "wait", 0, 0, 3600), process.settings.gateway.long_poll_s)
    head = await process.store.head()
    _check(after, head, epoch, process.epoch)
    if after >= head and wait_s:
        await call.api.waits.beyond(after, wait_s, process.stopping)
    recorded = await process.store.read(after, limit)
    last = recorded[-1].position if recorded else after
    mine = [shown(one) for one in recorded if one.tenant == call.tenant]
    return call.reply(Page(mine, last, max(head, last), process.epoch), last)


async def _stream(call: Call, after: int, epoch: int) -> Any:
    process, live = call.api.process, call.api.live
    seen = headers.last_event_id(call.fields)
    if seen is not None:
        if (match := _ID.fullmatch(seen)) is None:
            raise errors.Invalid("Last-Event-ID is the id of an event of this stream, or a position")
        epoch, after = int(match[1] or epoch), int(match[2])
    _check(after, await process.store.head(), epoch, process.epoch)
    stream = live.events.stream(live.streams, call.principal.credential, call.tenant, after)
    return Live(stream, [headers.position(after)])


def _check(after: int, head: int, epoch: int, present: int) -> None:
    """A position of another history is never served from this one."""
    if after < 0:
        raise errors.Invalid("after is a position of the log, or 0")
    if epoch != present or (after > head and present > 1):
        resync = {"after": 0, "epoch": present, "head": head}
        raise errors.Gone("That position belongs to another history; read again from the start", resync=resync)
    if after > head:
        raise errors.Invalid(f"after is ahead of the log, which ends at {head}")


ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/v1/feeds/events",
        events,
        OURS,
        "Read the tenant's events in order; `wait` holds the request until there is one",
        needs="feeds:read",
        query=(
            Parameter("after", {"type": "integer", "default": 0, "minimum": 0}, "the position to read on from"),
            Parameter("limit", {"type": "integer", "default": LIMIT}, f"clamped to 1..{LIMIT_MAX}"),
            Parameter("wait", {"type": "integer", "default": 0}, "seconds to wait for an event"),
            Parameter("Last-Event-ID", {"type": "string"}, "of a stream", where="header"),
            Parameter("epoch", {"type": "integer"}, "the epoch of `after`; another one is answered 410"),
        ),
        answers={200: Page},
        streams=True,
        errors=(400, 401, 403, 410, 503),
    ),
)
