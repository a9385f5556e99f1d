"""A user's feed as it goes on: who waits is woken by an event of that library, and reads on from the read model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import structlog

from infra.db import CONNECTION_LOST, Database
from infra.tail import Tail
from services.gateway import changes_pages
from services.gateway.changes_pages import Page
from services.gateway.consistency import Reads
from services.gateway.deliveries import Deliveries
from services.gateway.streams import Stream, Streams, frame

log = structlog.get_logger("gateway")

_PAGE = 200
#: So many clients are told before somebody else has a turn on the loop.
_BREATH = 500
_REACHED_S = 5.0

Library = tuple[str, str]
#: The text of a cursor.
Mark = Callable[[Library, int], str]


class Told(NamedTuple):
    """A change as it is sent, and where in the feed it is."""

    position: int
    frame: bytes


class ChangeStream(Stream):
    """One device that listens. `position` is what it was sent; while it is `live`, there is nothing else behind that
    but what it will be told. Ten thousand of these are kept, so they hold nothing of the request."""

    __slots__ = ("_feed", "device", "heard", "library", "live", "position")

    def __init__(
        self, streams: Streams, credential: str, feed: ChangeFeed, library: Library, device: str, position: int
    ) -> None:
        super().__init__(streams, credential)
        self.library, self.device, self.position = library, device, position
        self.heard, self.live = 0, False
        self._feed = feed

    async def catch_up(self) -> bool:
        self.live = False
        self._feed.join(self)
        while True:
            heard = self.heard
            page = await self._feed.told(self.library, self.position)
            if not page and heard == self.heard:
                self.live = True
                return True
            if page:
                await self._feed.deliveries.note({self.device: page[-1].position})
            if not self.send(page):
                return False

    def send(self, page: Iterable[Told]) -> bool:
        """What it does not have yet; whether there is room for more."""
        for one in page:
            if one.position > self.position:
                if not self.open:
                    return False
                self.position = one.position
                if not self.push(one.frame):
                    return False
        return True

    def nudge(self) -> None:
        """There is more, and it has to look for itself."""
        self.heard += 1
        self.lag()

    def leave(self) -> None:
        self.live = False

    def gone(self) -> None:
        super().gone()
        self._feed.forget(self)


class ChangeFeed:
    """All devices that listen in this process, by library."""

    def __init__(self, database: Database, tail: Tail, reads: Reads, mark: Mark) -> None:
        self.deliveries = Deliveries(database)
        self._database, self._tail, self._reads, self._mark = database, tail, reads, mark
        self._streams: dict[Library, set[ChangeStream]] = {}
        self._waiting: dict[Library, set[asyncio.Future[None]]] = {}
        self._some = asyncio.Event()
        self._follows = False
        self._from = 0

    async def read(self, library: Library, after: int, limit: int) -> Page:
        return await changes_pages.read(self._database, library, after, self._reads.position, limit)

    async def told(self, library: Library, after: int) -> list[Told]:
        found = await changes_pages.one_by_one(self._database, library, after, self._reads.position, _PAGE)
        return [Told(position, frame("change", told, self._mark(library, position))) for position, told in found]

    def stream(self, streams: Streams, credential: str, library: Library, device: str, position: int) -> ChangeStream:
        return ChangeStream(streams, credential, self, library, device, position)

    def join(self, stream: ChangeStream) -> None:
        """Before it reads: what that does not show it is told."""
        self._streams.setdefault(stream.library, set()).add(stream)
        self._listen()

    def forget(self, stream: ChangeStream) -> None:
        mine = self._streams.get(stream.library, set())
        mine.discard(stream)
        if not mine:
            self._streams.pop(stream.library, None)

    def _listen(self) -> None:
        """The log has been followed before, or is from where the read models are now: not from where the log is, for
        what is on its way from there to here nobody would be told."""
        if not self._follows:
            self._follows, self._from = True, max(self._reads.position, 0)
            self._some.set()

    async def page(self, library: Library, after: int, limit: int, wait_s: float, stopping: asyncio.Event) -> Page:
        """Changes behind a position; where there are none, the first that come within a time."""
        if not wait_s:
            return await self.read(library, after, limit)
        deadline = asyncio.get_running_loop().time() + wait_s
        stop = asyncio.create_task(stopping.wait())
        try:
            while True:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.setdefault(library, set()).add(future)
                self._listen()
                try:
                    found = await self.read(library, after, limit)
                    left = deadline - asyncio.get_running_loop().time()
                    if found.last is not None or left <= 0 or stop.done():
                        return found
                    both: set[asyncio.Future[None] | asyncio.Task[bool]] = {future, stop}
                    await asyncio.wait(both, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self._leave(library, future)
        finally:
            stop.cancel()

    def _leave(self, library: Library, future: asyncio.Future[None]) -> None:
        self._waiting[library].discard(future)
        if not self._waiting[library]:
            del self._waiting[library]

    async def run(self) -> None:
        """Serves until cancelled; while nobody listens the log goes by unread."""
        while True:
            await self._some.wait()
            self._some.clear()
            subscription = self._tail.subscribe(self._from, contexts=frozenset({"library"}))
            try:
                async for page in subscription:
                    if not self._streams and not self._waiting:
                        break
                    while not await self._reads.reached(page[-1].position, _REACHED_S):
                        log.info("listeners wait for the read models", position=page[-1].position)
                    for library in {(one.tenant, one.metadata.owner) for one in page}:
                        await self._tell(library)
            finally:
                self._follows = False
                subscription.close()

    async def _tell(self, library: Library) -> None:
        for future in self._waiting.get(library, ()):
            if not future.done():
                future.set_result(None)
        streams = self._streams.get(library, set())
        live = [stream for stream in streams if stream.live]
        for stream in streams.difference(live):
            stream.nudge()
        if live:
            try:
                page = await self.told(library, min(stream.position for stream in live))
                if len(page) < _PAGE:
                    await self._send(live, page)
                    return
            except CONNECTION_LOST as error:
                log.warning("listeners look for themselves", reason=type(error).__name__)
            for stream in live:
                stream.nudge()

    async def _send(self, streams: Sequence[ChangeStream], page: Sequence[Told]) -> None:
        """To those that have all that was before. Who has been looking for itself meanwhile may have some of it."""
        if not page:
            return
        last = page[-1].position
        await self.deliveries.note({stream.device: last for stream in streams if stream.position < last})
        for turn, stream in enumerate(streams, 1):
            if stream.live and not stream.send(page):
                stream.nudge()
            if turn % _BREATH == 0:
                await asyncio.sleep(0)
