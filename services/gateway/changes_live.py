"""A user's feed as it goes on: who waits is woken by an event of that library, and reads on from the read model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from infra.tail import Tail
from projections import library as library_read
from projections.library import Version
from projections.table import Database
from services.gateway.consistency import Reads
from services.gateway.streams import Stream, Streams

_PAGE = 200
#: So many clients are told before somebody else has a turn on the loop.
_BREATH = 500
_REACHED_S = 5.0

Library = tuple[str, str]
Frame = Callable[[Version], bytes]
Delivered = Callable[[int], Awaitable[None]]


class ChangeStream(Stream):
    """One device that listens; `position` is what it was sent."""

    __slots__ = ("_delivered", "_feed", "_frame", "heard", "library", "position")

    def __init__(
        self,
        streams: Streams,
        credential: str,
        feed: ChangeFeed,
        library: Library,
        position: int,
        frame: Frame,
        delivered: Delivered,
    ) -> None:
        super().__init__(streams, credential)
        self.library, self.position, self.heard = library, position, 0
        self._feed, self._frame, self._delivered = feed, frame, delivered

    async def catch_up(self) -> bool:
        self._feed.join(self)
        while True:
            heard = self.heard
            page = await self._feed.read(self.library, self.position, _PAGE)
            for version in page:
                self.position = version.from_pos
                if not self.push(self._frame(version)):
                    await self._delivered(self.position)
                    return False
            if page:
                await self._delivered(self.position)
            elif heard == self.heard:
                return True

    def tell(self) -> None:
        self.heard += 1
        self.drained()

    def leave(self) -> None:
        """It stays with its feed, which only tells it to look."""

    def gone(self) -> None:
        super().gone()
        self._feed.forget(self)


class ChangeFeed:
    """All devices that listen in this process, by library."""

    def __init__(self, database: Database, tail: Tail, reads: Reads) -> None:
        self._database, self._tail, self._reads = database, tail, reads
        self._streams: dict[Library, set[ChangeStream]] = {}
        self._waiting: dict[Library, set[asyncio.Future[None]]] = {}
        self._some = asyncio.Event()

    async def read(self, library: Library, after: int, limit: int) -> list[Version]:
        return await library_read.changes(self._database, *library, after, self._reads.position, limit)

    def stream(
        self,
        streams: Streams,
        credential: str,
        library: Library,
        position: int,
        frame: Frame,
        delivered: Delivered,
    ) -> ChangeStream:
        return ChangeStream(streams, credential, self, library, position, frame, delivered)

    def join(self, stream: ChangeStream) -> None:
        self._streams.setdefault(stream.library, set()).add(stream)
        self._some.set()

    def forget(self, stream: ChangeStream) -> None:
        mine = self._streams.get(stream.library, set())
        mine.discard(stream)
        if not mine:
            self._streams.pop(stream.library, None)

    async def page(
        self, library: Library, after: int, limit: int, wait_s: float, stopping: asyncio.Event
    ) -> Sequence[Version]:
        """Changes behind a position; where there are none, the first that come within a time."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(library, set()).add(future)
        self._some.set()
        stop = asyncio.create_task(stopping.wait())
        try:
            found = await self.read(library, after, limit)
            if found or not wait_s:
                return found
            both: set[asyncio.Future[None] | asyncio.Task[bool]] = {future, stop}
            await asyncio.wait(both, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            return await self.read(library, after, limit)
        finally:
            stop.cancel()
            self._waiting[library].discard(future)
            if not self._waiting[library]:
                del self._waiting[library]

    async def run(self) -> None:
        """Serves until cancelled; while nobody listens the log goes by unread."""
        while True:
            await self._some.wait()
            self._some.clear()
            subscription = self._tail.subscribe(self._tail.position, contexts=frozenset({"library"}))
            try:
                async for page in subscription:
                    if not self._streams and not self._waiting:
                        break
                    await self._reads.reached(page[-1].position, _REACHED_S)
                    await self._tell({(one.tenant, one.metadata.owner) for one in page})
            finally:
                subscription.close()

    async def _tell(self, libraries: set[Library]) -> None:
        turn = 0
        for library in libraries:
            for future in self._waiting.get(library, ()):
                if not future.done():
                    future.set_result(None)
            for stream in list(self._streams.get(library, ())):
                stream.tell()
                turn += 1
                if turn % _BREATH == 0:
                    await asyncio.sleep(0)
