"""Requests counted in Postgres, for all gateways together: what comes while one statement is under way shares the
next."""

from __future__ import annotations

import asyncio

import asyncpg
import structlog
from msgspec import Struct

from infra import secrets
from infra.db import CONNECTION_LOST, Database

log = structlog.get_logger("gateway")

_ALLOW = "select granted, used, reset_ms from undrift.allow($1, $2, $3)"
_SWEEP = "delete from undrift.allowances where seen_at < clock_timestamp() - $1 * interval '1 second'"
_TROUBLE = (*CONNECTION_LOST, asyncpg.PostgresError, asyncpg.InterfaceError)
_PAUSE_S = 1.0


class Said(Struct, frozen=True):
    """Whether a request was let through, how many more would be, and when the oldest counted one leaves the minute;
    `spare` were counted with it, for requests to come."""

    granted: bool
    remaining: int
    reset_s: float
    spare: int = 0


class _Asked:
    __slots__ = ("limit", "portion", "waiting")

    def __init__(self, portion: int, limit: int) -> None:
        self.portion, self.limit = portion, limit
        self.waiting: list[asyncio.Future[Said | None]] = []


class Shared:
    """Callers are kept as keyed hashes: an address is somebody's."""

    def __init__(self, database: Database, master: bytes, patience_s: float) -> None:
        self._database, self._master, self._patience_s = database, master, patience_s
        self._asked: dict[str, _Asked] = {}
        self._asking: asyncio.Task[None] | None = None
        self._away_until = 0.0

    async def take(self, caller: str, portion: int, limit: int) -> Said | None:
        """None where Postgres does not answer: then it is left alone for a second."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until:
            return None
        asked = self._asked.setdefault(caller, _Asked(portion, limit))
        waiting: asyncio.Future[Said | None] = loop.create_future()
        asked.waiting.append(waiting)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await waiting

    async def sweep(self, idle_s: float) -> None:
        """Forgets callers that were not heard of for so long."""
        try:
            await self._database.execute(_SWEEP, idle_s)
        except _TROUBLE as error:
            log.warning("requests counted are swept later", reason=type(error).__name__)

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._ask_for(asked)
            except Exception as error:  # whatever it is, nobody's request fails of it
                if asyncio.get_running_loop().time() >= self._away_until:
                    log.warning("requests are counted by this gateway alone", reason=type(error).__name__)
                self._away_until = asyncio.get_running_loop().time() + _PAUSE_S
            finally:
                for one in asked.values():
                    for waiting in one.waiting:
                        _tell(waiting, None)  # who was answered before hears nothing more

    async def _ask_for(self, asked: dict[str, _Asked]) -> None:
        named = sorted((secrets.derive(self._master, "limits", name).hex()[:32], one) for name, one in asked.items())
        wanted = [len(one.waiting) + one.portion - 1 for _, one in named]
        names, limits = [name for name, _ in named], [one.limit for _, one in named]
        rows = await self._database.fetch(_ALLOW, names, wanted, limits)
        for (_, one), row in zip(named, rows, strict=True):
            _share(one, row["granted"], row["used"], row["reset_ms"] / 1000)


def _share(asked: _Asked, granted: int, used: int, reset_s: float) -> None:
    """In the order in which they came; what is left over goes to the last who was let through."""
    spare = max(granted - len(asked.waiting), 0)
    before = used - granted
    for number, waiting in enumerate(asked.waiting, start=1):
        if number > granted:
            _tell(waiting, Said(False, 0, reset_s))
        else:
            remaining = max(asked.limit - before - number, 0)
            _tell(waiting, Said(True, remaining, reset_s, spare if number == len(asked.waiting) else 0))


def _tell(waiting: asyncio.Future[Said | None], said: Said | None) -> None:
    if not waiting.done():
        waiting.set_result(said)
