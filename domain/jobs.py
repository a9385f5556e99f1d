"""Jobs: work that changes something, whatever its kind: one life cycle, one progress, one stop, one resume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, ClassVar, Literal, assert_never

from msgspec import Raw, Struct, field

from domain import errors, messages

STREAM = "jobs"
RUNNING = "jobs.running"

Lane = Literal["now", "later"]
Type = Literal["full_sync", "incremental_sync", "selective_sync"]
Trigger = Literal["request", "schedule"]
Status = Literal["queued", "running", "paused", "stopping", "stopped", "completed", "failed"]

STATUSES: tuple[Status, ...] = ("queued", "running", "paused", "stopping", "stopped", "completed", "failed")
OPEN: frozenset[Status] = frozenset({"queued", "running", "stopping"})


class Counters(Struct, frozen=True):
    """What a job did so far, the same words for every kind; `processed` counts unchanged items too."""

    processed: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0
    errors: int = 0
    bytes: int = 0


class Usage(Struct, frozen=True, omit_defaults=True):
    """What one run of a job took: CPU time of its processes, and the most memory that one of them had; and by how much
    it moved the job's counters on."""

    cpu_ms: int = 0
    peak_bytes: int = 0
    bytes: int = 0
    items: int = 0


class Ticket(Struct, frozen=True):
    """What the beginning and each end of a job repeat: what it is, its place in the queue of its lane, and the names
    that must not run twice at once (`target` is the digest of a folder's path, say)."""

    job: str
    kind: str
    type: Type
    lane: Lane
    integration: str | None = None
    target: str | None = None


class Queued(messages.Event, frozen=True, tag="jobs.queued"):
    """`spec` is the kind's own specification (domain.kinds); `roots` are those of whoever asked, empty for all;
    `estimated_ms` is what was promised, 0 without history; `waited` when a request waits for the end; `session` is the
    sync session that it is part of."""

    PUBLIC: ClassVar[bool] = True
    ticket: Ticket
    spec: Raw
    roots: tuple[str, ...] = ()
    requested_type: Type | None = None
    options: Raw = field(default_factory=lambda: Raw(b"{}"))
    estimated_ms: int = 0
    deadline: datetime | None = None
    waited: bool = False
    trigger: Trigger = "request"
    due: datetime | None = None
    session: str | None = None


class Started(messages.Event, frozen=True, tag="jobs.started"):
    """A worker took the job under its lease; the fence grows with every owner."""

    PUBLIC: ClassVar[bool] = True
    ticket: Ticket
    fence: int
    worker: str


class Progressed(messages.Event, frozen=True, tag="jobs.progressed"):
    """One for each stage and each 5 %; finer progress is a row."""

    stage: str
    progress: int
    counters: Counters


class Checkpointed(messages.Event, frozen=True, tag="jobs.checkpointed"):
    """What the job brought so far is in the log, and it goes on from `cursor` (JSON of the kind's own; null for its
    beginning)."""

    cursor: Raw
    counters: Counters


class StopRequested(messages.Event, frozen=True, tag="jobs.stop_requested"):
    """Gracefully: the operation under way is finished first."""

    graceful: bool


class Held(messages.Event, frozen=True, tag="jobs.held"):
    """A guard holds the plan until somebody confirms its hash."""

    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "sync.held"
    ticket: Ticket
    reason: str
    plan: str
    counters: Counters
    details: dict[str, Any] = field(default_factory=dict)
    usage: Usage | None = None


class Paused(messages.Event, frozen=True, tag="jobs.paused"):
    """By the system only: a worker that shuts down, a remote that asks for patience. With `until` the job is tried
    again then; `code` says what the `tried`-th attempt in a row failed of, none where it was not begun."""

    PUBLIC: ClassVar[bool] = True
    ticket: Ticket
    reason: str
    code: str | None = None
    until: datetime | None = None
    tried: int = 0
    counters: Counters | None = None
    usage: Usage | None = None


class Resumed(messages.Event, frozen=True, tag="jobs.resumed"):
    """`running` at once, without a lease until a worker takes it; else queued behind another of its integration.
    `retry` when the time to try again had come, not by anybody's wish."""

    PUBLIC: ClassVar[bool] = True
    ticket: Ticket
    running: bool
    confirm: str | None = None
    retry: bool = False


class Stopped(messages.Event, frozen=True, tag="jobs.stopped"):
    PUBLIC: ClassVar[bool] = True
    ticket: Ticket
    reason: str
    counters: Counters
    usage: Usage | None = None


class Completed(messages.Event, frozen=True, tag="jobs.completed"):
    """`result` is the kind's own result (domain.kinds); `duration_ms` is from a monotonic clock."""

    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "sync.completed"
    ticket: Ticket
    counters: Counters
    result: Raw
    duration_ms: int
    usage: Usage | None = None


class Failed(messages.Event, frozen=True, tag="jobs.failed"):
    """`code` is of the catalogue of errors."""

    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "sync.failed"
    ticket: Ticket
    code: str
    message: str
    counters: Counters
    details: dict[str, Any] = field(default_factory=dict)
    usage: Usage | None = None


class Deleted(messages.Event, frozen=True, tag="jobs.deleted"):
    """The log lines are kept unless `logs`."""

    logs: bool


Event = (
    Queued
    | Started
    | Progressed
    | Checkpointed
    | StopRequested
    | Held
    | Paused
    | Resumed
    | Stopped
    | Completed
    | Failed
    | Deleted
)


class Job(Struct, frozen=True):
    """`attempts` counts starts since the last progress: a job that ends its worker each time is given up. `tried`
    counts failures that may pass since it last brought something, `until` is when it is tried again; `by_hand` when
    somebody asked for the present attempt. `cursor` is where it goes on, None for its beginning."""

    status: Status | None = None
    queued: Queued | None = None
    fence: int = 0
    attempts: int = 0
    tried: int = 0
    until: datetime | None = None
    by_hand: bool = True
    graceful: bool = True
    stage: str | None = None
    progress: int = 0
    counters: Counters = Counters()
    cursor: Raw | None = None
    confirm: str | None = None
    plan: str | None = None
    ended: Stopped | Completed | Failed | None = None
    deleted: bool = False


initial = Job()


def _with(job: Job, **changes: Any) -> Job:
    fields = {name: getattr(job, name) for name in job.__struct_fields__}
    return Job(**{**fields, **changes})


def evolve(state: Job, event: Event) -> Job:
    match event:
        case Queued():
            return Job(status="queued", queued=event, by_hand=event.trigger == "request")
        case Started():
            return _with(state, status="running", fence=event.fence, attempts=state.attempts + 1)
        case Progressed():
            progress = max(state.progress, event.progress)
            return _with(state, stage=event.stage, progress=progress, counters=event.counters, attempts=0)
        case Checkpointed():
            cursor = None if bytes(event.cursor) == b"null" else event.cursor
            moved = cursor is not None and (state.cursor is None or bytes(cursor) != bytes(state.cursor))
            tried = 0 if moved else state.tried
            return _with(state, cursor=cursor, counters=event.counters, attempts=0, tried=tried)
        case StopRequested():
            return _with(state, status="stopping", graceful=event.graceful)
        case Held():  # what somebody confirms is a plan of the whole, so it is made anew
            return _with(state, status="paused", plan=event.plan, counters=event.counters, cursor=None)
        case Paused():
            counters = state.counters if event.counters is None else event.counters
            return _with(state, status="paused", until=event.until, tried=event.tried, counters=counters)
        case Resumed():
            status = "running" if event.running else "queued"
            tried = state.tried if event.retry else 0
            state = _with(state, status=status, confirm=event.confirm, attempts=0, tried=tried, until=None)
            return _with(state, graceful=True, ended=None, by_hand=not event.retry)
        case Stopped():
            return _with(state, status="stopped", counters=event.counters, ended=event, until=None)
        case Completed():
            return _with(state, status="completed", counters=event.counters, progress=100, ended=event)
        case Failed():
            return _with(state, status="failed", counters=event.counters, ended=event)
        case Deleted():
            return _with(state, deleted=True)
        case _:
            assert_never(event)


def line(integration: str) -> str:
    """The line in which the jobs of an integration wait."""
    return f"integration/{integration}"


def _exclusive(ticket: Ticket) -> list[str]:
    """The names under which one job at a time runs; the first is the line in which the job waits."""
    names = [] if ticket.integration is None else [line(ticket.integration)]
    return names if ticket.target is None else [*names, f"target/{ticket.target}"]


def _place(ticket: Ticket) -> tuple[str, str]:
    """The claim that is the job's place in the queue: `<job>|<line>`, so that one look finds who need not wait."""
    return f"work/{ticket.lane}", f"{ticket.job}|{next(iter(_exclusive(ticket)), '')}"


def _rest(ticket: Ticket) -> tuple[str, str]:
    """The claim of a job that waits for its next attempt: open work, which no worker takes."""
    return "work/rests", _place(ticket)[1]


def claims(event: Event) -> Iterable[messages.Claim]:
    match event:
        case Queued():
            yield messages.take(*_place(event.ticket))
        case Started():
            for name in _exclusive(event.ticket):
                yield messages.take(RUNNING, name)
        case Resumed():
            yield messages.release(*_rest(event.ticket))
            yield messages.take(*_place(event.ticket))
            if event.running:
                for name in _exclusive(event.ticket):
                    yield messages.take(RUNNING, name)
        case Held() | Paused() | Stopped() | Completed() | Failed():
            yield messages.release(*_place(event.ticket))
            for name in _exclusive(event.ticket):
                yield messages.release(RUNNING, name)
            if isinstance(event, Paused) and event.until is not None:
                yield messages.take(*_rest(event.ticket))
            elif isinstance(event, Stopped):
                yield messages.release(*_rest(event.ticket))
        case Progressed() | Checkpointed() | StopRequested() | Deleted():
            return
        case _:
            assert_never(event)


class Queue(messages.Command, frozen=True):
    queued: Queued


class Start(messages.Command, frozen=True):
    """By a worker that holds the lease under `fence`; `at` is its present time."""

    fence: int
    worker: str
    at: datetime


class Progress(messages.Command, frozen=True):
    stage: str
    progress: int
    counters: Counters


class Checkpoint(messages.Command, frozen=True):
    """Said together with what was brought."""

    cursor: Raw
    counters: Counters


class Stop(messages.Command, frozen=True):
    """With `open_only` a job that has ended or rests meanwhile is left alone, else it is refused."""

    graceful: bool = True
    open_only: bool = False


class Expire(messages.Command, frozen=True):
    """The deadline of whoever waits has passed: nothing more will be applied."""


class Resume(messages.Command, frozen=True):
    """`running=False` queues it, for when another job of the integration runs. `retry` is the time for which its next
    attempt was promised: a job that has been resumed since is left alone."""

    confirm: str | None = None
    running: bool = True
    retry: datetime | None = None


class Hold(messages.Command, frozen=True):
    reason: str
    plan: str
    counters: Counters
    details: dict[str, Any] = field(default_factory=dict)
    usage: Usage | None = None


class Pause(messages.Command, frozen=True):
    """With `until` it is tried again then, after a failure with `code` or, without one, before it began."""

    reason: str
    code: str | None = None
    until: datetime | None = None
    counters: Counters | None = None
    usage: Usage | None = None


class Complete(messages.Command, frozen=True):
    counters: Counters
    result: Raw
    duration_ms: int
    usage: Usage | None = None


class Fail(messages.Command, frozen=True):
    code: str
    message: str
    counters: Counters
    details: dict[str, Any] = field(default_factory=dict)
    usage: Usage | None = None


class EndStop(messages.Command, frozen=True):
    """The worker has carried out a stop."""

    counters: Counters
    usage: Usage | None = None


class Delete(messages.Command, frozen=True):
    logs: bool = False


Command = (
    Queue | Start | Progress | Checkpoint | Stop | Expire | Resume | Hold | Pause | Complete | Fail | EndStop | Delete
)
_OfAWorker = Progress | Checkpoint | Hold | Pause | Complete | Fail | EndStop


def decide(command: Command, state: Job) -> Sequence[Event]:
    if isinstance(command, Queue):
        return [command.queued] if state.status is None else []
    if state.queued is None or state.status is None or state.deleted:
        raise errors.NotFound("There is no such job")
    ticket = state.queued.ticket
    match command:
        case Start():
            return _start(command, state, state.queued)
        case Progress() | Checkpoint() | Hold() | Pause() | Complete() | Fail() | EndStop():
            return _work(command, state, ticket)
        case Stop():
            over = state.status not in OPEN and state.until is None
            return [] if command.open_only and over else _stop(command, state, ticket)
        case Expire():
            return [Stopped(ticket=ticket, reason="deadline", counters=state.counters)] if state.status in OPEN else []
        case Resume():
            return _resume(command, state, ticket)
        case Delete():
            if state.status in OPEN or state.until is not None:
                raise errors.InvalidState(f"A {state.status} job cannot be deleted; stop it first")
            return [Deleted(logs=command.logs)]
        case _:
            assert_never(command)


def _start(command: Start, state: Job, queued: Queued) -> Sequence[Event]:
    if state.status == "stopping":
        return [Stopped(ticket=queued.ticket, reason="requested", counters=state.counters)]
    if state.status not in ("queued", "running") or command.fence <= state.fence:
        raise errors.InvalidState(f"A {state.status} job cannot be started")
    if queued.deadline is not None and command.at >= queued.deadline:
        return [Stopped(ticket=queued.ticket, reason="deadline", counters=state.counters)]
    return [Started(ticket=queued.ticket, fence=command.fence, worker=command.worker)]


def _resume(command: Resume, state: Job, ticket: Ticket) -> Sequence[Event]:
    if command.retry is not None:
        due = state.status == "paused" and state.until == command.retry
        return [Resumed(ticket=ticket, running=command.running, retry=True)] if due else []
    if state.status not in ("paused", "failed"):
        raise errors.InvalidState(f"A {state.status} job cannot be resumed")
    return [Resumed(ticket=ticket, running=command.running, confirm=command.confirm)]


def _stop(command: Stop, state: Job, ticket: Ticket) -> Sequence[Event]:
    match state.status:
        case "queued" | "paused":
            return [Stopped(ticket=ticket, reason="requested", counters=state.counters)]
        case "running":
            return [StopRequested(graceful=command.graceful)]
        case "stopping":
            return [StopRequested(graceful=False)] if state.graceful and not command.graceful else []
        case _:
            raise errors.InvalidState(f"A {state.status} job cannot be stopped")


def _work(command: _OfAWorker, state: Job, ticket: Ticket) -> Sequence[Event]:
    if state.status not in ("running", "stopping"):
        raise errors.InvalidState(f"The job is {state.status}")
    if isinstance(command, Hold | Pause) and state.status == "stopping":
        # Whoever asked for the stop is not told instead to come back later.
        return [Stopped(ticket=ticket, reason="requested", counters=state.counters)]
    match command:
        case Progress():
            progress = max(state.progress, min(command.progress, 100))
            return [Progressed(stage=command.stage, progress=progress, counters=command.counters)]
        case Checkpoint():
            return [Checkpointed(cursor=command.cursor, counters=command.counters)]
        case Hold():
            held = Held(
                ticket=ticket,
                reason=command.reason,
                plan=command.plan,
                counters=command.counters,
                details=command.details,
                usage=command.usage,
            )
            assert state.queued is not None
            if not state.queued.waited:
                return [held]
            failed = Failed(
                ticket=ticket,
                code=errors.Held.code,
                message=command.reason,
                counters=command.counters,
                details=command.details,
            )
            return [held, failed]
        case Pause():
            return [_paused(command, state, ticket)]
        case Complete():
            done = Completed(
                ticket=ticket,
                counters=command.counters,
                result=command.result,
                duration_ms=command.duration_ms,
                usage=command.usage,
            )
            return [done]
        case Fail():
            failed = Failed(
                ticket=ticket,
                code=command.code,
                message=command.message,
                counters=command.counters,
                details=command.details,
                usage=command.usage,
            )
            return [failed]
        case EndStop():
            if state.status != "stopping":
                raise errors.InvalidState("Nobody has asked the job to stop")
            return [Stopped(ticket=ticket, reason="requested", counters=command.counters, usage=command.usage)]
        case _:
            assert_never(command)


def _paused(command: Pause, state: Job, ticket: Ticket) -> Paused:
    return Paused(
        ticket=ticket,
        reason=command.reason,
        code=command.code,
        until=command.until,
        tried=state.tried + (command.code is not None),
        counters=command.counters,
        usage=command.usage,
    )
