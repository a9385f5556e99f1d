"""Bytes that come in order: they go on where an upload's beginning ends, and what came counts however it breaks off."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from domain import errors, uploads
from infra.uploads import Busy, Continuation
from services.gateway import bodies
from services.gateway.routes import Call
from services.gateway.upload_sessions import Found, files_of, find

_GATHER = 1 << 20
#: How long what has come may wait before it counts.
_NOTE_S = 0.25
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
        try:
            writer = _Writer(call, found, file, held=checksum is not None)
            await writer.begin()
            await _pour(call, writer, leave, checksum)
        finally:
            await asyncio.shield(asyncio.to_thread(file.close))
        return await find(call, id)


class _Writer:
    """Writes pieces into their chunks, and notes what has come; where `held`, only when told to in the end."""

    def __init__(self, call: Call, found: Found, file: Continuation, *, held: bool) -> None:
        self._db, self._found, self._file, self._held = call.api.process.db, found, file, held
        self._id = uuid.uuid4()
        self._index, self._came = divmod(found.offset, found.opened.chunk_size)
        self._mine: bool | None = None  # whether the chunk is ours to write; None before it was asked
        self._digest = ""
        self._waiting: list[tuple[int, str, bool, int]] = []
        self._noted_at = asyncio.get_running_loop().time()

    @property
    def offset(self) -> int:
        return self._index * self._found.opened.chunk_size + self._came

    @property
    def left(self) -> int:
        return self._found.opened.size - self.offset

    async def begin(self) -> None:
        """Raises Refused where what had come is not any more what it was, and is waited for again."""
        if self._came == 0:
            return
        self._digest = await asyncio.to_thread(self._file.begin, self._index, self._came)
        if self._found.partial is not None and self._digest != self._found.partial[1]:
            await self._db.execute(
                "delete from undrift.upload_chunks where upload = $1 and index = $2 and received_at is null",
                self._found.id,
                self._index,
            )
            raise Refused(409, "Some of what had come was damaged; ask where the upload goes on")

    async def take(self, data: bytes) -> None:
        """Raises errors.StorageFull; what was taken before counts."""
        opened, view = self._found.opened, memoryview(data)
        while view:
            whole = uploads.chunk_length(opened.size, opened.chunk_size, self._index)
            part = view[: whole - self._came]
            if self._mine is None:
                self._mine = await self._enter()
            if self._mine:
                self._digest = await asyncio.to_thread(self._file.write, part)
            self._came += len(part)
            view = view[len(part) :]
            if self._came == whole:
                await self._note(whole=True)
                self._index, self._came, self._mine = self._index + 1, 0, None
        if asyncio.get_running_loop().time() - self._noted_at > _NOTE_S:
            await self.note()

    async def _enter(self) -> bool:
        """A chunk that has come whole already, by another way, stays as it is."""
        if self._came == 0:
            self._file.begin(self._index)
        mine = await self._db.fetchval(
            "insert into undrift.upload_chunks (upload, index, writer)"
            " select id, $2, $3 from undrift.uploads where id = $1 on conflict (upload, index)"
            " do update set writer = excluded.writer where upload_chunks.received_at is null returning index",
            self._found.id,
            self._index,
            self._id,
        )
        return mine is not None

    async def note(self) -> None:
        """What has been taken counts from now on."""
        if self._came and self._mine:
            await self._note(whole=False)

    async def _note(self, *, whole: bool) -> None:
        self._waiting.append((self._index, self._digest if self._mine else "", whole, self.offset))
        if not self._held:
            await self.settle()

    async def settle(self) -> None:
        """Carries out the notes."""
        for index, digest, whole, offset in self._waiting:
            await self._db.execute(
                "with chunk as (update undrift.upload_chunks set blake3 = $3,"
                " received_at = case when $4 then clock_timestamp() end"
                " where upload = $1 and index = $2 and received_at is null and $3 <> '')"
                " update undrift.uploads set partial_bytes = $5, last_activity = clock_timestamp() where id = $1",
                self._found.id,
                index,
                digest,
                whole,
                offset,
            )
        self._waiting.clear()
        self._noted_at = asyncio.get_running_loop().time()


async def _pour(call: Call, writer: _Writer, leave: asyncio.Event, checksum: tuple[str, bytes] | None) -> None:
    hasher = None if checksum is None else hashlib.new(checksum[0], usedforsecurity=False)
    left = writer.left
    try:
        async with aclosing(_pieces(call, leave)) as pieces:
            async for piece in pieces:
                if len(piece) > left:
                    raise errors.TooLarge("The body has more bytes than the upload has left")
                left -= len(piece)
                if hasher is not None:
                    await asyncio.to_thread(hasher.update, piece)
                await writer.take(piece)
                if not piece:
                    await writer.note()
    except (bodies.Disconnected, errors.Error):
        if hasher is None:
            await asyncio.shield(writer.note())
        raise
    if checksum is not None and hasher is not None and hasher.digest() != checksum[1]:
        raise Refused(460, "The body does not have its checksum")
    await writer.note()
    await writer.settle()


async def _pieces(call: Call, leave: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """The body in pieces of about 1 MiB; what has come when nothing comes for a moment, or no more; an empty one
    where that was nothing new. Raises Disconnected, and Refused when somebody else goes on."""
    left = asyncio.create_task(leave.wait())
    coming: asyncio.Task[Any] | None = None
    gathered, more, quiet = bytearray(), True, True
    try:
        while more:
            coming = coming or asyncio.ensure_future(call.receive())
            await asyncio.wait({coming, left}, timeout=None if quiet else _NOTE_S, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                raise Refused(423, "Another request goes on with this upload")
            if coming.done():
                message, coming = coming.result(), None
                if message["type"] != "http.request":
                    yield bytes(gathered)
                    raise bodies.Disconnected
                gathered += message.get("body", b"")
                more = message.get("more_body", False)
                quiet = False
            elif gathered:
                yield bytes(gathered)
                gathered.clear()
            else:
                yield b""
                quiet = True
            if len(gathered) >= _GATHER or not more:
                yield bytes(gathered)
                gathered.clear()
    finally:
        for task in (left, coming):
            if task is not None:
                task.cancel()
