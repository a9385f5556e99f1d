"""The rows of the read model of integrations."""

from __future__ import annotations

from datetime import datetime
from statistics import median

import msgspec
from msgspec import Struct

from domain import schedules
from domain.policies import Policy
from domain.schedules import Schedule, Timing
from projections.table import Table


class Row(Struct, frozen=True):
    """`schedule` and `policy` are JSON. `next_due` is the first due time that is not settled and `next_fires` when its
    run begins, `full_*` of the full runs; `overdue` and `full_overdue` are what was last said to be overdue.

    `failures` in a row, the last at `failed_at`. `recent_*` are the durations in ms of the last ten completed jobs of a
    type; `baseline_at` is the end of the last completed full sync of the present configuration."""

    tenant: str
    id: str
    position: int
    name: str
    kind: str
    config: str
    created_at: datetime
    interval: int | None = None
    active: bool = True
    declared: bool = False
    schedule: str | None = None
    policy: str | None = None
    last_sync: datetime | None = None
    next_due: datetime | None = None
    next_fires: datetime | None = None
    full_due: datetime | None = None
    full_fires: datetime | None = None
    overdue: datetime | None = None
    full_overdue: datetime | None = None
    baseline_at: datetime | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    failures: int = 0
    failed_at: datetime | None = None
    duration_ms: int = 0
    recent_full: tuple[int, ...] = ()
    recent_incremental: tuple[int, ...] = ()
    recent_selective: tuple[int, ...] = ()
    last_failed: bool = False
    full_open: tuple[str, ...] = ()

    def estimate(self, type: str) -> int:
        """The median duration in ms of the last ten completed jobs of that type, 0 without history."""
        last = recent(self, type)
        return int(median(last)) if last else 0

    @property
    def plan(self) -> Schedule | None:
        return None if self.schedule is None else msgspec.json.decode(self.schedule, type=Schedule)

    @property
    def rules(self) -> Policy | None:
        return None if self.policy is None else msgspec.json.decode(self.policy, type=Policy)

    @property
    def next_sync(self) -> datetime | None:
        """When the next run begins, whichever it is."""
        return min((one for one in (self.next_fires, self.full_fires) if one is not None), default=None)

    def timing(self, entry: schedules.Entry) -> Timing | None:
        return schedules.timing(f"{self.tenant}/{self.id}", self.plan, entry)

    def due(self, entry: schedules.Entry) -> datetime | None:
        return self.next_due if entry == "main" else self.full_due


class Open(Struct, frozen=True):
    """A job that is queued or runs, or rests until `retry_at`. Of a scheduled one `due` and when it will be overdue,
    unless it has begun."""

    tenant: str
    job: str
    integration: str
    since: datetime
    is_full: bool
    scheduled: bool
    entry: str = "main"
    due: datetime | None = None
    overdue_at: datetime | None = None
    started: bool = False
    retry_at: datetime | None = None

    @property
    def waits(self) -> bool:
        """Whether it is a scheduled run that has not begun, or rests between two attempts."""
        return self.scheduled and (not self.started or self.retry_at is not None)


INTEGRATIONS = Table(
    "integrations",
    Row,
    ("tenant", "id"),
    ("(tenant, id) where active and (next_due is not null or full_due is not null)",),
)
OPEN = Table(
    "open",
    Open,
    ("tenant", "job"),
    (
        "(tenant, integration)",
        "(retry_at) where retry_at is not null",
        "(overdue_at) where overdue_at is not null and not started",
    ),
)


def recent(row: Row, type: str) -> tuple[int, ...]:
    """The durations in ms of the last completed jobs of that type, the oldest first."""
    found: tuple[int, ...] = getattr(row, f"recent_{type.removesuffix('_sync')}")
    return found
