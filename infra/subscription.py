"""Who reads the tail: every event after a position, or those of some contexts, each reader at its own pace."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import Protocol

from msgspec import Struct

from domain import messages
from infra.db import CONNECTION_LOST

RETRY_S = 0.2

Page = list[messages.Recorded]
#: What a subscriber wants to see; None stands for everything.
Contexts = frozenset[str] | None


class Broken(Exception):
    """The log is not contiguous: this is no longer the database that this process started with."""


class Span(Struct, frozen=True):
    """What the log holds from position `first` to `last`: all of it, or the events of `contexts`."""

    first: int
    last: int
    page: Page
    contexts: Contexts = None

    def covers(self, contexts: Contexts) -> bool:
        return self.contexts is None or (contexts is not None and contexts <= self.contexts)

    def after(self, position: int, contexts: Contexts) -> Page:
        """Its events behind a position."""
        if contexts is None:
            return self.page[max(position + 1 - self.first, 0) :]
        return [one for one in self.page if one.position > position and one.stream.partition("/")[0] in contexts]


class Source(Protocol):
    """What a subscription needs of the tail."""

    position: int

    def check(self) -> None: ...

    def forget(self, subscription: Subscription, /) -> None: ...

    def stride(self, contexts: Contexts, /) -> int: ...

    async def span(self, after: int, until: int | None, contexts: Contexts, /) -> Span | None: ...


class Subscription:
    """Every event after a position, once and in order, as lists. Iterate it in one task; `close` ends it.

    Whoever is slow reads what no longer fits in memory from Postgres, at its own pace.
    """

    def __init__(self, source: Source, after: int, backlog: int, contexts: Contexts) -> None:
        self.position = after
        self.contexts = contexts
        self._source, self._backlog = source, backlog
        self._queue: deque[Page] = deque()
        self._queued = 0
        self._end = after  # the last position that was given out, queued or is being read
        self._changed = asyncio.Event()
        self._closed = False

    def offer(self, span: Span) -> None:
        """Takes what continues this subscription, if there is room for it."""
        if not span.first <= self._end + 1 <= span.last or not span.covers(self.contexts):
            self._changed.set()
            return
        fresh = span.after(self._end, self.contexts)
        if self._queued + len(fresh) > self._backlog:
            self._changed.set()
            return
        self._end = span.last
        if fresh:
            self._queue.append(fresh)
            self._queued += len(fresh)
            self._changed.set()
        elif not self._queue:
            self.position = span.last

    def nudge(self) -> None:
        """Has it look again whether there is anything to give out."""
        self._changed.set()

    def more(self, room: int) -> Page:
        """What has arrived behind the last page meanwhile; nothing when that is more than `room`."""
        return self._queued_up() if 0 < self._queued <= room else []

    def _queued_up(self) -> Page:
        page = list(itertools.chain.from_iterable(self._queue))
        self._queue.clear()
        self._queued = 0
        self.position = self._end
        return page

    def close(self) -> None:
        self._closed = True
        self._changed.set()
        self._source.forget(self)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Page:
        while not self._closed:
            self._changed.clear()
            if self._queue:
                return self._queued_up()
            self._source.check()
            if self._end < self._source.position:
                if page := await self._read():
                    return page
            else:
                await self._changed.wait()
        raise StopAsyncIteration

    async def _read(self) -> Page:
        """The next page from Postgres. When it reaches the tail's position, what is published from here on is queued
        behind it."""
        start, until = self._end, self._source.position
        joins = until - start <= self._source.stride(self.contexts)
        if joins:
            self._end = until
        try:
            span = await self._source.span(start, until, self.contexts)
        except BaseException as error:
            self._queue.clear()
            self._queued, self._end = 0, start
            if not isinstance(error, CONNECTION_LOST):
                raise
            await asyncio.sleep(RETRY_S)
            return []
        assert span is not None
        if not joins:
            self._end = span.last
        elif span.last != until:
            raise Broken(f"the log ends at position {span.last}, before {until}")
        self.position = span.last
        return span.page
