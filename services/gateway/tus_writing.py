"""Bytes that come in order: they go on where an upload's beginning ends, and what came counts however it breaks off."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from domain import errors, uploads
from infra.uploads import Busy, Continuation, Part
from services.gateway import bodies
from services.gateway.intake import Intake, Piece, coming
from services.gateway.routes import Call
from services.gateway.upload_sessions import SOON, Found, files_of, find

#: How long what has come may wait before it counts.
_NOTE_S = 0.25
#: How many chunks are claimed at once: asking for each takes longer than writing it.
_CLAIMED = 4
#: How long a request waits for the one before it to leave.
_LEAVE_S = 5.0


class Refused(Exception):
    """An answer of the protocol's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class _Turn:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.leave: asyncio.Event | None = None


_TURNS: WeakValueDictionary[str, _Turn] = WeakValueDictionary()


@asynccontextmanager
async def turn(id: str) -> AsyncIterator[asyncio.Event]:
    """One writer at a time. Whoever comes later asks the one before to leave, whose connection may be dead without
    knowing; it leaves when the event is set. Raises Refused."""
    mine = _TURNS.setdefault(id, _Turn())
    if mine.leave is not None:
        mine.leave.set()
    try:
        async with asyncio.timeout(_LEAVE_S):
            await mine.lock.acquire()
    except TimeoutError:
        raise Refused(423, "Another request is sending this upload") from None
    mine.leave = leave = asyncio.Event()
    try:
        yield leave
    finally:
        mine.leave = None
        mine.lock.release()


async def receive(call: Call, id: str, offset: int, checksum: tuple[str, bytes] | None) -> Found:
    """Takes the request's body from an offset on; answers the upload with it. With a checksum all of the body counts,
    or nothing.

    Raises Refused, errors.Gone for an upload that is over, TooLarge, StorageFull, Disconnected.
    """
    async with turn(id) as leave:
        found = await find(call, id)
        if found.opened.parts:
            raise errors.Forbidden("An upload that was joined from parts takes no bytes of its own")
        if found.state.over and found.state.status != "completed":
            raise errors.Gone(f"The upload is {found.state.status}")
        if offset != found.offset:
            raise Refused(409, f"The upload goes on at {found.offset}")
        if found.state.over:
            return found
        announced = call.fields.get(b"content-length")
        if announced is not None and int(announced) > found.opened.size - offset:
            raise errors.TooLarge(f"The upload has {found.opened.size} bytes")
        try:
            file = await asyncio.to_thread(files_of(call).continuation, id, found.opened.chunk_size)
        except FileNotFoundError:
            raise errors.Gone("The upload is over") from None
        except Busy:
            raise Refused(423, "Another request is sending this upload") from None
        hashes = 1 if checksum is None else 2
        try:
            async with coming(call, found.opened.size - offset, offset, hashes) as intake:
                writer = _Writer(call, found, file, intake)
                await writer.begin()
                await _pour(writer, intake, leave, checksum)
        finally:
            await asyncio.shield(asyncio.to_thread(file.close))
        return await find(call, id)


class _Chunk(NamedTuple):
    """A chunk that was given to threads to its end; `part` is None where it had come whole by another way."""

    number: int
    part: Part | None


class _Writer:
    """Gives pieces to threads that write them into their chunks, and notes what has come."""

    def __init__(self, call: Call, found: Found, file: Continuation, intake: Intake) -> None:
        self._db, self._found, self._file, self._intake = call.api.process.db, found, file, intake
        self._id = uuid.uuid4()
        self._index, self._came = divmod(found.offset, found.opened.chunk_size)
        self._part: Part | None = None  # None where the chunk is not ours to write
        self._mine: dict[int, bool] = {}
        self._given: deque[_Chunk] = deque()
        self._noted, self._noted_at = found.offset, asyncio.get_running_loop().time()
        self.left = found.opened.size - found.offset

    async def begin(self) -> None:
        """Raises Refused where what had come is not any more what it was, and is waited for again."""
        self._part = part = await asyncio.to_thread(self._file.begin, self._index, self._came)
        if self._came and self._found.partial is not None and part.digest() != self._found.partial[1]:
            await self._db.execute(
                "delete from undrift.upload_chunks where upload = $1 and index = $2 and received_at is null",
                self._found.id,
                self._index,
            )
            raise Refused(409, "Some of what had come was damaged; ask where the upload goes on")

    async def take(self, piece: Piece, hasher: Any) -> None:
        opened, data = self._found.opened, piece.data
        self.left -= len(data)
        while data:
            if self._index not in self._mine:
                await self._claim()
            whole = uploads.chunk_length(opened.size, opened.chunk_size, self._index)
            some = data[: whole - self._came]
            data, self._came = data[len(some) :], self._came + len(some)
            part = self._part if self._mine[self._index] else None
            last = self._came == whole
            works = () if hasher is None else (partial(hasher.update, some),)
            if part is None:
                self._intake.work(piece, None, _nothing, *works)
            else:
                store, mix = part.place(some, last=last)
                self._intake.work(piece, store, mix, *works)
            if last:
                self._go_on(part)

    def _go_on(self, part: Part | None) -> None:
        self._given.append(_Chunk(self._index, part))
        if part is None:
            self._file.skip()
        self._index, self._came = self._index + 1, 0
        self._part = self._file.after(self._index)

    async def _claim(self) -> None:
        """The next few chunks. One that has come whole already, by another way, stays as it is."""
        last = uploads.chunk_count(self._found.opened.size, self._found.opened.chunk_size) - 1
        wanted = range(self._index, min(self._index + _CLAIMED, last + 1))
        rows = await self._db.fetch(
            "insert into undrift.upload_chunks (upload, index, writer)"
            f" select id, wanted, $3 from undrift.uploads, unnest($2::int[]) as wanted where id = $1 and {SOON}"
            " on conflict (upload, index) do update set writer = excluded.writer"
            " where upload_chunks.received_at is null returning index",
            self._found.id,
            list(wanted),
            self._id,
        )
        ours = {row["index"] for row in rows}
        self._mine = {index: index in ours for index in wanted}

    @property
    def is_due(self) -> bool:
        late = asyncio.get_running_loop().time() - self._noted_at > _NOTE_S
        return late and self._noted < self._found.opened.size - self.left

    async def note(self) -> None:
        """What is in the file by now counts from now on."""
        whole, opened = [], self._found.opened
        while self._given and ((part := self._given[0].part) is None or part.over):
            whole.append(self._given.popleft())
        index, part = self._given[0] if self._given else _Chunk(self._index, self._part)
        noted = [(one.number, one.part.digest(), True) for one in whole if one.part is not None]
        came, digest = (0, "") if part is None else part.came()
        if came:
            noted.append((index, digest, False))
        if settled := [one.part for one in whole if one.part is not None]:
            await asyncio.to_thread(self._file.settle, settled)
        await self._db.execute(
            "with chunk as (update undrift.upload_chunks set blake3 = noted.digest,"
            " received_at = case when noted.whole then clock_timestamp() end"
            " from unnest($2::int[], $3::text[], $4::bool[]) as noted(index, digest, whole)"
            " where upload = $1 and upload_chunks.index = noted.index and received_at is null)"
            " update undrift.uploads set partial_bytes = $5, last_activity = clock_timestamp()"
            f" where id = $1 and {SOON}",
            self._found.id,
            *([one[at] for one in noted] for at in range(3)),
            position := min(opened.size, index * opened.chunk_size + came),
        )
        self._noted, self._noted_at = position, asyncio.get_running_loop().time()


def _nothing() -> None:
    """Some bytes need not be written."""


async def _pour(writer: _Writer, intake: Intake, leave: asyncio.Event, checksum: tuple[str, bytes] | None) -> None:
    hasher = None if checksum is None else hashlib.new(checksum[0], usedforsecurity=False)
    leaving = asyncio.create_task(_left(leave, intake))
    try:
        await _take_all(writer, intake, hasher)
        await intake.settled()
    except (bodies.Disconnected, Refused, errors.Error):
        if hasher is None:
            await asyncio.shield(_note_rest(writer, intake))
        raise
    finally:
        leaving.cancel()
    if checksum is not None and hasher is not None and hasher.digest() != checksum[1]:
        raise Refused(460, "The body does not have its checksum")
    await writer.note()


async def _take_all(writer: _Writer, intake: Intake, hasher: Any) -> None:
    while (piece := await intake.next(_NOTE_S)) is not None:
        if len(piece.data) > writer.left:
            raise errors.TooLarge("The body has more bytes than the upload has left")
        await writer.take(piece, hasher)
        if hasher is None and writer.is_due:
            await writer.note()


async def _note_rest(writer: _Writer, intake: Intake) -> None:
    with contextlib.suppress(errors.Error):
        await intake.settled()
    await writer.note()


async def _left(leave: asyncio.Event, intake: Intake) -> None:
    """Somebody else goes on."""
    await leave.wait()
    intake.broke_off(Refused(423, "Another request goes on with this upload"))
