"""An integration as it was: its read model's own fold over its events and those of its jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator

from domain import errors, messages
from infra.eventstore import past
from infra.eventstore.store import Store
from projections import integrations as read
from projections import jobs as jobs_read
from projections.table import Key

#: So many events are folded before somebody else has a turn on the loop.
_PAGE = 200
_POSITIONS = f"""
select pos from undrift.events where stream_id = $1 and pos <= $2
union all
select e.pos from {jobs_read.SCHEMA}.jobs j join undrift.events e on e.stream_id = 'jobs/' || j.tenant || '/' || j.id
where j.tenant = $3 and j.integration = $4 and e.topic = any ($5::text[]) and e.pos <= $2
order by pos
"""


async def events(store: Store, tenant: str, id: str, stream: str, until: int) -> AsyncIterator[messages.Recorded]:
    """All that its row is made of up to a position, which the read model of jobs must know, in order.

    Raises errors.Unavailable for an event that cannot be read.
    """
    rows = await store.database.fetch(_POSITIONS, stream, until, tenant, id, list(read.TOPICS))
    positions = [row["pos"] for row in rows]
    for start in range(0, len(positions), _PAGE):
        for recorded in await past.chosen(store, positions[start : start + _PAGE]):
            if isinstance(recorded.event, messages.Unreadable):
                raise errors.Unavailable(f"{recorded.stream} holds an event that this version cannot read")
            yield recorded


async def rows(
    store: Store, tenant: str, id: str, stream: str, until: int
) -> AsyncIterator[tuple[messages.Recorded, read.Row | None]]:
    """Each of them, and the integration after it; None while it was not there."""
    key: Key = (tenant, id)
    rows: dict[Key, read.Row | None] = {}
    opened: dict[Key, read.Open | None] = {}
    async for recorded in events(store, tenant, id, stream, until):
        read.follow(rows, opened, [recorded])
        yield recorded, rows.get(key)


async def row(store: Store, tenant: str, id: str, stream: str, until: int) -> read.Row | None:
    """The integration after all of them."""
    last = None
    async for _, row in rows(store, tenant, id, stream, until):
        last = row
    return last
