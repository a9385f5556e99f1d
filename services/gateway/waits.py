"""Requests that wait for a job: its end is taken from the log's tail, never from a read model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from domain import jobs, messages
from infra.eventstore.store import Store
from infra.tail import Tail

#: What ends a wait: a job's end, or a guard that holds it.
Ended = jobs.Completed | jobs.Failed | jobs.Stopped


class Waits:
    """One subscription to the tail, shared by all requests that wait."""

    def __init__(self, store: Store, tail: Tail) -> None:
        self._store, self._tail = store, tail
        self._waiting: dict[str, set[asyncio.Future[messages.Recorded]]] = {}

    async def run(self) -> None:
        """Serves until cancelled."""
        subscription = self._tail.subscribe(self._tail.position, contexts=frozenset({jobs.STREAM}))
        try:
            async for events in subscription:
                for recorded in events:
                    self._settle(recorded)
        finally:
            subscription.close()

    def _settle(self, recorded: messages.Recorded) -> None:
        if recorded.stream in self._waiting and isinstance(recorded.event, Ended):
            for future in self._waiting[recorded.stream]:
                if not future.done():
                    future.set_result(recorded)

    async def ended(self, stream: str, timeout_s: float, stopping: asyncio.Event) -> messages.Recorded | None:
        """The first end of a job, or None when time is up or this process stops."""
        future: asyncio.Future[messages.Recorded] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(stream, set()).add(future)
        stop = asyncio.create_task(stopping.wait())
        try:
            found = _first_end(await self._store.stream(stream))
            if found is not None:
                return found
            both: set[asyncio.Future[Any]] = {future, stop}
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return future.result() if future.done() else None
        finally:
            stop.cancel()
            self._waiting[stream].discard(future)
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


def _first_end(events: Sequence[messages.Recorded]) -> messages.Recorded | None:
    return next((recorded for recorded in events if isinstance(recorded.event, Ended)), None)
