"""tus 1.0 (tus.io), another face of uploads: sessions opened here or there go on here or there."""

from __future__ import annotations

import asyncio
import binascii
import functools
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from email.utils import format_datetime
from typing import Any

from domain import errors, uploads
from services.gateway import dialects, headers, sessions_attach, tus_writing, upload_sessions
from services.gateway.devices import DEVICE
from services.gateway.dialects import PINAKES, Failure, Reply
from services.gateway.headers import Pair
from services.gateway.routes import Call, Handler, Parameter, Route
from services.gateway.tus_writing import Refused
from services.gateway.upload_sessions import Damaged, Found, Wanted, files_of, find

VERSION = b"1.0.0"
BASE = "/api/v1/sync/tus"
_MEDIA = b"application/offset+octet-stream"
_EXTENSIONS = b"creation,creation-with-upload,expiration,checksum,termination,concatenation"
_ALGORITHMS = {"sha1": 20, "sha256": 32}
_MAX_SIZE = 2**50
_NUMBER = re.compile(rb"[0-9]{1,18}")
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
_MAX_METADATA = 16 * 1024


def _tus(handler: Handler) -> Handler:
    """Requests that speak the protocol; every answer says that it does, refusals included."""

    @functools.wraps(handler)
    async def served(call: Call) -> Any:
        try:
            if call.fields.get(b"tus-resumable") != VERSION:
                raise Refused(412, "Tus-Resumable is 1.0.0 here")
            reply = await handler(call)
        except Refused as refused:
            more = [(b"tus-version", VERSION)] if refused.status == 412 else []
            reply = _refusal(call, refused, more)
        except Exception as error:
            call.scope["route_dialect"] = PINAKES
            reply = dialects.failed(call.scope, error)
        reply.headers += [(b"tus-resumable", VERSION), (b"cache-control", b"no-store")]
        return reply

    return served


def _refusal(call: Call, refused: Refused, more: list[Pair]) -> Reply:
    path = str(call.scope["path"])
    return PINAKES.reply(Failure(refused.status, "", "", refused.message, refused.message, path, more))


async def options(call: Call) -> Any:
    """What of tus is spoken here."""
    quota = call.api.process.settings.library.quota_bytes
    said = [
        (b"tus-resumable", VERSION),
        (b"tus-version", VERSION),
        (b"tus-extension", _EXTENSIONS),
        (b"tus-max-size", b"%d" % (quota or _MAX_SIZE)),
        (b"tus-checksum-algorithm", ",".join(_ALGORITHMS).encode()),
    ]
    return Reply(204, b"", said)


def _number(call: Call, name: bytes) -> int | None:
    raw = call.fields.get(name)
    if raw is None:
        return None
    if not _NUMBER.fullmatch(raw):
        raise errors.Invalid(f"{name.decode().title()} is a number of bytes")
    return int(raw)


def _metadata(raw: bytes) -> Mapping[str, str]:
    """Upload-Metadata: keys with Base64 of their values. Raises errors.Invalid."""
    if len(raw) > _MAX_METADATA:
        raise errors.TooLarge(f"Upload-Metadata has at most {_MAX_METADATA} bytes")
    found: dict[str, str] = {}
    for pair in raw.decode("latin-1").split(","):
        if not pair.strip():
            continue
        key, _, value = pair.strip().partition(" ")
        try:
            text = b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            raise errors.Invalid("Upload-Metadata has values in Base64, of UTF-8") from None
        if not _KEY.fullmatch(key) or key in found:
            raise errors.Invalid("Upload-Metadata has keys of visible ASCII, each once")
        found[key] = text
    return found


def _checksum(call: Call) -> tuple[str, bytes] | None:
    raw = call.fields.get(b"upload-checksum")
    if raw is None:
        return None
    name, _, value = raw.decode("latin-1").strip().partition(" ")
    if name not in _ALGORITHMS:
        raise errors.Invalid(f"Upload-Checksum has one of {', '.join(_ALGORITHMS)}")
    try:
        digest = b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != _ALGORITHMS[name]:
        raise errors.Invalid("Upload-Checksum has a digest in Base64")
    return name, digest


# Creation.


@_tus
async def create(call: Call) -> Any:
    """Opens an upload, whose address is the answer's Location. `Upload-Metadata` names its place in the library as
    `target_path`, or `filename`; it may declare the whole's `sha256` or `blake3`, and its `mtime`."""
    raw = call.fields.get(b"upload-metadata", b"")
    concat = call.fields.get(b"upload-concat", b"").decode("latin-1").strip()
    call.raw = b"\n".join((call.fields.get(b"upload-length", b""), raw, concat.encode("latin-1")))
    if concat.startswith("final;"):
        return await _created(call, await _join(call, concat, raw), with_offset=False)
    if concat not in ("", "partial"):
        raise errors.Invalid("Upload-Concat is partial, or final; with the addresses of the parts")
    sends = _sends(call)
    done = await call.earlier(uploads)
    id = "" if done is None else done.events[0].id
    if done is None:
        id = await _open(call, _wanted(call, _metadata(raw), raw, concat == "partial"))
        if sends:
            await _receive(call, id, 0)
    found = await find(call, id)
    if found.opened.size == 0 and not found.opened.part:
        found = await upload_sessions.completed(call, id)
    return await _created(call, found, with_offset=sends)


def _sends(call: Call) -> bool:
    """Whether the request that opens an upload brings bytes too."""
    media = call.fields.get(b"content-type")
    length = call.fields.get(b"content-length")
    if media == _MEDIA:
        return length != b"0"
    if length not in (None, b"0") or b"transfer-encoding" in call.fields:
        raise errors.UnsupportedMedia(f"The bytes of an upload are {_MEDIA.decode()}")
    return False


def _wanted(call: Call, said: Mapping[str, str], raw: bytes, part: bool, size: int | None = None) -> Wanted:
    length = _number(call, b"upload-length") if size is None else size
    if length is None:
        raise errors.Invalid("Upload-Length is needed; it cannot be deferred")
    if length > (call.api.process.settings.library.quota_bytes or _MAX_SIZE):
        raise errors.TooLarge("The upload is larger than Tus-Max-Size")
    path = said.get("target_path") or said.get("filename")
    if path is None and not part:
        raise errors.Invalid("Upload-Metadata names a target_path, or a filename")
    return Wanted(
        path=path or "",
        size=length,
        hash=said.get("sha256") or said.get("blake3"),
        device=said.get("device_id"),
        mtime=said.get("mtime"),
        part=part,
        metadata=raw.decode("latin-1") or None,
    )


async def _open(call: Call, wanted: Wanted) -> str:
    return (await upload_sessions.open_(call, wanted)).events[0].id


async def _join(call: Call, concat: str, raw: bytes) -> Found:
    """An upload of the bytes of parts that have come whole; they end with it."""
    done = await call.earlier(uploads)
    if done is not None:
        return await upload_sessions.completed(call, done.events[0].id)
    ids = [address.rpartition("/")[2] for address in concat.removeprefix("final;").split()]
    parts = [await find(call, id) for id in ids]
    if parts and (whole := parts[0].state.whole) is not None and {part.state.whole for part in parts} == {whole}:
        return await upload_sessions.completed(call, whole)  # the answer was lost
    for part in parts:
        if not part.opened.part or part.state.over:
            raise errors.Invalid("Upload-Concat names parts that are open")
        if not part.is_whole:
            raise Refused(409, "A part has not come whole yet")
        await upload_sessions.check_chunks(call, part)
    if not parts:
        raise errors.Invalid("Upload-Concat names parts")
    said, size = _metadata(raw), sum(part.opened.size for part in parts)
    wanted = _wanted(call, said, raw, False, size)
    id = await _open(call, Wanted(**_fields(wanted), parts=tuple(ids)))
    digests = await asyncio.to_thread(files_of(call).join, id, ids, wanted.chunk_size)
    await call.api.process.db.execute(
        "insert into undrift.upload_chunks (upload, index, writer, blake3, received_at)"
        " select $1, number - 1, gen_random_uuid(), digest, clock_timestamp()"
        " from unnest($2::text[]) with ordinality as came(digest, number)",
        id,
        digests,
    )
    found = await upload_sessions.completed(call, id)
    await upload_sessions.joined(call, ids, id)
    return found


def _fields(wanted: Wanted) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in wanted.__struct_fields__ if name != "parts"}


async def _created(call: Call, found: Found, *, with_offset: bool) -> Reply:
    said: list[Pair] = [(b"location", f"{BASE}/{found.id}".encode()), *_outcome(call, found)]
    if with_offset:
        said.append((b"upload-offset", b"%d" % found.offset))
    return Reply(201, b"", said)


def _outcome(call: Call, found: Found) -> list[Pair]:
    """Until when an upload is waited for; or that it is complete, and the conflict it is a side of."""
    completed = found.state.completed
    said = [headers.position(max(call.api.reads.position, 0 if completed is None else completed.sequence))]
    if not found.state.over:
        expires = upload_sessions.expires_at(call, found)
        said.append((b"upload-expires", format_datetime(expires.replace(microsecond=0), usegmt=True).encode()))
    if completed is not None and completed.conflict is not None:
        said.append((b"undrift-conflict", completed.conflict.encode()))
    elif completed is not None:
        said.append((b"undrift-sequence", b"%d" % completed.sequence))
    return said


# What has come, and what comes.


@_tus
async def head(call: Call) -> Any:
    """How far an upload has come: `Upload-Offset`."""
    found = await find(call, call.path("upload_id"))
    if found.is_whole and not found.state.over and not found.opened.part:
        try:  # the last byte came, and then we ended
            found = await upload_sessions.completed(call, found.id)
        except Damaged:
            found = await find(call, found.id)
    if found.state.over and found.state.status != "completed":
        raise errors.Gone(f"The upload is {found.state.status}")
    opened = found.opened
    said = [(b"upload-offset", b"%d" % found.offset), (b"upload-length", b"%d" % opened.size)]
    metadata = opened.metadata or ("" if opened.part else _told(opened.path))
    if metadata:
        said.append((b"upload-metadata", metadata.encode("latin-1")))
    if opened.part:
        said.append((b"upload-concat", b"partial"))
    elif opened.parts:
        said.append((b"upload-concat", b"final;" + " ".join(f"{BASE}/{part}" for part in opened.parts).encode()))
    return Reply(200, b"", [*said, *_outcome(call, found)])


def _told(path: str) -> str:
    return f"target_path {b64encode(path.encode()).decode()}"


@_tus
async def patch(call: Call) -> Any:
    """Sends bytes from `Upload-Offset` on. What has come when the connection breaks off counts. The last byte puts the
    file into the library; `Undrift-Conflict` tells of a conflict that it is a side of."""
    if call.fields.get(b"content-type") != _MEDIA:
        raise errors.UnsupportedMedia(f"The bytes of an upload are {_MEDIA.decode()}")
    offset = _number(call, b"upload-offset")
    if offset is None:
        raise errors.Invalid("Upload-Offset is needed")
    found = await _receive(call, call.path("upload_id"), offset)
    return Reply(204, b"", [(b"upload-offset", b"%d" % found.offset), *_outcome(call, found)])


async def _receive(call: Call, id: str, offset: int) -> Found:
    found = await tus_writing.receive(call, id, offset, _checksum(call))
    if found.is_whole and not found.state.over and not found.opened.part:
        try:
            found = await upload_sessions.completed(call, id)
        except Damaged as damaged:
            raise Refused(409, damaged.message) from None
    return found


@_tus
async def end(call: Call) -> Any:
    """Ends an upload that is not complete, with what has come of it."""
    id = call.path("upload_id")
    found = await find(call, id)
    if found.state.status == "completed":
        raise Refused(409, "The upload is complete; its file is the library's")
    async with tus_writing.turn(id):
        done = await upload_sessions.cancelled(call, id)
    return Reply(204, b"", [headers.position(done.position)])


async def override(call: Call) -> Any:
    """For clients that know POST only: `X-HTTP-Method-Override` says what is meant."""
    named = call.fields.get(b"x-http-method-override", b"").strip().upper()
    meant = {b"PATCH": patch, b"DELETE": end, b"HEAD": head}.get(named)
    if meant is None:
        raise errors.Invalid("X-HTTP-Method-Override is PATCH, DELETE or HEAD here")
    return await meant(call)


def _header(name: str, description: str, kind: str = "string") -> Parameter:
    return Parameter(name, {"type": kind}, description, where="header")


_RESUMABLE = _header("Tus-Resumable", "1.0.0")
_CHECKSUM = _header("Upload-Checksum", "sha1 or sha256, and the body's digest in Base64")
_OFFSET = _header("Upload-Offset", "where the bytes go on", "integer")
_READ = (400, 404, 410, 412)
_WRITE = (*_READ, 409, 413, 415, 422, 423, 460, 507)
_ONE = BASE + "/{upload_id:str}"

ROUTES: Sequence[Route] = (
    Route("OPTIONS", BASE, options, PINAKES, "What of tus is spoken here", open=True, answers={204: None}),
    Route(
        "POST",
        BASE,
        create,
        PINAKES,
        "tus: open an upload, with its first bytes or without; or join parts",
        query=(
            _RESUMABLE,
            _header("Upload-Length", "in bytes", "integer"),
            _header("Upload-Metadata", "target_path or filename; sha256 or blake3; mtime; device_id"),
            _header("Upload-Concat", "partial, or final; with the addresses of parts"),
            _CHECKSUM,
            *DEVICE,
            sessions_attach.HEADER,
        ),
        answers={201: None},
        errors=_WRITE,
    ),
    Route("OPTIONS", _ONE, options, PINAKES, "What of tus is spoken here", open=True, answers={204: None}),
    Route(
        "GET",
        _ONE,
        head,
        PINAKES,
        "tus: how far an upload has come; meant for HEAD",
        query=(_RESUMABLE,),
        answers={200: None},
        errors=_READ,
    ),
    Route(
        "PATCH",
        _ONE,
        patch,
        PINAKES,
        "tus: send bytes",
        query=(_RESUMABLE, _OFFSET, _CHECKSUM),
        answers={204: None},
        errors=_WRITE,
    ),
    Route(
        "POST",
        _ONE,
        override,
        PINAKES,
        "tus: PATCH, DELETE or HEAD, for clients that know POST only",
        query=(_RESUMABLE, _OFFSET, _CHECKSUM, _header("X-HTTP-Method-Override", "the method that is meant")),
        answers={200: None, 204: None},
        errors=_WRITE,
    ),
    Route("DELETE", _ONE, end, PINAKES, "tus: end an upload", query=(_RESUMABLE,), answers={204: None}, errors=_WRITE),
)
