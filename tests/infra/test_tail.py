"""One ordered, contiguous stream, however badly JetStream behaves and with or without it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping

import asyncpg
import pytest
from nats.aio.client import Client

from domain import messages
from infra import config, embedded
from infra.bus import Bus
from infra.envelope import Envelope
from infra.eventstore.mapper import LogNotification, Mapper
from infra.eventstore.store import Store
from infra.hints import Hints
from infra.subscription import Page
from infra.tail import Ended, Tail
from services import relay as relays
from services.relay import Relay
from tests.notes import MASTER, Confided, Notes, Written, open_log, running, until

KEY = relays.key(MASTER)
NATS = config.Nats(reconnect_s=0.02, ping_s=0.2, connect_timeout_s=0.5)
RELAY = config.Relay(check_s=3600, poll_s=0.1)
NEVER = 3600.0

Make = Callable[..., Tail]


class Silent(Hints):
    """No notifications at all."""

    async def run(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
async def log(database: str) -> AsyncIterator[Notes]:
    async with open_log(database) as log:
        yield log


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus(nats_url, NATS)
    await bus.connect()
    assert await bus.ready(5)
    yield bus
    await bus.close()


@pytest.fixture
async def nowhere() -> AsyncIterator[Bus]:
    """A bus without a server."""
    bus = Bus("nats://127.0.0.1:9", NATS)
    await bus.connect()
    yield bus
    await bus.close()


@pytest.fixture
async def make(log: Notes, bus: Bus) -> AsyncIterator[Make]:
    made: list[Tail] = []

    def make(
        settings: config.Tail | None = None, *, to: Bus | None = None, epoch: int = log.epoch, silent: bool = False
    ) -> Tail:
        hints = (Silent if silent else Hints)(log.database, retry_s=0.02)
        made.append(Tail(log.store, to or bus, settings or config.Tail(), KEY, epoch, hints=hints))
        return made[-1]

    yield make
    for tail in made:
        await tail.close()


@pytest.fixture
async def relay(log: Notes, bus: Bus) -> AsyncIterator[Relay]:
    """A relay at work."""
    hints = Hints(log.database, retry_s=0.02)
    relay = Relay(log.store, bus, RELAY, NATS, KEY, log.epoch, hints)
    async with running(hints.run, relay.run):
        await until(lambda: relay.renewals == 1)
        yield relay


class Reader:
    """A subscriber that keeps what it was given; `pace` is how long it takes for a page."""

    def __init__(self, tail: Tail, after: int = 0, backlog: int = 4096, pace: Callable[[], float] = lambda: 0) -> None:
        self.seen: Page = []
        self._subscription = tail.subscribe(after, backlog)
        self._pace = pace
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for page in self._subscription:
            assert page
            self.seen += page
            assert self._subscription.position == page[-1].position
            await asyncio.sleep(self._pace())

    async def until(self, position: int) -> Page:
        await until(lambda: self.task.done() or (bool(self.seen) and self.seen[-1].position >= position))
        if self.task.done():
            self.task.result()
        self._subscription.close()
        await self.task
        return self.seen


async def test_from_the_beginning_and_from_the_head(log: Notes, make: Make, relay: Relay) -> None:
    await log.write(250)
    tail, late = make(), make()
    await tail.start(0)
    await late.start()
    assert late.position == 250
    reader, other = Reader(tail), Reader(late, after=250)
    await log.write(50)
    everything = await log.all()
    assert await reader.until(300) == everything
    assert await other.until(300) == everything[250:]


async def test_jetstream_alone_is_enough(log: Notes, make: Make, relay: Relay) -> None:
    tail = make(config.Tail(poll_s=NEVER), silent=True)
    await tail.start()
    await until(lambda: tail.feed.alive)
    reader = Reader(tail)
    await asyncio.gather(*(log.write(40, id=f"s{n}", per=3) for n in range(5)))
    assert await reader.until(200) == await log.all()
    assert (tail.counts.from_nats, tail.counts.from_postgres) == (200, 0)


async def test_notifications_alone_are_enough(log: Notes, make: Make, nowhere: Bus) -> None:
    tail = make(config.Tail(poll_s=NEVER), to=nowhere)
    await tail.start()
    reader = Reader(tail)
    await asyncio.gather(*(log.write(40, id=f"s{n}", per=3) for n in range(5)))
    assert await reader.until(200) == await log.all()
    assert (tail.counts.from_nats, tail.counts.from_postgres) == (0, 200)


async def test_looking_alone_is_enough(log: Notes, make: Make, nowhere: Bus) -> None:
    tail = make(config.Tail(poll_s=0.02), to=nowhere, silent=True)
    await tail.start()
    reader = Reader(tail)
    await log.write(40)
    assert await reader.until(40) == await log.all()


async def test_a_word_is_enough(log: Notes, make: Make, nowhere: Bus) -> None:
    tail = make(config.Tail(poll_s=NEVER), to=nowhere, silent=True)
    await tail.start()
    await log.write(4)
    tail.wake(4)
    assert await tail.reached(4, 10)
    await log.write(4)
    tail.wake()
    assert await tail.reached(8, 10)


async def test_a_hint_gives_jetstream_its_grace_and_does_without_it(log: Notes, make: Make, relay: Relay) -> None:
    tail = make(config.Tail(poll_s=NEVER, grace_s=0.05))
    await tail.start()
    await until(lambda: tail.feed.alive)
    for n in range(10):
        assert await tail.reached(await log.write(1, id=f"s{n}"), 10)
    assert tail.counts.from_nats > 0
    relay.position += 1  # from here on its publishes are refused, and it stands by
    before = tail.counts.from_postgres
    for n in range(10):
        assert await tail.reached(await log.write(1, id=f"t{n}"), 10)
    assert tail.counts.from_postgres > before
    reader = Reader(tail)
    assert await reader.until(20) == await log.all()


async def test_waiting_for_a_position(log: Notes, make: Make, relay: Relay) -> None:
    tail = make()
    await tail.start()
    assert await tail.reached(0, 0)
    assert not await tail.reached(1, 0.02)
    waits = [asyncio.create_task(tail.reached(n, 10)) for n in (3, 1, 2, 9)]
    await log.write(3)
    assert await asyncio.gather(*waits[:3]) == [True] * 3
    assert not waits[3].done()
    await tail.close()
    assert not await waits[3]
    with pytest.raises(Ended):
        await tail.reached(9, 10)


async def test_personal_fields_are_opened_and_stay_closed_after_erasure(log: Notes, make: Make, relay: Relay) -> None:
    keyring = log.store.mapper.keyring
    assert keyring is not None
    tail = make(silent=True)
    await tail.start()
    await until(lambda: tail.feed.alive)
    reader = Reader(tail)
    await log.write(3, metadata=messages.Metadata(subject="alice"))
    await until(lambda: len(reader.seen) == 3)
    await keyring.destroy("main", "alice")
    again = Reader(tail)
    assert [isinstance(each.event, Confided) and each.event.text[:2] for each in await reader.until(3)] == [
        "0:",
        "1:",
        "2:",
    ]
    assert {each.event for each in await again.until(3)} == {Confided(text="erased")}


async def test_what_cannot_be_read_keeps_its_place(log: Notes, bus: Bus, relay: Relay) -> None:
    """By a program that does not know one kind of event, from Postgres and from JetStream alike."""
    narrow = Store(log.database, Mapper({"notes.written": Written}), log.store.writer)
    tail = Tail(narrow, bus, config.Tail(poll_s=NEVER), KEY, log.epoch, hints=Silent(log.database))
    for _ in range(2):
        await log.write(1)
        await log.write(1, metadata=messages.Metadata(subject="alice"))
        await (tail.start() if tail.task is None else asyncio.sleep(0))
        await until(lambda: tail.feed.alive)
    reader = Reader(tail)
    kinds = [type(each.event) for each in await reader.until(4)]
    assert kinds == [Written, messages.Unreadable] * 2
    assert tail.counts.from_nats == 2
    await tail.close()


async def test_a_slow_subscriber_holds_nobody_up_and_loses_nothing(log: Notes, make: Make, relay: Relay) -> None:
    tail = make(config.Tail(page=50))
    await tail.start()
    chance = random.Random(7)
    slow = [Reader(tail, backlog=20, pace=lambda: chance.random() * 0.02) for _ in range(4)]
    stuck = tail.subscribe(0, backlog=20)
    quick = Reader(tail)
    for _ in range(10):
        await log.write(60, per=1 + chance.randrange(30))
    everything = await log.all()
    assert await quick.until(600) == everything
    for reader in slow:
        assert await reader.until(600) == everything
    late = [await anext(stuck)]
    while late[-1][-1].position < 600:
        late.append(await anext(stuck))
    assert [event for page in late for event in page] == everything
    assert all(len(page) <= 50 for page in late)


async def test_subscribing_anywhere_at_any_time(log: Notes, make: Make, relay: Relay) -> None:
    tail = make(config.Tail(page=40))
    await tail.start()
    chance = random.Random(3)
    writing = asyncio.create_task(log.write(600, per=7))
    readers = []
    while not writing.done():
        after = chance.randrange(min(tail.position + 30, 600))
        readers.append((after, Reader(tail, after, backlog=chance.choice((1, 10, 1000)))))
        await asyncio.sleep(0.005)
    await writing
    everything = await log.all()
    for after, reader in readers:
        assert await reader.until(600) == everything[after:]


async def test_a_reader_that_is_interrupted_loses_nothing(log: Notes, make: Make, relay: Relay) -> None:
    """As with a long-poll that is given up and taken up again."""
    tail = make(config.Tail(page=20))
    await tail.start()
    seen: Page = []
    await log.write(9)
    assert await tail.reached(9, 10)
    for turns in range(5):  # while it reads the page that joins it to the tail
        subscription = tail.subscribe(0, backlog=30)
        reading = asyncio.create_task(anext(subscription))
        for _ in range(turns + 1):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        got = await anext(subscription) if reading.cancelled() else reading.result()
        assert got == await log.all()
        subscription.close()
    subscription = tail.subscribe(0, backlog=30)
    writing = asyncio.create_task(log.write(291, per=3))
    chance = random.Random(5)
    async with asyncio.timeout(20):
        while not seen or seen[-1].position < 300:
            reading = asyncio.create_task(anext(subscription))
            await asyncio.sleep(chance.random() * 0.003)
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                seen += reading.result()
    await writing
    assert seen == await log.all()


async def test_nats_dies_and_comes_back_under_load(
    log: Notes, make: Make, relay: Relay, nats_server: embedded.Nats
) -> None:
    tail = make()
    await tail.start()
    reader = Reader(tail)
    writing = asyncio.create_task(log.write(500, per=4))
    await asyncio.sleep(0.05)
    nats_server.kill()
    await asyncio.sleep(0.05)
    nats_server.start()
    await writing
    await until(lambda: tail.feed.alive)
    before = tail.counts.from_nats
    tail.hints._hints.clear()
    tail._poll_s = NEVER
    await until(lambda: relay.position == 500)
    await log.write(5)
    assert await reader.until(505) == await log.all()
    assert tail.counts.from_nats > before


async def test_a_log_with_a_hole_ends_the_tail_and_its_readers(
    log: Notes, make: Make, nowhere: Bus, database: str
) -> None:
    await log.write(10)
    owner = await asyncpg.connect(database)
    await owner.execute("delete from undrift.events where pos = 5")
    await owner.close()
    tail = make(config.Tail(page=10), to=nowhere)
    await tail.start(0)
    reader = Reader(tail)
    with pytest.raises(Ended):
        await asyncio.wait_for(reader.task, 10)
    with pytest.raises(Ended):
        tail.check()


class Rogue:
    """Somebody who may write to NATS: delivers to a tail whatever it likes."""

    def __init__(self, log: Notes, tail: Tail, client: Client, seed: int) -> None:
        self.log, self.tail, self.client = log, tail, client
        self.chance = random.Random(seed)
        self.ours = Envelope(KEY, log.epoch)
        self.liars = [Envelope(b"other", log.epoch), Envelope(KEY, log.epoch + 1), Envelope(KEY, log.epoch - 1)]

    async def deliver(self, after: int, count: int) -> None:
        """Each message up to five times, some never, out of order, among forgeries."""
        sealed = []
        for note in await self.log.store.read_raw(after, count):
            packed = self.ours.pack(note)
            sealed += [(packed.headers, packed.data)] * self.chance.choice((0, 1, 1, 1, 2, 5))
            if self.chance.random() < 0.3:
                sealed.append(self.forgery(note))
        if self.chance.random() < 0.7:
            self.chance.shuffle(sealed)
        for raw, data in sealed:
            await self.client.publish(self.tail.feed.subject, data, headers=lines(raw))

    def forgery(self, note: LogNotification) -> tuple[bytes, bytes]:
        genuine = self.ours.pack(note)
        match self.chance.randrange(7):
            case 0:
                forged = self.chance.choice(self.liars).pack(note)
                return forged.headers, forged.data
            case 1:
                return genuine.headers, genuine.data.replace(b"x", b"y", 1)
            case 2:
                return genuine.headers.replace(b"Undrift-Version: ", b"Undrift-Version: 1"), genuine.data
            case 3:
                return genuine.headers.replace(b"Undrift-Position: ", b"Undrift-Position: 1"), genuine.data
            case 4:
                return genuine.headers.replace(b"ce-time: 20", b"ce-time: 21"), genuine.data
            case 5:
                return b"Undrift-Position: -1\r\n", b""
            case _:
                return genuine.headers.replace(b"Undrift-Mac", b"Undrift-Mc"), genuine.data


def lines(raw: bytes) -> Mapping[str, str]:
    return dict(line.split(": ", 1) for line in raw.decode().split("\r\n") if line)


@pytest.mark.parametrize("seed", range(12))
async def test_no_delivery_makes_a_wrong_order(log: Notes, make: Make, nats_url: str, seed: int) -> None:
    chance = random.Random(seed)
    tail = make(config.Tail(poll_s=NEVER, page=chance.choice((3, 50, 1000))), silent=True)
    await tail.start()
    readers = [Reader(tail, backlog=chance.choice((1, 50, 5000))) for _ in range(3)]
    client = Client()
    await client.connect(nats_url)
    rogue = Rogue(log, tail, client, seed)
    await until(lambda: tail._caught_up)
    head = await log.write(3)
    for note in await log.store.read_raw(0, 3):
        packed = rogue.ours.pack(note)
        await client.publish(tail.feed.subject, packed.data, headers=dict(lines(packed.headers)))
    assert await tail.reached(3, 10)
    while head < 1000:
        before, head = head, await log.write(chance.choice((1, 10, 150)), id=f"s{chance.randrange(5)}")
        await rogue.deliver(max(0, before - chance.choice((0, 0, 100))), 1000)
        if chance.random() < 0.5:
            await client.flush()
    await client.flush()
    tail.wake()
    everything = await log.all()
    for reader in readers:
        assert await reader.until(head) == everything
    assert tail.counts.forged > 0
    assert tail.counts.from_nats >= 3
    assert tail.counts.from_nats + tail.counts.from_postgres == head
    await client.close()


async def test_messages_of_another_epoch_are_not_taken(log: Notes, make: Make, relay: Relay) -> None:
    tail = make(config.Tail(poll_s=NEVER), epoch=log.epoch + 1, silent=True)
    await tail.start()
    await until(lambda: tail.feed.alive)
    await log.write(5)
    await until(lambda: tail.counts.ignored == 5)
    assert tail.position == 0
    tail.wake()
    assert await tail.reached(5, 10)
    assert tail.counts.from_nats == 0
