"""Integrations: a named, scheduled job specification."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, ClassVar, assert_never

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from domain import errors, messages, policies, schedules
from domain.policies import Policy
from domain.schedules import INTERVAL_MAX, Entry, Schedule

STREAM = "integrations"
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Created(messages.Event, frozen=True, tag="integrations.created"):
    """`config` is the kind's own; secrets are sealed outside the log. `interval` in seconds, None without one;
    `schedule` says more than an interval can, and then says that too. `policy` is what differs from the settings."""

    PUBLIC: ClassVar[bool] = True
    name: str
    kind: str
    config: Raw
    interval: int | None = None
    declared: bool = False
    schedule: Schedule | None = None
    policy: Policy | None = None


class Changed(messages.Event, frozen=True, tag="integrations.changed"):
    """The integration as it is from here on; `reconfigured` when what it syncs changed, so its baseline is void."""

    PUBLIC: ClassVar[bool] = True
    name: str
    config: Raw
    interval: int | None
    reconfigured: bool
    schedule: Schedule | None = None
    policy: Policy | None = None


class Started(messages.Event, frozen=True, tag="integrations.started"):
    """Its schedule is on."""

    PUBLIC: ClassVar[bool] = True


class Stopped(messages.Event, frozen=True, tag="integrations.stopped"):
    """Its schedule is off until it is started."""

    PUBLIC: ClassVar[bool] = True


class Deleted(messages.Event, frozen=True, tag="integrations.deleted"):
    PUBLIC: ClassVar[bool] = True


class Overdue(messages.Event, frozen=True, tag="integrations.overdue"):
    """The run that was due at `due` had not begun when its tolerance had passed; `job` where it had been queued.
    `resumes` is where a schedule goes on that makes up for nothing."""

    PUBLIC: ClassVar[bool] = True
    ALIAS: ClassVar[str | None] = "sync.overdue"
    name: str
    due: datetime
    entry: Entry = "main"
    job: str | None = None
    resumes: datetime | None = None


Event = Created | Changed | Started | Stopped | Deleted | Overdue


class Integration(Struct, frozen=True):
    """`overdue` is the last due time that was said to be overdue, of each entry of the schedule."""

    name: str | None = None
    kind: str = ""
    config: Raw = Raw(b"{}")
    interval: int | None = None
    active: bool = True
    declared: bool = False
    schedule: Schedule | None = None
    policy: Policy | None = None
    overdue: tuple[tuple[Entry, datetime], ...] = ()


initial = Integration()


def schedule(event: Created | Changed) -> Schedule | None:
    """The schedule that an event gives."""
    if event.schedule is None and event.interval is not None:
        return Schedule(every=event.interval)
    return event.schedule


def evolve(state: Integration, event: Event) -> Integration:
    match event:
        case Created():
            return Integration(
                name=event.name,
                kind=event.kind,
                config=event.config,
                interval=event.interval,
                declared=event.declared,
                schedule=schedule(event),
                policy=event.policy,
            )
        case Changed():
            return replace(
                state,
                name=event.name,
                config=event.config,
                interval=event.interval,
                schedule=schedule(event),
                policy=event.policy,
            )
        case Started():
            return replace(state, active=True)
        case Stopped():
            return replace(state, active=False)
        case Deleted():
            return initial
        case Overdue():
            others = [one for one in state.overdue if one[0] != event.entry]
            return replace(state, overdue=(*others, (event.entry, event.due)))
        case _:
            assert_never(event)


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
    schedule: Schedule | None = None
    policy: Policy | None = None


class Change(messages.Command, frozen=True):
    """What is UNSET stays; an interval alone leaves the rest of the schedule as it is, None takes it away."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    config: Raw | msgspec.UnsetType = msgspec.UNSET
    interval: int | msgspec.UnsetType | None = msgspec.UNSET
    schedule: Schedule | msgspec.UnsetType | None = msgspec.UNSET
    policy: Policy | msgspec.UnsetType | None = msgspec.UNSET


class Start(messages.Command, frozen=True):
    pass


class Stop(messages.Command, frozen=True):
    pass


class Delete(messages.Command, frozen=True):
    pass


class Run(messages.Command, frozen=True):
    """A scheduled job is queued in the same append, unless the schedule has been stopped or deleted meanwhile."""


class Miss(messages.Command, frozen=True):
    """That run has not begun in time."""

    due: datetime
    entry: Entry = "main"
    job: str | None = None
    resumes: datetime | None = None


Command = Create | Change | Start | Stop | Delete | Run | Miss


def decide(command: Command, state: Integration) -> Sequence[Event]:
    if isinstance(command, Create):
        return _create(command, state)
    if state.name is None:
        raise errors.NotFound("There is no such integration")
    match command:
        case Change():
            return _change(command, state, state.name)
        case Start():
            return [] if state.active else [Started()]
        case Stop():
            return [Stopped()] if state.active else []
        case Delete():
            return [Deleted()]
        case Run():
            if not state.active:
                raise errors.InvalidState("The schedule is stopped")
            return []
        case Miss():
            return _miss(command, state, state.name)
        case _:
            assert_never(command)


def _create(command: Create, state: Integration) -> Sequence[Event]:
    check_id(command.id)
    check_interval(command.interval)
    interval = msgspec.UNSET if command.interval is None else command.interval
    schedule = _merged(None, interval, msgspec.UNSET if command.schedule is None else command.schedule)
    _check(schedule, command.policy)
    if state.name is not None:
        raise errors.AlreadyExists(f"There is an integration {command.id}")
    created = Created(
        name=command.name,
        kind=command.kind,
        config=command.config,
        interval=None if schedule is None else schedule.every,
        declared=command.declared,
        schedule=_more(schedule),
        policy=command.policy,
    )
    return [created]


def _change(command: Change, state: Integration, name: str) -> Sequence[Event]:
    name = name if command.name is msgspec.UNSET else command.name
    config = state.config if command.config is msgspec.UNSET else command.config
    policy = state.policy if command.policy is msgspec.UNSET else command.policy
    if command.interval is not msgspec.UNSET:
        check_interval(command.interval)
    schedule = _merged(state.schedule, command.interval, command.schedule)
    _check(schedule, policy)
    reconfigured = _plain(config) != _plain(state.config)
    if (name, schedule, policy) == (state.name, state.schedule, state.policy) and not reconfigured:
        return []
    changed = Changed(
        name=name,
        config=config,
        interval=None if schedule is None else schedule.every,
        reconfigured=reconfigured,
        schedule=_more(schedule),
        policy=policy,
    )
    return [changed]


def _miss(command: Miss, state: Integration, name: str) -> Sequence[Event]:
    if any(entry == command.entry and due >= command.due for entry, due in state.overdue):
        return []
    return [Overdue(name, command.due, command.entry, command.job, command.resumes)]


def _merged(
    before: Schedule | None,
    interval: int | msgspec.UnsetType | None,
    schedule: Schedule | msgspec.UnsetType | None,
) -> Schedule | None:
    """What two ways to say it come to. Raises errors.Invalid where they differ."""
    if schedule is msgspec.UNSET:
        if interval is msgspec.UNSET:
            return before
        return None if interval is None else replace(before or Schedule(), every=interval, cron=None)
    if schedule is None:
        if interval is not msgspec.UNSET and interval is not None:
            raise errors.Invalid("syncInterval: schedule says that there is none")
        return None
    if interval is msgspec.UNSET or interval == schedule.every:
        return schedule
    if schedule.cron is not None or schedule.every is not None:
        raise errors.Invalid("syncInterval: schedule says otherwise; one of them is enough")
    return replace(schedule, every=interval)


def _more(schedule: Schedule | None) -> Schedule | None:
    """What an interval does not say."""
    return None if schedule is None or schedule == Schedule(every=schedule.every) else schedule


def _check(schedule: Schedule | None, policy: Policy | None) -> None:
    if schedule is not None:
        schedules.check(schedule)
    if policy is not None:
        policies.check(policy)


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
