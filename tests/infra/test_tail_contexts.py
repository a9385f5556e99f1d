"""A process that follows some contexts sees all of their events, in order, and hardly notices the others."""

from __future__ import annotations

import asyncio
import random
from uuid import uuid4

from domain import messages
from infra import config
from infra.bus import Bus
from infra.eventstore.mapper import LogEvent, content_hash
from infra.eventstore.recorder import Append, Write
from infra.subscription import Page, Subscription
from infra.tail import Tail
from services import relay as relays
from tests.notes import MASTER, Notes, open_log, until

KEY = relays.key(MASTER)
NEVER = 3600.0
NOTES = frozenset({"notes"})


def tail_of(log: Notes, settings: config.Tail) -> Tail:
    return Tail(log.store, Bus("nats://127.0.0.1:9"), settings, KEY, log.epoch, feed=False)


async def chatter(log: Notes, count: int) -> None:
    """Events of another context."""
    stream, header = f"others/main/{uuid4().hex}", "{}"
    events = []
    for version in range(1, count + 1):
        fields = ("main", stream, version, "others.said", 1, uuid4(), header)
        events.append(
            LogEvent(
                originator_id=stream,
                originator_version=version,
                topic="others.said",
                state=b"{}",
                tenant="main",
                schema_version=1,
                event_id=fields[5],
                metadata=header,
                hash=content_hash(*fields, b"{}"),
            )
        )
    await log.store.writer.append(Append("main", [Write(stream, 0, events)]))


async def collect(subscription: Subscription, into: Page) -> None:
    async for page in subscription:
        assert page
        into += page


def notes(events: Page) -> Page:
    return [one for one in events if one.stream.startswith("notes/")]


async def test_events_of_a_context_come_at_once_and_those_of_others_wait_for_a_look(database: str) -> None:
    async with open_log(database) as log:
        tail = tail_of(log, config.Tail(poll_s=NEVER, pace_s=0))
        await tail.start()
        seen: Page = []
        subscription = tail.subscribe(0, contexts=NOTES)
        reading = asyncio.create_task(collect(subscription, seen))
        await log.write(3)
        await until(lambda: len(seen) == 3)
        await chatter(log, 5)
        await log.write(1)
        await until(lambda: len(seen) == 4)
        assert (seen[-1].position, subscription.position) == (9, 9)
        assert tail.counts.from_postgres == 9

        before = tail.position
        await chatter(log, 7)
        assert tail.position == before
        assert await tail.reached(16, 10), "whoever waits for a position hears of every event"
        subscription.close()
        await reading
        await tail.close()


async def test_a_subscriber_to_everything_misses_nothing_that_was_passed_over(database: str) -> None:
    async with open_log(database) as log:
        tail = tail_of(log, config.Tail(poll_s=NEVER, pace_s=0, page=10))
        await tail.start()
        some: Page = []
        everything: Page = []
        readings = [asyncio.create_task(collect(tail.subscribe(0, contexts=NOTES), some))]
        await chatter(log, 25)
        await log.write(2)
        await until(lambda: len(some) == 2)
        await chatter(log, 4)
        readings.append(asyncio.create_task(collect(tail.subscribe(3), everything)))
        await until(lambda: bool(everything) and everything[-1].position == 31)
        await chatter(log, 1)
        await until(lambda: everything[-1].position == 32)
        assert everything == (await log.all())[3:]
        assert some == notes(await log.all())
        await tail.close()
        await asyncio.wait(readings)


async def test_slow_and_quick_subscribers_to_a_context_under_load(database: str) -> None:
    async with open_log(database) as log:
        tail = tail_of(log, config.Tail(poll_s=0.05, pace_s=0.001, page=3))
        await tail.start()
        chance = random.Random(5)
        seen: list[Page] = [[] for _ in range(4)]

        async def slow(into: Page) -> None:
            async for page in tail.subscribe(0, backlog=4, contexts=NOTES):
                into += page
                await asyncio.sleep(chance.random() * 0.01)

        readings = [asyncio.create_task(slow(into)) for into in seen[:3]]
        readings.append(asyncio.create_task(collect(tail.subscribe(0, contexts=NOTES), seen[3])))
        for n in range(40):
            await asyncio.gather(chatter(log, 1 + n % 9), log.write(1 + n % 3, id=f"s{n % 4}"))
        expected = notes(await log.all())
        await until(lambda: all(len(one) >= len(expected) for one in seen))
        assert all(one == expected for one in seen)
        assert {type(one) for one in expected} == {messages.Recorded}
        await tail.close()
        await asyncio.wait(readings)
