"""Consumers from outside at a server of our own and at a cluster: let in, fed through the gate, sent away."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from domain import errors
from infra import callout, config, embedded, outside, permissions, processes, subjects
from infra.bus import Bus
from infra.jetstream import Refused, Stream
from services.consumers_gate import Gate, Known
from tests.journeys.system import until

CONF = Path(embedded.__file__).parent / "deploy" / "nats.conf"
ID, OTHER = f"nc{'1' * 18}", f"nc{'2' * 18}"


class Place(NamedTuple):
    """Where NATS is: the nodes' ports, the passwords of our users, and the secret of who signs."""

    ports: list[int]
    passwords: dict[str, str]
    issuer: str

    def bus(self, user: str) -> Bus:
        return Bus(f"nats://127.0.0.1:{self.ports[0]}", config.Nats(passwords=self.passwords), user=user)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    server = embedded.Nats(tmp_path_factory.mktemp("nats"))
    server.start()
    yield Place([server.port], server.passwords, server.issuer)
    server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Three nodes as the containers run them, but for their addresses."""
    base = tmp_path_factory.mktemp("cluster")
    clients, routes = ([processes.choose_port() for _ in range(3)] for _ in range(2))
    passwords = {user: f"word-of-{user}" for user in permissions.USERS}
    shared = {f"{user.upper()}_PASSWORD": f'"{word}"' for user, word in passwords.items()}
    urls = ", ".join(f'"nats-route://route:word@127.0.0.1:{port}"' for port in routes)
    shared |= {"PASSWORD": '"word"', "ISSUER_PASSWORD": "a secret", "ROUTES": f"[{urls}]"}
    running = []
    for number, (client, route) in enumerate(zip(clients, routes, strict=True)):
        text = CONF.read_text().replace("port: 4222", f"port: {client}").replace("port: 6222", f"port: {route}")
        file = base / f"{number}.conf"
        file.write_text(text.replace("127.0.0.1:8222", "127.0.0.1:-1"))
        own = {**shared, "NODE": f'"nats-{number}"', "STORE": f'"{base / str(number)}"'}
        with open(base / f"{number}.log", "wb") as log:
            command = [sys.executable, "-m", "infra.deploy.nats", str(file)]
            running.append(subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log))
    logs = [base / f"{number}.log" for number in range(3)]
    assert until(lambda: all("Server is ready" in log.read_text() for log in logs)), logs[0].read_text()
    assert until(lambda: any("JetStream cluster new metadata leader" in log.read_text() for log in logs))
    yield Place(clients, passwords, "a secret")
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture(params=["alone", "cluster"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


class Opened(NamedTuple):
    place: Place
    feeds: Bus
    relay: Bus


async def created(stream: Stream, replicas: int) -> bool:
    """False while the nodes of a cluster do not know each other yet."""
    try:
        await stream.delete()
        await stream.create({"subjects": ["evt.>"], "num_replicas": replicas})
    except (Refused, errors.TimedOut, errors.Unavailable):
        return False
    return True


@pytest.fixture
async def opened(place: Place) -> AsyncIterator[Opened]:
    """A stream with events of two tenants, and somebody who answers for two credentials, one of each."""
    feeds, relay = place.bus("feeds"), place.bus("relay")
    for bus in (feeds, relay):
        await bus.connect()
        assert await bus.ready(20)
    stream = Stream(relay, "EVENTS", timeout=5)
    async with asyncio.timeout(120):
        while not await created(stream, len(place.ports)):
            await asyncio.sleep(0.2)
    for number in range(6):
        tenant = "main" if number % 2 == 0 else "other"
        await relay.request(subjects.event(tenant, "_", "jobs.queued"), b"%d" % number, 10)
    issuer = callout.Issuer(place.issuer)

    async def answer(message: Msg) -> None:
        asked = callout.question(message.data)
        known = asked.token == f"word of {asked.connect_opts.user}"
        said = issuer.admit(asked, asked.connect_opts.user, None) if known else issuer.refuse(asked, "no")
        await feeds.publish(message.reply, said)

    async def look_up(id: str) -> Known | None:
        tenant = {ID: "main", OTHER: "other"}.get(id)
        return None if tenant is None else Known(id, tenant, subjects.events_of(tenant))

    gate = Gate(feeds, feeds, look_up, 20_000, lambda id: None)
    await feeds.subscribe(permissions.AUTHORISE, answer, queue=permissions.GATE)
    await feeds.subscribe(f"{permissions.SAID}.>", gate.hear, queue=permissions.GATE)
    await asyncio.sleep(0.5)  # all nodes know of it
    yield Opened(place, feeds, relay)
    gate.close()
    await stream.delete()
    for bus in (feeds, relay):
        await bus.close()


@asynccontextmanager
async def consumer(place: Place, id: str, ended: asyncio.Event | None = None) -> AsyncIterator[Client]:
    """Connected to the last node, where nobody of ours is."""

    async def lost() -> None:
        if ended is not None:
            ended.set()

    client = await nats.connect(
        f"nats://127.0.0.1:{place.ports[-1]}",
        user=id,
        password=f"word of {id}",
        inbox_prefix=f"_INBOX.{id}".encode(),
        disconnected_cb=lost,
        error_cb=ignore,
        allow_reconnect=False,
    )
    try:
        yield client
    finally:
        await client.close()


async def ignore(_: Any) -> None:
    pass


async def test_it_reads_its_tenant_and_acknowledges(opened: Opened) -> None:
    async with consumer(opened.place, ID) as client:
        stream = client.jetstream(domain=ID, timeout=10)
        reading = await stream.pull_subscribe("", durable=ID, stream="EVENTS")
        found = [message for _ in range(3) for message in await reading.fetch(1, timeout=20)]
        assert [(one.subject, one.data) for one in found] == [("evt.main._.jobs.queued", b"%d" % n) for n in (0, 2, 4)]
        for message in found:
            await message.ack_sync(timeout=10)
        assert (await stream.consumer_info("EVENTS", ID)).ack_floor.stream_seq == 5
    async with consumer(opened.place, OTHER) as client:
        ordered = await client.jetstream(domain=OTHER, timeout=10).add_consumer(
            "EVENTS", ConsumerConfig(ack_policy=AckPolicy.NONE)
        )
        assert ordered.num_pending == 3


async def test_many_events_arrive_as_fast_as_they_are_pulled(opened: Opened) -> None:
    for number in range(2000):
        await opened.relay.publish("evt.main._.items.created", b"x" * 500, {"n": str(number)})
    await opened.relay.request("evt.main._.items.created", b"last", 20)
    async with consumer(opened.place, ID) as client:
        stream = client.jetstream(domain=ID, timeout=10)
        wanted = ConsumerConfig(ack_policy=AckPolicy.NONE, filter_subject="evt.main._.items.created")
        made = await stream.add_consumer("EVENTS", wanted)
        reading = await stream.pull_subscribe_bind(made.name, "EVENTS")
        found = 0
        while found < 2001:
            found += len(await reading.fetch(500, timeout=20))
    assert found == 2001


async def test_who_is_connected_is_known_and_can_be_sent_away(opened: Opened) -> None:
    ended, stays = asyncio.Event(), asyncio.Event()
    async with consumer(opened.place, ID, ended), consumer(opened.place, OTHER, stays):
        here = await outside.connected(opened.feeds)
        assert sorted(one.id for one in here) == [ID, OTHER]
        [unwanted] = [one for one in here if one.id == ID]
        await outside.end(opened.feeds, unwanted)
        async with asyncio.timeout(20):
            await ended.wait()
        assert [one.id for one in await outside.connected(opened.feeds)] == [OTHER]
        assert not stays.is_set()


async def test_nothing_reaches_our_account_but_the_gate(opened: Opened) -> None:
    """Also with everything said at once that a consumer must not say."""
    refused: list[str] = []

    async def keep(error: Exception) -> None:
        refused.append(str(error))

    said = ["evt.main._.jobs.queued", "$JS.API.STREAM.PURGE.EVENTS", "$JS.API.STREAM.DELETE.EVENTS", "ask.files"]
    said += [f"$JS.{OTHER}.API.INFO", f"$JS.ACK.EVENTS.{OTHER}.1.1.1.1.1", f"feeds.out.{OTHER}.x", "feeds.connections"]
    async with consumer(opened.place, ID) as client:
        client._error_cb = keep
        for subject in said:
            await client.publish(subject, b"x", reply=f"_INBOX.{ID}.x")
        for _ in range(2):
            await client.flush()
    assert len([text for text in refused if "permissions violation" in text]) == len(said)
    state = await Stream(opened.relay, "EVENTS", timeout=10).state()
    assert state is not None
    assert state.last == 6
