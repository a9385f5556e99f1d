"""Uploads into a library: chunks in any order and more than once, resumed after anything, checked as a whole."""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from weakref import WeakValueDictionary

from msgspec import Meta, Struct

from domain import errors, library, messages, uploads
from domain.library import Content
from domain.plans import library as plan
from domain.plans.library import Known
from infra.eventstore.store import Done, Wish
from infra.uploads import Sink, Uploads
from projections import library as library_read
from services.gateway import bodies
from services.gateway import devices as device_routes
from services.gateway import library as library_routes
from services.gateway.devices import DEVICE
from services.gateway.dialects import PINAKES, Reply, Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route
from services.library import Outcome
from services.shelf import Who

_GATHER = 1 << 20
_DIGEST = re.compile(rb"sha-256=:([A-Za-z0-9+/=]{44}):")
_SHOWN = 20
#: One completion of an upload at a time; the others find its outcome.
_COMPLETING: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


class Create(Struct):
    target_path: str
    expected_hash: str
    expected_size: Annotated[int, Meta(ge=0)]
    chunk_size: Annotated[int, Meta(ge=uploads.CHUNK_MIN, le=uploads.CHUNK_MAX)] = uploads.CHUNK
    device_id: str | None = None
    local_mtime: str | None = None


class Upload(Struct):
    id: str
    target_path: str
    expected_hash: str
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


class Found(Struct, frozen=True):
    """An upload as the log has it, and how much of it has come."""

    id: str
    opened: uploads.Opened
    state: uploads.Upload
    opened_at: datetime
    received: dict[int, str]
    last_activity: datetime

    @property
    def received_bytes(self) -> int:
        size, chunk = self.opened.size, self.opened.chunk_size
        return sum(uploads.chunk_length(size, chunk, index) for index in self.received)


def files_of(call: Call) -> Uploads:
    return Uploads(call.api.process.settings.directory / "uploads")


async def find(call: Call, id: str) -> Found:
    """Raises errors.NotFound, for somebody else's too."""
    process = call.api.process
    recorded = await process.store.stream(messages.stream(uploads.STREAM, call.tenant, id))
    if not recorded or recorded[0].metadata.owner != call.principal.owner:
        raise errors.NotFound("There is no such upload", kind="upload")
    state = uploads.initial
    for one in recorded:
        assert isinstance(one.event, uploads.Event)
        state = uploads.evolve(state, one.event)
    assert state.opened is not None
    rows = await process.db.fetch(
        "select index, blake3 from undrift.upload_chunks where upload = $1 and received_at is not null", id
    )
    active = await process.db.fetchval("select last_activity from undrift.uploads where id = $1", id)
    received = {row["index"]: row["blake3"] for row in rows}
    first, last = recorded[0].recorded_at, recorded[-1].recorded_at
    return Found(id, state.opened, state, first, received, active or last)


def _shape(call: Call, found: Found) -> Upload:
    opened = found.opened
    expires = found.last_activity + timedelta(hours=call.api.process.settings.library.upload_hours)
    count = uploads.chunk_count(opened.size, opened.chunk_size)
    over = found.state.status == "completed"
    status = "in_progress" if found.received and not found.state.over else found.state.status
    return Upload(
        id=found.id,
        target_path=opened.path,
        expected_hash=opened.hash,
        expected_size=opened.size,
        chunk_size=opened.chunk_size,
        chunk_count=count,
        status=status,
        created_at=timestamp_ms(found.opened_at),
        expires_at=timestamp_ms(expires),
        received_chunks=list(range(count)) if over else sorted(found.received),
        received_bytes=opened.size if over else found.received_bytes,
    )


# Opening.


async def create(call: Call) -> Any:
    body = await call.body(Create)
    done = await call.earlier(uploads)
    if done is None:
        done = await open_(call, body)
    return call.reply(_shape(call, await find(call, done.events[0].id)), done.position)


async def open_(call: Call, body: Create) -> Done:
    """Raises errors.Invalid, StorageFull where a quota or the disk is full."""
    try:
        path = plan.check_path(body.target_path)
    except plan.BadPath as bad:
        raise errors.Invalid(f"target_path: {bad}") from None
    device, knew = await _device(call, body, path)
    await _check_quota(call, body.expected_size)
    id = str(uuid.uuid4())
    process, owner = call.api.process, call.principal.owner
    await asyncio.to_thread(files_of(call).make, id, body.expected_size)
    await process.db.execute(
        "insert into undrift.uploads (id, tenant, owner, size, chunk_size) values ($1, $2, $3, $4, $5)",
        id,
        call.tenant,
        owner,
        body.expected_size,
        body.chunk_size,
    )
    opened = uploads.Opened(
        path=path,
        hash=library_routes.hash_of(body.expected_hash),
        size=body.expected_size,
        chunk_size=body.chunk_size,
        device=device,
        knew_file=None if knew is None else knew.file,
        knew_hash=None if knew is None else knew.hash,
        mtime=None if body.local_mtime is None else library_routes.time_of(body.local_mtime),
    )
    return await call.execute([Wish(uploads, id, uploads.Open(opened), fresh=True)])


async def _device(call: Call, body: Create, path: str) -> tuple[str | None, Known | None]:
    """Who sends: a device, or a person, who then knows what stands there now."""
    named = body.device_id or call.query().get("device_id")
    try:
        return (await device_routes.of_call(call, named)).row.id, None
    except errors.Invalid:
        await call.caught_up(library.STREAM)
        there = await library_read.at_path(call.api.process.db, call.tenant, call.principal.owner, path)
        return None, None if there is None else Known(there.file, there.hash)


async def _check_quota(call: Call, size: int) -> None:
    settings, database = call.api.process.settings.library, call.api.process.db
    row = await database.fetchrow(
        "select count(*) as open, coalesce(sum(size), 0)::bigint as reserved,"
        " (select coalesce(sum(size), 0)::bigint from undrift.stored where tenant = $1 and owner = $2) as stored"
        " from undrift.uploads where tenant = $1 and owner = $2",
        call.tenant,
        call.principal.owner,
    )
    assert row is not None
    if row["open"] >= settings.upload_sessions:
        raise errors.StorageFull(f"{settings.upload_sessions} uploads are open already; complete or cancel some")
    if settings.quota_bytes and row["stored"] + row["reserved"] + size > settings.quota_bytes:
        raise errors.StorageFull("The library's quota is used up")


async def show(call: Call) -> Any:
    return call.reply(_shape(call, await find(call, call.path("upload_id"))), call.api.reads.position)


# Chunks.


async def put_chunk(call: Call) -> Any:
    found = await find(call, call.path("upload_id"))
    text = call.path("index")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise errors.Invalid("The index of a chunk is a number from 0 on")
    index = int(text)
    length = uploads.chunk_length(found.opened.size, found.opened.chunk_size, index)
    if found.state.over:
        raise errors.InvalidState(f"The upload is {found.state.status}")
    announced = call.fields.get(b"content-length")
    if announced is not None and int(announced) != length:
        raise errors.Invalid(f"Chunk {index} has {length} bytes")
    await _receive(call, found, index, length)
    return call.reply(Received(index, True), call.api.reads.position)


async def _receive(call: Call, found: Found, index: int, length: int) -> None:
    """Who comes first writes in place, anybody else beside it: what has been received is never half overwritten."""
    database, writer = call.api.process.db, uuid.uuid4()
    mine = await database.fetchval(
        "insert into undrift.upload_chunks (upload, index, writer)"
        " select id, $2, $3 from undrift.uploads where id = $1 on conflict do nothing returning index",
        found.id,
        index,
        writer,
    )
    beside = None if mine is not None else f"{index}.{writer}"
    try:
        sink = await asyncio.to_thread(files_of(call).sink, found.id, index * found.opened.chunk_size, beside)
    except FileNotFoundError:
        raise errors.InvalidState("The upload is over") from None
    whole = False
    try:
        await pour(call, sink, length)
        _check_digest(call, sink)
        await asyncio.to_thread(sink.settle)
        whole = True
    finally:
        await asyncio.shield(_note(call, found, index, writer, sink, whole, mine is not None))


async def _note(call: Call, found: Found, index: int, writer: uuid.UUID, sink: Sink, whole: bool, first: bool) -> None:
    database = call.api.process.db
    await asyncio.to_thread(sink.close)
    if whole:
        await database.execute(
            "update undrift.upload_chunks set blake3 = $3, received_at = clock_timestamp()"
            " where upload = $1 and index = $2",
            found.id,
            index,
            sink.digest(),
        )
        await database.execute("update undrift.uploads set last_activity = clock_timestamp() where id = $1", found.id)
    elif first:
        await database.execute(
            "delete from undrift.upload_chunks where upload = $1 and index = $2 and writer = $3"
            " and received_at is null",
            found.id,
            index,
            writer,
        )


async def pour(call: Call, sink: Sink, length: int, exact: bool = True) -> None:
    """The request's body into a sink, in pieces, so that memory stays flat. Raises errors.Invalid for another
    length, Disconnected where it breaks off."""
    sha = hashlib.sha256()
    call.scope["undrift.sha256"] = sha
    gathered = bytearray()
    total, more = 0, True
    while more:
        message = await call.receive()
        if message["type"] != "http.request":
            raise bodies.Disconnected
        gathered += message.get("body", b"")
        more = message.get("more_body", False)
        if total + len(gathered) > length:
            raise errors.Invalid(f"The body has more than {length} bytes")
        if gathered and (len(gathered) >= _GATHER or not more):
            piece, gathered = bytes(gathered), bytearray()
            total += len(piece)
            await asyncio.to_thread(_write, sink, sha, piece)
    if exact and total != length:
        raise errors.Invalid(f"The body has {total} bytes, and {length} were expected")


def _write(sink: Sink, sha: Any, piece: bytes) -> None:
    sink.write(piece)
    sha.update(piece)


def _check_digest(call: Call, sink: Sink) -> None:
    """`Content-Digest` (sha-256) and `X-Chunk-Hash` (BLAKE3 or SHA-256) are held to, where they are given."""
    sha = call.scope["undrift.sha256"].digest()
    match = _DIGEST.search(call.fields.get(b"content-digest", b""))
    if match is not None and match[1] != b64encode(sha):
        raise errors.Invalid("The chunk does not have its Content-Digest")
    if (given := call.fields.get(b"x-chunk-hash")) is not None:
        wanted = library_routes.hash_of(given.decode("latin-1"))
        if wanted not in (sink.digest(), sha.hex()):
            raise errors.Invalid("The chunk does not have its X-Chunk-Hash")


# Completing.


async def complete(call: Call) -> Any:
    id = call.path("upload_id")
    lock = _COMPLETING.setdefault(id, asyncio.Lock())
    async with lock:
        found = await find(call, id)
        if found.state.status != "completed":
            await complete_(call, found)
            found = await find(call, id)
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


async def complete_(call: Call, found: Found) -> None:
    """Checks the whole, keeps it, and says so in the library. Whatever of it was done before is found done."""
    if found.state.over:
        raise errors.InvalidState(f"The upload is {found.state.status}")
    stored = await _stored(call, found)
    who = await _who(call, found)
    content = Content(stored, found.opened.size, found.opened.mtime)
    knew = None
    if found.opened.knew_file is not None:
        knew = Known(found.opened.knew_file, found.opened.knew_hash)
    await call.caught_up(library.STREAM)
    outcome = await library_routes.of_call(call).publish(who, found.opened.path, content, knew)
    library_routes.wrote(call, outcome.position)
    if outcome.rejected:
        reason = outcome.rejected[0].reason
        await _execute(call, found.id, uploads.Fail(reason))
        raise errors.Invalid(f"{found.opened.path}: {reason}")
    await _execute(call, found.id, _completion(found, stored, outcome))
    await discard(call, found.id)


def _completion(found: Found, stored: str, outcome: Outcome) -> uploads.Complete:
    if outcome.conflicts:
        return uploads.Complete(stored, 0, outcome.conflicts[0].conflict)
    return uploads.Complete(stored, outcome.accepted[found.opened.path])


async def _stored(call: Call, found: Found) -> str:
    """The BLAKE3 of the bytes, which are kept once this returns."""
    process, files, opened = call.api.process, files_of(call), found.opened
    missing = set(range(uploads.chunk_count(opened.size, opened.chunk_size))) - found.received.keys()
    if missing and opened.size:
        if (kept := await _kept(call, opened.hash)) is not None and not files.exists(found.id):
            return kept
        shown = ", ".join(map(str, sorted(missing)[:_SHOWN]))
        raise errors.Invalid(f"{len(missing)} chunks are missing: {shown}", missing=sorted(missing)[:_SHOWN])
    try:
        first, second = await asyncio.to_thread(files.hashes, found.id)
    except FileNotFoundError:  # it was taken over just before we last ended
        if (kept := await _kept(call, opened.hash)) is None:
            raise errors.InvalidState("The bytes of the upload are gone; send them again") from None
        return kept
    if opened.hash not in (first, second):
        await _mismatch(call, found)
    await asyncio.to_thread(process.blobs.adopt, files.path(found.id), first)
    await process.db.execute(
        "insert into undrift.stored (tenant, owner, blake3, sha256, size) values ($1, $2, $3, $4, $5)"
        " on conflict do nothing",
        call.tenant,
        call.principal.owner,
        first,
        second,
        opened.size,
    )
    return first


async def _kept(call: Call, hash: str) -> str | None:
    found: str | None = await call.api.process.db.fetchval(
        "select blake3 from undrift.stored where tenant = $1 and owner = $2 and (blake3 = $3 or sha256 = $3)",
        call.tenant,
        call.principal.owner,
        hash,
    )
    return found


async def _mismatch(call: Call, found: Found) -> None:
    """Chunks that were damaged after they had come may be sent again; otherwise the bytes are simply others."""
    opened = found.opened
    damaged = await asyncio.to_thread(files_of(call).damaged, found.id, opened.chunk_size, found.received)
    if damaged:
        await call.api.process.db.execute(
            "delete from undrift.upload_chunks where upload = $1 and index = any ($2)", found.id, damaged
        )
        raise errors.Invalid("Some chunks were damaged; send them again", missing=damaged[:_SHOWN])
    await _execute(call, found.id, uploads.Fail("The bytes do not have the hash that was declared"))
    await discard(call, found.id)
    raise errors.Invalid("The bytes do not have the hash that was declared")


async def _who(call: Call, found: Found) -> Who:
    owner, device = call.principal.owner, found.opened.device
    if device is None:
        return Who(call.tenant, owner, call.principal.actor)
    state = (await device_routes.states(call.api.process.db, [device])).get(device, device_routes.State())
    return Who(call.tenant, owner, f"device:{device}", device, state.acked)


async def _execute(call: Call, id: str, command: uploads.Command) -> Done:
    return await call.api.process.store.execute(uploads, id, command, tenant=call.tenant, metadata=call.metadata())


async def discard(call: Call, id: str) -> None:
    """What an upload that is over leaves behind."""
    await asyncio.to_thread(files_of(call).remove, id)
    await call.api.process.db.execute("delete from undrift.uploads where id = $1", id)


async def cancel(call: Call) -> Any:
    id = call.path("upload_id")
    async with _COMPLETING.setdefault(id, asyncio.Lock()):
        await find(call, id)
        done = await _execute(call, id, uploads.Cancel())
        await discard(call, id)
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
        query=DEVICE,
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
