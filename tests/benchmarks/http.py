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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg

from infra import embedded, processes
from tests.benchmarks import load

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
def peer(database_url: str) -> Iterator[str]:
    """FastAPI and a pool on the same server; yields the address of its one route."""
    asyncio.run(_table(database_url))
    port = processes.choose_port()
    program = subprocess.Popen([sys.executable, "-c", PEER, database_url, str(port)])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), __import__("socket").create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/commands"
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


def _bodies() -> Callable[[], bytes]:
    numbers = itertools.count()
    prefix = uuid.uuid4().hex[:8]
    config = {"sourceDirectory": "ROOT/a", "targetDirectory": "ROOT/b"}

    def make() -> bytes:
        return json.dumps({"id": f"b{prefix}-{next(numbers)}", "name": "n", "kind": "files", "config": config}).encode()

    return make


def run(quick: bool) -> list[dict[str, Any]]:
    """Commands/s with 32 connections beside the peer's inserts, in turn, without and with a pg_dump running."""
    seconds, rounds = (1.0, 2) if quick else (3.0, 5)
    with instance() as ready, peer(ready["database_url"]) as address:
        rows = [
            _versus(ready, address, seconds, rounds, dumping=False),
            _versus(ready, address, seconds, rounds, dumping=True),
        ]
        rows.append(_visibility(ready, seconds, rows[0]["ours_per_s"] / 2))
    return rows


def _versus(ready: dict[str, Any], address: str, seconds: float, rounds: int, *, dumping: bool) -> dict[str, Any]:
    bodies = _bodies()
    root = str(Path(ready["data_dir"]) / "files") if "data_dir" in ready else _root(ready)
    token = f"authorization: Bearer {ready['admin_token']}"
    ours_url = ready["url"] + "/api/sync/integrations"

    def ours() -> bytes:
        return load.request("POST", ours_url, bodies().replace(b"ROOT", root.encode()), (token,))

    def theirs() -> bytes:
        return load.request("POST", address, bodies())

    measured: dict[str, list[load.Load]] = {"ours": [], "peer": []}
    with _dump(ready["database_url"]) if dumping else contextlib.nullcontext():
        load.run(ours_url, ours, 32, 0.5)
        load.run(address, theirs, 32, 0.5)
        for number in range(rounds):
            order = [("ours", ours_url, ours), ("peer", address, theirs)]
            for name, url, make in order if number % 2 == 0 else reversed(order):
                measured[name].append(load.run(url, make, 32, seconds))
    assert not any(one.failures for many in measured.values() for one in many)
    ratios = [a.per_second / b.per_second for a, b in zip(measured["ours"], measured["peer"], strict=True)]
    return {
        "what": "POST of a command" + (", while pg_dump runs" if dumping else ""),
        "ours_per_s": statistics.median(one.per_second for one in measured["ours"]),
        "peer_per_s": statistics.median(one.per_second for one in measured["peer"]),
        "ratio": statistics.median(ratios),
        "p50_ms": statistics.median(one.p50_ms for one in measured["ours"]),
        "p99_ms": statistics.median(one.p99_ms for one in measured["ours"]),
        "must": ">= 2.3 x FastAPI + pool",
    }


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
    delays = asyncio.run(_delays(ready, seconds, rate))
    quantiles = statistics.quantiles(delays, n=100)
    return {
        "what": "command answered -> visible, at half load",
        "ours_per_s": len(delays) / seconds,
        "p50_ms": quantiles[49] * 1000,
        "p99_ms": quantiles[98] * 1000,
        "must": "aim: 10 and 50 ms on an idle machine",
    }


async def _delays(ready: dict[str, Any], seconds: float, rate: float) -> list[float]:
    import aiohttp

    applied: list[tuple[int, float]] = []
    connection = await asyncpg.connect(ready["database_url"])
    await connection.add_listener("undrift_applied", lambda *args: applied.append((int(args[3]), time.perf_counter())))
    answered: list[tuple[int, float]] = []
    bodies, root = _bodies(), _root(ready).encode()
    headers = {"authorization": f"Bearer {ready['admin_token']}", "content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def client(every: float) -> None:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                started = time.perf_counter()
                data = bodies().replace(b"ROOT", root)
                async with session.post(ready["url"] + "/api/sync/integrations", data=data) as response:
                    answered.append((int(response.headers["undrift-position"]), time.perf_counter()))
                await asyncio.sleep(max(0.0, every - (time.perf_counter() - started)))

        clients = 16
        await asyncio.gather(*(client(clients / max(rate, 1.0)) for _ in range(clients)))
        await asyncio.sleep(2)
    await connection.close()
    applied.sort()
    positions = [position for position, _ in applied]
    from bisect import bisect_left

    return [
        max(applied[index][1] - at, 0.0)
        for position, at in answered
        if (index := bisect_left(positions, position)) < len(applied)
    ]


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(row)
