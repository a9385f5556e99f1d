"""The event feed over HTTP: all of the tenant's history, in order, at the positions that NATS has too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from domain import errors, messages
from services.gateway import bodies
from services.gateway.dialects import OURS, Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route

LIMIT = 100
LIMIT_MAX = 1000


class Event(Struct):
    """`subject` is the stream; `data` the event itself. `unreadable` says why this version cannot show it."""

    position: int
    id: str
    type: str
    time: Timestamp
    subject: str
    version: int
    actor: str
    data: Raw


class Page(Struct):
    """`next` is the `after` of the following page, `head` the last position of the log, both in this `epoch`."""

    events: list[Event]
    next: int
    head: int
    epoch: int


def _event(recorded: messages.Recorded) -> Event:
    event = recorded.event
    unreadable = isinstance(event, messages.Unreadable)
    return Event(
        position=recorded.position,
        id=str(recorded.event_id),
        type=event.stored_topic if isinstance(event, messages.Unreadable) else recorded.topic,
        time=timestamp_ms(recorded.recorded_at),
        subject=recorded.stream,
        version=recorded.version,
        actor=recorded.metadata.actor,
        data=Raw(b'{"unreadable":true}' if unreadable else msgspec.json.encode(event)),
    )


async def events(call: Call) -> Any:
    query = call.query()
    process = call.api.process
    after = bodies.integer(query, "after", 0, -1, 2**62)
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    wait_s = min(bodies.integer(query, "wait", 0, 0, 3600), process.settings.gateway.long_poll_s)
    epoch = bodies.integer(query, "epoch", process.epoch, 0, 2**31)
    head = await process.store.head()
    _check(after, head, epoch, process.epoch)
    if after >= head and wait_s:
        await call.api.waits.beyond(after, wait_s, process.stopping)
    recorded = await process.store.read(after, limit)
    last = recorded[-1].position if recorded else after
    shown = [_event(one) for one in recorded if one.tenant == call.tenant]
    return call.reply(Page(shown, last, max(head, last), process.epoch), last)


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
            Parameter("epoch", {"type": "integer"}, "the epoch of `after`; another one is answered 410"),
        ),
        answers={200: Page},
        errors=(400, 401, 403, 410, 503),
    ),
)
