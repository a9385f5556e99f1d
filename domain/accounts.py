"""Users: who owns a library. Passwords and sessions are rows apart from the log; names are sealed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from domain import errors, messages

STREAM = "accounts"
NAME = "accounts.name"
_NAME = re.compile(r"[^\s\x00-\x1f\x7f/]{1,64}")

Role = Literal["admin", "user"]


class Created(messages.Event, frozen=True, tag="accounts.created"):
    """`name_key` is the keyed hash of the case-folded name: what is claimed says nothing about whom."""

    PERSONAL: ClassVar[tuple[str, ...]] = ("name",)
    name: str
    name_key: str
    role: Role


class RoleChanged(messages.Event, frozen=True, tag="accounts.role_changed"):
    role: Role


class PasswordChanged(messages.Event, frozen=True, tag="accounts.password_changed"):
    """Its sessions end with it."""


class SessionEnded(messages.Event, frozen=True, tag="accounts.session_ended"):
    """One session, by its id; None for all of them."""

    session: str | None


class Disabled(messages.Event, frozen=True, tag="accounts.disabled"):
    """Nothing of the account opens anything until it is enabled."""


class Enabled(messages.Event, frozen=True, tag="accounts.enabled"):
    pass


class Deleted(messages.Event, frozen=True, tag="accounts.deleted"):
    name_key: str


class Erased(messages.Event, frozen=True, tag="accounts.erased"):
    """What is personal of the account, and of all that it owns, is gone for ever; whoever has a copy is to do the same.
    Said again when something was said under way."""

    PUBLIC: ClassVar[bool] = True
    name_key: str


Event = Created | RoleChanged | PasswordChanged | SessionEnded | Disabled | Enabled | Deleted | Erased


class Account(Struct, frozen=True):
    name: str | None = None
    name_key: str = ""
    role: Role = "user"
    enabled: bool = True
    deleted: bool = False
    erased: bool = False


initial = Account()


def evolve(state: Account, event: Event) -> Account:
    match event:
        case Created():
            return Account(name=event.name, name_key=event.name_key, role=event.role)
        case RoleChanged():
            return replace(state, role=event.role)
        case PasswordChanged() | SessionEnded():
            return state
        case Disabled():
            return replace(state, enabled=False)
        case Enabled():
            return replace(state, enabled=True)
        case Deleted():
            return replace(state, deleted=True)
        case Erased():
            return replace(state, deleted=True, erased=True)
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    match event:
        case Created():
            yield messages.take(NAME, event.name_key)
        case Deleted() | Erased():
            yield messages.release(NAME, event.name_key)
        case RoleChanged() | PasswordChanged() | SessionEnded() | Disabled() | Enabled():
            return
        case _:
            assert_never(event)


class Create(messages.Command, frozen=True):
    name: str
    name_key: str
    role: Role = "user"


class ChangeRole(messages.Command, frozen=True):
    role: Role


class ChangePassword(messages.Command, frozen=True):
    pass


class EndSession(messages.Command, frozen=True):
    session: str | None


class Disable(messages.Command, frozen=True):
    pass


class Enable(messages.Command, frozen=True):
    pass


class Delete(messages.Command, frozen=True):
    pass


class Erase(messages.Command, frozen=True):
    """Also of an account that was deleted; `again` when something of its owner's was said since."""

    again: bool = False


Command = Create | ChangeRole | ChangePassword | EndSession | Disable | Enable | Delete | Erase


def decide(command: Command, state: Account) -> Sequence[Event]:
    if isinstance(command, Create):
        if state.name is not None:
            return []
        check_name(command.name)
        return [Created(name=command.name, name_key=command.name_key, role=command.role)]
    if isinstance(command, Erase) and state.name is not None:
        return [] if state.erased and not command.again else [Erased(name_key=state.name_key)]
    if state.name is None or state.deleted or isinstance(command, Erase):
        raise errors.NotFound("There is no such user", kind="user")
    match command:
        case ChangeRole():
            return [] if command.role == state.role else [RoleChanged(role=command.role)]
        case ChangePassword():
            return [PasswordChanged()]
        case EndSession():
            return [SessionEnded(session=command.session)]
        case Disable():
            return [Disabled()] if state.enabled else []
        case Enable():
            return [] if state.enabled else [Enabled()]
        case Delete():
            return [Deleted(name_key=state.name_key)]
        case _:
            assert_never(command)


def check_name(name: str) -> None:
    """Raises errors.Invalid."""
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise errors.Invalid("A user's name has 1 to 64 characters, without spaces, slashes or control characters")
