"""Leases: who does a thing now. A lease lives while its beat changes, as the observer's own monotonic clock sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from infra.db import Database
from infra.eventstore.recorder import Guard

#: How many leases of others a process watches at once.
_WATCHED = 10_000


class Lease(Struct, frozen=True):
    """Held by `owner` under `fence`; each new owner has a higher one."""

    name: str
    owner: str
    fence: int

    @property
    def guard(self) -> Guard:
        """Makes a command count only while the lease is held."""
        return Guard(self.name, self.owner, self.fence)


class Leases:
    """Takes, keeps and gives back leases for one process. No wall clock matters: a lease is dead when its beat has
    not changed for `ttl_s` while this process watched."""

    def __init__(
        self, database: Database, owner: str, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database, self._clock = database, clock
        self.owner, self._ttl = owner, ttl_s
        self._seen: dict[str, tuple[int, int, float]] = {}

    def living(self, name: str, owner: str | None, fence: int, beat: int) -> bool:
        """Whether a lease seen in the table is alive; watching starts with the first look."""
        if owner is None:
            self._seen.pop(name, None)
            return False
        now = self._clock()
        known = self._seen.get(name)
        if known is None or known[:2] != (fence, beat):
            if known is None and len(self._seen) >= _WATCHED:
                del self._seen[next(iter(self._seen))]  # looked at again, it is watched again
            self._seen[name] = (fence, beat, now)
            return True
        return now - known[2] < self._ttl

    async def take(self, name: str) -> Lease | None:
        """The lease with the next fence, or None while somebody else's lives.

        Under the log's lock, so that nothing which the older fence guards is committed once this has answered.
        """
        row = await self._database.fetchrow("select owner, fence, beat from undrift.leases where name = $1", name)
        if row is not None and self.living(name, row["owner"], row["fence"], row["beat"]):
            return None
        fence = await self._database.fetchval(
            "insert into undrift.leases as l (name, owner, fence)"
            " select $1, $2, 1 from (select pg_advisory_xact_lock(7305011221)) locked on conflict (name)"
            " do update set owner = $2, fence = l.fence + 1, beat = 0 where l.fence = $3 returning fence",
            name,
            self.owner,
            0 if row is None else row["fence"],
        )
        self._seen.pop(name, None)
        return None if fence is None else Lease(name, self.owner, fence)

    async def beat(self, leases: Sequence[Lease]) -> set[str]:
        """Keeps them alive; answers the names of those that were lost."""
        if not leases:
            return set()
        rows = await self._database.fetch(
            "update undrift.leases l set beat = l.beat + 1 from unnest($1::text[], $2::text[], $3::bigint[])"
            " as mine(name, owner, fence)"
            " where l.name = mine.name and l.owner = mine.owner and l.fence = mine.fence returning l.name",
            [lease.name for lease in leases],
            [lease.owner for lease in leases],
            [lease.fence for lease in leases],
        )
        return {lease.name for lease in leases} - {row["name"] for row in rows}

    async def release(self, lease: Lease) -> None:
        """Gives it back, so that nobody has to wait for it to die. The fence stays."""
        await self._database.execute(
            "update undrift.leases set owner = null where name = $1 and owner = $2 and fence = $3",
            lease.name,
            lease.owner,
            lease.fence,
        )

    async def alive(self, name: str) -> bool:
        """Whether somebody's lease of that name is alive now: waits for its next beat, if there is one in time."""
        seen: tuple[int, int] | None = None
        end = time.monotonic() + self._ttl
        while True:
            row = await self._database.fetchrow("select owner, fence, beat from undrift.leases where name = $1", name)
            if row is None or row["owner"] is None:
                return False
            before, seen = seen, (row["fence"], row["beat"])
            if before not in (None, seen):
                return True
            if time.monotonic() > end:
                return False
            await asyncio.sleep(self._ttl / 50)
