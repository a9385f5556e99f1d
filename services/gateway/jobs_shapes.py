"""How jobs look from outside: the shapes of the Sync Management document."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from domain import jobs
from projections import jobs as jobs_read
from services.gateway.dialects import Timestamp, timestamp_ms


class Outcome(Struct, rename="camel"):
    processed: int
    created: int
    updated: int
    deleted: int
    errors: int


class Line(Struct, rename="camel"):
    timestamp: Timestamp
    level: str
    message: str


class Fault(Struct, rename="camel"):
    """Why a job failed, or what it waits for; `plan` is the hash that a confirmation must name."""

    code: str
    message: str
    plan: str | UnsetType = UNSET


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
    if row.status in ("completed", "failed", "stopped"):
        made.completed_at = UNSET if row.completed_at is None else timestamp_ms(row.completed_at)
        made.duration = UNSET if row.duration_ms is None else row.duration_ms
        made.result = outcome(row.counters)
    if row.error is not None:
        made.error = msgspec.json.decode(row.error, type=Fault)
    return made
