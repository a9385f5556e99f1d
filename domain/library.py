"""A user's library: each file is a stream; its path is claimed, so no two files ever stand in one place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import ClassVar, Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from domain import errors, messages

STREAM = "library"
PLACE = "library.path"

Resolution = Literal["server_wins", "client_wins", "keep_both", "manual", "merge"]
RESOLUTIONS: tuple[Resolution, ...] = ("server_wins", "client_wins", "keep_both", "manual", "merge")


class Place(Struct, frozen=True):
    """Where a file stands, as names that say nothing: `at` is the keyed hash of its path, `below` those of the folders
    it stands in. So a file cannot stand where a folder is, and claims need no path in clear."""

    at: str
    below: tuple[str, ...] = ()


class Content(Struct, frozen=True):
    """`hash` is the BLAKE3 of the bytes, hexadecimal; `size` in bytes; `mtime` as the device said."""

    hash: str
    size: int
    mtime: datetime | None = None


class Created(messages.Event, frozen=True, tag="library.created"):
    """`device` None stands for the server itself, in all of these."""

    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    place: Place
    content: Content
    device: str | None
    number: int = 1


class Modified(messages.Event, frozen=True, tag="library.modified"):
    """`number` counts the versions of a file."""

    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    place: Place
    content: Content
    device: str | None
    number: int


class Touched(messages.Event, frozen=True, tag="library.touched"):
    """The same bytes with another time; or said once more, for a device that must fetch them again."""

    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    place: Place
    content: Content
    device: str | None
    number: int


class Moved(messages.Event, frozen=True, tag="library.moved"):
    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("path", "old_path")
    path: str
    place: Place
    old_path: str
    old_place: Place
    content: Content
    device: str | None
    number: int


class Deleted(messages.Event, frozen=True, tag="library.deleted"):
    """`again` when it was deleted before and is only said once more."""

    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    place: Place
    device: str | None
    number: int
    again: bool = False


class Restored(messages.Event, frozen=True, tag="library.restored"):
    """A deleted file is there again, perhaps with other bytes and in another place."""

    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("path",)
    path: str
    place: Place
    content: Content
    device: str | None
    number: int


class ConflictFound(messages.Event, frozen=True, tag="library.conflict_found"):
    """Both sides changed; `rule` is of domain.plans.library. `local_*` is the side of `device`, `server_*` what stood
    there; `base_hash` what the device had known. Hashes are None for a side that deleted."""

    PUBLIC: ClassVar[bool] = True
    PERSONAL: ClassVar[tuple[str, ...]] = ("path",)
    conflict: str
    rule: str
    path: str
    place: Place
    device: str
    local_change: str
    local_hash: str | None
    local_size: int | None
    local_mtime: datetime | None
    base_hash: str | None
    server_hash: str | None
    server_device: str | None
    server_number: int
    server_mtime: datetime | None = None


class ConflictResolved(messages.Event, frozen=True, tag="library.conflict_resolved"):
    """`awaits` is the hash of bytes that a device has yet to upload; `kept` is the file that keeps the other side."""

    PUBLIC: ClassVar[bool] = True
    conflict: str
    resolution: Resolution
    device: str | None
    awaits: str | None = None
    kept: str | None = None


class ConflictReopened(messages.Event, frozen=True, tag="library.conflict_reopened"):
    """Its resolution was undone."""

    PUBLIC: ClassVar[bool] = True
    conflict: str


Event = Created | Modified | Touched | Moved | Deleted | Restored | ConflictFound | ConflictResolved | ConflictReopened


class Conflict(Struct, frozen=True):
    found: ConflictFound
    resolved: ConflictResolved | None = None


class File(Struct, frozen=True):
    """`number` 0 where there never was one; `conflicts` by id, the resolved ones too."""

    number: int = 0
    path: str = ""
    place: Place = Place("")
    content: Content | None = None
    device: str | None = None
    deleted: bool = False
    conflicts: dict[str, Conflict] = {}

    @property
    def alive(self) -> bool:
        return self.number > 0 and not self.deleted

    @property
    def hash(self) -> str | None:
        """That of its bytes, None while there are none."""
        return self.content.hash if self.content is not None and self.alive else None

    def open_conflicts(self) -> Iterable[Conflict]:
        return (one for one in self.conflicts.values() if one.resolved is None)


initial = File()


def evolve(state: File, event: Event) -> File:
    match event:
        case Created() | Modified() | Touched() | Moved() | Restored():
            return replace(
                state,
                number=event.number,
                path=event.path,
                place=event.place,
                content=event.content,
                device=event.device,
                deleted=False,
            )
        case Deleted():
            return replace(state, number=event.number, device=event.device, deleted=True)
        case ConflictFound():
            return _with_conflict(state, Conflict(event))
        case ConflictResolved():
            return _with_resolution(state, event.conflict, event)
        case ConflictReopened():
            return _with_resolution(state, event.conflict, None)
        case _:
            assert_never(event)


def _with_conflict(state: File, conflict: Conflict) -> File:
    return replace(state, conflicts={**state.conflicts, conflict.found.conflict: conflict})


def _with_resolution(state: File, id: str, resolved: ConflictResolved | None) -> File:
    known = state.conflicts.get(id)
    return state if known is None else _with_conflict(state, Conflict(known.found, resolved))


def claims(event: Event) -> Iterable[messages.Claim]:
    match event:
        case Created() | Restored():
            yield from _take(event.place)
        case Moved():
            yield from _release(event.old_place)
            yield from _take(event.place)
        case Deleted():
            if not event.again:
                yield from _release(event.place)
        case Modified() | Touched() | ConflictFound() | ConflictResolved() | ConflictReopened():
            return
        case _:
            assert_never(event)


def _take(place: Place) -> Iterable[messages.Claim]:
    yield messages.take(PLACE, place.at)
    for folder in place.below:
        yield messages.take(PLACE, folder, shared=True)


def _release(place: Place) -> Iterable[messages.Claim]:
    for name in (place.at, *place.below):
        yield messages.release(PLACE, name)


# Commands. `expect` is the number of the version they were decided on: another one is a Conflict.


class Create(messages.Command, frozen=True):
    """For a stream that is new, or for a file that was deleted."""

    path: str
    place: Place
    content: Content
    device: str | None = None
    expect: int = 0


class Modify(messages.Command, frozen=True):
    content: Content
    expect: int
    device: str | None = None


class Touch(messages.Command, frozen=True):
    expect: int
    mtime: datetime
    device: str | None = None


class Announce(messages.Command, frozen=True):
    """Says once more how the file is, for devices that believe otherwise."""

    expect: int


class Move(messages.Command, frozen=True):
    """With `content` when its bytes changed on the way."""

    path: str
    place: Place
    expect: int
    device: str | None = None
    content: Content | None = None


class Delete(messages.Command, frozen=True):
    expect: int
    device: str | None = None


Change = Create | Modify | Touch | Announce | Move | Delete


class FindConflict(messages.Command, frozen=True):
    """The same change of the same device is one conflict, however often it is reported."""

    found: ConflictFound


class Resolve(messages.Command, frozen=True):
    """`then` follows with it, on the same file: what makes the resolution true. Without it nothing moves."""

    conflict: str
    resolution: Resolution
    device: str | None = None
    awaits: str | None = None
    kept: str | None = None
    then: Change | None = None


class Reopen(messages.Command, frozen=True):
    conflict: str
    then: Change | None = None


Command = Change | FindConflict | Resolve | Reopen


def decide(command: Command, state: File) -> Sequence[Event]:
    match command:
        case Create() | Modify() | Touch() | Announce() | Move() | Delete():
            return [_change(command, state)]
        case FindConflict():
            known = (one.found for one in state.open_conflicts())
            return [] if any(same_change(one, command.found) for one in known) else [command.found]
        case Resolve():
            return _resolve(command, state)
        case Reopen():
            conflict = _conflict(command.conflict, state)
            if conflict.resolved is None:
                return []
            then = [] if command.then is None else [_change(command.then, state)]
            return [ConflictReopened(conflict=command.conflict), *then]
        case _:
            assert_never(command)


def _change(command: Change, state: File) -> Event:
    if command.expect != state.number or not (state.alive or isinstance(command, Create | Announce)):
        raise errors.Conflict("The file has changed meanwhile")
    number = state.number + 1
    match command:
        case Create():
            if state.alive:
                raise errors.Conflict("There is a file already")
            kind = Restored if state.number else Created
            place, content, device = command.place, command.content, command.device
            return kind(path=command.path, place=place, content=content, device=device, number=number)
        case Delete():
            return Deleted(path=state.path, place=state.place, device=command.device, number=number)
        case Announce() if state.deleted:
            return Deleted(path=state.path, place=state.place, device=None, number=number, again=True)
        case _:
            return _changed(command, state)


def _changed(command: Modify | Touch | Announce | Move, state: File) -> Event:
    if state.content is None:
        raise errors.NotFound("There is no such file", kind="file")
    path, place, content, number = state.path, state.place, state.content, state.number + 1
    match command:
        case Modify():
            return Modified(path=path, place=place, content=command.content, device=command.device, number=number)
        case Touch():
            content = replace(content, mtime=command.mtime)
            return Touched(path=path, place=place, content=content, device=command.device, number=number)
        case Announce():
            return Touched(path=path, place=place, content=content, device=None, number=number)
        case Move():
            return Moved(
                path=command.path,
                place=command.place,
                old_path=path,
                old_place=place,
                content=command.content or content,
                device=command.device,
                number=number,
            )
        case _:
            assert_never(command)


def same_change(one: ConflictFound, other: ConflictFound) -> bool:
    """Whether two reports are the same change of the same device."""
    return (one.device, one.path, one.local_hash) == (other.device, other.path, other.local_hash)


def _resolve(command: Resolve, state: File) -> Sequence[Event]:
    conflict = _conflict(command.conflict, state)
    if conflict.resolved is not None:
        if conflict.resolved.resolution != command.resolution:
            raise errors.InvalidState("already_resolved: the conflict was resolved otherwise")
        if conflict.resolved.awaits is None or command.awaits is not None:
            return []  # else the bytes that it waited for have come
    resolved = ConflictResolved(
        conflict=command.conflict,
        resolution=command.resolution,
        device=command.device,
        awaits=command.awaits,
        kept=command.kept,
    )
    return [resolved] if command.then is None else [resolved, _change(command.then, state)]


def _conflict(id: str, state: File) -> Conflict:
    if id not in state.conflicts:
        raise errors.NotFound("There is no such conflict", kind="conflict")
    return state.conflicts[id]
