"""Append by 32 clients, one event per command, beside pgbench's single-row insert and the library's own recorder."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import uvloop

from domain import messages
from infra import config, embedded
from infra.db import Database, assert_durable
from infra.eventstore.mapper import Draft, Mapper
from infra.eventstore.migrate import migrate
from infra.eventstore.recorder import Append, Key, Write
from infra.eventstore.writer import Writer

CLIENTS = 32
PEER = "pgbench, one-row insert"
LIBRARY = "the library's recorder, as it comes"
_BODY = '{"event":"bench.noted","text":"' + "x" * 60 + '"}'
_PGBENCH = f"""\
insert into bench (stream_id, version, topic, event_id, metadata, state)
values (gen_random_uuid()::text, 1, 'bench.noted', gen_random_uuid(), '{{"actor":"bench"}}', '{_BODY}');
"""
_PGBENCH_TABLE = """\
create table bench (pos bigserial primary key, stream_id text not null, version integer not null, topic text not null,
    event_id uuid not null, metadata text not null, state bytea not null,
    recorded_at timestamptz not null default now())
"""


class Noted(messages.Event, frozen=True, tag="bench.noted"):
    text: str


class Measure(NamedTuple):
    """`rate` in commands per second; `p50` and `p99` in ms where the clients were ours; `cpu` in microseconds of
    clients and server together for each command."""

    rate: float
    p50: float | None = None
    p99: float | None = None
    cpu: float = 0.0


def run(quick: bool) -> list[dict[str, Any]]:
    """One row per way to append; each ratio is the median over rounds in which everything ran in turn."""
    seconds, rounds = (1.0, 2) if quick else (4.0, 5)
    with tempfile.TemporaryDirectory(prefix="undrift-bench-") as folder, _postgres(Path(folder)) as (url, postmaster):
        _prepare(url)
        ways: dict[str, Callable[[], Measure]] = {
            PEER: lambda: _pgbench(url, seconds),
            "bare": lambda: uvloop.run(_ours(url, seconds, key=False, claim=False)),
            "with key": lambda: uvloop.run(_ours(url, seconds, key=True, claim=False)),
            "with key and claim": lambda: uvloop.run(_ours(url, seconds, key=True, claim=True)),
            LIBRARY: lambda: _library(url, seconds),
        }
        for way in ways.values():
            way()  # first touch of tables, plans and caches
        measures: dict[str, list[Measure]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
                measures[name].append(_with_cpu(ways[name], postmaster))
    targets = {
        "bare": (">= 1.0 x pgbench", "aim 2 x"),
        "with key": ("", ""),
        "with key and claim": (">= 0.4 x pgbench, >= 10 x library", "aim 0.8 x"),
    }
    return [_row(name, measures, *targets.get(name, ("", ""))) for name in ways]


def _row(name: str, measures: dict[str, list[Measure]], must: str, aim: str) -> dict[str, Any]:
    mine = measures[name]
    row = {
        "section": f"append, {CLIENTS} clients, one event each",
        "name": name,
        "rate": f"{median(one.rate for one in mine):,.0f}/s",
        "p50": "" if mine[0].p50 is None else f"{median(one.p50 for one in mine if one.p50):.2f} ms",
        "p99": "" if mine[0].p99 is None else f"{median(one.p99 for one in mine if one.p99):.2f} ms",
        "CPU each": f"{median(one.cpu for one in mine):.0f} us",
        "must": must,
        "aim": aim,
    }
    for column, peer in (("x pgbench", PEER), ("x library", LIBRARY)):
        ratio = median(one.rate / other.rate for one, other in zip(mine, measures[peer], strict=True))
        row[column] = f"{ratio:.2f}"
    return row


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[tuple[str, int]]:
    """A durable server of our own, by the same socket for everybody; its URL and its postmaster."""
    server = embedded.Postgres(folder)
    server.start()
    assert server.pid is not None
    try:
        yield server.socket_url, server.pid
    finally:
        server.stop()


def _with_cpu(way: Callable[[], Measure], postmaster: int) -> Measure:
    before = _cpu_s(postmaster)
    began = time.perf_counter()
    measure = way()
    commands = measure.rate * (time.perf_counter() - began)
    return measure._replace(cpu=(_cpu_s(postmaster) - before) * 1e6 / commands)


def _cpu_s(postmaster: int) -> float:
    """What this process, its children that have ended, and the server with all its processes have used."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if postmaster in (int(stat.parent.name), int(fields[1])):
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK") + sum(os.times()[:4])


def _prepare(url: str) -> None:
    async def prepare() -> None:
        await migrate(url)
        connection = await asyncpg.connect(url)
        await connection.execute(_PGBENCH_TABLE)
        await connection.execute("create database library")
        await connection.close()
        database = Database(url, 1)
        await assert_durable(database)
        await database.close()

    asyncio.run(prepare())


def _pgbench(url: str, seconds: float) -> Measure:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_PGBENCH)
        script.flush()
        arguments = ["-n", "-c", str(CLIENTS), "-j", "2", "-M", "prepared", "-T", str(max(round(seconds), 1))]
        done = subprocess.run(
            [embedded.postgres_program("pgbench"), *arguments, "-f", script.name, url],
            check=True,
            capture_output=True,
            text=True,
        )
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    return Measure(float(found[1]))


async def _ours(url: str, seconds: float, *, key: bool, claim: bool) -> Measure:
    database = Database(url, 2)
    writer = Writer(database, config.EventStore())
    mapper = Mapper({"bench.noted": Noted})
    running = asyncio.create_task(writer.run())
    try:
        return await _clients(seconds, lambda client: _one(writer, mapper, client, key, claim))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await database.close()


async def _one(writer: Writer, mapper: Mapper, client: int, key: bool, claim: bool) -> None:
    """A command as `Store.execute` makes it: a new stream, one event, encoded and hashed."""
    name = str(uuid4())
    stream = f"bench/main/{name}"
    actor = f"key:{client}"
    draft = Draft("main", stream, 1, uuid4(), Noted("x" * 60), messages.Metadata(actor=actor))
    claims = [messages.take("bench", name)] if claim else []
    write = Write(stream, 0, [mapper.to_stored_event(draft)], claims)
    await writer.append(Append("main", [write], Key(actor, name, b"\0" * 32) if key else None, (), actor))


async def _clients(seconds: float, one: Callable[[int], Awaitable[None]]) -> Measure:
    took: list[float] = []

    async def client(number: int, until: float) -> None:
        while (began := time.perf_counter()) < until:
            await one(number)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client(number, began + seconds) for number in range(CLIENTS)))
    elapsed = time.perf_counter() - began
    took.sort()
    return Measure(len(took) / elapsed, took[len(took) // 2] * 1000, took[len(took) * 99 // 100] * 1000)


def _library(url: str, seconds: float) -> Measure:
    """In a process of its own: importing the library's domain changes `dataclasses` for everybody."""
    code = "from tests.benchmarks import append; append.library_main()"
    done = subprocess.run(
        [sys.executable, "-c", code, urlunsplit(urlsplit(url)._replace(path="/library")), str(seconds)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    return Measure(float(done.stdout))


def library_main() -> None:
    """Arguments: URL and seconds. Prints the commands per second of 32 threads over 32 connections."""
    url, seconds = sys.argv[1], float(sys.argv[2])
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    parts = urlsplit(url)
    query = parse_qs(parts.query)
    store = PostgresDatastore(
        dbname=parts.path[1:],
        host=parts.hostname or query["host"][0],
        port=parts.port or query["port"][0],
        user=parts.username or "",
        password=parts.password or "",
        pool_size=CLIENTS,
    )
    recorder = PostgresApplicationRecorder(store)
    recorder.create_table()
    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(lambda _: _insert(recorder, time.perf_counter() + 0.2), range(CLIENTS)))  # opens connections
        began = time.perf_counter()
        counts = list(threads.map(lambda _: _insert(recorder, began + seconds), range(CLIENTS)))
        print(sum(counts) / (time.perf_counter() - began))
    store.close()


def _insert(recorder: Any, until: float) -> int:
    from eventsourcing.persistence import StoredEvent

    for done in itertools.count():
        if time.perf_counter() >= until:
            return done
        event = StoredEvent(uuid4(), 1, "bench.noted", _BODY.encode())
        recorder.insert_events([event])
    return 0
