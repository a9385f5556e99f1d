"""A command over HTTP beside a one-row insert behind FastAPI and a pool; and how soon its effect can be read."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from infra import embedded, processes
from tests.benchmarks import cpu, load

PEER = """
import asyncpg, sys, uvicorn
from contextlib import asynccontextmanager
from fastapi import FastAPI
from pydantic import BaseModel

class Command(BaseModel):
    id: str
    name: str
    kind: str
    config: dict

@asynccontextmanager
async def lifespan(app):
    app.pool = await asyncpg.create_pool(sys.argv[1], min_size=8, max_size=8)
    yield

app = FastAPI(lifespan=lifespan)

@app.post("/commands")
async def command(body: Command):
    async with app.pool.acquire() as connection:
        id = await connection.fetchval(
            "insert into peer_commands (name, body) values ($1, $2) returning id", body.id, body.name)
    return {"id": id}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
"""


@contextlib.contextmanager
def instance() -> Iterator[dict[str, Any]]:
    """A real `undrift up` on free ports; yields its ready.json."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "services.up", "--data-dir", directory, "--port", "0"]
        up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            ready = Path(directory) / "ready.json"
            deadline = time.monotonic() + 60
            while not ready.exists():
                if up.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("undrift up did not become ready")
                time.sleep(0.05)
            yield json.loads(ready.read_text())
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(20)


@contextlib.contextmanager
def peer(database_url: str) -> Iterator[tuple[str, int]]:
    """FastAPI and a pool on the same server; yields the address of its one route, and its process id."""
    asyncio.run(_table(database_url))
    port = processes.choose_port()
    program = subprocess.Popen([sys.executable, "-c", PEER, database_url, str(port)])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), __import__("socket").create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/commands", program.pid
    finally:
        program.terminate()
        program.wait(10)


async def _table(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "create table if not exists peer_commands"
        " (id bigserial primary key, name text not null, body text not null, at timestamptz not null default now())"
    )
    await connection.close()


def _bodies(root: str) -> Callable[[], bytes]:
    """Bodies of commands, each of a new integration; the peer gets the same."""
    numbers = itertools.count()
    config = json.dumps({"sourceDirectory": f"{root}/a", "targetDirectory": f"{root}/b"})
    start = f'{{"id": "b{uuid.uuid4().hex[:8]}-'.encode()
    end = f'", "name": "n", "kind": "files", "config": {config}}}'.encode()
    return lambda: b"%b%d%b" % (start, next(numbers), end)


def _requests(url: str, bodies: Callable[[], bytes], headers: tuple[str, ...] = ()) -> Callable[[], bytes]:
    head = load.request("POST", url, b"", (*headers, "content-type: application/json")).removesuffix(b"\r\n")

    def make() -> bytes:
        body = bodies()
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    return make


def run(quick: bool) -> list[dict[str, Any]]:
    """Commands/s with 32 connections beside the peer's inserts, in turn, without and with a pg_dump running."""
    seconds, rounds = (1.0, 2) if quick else (3.0, 5)
    with instance() as ready, peer(ready["database_url"]) as other:
        rows = [
            _versus(ready, other, seconds, rounds, dumping=False),
            _versus(ready, other, seconds, rounds, dumping=True),
        ]
        rows.append(_visibility(ready, seconds, rows[0]["ours_per_s"] / 2))
    return rows


class _Side:
    """One of the two: what it answers, what that costs its processes, and how far behind its answers it is after."""

    def __init__(self, url: str, make: Callable[[], bytes], processes: dict[str, int]) -> None:
        self.url, self._make, self._processes = url, make, processes
        self.loads: list[load.Load] = []
        self.costs: list[dict[str, int]] = []

    def burst(self, seconds: float) -> None:
        before = cpu.seconds(self._processes)
        done = load.run(self.url, self._make, 32, seconds)
        assert not done.failures
        self.loads.append(done)
        self.costs.append(cpu.per_request(before, cpu.seconds(self._processes), done.per_second * seconds))

    def warm(self) -> None:
        load.run(self.url, self._make, 32, 0.5)

    def median(self, name: str) -> float:
        return round(float(statistics.median(getattr(one, name) for one in self.loads)), 2)

    def cost(self) -> str:
        found = {name: round(statistics.median(one[name] for one in self.costs)) for name in self._processes}
        return f"{sum(found.values())}: " + ", ".join(f"{name} {us}" for name, us in found.items() if us)


def _versus(
    ready: dict[str, Any], other: tuple[str, int], seconds: float, rounds: int, *, dumping: bool
) -> dict[str, Any]:
    bodies = _bodies(_root(ready))
    url = ready["url"] + "/api/sync/integrations"
    ours = _Side(
        url, _requests(url, bodies, (f"authorization: Bearer {ready['admin_token']}",)), dict(ready["processes"])
    )
    theirs = _Side(
        other[0], _requests(other[0], bodies), {"fastapi": other[1], "postgres": ready["processes"]["postgres"]}
    )
    behind: list[tuple[int, float]] = []
    with _dump(ready["database_url"]) if dumping else contextlib.nullcontext():
        for side in (ours, theirs):
            side.warm()
        asyncio.run(_drained(ready["database_url"]))
        for number in range(rounds):
            for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):
                side.burst(seconds)
                if side is ours:  # nobody pays for what we have put off
                    behind.append(asyncio.run(_drained(ready["database_url"])))
    ratios = [a.per_second / b.per_second for a, b in zip(ours.loads, theirs.loads, strict=True)]
    return {
        "what": "POST of a command" + (", while pg_dump runs" if dumping else ""),
        "ours_per_s": ours.median("per_second"),
        "peer_per_s": theirs.median("per_second"),
        "ratio": round(statistics.median(ratios), 2),
        "p50_ms": ours.median("p50_ms"),
        "p99_ms": ours.median("p99_ms"),
        "behind": f"{max(events for events, _ in behind)} events, {max(s for _, s in behind):.2f} s",
        "must": ">= 2.3 x FastAPI + pool",
        "cpu_us_each": ours.cost(),
        "peer_cpu_us_each": theirs.cost(),
    }


async def _drained(database_url: str) -> tuple[int, float]:
    """How many events the read models were behind the log, and how long it took until they were not."""
    connection = await asyncpg.connect(database_url)
    began = time.perf_counter()
    head = await connection.fetchval("select max(pos) from undrift.events")
    first = position = await connection.fetchval("select pos from undrift.tracking where projection = 'jobs'")
    async with asyncio.timeout(120):
        while position < head:
            await asyncio.sleep(0.01)
            position = await connection.fetchval("select pos from undrift.tracking where projection = 'jobs'")
    await connection.close()
    return head - first, time.perf_counter() - began


def _root(ready: dict[str, Any]) -> str:
    pid = ready["processes"]["gateway"]
    environ = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return str(Path(os.fsdecode(environ[environ.index(b"--config") + 1])).parent / "files")


@contextlib.contextmanager
def _dump(database_url: str) -> Iterator[None]:
    """pg_dump of the instance's database, again and again while the block runs."""
    script = f"while true; do '{embedded.postgres_program('pg_dump')}' '{database_url}' > /dev/null; done"
    program = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    try:
        yield
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait(10)


def _visibility(ready: dict[str, Any], seconds: float, rate: float) -> dict[str, Any]:
    """From a command's answer to the read models' having passed its position, at half load."""
    delays = uvloop.run(_delays(ready, seconds, rate))
    quantiles = statistics.quantiles(delays, n=100, method="inclusive")
    return {
        "what": "command answered -> visible, at half load",
        "ours_per_s": round(len(delays) / seconds, 1),
        "p50_ms": round(quantiles[49] * 1000, 2),
        "p99_ms": round(quantiles[98] * 1000, 2),
        "must": "aim: 10 and 50 ms on an idle machine",
    }


async def _delays(ready: dict[str, Any], seconds: float, rate: float) -> list[float]:
    applied: list[tuple[int, float]] = []
    connection = await asyncpg.connect(ready["database_url"])
    await connection.add_listener("undrift_applied", lambda *args: applied.append((int(args[3]), time.perf_counter())))
    answered: list[tuple[int, float]] = []

    def heard(head: bytes, at: float) -> None:
        position = head.partition(b"undrift-position: ")[2].partition(b"\r\n")[0]
        answered.append((int(position), at))

    url = ready["url"] + "/api/sync/integrations"
    make = _requests(url, _bodies(_root(ready)), (f"authorization: Bearer {ready['admin_token']}",))
    await load.measure(url, make, 16, seconds, rate, heard)
    await asyncio.sleep(2)
    await connection.close()
    applied.sort()
    positions = [position for position, _ in applied]
    return [
        max(applied[index][1] - at, 0.0)
        for position, at in answered
        if (index := bisect_left(positions, position)) < len(applied)
    ]


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(row)
