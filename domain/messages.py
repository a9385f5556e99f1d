"""What every context speaks: events, commands, claims, and the envelope in which the log keeps an event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import ClassVar, Literal, Protocol, TypeVar
from uuid import UUID

from msgspec import Struct


class Event(Struct, frozen=True, tag_field="event"):
    """A fact. Its tag, such as `jobs.completed`, is its one name: topic in the log, end of the NATS subject,
    name of the webhook. Written once, never renamed.

    `SCHEMA` is the version of its fields (an upcaster reads the older ones); `PERSONAL` names the fields
    that are sealed under the key of the person named in `Metadata.subject`; `PUBLIC` offers it to webhooks
    and consumers outside; `ALIAS` is the public name that goes out beside it.
    """

    SCHEMA: ClassVar[int] = 1
    PERSONAL: ClassVar[tuple[str, ...]] = ()
    PUBLIC: ClassVar[bool] = False
    ALIAS: ClassVar[str | None] = None


class Unreadable(Event, frozen=True, tag="unreadable"):
    """Stands in for an event that this program cannot read; whoever applies events parks it with its stream."""

    stored_topic: str
    reason: str


def topic(event: Event | type[Event]) -> str:
    """The one name of an event or of its class, such as `jobs.completed`."""
    return str(event.__struct_config__.tag)


class Command(Struct, frozen=True):
    """A wish. `decide` answers with the events that carry it out, or raises why it cannot be."""


class Claim(Struct, frozen=True):
    """A name taken or given back in the transaction that appends the event.

    `(tenant, kind, key)` is the name. Exclusive claims admit one stream; shared ones are counted.
    """

    action: Literal["take", "release"]
    kind: str
    key: str
    shared: bool = False


def take(kind: str, key: str, *, shared: bool = False) -> Claim:
    return Claim("take", kind, key, shared)


def release(kind: str, key: str) -> Claim:
    return Claim("release", kind, key)


class Metadata(Struct, frozen=True, omit_defaults=True):
    """Who, why and in which chain. Never secrets.

    `actor` is `key:<id>`, `job:<id>` or `system:<role>`; `owner` is the user whose subject space the event
    belongs to (`_` for none); `subject` names the person under whose key personal fields are sealed.
    """

    actor: str = "system"
    correlation: str | None = None
    causation: str | None = None
    traceparent: str | None = None
    owner: str = "_"
    subject: str | None = None


class Recorded(Struct, frozen=True):
    """An event as the log keeps it: `position` is gap-free over the whole log and in commit order,
    `version` counts from 1 in its stream, `recorded_at` never goes back."""

    position: int
    tenant: str
    stream: str
    version: int
    event_id: UUID
    event: Event
    metadata: Metadata
    recorded_at: datetime

    @property
    def topic(self) -> str:
        return topic(self.event)

    @property
    def id(self) -> str:
        """The identifier within the context: the stream name without its context."""
        return self.stream.partition("/")[2].rpartition("/")[2]


S = TypeVar("S")
E = TypeVar("E", bound=Event)
C = TypeVar("C", bound=Command, contravariant=True)


class Context(Protocol[S, E, C]):
    """What a context module provides; the module itself satisfies it."""

    STREAM: str
    initial: S

    def evolve(self, state: S, event: E, /) -> S: ...

    def claims(self, event: E, /) -> Iterable[Claim]: ...

    def decide(self, command: C, state: S, /) -> Sequence[E]: ...


def stream(context: str, tenant: str, id: str) -> str:
    """The stream of one thing: `<context>/<tenant>/<id>`."""
    return f"{context}/{tenant}/{id}"
