"""Sessions of uploads, whichever way their bytes come: opening, how far they are, and how they end."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from msgspec import Struct

from domain import errors, messages, uploads
from domain.library import Content
from domain.plans import library as plan
from domain.plans.library import Known
from infra.eventstore.store import Done, Wish
from infra.uploads import Uploads
from services.gateway import devices as device_routes
from services.gateway import library as library_routes
from services.gateway import sessions_attach
from services.gateway.routes import Call
from services.library import Outcome
from services.shelf import Who

#: The rows of chunks need not be on the disk before the chunks are, which nobody waits for either: what a power cut
#: takes is missing, and sent again. A commit that waits would have the file system write the whole chunk first.
SOON = "set_config('synchronous_commit', 'off', true) is not null"
_SHOWN = 20
#: One end of an upload at a time; the others find its outcome.
_ENDING: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
#: What never changes of uploads that take bytes, by tenant, owner and id: each chunk would ask for it.
_OPENED: OrderedDict[tuple[str, str, str], uploads.Opened] = OrderedDict()
_KNOWN = 1000


class Damaged(errors.Invalid):
    """Some chunks are not any more what came; they may be sent again."""


class Wanted(Struct, frozen=True):
    """What a client wants to send; nothing of it is checked yet but that `size` is not negative."""

    path: str
    size: int
    hash: str | None = None
    chunk_size: int = uploads.CHUNK
    device: str | None = None
    mtime: str | None = None
    part: bool = False
    parts: tuple[str, ...] = ()
    metadata: str | None = None


class Found(Struct, frozen=True):
    """An upload as the log has it, and how much of it has come. `received` are whole chunks with their BLAKE3;
    `partial` is how far (from the beginning of the file) what came in order goes into the first that is not whole,
    with the BLAKE3 of that chunk's part, if anything did."""

    id: str
    opened: uploads.Opened
    state: uploads.Upload
    opened_at: datetime
    last_activity: datetime
    received: Mapping[int, str]
    partial: tuple[int, str] | None = None
    identity: tuple[str, str] | None = None

    @property
    def received_bytes(self) -> int:
        size, chunk = self.opened.size, self.opened.chunk_size
        whole = sum(uploads.chunk_length(size, chunk, index) for index in self.received)
        return whole if self.partial is None else whole + self.partial[0] % chunk

    @property
    def offset(self) -> int:
        """How many bytes have come from the beginning on."""
        if self.state.status == "completed":
            return self.opened.size
        if self.partial is not None:
            return self.partial[0]
        return min(self.opened.size, uploads.first_missing(self.received) * self.opened.chunk_size)

    @property
    def is_whole(self) -> bool:
        return self.offset == self.opened.size


def files_of(call: Call) -> Uploads:
    return Uploads(call.api.process.settings.directory / "uploads")


def ending(id: str) -> AbstractAsyncContextManager[object]:
    """Held by whoever completes, cancels or joins an upload."""
    return _ENDING.setdefault(id, asyncio.Lock())


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
    opened = state.opened
    assert opened is not None
    chunks = await process.db.fetch(
        "select index, blake3, received_at is not null as whole from undrift.upload_chunks"
        " where upload = $1 and blake3 is not null",
        id,
    )
    row = await process.db.fetchrow("select * from undrift.uploads where id = $1", id)
    received = {chunk["index"]: chunk["blake3"] for chunk in chunks if chunk["whole"]}
    partial = None
    if row is not None:
        first = uploads.first_missing(received)
        digest = next((chunk["blake3"] for chunk in chunks if chunk["index"] == first), None)
        if digest is not None and 0 < row["partial_bytes"] - first * opened.chunk_size < opened.chunk_size:
            partial = (row["partial_bytes"], digest)
    return Found(
        id=id,
        opened=opened,
        state=state,
        opened_at=recorded[0].recorded_at,
        last_activity=recorded[-1].recorded_at if row is None else row["last_activity"],
        received=received,
        partial=partial,
        identity=None if row is None or row["blake3"] is None else (row["blake3"], row["sha256"]),
    )


async def taking(call: Call, id: str) -> uploads.Opened:
    """What an upload was opened with, if it takes bytes as far as is known here.

    Raises errors.NotFound, InvalidState.
    """
    key = (call.tenant, call.principal.owner, id)
    opened = _OPENED.get(key)
    if opened is None:
        found = await find(call, id)
        if found.state.over:
            raise errors.InvalidState(f"The upload is {found.state.status}")
        opened = _OPENED[key] = found.opened
        while len(_OPENED) > _KNOWN:
            _OPENED.popitem(last=False)
    return opened


async def still_taking(call: Call, id: str) -> None:
    """The same, asked anew."""
    _OPENED.pop((call.tenant, call.principal.owner, id), None)
    await taking(call, id)


def expires_at(call: Call, found: Found) -> datetime:
    return found.last_activity + timedelta(hours=call.api.process.settings.library.upload_hours)


# Opening.


async def open_(call: Call, wanted: Wanted) -> Done:
    """Raises errors.Invalid, StorageFull where a quota or the disk is full."""
    session = await sessions_attach.named(call)
    path, device, knew = "", None, None
    if not wanted.part:
        try:
            path = plan.check_path(wanted.path)
        except plan.BadPath as bad:
            raise errors.Invalid(f"target_path: {bad}") from None
        device, knew = await _sender(call, wanted.device, path)
    opened = uploads.Opened(
        path=path,
        hash=None if wanted.hash is None else library_routes.hash_of(wanted.hash),
        size=wanted.size,
        chunk_size=wanted.chunk_size,
        device=device,
        knew_file=None if knew is None else knew.file,
        knew_hash=None if knew is None else knew.hash,
        mtime=None if wanted.mtime is None else library_routes.time_of(wanted.mtime),
        part=wanted.part,
        parts=wanted.parts,
        metadata=wanted.metadata,
        session=None if wanted.part else session,
    )
    await _check_quota(call, wanted.size)
    id, process = str(uuid.uuid4()), call.api.process
    await asyncio.to_thread(files_of(call).make, id, wanted.size)
    await process.db.execute(
        "insert into undrift.uploads (id, tenant, owner, size, chunk_size) values ($1, $2, $3, $4, $5)",
        id,
        call.tenant,
        call.principal.owner,
        wanted.size,
        wanted.chunk_size,
    )
    wish = Wish(uploads, id, uploads.Open(opened), fresh=True)
    return await sessions_attach.attached(call, opened.session, "upload", [wish])


async def _sender(call: Call, named: str | None, path: str) -> tuple[str | None, Known | None]:
    """Who sends: a device, or a person, who then knows what stands there now."""
    try:
        return (await device_routes.of_call(call, named or call.query().get("device_id"))).row.id, None
    except errors.Invalid:
        who = Who(call.tenant, call.principal.owner, call.principal.actor)
        return None, await library_routes.of_call(call).standing(who, path)


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


# Ending.


async def completed(call: Call, id: str) -> Found:
    """The upload once it is complete; checks it and puts it into the library where that has not been done yet.

    Raises errors.Invalid where something is missing or wrong, and Damaged.
    """
    async with ending(id):
        found = await find(call, id)
        if found.opened.part:
            raise errors.Invalid("The upload is a part of another; it has no path of its own")
        if found.state.status != "completed":
            await _complete(call, found)
            found = await find(call, id)
    return found


async def _complete(call: Call, found: Found) -> None:
    """Checks the whole, keeps it, and says so in the library. Whatever of it was done before is found done."""
    if found.state.over:
        raise errors.InvalidState(f"The upload is {found.state.status}")
    stored = await _stored(call, found)
    who = await _who(call, found)
    content = Content(stored, found.opened.size, found.opened.mtime)
    knew = None
    if found.opened.knew_file is not None:
        knew = Known(found.opened.knew_file, found.opened.knew_hash)
    outcome = await library_routes.of_call(call).publish(who, found.opened.path, content, knew)
    library_routes.wrote(call, outcome.position)
    if outcome.rejected:
        reason = outcome.rejected[0].reason
        await execute(call, found.id, uploads.Fail(reason))
        raise errors.Invalid(f"{found.opened.path}: {reason}")
    await execute(call, found.id, _completion(found, stored, outcome))
    await discard(call, found.id)


def _completion(found: Found, stored: str, outcome: Outcome) -> uploads.Complete:
    if outcome.conflicts:
        return uploads.Complete(stored, 0, outcome.conflicts[0].conflict)
    return uploads.Complete(stored, outcome.accepted[found.opened.path])


async def _stored(call: Call, found: Found) -> str:
    """The BLAKE3 of the bytes, which are kept once this returns."""
    files, opened, contents = files_of(call), found.opened, call.api.process.contents
    missing = sorted(set(range(uploads.chunk_count(opened.size, opened.chunk_size))) - found.received.keys())
    if missing and opened.size:
        shown = ", ".join(map(str, missing[:_SHOWN]))
        raise errors.Invalid(f"{len(missing)} chunks are missing: {shown}", missing=missing[:_SHOWN])
    identity = found.identity
    if await asyncio.to_thread(files.exists, found.id):
        identity = await _identified(call, found)
        await asyncio.to_thread(contents.adopt, files.path(found.id), identity[0])
    elif identity is None or not await asyncio.to_thread(contents.exists, identity[0]):
        raise errors.InvalidState("The bytes of the upload are gone; send them again")
    await call.api.process.db.execute(
        "insert into undrift.stored (tenant, owner, blake3, sha256, size) values ($1, $2, $3, $4, $5)"
        " on conflict do nothing",
        call.tenant,
        call.principal.owner,
        *identity,
        opened.size,
    )
    return identity[0]


async def _identified(call: Call, found: Found) -> tuple[str, str]:
    """Both hashes of bytes that are those that were meant."""
    identity, seen = await asyncio.to_thread(files_of(call).hashes, found.id, found.received)
    if not seen or found.opened.hash is not None:
        await _check(call, found, identity)
    await _identify(call, found, identity)
    return identity


async def _identify(call: Call, found: Found, identity: tuple[str, str]) -> None:
    """From here on whoever drops bytes of this hash finds that they are needed."""
    async with call.api.process.db.transaction() as connection:
        await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", identity[0])
        await connection.execute(
            "update undrift.uploads set blake3 = $2, sha256 = $3 where id = $1", found.id, *identity
        )


async def _check(call: Call, found: Found, identity: tuple[str, str]) -> None:
    """Chunks that were damaged after they had come may be sent again; otherwise the bytes are simply others."""
    opened = found.opened
    if opened.hash in identity:
        return
    await check_chunks(call, found)
    if opened.hash is not None:
        await execute(call, found.id, uploads.Fail("The bytes do not have the hash that was declared"))
        await discard(call, found.id)
        raise errors.Invalid("The bytes do not have the hash that was declared")


async def check_chunks(call: Call, found: Found) -> None:
    """Raises Damaged where chunks are not any more what came; they are waited for again."""
    files, chunk_size = files_of(call), found.opened.chunk_size
    damaged = await asyncio.to_thread(files.damaged, found.id, chunk_size, found.received)
    if damaged:
        await call.api.process.db.execute(
            "delete from undrift.upload_chunks where upload = $1 and index = any ($2)", found.id, damaged
        )
        raise Damaged("Some chunks were damaged; send them again", missing=damaged[:_SHOWN])


async def _who(call: Call, found: Found) -> Who:
    owner, device = call.principal.owner, found.opened.device
    if device is None:
        return Who(call.tenant, owner, call.principal.actor)
    state = (await device_routes.states(call.api.process.db, [device])).get(device, device_routes.State())
    return Who(call.tenant, owner, f"device:{device}", device, state.acked)


async def execute(call: Call, id: str, command: uploads.Command) -> Done:
    return await call.api.process.store.execute(uploads, id, command, tenant=call.tenant, metadata=call.metadata())


async def cancelled(call: Call, id: str) -> Done:
    async with ending(id):
        await find(call, id)
        done = await execute(call, id, uploads.Cancel())
        await discard(call, id)
    return done


async def joined(call: Call, parts: Sequence[str], whole: str) -> None:
    """Parts whose bytes are in another upload now end."""
    for part in parts:
        async with ending(part):
            await execute(call, part, uploads.Join(whole))
            await discard(call, part)


async def discard(call: Call, id: str) -> None:
    """What an upload that is over leaves behind."""
    _OPENED.pop((call.tenant, call.principal.owner, id), None)
    await asyncio.to_thread(files_of(call).remove, id)
    await call.api.process.db.execute("delete from undrift.uploads where id = $1", id)
