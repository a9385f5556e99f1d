"""A body on its way from its connection to the disk: buffers that are filled on one side while threads work on what is
in others."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from infra.buffers import PAGE, POOL
from infra.lanes import Lane, Work
from services.gateway import bodies
from services.gateway.cycle import BODY

#: Works in no order that are done at once: a disk is faster where it knows what comes next.
_AT_ONCE = 4


class _Buffer:
    """`taken` of what is `filled` was given to threads, and so many works of theirs are `pending`."""

    __slots__ = ("filled", "full", "pending", "taken", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.filled = self.taken = self.pending = 0
        self.full = False

    @property
    def is_done(self) -> bool:
        return self.full and self.taken == self.filled and not self.pending


class Piece(NamedTuple):
    """Some bytes of a body, which stay as they are until all works on them are done."""

    data: memoryview
    buffer: Any


class Intake:
    """The body of one request. Its bytes stand in their buffers as their places in the file stand in pages."""

    def __init__(self, length: int, offset: int = 0, lanes: int = 1) -> None:
        """`length` is how much is expected, and `offset` where in the file it goes; `lanes` are for works in order."""
        self._loop = asyncio.get_running_loop()
        self._lent = POOL.lend(length)
        self._free = deque(_Buffer(view) for view in self._lent.buffers)
        self._filling: _Buffer | None = self._free.popleft()
        self._filling.filled = self._filling.taken = offset % PAGE
        self._ready: deque[_Buffer] = deque()
        self._lanes = [Lane() for _ in range(lanes)]
        self._loose = itertools.cycle([Lane() for _ in range(_AT_ONCE)])
        self._turn = threading.Lock()
        self._news = asyncio.Event()
        self._outstanding = 0
        self._held: _Buffer | None = None  # of the piece that the taker has in its hands
        self._failure: BaseException | None = None
        self._broken: BaseException | None = None
        self._ended = self._settling = self._closed = False
        self.thirsty: Callable[[], None] = lambda: None
        """Called when there is room again."""

    # the side that fills

    @property
    def room(self) -> memoryview | None:
        """Where the next bytes go; None until something else has left."""
        buffer = self._filling
        return None if buffer is None else buffer.view[buffer.filled :]

    def came(self, count: int) -> None:
        """So many bytes stand where there was room."""
        buffer = self._filling
        assert buffer is not None
        buffer.filled += count
        if buffer.filled == len(buffer.view):
            with self._turn:
                buffer.full = True
                self._ready.append(buffer)
                self._filling = self._free.popleft() if self._free else None
            self._news.set()

    def put(self, data: bytes | bytearray | memoryview) -> int:
        """Copies what there is room for; answers how much that was."""
        view, done = memoryview(data), 0
        while done < len(view) and (room := self.room) is not None:
            count = min(len(room), len(view) - done)
            room[:count] = view[done : done + count]
            self.came(count)
            done += count
        return done

    def end(self) -> None:
        """All has come."""
        self._ended = True
        self._news.set()

    def broke_off(self, error: BaseException) -> None:
        """No more comes, though it should."""
        self._broken = error
        self._news.set()

    # the side that takes

    async def next(self, quiet_s: float | None = None) -> Piece | None:
        """A buffer's bytes; fewer at the end, and when no buffer became full for so long: none at all, where nothing
        came. None when all was taken. What no work was asked for of the piece before is lost.

        Raises what a work has raised, and, once all that came was taken, bodies.Disconnected and other ends.
        """
        self._let_go()
        while True:
            self._news.clear()
            if self._failure is not None:
                raise self._failure
            if self._ready:
                piece = self._take(self._ready.popleft())
                if piece.data:
                    return piece
                self._let_go()
            elif self._ended or self._broken is not None:
                return self._last()
            elif await self._is_quiet(quiet_s) and not self._ready and self._filling is not None:
                return self._take(self._filling)

    def _last(self) -> Piece | None:
        piece = None if self._filling is None else self._take(self._filling)
        if piece is not None and piece.data:
            return piece
        if self._broken is not None:
            raise self._broken
        return None

    async def _is_quiet(self, quiet_s: float | None) -> bool:
        try:
            async with asyncio.timeout(quiet_s):
                await self._news.wait()
        except TimeoutError:
            return True
        return False

    def _take(self, buffer: _Buffer) -> Piece:
        data = buffer.view[buffer.taken : buffer.filled]
        with self._turn:
            buffer.taken = buffer.filled
            buffer.pending += 1
        self._held = buffer
        return Piece(data, buffer)

    def _let_go(self) -> None:
        buffer, self._held = self._held, None
        if buffer is not None:
            with self._turn:
                buffer.pending -= 1
                self._spare(buffer)
            if self._filling is None and self._free:
                self._wake()

    def work(self, piece: Piece, loose: Work | None, *works: Work) -> None:
        """One for each lane, in which they are done in their order; and one that is done in any."""
        placed = list(zip(self._lanes, works, strict=True))
        if loose is not None:
            placed.append((next(self._loose), loose))
        with self._turn:
            piece.buffer.pending += len(placed)
            self._outstanding += len(placed)
        for lane, work in placed:
            lane.put(partial(self._do, piece.buffer, work))

    async def settled(self) -> None:
        """All works are done. Raises what one of them has raised."""
        self._settling = True
        while self._outstanding:
            self._news.clear()
            if self._outstanding:
                await self._news.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """The buffers may be somebody else's once the works are done."""
        with self._turn:
            self._closed = True
            over = not self._outstanding
        if over:
            POOL.give_back(self._lent)

    # in threads

    def _do(self, buffer: _Buffer, work: Work) -> None:
        try:
            if self._failure is None:
                work()
        except BaseException as error:
            self._failure = error
        with self._turn:
            buffer.pending -= 1
            self._outstanding -= 1
            self._spare(buffer)
            over = not self._outstanding
            wake = self._failure is not None or (over and self._settling) or (self._filling is None and self._free)
            closed = self._closed
        if closed and over:
            POOL.give_back(self._lent)
        elif wake and not closed:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._wake)

    def _spare(self, buffer: _Buffer) -> None:
        if buffer.is_done:
            buffer.filled = buffer.taken = 0
            buffer.full = False
            self._free.append(buffer)

    def _wake(self) -> None:
        with self._turn:
            dry = self._filling is None and bool(self._free) and not self._closed
            if dry:
                self._filling = self._free.popleft()
        if dry:
            self.thirsty()
        self._news.set()


@asynccontextmanager
async def coming(call: Any, length: int, offset: int = 0, lanes: int = 1) -> AsyncIterator[Intake]:
    """The body of a call, which comes from now on, without anybody waiting for it."""
    intake = Intake(length, offset, lanes)
    cycle = call.scope.get("extensions", {}).get(BODY)
    inlet = None if cycle is None else cycle.divert(intake)
    feeding = None if inlet is not None else asyncio.create_task(_feed(call.receive, intake))
    try:
        yield intake
    finally:
        if inlet is not None:
            inlet.drop()
        if feeding is not None:
            feeding.cancel()
        intake.close()


async def _feed(receive: Any, intake: Intake) -> None:
    """Where the bytes cannot go straight into the buffers."""
    room, more = asyncio.Event(), True
    intake.thirsty = room.set
    try:
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise bodies.Disconnected
            data, more = memoryview(message.get("body", b"")), message.get("more_body", False)
            while data:
                room.clear()
                data = data[intake.put(data) :]
                if data:
                    await room.wait()
    except Exception as error:
        intake.broke_off(error)
    else:
        intake.end()
