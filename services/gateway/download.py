"""Downloads: the bytes of one version, whole or in ranges; and older versions, which can be made the newest again."""

from __future__ import annotations

import asyncio
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from email.utils import format_datetime
from typing import Any

from msgspec import Struct, structs

from domain import errors, library
from domain.plans import library as plan
from infra.blobs import Missing, Opened
from projections import library as library_read
from projections.library import Version
from projections.library_changes import Change, shape
from services.gateway import bodies, ranges, retention
from services.gateway import library as library_routes
from services.gateway.dialects import PINAKES, LibraryFault, Reply
from services.gateway.headers import Pair, position
from services.gateway.ranges import Range, Unsatisfiable
from services.gateway.routes import Call, Parameter, Route
from services.shelf import Who

_MEDIA = b"application/octet-stream"


class OneVersion(Change):
    """`available` is false where the bytes are kept no longer; a deletion has none."""

    available: bool = False


class Versions(Struct):
    """All versions of a file, the newest first."""

    versions: list[OneVersion]


class Restore(Struct):
    """Which version (`sequence`) of a file becomes its newest; a deleted file comes back where it was."""

    media_id: str
    sequence: int


class File:
    """An open blob as an answer: an ASGI application. Memory stays flat, whatever its size."""

    def __init__(self, status: int, blob: Opened, parts: Sequence[bytes | Range], headers: Sequence[Pair]) -> None:
        self.status = status
        self._blob, self._parts = blob, parts
        self._headers = [*headers, (b"content-length", b"%d" % sum(map(_length, parts)))]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": self._headers})
            if scope["method"] != "HEAD":
                async for piece in self._pieces():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await asyncio.to_thread(self._blob.close)

    async def _pieces(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            left, pieces = part.length, self._blob.pieces(part.first, part.last)
            while left:
                piece = await asyncio.to_thread(next, pieces, b"")
                if not piece:
                    raise ConnectionResetError("the blob is shorter than it was")
                left -= len(piece)
                yield piece


def _length(part: bytes | Range) -> int:
    return len(part) if isinstance(part, bytes) else part.length


def _path(call: Call) -> str:
    """The path asked for; what no library keeps is simply not there."""
    try:
        return plan.check_path(call.path("path").removeprefix("/"))
    except plan.BadPath:
        raise errors.NotFound("There is no such file", kind="file") from None


async def _version(call: Call, path: str) -> Version:
    database, tenant, owner = call.api.process.db, call.tenant, call.principal.owner
    sequence = bodies.integer(call.query(), "version", 0, 0, 2**62)
    if sequence:
        found = await library_read.version_at(database, tenant, owner, path, sequence)
    else:
        found = await library_read.at_path(database, tenant, owner, path)
    if found is None or found.hash is None:
        raise errors.NotFound("There is no such file", kind="file")
    return found


async def download(call: Call) -> Any:
    await call.caught_up(library.STREAM)
    version = await _version(call, _path(call))
    assert version.hash is not None
    assert version.size is not None
    sha256 = await _sha256(call, version.hash)
    etag, modified = b'"%b"' % version.hash.encode(), version.mtime or version.at
    headers = [*_described(version, etag, modified, sha256)]
    if ranges.unchanged(call.fields, etag, modified):
        return Reply(304, b"", headers)
    try:
        wanted = ranges.wanted(call.fields, version.size, etag, modified)
    except Unsatisfiable:
        fault = PINAKES.encode(LibraryFault(error="None of the ranges has a byte of the file"))
        return Reply(416, fault, [(b"content-range", b"bytes */%d" % version.size), *headers])
    try:
        blob = await asyncio.to_thread(call.api.process.contents.open, version.hash, version.size)
    except Missing:
        raise errors.Unavailable("The bytes of this version are missing; `undrift doctor` says more") from None
    return _answer(blob, version.size, wanted, headers, sha256)


_GONE = "The bytes of this version are kept no longer"
#: Bytes that were dropped can be read until they are deleted: a command may just have named them again.
_HELD = (
    "select blake3, sha256 from undrift.stored where tenant = $1 and owner = $2 and blake3 = any ($3)"
    " union select blake3, sha256 from undrift.dropped where tenant = $1 and owner = $2 and blake3 = any ($3)"
)


async def _held(call: Call, hashes: Collection[str]) -> Mapping[str, str]:
    """Of these the hashes whose bytes are there, with their SHA-256."""
    rows = await call.api.process.db.fetch(_HELD, call.tenant, call.principal.owner, list(hashes))
    return {row["blake3"]: row["sha256"] for row in rows}


async def _sha256(call: Call, hash: str) -> str:
    """Raises errors.Gone where the bytes are kept no longer."""
    if (found := (await _held(call, [hash])).get(hash)) is None:
        raise errors.Gone(_GONE)
    return found


def _described(version: Version, etag: bytes, modified: datetime, sha256: str) -> Iterator[Pair]:
    yield b"accept-ranges", b"bytes"
    yield b"etag", etag
    yield b"last-modified", format_datetime(modified.replace(microsecond=0), usegmt=True).encode()
    yield b"cache-control", b"private, no-cache"
    yield position(version.from_pos)
    yield b"repr-digest", b"sha-256=:%b:" % b64encode(bytes.fromhex(sha256))


def _answer(blob: Opened, size: int, wanted: Sequence[Range], headers: list[Pair], sha256: str) -> File:
    if not wanted:
        headers.append((b"content-digest", b"sha-256=:%b:" % b64encode(bytes.fromhex(sha256))))
        return File(200, blob, [Range(0, size - 1)], [*headers, (b"content-type", _MEDIA)])
    if len(wanted) == 1:
        headers += [(b"content-type", _MEDIA), (b"content-range", _content_range(wanted[0], size))]
        return File(206, blob, wanted, headers)
    boundary = uuid.uuid4().hex.encode()
    parts: list[bytes | Range] = []
    for one in wanted:
        head = (b"--" + boundary, b"content-type: " + _MEDIA, b"content-range: " + _content_range(one, size), b"", b"")
        parts += [(b"\r\n" if parts else b"") + b"\r\n".join(head), one]
    parts.append(b"\r\n--" + boundary + b"--\r\n")
    return File(206, blob, parts, [*headers, (b"content-type", b"multipart/byteranges; boundary=" + boundary)])


def _content_range(one: Range, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (one.first, one.last, size)


# Older versions.


async def versions(call: Call) -> Any:
    """Of the file that stands at a path, or of the last that did."""
    read = await call.caught_up(library.STREAM)
    database, tenant, owner = call.api.process.db, call.tenant, call.principal.owner
    file = await library_read.last_at_path(database, tenant, owner, _path(call))
    if file is None:
        raise errors.NotFound("There is no such file", kind="file")
    found = await library_read.versions(database, tenant, owner, file)
    kept = await _held(call, {one.hash for one in found if one.hash is not None})
    return call.reply(Versions([_listed(one, one.hash in kept) for one in found]), read)


def _listed(version: Version, available: bool) -> OneVersion:
    return OneVersion(**structs.asdict(shape(version)), available=available)


async def restore(call: Call) -> Any:
    body = await call.body(Restore)
    await call.caught_up(library.STREAM)
    database, tenant, owner = call.api.process.db, call.tenant, call.principal.owner
    found = await library_read.versions(database, tenant, owner, body.media_id)
    version = next((one for one in found if one.from_pos == body.sequence and one.hash is not None), None)
    if version is None:
        raise errors.NotFound("There is no such version", kind="version")
    assert version.hash is not None
    if not await retention.take_back(database, tenant, owner, version.hash):
        raise errors.Gone(_GONE)
    who = Who(tenant, owner, call.principal.actor)
    done = await library_routes.of_call(call).restore(who, version.file, version.path, _content(version))
    library_routes.wrote(call, done)
    await call.api.reads.reached(done, call.api.process.settings.gateway.read_wait_s)
    newest = await library_read.versions(database, tenant, owner, body.media_id, 1)
    return call.reply(shape(newest[0]), done)


def _content(version: Version) -> library.Content:
    assert version.hash is not None
    assert version.size is not None
    return library.Content(version.hash, version.size, version.mtime)


_READ = (400, 401, 403, 404, 503)

ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/v1/sync/download/{path:path}",
        download,
        PINAKES,
        "The bytes of a file; ranges, conditions and HEAD as RFC 9110 has them",
        query=(
            Parameter("version", {"type": "integer"}, "the `sequence` of an older version"),
            Parameter("Range", {"type": "string"}, "at most 8 ranges of bytes", where="header"),
            Parameter("If-Range", {"type": "string"}, "an ETag, or a date", where="header"),
        ),
        answers={200: bytes, 206: bytes, 304: None},
        errors=(*_READ, 410, 416),
        media="application/octet-stream",
    ),
    Route(
        "GET",
        "/api/v1/sync/versions/{path:path}",
        versions,
        PINAKES,
        "All versions of a file",
        answers={200: Versions},
        errors=_READ,
    ),
    Route(
        "POST",
        "/api/v1/sync/restore",
        restore,
        PINAKES,
        "Make an older version the newest, or bring back what was deleted",
        body=Restore,
        answers={200: Change},
        errors=(*_READ, 409, 410, 413, 415, 422),
    ),
)
