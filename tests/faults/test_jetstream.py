"""A cluster of three NATS nodes under SIGKILLs: every sequence keeps its event, whoever relays."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain import errors
from infra import config, embedded, jetstream, processes
from infra.bus import Bus
from infra.envelope import Envelope
from infra.feed import STREAM
from infra.tail import Tail
from services import relay as relays
from services.relay import Relay
from tests.notes import MASTER, Notes, open_log, running, until

KEY = relays.key(MASTER)
NATS = config.Nats(replicas=3, reconnect_s=0.1, ping_s=0.5, connect_timeout_s=1)
RELAY = config.Relay(check_s=1, poll_s=0.2, publish_timeout_s=2)


class Cluster:
    """Three nodes on this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = [processes.choose_port() for _ in range(3)]
        self.routes = [processes.choose_port() for _ in range(3)]
        self.nodes: list[subprocess.Popen[bytes] | None] = [None] * 3

    @property
    def url(self) -> str:
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports)

    def start(self, node: int) -> None:
        file = self.directory / f"{node}.conf"
        file.write_text(
            json.dumps(
                {
                    "server_name": f"n{node}",
                    "host": "127.0.0.1",
                    "port": self.ports[node],
                    "jetstream": {"store_dir": str(self.directory / f"n{node}")},
                    "log_file": str(self.directory / f"n{node}.log"),
                    "cluster": {
                        "name": "tests",
                        "host": "127.0.0.1",
                        "port": self.routes[node],
                        "routes": [f"nats://127.0.0.1:{port}" for port in self.routes],
                    },
                }
            )
        )
        self.nodes[node] = subprocess.Popen([embedded.nats_server(), "-c", file])

    def kill(self, node: int) -> None:
        child, self.nodes[node] = self.nodes[node], None
        if child is not None:
            child.kill()
            child.wait()

    def stop(self) -> None:
        for node in range(3):
            self.kill(node)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    for node in range(3):
        cluster.start(node)
    yield cluster
    cluster.stop()


@pytest.fixture
async def buses(cluster: Cluster) -> AsyncIterator[list[Bus]]:
    buses = [Bus(cluster.url, NATS) for _ in range(2)]
    for bus in buses:
        await bus.connect()
    yield buses
    for bus in buses:
        await bus.close()


@pytest.fixture
async def log(database: str) -> AsyncIterator[Notes]:
    async with open_log(database) as log:
        yield log


async def leader(stream: jetstream.Stream) -> int | None:
    """The node that leads the stream, as far as one answers."""
    try:
        info = await stream._call(f"STREAM.INFO.{STREAM}", {})
    except (errors.Unavailable, errors.TimedOut, jetstream.Refused):
        return None
    name = ((info or {}).get("cluster") or {}).get("leader")
    return int(name[1:]) if name else None


async def every_event_has_its_sequence(log: Notes, stream: jetstream.Stream) -> None:
    head, state = await log.store.head(), await stream.state()
    assert state is not None
    assert (state.first, state.last, state.messages) == (1, head, head)
    envelope = Envelope(KEY, log.epoch)
    for note in await log.store.read_raw(0, head):
        stored = await stream.message(note.id)
        assert stored is not None
        assert envelope.unpack(stored.headers, stored.data) == note


async def settled(log: Notes, relays: list[Relay], stream: jetstream.Stream) -> None:
    head = await log.store.head()
    async with asyncio.timeout(90):
        while True:
            try:
                state = await stream.state()
                if state is not None and state.last == head:
                    return
            except (errors.Unavailable, errors.TimedOut, jetstream.Refused):
                pass
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_leaders_die_under_load(log: Notes, cluster: Cluster, buses: list[Bus]) -> None:
    stream = jetstream.Stream(buses[0], STREAM, replicas=3)
    both = [Relay(log.store, bus, RELAY, NATS, KEY, log.epoch) for bus in buses]
    tail = Tail(log.store, buses[1], config.Tail(), KEY, log.epoch)
    await tail.start(0)
    seen: list[int] = []

    async def read() -> None:
        async for page in tail.subscribe(0):
            seen.extend(event.position for event in page)

    chance = random.Random(11)
    async with running(*(relay.run for relay in both), read):
        tail.hints.subscribe(both[0].wake)
        tail.hints.subscribe(both[1].wake)
        await log.write(10)
        await settled(log, both, stream)
        writing = asyncio.create_task(write(log))
        for _ in range(5):
            await asyncio.sleep(1 + chance.random())
            node = await leader(stream)
            node = chance.randrange(3) if node is None else node
            cluster.kill(node)
            await asyncio.sleep(chance.random() * 2)
            cluster.start(node)
        writing.cancel()
        await asyncio.wait([writing])
        await log.write(1, id="last")
        await settled(log, both, stream)
        head = await log.store.head()
        await until(lambda: tail.position == head and len(seen) == head, 60)
    await every_event_has_its_sequence(log, stream)
    assert seen == list(range(1, head + 1))
    assert sum(relay.renewals for relay in both) <= 2, "no kill of a node is a reason to begin again"
    await tail.close()


async def write(log: Notes) -> None:
    for number in range(10_000):
        await log.write(5, id=f"s{number % 20}", per=2)
        await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_contending_relays_never_stop_the_stream(log: Notes, cluster: Cluster, buses: list[Bus]) -> None:
    """Publishes that are refused in the middle of another's must leave a stream that still takes messages."""
    streams = [jetstream.Stream(bus, STREAM, timeout=5, replicas=3) for bus in buses]
    relay = Relay(log.store, buses[0], RELAY, NATS, KEY, log.epoch)
    await log.write(400)
    async with asyncio.timeout(60):
        while relay.renewals == 0:
            try:
                await relay.compare()
            except relays.TRANSIENT:
                await asyncio.sleep(0.2)
    envelope, refused = Envelope(KEY, log.epoch), 0
    packed = [envelope.pack(note) for note in await log.store.read_raw(0, 400)]

    async def copy(stream: jetstream.Stream, chance: random.Random) -> None:
        nonlocal refused
        position = 0
        while position < len(packed):
            batch = packed[position : position + chance.choice((1, 2, 3, 9))]
            try:
                position = await stream.publish(batch, position)
            except jetstream.Refused as error:
                if error.code not in jetstream.SOMEBODY_ELSE:
                    raise
                refused += 1
                state = await stream.state()
                assert state is not None
                position = state.last
                await asyncio.sleep(chance.random() * 0.003)

    await asyncio.gather(*(copy(stream, random.Random(n)) for n, stream in enumerate(streams)))
    assert refused > 0
    await every_event_has_its_sequence(log, streams[0])
