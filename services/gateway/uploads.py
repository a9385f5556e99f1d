"""Uploads into a library: chunks in any order and more than once, resumed after anything, checked as a whole."""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from base64 import b64encode
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from msgspec import Meta, Struct

from domain import errors, uploads
from infra.uploads import Sink
from services.gateway import library as library_routes
from services.gateway import sessions_attach, upload_sessions
from services.gateway.devices import DEVICE
from services.gateway.dialects import PINAKES, Reply, Timestamp, timestamp_ms
from services.gateway.intake import Intake, coming
from services.gateway.routes import Call, Parameter, Route
from services.gateway.upload_sessions import SOON, Found, Wanted, files_of, find

_DIGESTS = (b"content-digest", b"x-chunk-hash")
_DIGEST = re.compile(rb"sha-256=:([A-Za-z0-9+/=]{44}):")


class Create(Struct):
    target_path: str
    expected_hash: str
    expected_size: Annotated[int, Meta(ge=0)]
    chunk_size: Annotated[int, Meta(ge=uploads.CHUNK_MIN, le=uploads.CHUNK_MAX)] = uploads.CHUNK
    device_id: str | None = None
    local_mtime: str | None = None


class Upload(Struct):
    """`expected_hash` is null where the client declared none, as it may over tus."""

    id: str
    target_path: str
    expected_hash: str | None
    expected_size: int
    chunk_size: int
    chunk_count: int
    status: str
    created_at: Timestamp
    expires_at: Timestamp
    received_chunks: list[int]
    received_bytes: int


class Received(Struct):
    chunk_index: int
    received: bool


class Completed(Struct):
    """`sequence` is where in the feed the bytes are; with `conflict_id` they are a side of that conflict instead."""

    status: str
    path: str
    content_hash: str
    file_size: int
    sequence: int
    conflict_id: str | None


def _shape(call: Call, found: Found) -> Upload:
    opened = found.opened
    count = uploads.chunk_count(opened.size, opened.chunk_size)
    over = found.state.status == "completed"
    status = "in_progress" if (found.received or found.partial) and not found.state.over else found.state.status
    return Upload(
        id=found.id,
        target_path=opened.path,
        expected_hash=opened.hash,
        expected_size=opened.size,
        chunk_size=opened.chunk_size,
        chunk_count=count,
        status=status,
        created_at=timestamp_ms(found.opened_at),
        expires_at=timestamp_ms(upload_sessions.expires_at(call, found)),
        received_chunks=list(range(count)) if over else sorted(found.received),
        received_bytes=opened.size if over else found.received_bytes,
    )


# Opening.


async def create(call: Call) -> Any:
    body = await call.body(Create)
    done = await call.earlier(uploads)
    if done is None:
        done = await upload_sessions.open_(call, _wanted(body))
    return call.reply(_shape(call, await find(call, done.events[0].id)), done.position)


def _wanted(body: Create) -> Wanted:
    return Wanted(
        path=body.target_path,
        size=body.expected_size,
        hash=body.expected_hash,
        chunk_size=body.chunk_size,
        device=body.device_id,
        mtime=body.local_mtime,
    )


async def show(call: Call) -> Any:
    return call.reply(_shape(call, await find(call, call.path("upload_id"))), call.api.reads.position)


# Chunks.


async def put_chunk(call: Call) -> Any:
    id = call.path("upload_id")
    opened = await upload_sessions.taking(call, id)
    text = call.path("index")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise errors.Invalid("The index of a chunk is a number from 0 on")
    index = int(text)
    length = uploads.chunk_length(opened.size, opened.chunk_size, index)
    announced = call.fields.get(b"content-length")
    if announced is not None and int(announced) != length:
        raise errors.Invalid(f"Chunk {index} has {length} bytes")
    await _receive(call, id, opened.chunk_size, index, length)
    return call.reply(Received(index, True), call.api.reads.position)


async def _receive(call: Call, id: str, chunk_size: int, index: int, length: int) -> None:
    """The body comes while the chunk is claimed, and the file opened."""
    sha = hashlib.sha256() if any(name in call.fields for name in _DIGESTS) else None
    async with coming(call, length, index * chunk_size, 1 if sha is None else 2) as intake:
        writer = uuid.uuid4()
        sink, first = await _claim(call, id, chunk_size, index, writer)
        whole = False
        try:
            await pour(intake, sink, length, sha)
            _check_digest(call, sink, sha)
            whole = True
        finally:
            await asyncio.shield(_note(call, id, index, writer, sink, whole, first))


async def _claim(call: Call, id: str, chunk_size: int, index: int, writer: uuid.UUID) -> tuple[Sink, bool]:
    """Who comes first writes in place, anybody else beside it: what has been received is never half overwritten."""
    files = files_of(call)
    opening = asyncio.ensure_future(asyncio.to_thread(files.sink, id, index, chunk_size))  # mostly it is ours
    mine = None
    try:
        mine = await call.api.process.db.fetchval(
            "insert into undrift.upload_chunks (upload, index, writer)"
            f" select id, $2, $3 from undrift.uploads where id = $1 and {SOON} on conflict do nothing returning index",
            id,
            index,
            writer,
        )
        if mine is not None:
            return await opening, True
        await upload_sessions.still_taking(call, id)
        return await asyncio.to_thread(files.sink, id, index, chunk_size, f"{index}.{writer}"), False
    except FileNotFoundError:
        await upload_sessions.still_taking(call, id)
        raise errors.InvalidState("The upload is over") from None
    finally:
        if mine is None:
            opening.add_done_callback(_unused)


def _unused(opening: asyncio.Future[Sink]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def _note(call: Call, id: str, index: int, writer: uuid.UUID, sink: Sink, whole: bool, first: bool) -> None:
    """Where somebody else's came into place meanwhile, parts of it may stand in ours: then theirs is what is noted, and
    the completion finds out."""
    database, ending = call.api.process.db, asyncio.to_thread(_end, sink, whole)
    if not (whole and first):
        await ending
    if whole:
        noting = database.execute(
            "with heard as (update undrift.uploads set last_activity = clock_timestamp() where id = $1)"
            " update undrift.upload_chunks set blake3 = $3, writer = $4, received_at = clock_timestamp()"
            f" where upload = $1 and index = $2 and (writer = $4 or not $5) and {SOON}",
            id,
            index,
            sink.digest(),
            writer,
            first,
        )
        await (asyncio.gather(ending, noting) if first else noting)
    elif first:
        await database.execute(
            "delete from undrift.upload_chunks where upload = $1 and index = $2 and writer = $3"
            " and received_at is null",
            id,
            index,
            writer,
        )


def _end(sink: Sink, whole: bool) -> None:
    try:
        if whole:
            sink.settle()
    finally:
        sink.close()


async def pour(intake: Intake, sink: Sink, length: int, sha: Any = None) -> None:
    """A body into a sink. Raises errors.Invalid for another length, Disconnected where it breaks off."""
    total = 0
    while (piece := await intake.next()) is not None:
        data = piece.data
        total += len(data)
        if total > length:
            raise errors.Invalid(f"The body has more than {length} bytes")
        store, mix = sink.place(data)
        intake.work(piece, store, mix, *(() if sha is None else (partial(sha.update, data),)))
    await intake.settled()
    if total != length:
        raise errors.Invalid(f"The body has {total} bytes, and {length} were expected")


def _check_digest(call: Call, sink: Sink, hasher: Any) -> None:
    """`Content-Digest` (sha-256) and `X-Chunk-Hash` (BLAKE3 or SHA-256) are held to, where they are given."""
    if hasher is None:
        return
    sha = hasher.digest()
    match = _DIGEST.search(call.fields.get(b"content-digest", b""))
    if match is not None and match[1] != b64encode(sha):
        raise errors.Invalid("The chunk does not have its Content-Digest")
    if (given := call.fields.get(b"x-chunk-hash")) is not None:
        wanted = library_routes.hash_of(given.decode("latin-1"))
        if wanted not in (sink.digest(), sha.hex()):
            raise errors.Invalid("The chunk does not have its X-Chunk-Hash")


# Completing.


async def complete(call: Call) -> Any:
    found = await upload_sessions.completed(call, call.path("upload_id"))
    completed, opened = found.state.completed, found.opened
    assert completed is not None
    answer = Completed(
        status="completed",
        path=opened.path,
        content_hash=completed.hash,
        file_size=opened.size,
        sequence=completed.sequence,
        conflict_id=completed.conflict,
    )
    return call.reply(answer, max(completed.sequence, call.api.reads.position))


async def cancel(call: Call) -> Any:
    done = await upload_sessions.cancelled(call, call.path("upload_id"))
    return Reply(204, b"", [(b"undrift-position", b"%d" % done.position)])


_READ = (400, 401, 403, 404, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503, 507)
_BASE = "/api/v1/sync/upload"
_ONE = _BASE + "/{upload_id:str}"

ROUTES: Sequence[Route] = (
    Route(
        "POST",
        _BASE,
        create,
        PINAKES,
        "Open an upload",
        body=Create,
        query=(*DEVICE, sessions_attach.HEADER),
        answers={200: Upload},
        errors=_WRITE,
    ),
    Route("GET", _ONE, show, PINAKES, "How much of an upload has come", answers={200: Upload}, errors=_READ),
    Route("DELETE", _ONE, cancel, PINAKES, "Cancel an upload", answers={204: None}, errors=_WRITE),
    Route(
        "PUT",
        _ONE + "/chunks/{index:str}",
        put_chunk,
        PINAKES,
        "Send a chunk; any order, as often as need be",
        query=(
            Parameter("Content-Digest", {"type": "string"}, "sha-256 of the chunk (RFC 9530)", where="header"),
            Parameter("X-Chunk-Hash", {"type": "string"}, "BLAKE3 or SHA-256 of the chunk", where="header"),
        ),
        answers={200: Received},
        errors=_WRITE,
    ),
    Route(
        "POST",
        _ONE + "/complete",
        complete,
        PINAKES,
        "All has been sent: check it, and put it in the library",
        answers={200: Completed},
        errors=_WRITE,
    ),
)
