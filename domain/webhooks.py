"""Webhooks: endpoints outside that are told of events, each with a secret of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import ClassVar, assert_never

from msgspec import Struct
from msgspec.structs import replace

from domain import errors, messages

STREAM = "webhooks"
SLOT = "webhooks.slot"

DESCRIPTION_MAX = 1000


class Subscribed(messages.Event, frozen=True, tag="webhooks.subscribed"):
    """`events` are names of the catalogue, or patterns of them. `secret` refers to the vault. `slot` is one of the
    places that a tenant has for endpoints."""

    url: str
    events: tuple[str, ...]
    description: str
    secret: str
    slot: int


class Changed(messages.Event, frozen=True, tag="webhooks.changed"):
    url: str
    events: tuple[str, ...]
    description: str


class SecretRotated(messages.Event, frozen=True, tag="webhooks.secret_rotated"):
    """`secret` is the `number`-th. What is sent until `previous_until` is signed with the `previous` one too."""

    secret: str
    number: int
    previous: str
    previous_until: datetime


class Disabled(messages.Event, frozen=True, tag="webhooks.disabled"):
    """Nothing more is sent until somebody enables it."""

    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "endpoint.disabled"
    reason: str


class Enabled(messages.Event, frozen=True, tag="webhooks.enabled"):
    PUBLIC: ClassVar[bool] = True


class Deleted(messages.Event, frozen=True, tag="webhooks.deleted"):
    slot: int


class Replayed(messages.Event, frozen=True, tag="webhooks.replayed"):
    """The events at positions `first` to `until`, both included, whose names are of `events`, go out once more:
    `count` messages, marked with `replay`."""

    replay: str
    first: int
    until: int
    events: tuple[str, ...]
    count: int


class Tested(messages.Event, frozen=True, tag="webhooks.tested"):
    """Goes out to this endpoint and no other, whatever it asked for. `number` counts its tests."""

    number: int


Event = Subscribed | Changed | SecretRotated | Disabled | Enabled | Deleted | Replayed | Tested


class Endpoint(Struct, frozen=True):
    """`url` is None where there never was one; `secrets` counts those it has had; `reason` says why it is disabled."""

    url: str | None = None
    events: tuple[str, ...] = ()
    description: str = ""
    secret: str = ""
    secrets: int = 0
    previous: str | None = None
    previous_until: datetime | None = None
    reason: str | None = None
    slot: int = 0
    tests: int = 0
    deleted: bool = False

    @property
    def enabled(self) -> bool:
        return self.url is not None and self.reason is None and not self.deleted


initial = Endpoint()


def evolve(state: Endpoint, event: Event) -> Endpoint:
    match event:
        case Subscribed():
            return Endpoint(event.url, event.events, event.description, event.secret, secrets=1, slot=event.slot)
        case Changed():
            return replace(state, url=event.url, events=event.events, description=event.description)
        case SecretRotated():
            state = replace(state, secret=event.secret, secrets=event.number)
            return replace(state, previous=event.previous, previous_until=event.previous_until)
        case Disabled():
            return replace(state, reason=event.reason)
        case Enabled():
            return replace(state, reason=None)
        case Deleted():
            return replace(state, deleted=True)
        case Replayed():
            return state
        case Tested():
            return replace(state, tests=event.number)
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    """A tenant has so many places for endpoints, and each is one endpoint's."""
    match event:
        case Subscribed():
            yield messages.take(SLOT, str(event.slot))
        case Deleted():
            yield messages.release(SLOT, str(event.slot))
        case Changed() | SecretRotated() | Disabled() | Enabled() | Replayed() | Tested():
            return
        case _:
            assert_never(event)


class Subscribe(messages.Command, frozen=True):
    """The URL and the names were checked."""

    url: str
    events: tuple[str, ...]
    description: str
    secret: str
    slot: int


class Change(messages.Command, frozen=True):
    """None stays."""

    url: str | None = None
    events: tuple[str, ...] | None = None
    description: str | None = None


class Rotate(messages.Command, frozen=True):
    """`number` is that of the new secret; the secret of another number was made meanwhile."""

    secret: str
    number: int
    previous_until: datetime


class Disable(messages.Command, frozen=True):
    reason: str


class Enable(messages.Command, frozen=True):
    pass


class Delete(messages.Command, frozen=True):
    pass


class Replay(messages.Command, frozen=True):
    """As `Replayed`, which says what these are."""

    replay: str
    first: int
    until: int
    events: tuple[str, ...]
    count: int


class Test(messages.Command, frozen=True):
    pass


Command = Subscribe | Change | Rotate | Disable | Enable | Delete | Replay | Test


def decide(command: Command, state: Endpoint) -> Sequence[Event]:
    if isinstance(command, Subscribe):
        return _subscribe(command, state)
    if state.url is None or state.deleted:
        raise errors.NotFound("There is no such webhook", kind="webhook")
    match command:
        case Change():
            return _change(command, state)
        case Rotate():
            if command.number != state.secrets + 1:
                raise errors.Conflict("Another secret was made meanwhile")
            return [SecretRotated(command.secret, command.number, state.secret, command.previous_until)]
        case Disable():
            return [Disabled(command.reason)] if state.enabled else []
        case Enable():
            return [] if state.enabled else [Enabled()]
        case Delete():
            return [Deleted(state.slot)]
        case Replay():
            _must_be_enabled(state)
            return [Replayed(command.replay, command.first, command.until, command.events, command.count)]
        case Test():
            _must_be_enabled(state)
            return [Tested(state.tests + 1)]
        case _:
            assert_never(command)


def _subscribe(command: Subscribe, state: Endpoint) -> Sequence[Event]:
    if state.url is not None:
        return []
    _check_description(command.description)
    return [Subscribed(command.url, command.events, command.description, command.secret, command.slot)]


def _change(command: Change, state: Endpoint) -> Sequence[Event]:
    assert state.url is not None
    changed = Changed(
        url=state.url if command.url is None else command.url,
        events=state.events if command.events is None else command.events,
        description=state.description if command.description is None else command.description,
    )
    _check_description(changed.description)
    return [] if changed == Changed(state.url, state.events, state.description) else [changed]


def _check_description(text: str) -> None:
    if len(text) > DESCRIPTION_MAX or not text.isprintable():
        raise errors.Invalid(f"A description has at most {DESCRIPTION_MAX} printable characters")


def _must_be_enabled(state: Endpoint) -> None:
    if not state.enabled:
        raise errors.InvalidState("The webhook is disabled; enable it first")
