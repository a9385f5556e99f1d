"""Between events and what the log stores: msgspec JSON, a closed registry of topics, sealed personal fields."""

from __future__ import annotations

import contextlib
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import blake3
import msgspec
from eventsourcing.persistence import JSONTranscoder, MapperDeserialisationError, Notification, StoredEvent
from eventsourcing.persistence import Mapper as LibraryMapper

from domain import errors, messages
from infra import secrets
from infra.secrets import Keyring

#: Brings the fields of an older schema version up by one.
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

ERASED = "erased"
#: How large an event may be; what is larger is a blob, named by its hash.
MAX_BYTES = 256 * 1024
_HEADER = struct.Struct(">4Iii16s")
_encoder = msgspec.json.Encoder()
_metadata = msgspec.json.Decoder(messages.Metadata)


@dataclass(frozen=True)
class LogEvent(StoredEvent):
    """A stored event with the rest of its row; `originator_id` is the stream."""

    tenant: str
    schema_version: int
    event_id: UUID
    metadata: str
    hash: bytes


@dataclass(frozen=True)
class LogNotification(Notification):
    """A stored event at its position in the log. `clear` says that `state` has the personal fields in clear, as it
    travels; `hash` is always that of what is stored."""

    tenant: str
    schema_version: int
    event_id: UUID
    metadata: str
    hash: bytes
    recorded_at: datetime
    clear: bool = False


@dataclass(frozen=True)
class Draft:
    """An event on its way into the log."""

    tenant: str
    stream: str
    version: int
    event_id: UUID
    event: messages.Event
    metadata: messages.Metadata


def content_hash(
    tenant: str, stream: str, version: int, topic: str, schema_version: int, event_id: UUID, metadata: str, state: bytes
) -> bytes:
    """BLAKE3 over the stored event: a header of fixed width (big-endian, 4 bytes each: the lengths of tenant, stream,
    topic and metadata, the version, the schema version; then the event id), these four texts, the ciphertext.

    Raises ValueError for a version that no event has.
    """
    texts = (tenant.encode(), stream.encode(), topic.encode(), metadata.encode())
    lengths = (len(texts[0]), len(texts[1]), len(texts[2]), len(texts[3]))
    try:
        header = _HEADER.pack(*lengths, version, schema_version, event_id.bytes)
    except struct.error as error:
        raise ValueError(f"no version of an event: {error}") from None
    return blake3.blake3(b"".join((header, *texts, state))).digest()


class Mapper(LibraryMapper[str]):
    """The library's mapper with named topics instead of import paths: what is not in `registry` is never imported."""

    def __init__(
        self,
        registry: Mapping[str, type[messages.Event]],
        upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
        keyring: Keyring | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__(JSONTranscoder())
        self._registry = registry
        self._decoders = {topic: msgspec.json.Decoder(kind) for topic, kind in registry.items()}
        self._upcasters = upcasters or {}
        self.keyring, self._max_bytes = keyring, max_bytes

    def to_stored_event(self, domain_event: Any) -> LogEvent:
        """Stores a Draft. A personal field is sealed under the key of `metadata.subject`, which must be loaded.

        Raises LookupError for a topic or a key that is not there, errors.NotFound for a person who was erased,
        errors.TooLarge.
        """
        draft: Draft = domain_event
        event, topic = draft.event, messages.topic(draft.event)
        if self._registry.get(topic) is not type(event):
            raise LookupError(f"{topic} is not in the registry of events")
        state = self._seal(draft) if event.PERSONAL else _encoder.encode(event)
        metadata = _encoder.encode(draft.metadata).decode()
        if len(state) + len(metadata) > self._max_bytes:
            raise errors.TooLarge(f"{topic} with {len(state)} bytes: what is larger than {self._max_bytes} is a blob")
        header = (draft.tenant, draft.stream, draft.version, topic, event.SCHEMA, draft.event_id, metadata)
        return LogEvent(
            originator_id=draft.stream,
            originator_version=draft.version,
            topic=topic,
            state=state,
            tenant=draft.tenant,
            schema_version=event.SCHEMA,
            event_id=draft.event_id,
            metadata=metadata,
            hash=content_hash(*header, state),
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Reads a LogNotification into messages.Recorded. Raises MapperDeserialisationError."""
        assert isinstance(stored_event, LogNotification)
        note = stored_event
        try:
            metadata = _metadata.decode(note.metadata)
            event = self._decode(note, metadata)
        except Exception as error:  # whatever an upcaster stumbles over, it is this event that cannot be read
            kind = self._registry.get(note.topic)
            personal = kind is not None and kind.PERSONAL  # whose contents no message may repeat
            reason = type(error).__name__ if personal else f"{type(error).__name__}: {error}"
            raise MapperDeserialisationError(f"{note.topic} v{note.schema_version}: {reason}") from error
        return messages.Recorded(
            position=note.id,
            tenant=note.tenant,
            stream=str(note.originator_id),
            version=note.originator_version,
            event_id=note.event_id,
            event=event,
            metadata=metadata,
            recorded_at=note.recorded_at,
        )

    def read(self, note: LogNotification) -> messages.Recorded:
        """As to_domain_event, with an Unreadable event in place of an error."""
        try:
            recorded: messages.Recorded = self.to_domain_event(note)
            return recorded
        except MapperDeserialisationError as error:
            return messages.Recorded(
                position=note.id,
                tenant=note.tenant,
                stream=str(note.originator_id),
                version=note.originator_version,
                event_id=note.event_id,
                event=messages.Unreadable(stored_topic=note.topic, reason=str(error)),
                metadata=messages.Metadata(),
                recorded_at=note.recorded_at,
            )

    def clear(self, note: LogNotification) -> bytes | None:
        """The state with its personal fields in clear, or "erased" where there is no key for them any more; None where
        it has none, or cannot be read. The keys must be loaded."""
        kind = self._registry.get(note.topic)
        if kind is None or not kind.PERSONAL or note.schema_version > kind.SCHEMA:
            return None
        try:
            fields: dict[str, Any] = msgspec.json.decode(note.state)
            self._unseal(kind, fields, note, _metadata.decode(note.metadata))
        except (msgspec.MsgspecError, secrets.Undecipherable, ValueError, KeyError):
            return None
        return _encoder.encode(fields)

    def subjects(self, notes: Sequence[LogNotification]) -> set[tuple[str, str]]:
        """The persons whose keys are needed to read these."""
        found = set()
        for note in notes:
            kind = self._registry.get(note.topic)
            if kind is not None and kind.PERSONAL and not note.clear:
                with contextlib.suppress(msgspec.MsgspecError):  # `read` will say so
                    if (subject := _metadata.decode(note.metadata).subject) is not None:
                        found.add((note.tenant, subject))
        return found

    def _decode(self, note: LogNotification, metadata: messages.Metadata) -> messages.Event:
        kind = self._registry.get(note.topic)
        if kind is None:
            raise LookupError("unknown topic")
        if note.schema_version == kind.SCHEMA and (note.clear or not kind.PERSONAL):
            return self._decoders[note.topic].decode(note.state)
        if note.schema_version > kind.SCHEMA:
            raise LookupError(f"schema version {note.schema_version} is newer than this program's {kind.SCHEMA}")
        fields: dict[str, Any] = msgspec.json.decode(note.state)
        for version in range(note.schema_version, kind.SCHEMA):
            fields = self._upcasters[note.topic, version](fields)
        self._unseal(kind, fields, note, metadata)
        return self._decoders[note.topic].decode(_encoder.encode(fields))

    def _seal(self, draft: Draft) -> bytes:
        subject = draft.metadata.subject
        key = None if subject is None or self.keyring is None else self.keyring.key(draft.tenant, subject)
        if key is None:
            if subject is not None and self.keyring is not None and self.keyring.erased(draft.tenant, subject):
                raise errors.NotFound("That person was erased", kind="user")
            raise LookupError(f"no key to seal {messages.topic(draft.event)} with")
        fields: dict[str, Any] = msgspec.json.decode(_encoder.encode(draft.event))
        for name in draft.event.PERSONAL:
            plain = _encoder.encode(fields[name])
            fields[name] = b64encode(secrets.seal(key, plain, f"{draft.event_id}/{name}")).decode()
        return _encoder.encode(fields)

    def _unseal(
        self, kind: type[messages.Event], fields: dict[str, Any], note: LogNotification, metadata: messages.Metadata
    ) -> None:
        if not kind.PERSONAL or note.clear:
            return
        subject = metadata.subject
        key = None if subject is None or self.keyring is None else self.keyring.key(note.tenant, subject)
        for name in kind.PERSONAL:
            if key is None:
                fields[name] = ERASED
            else:
                plain = secrets.unseal(key, b64decode(fields[name]), f"{note.event_id}/{name}")
                fields[name] = msgspec.json.decode(plain)
