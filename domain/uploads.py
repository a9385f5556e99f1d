"""Uploads: bytes on their way into a library, in chunks that come in any order and more than once."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from datetime import datetime
from typing import ClassVar, Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from domain import errors, messages

STREAM = "uploads"

CHUNK_MIN, CHUNK, CHUNK_MAX = 64 * 1024, 4 * 1024 * 1024, 32 * 1024 * 1024

Status = Literal["pending", "in_progress", "completed", "failed", "expired", "cancelled"]


class Opened(messages.Event, frozen=True, tag="uploads.opened"):
    """`hash` is what the client declared, of BLAKE3 or SHA-256, hexadecimal; None where it declared none, and what
    arrives is what is meant. Sizes in bytes. `knew` is the version that stood at the path, for one who sends bytes
    without being a device.

    A `part` has no path: it waits to be joined with others. `parts` are the ids of those that this one was joined
    from. `metadata` is what a client of tus wants to be told again. `session` is the sync session that it is part of.
    """

    PERSONAL: ClassVar[tuple[str, ...]] = ("path", "metadata")
    path: str
    hash: str | None
    size: int
    chunk_size: int
    device: str | None
    knew_file: str | None = None
    knew_hash: str | None = None
    mtime: datetime | None = None
    part: bool = False
    parts: tuple[str, ...] = ()
    metadata: str | None = None
    session: str | None = None


class Completed(messages.Event, frozen=True, tag="uploads.completed"):
    """`hash` is the BLAKE3 under which the bytes are kept, `sequence` where in the feed they are; or the conflict that
    they are a side of."""

    hash: str
    sequence: int
    conflict: str | None = None


class Joined(messages.Event, frozen=True, tag="uploads.joined"):
    """The bytes of this part are in another upload now."""

    whole: str


class Failed(messages.Event, frozen=True, tag="uploads.failed"):
    reason: str


class Cancelled(messages.Event, frozen=True, tag="uploads.cancelled"):
    pass


class Expired(messages.Event, frozen=True, tag="uploads.expired"):
    """Nothing was heard of it for long."""


Event = Opened | Completed | Joined | Failed | Cancelled | Expired


class Upload(Struct, frozen=True):
    opened: Opened | None = None
    status: Status = "pending"
    completed: Completed | None = None
    reason: str = ""
    whole: str | None = None

    @property
    def over(self) -> bool:
        return self.status not in ("pending", "in_progress")


initial = Upload()


def evolve(state: Upload, event: Event) -> Upload:
    match event:
        case Opened():
            return Upload(opened=event)
        case Completed():
            return replace(state, status="completed", completed=event)
        case Joined():
            return replace(state, status="completed", whole=event.whole)
        case Failed():
            return replace(state, status="failed", reason=event.reason)
        case Cancelled():
            return replace(state, status="cancelled")
        case Expired():
            return replace(state, status="expired")
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Open(messages.Command, frozen=True):
    opened: Opened


class Complete(messages.Command, frozen=True):
    hash: str
    sequence: int
    conflict: str | None = None


class Join(messages.Command, frozen=True):
    whole: str


class Fail(messages.Command, frozen=True):
    reason: str


class Cancel(messages.Command, frozen=True):
    pass


class Expire(messages.Command, frozen=True):
    pass


Command = Open | Complete | Join | Fail | Cancel | Expire


def decide(command: Command, state: Upload) -> Sequence[Event]:
    if isinstance(command, Open):
        return [] if state.opened is not None else [command.opened]
    if state.opened is None:
        raise errors.NotFound("There is no such upload", kind="upload")
    match command:
        case Complete():
            if state.status == "completed":
                return []
            _still_open(state)
            return [Completed(hash=command.hash, sequence=command.sequence, conflict=command.conflict)]
        case Join():
            return [] if state.over or not state.opened.part else [Joined(whole=command.whole)]
        case Fail():
            return [] if state.over else [Failed(reason=command.reason)]
        case Cancel():
            if state.status == "cancelled":
                return []
            _still_open(state)
            return [Cancelled()]
        case Expire():
            return [] if state.over else [Expired()]
        case _:
            assert_never(command)


def _still_open(state: Upload) -> None:
    if state.over:
        raise errors.InvalidState(f"The upload is {state.status}")


def chunk_count(size: int, chunk_size: int) -> int:
    """A file without bytes has one chunk without bytes."""
    return max(1, -(-size // chunk_size))


def chunk_length(size: int, chunk_size: int, index: int) -> int:
    """How long a chunk has to be. Raises errors.Invalid for an index that there is not."""
    if not 0 <= index < chunk_count(size, chunk_size):
        raise errors.Invalid(f"There are chunks 0 to {chunk_count(size, chunk_size) - 1}")
    return min(chunk_size, size - index * chunk_size)


def first_missing(received: Container[int]) -> int:
    """The first chunk that has not come whole."""
    index = 0
    while index in received:
        index += 1
    return index
