"""Sync sessions: jobs and uploads attach to one, until somebody completes it or nobody names it any more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from domain import errors, messages

STREAM = "sessions"
#: How much may be attached to one session.
MOST = 10_000

Kind = Literal["job", "upload"]
SyncType = Literal["Full", "Incremental", "Differential"]
Status = Literal["in-progress", "completed", "failed", "cancelled"]
Reason = Literal["incomplete", "abandoned"]

STATUSES: tuple[Status, ...] = ("in-progress", "completed", "failed", "cancelled")
SYNC_TYPES: tuple[SyncType, ...] = ("Full", "Incremental", "Differential")


class Location(Struct, frozen=True):
    """`text` as it may be shown. Where that is not all of it, `digest` is a keyed hash of the whole (hexadecimal)."""

    text: str
    digest: str | None = None


class Totals(Struct, frozen=True):
    """What the jobs and uploads of a session came to: `changes` were applied, `errors` counts what went wrong and
    `messages` are the first of them, `duration_ms` is that of all jobs together, `bytes` were moved."""

    jobs: int = 0
    uploads: int = 0
    processed: int = 0
    changes: int = 0
    conflicts: int = 0
    errors: int = 0
    bytes: int = 0
    duration_ms: int = 0
    messages: tuple[str, ...] = ()


class Started(messages.Event, frozen=True, tag="sessions.started"):
    PUBLIC: ClassVar[bool] = True
    source: Location
    target: Location
    sync_type: SyncType


class Attached(messages.Event, frozen=True, tag="sessions.attached"):
    """A job was queued, or an upload opened, as part of the session."""

    PUBLIC: ClassVar[bool] = True
    kind: Kind
    item: str


class CompletionRequested(messages.Event, frozen=True, tag="sessions.completion_requested"):
    """From here on nothing is attached; the session ends with the last of its jobs."""


class Completed(messages.Event, frozen=True, tag="sessions.completed"):
    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "sync.completed"
    totals: Totals


class Failed(messages.Event, frozen=True, tag="sessions.failed"):
    """`incomplete` when not all of its work was done, `abandoned` when nobody named it for too long; `progress` is how
    far it was, in percent."""

    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "sync.failed"
    reason: Reason
    message: str
    totals: Totals
    progress: int


class Cancelled(messages.Event, frozen=True, tag="sessions.cancelled"):
    """By whoever may; its jobs were stopped with it. The totals are those of that moment."""

    PUBLIC: ClassVar[bool] = True
    totals: Totals
    progress: int


Event = Started | Attached | CompletionRequested | Completed | Failed | Cancelled


class Session(Struct, frozen=True):
    """`attached` counts what was attached."""

    status: Status | None = None
    closing: bool = False
    attached: int = 0


initial = Session()


def evolve(state: Session, event: Event) -> Session:
    match event:
        case Started():
            return Session(status="in-progress")
        case Attached():
            return replace(state, attached=state.attached + 1)
        case CompletionRequested():
            return replace(state, closing=True)
        case Completed():
            return replace(state, status="completed")
        case Failed():
            return replace(state, status="failed")
        case Cancelled():
            return replace(state, status="cancelled")
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Start(messages.Command, frozen=True):
    """`job` is queued with it, where it has one of its own."""

    source: Location
    target: Location
    sync_type: SyncType
    job: str | None = None


class Attach(messages.Command, frozen=True):
    kind: Kind
    item: str


class RequestCompletion(messages.Command, frozen=True):
    pass


class Finish(messages.Command, frozen=True):
    """All of its jobs have ended; `failure` says what of the work was not done, if anything was not."""

    totals: Totals
    progress: int
    failure: str | None = None


class Abandon(messages.Command, frozen=True):
    """Nobody named it for too long. `attached` is how much was when that was found; more means that somebody did."""

    totals: Totals
    progress: int
    attached: int


class Cancel(messages.Command, frozen=True):
    """`attached` is how much there was to stop."""

    totals: Totals
    progress: int
    attached: int


Command = Start | Attach | RequestCompletion | Finish | Abandon | Cancel


def decide(command: Command, state: Session) -> Sequence[Event]:
    if isinstance(command, Start):
        return [] if state.status is not None else _start(command)
    if state.status is None:
        raise errors.NotFound("There is no such session", kind="session")
    is_open = state.status == "in-progress"
    match command:
        case Attach():
            return _attach(command, state)
        case RequestCompletion():
            if state.status == "cancelled":
                raise errors.InvalidState("The session is cancelled")
            return [CompletionRequested()] if is_open and not state.closing else []
        case Finish():
            return [_finished(command)] if is_open and state.closing else []
        case Abandon():
            if not is_open or state.attached != command.attached:
                return []
            said = "Nobody named the session within its lease"
            return [Failed(reason="abandoned", message=said, totals=command.totals, progress=command.progress)]
        case Cancel():
            return _cancel(command, state)
        case _:
            assert_never(command)


def _start(command: Start) -> Sequence[Event]:
    started = Started(source=command.source, target=command.target, sync_type=command.sync_type)
    return [started] if command.job is None else [started, Attached(kind="job", item=command.job)]


def _attach(command: Attach, state: Session) -> Sequence[Event]:
    if state.status != "in-progress":
        raise errors.Ended(f"The session is {state.status}")
    if state.closing:
        raise errors.Ended("The session is being completed")
    if state.attached >= MOST:
        raise errors.Ended(f"A session has at most {MOST} jobs and uploads; start another")
    return [Attached(kind=command.kind, item=command.item)]


def _finished(command: Finish) -> Event:
    if command.failure is None:
        return Completed(totals=command.totals)
    return Failed(reason="incomplete", message=command.failure, totals=command.totals, progress=command.progress)


def _cancel(command: Cancel, state: Session) -> Sequence[Event]:
    if state.status == "cancelled":
        return []
    if state.status != "in-progress":
        raise errors.InvalidState(f"The session is {state.status}")
    if state.attached != command.attached:
        raise errors.Conflict("Something was attached meanwhile")
    return [Cancelled(totals=command.totals, progress=command.progress)]


def sync_type(text: str) -> SyncType:
    """However it is spelled. Raises errors.Invalid."""
    found = next((one for one in SYNC_TYPES if one.lower() == text.lower()), None)
    if found is None:
        raise errors.Invalid(f"Unknown syncType; there are {', '.join(SYNC_TYPES)}")
    return found
