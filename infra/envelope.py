"""An event of the log as a NATS message: CloudEvents in binary mode, with a MAC so that only our own are believed."""

from __future__ import annotations

import hmac
import itertools
import re
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from urllib.parse import quote, unquote

import msgspec
from asyncpg.pgproto.pgproto import UUID
from msgspec import Struct

from infra import subjects
from infra.eventstore.mapper import LogNotification, content_hash

POSITION = "Undrift-Position"
EPOCH = "Undrift-Epoch"
VERSION = "Undrift-Version"
SCHEMA = "Undrift-Schema"
METADATA = "Undrift-Metadata"
HASH = "Undrift-Hash"
CLEAR = "Undrift-Clear"
MAC = "Undrift-Mac"

_SOURCE = "urn:undrift:"
_STATUS = b"NATS/1.0\r\n"
_CLAIM = re.compile(rb"\r\n%b: ([0-9]{1,18})\r\n" % POSITION.encode())
#: JetStream stores at most 64 KiB of headers with a message; the batch's own come on top of ours.
_MAX_HEADERS = 60_000
_SLACK = 512
# CloudEvents percent-encodes what is not printable ASCII, and space, quote and percent; metadata is JSON, where
# escaping quotes would triple it.
_ODD_ATTRIBUTE = re.compile(r"[^!#$&-~]")
_ODD_JSON = re.compile(r"[^ -$&-~]")


class Sealed(Struct, frozen=True):
    """What goes on the wire: `headers` are complete lines without the status line and the empty one at the end."""

    subject: str
    headers: bytes
    data: bytes


class Verdict(Enum):
    """What can be said of a message that is not an event to be taken as it comes."""

    FOREIGN = "of another epoch, or no event of ours"
    FORGED = "claims to be ours and does not verify"
    ELIDED = "ours, and too large to carry the event: read it from the log"


class _Owner(Struct):
    owner: str = subjects.NOBODY


_owner = msgspec.json.Decoder(_Owner)


class Recent:
    """What this process has sealed a moment ago: of a message that comes back as it went, byte for byte, nothing is
    left to find out. One that differs is looked at like any other."""

    def __init__(self, room: int = 16_384) -> None:
        self._room = room
        self._kept: dict[int, tuple[LogNotification, Sealed]] = {}

    def keep(self, note: LogNotification, sealed: Sealed) -> None:
        if len(self._kept) >= self._room:
            self._kept.clear()
        self._kept[note.id] = (note, sealed)

    def take(self, position: int, headers: bytes, data: bytes) -> LogNotification | None:
        """The event of a position, if this is its message; `headers` with their status line."""
        found = self._kept.pop(position, None)
        if found is None:
            return None
        note, sealed = found
        same = data == sealed.data == note.state and headers.startswith(sealed.headers, len(_STATUS))
        return note if same and headers.startswith(_STATUS) else None

    def forget(self, position: int) -> None:
        """Nobody asks for what comes before this any more."""
        for old in list(itertools.takewhile(lambda one: one <= position, self._kept)):
            del self._kept[old]


class Envelope:
    """Packs and checks the events of one epoch under the installation's relay key."""

    def __init__(self, key: bytes, epoch: int) -> None:
        self.epoch = epoch
        self._key = key
        self._prefix = f"{epoch} ".encode()

    def pack(self, note: LogNotification, max_bytes: int = 1024 * 1024) -> Sealed:
        """The message of an event. One that is larger than `max_bytes` goes without state and metadata.

        What is stored cannot be told from personal fields that travel in clear: such a message names the stored hash,
        and its MAC is of that hash and of all that travels.
        """
        body = (
            f"{VERSION}: {note.originator_version}\r\n{SCHEMA}: {note.schema_version}\r\n"
            f"{METADATA}: {_escape(_ODD_JSON, note.metadata)}\r\n"
        )
        digest = note.hash
        if note.clear:
            body += f"{CLEAR}: {digest.hex()}\r\n"
            digest += _hash_of(note)
        subject = subjects.event(note.tenant, _owner_of(note.metadata), note.topic)
        headers = (self._lead(note, digest) + body).encode()
        if len(headers) > _MAX_HEADERS or len(headers) + len(note.state) + _SLACK > max_bytes:
            return Sealed(subject, f"{self._lead(note, note.hash)}{HASH}: {note.hash.hex()}\r\n".encode(), b"")
        return Sealed(subject, headers, note.state)

    def _lead(self, note: LogNotification, digest: bytes) -> str:
        time = note.recorded_at.isoformat().replace("+00:00", "Z")
        return (
            f"ce-specversion: 1.0\r\nce-id: {note.event_id}\r\nce-type: {_attribute(note.topic)}\r\n"
            f"ce-source: {_SOURCE}{_attribute(note.tenant)}\r\nce-time: {time}\r\n"
            f"ce-subject: {_attribute(str(note.originator_id))}\r\n"
            f"{POSITION}: {note.id}\r\n{EPOCH}: {self.epoch}\r\n{MAC}: {self._mac(note.id, time, digest)}\r\n"
        )

    def unpack(self, headers: Mapping[str, str] | None, data: bytes) -> LogNotification | Verdict:
        """The event of a message, as it travels: only what carries our epoch and verifies is believed."""
        if headers is None or headers.get(EPOCH) != str(self.epoch):
            return Verdict.FOREIGN
        try:
            return self._open(headers, data)
        except (KeyError, ValueError):
            return Verdict.FORGED

    def _open(self, headers: Mapping[str, str], data: bytes) -> LogNotification | Verdict:
        position, time, mac = int(headers[POSITION]), headers["ce-time"], headers[MAC]
        if (elided := headers.get(HASH)) is not None:
            genuine = hmac.compare_digest(mac, self._mac(position, time, bytes.fromhex(elided)))
            return Verdict.ELIDED if genuine else Verdict.FORGED
        topic, stream = unquote(headers["ce-type"]), unquote(headers["ce-subject"])
        tenant = unquote(headers["ce-source"].removeprefix(_SOURCE))
        version, schema_version = int(headers[VERSION]), int(headers[SCHEMA])
        event_id, metadata = UUID(headers["ce-id"]), unquote(headers[METADATA])
        digest = content_hash(tenant, stream, version, topic, schema_version, event_id, metadata, data)
        stored = bytes.fromhex(headers[CLEAR]) if CLEAR in headers else b""
        if not hmac.compare_digest(mac, self._mac(position, time, stored + digest)):
            return Verdict.FORGED
        return LogNotification(
            originator_id=stream,
            originator_version=version,
            topic=topic,
            state=data,
            id=position,
            tenant=tenant,
            schema_version=schema_version,
            event_id=event_id,
            metadata=metadata,
            hash=stored or digest,
            recorded_at=datetime.fromisoformat(time),
            clear=bool(stored),
        )

    def _mac(self, position: int, time: str, digest: bytes) -> str:
        return hmac.digest(self._key, self._prefix + f"{position} {time} ".encode() + digest, "sha256").hex()


def _hash_of(note: LogNotification) -> bytes:
    """That of the event as it travels."""
    return content_hash(
        note.tenant,
        str(note.originator_id),
        note.originator_version,
        note.topic,
        note.schema_version,
        note.event_id,
        note.metadata,
        note.state,
    )


def claimed(raw: bytes) -> int | None:
    """The position that a message claims, from its headers as they came."""
    found = _CLAIM.search(raw)
    return None if found is None else int(found[1])


def lines(raw: bytes) -> dict[str, str]:
    """The headers of a message, from the bytes behind its status line."""
    pairs = [line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n")[1:]]
    return {name: value.strip() for name, colon, value in pairs if colon}


def position_of(headers: Mapping[str, str] | None) -> int | None:
    """The position that a message claims, before anything is verified."""
    text = (headers or {}).get(POSITION, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def _owner_of(metadata: str) -> str:
    if '"owner"' not in metadata:
        return subjects.NOBODY
    try:
        return _owner.decode(metadata).owner
    except msgspec.MsgspecError:
        return subjects.NOBODY


def _attribute(text: str) -> str:
    return _escape(_ODD_ATTRIBUTE, text)


def _escape(odd: re.Pattern[str], text: str) -> str:
    if not odd.search(text):
        return text
    return odd.sub(lambda found: quote(found[0], safe="", errors="strict"), text)
