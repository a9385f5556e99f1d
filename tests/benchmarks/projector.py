"""The projector in events per second: catching up with a log of jobs, beside one that upserts row by row."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Raw

import projections
from domain import jobs, messages
from infra import config, embedded
from infra.eventstore.mapper import Draft
from infra.eventstore.recorder import Append, Write
from infra.eventstore.store import Store
from projections import jobs as jobs_read
from projections.table import Projection
from services import doctor
from services.projector import Projector
from tests.notes import until
from tests.projections.histories import ended, open_store, open_tail

SECTION = "projector"
_LANES = 32
_PAGE = 1000
_COLUMNS = jobs_read.TABLE.columns
_UPSERT = (
    f"insert into peer.jobs select * from json_populate_record(null::peer.jobs, $1::json)"
    f" on conflict (tenant, id) do update set {', '.join(f'{c} = excluded.{c}' for c in _COLUMNS if c != 'id')}"
)


def story(number: int) -> list[list[messages.Event]]:
    """The events of a job, as they come in commands: queued, at work, at its end."""
    job, done = f"job-{number}", jobs.Counters(processed=100, created=40, updated=10, bytes=123_456)
    integration = f"i-{number % 50}" if number % 3 else None
    ticket = jobs.Ticket(job=job, kind="files", type="full_sync", lane="later", integration=integration)
    queued = jobs.Queued(ticket=ticket, spec=Raw(b'{"source_directory":"/a","target_directory":"/b"}'))
    scanned = jobs.Progressed(stage="scanning", progress=5, counters=done)
    copied = jobs.Progressed(stage="copying", progress=60, counters=done)
    usage = jobs.Usage(cpu_ms=12, peak_bytes=50_000_000, bytes=123_456, items=100)
    last = jobs.Completed(ticket=ticket, counters=done, result=Raw(b"{}"), duration_ms=1234, usage=usage)
    return [[queued], [jobs.Started(ticket=ticket, fence=1, worker="w")], [scanned], [copied], [last]]


async def fill(store: Store, events: int) -> int:
    """Many jobs at once, so that their events lie between each other, as in a busy log."""
    count = events // 5

    async def lane(first: int) -> None:
        for number in range(first, count, _LANES):
            stream, version = messages.stream(jobs.STREAM, "main", f"job-{number}"), 0
            for command in story(number):
                drafts = [
                    Draft("main", stream, version + n, uuid4(), event, messages.Metadata(actor="key:bench"))
                    for n, event in enumerate(command, start=1)
                ]
                write = Write(stream, version, [store.mapper.to_stored_event(draft) for draft in drafts])
                await store.writer.append(Append("main", [write], principal=f"lane {first}"))
                version += len(drafts)

    await asyncio.gather(*(lane(first) for first in range(_LANES)))
    return await store.head()


async def timed(name: str, events: int, work: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    await work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "section": SECTION,
        "what": name,
        "events": events,
        "events_per_s": round(events / wall),
        "cpu_us_per_event": round(cpu / events * 1e6, 1),
    }


async def catch_up(store: Store, live: Sequence[Projection], head: int) -> None:
    """What a projector does that finds no read models."""
    async with open_tail(store) as tail:
        projector = Projector(store.database, store, tail, config.Projector(), live)
        running = asyncio.create_task(projector.run())
        try:
            await until(lambda: projector.position == head, 600)
        finally:
            await ended(running)


async def drop(store: Store) -> None:
    for projection in projections.ALL:
        await store.database.execute(f"drop schema if exists rm_{projection.NAME}_{projection.GENERATION} cascade")


async def peer(store: Store, head: int) -> None:
    """The usual way: a page in one transaction, and in it a row read, changed and written for each event."""
    database = store.database
    async with database.connection() as connection:
        await connection.execute(f"create schema peer; create table peer.jobs as select * from {jobs_read.SCHEMA}.jobs")
        await connection.execute("truncate peer.jobs; alter table peer.jobs add primary key (tenant, id)")
        position = 0
        while position < head:
            events = await store.read(position, _PAGE)
            async with connection.transaction():
                await connection.execute("set local synchronous_commit = off")
                for event in events:
                    found = await connection.fetchrow(
                        "select * from peer.jobs where tenant = $1 and id = $2", event.tenant, event.id
                    )
                    row = jobs_read.fold(None if found is None else jobs_read.TABLE.parse(found), event)
                    await connection.execute(_UPSERT, msgspec.json.encode(row).decode())
            position = events[-1].position


async def measure(quick: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="undrift-bench-") as directory:
        postgres = embedded.Postgres(Path(directory))
        try:
            async with open_store(postgres.start()) as store:
                return await _measure(store, 5_000 if quick else 60_000)
        finally:
            postgres.stop()


async def _measure(store: Store, events: int) -> list[dict[str, Any]]:
    writing = asyncio.create_task(store.writer.run())
    head = await fill(store, events)
    await ended(writing)
    every = f"catching up, all {len(projections.ALL)} read models"
    rows = [await timed(every, head, lambda: catch_up(store, projections.ALL, head))]
    rows.append(
        await timed(
            "rebuild of jobs beside the live one", head, lambda: doctor.rebuild(store.database, store, jobs_read)
        )
    )
    rows.append(await timed("peer: jobs alone, row by row", head, lambda: peer(store, head)))
    await drop(store)
    rows.insert(1, await timed("catching up, jobs alone", head, lambda: catch_up(store, [jobs_read], head)))
    rows[1]["x_peer"] = round(rows[1]["events_per_s"] / rows[-1]["events_per_s"], 1)
    return rows


def run(quick: bool) -> list[dict[str, Any]]:
    return asyncio.run(measure(quick))


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(row)
