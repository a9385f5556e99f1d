"""The log by time, by parts of a stream and by chosen positions: what looking back needs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from domain import messages
from infra.db import Database
from infra.eventstore.recorder import COLUMNS, notification
from infra.eventstore.store import Store

# Positions have no gaps and times never go back, so halving finds the place: as many looks as the head has bits.
_BEFORE = """
with recursive search(low, high) as (
    select 0::bigint, coalesce(max(pos), 0) from undrift.events
    union all
    select case when e.recorded_at < $1 then e.pos else s.low end,
        case when e.recorded_at < $1 then s.high else e.pos - 1 end
    from search s cross join lateral
        (select pos, recorded_at from undrift.events where pos = (s.low + s.high + 1) / 2) e
    where s.low < s.high
)
select low from search where low = high
"""
_BOUNDS = """
select count(*) as total,
    coalesce(min(version) filter (where pos > $2 and pos < $3), 1) as first,
    coalesce(max(version) filter (where pos > $2 and pos < $3), 0) as last
from undrift.events where stream_id = $1
"""


class Page(Struct, frozen=True):
    """A part of a stream; `total` is how many events all of it has, `more` whether others lie between the bounds."""

    events: Sequence[messages.Recorded]
    total: int
    more: bool


async def position_before(database: Database, time: datetime) -> int:
    """The last position that was recorded before a time, 0 where there is none."""
    return int(await database.fetchval(_BEFORE, time))


async def time_of(database: Database, position: int) -> datetime | None:
    """When a position was recorded; None where there is none."""
    found: datetime | None = await database.fetchval("select recorded_at from undrift.events where pos = $1", position)
    return found


async def page(store: Store, stream: str, after: int, before: int, limit: int, *, newest_first: bool) -> Page:
    """At most `limit` events of a stream between two positions, from one end or the other."""
    bounds = await store.database.fetchrow(_BOUNDS, stream, after, before)
    assert bounds is not None
    first, last = bounds["first"], bounds["last"]
    notes = await store.recorder.select_events(stream, gt=first - 1, lte=last, desc=newest_first, limit=limit)
    return Page(await store.decode(notes), bounds["total"], last - first + 1 > len(notes))


async def chosen(store: Store, positions: Sequence[int]) -> list[messages.Recorded]:
    """The events at these positions, in their order in the log."""
    rows = await store.database.fetch(
        f"select {COLUMNS} from undrift.events where pos = any ($1::bigint[]) order by pos", positions
    )
    return await store.decode([notification(row) for row in rows])
