"""What devices were sent, written down before it is sent: only that may be acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from infra.db import Database

_NOTE = (
    "with given as (select * from unnest($1::text[], $2::bigint[]) as g (device, position)),"
    " mine as (select s.device, g.position from undrift.device_state s join given g using (device)"
    " where s.delivered_pos < g.position order by s.device for update of s)"
    " update undrift.device_state s set delivered_pos = greatest(s.delivered_pos, mine.position)"
    " from mine where s.device = mine.device"
)


class _Batch:
    def __init__(self) -> None:
        self.positions: dict[str, int] = {}
        self.is_written = False


class Deliveries:
    """Whoever comes while others are being written shares the next statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batch = _Batch()
        self._turn = asyncio.Lock()

    async def note(self, positions: Mapping[str, int]) -> None:
        """Positions by device; returns once they are written."""
        batch = self._batch
        for device, position in positions.items():
            batch.positions[device] = max(position, batch.positions.get(device, 0))
        async with self._turn:
            if batch.is_written:
                return
            if batch is self._batch:
                self._batch = _Batch()
            await self._database.execute(_NOTE, list(batch.positions), list(batch.positions.values()))
            batch.is_written = True
