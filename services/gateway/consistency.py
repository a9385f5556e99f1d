"""Read-your-writes: a read waits, for a while, until the read models have passed what its principal wrote."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict

import asyncpg
import structlog

import projections
from domain import errors
from infra.config import Gateway
from infra.db import CONNECTION_LOST, Database, naming_loss

log = structlog.get_logger("gateway")

_MARKS = 20_000
_POSITION = (
    "select min(t.pos) from unnest($1::text[], $2::int[]) as p(name, generation)"
    " left join undrift.tracking t on t.projection = p.name and t.generation = p.generation having count(t.pos) = $3"
)


class Reads:
    """Follows the position of this program's generation of read models, by NOTIFY and by polling."""

    def __init__(self, database: Database, settings: Gateway, poll_s: float) -> None:
        self._database, self._wait_s, self._poll_s = database, settings.read_wait_s, poll_s
        self._written: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        self._changed = asyncio.Event()
        self.position = -1  # until the read models exist

    def wrote(self, principal: str, position: int, *contexts: str) -> None:
        """Remembers where a principal's command ended, for reads of everything and of these contexts."""
        for context in ("", *contexts):
            mark = (principal, context)
            self._written[mark] = max(position, self._written.get(mark, 0))
            self._written.move_to_end(mark)
        while len(self._written) > _MARKS:
            self._written.popitem(last=False)

    async def wait(self, principal: str, asked: int | None = None, context: str = "") -> int:
        """The position that a read sees: past what the principal wrote, in one context where that is all it reads.

        Raises Unavailable when the position that was asked for is not reached in time.
        """
        needed = max(self._written.get((principal, context), 0), asked or 0)
        if self.position < needed:
            await self.reached(needed, self._wait_s)
            if self.position < (asked or 0):
                raise errors.Unavailable("The read models have not come that far yet", retry_after=1)
        return self.position

    async def reached(self, position: int, timeout_s: float) -> bool:
        """Waits until the read models have passed a position."""
        if self.position >= position:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(entry := (position, future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
            return True
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(entry)

    async def run(self) -> None:
        """Serves until cancelled."""
        while True:
            try:
                await self._follow()
            except CONNECTION_LOST as error:
                log.warning("lost sight of the read models' position", reason=type(error).__name__)
                await asyncio.sleep(self._poll_s)

    async def _follow(self) -> None:
        connection = await self._database.connect()
        try:
            with naming_loss(connection):
                await connection.add_listener("undrift_applied", self._hear)
                self.position = -1  # a server that died may have lost what the read models had applied last
                while not connection.is_closed():
                    await self._poll(connection)
                    await self._notices()
        finally:
            connection.terminate()

    async def _notices(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await self._changed.wait()
                while self._changed.is_set():  # while notices come, there is nothing to ask for
                    self._changed.clear()
                    await asyncio.sleep(self._poll_s / 4)

    async def _poll(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        names = [one.NAME for one in projections.ALL]
        generations = [one.GENERATION for one in projections.ALL]
        position = await connection.fetchval(_POSITION, names, generations, len(names))
        if position is not None:
            self._move(position)

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        self._changed.set()
        if self.position >= 0:  # a notice says nothing about generations that do not exist yet
            self._move(int(str(payload)))

    def _move(self, position: int) -> None:
        self.position = max(self.position, position)
        for needed, future in list(self._waiting):
            if needed <= self.position and not future.done():
                future.set_result(None)
