"""How jobs look from outside: the shapes of the Sync Management document."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from domain import jobs
from domain.plans import reverts
from projections import jobs as jobs_read
from services.gateway.dialects import Timestamp, timestamp_ms

#: What a job may have come to; one that failed may be resumed.
ENDED = ("completed", "failed", "stopped")


class Outcome(Struct, rename="camel"):
    """`conflicts` are the first of what a revert has left alone."""

    processed: int
    created: int
    updated: int
    deleted: int
    errors: int
    conflict_count: int | UnsetType = UNSET
    conflicts: list[reverts.Conflict] | UnsetType = UNSET


class Line(Struct, rename="camel"):
    timestamp: Timestamp
    level: str
    message: str


class Fault(Struct, rename="camel"):
    """Why a job failed, or what it waits for; `plan` is the hash that a confirmation must name. `nextTry` is when a
    paused job is tried again by itself, after `tried` attempts in a row."""

    code: str
    message: str
    plan: str | UnsetType = UNSET
    next_try: Timestamp | UnsetType = UNSET
    tried: int | UnsetType = UNSET


class Job(Struct, rename="camel"):
    id: str
    kind: str
    type: str
    status: str
    progress: int
    created_at: Timestamp
    integration_id: str | UnsetType = UNSET
    started_at: Timestamp | UnsetType = UNSET
    completed_at: Timestamp | UnsetType = UNSET
    duration: int | UnsetType = UNSET
    result: Outcome | UnsetType = UNSET
    error: Fault | UnsetType = UNSET


class Detail(Job, rename="camel"):
    stage: str | UnsetType = UNSET
    estimated_completion: Timestamp | UnsetType = UNSET
    stats: Outcome | UnsetType = UNSET
    logs: list[Line] = []


class Status(Struct, rename="camel"):
    """`event: status` of a job's stream: what has become of it. `progress` is there once it has ended."""

    id: str
    kind: str
    type: str
    status: str
    timestamp: Timestamp
    created_at: Timestamp
    integration_id: str | UnsetType = UNSET
    started_at: Timestamp | UnsetType = UNSET
    completed_at: Timestamp | UnsetType = UNSET
    duration: int | UnsetType = UNSET
    progress: int | UnsetType = UNSET
    result: Outcome | UnsetType = UNSET
    error: Fault | UnsetType = UNSET


class Now(Struct, rename="camel"):
    """`event: progress` of a job's stream: how far it is. What comes between two of them may be left out."""

    progress: int
    stats: Outcome
    stage: str | UnsetType = UNSET
    estimated_completion: Timestamp | UnsetType = UNSET


class Logged(Struct, rename="camel"):
    """`event: log` of a job's stream."""

    seq: int
    timestamp: Timestamp
    level: str
    message: str


class End(Struct):
    """`event: end` of a job's stream: nothing comes after it."""

    id: str
    status: str


class Listing(Struct):
    jobs: list[Job]
    total: int


class Logs(Struct):
    logs: list[Line]
    next: int


def outcome(counters: jobs.Counters) -> Outcome:
    return Outcome(counters.processed, counters.created, counters.updated, counters.deleted, counters.errors)


def job(row: jobs_read.Row, shape: type[Any] = Job) -> Any:
    made = shape(
        id=row.id,
        kind=row.kind,
        type=row.type,
        status=row.status,
        progress=row.progress,
        created_at=timestamp_ms(row.created_at),
    )
    made.integration_id = UNSET if row.integration is None else row.integration
    made.started_at = UNSET if row.started_at is None else timestamp_ms(row.started_at)
    if row.status in ENDED:
        made.completed_at = UNSET if row.completed_at is None else timestamp_ms(row.completed_at)
        made.duration = UNSET if row.duration_ms is None else row.duration_ms
        made.result = found = outcome(row.counters)
        if row.kind == "revert" and row.result is not None:
            undone = msgspec.json.decode(row.result, type=reverts.Result)
            found.conflict_count, found.conflicts = undone.conflict_count, list(undone.conflicts)
    if row.error is not None:
        made.error = msgspec.json.decode(row.error, type=Fault)
    return made


def status(row: jobs_read.Row, at: datetime, progress: int) -> Status:
    """`progress` is the furthest that was seen."""
    seen: Job = job(row)
    return Status(
        id=row.id,
        kind=row.kind,
        type=row.type,
        status="deleted" if row.deleted_at is not None else row.status,
        timestamp=timestamp_ms(at),
        created_at=seen.created_at,
        integration_id=seen.integration_id,
        started_at=seen.started_at,
        completed_at=seen.completed_at,
        duration=seen.duration,
        progress=max(progress, row.progress) if row.status in ENDED else UNSET,
        result=seen.result,
        error=seen.error,
    )
