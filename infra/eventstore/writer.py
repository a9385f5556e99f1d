"""One writer task per process: what queued during the last commit is the next group."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

import asyncpg
import structlog

from infra.config import EventStore
from infra.db import CONNECTION_LOST, Database, naming_loss
from infra.eventstore.recorder import Append, Appended, Outcome, Overloaded, append_group, net_claims

log = structlog.get_logger()

#: What a command that cannot be stored raises, here or in the server.
BAD = (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, TypeError, OverflowError)


class _Pending:
    __slots__ = ("command", "events", "future", "names")

    def __init__(self, command: Append, future: asyncio.Future[Appended]) -> None:
        self.command, self.future = command, future
        self.events = sum(len(write.events) for write in command.writes)
        self.names = frozenset(_names(command))


def _names(command: Append) -> Iterator[tuple[str, ...]]:
    """What two commands of one group must not share: streams, idempotency keys, claimed names."""
    for write in command.writes:
        yield ("stream", write.stream)
        for claim in write.claims:
            yield ("claim", command.tenant, claim.kind, claim.key)
    if command.key is not None:
        yield ("key", command.tenant, command.key.principal, command.key.key)


class Queue:
    """Commands waiting for the next group, served round-robin by principal so that none waits for another's many."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[tuple[str, str], deque[_Pending]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, pending: _Pending) -> None:
        """Raises Overloaded when the queue is full."""
        if self._count >= self._limit:
            raise Overloaded("too many commands are waiting")
        self._push(pending, left=False)

    def put_back(self, group: Sequence[_Pending]) -> None:
        for pending in reversed(group):
            self._push(pending, left=True)

    def _push(self, pending: _Pending, *, left: bool) -> None:
        lane = self._waiting.setdefault((pending.command.tenant, pending.command.principal), deque())
        (lane.appendleft if left else lane.append)(pending)
        self._count += 1

    def take(self, max_events: int) -> list[_Pending]:
        """The next group: at most `max_events` events (a larger command goes alone), no name twice.

        What shares a name with an earlier command waits, and so does whatever shares one with that.
        """
        group: list[_Pending] = []
        taken: set[tuple[str, ...]] = set()
        kept: dict[tuple[str, str], deque[_Pending]] = {}
        events = scanned = 0
        while self._waiting and scanned < 4 * max_events:
            scanned += 1
            principal, lane = self._waiting.popitem(last=False)
            pending = lane.popleft()
            full = bool(group) and events + max(pending.events, 1) > max_events
            if pending.future.done():
                self._count -= 1
            elif full or not taken.isdisjoint(pending.names):
                kept.setdefault(principal, deque()).append(pending)
            else:
                group.append(pending)
                events += max(pending.events, 1)
                self._count -= 1
            taken |= pending.names
            if full or events >= max_events:
                if lane:
                    self._waiting[principal] = lane
                break
            if lane:
                self._waiting[principal] = lane
        for principal, lane in kept.items():
            lane.extend(self._waiting.pop(principal, ()))
            self._waiting[principal] = lane
        return group


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
        self._session: tuple[int, object] | None = None
        self.groups = 0
        self.commands = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def append(self, command: Append) -> Appended:
        """Raises VersionConflict, Claimed, GuardFailed or KeyReused with nothing stored; Overloaded at once.

        A cancelled caller does not take the command back: it may or may not be carried out.
        """
        net_claims(command.writes)
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._queue.put(_Pending(command, future))
        self._ready.set()
        return await future

    async def run(self) -> None:
        """Serves the queue until cancelled."""
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                while group := self._queue.take(self._settings.group_events):
                    await self._flush(group)
        finally:
            if self._connection is not None:
                self._connection.terminate()

    async def _flush(self, group: list[_Pending]) -> None:
        try:
            outcomes = await self._append([pending.command for pending in group])
        except CONNECTION_LOST as error:
            log.warning("the connection to Postgres was lost during an append", reason=type(error).__name__)
            outcomes = await self._look_up(group)
        self.groups += 1
        self.commands += len(group)
        self._queue.put_back([pending for pending, outcome in zip(group, outcomes, strict=True) if outcome is None])
        for pending, outcome in zip(group, outcomes, strict=True):
            if outcome is not None and not pending.future.done():
                _settle(pending.future, outcome)

    async def _append(self, commands: Sequence[Append]) -> Sequence[Outcome | None]:
        connection = await self._connected()
        try:
            with naming_loss(connection):
                return await append_group(connection, commands)
        except CONNECTION_LOST:
            raise
        except BAD as error:
            if len(commands) == 1:
                return [error]
            return await self._append_each(connection, commands)

    async def _append_each(
        self, connection: asyncpg.Connection[asyncpg.Record], commands: Sequence[Append]
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
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.connect()
            row = await self._connection.fetchrow(
                "select pg_backend_pid() as pid, backend_start from pg_stat_activity where pid = pg_backend_pid()"
            )
            assert row is not None
            self._session = (row["pid"], row["backend_start"])
        return self._connection

    async def _look_up(self, group: Sequence[_Pending]) -> Sequence[Outcome | None]:
        """What became of a group whose answer was lost; None stands for "not carried out, append again"."""
        while True:
            try:
                await self._end_old_session()
                connection = await self._connected()
                return [await _find(connection, pending.command) for pending in group]
            except CONNECTION_LOST:
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
            while await connection.fetchval(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and backend_start = $2",
                *self._session,
            ):
                await asyncio.sleep(0.01)
        finally:
            with contextlib.suppress(*CONNECTION_LOST):
                await connection.close(timeout=2)
        self._session = None


async def _find(connection: asyncpg.Connection[asyncpg.Record], command: Append) -> Appended | None:
    events = [event for write in command.writes for event in write.events]
    if events:
        write = next(write for write in command.writes if write.events)
        row = await connection.fetchrow(
            "select pos, recorded_at from undrift.events where stream_id = $1 and version = $2 and event_id = $3",
            write.stream,
            write.events[0].originator_version,
            write.events[0].event_id,
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


def _settle(future: asyncio.Future[Appended], outcome: Outcome) -> None:
    if isinstance(outcome, Appended):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
