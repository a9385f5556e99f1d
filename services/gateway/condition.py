"""Whether everything behind the gateway does its part, told from what is stored: the relay may run anywhere."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from domain import errors
from infra import jetstream
from infra.db import Database
from infra.eventstore.store import Store
from infra.feed import STREAM
from services.main import Process

_FRESH_S = 1.0
_PATIENCE_S = 1.0
_LATE = (
    "select recorded_at < clock_timestamp() - $2 * interval '1 second' from undrift.events where pos > $1"
    " order by pos limit 1"
)


class Condition(Struct, frozen=True):
    """`reasons` are sentences, one for each thing that is not as it should be. `relayed` is the last position that
    JetStream has, None where it cannot be asked."""

    reasons: tuple[str, ...]
    parked: int
    relayed: int | None


class Conditions:
    """Looks at most once a second, however many ask."""

    def __init__(self, process: Process) -> None:
        self._database: Database = process.db
        self._store: Store = process.store
        self._bus = process.bus
        self._stream = jetstream.Stream(process.bus, STREAM, _PATIENCE_S)
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
        parked = await self._database.fetchval("select count(*) from undrift.parked where generation > 0")
        relayed, reason = await self._relayed()
        reasons = [] if reason is None else [reason]
        if parked:
            reasons.append(f"{parked} events are parked; `undrift doctor` names them")
        return Condition(tuple(reasons), parked, relayed)

    async def _relayed(self) -> tuple[int | None, str | None]:
        if not self._bus.connected:
            return None, "NATS is not connected: events leave over HTTP only"
        try:
            relayed = await self._stream.last()
        except (errors.Unavailable, errors.TimedOut, jetstream.Refused):
            return None, "JetStream does not answer: events leave over HTTP only"
        if not await self._database.fetchval(_LATE, relayed, self._late_s):
            return relayed, None
        behind = await self._store.head() - relayed
        return relayed, f"the relay is {behind} events behind, the oldest for more than {self._late_s:g} s"
