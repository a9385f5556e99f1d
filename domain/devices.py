"""Devices of a user: each has a token of its own, and a place in the user's feed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from domain import errors, messages

STREAM = "devices"

Type = Literal["desktop", "mobile", "tablet", "server", "other"]


class Registered(messages.Event, frozen=True, tag="devices.registered"):
    """Only the SHA-256 of the token is kept; the token is derived from the device's id and shown once."""

    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("name",)
    name: str
    device_type: Type
    client_version: str
    os_info: str | None
    token_sha256: str


class Changed(messages.Event, frozen=True, tag="devices.changed"):
    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("name",)
    name: str
    enabled: bool


class TokenRegenerated(messages.Event, frozen=True, tag="devices.token_regenerated"):
    """From here on the token of before opens nothing."""

    token_sha256: str
    number: int
    before_sha256: str


class Stale(messages.Event, frozen=True, tag="devices.stale"):
    """It has not been heard of for long, and what it has not seen may soon be dropped."""

    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "device.stale"
    acked: int
    head: int


class CaughtUp(messages.Event, frozen=True, tag="devices.caught_up"):
    """It has acknowledged every change of other devices, up to position `acked`; `changes` were new to it since it had
    done so last."""

    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "sync.completed"
    acked: int
    changes: int


class Deleted(messages.Event, frozen=True, tag="devices.deleted"):
    PUBLIC: ClassVar[bool] = True


Event = Registered | Changed | TokenRegenerated | Stale | CaughtUp | Deleted


class Device(Struct, frozen=True):
    """`tokens` counts the tokens it has had; `caught_up` is the position at which it last had caught up."""

    name: str | None = None
    enabled: bool = True
    token_sha256: str = ""
    tokens: int = 0
    deleted: bool = False
    stale: bool = False
    caught_up: int = 0


initial = Device()


def evolve(state: Device, event: Event) -> Device:
    match event:
        case Registered():
            return Device(name=event.name, token_sha256=event.token_sha256, tokens=1)
        case Changed():
            return replace(state, name=event.name, enabled=event.enabled)
        case TokenRegenerated():
            return replace(state, token_sha256=event.token_sha256, tokens=event.number)
        case Stale():
            return replace(state, stale=True)
        case CaughtUp():
            return replace(state, caught_up=event.acked)
        case Deleted():
            return replace(state, deleted=True)
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Register(messages.Command, frozen=True):
    name: str
    device_type: Type
    client_version: str
    os_info: str | None
    token_sha256: str


class Change(messages.Command, frozen=True):
    """None stays."""

    name: str | None = None
    enabled: bool | None = None


class RegenerateToken(messages.Command, frozen=True):
    """`number` is that of the new token; the token of another number was given out meanwhile."""

    token_sha256: str
    number: int


class SayStale(messages.Command, frozen=True):
    acked: int
    head: int


class SayCaughtUp(messages.Command, frozen=True):
    acked: int
    changes: int


class Delete(messages.Command, frozen=True):
    pass


Command = Register | Change | RegenerateToken | SayStale | SayCaughtUp | Delete


def decide(command: Command, state: Device) -> Sequence[Event]:
    if isinstance(command, Register):
        return _register(command, state)
    if state.name is None or state.deleted:
        raise errors.NotFound("There is no such device", kind="device")
    match command:
        case Change():
            name = state.name if command.name is None else command.name
            enabled = state.enabled if command.enabled is None else command.enabled
            check_name(name)
            if (name, enabled) == (state.name, state.enabled):
                return []
            return [Changed(name=name, enabled=enabled)]
        case RegenerateToken():
            if command.number != state.tokens + 1:
                raise errors.Conflict("Another token was made meanwhile")
            return [_regenerated(command, state)]
        case SayStale():
            return [] if state.stale else [Stale(acked=command.acked, head=command.head)]
        case SayCaughtUp():
            said = command.acked <= state.caught_up
            return [] if said else [CaughtUp(acked=command.acked, changes=command.changes)]
        case Delete():
            return [Deleted()]
        case _:
            assert_never(command)


def _regenerated(command: RegenerateToken, state: Device) -> TokenRegenerated:
    return TokenRegenerated(token_sha256=command.token_sha256, number=command.number, before_sha256=state.token_sha256)


def _register(command: Register, state: Device) -> Sequence[Event]:
    if state.name is not None:
        return []
    check_name(command.name)
    registered = Registered(
        name=command.name,
        device_type=command.device_type,
        client_version=command.client_version,
        os_info=command.os_info,
        token_sha256=command.token_sha256,
    )
    return [registered]


def check_name(name: str) -> None:
    """Raises errors.Invalid."""
    if not 1 <= len(name) <= 255 or not name.isprintable():
        raise errors.Invalid("A device's name has 1 to 255 printable characters")
