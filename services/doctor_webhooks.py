"""The doctor's look at webhooks: events that were not fanned out, messages that are nobody's, streams out of order."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from infra.db import Database
from infra.eventstore.store import Store
from services.notifying.directory import Directory
from services.notifying.fanout import NAME
from services.notifying.rows import Key

_PAGE = 1000
_SHOWN = 3
_PLACE = "select pos from undrift.tracking where projection = $1 and generation = 1"
_KEPT = (
    "select seq, position, name from undrift.deliveries"
    " where tenant = $1 and endpoint = $2 and seq > $3 and replay is null order by seq limit $4"
)
# The oldest row there is, or the next that there will be; nothing for an endpoint that was deleted.
_OLDEST = """
select coalesce((select min(seq) from undrift.deliveries where tenant = $1 and endpoint = $2),
    (select seq + 1 from undrift.endpoints where tenant = $1 and endpoint = $2))
"""
# Numbers are dense from the oldest that is kept, and none waits for an endpoint that is no more.
_GAPS = """
select d.tenant, d.endpoint from undrift.deliveries d group by d.tenant, d.endpoint
having count(*) <> max(seq) - min(seq) + 1
"""
_STRAY = """
select d.tenant, d.endpoint, d.seq from undrift.deliveries d where d.state = 'pending' and not exists
    (select from undrift.endpoints e where e.tenant = d.tenant and e.endpoint = d.endpoint and e.seq >= d.seq)
limit 1
"""
# The first attempt of a message is not before that of an earlier one of its stream; a clock may be set back a little.
_DISORDER = """
select tenant, endpoint, seq from (
    select tenant, endpoint, seq, state, first_at, lag(seq) over w as before_seq, lag(state) over w as before_state,
        lag(first_at) over w as before_at
    from undrift.deliveries where state <> 'dropped' window w as (partition by tenant, endpoint, stream order by seq)
) d
where before_seq is not null and first_at is not null
    and (before_at is null or before_at > first_at + interval '1 second') limit 1
"""


async def problems(database: Database, store: Store) -> list[str]:
    """What is wrong, in words."""
    found = []
    async for position, key, name in _missing(database, store):
        found.append(f"{key[1]} has no row for {name} at position {position}")
        if len(found) == _SHOWN:
            break
    found += [f"the numbers of {row['endpoint']} have gaps" for row in await database.fetch(_GAPS)]
    for row in await database.fetch(_STRAY):
        found.append(f"number {row['seq']} of {row['endpoint']} waits for an endpoint that is no more")
    for row in await database.fetch(_DISORDER):
        found.append(f"number {row['seq']} of {row['endpoint']} was sent before one of its stream that comes first")
    return found


class _Kept:
    """What an endpoint has rows for, in order, a page at a time."""

    def __init__(self, database: Database, key: Key) -> None:
        self._database, self._key = database, key
        self._page: deque[tuple[int, int, str]] = deque()
        self._seq = 0
        self._begun = self._ended = False

    async def has(self, position: int, name: str) -> bool:
        """Whether the next row is this one; or the first row is a later one, because what is older was forgotten."""
        if not self._page and not self._ended:
            self._page.extend(tuple(row) for row in await self._database.fetch(_KEPT, *self._key, self._seq, _PAGE))
            self._ended = not self._page
        if not self._begun and (not self._page or position < self._page[0][1]):
            return await self._forgot()
        if not self._page or self._page[0][1:] != (position, name):
            return False
        self._begun, self._seq = True, self._page.popleft()[0]
        return True

    async def _forgot(self) -> bool:
        """Whether its first rows are gone by their age."""
        first = await self._database.fetchval(_OLDEST, *self._key)
        return first is None or first > 1


async def _missing(database: Database, store: Store) -> AsyncIterator[tuple[int, Key, str]]:
    """What an endpoint was to be told and has no row for, up to where the notifier has come."""
    place = await database.fetchval(_PLACE, NAME)
    directory, position = Directory(), 0
    kept: dict[Key, _Kept] = {}
    while place is not None and position < place:
        page = await store.read(position, _PAGE, until=place)
        for one in page:
            directory.follow(one)
            for name, endpoints in directory.told(one):
                for endpoint in endpoints:
                    key = (one.tenant, endpoint)
                    if not await kept.setdefault(key, _Kept(database, key)).has(one.position, name):
                        yield one.position, key, name
        position = page[-1].position
