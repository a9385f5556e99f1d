"""Items: what connectors bring from outside, each with its versions, their hash and where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, assert_never

import msgspec
from msgspec import Raw, Struct

from domain import errors, messages

STREAM = "items"
#: How large an item's content may be; an event is at most 256 KiB.
MAX_BYTES = 192 * 1024
#: How long an entity's and an item's name may be: they stand in the read model's index.
MAX_NAME = 512

_encode = msgspec.json.Encoder(order="sorted").encode


class Created(messages.Event, frozen=True, tag="items.created"):
    """`number` counts the item's versions from 1, over its deletions. `content` is a JSON object in canonical form,
    `hash` its SHA-256. `revision` is the time of the outside's own last change, `YYYY-MM-DDTHH:MM:SS.ffffffZ`."""

    PUBLIC: ClassVar[bool] = True
    collection: str
    entity: str
    item: str
    number: int
    hash: str
    content: Raw
    revision: str | None
    source: str


class Updated(messages.Event, frozen=True, tag="items.updated"):
    """As Created."""

    PUBLIC: ClassVar[bool] = True
    collection: str
    entity: str
    item: str
    number: int
    hash: str
    content: Raw
    revision: str | None
    source: str


class Deleted(messages.Event, frozen=True, tag="items.deleted"):
    """`revision` is the last that was seen, so that news older than the deletion are known as such."""

    PUBLIC: ClassVar[bool] = True
    collection: str
    entity: str
    item: str
    number: int
    reason: str
    source: str
    revision: str | None = None


Event = Created | Updated | Deleted


class Item(Struct, frozen=True):
    """`hash` and `content` are None where there is no item. Every event says all of this: the last one is enough."""

    number: int = 0
    hash: str | None = None
    content: Raw | None = None
    revision: str | None = None


initial = Item()


def evolve(state: Item, event: Event) -> Item:
    match event:
        case Created() | Updated():
            return Item(event.number, event.hash, event.content, event.revision)
        case Deleted():
            return Item(event.number, revision=event.revision)
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Put(messages.Command, frozen=True):
    """`content` is canonical, `hash` its digest. With `expect` the item must still have that number (0: there never
    was one), and then its revision does not matter."""

    collection: str
    entity: str
    item: str
    content: Raw
    hash: str
    revision: str | None
    source: str
    expect: int | None = None


class Remove(messages.Command, frozen=True):
    """As Put."""

    collection: str
    entity: str
    item: str
    reason: str
    source: str
    revision: str | None = None
    expect: int | None = None


Command = Put | Remove


def decide(command: Command, state: Item) -> Sequence[Event]:
    """Raises errors.Conflict when the item is not the expected one, errors.TooLarge, errors.Invalid (its names)."""
    if command.expect is not None and command.expect != state.number:
        raise errors.Conflict(f"The item is at version {state.number}, not {command.expect}")
    if command.expect is None and _older(command.revision, state.revision):
        return []
    match command:
        case Put():
            return _put(command, state)
        case Remove():
            if state.hash is None:
                return []
            deleted = Deleted(
                collection=command.collection,
                entity=command.entity,
                item=command.item,
                number=state.number + 1,
                reason=command.reason,
                source=command.source,
                revision=command.revision or state.revision,
            )
            return [deleted]
        case _:
            assert_never(command)


def _put(command: Put, state: Item) -> Sequence[Event]:
    if command.hash == state.hash:
        return []
    check(command.entity, command.item, len(bytes(command.content)))
    event = Created if state.hash is None else Updated
    there = event(
        collection=command.collection,
        entity=command.entity,
        item=command.item,
        number=state.number + 1,
        hash=command.hash,
        content=command.content,
        revision=command.revision,
        source=command.source,
    )
    return [there]


def _older(revision: str | None, kept: str | None) -> bool:
    return revision is not None and kept is not None and revision < kept


def check(entity: str, item: str, size: int) -> None:
    """Raises errors.Invalid for a name that cannot be kept, errors.TooLarge for content of more than MAX_BYTES."""
    for name in (entity, item):
        if not 0 < len(name) <= MAX_NAME or "\0" in name or name != name.encode("utf-8", "replace").decode():
            raise errors.Invalid(f"An entity or item is named with 1 to {MAX_NAME} characters of Unicode")
    if size > MAX_BYTES:
        raise errors.TooLarge(f"The item {item:.80} has {size} bytes, more than {MAX_BYTES}")


def stream_id(collection: str, entity: str, item: str) -> str:
    """The id of an item's stream: its collection, and what stands for its names whatever is in them."""
    name = f"{entity}\0{item}".encode("utf-8", "surrogatepass")
    return f"{collection}.{hashlib.sha256(name).hexdigest()[:32]}"


def canonical(content: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces. Raises what msgspec raises for what is not JSON."""
    return _encode(content)


def digest(content: bytes) -> str:
    """What tells contents apart: the SHA-256 of their canonical form."""
    return hashlib.sha256(content).hexdigest()
