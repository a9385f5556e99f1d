"""Requests that wait for a job: its end is taken from the log's tail, never from a read model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from domain import jobs, messages
from infra.eventstore.store import Store
from infra.tail import Tail

#: What ends a wait: a job's end.
Ended = jobs.Completed | jobs.Failed | jobs.Stopped
#: The same for one that need not have been queued to be waited for: a guard may hold it, too.
Rested = Ended | jobs.Held | jobs.Paused

Wanted = Callable[[messages.Recorded], bool]


class Waits:
    """One subscription to the tail, shared by all requests that wait."""

    def __init__(self, store: Store, tail: Tail) -> None:
        self._store, self._tail = store, tail
        self._waiting: dict[str, dict[asyncio.Future[messages.Recorded], Wanted]] = {}

    async def run(self) -> None:
        """Serves until cancelled."""
        await self._tail.follow(self._settle, frozenset({jobs.STREAM}))

    def _settle(self, recorded: messages.Recorded) -> None:
        if recorded.stream in self._waiting and isinstance(recorded.event, Rested):
            for future, wanted in self._waiting[recorded.stream].items():
                if not future.done() and wanted(recorded):
                    future.set_result(recorded)

    async def ended(self, stream: str, timeout_s: float, stopping: asyncio.Event) -> messages.Recorded | None:
        """The first end of a job, or None when time is up or this process stops."""
        return await self._first(stream, _is_end, timeout_s, stopping)

    async def rested(
        self, stream: str, after: int, timeout_s: float, stopping: asyncio.Event
    ) -> messages.Recorded | None:
        """As `ended`, of what comes after a position, and also when a guard or a shutdown makes the job pause."""

        def wanted(recorded: messages.Recorded) -> bool:
            return recorded.position > after and isinstance(recorded.event, Rested)

        return await self._first(stream, wanted, timeout_s, stopping)

    async def _first(
        self, stream: str, wanted: Wanted, timeout_s: float, stopping: asyncio.Event
    ) -> messages.Recorded | None:
        future: asyncio.Future[messages.Recorded] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(stream, {})[future] = wanted
        stop = asyncio.create_task(stopping.wait())
        try:
            found = next(filter(wanted, await self._store.stream(stream)), None)
            if found is not None:
                return found
            both: set[asyncio.Future[Any]] = {future, stop}
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return future.result() if future.done() else None
        finally:
            stop.cancel()
            del self._waiting[stream][future]
            if not self._waiting[stream]:
                del self._waiting[stream]

    async def beyond(self, position: int, timeout_s: float, stopping: asyncio.Event) -> None:
        """Waits until the log has passed a position, or time is up, or this process stops."""
        reached = asyncio.create_task(self._tail.reached(position + 1, timeout_s))
        stop = asyncio.create_task(stopping.wait())
        try:
            both: set[asyncio.Future[Any]] = {reached, stop}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reached.cancel()
            stop.cancel()


def _is_end(recorded: messages.Recorded) -> bool:
    return isinstance(recorded.event, Ended)
