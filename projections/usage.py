"""What jobs took of the machine, by kind and integration."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from domain import jobs, messages
from projections.table import Connection, Database, Key, Table

NAME = "usage"
GENERATION = 1
CONTEXTS = ("jobs",)
SCHEMA = f"rm_{NAME}_{GENERATION}"

_RESTS = jobs.Completed | jobs.Failed | jobs.Stopped | jobs.Paused | jobs.Held


class Row(Struct, frozen=True):
    """`integration` is empty where there is none; `runs` counts every run that was measured, whatever came of it;
    `peak_bytes` is the most memory that one of them had."""

    tenant: str
    kind: str
    integration: str
    position: int
    runs: int = 0
    completed: int = 0
    failed: int = 0
    stopped: int = 0
    cpu_ms: int = 0
    peak_bytes: int = 0
    bytes: int = 0
    items: int = 0
    duration_ms: int = 0


TABLE = Table("usage", Row, ("tenant", "kind", "integration"))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, _fold)


def _key(recorded: messages.Recorded) -> Key | None:
    event = recorded.event
    if not isinstance(event, _RESTS):
        return None
    return recorded.tenant, event.ticket.kind, event.ticket.integration or ""


def _fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    event = recorded.event
    assert isinstance(event, _RESTS)
    if row is None:
        row = Row(recorded.tenant, event.ticket.kind, event.ticket.integration or "", 0)
    # Jobs share a row, so what was parked may come after what is later: whatever the order, the sum is the same.
    row = replace(row, position=max(row.position, recorded.position))
    if event.usage is not None:
        peak = max(row.peak_bytes, event.usage.peak_bytes)
        row = replace(
            row,
            runs=row.runs + 1,
            cpu_ms=row.cpu_ms + event.usage.cpu_ms,
            peak_bytes=peak,
            bytes=row.bytes + event.usage.bytes,
            items=row.items + event.usage.items,
        )
    match event:
        case jobs.Completed():
            return replace(row, completed=row.completed + 1, duration_ms=row.duration_ms + event.duration_ms)
        case jobs.Failed():
            return replace(row, failed=row.failed + 1)
        case jobs.Stopped():
            return replace(row, stopped=row.stopped + 1)
        case _:
            return row


_SUMS = (
    "sum(runs)::bigint as runs, sum(completed)::bigint as completed, sum(failed)::bigint as failed,"
    " sum(stopped)::bigint as stopped, sum(cpu_ms)::bigint as cpu_ms, max(peak_bytes)::bigint as peak_bytes,"
    " sum(bytes)::bigint as bytes, sum(items)::bigint as items,"
    " sum(duration_ms)::bigint as duration_ms, max(position)::bigint as position"
)


async def by_kind(database: Database) -> list[Row]:
    """One row for each kind, of all tenants and integrations."""
    rows = await database.fetch(
        f"select '' as tenant, kind, '' as integration, {_SUMS} from {SCHEMA}.usage group by kind order by kind"
    )
    return [TABLE.parse(row) for row in rows]


async def by_integration(database: Database, tenant: str) -> dict[str, Row]:
    """What the jobs of each integration of a tenant took; those that never ran are missing."""
    rows = await database.fetch(
        f"select tenant, '' as kind, integration, {_SUMS} from {SCHEMA}.usage"
        " where tenant = $1 and integration <> '' group by tenant, integration",
        tenant,
    )
    return {row["integration"]: TABLE.parse(row) for row in rows}
