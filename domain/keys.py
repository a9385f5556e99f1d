"""API keys: a named credential with scopes, bound to one tenant and perhaps to roots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, assert_never

from msgspec import Struct

from domain import errors, messages

STREAM = "keys"

AREAS = (
    "jobs",
    "files",
    "databases",
    "cloud",
    "backups",
    "merges",
    "sessions",
    "webhooks",
    "feeds",
    "network",
)
SCOPES = frozenset({f"{area}:{right}" for area in AREAS for right in ("read", "write")} | {"databases:raw", "admin"})


class Added(messages.Event, frozen=True, tag="keys.added"):
    """Only the SHA-256 of the token is kept; the token is derived from the key's id and shown once."""

    PUBLIC: ClassVar[bool] = False
    name: str
    token_sha256: str
    scopes: tuple[str, ...]
    roots: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()


class Revoked(messages.Event, frozen=True, tag="keys.revoked"):
    """From here on the token opens nothing."""

    name: str


Event = Added | Revoked


class Key(Struct, frozen=True):
    added: Added | None = None
    revoked: bool = False


initial = Key()


def evolve(state: Key, event: Event) -> Key:
    match event:
        case Added():
            return Key(added=event)
        case Revoked():
            return Key(added=state.added, revoked=True)
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    match event:
        case Added():
            yield messages.take("keys.name", event.name)
        case Revoked():
            yield messages.release("keys.name", event.name)
        case _:
            assert_never(event)


class Add(messages.Command, frozen=True):
    """Empty `roots` means every configured root; empty `connections` every named connection."""

    name: str
    token_sha256: str
    scopes: tuple[str, ...]
    roots: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()


class Revoke(messages.Command, frozen=True):
    pass


Command = Add | Revoke


def decide(command: Command, state: Key) -> Sequence[Event]:
    match command:
        case Add():
            return _add(command, state)
        case Revoke():
            if state.added is None:
                raise errors.NotFound("There is no such key")
            return [] if state.revoked else [Revoked(name=state.added.name)]
        case _:
            assert_never(command)


def _add(command: Add, state: Key) -> Sequence[Event]:
    if state.added is not None:
        return []
    if not command.name or len(command.name) > 255:
        raise errors.Invalid("A key's name has 1 to 255 characters")
    if unknown := sorted(set(command.scopes) - SCOPES):
        raise errors.Invalid(f"Unknown scope {unknown[0]}; there are {', '.join(sorted(SCOPES))}")
    if not command.scopes:
        raise errors.Invalid("A key needs at least one scope")
    added = Added(
        name=command.name,
        token_sha256=command.token_sha256,
        scopes=tuple(sorted(set(command.scopes))),
        roots=command.roots,
        connections=command.connections,
    )
    return [added]
