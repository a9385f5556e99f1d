"""From a time to a position of the log: where to begin with what has happened since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from domain import errors
from infra.eventstore import past
from services.gateway import as_of
from services.gateway.dialects import OURS, Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route


class Position(Struct):
    """The last `position` that was recorded by then, and when; 0 and null before the first. What came afterwards is
    read with it as `after` of the event feed. `head` is the last of all."""

    position: int
    time: Timestamp | None
    head: int
    epoch: int


async def position(call: Call) -> Any:
    """Times count in milliseconds, as they are shown: an event of that very one is seen."""
    text = call.query().get("at")
    if text is None:
        raise errors.Invalid("at is required: a time of RFC 3339")
    at = await as_of.passed(call, "at", text)
    process = call.api.process
    head = await process.store.head()
    found = await past.position_before(process.db, as_of.end_of(at))
    time = await past.time_of(process.db, found)
    shown = None if time is None else timestamp_ms(time)
    return call.reply(Position(found, shown, max(head, found), process.epoch), found)


ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/v1/feeds/position",
        position,
        OURS,
        "The position of the log at a time",
        needs="feeds:read",
        query=(Parameter("at", {"type": "string", "format": "date-time"}, "a time of RFC 3339", required=True),),
        answers={200: Position},
        errors=(400, 401, 403, 503),
    ),
)
