"""How jobs ended and how long they took, by tenant and kind: what a client's metrics and histograms are told from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from domain import jobs, messages
from projections.table import Connection, Database, Key, Table

NAME = "syncs"
GENERATION = 1
CONTEXTS = ("jobs",)
SCHEMA = f"rm_{NAME}_{GENERATION}"

#: Upper bounds of the histogram, in seconds, and the column that counts what took no longer.
BUCKETS = {0.1: "within_100ms", 1: "within_1s", 10: "within_10s", 60: "within_1m", 600: "within_10m", 3600: "within_1h"}


class Going(Struct, frozen=True):
    """A job that was started, until it completes, is stopped or deleted; `failed_ms` is what it took until it failed,
    which does not count once it is resumed."""

    tenant: str
    job: str
    kind: str
    started_at: datetime
    failed_ms: int | None = None


class Row(Struct, frozen=True):
    """Jobs that have completed, and those that have failed and were not resumed; the sums of what they took from their
    start to their end; bytes moved by all runs, whatever came of them; of the completed ones, how many took how long.
    """

    tenant: str
    kind: str
    completed: int = 0
    failed: int = 0
    completed_ms: int = 0
    failed_ms: int = 0
    bytes: int = 0
    within_100ms: int = 0
    within_1s: int = 0
    within_10s: int = 0
    within_1m: int = 0
    within_10m: int = 0
    within_1h: int = 0


GOING = Table("going", Going, ("tenant", "job"))
TABLE = Table("syncs", Row, ("tenant", "kind"))

_Ends = jobs.Held | jobs.Paused | jobs.Stopped | jobs.Completed | jobs.Failed
_Told = jobs.Started | jobs.Resumed | _Ends | jobs.Deleted


def ddl(schema: str) -> str:
    return f"{GOING.ddl(schema)};\n{TABLE.ddl(schema)}"


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    mine = [event for event in events if isinstance(event.event, _Told)]
    if not mine:
        return
    going = await GOING.load(connection, schema, {_job(recorded) for recorded in mine})
    before: dict[Key, Going | None] = dict(going)
    after = dict(before)
    changes: dict[Key, Row] = {}
    for recorded in mine:
        job = _job(recorded)
        known = after.get(job)
        after[job], change = step(known, recorded)
        if change is not None:
            key = (change.tenant, change.kind)
            changes[key] = _sum(changes.get(key), change)
    await GOING.save(connection, schema, {job: row for job, row in after.items() if row != before.get(job)})
    if changes:
        rows = await TABLE.load(connection, schema, changes.keys())
        # Sums do not mind the order in which jobs are told of: what was parked may come later.
        await TABLE.save(connection, schema, {key: _sum(rows.get(key), change) for key, change in changes.items()})


def _job(recorded: messages.Recorded) -> Key:
    return recorded.tenant, recorded.id


def step(known: Going | None, recorded: messages.Recorded) -> tuple[Going | None, Row | None]:
    """What is known of a job after an event, and what that adds to the sums."""
    event, tenant = recorded.event, recorded.tenant
    match event:
        case jobs.Started():
            kind = event.ticket.kind
            return known or Going(tenant, recorded.id, kind, recorded.recorded_at), None
        case jobs.Resumed():
            if known is None or known.failed_ms is None:
                return known, None
            return replace(known, failed_ms=None), Row(tenant, known.kind, failed=-1, failed_ms=-known.failed_ms)
        case jobs.Completed():
            took_ms = _took_ms(known, recorded, event.duration_ms)
            change = Row(tenant, event.ticket.kind, completed=1, completed_ms=took_ms, bytes=_moved(event))
            return None, replace(change, **{name: 1 for most, name in BUCKETS.items() if took_ms <= most * 1000})
        case jobs.Failed():
            took_ms = _took_ms(known, recorded, 0)
            known = known or Going(tenant, recorded.id, event.ticket.kind, recorded.recorded_at)
            change = Row(tenant, event.ticket.kind, failed=1, failed_ms=took_ms, bytes=_moved(event))
            return replace(known, failed_ms=took_ms), change
        case jobs.Stopped():
            return None, Row(tenant, event.ticket.kind, bytes=_moved(event))
        case jobs.Held() | jobs.Paused():
            return known, Row(tenant, event.ticket.kind, bytes=_moved(event))
        case _:
            return None, None  # deleted: what it came to still counts


def _took_ms(known: Going | None, recorded: messages.Recorded, otherwise: int) -> int:
    if known is None:
        return otherwise
    return (recorded.recorded_at - known.started_at) // timedelta(milliseconds=1)


def _moved(event: _Ends) -> int:
    return 0 if event.usage is None else event.usage.bytes


_FIGURES = tuple(name for name in Row.__struct_fields__ if name not in ("tenant", "kind"))


def _sum(row: Row | None, change: Row) -> Row:
    if row is None:
        return change
    return replace(row, **{name: getattr(row, name) + getattr(change, name) for name in _FIGURES})


_SUMS = ", ".join(f"coalesce(sum({name}), 0)::bigint as {name}" for name in _FIGURES)


async def totals(database: Database, tenant: str, kinds: Iterable[str]) -> Row:
    """The sums of a tenant over these kinds; `kind` is empty."""
    row = await database.fetchrow(
        f"select $1::text as tenant, '' as kind, {_SUMS} from {SCHEMA}.syncs where tenant = $1 and kind = any ($2)",
        tenant,
        list(kinds),
    )
    assert row is not None, "a sum without rows is a row"
    return TABLE.parse(row)


async def by_kind(database: Database) -> list[Row]:
    """One row for each kind, of all tenants."""
    rows = await database.fetch(f"select '' as tenant, kind, {_SUMS} from {SCHEMA}.syncs group by kind order by kind")
    return [TABLE.parse(row) for row in rows]
