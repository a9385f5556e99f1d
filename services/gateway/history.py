"""History: what happened to one thing, event by event, also when it is no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from domain import errors, messages
from infra.eventstore import past
from infra.eventstore.past import Page
from services.gateway import bodies, history_shapes
from services.gateway.dialects import Dialect, Timestamp
from services.gateway.routes import Call, Handler, Parameter, Route
from services.gateway.things import THINGS, Source, Thing

LIMIT = 100
LIMIT_MAX = 1000
_LAST = 2**62


class Happened(Struct):
    """`version` counts the events of the thing; `actor` is who did it: `key:…`, `user:…`, `device:…`, `job:…` or
    `system:…`. `data` is what the event says."""

    position: int
    id: str
    type: str
    time: Timestamp
    version: int
    actor: str
    data: Raw


class History(Struct):
    """`total` is of the whole history. `next` is where the following page goes on (`after`, or `before` where the
    newest come first), null on the last."""

    history: list[Happened]
    total: int
    next: int | None


def told(recorded: messages.Recorded, dialect: Dialect) -> Happened:
    return Happened(
        position=recorded.position,
        id=str(recorded.event_id),
        type=history_shapes.topic(recorded.event),
        time=dialect.timestamp(recorded.recorded_at),
        version=recorded.version,
        actor=recorded.metadata.actor,
        data=Raw(msgspec.json.encode(history_shapes.fields(recorded.event, dialect))),
    )


async def show(call: Call, thing: Thing) -> Any:
    query = call.query()
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    after = bodies.integer(query, "after", 0, 0, _LAST)
    before = bodies.integer(query, "before", _LAST, 0, _LAST)
    if (order := query.get("order", "oldest")) not in ("oldest", "newest"):
        raise errors.Invalid("order is oldest or newest")
    head = await call.api.process.store.head()
    if after > head or (before > head + 1 and "before" in query):
        raise errors.Invalid(f"That position is ahead of the log, which ends at {head}")
    found = await thing.find(call, call.path(thing.parameter))
    page = await _page(call, found, after, before, limit, order == "newest")
    shown = [told(one, thing.dialect) for one in page.events]
    return call.reply(History(shown, page.total, shown[-1].position if page.more else None), head)


async def _page(call: Call, found: Source, after: int, before: int, limit: int, newest_first: bool) -> Page:
    store = call.api.process.store
    if found.conflict is None:
        return await past.page(store, found.stream, after, before, limit, newest_first=newest_first)
    everything = [one for one in await store.stream(found.stream) if found.tells(one)]
    between = [one for one in everything if after < one.position < before]
    if newest_first:
        between.reverse()
    return Page(between[:limit], len(everything), len(between) > limit)


def _handler(thing: Thing) -> Handler:
    async def history(call: Call) -> Any:
        """The oldest first, or with `order=newest` the newest. What was deleted keeps its history."""
        return await show(call, thing)

    return history


_PAGING = (
    Parameter("after", {"type": "integer", "default": 0}, "only what came after this position"),
    Parameter("before", {"type": "integer"}, "only what came before this position"),
    Parameter("order", {"type": "string", "enum": ["oldest", "newest"], "default": "oldest"}, "which come first"),
    Parameter("limit", {"type": "integer", "default": LIMIT}, f"clamped to 1..{LIMIT_MAX}"),
)

ROUTES: Sequence[Route] = tuple(
    Route(
        "GET",
        f"{thing.route}/history",
        _handler(thing),
        thing.dialect,
        f"What happened to one of the {thing.kind}",
        needs=thing.needs,
        query=_PAGING,
        answers={200: History},
        errors=(400, 401, 403, 404, 429, 503) if thing.dialect.family == 3 else (400, 401, 403, 404, 503),
    )
    for thing in THINGS
)
