"""Deliveries of webhooks, outcome stored, beside a bare aiohttp client that posts the same to the same sink."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import uvloop

from domain import webhooks
from tests.benchmarks.append import _cpu_s, _postgres
from tests.doubles.receiver import Receiver
from tests.journeys.notifying import World, open_world, soon

IN_FLIGHT = 32
PEER = "bare aiohttp client"
_BODY = b'{"type":"integrations.started","timestamp":"2026-01-15T10:30:00Z","data":' + b'{"position":1234,"id":"i-1"}}'
_HEADERS = {
    "content-type": "application/json",
    "webhook-id": "msg_0123456789abcdef0123456789abcdef_integrations-started",
    "webhook-timestamp": "1768473000",
    "webhook-signature": "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
}


class Measure(NamedTuple):
    """`rate` in deliveries per second; `cpu` in microseconds of the client, and of Postgres where it has one."""

    rate: float
    cpu: float


def run(quick: bool) -> list[dict[str, Any]]:
    """One row for each way, and the times from commit to receiver; ratios are medians over rounds in turn."""
    count, rounds = (4000, 2) if quick else (20_000, 5)
    with tempfile.TemporaryDirectory(prefix="undrift-bench-") as folder, _postgres(Path(folder)) as (url, postmaster):
        measures: dict[str, list[Measure]] = {PEER: [], "one endpoint": [], "20 endpoints": []}
        for number in range(rounds + 1):
            made = {
                PEER: uvloop.run(_bare(count)),
                "one endpoint": uvloop.run(_ours(url, postmaster, count, 1)),
                "20 endpoints": uvloop.run(_ours(url, postmaster, count // 20, 20)),
            }
            for name, one in made.items() if number else ():  # the first round warms up
                measures[name].append(one)
        p50, p99 = uvloop.run(_latency(url, 2.0 if quick else 10.0))
    rows = [_row(name, ones, measures[PEER]) for name, ones in measures.items()]
    rows.append({"section": "webhooks, from commit to receiver, 200 a second", "p50": _ms(p50), "p99": _ms(p99)})
    return rows


def _row(name: str, mine: list[Measure], peers: list[Measure]) -> dict[str, Any]:
    ratio = median(one.rate / peer.rate for one, peer in zip(mine, peers, strict=True))
    must = ("", "") if name == PEER else (">= 0.8 x", "1.5 x")
    return {
        "section": f"webhooks, outcome stored, {IN_FLIGHT} in flight",
        "name": name,
        "rate": f"{median(one.rate for one in mine):,.0f}/s",
        "CPU each": f"{median(one.cpu for one in mine):.0f} us",
        "x aiohttp": f"{ratio:.2f}",
        "must": must[0],
        "aim": must[1],
    }


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


async def _bare(count: int) -> Measure:
    with tempfile.TemporaryDirectory(prefix="undrift-bench-") as folder:
        sink = Receiver(Path(folder), mute=True)
        try:
            left = iter(range(count))
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

                async def post() -> None:
                    for _ in left:
                        async with session.post(sink.url("ok/bench"), data=_BODY, headers=_HEADERS) as answer:
                            assert answer.status == 200
                            await answer.read()

                began, cpu = time.perf_counter(), sum(os.times()[:2])
                await asyncio.gather(*(post() for _ in range(IN_FLIGHT)))
                return Measure(count / (time.perf_counter() - began), (sum(os.times()[:2]) - cpu) / count * 1e6)
        finally:
            sink.close()


async def _ours(url: str, postmaster: int, count: int, endpoints: int) -> Measure:
    """So many events to so many endpoints, from the start of the notifier until the last outcome is stored."""
    per_endpoint = max(IN_FLIGHT // endpoints, 2)
    with tempfile.TemporaryDirectory(prefix="undrift-bench-") as folder:
        quiet = {"webhooks__per_endpoint": per_endpoint, "jobs__lease_s": 5.0, "webhooks__poll_s": 1.0}
        async with open_world(url, Path(folder), mute=True, **quiet) as world:
            ids = [await world.subscribe(f"ok/{n}") for n in range(endpoints)]
            await world.say(count, streams=200, name=Path(folder).name)
            began, cpu = time.perf_counter(), _cpu_s(postmaster)
            world.start()
            assert await soon(lambda: _all(world, count * endpoints), 300)
            took, used = time.perf_counter() - began, _cpu_s(postmaster) - cpu
            await _delete(world, ids)
            return Measure(count * endpoints / took, used / (count * endpoints) * 1e6)


async def _all(world: World, count: int) -> bool:
    """Whether so many were made and none waits: by index, so that looking costs nothing."""
    await asyncio.sleep(0.05)
    made = await world.process.db.fetchval("select coalesce(sum(seq), 0) from undrift.endpoints")
    waits = await world.process.db.fetchval(
        "select exists (select from undrift.deliveries where state = 'pending' and tenant = 'main')"
    )
    return bool(made >= count and not waits)


async def _delete(world: World, ids: list[str]) -> None:
    for id in ids:
        await world.tell(id, webhooks.Delete())
    await asyncio.sleep(0.5)
    await world.stop()
    await world.process.db.execute("delete from undrift.deliveries")


async def _latency(url: str, seconds: float) -> tuple[float, float]:
    """From when an event was committed until its receiver had it; p50 and p99."""
    with tempfile.TemporaryDirectory(prefix="undrift-bench-") as folder:
        async with open_world(url, Path(folder), webhooks__poll_s=1.0, jobs__lease_s=5.0) as world:
            id = await world.subscribe("ok/bench")
            world.start()
            await world.say(10, streams=10, name="warm")
            await world.settled(id, 10)
            committed: dict[int, float] = {}
            for n in range(int(seconds * 200)):
                began = time.time()
                (position,) = await world.say(1, name=f"late-{n % 50}-{Path(folder).name}")
                committed[position] = time.time()
                await asyncio.sleep(max(0.0, 0.005 - (time.time() - began)))
            got = await world.received("ok/bench", 10 + len(committed))
            late = sorted(one.at - committed.get(one.json()["data"]["position"], one.at) for one in got[10:])
            await _delete(world, [id])
            return late[len(late) // 2], late[len(late) * 99 // 100]
