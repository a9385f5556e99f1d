"""What is shown of integrations."""

from __future__ import annotations

from datetime import datetime

from msgspec import UNSET, Raw, Struct, UnsetType

from domain import integrations, messages, policies, schedules
from domain.policies import Breaker, Policy
from domain.schedules import Schedule
from projections import integrations as integrations_read
from projections import usage as usage_read
from services import vaulted
from services.gateway.dialects import Timestamp, timestamp_ms
from services.worker.remotes import Quota


class BreakerShown(Struct, rename="camel"):
    """`closed`; `open` after `failures` in a row, so that scheduled runs wait; from `nextProbe` on `half_open`: one may
    try."""

    state: policies.State
    failures: int
    opened_at: Timestamp | UnsetType = UNSET
    next_probe: Timestamp | UnsetType = UNSET


class QuotaShown(Struct, rename="camel"):
    """What the remote said: so many requests are left until `reset`, and none may be made before `notBefore`."""

    remaining: int | None
    reset: Timestamp | None
    not_before: Timestamp | UnsetType = UNSET


class Integration(Struct, rename="camel"):
    """`config` is without its secrets, which stay when a change leaves them out. `schedule` is there where it says more
    than `syncInterval`, without what is as by default. The answer to a change has no times of syncs."""

    integration_id: str
    name: str
    kind: str
    status: str
    sync_interval: int | None
    config: Raw
    created_at: Timestamp
    last_sync: Timestamp | UnsetType | None = UNSET
    next_sync: Timestamp | UnsetType | None = UNSET
    schedule: Schedule | UnsetType = UNSET
    policy: Policy | UnsetType = UNSET
    breaker: BreakerShown | UnsetType = UNSET
    quota: QuotaShown | UnsetType = UNSET


class Listing(Struct):
    integrations: list[Integration]
    total: int


class CurrentJob(Struct):
    id: str
    status: str
    progress: int


class Stats(Struct, rename="camel"):
    total_jobs: int
    success_rate: float
    average_duration: int


class UsageShown(Struct, rename="camel"):
    """What its jobs took so far, in so many runs: CPU time of their processes in ms, the most memory that one of these
    had, the bytes that were moved and the items that were looked at."""

    runs: int
    cpu_time: int
    peak_memory: int
    bytes: int
    items: int


class Status(Struct, rename="camel"):
    integration_id: str
    name: str
    status: str
    last_sync: Timestamp | None
    next_sync: Timestamp | None
    sync_interval: int | None
    stats: Stats
    breaker: BreakerShown
    current_job: CurrentJob | UnsetType = UNSET
    quota: QuotaShown | UnsetType = UNSET
    usage: UsageShown | UnsetType = UNSET


class Statuses(Struct):
    integrations: list[Status]


def _status(row: integrations_read.Row) -> str:
    if not row.active:
        return "stopped"
    return "error" if row.last_failed else "active"


def _time(at: datetime | None) -> Timestamp | None:
    return None if at is None else timestamp_ms(at)


def _breaker(found: Breaker) -> BreakerShown:
    shown = BreakerShown(found.state, found.failures)
    if found.opened_at is not None and found.probe_at is not None:
        shown.opened_at, shown.next_probe = timestamp_ms(found.opened_at), timestamp_ms(found.probe_at)
    return shown


def _quota(found: Quota | None) -> QuotaShown | UnsetType:
    if found is None:
        return UNSET
    shown = QuotaShown(found.remaining, _time(found.reset_at))
    if found.not_before is not None:
        shown.not_before = timestamp_ms(found.not_before)
    return shown


def shape(row: integrations_read.Row, breaker: Breaker, quota: Quota | None) -> Integration:
    return Integration(
        integration_id=row.id,
        name=row.name,
        kind=row.kind,
        status=_status(row),
        sync_interval=row.interval,
        config=vaulted.shown(row.kind, row.config),
        created_at=timestamp_ms(row.created_at),
        last_sync=_time(row.last_sync),
        next_sync=_time(row.next_sync),
        schedule=_schedule(row.plan),
        policy=UNSET if row.rules is None else row.rules,
        breaker=_breaker(breaker),
        quota=_quota(quota),
    )


def _schedule(schedule: Schedule | None) -> Schedule | UnsetType:
    return UNSET if schedule is None or schedule == Schedule(every=schedule.every) else schedule


def created(recorded: messages.Recorded) -> Integration:
    """From its event alone."""
    event = recorded.event
    assert isinstance(event, integrations.Created)
    schedule = integrations.schedule(event)
    return Integration(
        integration_id=recorded.id,
        name=event.name,
        kind=event.kind,
        status="active",
        sync_interval=event.interval,
        config=vaulted.shown(event.kind, event.config),
        created_at=timestamp_ms(recorded.recorded_at),
        last_sync=None,
        next_sync=_time(schedules.first(f"{recorded.tenant}/{recorded.id}", schedule, recorded.recorded_at)),
        schedule=_schedule(schedule),
        policy=UNSET if event.policy is None else event.policy,
        breaker=BreakerShown("closed", 0),
    )


def changed(id: str, created_at: datetime, state: integrations.Integration) -> Integration:
    """From the events alone, so without what passes: when it was synced, and when it will be."""
    assert state.name is not None
    return Integration(
        integration_id=id,
        name=state.name,
        kind=state.kind,
        status="active" if state.active else "stopped",
        sync_interval=state.interval,
        config=vaulted.shown(state.kind, state.config),
        created_at=timestamp_ms(created_at),
        schedule=_schedule(state.schedule),
        policy=UNSET if state.policy is None else state.policy,
    )


def described(
    row: integrations_read.Row,
    job: CurrentJob | None,
    breaker: Breaker,
    quota: Quota | None,
    usage: usage_read.Row | None,
) -> Status:
    finished = row.completed + row.failed
    return Status(
        integration_id=row.id,
        name=row.name,
        status=_status(row),
        last_sync=_time(row.last_sync),
        next_sync=_time(row.next_sync),
        sync_interval=row.interval,
        stats=Stats(
            total_jobs=row.total,
            success_rate=round(row.completed / finished, 2) if finished else 0.0,
            average_duration=row.duration_ms // row.completed if row.completed else 0,
        ),
        breaker=_breaker(breaker),
        current_job=UNSET if job is None else job,
        quota=_quota(quota),
        usage=UNSET if usage is None else _usage(usage),
    )


def _usage(row: usage_read.Row) -> UsageShown:
    return UsageShown(row.runs, row.cpu_ms, row.peak_bytes, row.bytes, row.items)
