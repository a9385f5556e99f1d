"""A crowd around one log: writers that pause, roll back and linger, and readers who must all see the same."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

from infra.db import Database
from infra.eventstore.mapper import LogNotification
from infra.eventstore.recorder import Append, Appended, Recorder, append_group, prepare
from infra.eventstore.writer import Writer
from tests.infra.appends import append, whole

#: What a gateway may say of readers that follow, meanwhile.
BY_ITSELF = {"devices.caught_up"}

#: What a reader saw: position and event id, in its order. It returns when the event is set and there is no more.
Seen = list[tuple[int, UUID]]
Reader = Callable[[asyncio.Event], Awaitable[Seen]]


def some_events() -> Append:
    return append(count=random.randint(1, 3))


class Crowd:
    """`commits` appends by 16 writers: half of them share writer tasks, half call the function in transactions of
    their own, which they hold open for a while and now and then roll back."""

    def __init__(
        self,
        database: Database,
        writers: list[Writer],
        commits: int,
        make: Callable[[], Append] = some_events,
        pause_s: float = 0.002,
    ) -> None:
        self._database, self._writers = database, writers
        self._left, self._make, self._pause_s = commits, make, pause_s
        self._ended = asyncio.Event()
        self.acknowledged: set[UUID] = set()
        self.rolled_back: set[UUID] = set()

    async def run(self, *others: Reader) -> list[LogNotification]:
        """The log, after the readers, ours and others, were found to have read exactly that."""
        before = {note.event_id for note in await whole(self._database)}
        lingering = [asyncio.create_task(self._linger(n)) for n in range(2)]
        ours: list[Reader] = [partial(self._read, page) for page in (1, 3, 50, 1000)]
        reading = [asyncio.ensure_future(reader(self._ended)) for reader in (*ours, *others)]
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(self._queueing(self._writers[number % len(self._writers)]))
                group.create_task(self._by_hand())
        self._ended.set()
        await asyncio.gather(*lingering)
        log = await whole(self._database)
        seen = [(note.id, note.event_id) for note in log]
        for read in await asyncio.gather(*reading):
            common = min(len(read), len(seen))  # what the system itself says behind the last command is read or not
            assert read[:common] == seen[:common]
            assert self.acknowledged <= {id for _, id in read}
        stored = {note.event_id for note in log if note.topic not in BY_ITSELF}
        assert stored - before == self.acknowledged
        assert self.rolled_back.isdisjoint(stored)
        assert all(earlier.recorded_at <= later.recorded_at for earlier, later in itertools.pairwise(log))
        return log

    def _next(self) -> bool:
        self._left -= 1
        return self._left >= 0

    async def _queueing(self, writer: Writer) -> None:
        while self._next():
            command = self._make()
            answer = await writer.append(command)
            assert answer.count == len(_ids(command))
            self.acknowledged |= _ids(command)

    async def _by_hand(self) -> None:
        connection = await self._database.connect()
        while self._next():
            command = self._make()
            ids = _ids(command)
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
        await connection.execute("set idle_in_transaction_session_timeout = 0")
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("insert into undrift.tracking values ($1, 0, 0)", f"lingering {number}")
            await self._ended.wait()
        await connection.close()

    async def _read(self, page: int, ended: asyncio.Event) -> Seen:
        recorder = Recorder(self._database)
        found: Seen = []
        while True:
            last = ended.is_set()
            notes = await recorder.select_notifications(
                found[-1][0] if found else 0, random.randint(1, page), inclusive_of_start=False
            )
            found += [(note.id, note.event_id) for note in notes]
            if last and not notes:
                return found
            await asyncio.sleep(0 if notes else 0.001)


def _ids(command: Append) -> set[UUID]:
    return {event.event_id for write in command.writes for event in write.events}
