"""Integrations: a named, scheduled job specification."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, assert_never

import msgspec
from msgspec import Raw, Struct

from domain import errors, messages

STREAM = "integrations"
INTERVAL_MAX = 31_536_000
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Created(messages.Event, frozen=True, tag="integrations.created"):
    """`config` is the kind's own; secrets are sealed outside the log. `interval` in seconds, None without schedule."""

    PUBLIC: ClassVar[bool] = True
    name: str
    kind: str
    config: Raw
    interval: int | None = None
    declared: bool = False


class Changed(messages.Event, frozen=True, tag="integrations.changed"):
    """The integration as it is from here on; `reconfigured` when what it syncs changed, so its baseline is void."""

    PUBLIC: ClassVar[bool] = True
    name: str
    config: Raw
    interval: int | None
    reconfigured: bool


class Started(messages.Event, frozen=True, tag="integrations.started"):
    """Its schedule is on."""

    PUBLIC: ClassVar[bool] = True


class Stopped(messages.Event, frozen=True, tag="integrations.stopped"):
    """Its schedule is off until it is started."""

    PUBLIC: ClassVar[bool] = True


class Deleted(messages.Event, frozen=True, tag="integrations.deleted"):
    PUBLIC: ClassVar[bool] = True


Event = Created | Changed | Started | Stopped | Deleted


class Integration(Struct, frozen=True):
    name: str | None = None
    kind: str = ""
    config: Raw = Raw(b"{}")
    interval: int | None = None
    active: bool = True
    declared: bool = False


initial = Integration()


def evolve(state: Integration, event: Event) -> Integration:
    match event:
        case Created():
            return Integration(
                name=event.name,
                kind=event.kind,
                config=event.config,
                interval=event.interval,
                declared=event.declared,
            )
        case Changed():
            return Integration(event.name, state.kind, event.config, event.interval, state.active, state.declared)
        case Started():
            return _active(state, True)
        case Stopped():
            return _active(state, False)
        case Deleted():
            return initial
        case _:
            assert_never(event)


def _active(state: Integration, active: bool) -> Integration:
    return Integration(state.name, state.kind, state.config, state.interval, active, state.declared)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Create(messages.Command, frozen=True):
    """`config` must have been checked against the kind."""

    id: str
    name: str
    kind: str
    config: Raw
    interval: int | None = None
    declared: bool = False


class Change(messages.Command, frozen=True):
    """What is UNSET stays."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    config: Raw | msgspec.UnsetType = msgspec.UNSET
    interval: int | msgspec.UnsetType | None = msgspec.UNSET


class Start(messages.Command, frozen=True):
    pass


class Stop(messages.Command, frozen=True):
    pass


class Delete(messages.Command, frozen=True):
    pass


Command = Create | Change | Start | Stop | Delete


def decide(command: Command, state: Integration) -> Sequence[Event]:
    if isinstance(command, Create):
        return _create(command, state)
    if state.name is None:
        raise errors.NotFound("There is no such integration")
    match command:
        case Change():
            return _change(command, state)
        case Start():
            return [] if state.active else [Started()]
        case Stop():
            return [Stopped()] if state.active else []
        case Delete():
            return [Deleted()]
        case _:
            assert_never(command)


def _create(command: Create, state: Integration) -> Sequence[Event]:
    check_id(command.id)
    check_interval(command.interval)
    if state.name is not None:
        raise errors.AlreadyExists(f"There is an integration {command.id}")
    created = Created(
        name=command.name,
        kind=command.kind,
        config=command.config,
        interval=command.interval,
        declared=command.declared,
    )
    return [created]


def _change(command: Change, state: Integration) -> Sequence[Event]:
    name = state.name if command.name is msgspec.UNSET else command.name
    config = state.config if command.config is msgspec.UNSET else command.config
    interval = state.interval if command.interval is msgspec.UNSET else command.interval
    check_interval(interval)
    reconfigured = _plain(config) != _plain(state.config)
    if (name, interval) == (state.name, state.interval) and not reconfigured:
        return []
    assert name is not None
    return [Changed(name=name, config=config, interval=interval, reconfigured=reconfigured)]


def _plain(config: Raw) -> Any:
    return msgspec.json.decode(config)


def check_id(id: str) -> None:
    """Raises errors.Invalid unless the id is `^[a-z0-9][a-z0-9-]{0,63}$` and not `status`."""
    if not _ID.fullmatch(id) or id == "status":
        raise errors.Invalid("An integration's id is 1 to 64 of a-z, 0-9 and -, does not begin with -, is not status")


def check_interval(seconds: int | None) -> None:
    """Raises errors.Invalid unless the interval is 1 second to a year."""
    if seconds is not None and not 1 <= seconds <= INTERVAL_MAX:
        raise errors.Invalid(f"interval is 1 to {INTERVAL_MAX} seconds")
