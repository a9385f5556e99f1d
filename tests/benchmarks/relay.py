"""Relay and tail in events per second: `python -m tests.benchmarks.relay [--quick]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from infra import config, embedded
from infra.bus import Bus
from infra.eventstore.migrate import migrate
from infra.hints import Hints
from infra.tail import Tail
from services.relay import Relay
from tests.notes import Notes, open_log, running, until

KEY = b"k" * 32
SIZE = 200
SECTION = "relay and tail"


class World:
    """Servers of its own with a log of `count` events."""

    def __init__(self, log: Notes, bus: Bus, hints: Hints) -> None:
        self.log, self.bus, self.hints = log, bus, hints

    def relay(self, tail: Tail | None = None) -> Relay:
        recent = None if tail is None else tail.recent
        return Relay(self.log.store, self.bus, config.Relay(), config.Nats(), KEY, self.log.epoch, self.hints, recent)

    def tail(self, bus: Bus | None = None) -> Tail:
        return Tail(self.log.store, bus or self.bus, config.Tail(), KEY, self.log.epoch)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="undrift-bench-") as directory:
        postgres, nats = embedded.Postgres(Path(directory)), embedded.Nats(Path(directory))
        try:
            await migrate(postgres.start())
            async with open_log(postgres.url) as log:
                bus, hints = Bus(nats.start()), Hints(log.database)
                await bus.connect()
                await bus.ready(5)
                async with running(hints.run):
                    yield World(log, bus, hints)
                await bus.close()
        finally:
            nats.stop()
            postgres.stop()


async def fill(log: Notes, count: int) -> int:
    lanes = [log.write(count // 8, id=f"s{n}", size=SIZE, per=250) for n in range(8)]
    return max(await asyncio.gather(*lanes))


class Silent(Hints):
    """No notifications, so that only JetStream speaks."""

    async def run(self) -> None:
        await asyncio.Event().wait()


class Clock:
    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def row(self, name: str, count: int) -> dict[str, Any]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {
            "section": SECTION,
            "what": name,
            "events": count,
            "events_per_s": round(count / wall),
            "cpu_us_per_event": round(cpu / count * 1e6, 1),
        }


async def catch_up(here: World, head: int) -> list[dict[str, Any]]:
    rows = []
    relay, clock = here.relay(), Clock()
    async with running(relay.run):
        await until(lambda: relay.position == head, 600)
    rows.append(clock.row("relay, catching up", head))

    tail, clock = here.tail(), Clock()
    await tail.start(0)
    await until(lambda: tail.position == head, 600)
    rows.append(clock.row("tail from Postgres", head))
    await tail.close()

    tail = here.tail()
    tail.hints = Silent(here.log.database)
    tail._caught_up, tail._next_look = True, time.monotonic() + 3600
    clock = Clock()
    tail.task = asyncio.create_task(tail._run())
    await until(lambda: tail.position == head, 600)
    rows.append({**clock.row("tail from JetStream", head), "from_nats": tail.counts.from_nats})
    await tail.close()
    return rows


async def latency(here: World, count: int) -> list[dict[str, Any]]:
    """From the command's answer to the event in a subscriber's hands, one at a time."""
    rows = []
    for name, relayed in (("by JetStream", True), ("without relay", False)):
        relay, tail = here.relay(), here.tail()
        async with running(*([relay.run] if relayed else [])):
            await tail.start()
            await asyncio.sleep(0.5)
            took = []
            for _ in range(count):
                position = await here.log.write(1, id=f"latency {name}")
                start = time.perf_counter()
                await tail.reached(position, 5)
                took.append(time.perf_counter() - start)
                await asyncio.sleep(0.005)
        took.sort()
        rows.append(
            {
                "section": f"{SECTION}: from a command's answer to the tail",
                "what": name,
                "p50_ms": round(took[count // 2] * 1000, 2),
                "p99_ms": round(took[count * 99 // 100] * 1000, 2),
                "from_nats": tail.counts.from_nats,
                "from_postgres": tail.counts.from_postgres,
            }
        )
        await tail.close()
    return rows


async def lane(log: Notes, number: int, count: int) -> int:
    """One client: short streams, one event per command."""
    return max([await log.write(1, id=f"live {number} {n // 4}", size=SIZE) for n in range(count)])


async def together(here: World, count: int) -> dict[str, Any]:
    """Append, relay and tail at once, in one process."""
    tail = here.tail()
    relay = here.relay(tail)
    async with running(relay.run):
        await tail.start()
        await asyncio.sleep(0.5)
        clock = Clock()
        head = max(await asyncio.gather(*(lane(here.log, n, count // 32) for n in range(32))))
        appended = clock.row("", count)["events_per_s"]
        await until(lambda: relay.position == head and tail.position == head, 600)
        row = clock.row("append, relay and tail in one process", count)
    row |= {"appended_per_s": appended, "from_nats": tail.counts.from_nats, "from_postgres": tail.counts.from_postgres}
    await tail.close()
    return row


async def measure(quick: bool) -> list[dict[str, Any]]:
    async with world() as here:
        head = await fill(here.log, 10_000 if quick else 100_000)
        rows = await catch_up(here, head)
        rows += await latency(here, 50 if quick else 300)
        rows.append(await together(here, 3_200 if quick else 16_000))
        return rows


def run(quick: bool) -> list[dict[str, Any]]:
    return asyncio.run(measure(quick))


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(row)
