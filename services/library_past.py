"""A library's facts as they were at one moment, for whoever asks what would have been done then."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from domain import library, messages
from domain.library import File
from infra.db import Database
from infra.eventstore.store import Store
from projections import library_past
from services.library_shelf import LogShelf
from services.shelf import Who

#: Bytes that were dropped since were there then.
_STORED = """
select given.hash, s.blake3, s.size from unnest($3::text[]) as given(hash)
join (select tenant, owner, blake3, sha256, size from undrift.stored
        where $4::timestamptz is null or stored_at < $4
    union select tenant, owner, blake3, sha256, size from undrift.dropped where dropped_at >= $4) s
on s.tenant = $1 and s.owner = $2 and (s.blake3 = given.hash or s.sha256 = given.hash)
"""


class PastShelf(LogShelf):
    """Up to a position, and of rows those written before `until` (None: all). Nothing is appended to the past."""

    def __init__(self, database: Database, store: Store, position: int, until: datetime | None) -> None:
        super().__init__(database, store)
        self._position, self._until = position, until

    async def there(self, who: Who, places: Collection[str]) -> Mapping[str, str]:
        return await library_past.standing(self._database, who.tenant, who.owner, self._position, list(places))

    async def files(self, who: Who, ids: Collection[str]) -> Mapping[str, File]:
        found: dict[str, File] = {}
        for id in ids:
            stream = messages.stream(library.STREAM, who.tenant, id)
            found[id] = (await self._store.load(library, stream, until=self._position)).state
        return found

    async def contents(self, who: Who, hashes: Collection[str]) -> Mapping[str, tuple[str, int]]:
        rows = await self._database.fetch(_STORED, who.tenant, who.owner, list(hashes), self._until)
        return {row["hash"]: (row["blake3"], row["size"]) for row in rows}
