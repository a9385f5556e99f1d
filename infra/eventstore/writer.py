"""One writer task per process: what queued during the last commit is the next group."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from uuid import uuid4

import asyncpg
import structlog
from eventsourcing.persistence import OperationalError

from infra.config import EventStore
from infra.db import CONNECTION_LOST, Database, naming_loss
from infra.eventstore.recorder import Append, Appended, Outcome, Overloaded, Prepared, append_group, prepare

log = structlog.get_logger()

#: What a command that cannot be stored raises, here or in the server.
BAD = (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, TypeError, OverflowError)

#: How many commands are looked at for a group of that many events.
_LOOKS = 4
#: A command of more writes goes to the server in parts, so that the loop serves others in between.
_PART = 1000


class Pending:
    """A command that waits, and who waits for it."""

    __slots__ = ("future", "lane", "prepared")

    def __init__(self, prepared: Prepared, future: asyncio.Future[Appended]) -> None:
        self.prepared, self.future = prepared, future
        self.lane = (prepared.command.tenant, prepared.command.principal)

    def settle(self, outcome: Outcome) -> None:
        if self.future.done():
            return  # its caller was cancelled
        if isinstance(outcome, Appended):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)


class Queue:
    """Commands waiting for the next group, served round-robin by principal so that none waits for another's many."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lanes: OrderedDict[tuple[str, str], deque[Pending]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, pending: Pending) -> None:
        """Raises Overloaded when the queue is full."""
        if self._count >= self._limit:
            raise Overloaded("too many commands are waiting")
        self._lanes.setdefault(pending.lane, deque()).append(pending)
        self._count += 1

    def put_back(self, group: Sequence[Pending]) -> None:
        """What was taken comes first again, in its order."""
        for pending in reversed(group):
            self._lanes.setdefault(pending.lane, deque()).appendleft(pending)
            self._lanes.move_to_end(pending.lane, last=False)
            self._count += 1

    def take(self, max_events: int) -> list[Pending]:
        """The next group: at most `max_events` events (a larger command goes alone), no name twice.

        What shares a name with an earlier command waits, and so does whatever shares one with that. What waits is
        looked at first for the next group, so it cannot be passed over for ever.
        """
        group: list[Pending] = []
        waiting: list[Pending] = []
        taken: set[object] = set()
        events = 0
        for _ in range(_LOOKS * max_events):
            if events >= max_events or (pending := self._next()) is None:
                break
            prepared = pending.prepared
            if taken.isdisjoint(prepared.names):
                if group and events + prepared.count > max_events:
                    waiting.insert(0, pending)
                    break
                group.append(pending)
                events += max(prepared.count, 1)
            else:
                waiting.append(pending)
            taken |= prepared.names
        self.put_back(waiting)
        return group

    def drain(self) -> Iterator[Pending]:
        """Everything that waits, out of the queue."""
        while (pending := self._next()) is not None:
            yield pending

    def _next(self) -> Pending | None:
        """The first of the next lane, without those whose callers have gone."""
        while self._lanes:
            name, lane = self._lanes.popitem(last=False)
            pending = lane.popleft()
            self._count -= 1
            if lane:
                self._lanes[name] = lane
            if not pending.future.done():
                return pending
        return None


class Writer:
    """Appends commands in groups over a connection of its own.

    `append` answers when the command is durable. When the connection is lost the outcome is unknown: the writer
    ends its old session, looks the event ids up, and answers or appends again; callers never see "unknown".
    """

    def __init__(self, database: Database, settings: EventStore) -> None:
        self._database, self._settings = database, settings
        self._queue = Queue(settings.queue)
        self._ready = asyncio.Event()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._session: tuple[int, str] | None = None
        self._stopped = False
        self.groups = 0
        self.commands = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def append(self, command: Append) -> Appended:
        """Raises VersionConflict, Claimed, GuardFailed or KeyReused with nothing stored; Overloaded at once.

        A cancelled caller does not take the command back: it may or may not be carried out. When the writer is
        stopped while a command waits, OperationalError leaves its outcome unknown.
        """
        small = len(command.writes) <= _PART
        prepared = prepare(command) if small else await asyncio.to_thread(prepare, command)
        if self._stopped:
            raise OperationalError("the writer has stopped")
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._queue.put(Pending(prepared, future))
        self._ready.set()
        return await future

    async def run(self) -> None:
        """Serves the queue until cancelled."""
        group: list[Pending] = []
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                while group := self._queue.take(self._settings.group_events):
                    await self._flush(group)
        finally:
            self._stopped = True
            for pending in [*group, *self._queue.drain()]:
                pending.settle(OperationalError("the writer has stopped"))
            if self._connection is not None:
                self._connection.terminate()

    async def _flush(self, group: list[Pending]) -> None:
        commands = [pending.prepared for pending in group]
        outcomes: Sequence[Outcome | None]
        try:
            outcomes = await self._append(commands)
        except CONNECTION_LOST as error:
            log.warning("the connection to Postgres was lost during an append", reason=type(error).__name__)
            outcomes = await self._look_up(commands)
        except Exception as error:
            log.exception("an append went wrong", commands=len(commands))
            outcomes = [found or error for found in await self._look_up(commands)]
        self.groups += 1
        self.commands += len(group)
        self._queue.put_back([pending for pending, outcome in zip(group, outcomes, strict=True) if outcome is None])
        for pending, outcome in zip(group, outcomes, strict=True):
            if outcome is not None:
                pending.settle(outcome)

    async def _append(self, commands: Sequence[Prepared]) -> Sequence[Outcome]:
        connection = await self._connected()
        try:
            with naming_loss(connection):
                if len(commands) == 1 and (parts := _parts(commands[0].command)):
                    return [await _append_parts(connection, parts)]
                return await append_group(connection, commands)
        except CONNECTION_LOST:
            raise
        except BAD as error:
            if connection.is_closed():
                raise ConnectionResetError("the connection to Postgres is closed") from error
            if len(commands) == 1:
                return [error]
            return await self._append_each(connection, commands)

    async def _append_each(
        self, connection: asyncpg.Connection[asyncpg.Record], commands: Sequence[Prepared]
    ) -> Sequence[Outcome]:
        """The same commands in one transaction, each under a savepoint: only the bad one fails."""
        outcomes: list[Outcome] = []
        with naming_loss(connection):
            async with connection.transaction():
                for command in commands:
                    try:
                        async with connection.transaction():
                            outcomes += await append_group(connection, [command])
                    except CONNECTION_LOST:
                        raise
                    except BAD as error:
                        outcomes.append(error)
        return outcomes

    async def _connected(self) -> asyncpg.Connection[asyncpg.Record]:
        """The writer's connection, under a name by which its session can be found and ended."""
        if self._connection is None or self._connection.is_closed():
            connection = await self._database.connect()
            name = f"undrift writer {uuid4().hex}"
            try:
                with naming_loss(connection):
                    await connection.execute("select set_config('application_name', $1, false)", name)
            except BaseException:
                connection.terminate()
                raise
            self._connection, self._session = connection, (connection.get_server_pid(), name)
        return self._connection

    async def _look_up(self, commands: Sequence[Prepared]) -> Sequence[Appended | None]:
        """What became of a group whose answer was lost; None stands for "not carried out"."""
        while True:
            try:
                await self._end_old_session()
                connection = await self._connected()
                with naming_loss(connection):
                    return [await _find(connection, prepared.command) for prepared in commands]
            except (*CONNECTION_LOST, *BAD) as error:
                log.warning("waiting for Postgres to say what became of an append", reason=type(error).__name__)
                await asyncio.sleep(self._settings.reconnect_s)

    async def _end_old_session(self) -> None:
        """Makes sure that the lost session cannot commit any more before its events are looked for."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
        if self._session is None:
            return
        connection = await self._database.connect()
        try:
            with naming_loss(connection):
                await connection.execute("set role none")  # only the login that began a session may end it
                while await connection.fetchval(
                    "select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and application_name = $2",
                    *self._session,
                ):
                    await asyncio.sleep(0.01)
        finally:
            connection.terminate()
        self._session = None


def _parts(command: Append) -> Sequence[Append]:
    """A large command as several that are carried out in one transaction; none where it goes as it is.

    The log's lock is held from the first to the last, so guards that hold for the first hold for all. What the claims
    of a command come to is judged for all of its writes at once, so at most one of them may have some.
    """
    writes = command.writes
    if len(writes) <= _PART or command.key is not None or sum(bool(write.claims) for write in writes) > 1:
        return ()
    edges = [*range(0, len(writes), _PART), len(writes)]
    return [
        Append(command.tenant, writes[start:end], None, () if start else command.guards, command.principal)
        for start, end in pairwise(edges)
    ]


class _Refused(Exception):
    """A part is, so none of the others may stay."""

    def __init__(self, outcome: Exception) -> None:
        self.outcome = outcome


async def _append_parts(connection: asyncpg.Connection[asyncpg.Record], parts: Sequence[Append]) -> Outcome:
    """As one command; its time is that of the last part."""
    done: list[Appended] = []
    try:
        async with connection.transaction():
            for part in parts:
                [outcome] = await append_group(connection, [prepare(part)])
                if isinstance(outcome, Exception):
                    raise _Refused(outcome)
                done.append(outcome)
    except _Refused as refused:
        return refused.outcome
    return Appended(done[0].first, sum(part.count for part in done), done[-1].recorded_at)


async def _find(connection: asyncpg.Connection[asyncpg.Record], command: Append) -> Appended | None:
    events = [event for write in command.writes for event in write.events]
    if events:
        row = await connection.fetchrow(
            "select pos, recorded_at from undrift.events where stream_id = $1 and version = $2 and event_id = $3",
            events[0].originator_id,
            events[0].originator_version,
            events[0].event_id,
        )
        return None if row is None else Appended(row["pos"], len(events), row["recorded_at"])
    if command.key is None:
        return None
    row = await connection.fetchrow(
        "select first_pos, n, at from undrift.commands"
        " where tenant = $1 and principal = $2 and key = $3 and request_hash = $4",
        command.tenant,
        command.key.principal,
        command.key.key,
        command.key.request_hash,
    )
    return None if row is None else Appended(row["first_pos"], row["n"], row["at"])
