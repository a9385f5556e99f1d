"""The event feed over HTTP: all of the tenant's history, in order, at the positions that NATS has too."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from domain import errors, messages
from services.gateway import bodies, headers, topics
from services.gateway.dialects import OURS
from services.gateway.feeds_live import Wish
from services.gateway.feeds_shapes import Event, shown
from services.gateway.routes import Call, Parameter, Route
from services.gateway.streams import Live

LIMIT = 100
LIMIT_MAX = 1000
#: Where topics are asked for: positions looked at at a time, and in one request that does not wait.
_SCAN, _SCAN_MOST = 1000, 10_000
_ID = re.compile(r"(?:([0-9]{1,9})\.)?([0-9]{1,18})")


class Page(Struct):
    """`next` is the `after` of the following page, `head` the last position of the log, both in this `epoch`."""

    events: list[Event]
    next: int
    head: int
    epoch: int


async def events(call: Call) -> Any:
    """With `Accept: text/event-stream` a stream without end, of events whose `id` is `<epoch>.<position>`; with that,
    or a position alone, as `Last-Event-ID` it goes on behind it. `limit` and `wait` mean nothing then. Events of
    other topics than those in `topics` are passed over: `next` is behind them."""
    query = call.query()
    process = call.api.process
    after = bodies.integer(query, "after", 0, -1, 2**62)
    epoch = bodies.integer(query, "epoch", process.epoch, 0, 2**31)
    wish = Wish(call.tenant, topics.parse(query.get("topics")))
    if b"text/event-stream" in call.fields.get(b"accept", b""):
        return await _stream(call, wish, after, epoch)
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    wait_s = min(bodies.integer(query, "wait", 0, 0, 3600), process.settings.gateway.long_poll_s)
    head = await process.store.head()
    _check(after, head, epoch, process.epoch)
    found, last = await _page(call, wish, after, limit, wait_s)
    return call.reply(Page([shown(one) for one in found], last, max(head, last), process.epoch), last)


async def _page(call: Call, wish: Wish, after: int, limit: int, wait_s: float) -> tuple[list[messages.Recorded], int]:
    """The next events of these topics, and how far the log was read for them. Where there are none at once, waits for
    one of them so long; what others write meanwhile is passed over."""
    process, loop = call.api.process, asyncio.get_running_loop()
    until, read = loop.time() + wait_s, 0
    while True:
        recorded = await process.store.read(after, max(limit, _SCAN) if wish.topics else limit)
        mine = [one for one in recorded if wish.has(one)]
        if len(mine) > limit:
            return mine[:limit], mine[limit - 1].position
        after, read = recorded[-1].position if recorded else after, read + len(recorded)
        left = until - loop.time()
        if mine or process.stopping.is_set() or (left <= 0 and (not recorded or read >= _SCAN_MOST or not wish.topics)):
            return mine, after
        if not recorded:
            await call.api.waits.beyond(after, left, process.stopping)


async def _stream(call: Call, wish: Wish, after: int, epoch: int) -> Any:
    process, live = call.api.process, call.api.live
    seen = headers.last_event_id(call.fields)
    if seen is not None:
        if (match := _ID.fullmatch(seen)) is None:
            raise errors.Invalid("Last-Event-ID is the id of an event of this stream, or a position")
        epoch, after = int(match[1] or epoch), int(match[2])
    _check(after, await process.store.head(), epoch, process.epoch)
    stream = live.events.stream(live.streams, call.principal.credential, wish, after)
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
            Parameter(
                "topics", {"type": "string"}, "only these, separated by commas: `jobs.completed`, `jobs.*`; all without"
            ),
            Parameter("Last-Event-ID", {"type": "string"}, "of a stream", where="header"),
            Parameter("epoch", {"type": "integer"}, "the epoch of `after`; another one is answered 410"),
        ),
        answers={200: Page},
        streams=True,
        errors=(400, 401, 403, 410, 503),
    ),
)
