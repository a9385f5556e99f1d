"""A crowd around one log: writers that pause, roll back and linger, and readers who must all see the same."""

from __future__ import annotations

import asyncio
import itertools
import random
from uuid import UUID

from infra.db import Database
from infra.eventstore.mapper import LogNotification
from infra.eventstore.recorder import Appended, Recorder, append_group, prepare
from infra.eventstore.writer import Writer
from tests.infra.appends import append, whole


class Crowd:
    """`commits` appends by 16 writers: half of them share writer tasks, half call the function in transactions of
    their own, which they hold open for a while and now and then roll back."""

    def __init__(self, database: Database, writers: list[Writer], commits: int, pause_s: float = 0.002) -> None:
        self._database, self._writers = database, writers
        self._left, self._pause_s = commits, pause_s
        self._ended = asyncio.Event()
        self.acknowledged: set[UUID] = set()
        self.rolled_back: set[UUID] = set()

    async def run(self, readers: int = 4) -> list[LogNotification]:
        """The log, after the readers were found to have read exactly that."""
        lingering = [asyncio.create_task(self._linger(n)) for n in range(2)]
        reading = [asyncio.create_task(self._read(random.choice((1, 3, 50, 1000)))) for _ in range(readers)]
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(self._queueing(self._writers[number % len(self._writers)]))
                group.create_task(self._by_hand())
        self._ended.set()
        await asyncio.gather(*lingering)
        log = await whole(self._database)
        seen = [(note.id, note.event_id, note.hash) for note in log]
        for read in await asyncio.gather(*reading):
            assert read == seen
        stored = {note.event_id for note in log}
        assert stored == self.acknowledged
        assert self.rolled_back.isdisjoint(stored)
        assert all(earlier.recorded_at <= later.recorded_at for earlier, later in itertools.pairwise(log))
        return log

    def _next(self) -> bool:
        self._left -= 1
        return self._left >= 0

    async def _queueing(self, writer: Writer) -> None:
        while self._next():
            command = append(count=random.randint(1, 3))
            answer = await writer.append(command)
            assert answer.count == len(command.writes[0].events)
            self.acknowledged |= {event.event_id for event in command.writes[0].events}

    async def _by_hand(self) -> None:
        connection = await self._database.connect()
        while self._next():
            command = append(count=random.randint(1, 3))
            ids = {event.event_id for event in command.writes[0].events}
            transaction = connection.transaction()
            await transaction.start()
            if random.random() < 0.3:  # a transaction number of its own, taken long before the append
                await connection.execute("insert into undrift.tracking values (gen_random_uuid()::text, 0, 0)")
                await asyncio.sleep(random.uniform(0, self._pause_s))
            [answer] = await append_group(connection, [prepare(command)])
            assert isinstance(answer, Appended)
            await asyncio.sleep(random.choice((0, 0, 0, random.uniform(0, self._pause_s))))
            if random.random() < 0.3:
                await transaction.rollback()
                self.rolled_back |= ids
            else:
                await transaction.commit()
                self.acknowledged |= ids
        await connection.close()

    async def _linger(self, number: int) -> None:
        """A transaction that is open all the time, with a snapshot and a transaction number older than everything."""
        connection = await self._database.connect()
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("insert into undrift.tracking values ($1, 0, 0)", f"lingering {number}")
            await self._ended.wait()
        await connection.close()

    async def _read(self, page: int) -> list[tuple[int, UUID, bytes]]:
        recorder = Recorder(self._database)
        found: list[tuple[int, UUID, bytes]] = []
        while True:
            last = self._ended.is_set()
            notes = await recorder.select_notifications(
                found[-1][0] if found else 0, random.randint(1, page), inclusive_of_start=False
            )
            found += [(note.id, note.event_id, note.hash) for note in notes]
            if last and not notes:
                return found
            await asyncio.sleep(0 if notes else 0.001)
