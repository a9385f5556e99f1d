"""Whether everything behind the gateway does its part, told from what is stored: the relay may run anywhere."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from services import relay
from services.main import Process

_FRESH_S = 1.0
_LOOK = (
    "select (select count(*) from undrift.parked where generation > 0) as parked,"
    " (select coalesce(max(pos), 0) from undrift.events) as head, r.pos as relayed,"
    " (select e.recorded_at < clock_timestamp() - $2 * interval '1 second' from undrift.events e"
    " where e.pos > r.pos order by e.pos limit 1) as late"
    " from (select coalesce(max(pos), 0) as pos from undrift.tracking where projection = $1 and generation = 1) r"
)


class Condition(Struct, frozen=True):
    """`reasons` are sentences, one for each thing that is not as it should be; `relayed` is how far JetStream has the
    log, as the relay last wrote it down."""

    reasons: tuple[str, ...]
    parked: int
    relayed: int


class Conditions:
    """Looks at most once a second, however many ask."""

    def __init__(self, process: Process) -> None:
        self._database, self._bus = process.db, process.bus
        self._late_s = process.settings.relay.degraded_s
        self._looking = asyncio.Lock()
        self._seen: tuple[float, Condition] | None = None

    async def now(self) -> Condition:
        """Raises CONNECTION_LOST without Postgres."""
        loop = asyncio.get_running_loop()
        async with self._looking:
            if self._seen is None or loop.time() - self._seen[0] > _FRESH_S:
                self._seen = (loop.time(), await self._look())
            return self._seen[1]

    async def _look(self) -> Condition:
        row = await self._database.fetchrow(_LOOK, relay.TRACKED, self._late_s)
        assert row is not None
        reasons = []
        if not self._bus.connected:
            reasons.append("NATS is not connected: events leave over HTTP only")
        if row["late"]:
            behind = row["head"] - row["relayed"]
            reasons.append(f"the relay is {behind} events behind, the oldest for more than {self._late_s:g} s")
        if row["parked"]:
            reasons.append(f"{row['parked']} events are parked; `undrift doctor` names them")
        return Condition(tuple(reasons), row["parked"], row["relayed"])
