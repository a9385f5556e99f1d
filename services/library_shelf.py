"""A library in the log: claims say what stands where, streams what it is, an index what a device knew."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from domain import library, messages
from domain.library import File
from domain.plans.library import Known
from infra.db import Database
from infra.eventstore.recorder import COLUMNS, notification
from infra.eventstore.store import Decided, Loaded, Store, Wish
from services.shelf import Who

_THERE = "select key, stream_id from undrift.claims where tenant = $1 and kind = $2 and key = any ($3) and not shared"
_STORED = (
    "select given.hash, s.blake3, s.size from unnest($3::text[]) as given(hash) join undrift.stored s"
    " on s.tenant = $1 and s.owner = $2 and (s.blake3 = given.hash or s.sha256 = given.hash)"
)
_FOUND = f"select {COLUMNS} from undrift.events where pos in (select pos from undrift.conflicts_found($1, $2))"


class LogShelf:
    """For one request: what was looked up last is what the next append rests on."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database, self._store = database, store
        self._loaded: dict[str, Loaded] = {}

    async def head(self) -> int:
        return await self._store.head()

    async def there(self, who: Who, places: Collection[str]) -> Mapping[str, str]:
        rows = await self._database.fetch(_THERE, who.tenant, library.PLACE, list(places))
        return {row["key"]: row["stream_id"].rpartition("/")[2] for row in rows}

    async def files(self, who: Who, ids: Collection[str]) -> Mapping[str, File]:
        streams = {messages.stream(library.STREAM, who.tenant, id): id for id in ids}
        if not streams:
            return {}
        found = await self._store.load_all(library, list(streams))
        loaded = {streams[stream]: one for stream, one in found.items()}
        self._loaded |= loaded
        return {id: one.state for id, one in loaded.items()}

    async def known(self, who: Who, places: Collection[str]) -> Mapping[str, Known]:
        rows = await self._database.fetch("select * from undrift.known($1, $2, $3)", [*places], who.acked, who.device)
        return {row["place"]: Known(row["stream_id"].rpartition("/")[2], row["hash"]) for row in rows}

    async def conflicts(self, who: Who, places: Collection[str]) -> Sequence[library.ConflictFound]:
        if who.device is None:
            return []
        rows = await self._database.fetch(
            "select distinct stream_id from undrift.conflicts_found($1, $2)", [*places], who.device
        )
        states = await self.files(who, [row["stream_id"].rpartition("/")[2] for row in rows])
        open_ = [one.found for state in states.values() for one in state.open_conflicts()]
        return [found for found in open_ if found.device == who.device and found.place.at in places]

    async def found(self, conflicts: Sequence[library.ConflictFound]) -> list[messages.Recorded]:
        """Where the log tells of these, which are all of one device."""
        if not conflicts:
            return []
        wanted, device = {one.conflict for one in conflicts}, conflicts[0].device
        notes = await self._database.fetch(_FOUND, [one.place.at for one in conflicts], device)
        told = await self._store.decode([notification(row) for row in notes])
        return [one for one in told if isinstance(one.event, library.ConflictFound) and one.event.conflict in wanted]

    async def contents(self, who: Who, hashes: Collection[str]) -> Mapping[str, tuple[str, int]]:
        rows = await self._database.fetch(_STORED, who.tenant, who.owner, list(hashes))
        return {row["hash"]: (row["blake3"], row["size"]) for row in rows}

    async def append(self, who: Who, wishes: Sequence[Wish]) -> int:
        decided: dict[str, Decided] = {}
        for wish in wishes:
            assert wish.id not in decided, "one append says one thing about each file"
            before = Loaded(library.initial) if wish.fresh else self._loaded[wish.id]
            events = wish.context.decide(wish.command, before.state)
            decided[wish.id] = Decided(library, wish.id, before, events)
        if not any(one.events for one in decided.values()):
            return max(one.before.position for one in decided.values())
        keyring = self._store.mapper.keyring
        assert keyring is not None
        await keyring.ensure(who.tenant, who.owner)
        return await self._store.append(list(decided.values()), tenant=who.tenant, metadata=who.metadata())
