"""The event feed as it goes on: one subscription to the tail for all clients, while there are any."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from domain import messages
from infra.eventstore.store import Store
from infra.tail import Tail
from services.gateway import topics
from services.gateway.feeds_shapes import shown, shown_topic
from services.gateway.streams import Stream, Streams, encode, frame

_PAGE = 200
_PIECE = 64 * 1024
#: So many clients are told before somebody else has a turn on the loop.
_BREATH = 500


class Wish(NamedTuple):
    """What a client reads; no topics are all."""

    tenant: str
    topics: tuple[str, ...]

    def has(self, recorded: messages.Recorded) -> bool:
        return recorded.tenant == self.tenant and topics.wants(self.topics, shown_topic(recorded))


class EventStream(Stream):
    """One client; `position` is what it was sent, or need not be sent."""

    __slots__ = ("_feed", "live", "position", "wish")

    def __init__(self, streams: Streams, principal: str, feed: EventFeed, wish: Wish, position: int) -> None:
        super().__init__(streams, principal)
        self.wish, self.position = wish, position
        self.live = False
        self._feed = feed

    def beat(self) -> bytes:
        """Moves the client on in a log in which others write."""
        if self.live:
            self.position = max(self.position, self._feed.told)
        return b":\nid: %b\n\n" % self._feed.id(self.position).encode()

    async def catch_up(self) -> bool:
        self._feed.join(self)
        while self.position < self._feed.position:
            for recorded in await self._feed.read(self.position):
                self.position = recorded.position
                if self.wish.has(recorded) and not self.push(self._feed.frame(recorded)):
                    return False
        self.live = True
        return True

    def tell(self, piece: Piece) -> None:
        if not self.live or piece.last <= self.position:
            return
        if self.position < piece.first:
            self.position = piece.last
            if self.push(piece.body):
                return
        self.lag()  # there is no room for more, or it has a part of this already

    def leave(self) -> None:
        self.live = False

    def gone(self) -> None:
        super().gone()
        self._feed.forget(self)


class Piece(NamedTuple):
    """Frames of events from one position to another."""

    first: int
    last: int
    body: bytes


class EventFeed:
    """All clients of the event feed in this process. `position` is what is being told, `told` what was."""

    def __init__(self, store: Store, tail: Tail, epoch: int) -> None:
        self.position = self.told = 0
        self._store, self._tail, self._epoch = store, tail, epoch
        self._streams: dict[Wish, set[EventStream]] = {}
        self._some = asyncio.Event()

    # What streams use.

    def stream(self, streams: Streams, principal: str, wish: Wish, position: int) -> EventStream:
        return EventStream(streams, principal, self, wish, position)

    def join(self, stream: EventStream) -> None:
        if not self._streams:
            self.position = self.told = self._tail.position
            self._some.set()
        self._streams.setdefault(stream.wish, set()).add(stream)

    def forget(self, stream: EventStream) -> None:
        mine = self._streams.get(stream.wish, set())
        mine.discard(stream)
        if not mine:
            self._streams.pop(stream.wish, None)

    async def read(self, after: int) -> list[messages.Recorded]:
        return await self._store.read(after, _PAGE, until=self.position)

    def frame(self, recorded: messages.Recorded) -> bytes:
        return frame(None, encode(shown(recorded)), self.id(recorded.position))

    def id(self, position: int) -> str:
        return f"{self._epoch}.{position}"

    # What it does all the time.

    async def run(self) -> None:
        """Serves until cancelled; without clients the log goes by unread."""
        while True:
            await self._some.wait()
            self._some.clear()
            subscription = self._tail.subscribe(self.position)
            try:
                async for page in subscription:
                    if not self._streams:
                        break
                    await self._tell(page)
            finally:
                subscription.close()

    async def _tell(self, page: Sequence[messages.Recorded]) -> None:
        self.position = page[-1].position  # who joins from here on reads this page by itself
        turn = 0
        for wish in list(self._streams):
            for piece in self._pieces(page, wish):
                for stream in list(self._streams.get(wish, ())):
                    stream.tell(piece)
                    turn += 1
                    if turn % _BREATH == 0:
                        await asyncio.sleep(0)
        self.told = self.position

    def _pieces(self, page: Sequence[messages.Recorded], wish: Wish) -> Iterator[Piece]:
        """Not much larger than what a client's connection buffers."""
        first, body = 0, bytearray()
        for recorded in page:
            if not wish.has(recorded):
                continue
            first = first or recorded.position
            body += self.frame(recorded)
            if len(body) >= _PIECE:
                yield Piece(first, recorded.position, bytes(body))
                first, body = 0, bytearray()
        if body:
            yield Piece(first, page[-1].position, bytes(body))
