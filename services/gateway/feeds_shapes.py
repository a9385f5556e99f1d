"""How the event feed shows an event, over HTTP as in a stream."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from domain import messages
from services.gateway.dialects import Timestamp, timestamp_ms


class Event(Struct):
    """`subject` is the stream; `data` the event itself. `unreadable` says why this version cannot show it."""

    position: int
    id: str
    type: str
    time: Timestamp
    subject: str
    version: int
    actor: str
    data: Raw


def shown_topic(recorded: messages.Recorded) -> str:
    """Its topic, also where this version cannot read the event."""
    event = recorded.event
    return event.stored_topic if isinstance(event, messages.Unreadable) else recorded.topic


def shown(recorded: messages.Recorded) -> Event:
    event = recorded.event
    unreadable = isinstance(event, messages.Unreadable)
    return Event(
        position=recorded.position,
        id=str(recorded.event_id),
        type=shown_topic(recorded),
        time=timestamp_ms(recorded.recorded_at),
        subject=recorded.stream,
        version=recorded.version,
        actor=recorded.metadata.actor,
        data=Raw(b'{"unreadable":true}' if unreadable else msgspec.json.encode(event)),
    )
