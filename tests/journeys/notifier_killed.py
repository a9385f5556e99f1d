"""Events for endpoints of which some are evil, while the process that delivers is killed: what the good ones got."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from domain import events
from infra.config import EventStore
from infra.db import Database
from infra.eventstore.mapper import Mapper
from infra.eventstore.store import Store
from infra.eventstore.writer import Writer
from tests.doubles.receiver import Got, Receiver
from tests.journeys.notifying import Teller
from tests.journeys.system import ADMIN, QUICK, System

EVIL = ("slow-3", "dripping", "huge", "redirect-127.0.0.1", "dead")
SETTINGS = (
    QUICK
    + """
[webhooks]
timeout_s = 2.0
retry_s = 0.5
retry_max_s = 2.0
probe_s = 2.0
poll_s = 0.2
"""
)


@dataclass(frozen=True)
class Told:
    """What was committed: positions, and when on the clock of this machine; and when the core process was killed."""

    committed: Mapping[int, float]
    kills: Sequence[float]


def subscribe(system: System, receiver: Receiver, good: int, evil: Sequence[str] = EVIL) -> tuple[list[str], list[str]]:
    """Ids of endpoints that are good, at the paths ok/0, ok/1, ..., and of those that are not."""

    def one(url: str) -> str:
        body = {"url": url, "events": ["integrations.*"]}
        return str(system.ok("POST", "/api/v1/webhooks/subscribe", body, token=ADMIN)["subscriptionId"])

    bad = [one("http://127.0.0.1:9/" if path == "dead" else receiver.url(f"{path}/evil")) for path in evil]
    return [one(receiver.url(f"ok/{n}")) for n in range(good)], bad


@contextlib.asynccontextmanager
async def teller(system: System) -> AsyncIterator[Teller]:
    """Appends to the log of a running system."""
    database = Database(system.ready["database_url"], 2)
    writer = Writer(database, EventStore())
    writing = asyncio.create_task(writer.run())
    try:
        yield Teller(Store(database, Mapper(events.REGISTRY), writer))
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await database.close()


async def tell_and_kill(system: System, count: int, kills: int, seed: int, per_second: float) -> Told:
    """So many events on 100 streams, at most so many in a second, and so many deaths of the core process."""
    committed: dict[int, float] = {}
    died: list[float] = []

    async def tell() -> None:
        async with teller(system) as mine:
            began = time.time()
            for told in range(0, count, 50):
                positions = await mine.say(min(50, count - told), streams=100, name=f"k{seed}")
                committed.update(dict.fromkeys(positions, time.time()))
                await asyncio.sleep(max(0.0, began + told / per_second - time.time()))

    async def kill() -> None:
        chance = random.Random(seed)
        for _ in range(kills):
            await _delivers(system)
            await asyncio.sleep(chance.uniform(0, 1.5))
            pid = system.kill("core")
            died.append(time.time())
            while system.pids.get("core", pid) == pid:
                await asyncio.sleep(0.05)

    await asyncio.gather(tell(), kill())
    return Told(committed, died)


async def _delivers(system: System) -> None:
    """Waits until something more was delivered: whoever is to die must have lived."""
    before = _delivered(system)
    deadline = time.monotonic() + 60
    while _delivered(system) == before and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


def _delivered(system: System) -> int:
    found: int = system.sql("select count(*) from undrift.deliveries where state = 'delivered'")[0][0]
    return found


def check(system: System, receiver: Receiver, ids: Sequence[str], told: Told) -> str:
    """That the good endpoints have everything, each stream in order, and twice only what may have been; answers how
    many came twice."""
    twice = 0
    for n, id in enumerate(ids):
        rows = system.sql(
            "select message, position, stream, state, attempts from undrift.deliveries"
            " where endpoint = %s order by seq",
            id,
        )
        assert [row[1] for row in rows] == sorted(told.committed)
        assert {row[3] for row in rows} == {"delivered"}
        got: dict[str, list[Got]] = {}
        for one in receiver.got(f"ok/{n}"):
            got.setdefault(one.id, []).append(one)
        assert got.keys() == {row[0] for row in rows}
        _in_order(got, {row[0]: (row[2], row[1]) for row in rows})
        for message, _, _, _, attempts in rows:
            if len(got[message]) > 1:
                twice += 1
                # After an attempt that had no answer in time, or whose end nobody lived to record.
                assert _unexplained(got[message], told.kills) < attempts, got[message]
    return f"{twice} of {len(ids) * len(told.committed)} messages came twice"


def _in_order(got: Mapping[str, Sequence[Got]], of: Mapping[str, tuple[str, int]]) -> None:
    last: dict[str, int] = {}
    for message in got:  # as they first came
        stream, position = of[message]
        assert position > last.get(stream, 0), stream
        last[stream] = position


def _unexplained(tries: Sequence[Got], kills: Sequence[float]) -> int:
    """How often it came again without a death in between."""
    pairs = itertools.pairwise(tries)
    return sum(not any(before.at - 1 <= kill <= after.at for kill in kills) for before, after in pairs)


def late(receiver: Receiver, system: System, ids: Sequence[str], told: Told) -> tuple[float, float]:
    """Seconds from commit to the first receipt at good endpoints: p50 and p99."""
    found: list[float] = []
    for n, id in enumerate(ids):
        rows = system.sql("select message, position from undrift.deliveries where endpoint = %s", id)
        positions = dict(rows)
        first = {one.id: one.at for one in reversed(receiver.got(f"ok/{n}"))}
        found += [at - told.committed[positions[message]] for message, at in first.items()]
    found.sort()
    return found[len(found) // 2], found[len(found) * 99 // 100]


async def settled(system: System, ids: Sequence[str], count: int, patience_s: float) -> None:
    """Waits until so many were delivered to each of these."""
    deadline = time.monotonic() + patience_s
    while True:
        (done,) = system.sql(
            "select count(*) from undrift.deliveries where state = 'delivered' and endpoint = any (%s)", list(ids)
        )[0]
        if done >= count * len(ids):
            return
        assert time.monotonic() < deadline, (done, count * len(ids), system.said()[-3000:])
        await asyncio.sleep(0.2)
