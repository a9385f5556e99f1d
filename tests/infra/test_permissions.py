"""What a rogue client could do over NATS with the password of each of our users: only what that user does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import nats
import pytest
from nats.aio.client import Client

from domain import errors
from infra import callout, config, embedded, jetstream, permissions, processes
from infra.bus import Bus
from infra.feed import Feed
from infra.jetstream import Stream
from tests.journeys.system import until

WHO = (*permissions.USERS, "system")
CONF = Path(embedded.__file__).parent / "deploy" / "nats.conf"
_API = "$JS.API"
_GOVERNS = ("INFO", "CREATE", "UPDATE", "MSG.GET", "MSG.DELETE", "PURGE", "DELETE")

PUBLISHES: Mapping[str, set[str]] = {
    "evt.main._.jobs.queued": {"relay"},
    "evt.main.somebody.library.created": {"relay"},
    "ask.files": {"gateway"},
    "ask.node": {"gateway"},
    **{f"servers.x.{what}": {"node"} for what in ("console", "stats")},
    "servers.x.listening": {"gateway"},
    "servers.x.cut": {"gateway", "sftp"},
    "servers.x.other": set(),
    "ask.files.more": set(),
    "anything": set(),
    f"{_API}.STREAM.INFO.EVENTS": {"relay", "feeds"},
    **{f"{_API}.STREAM.{verb}.EVENTS": {"relay"} for verb in ("CREATE", "UPDATE", "PURGE", "DELETE")},
    **{f"{_API}.STREAM.MSG.{verb}.EVENTS": {"relay"} for verb in ("GET", "DELETE")},
    **{f"{_API}.CONSUMER.{verb}.EVENTS.x": {"relay", "feeds"} for verb in ("CREATE", "DELETE")},
    **{f"{_API}.CONSUMER.{verb}.EVENTS.x": {"feeds"} for verb in ("INFO", "MSG.NEXT")},
    f"{_API}.CONSUMER.NAMES.EVENTS": {"feeds"},
    **{f"{_API}.STREAM.{verb}.EVENTS": set() for verb in ("SNAPSHOT", "RESTORE", "PEER.REMOVE")},
    **{f"{_API}.STREAM.{verb}.OTHER": set() for verb in ("INFO", "CREATE", "UPDATE", "DELETE", "PURGE")},
    **{f"{_API}.{what}": set() for what in ("INFO", "STREAM.NAMES", "STREAM.LIST", "DIRECT.GET.EVENTS")},
    **{f"{_API}.CONSUMER.{verb}.EVENTS.x": set() for verb in ("DURABLE.CREATE", "PAUSE")},
    "$JS.FC.EVENTS.x.y": {"core"},
    "$JS.ACK.EVENTS.x.1.1.1.1.1": {"feeds"},
    "$SYS.REQ.SERVER.PING": set(),
    "$SYS.REQ.USER.AUTH": set(),
    "$SYS.REQ.SERVER.x.KICK": {"feeds"},
    "$SYS.REQ.SERVER.x.RELOAD": set(),
    "$SYS._INBOX.x.y": {"feeds"},
    "feeds.connections": {"feeds"},
    "feeds.out.x.y": {"feeds"},
    "feeds.in.$JS.x.API.INFO": set(),
    "_INBOX.gateway.x.y": {"worker", "node"},
    **{f"_INBOX.{user}.x.y": set() for user in permissions.USERS if user != "gateway"},
    "_INBOX.x": set(),
}

HEARS: Mapping[tuple[str, str], set[str]] = {
    **{(subject, ""): set() for subject in (">", "evt.>", "evt.main._.jobs.queued", "$JS.>", "$SYS.>", "_INBOX.>")},
    ("ask.files", "workers"): {"worker"},
    ("ask.*", "workers"): {"worker"},
    ("ask.node", "workers"): {"worker", "node"},
    ("ask.node", ""): set(),
    ("servers.x.*", ""): {"gateway"},
    ("servers.x.console", ""): {"gateway"},
    ("servers.*.listening", ""): {"gateway", "node"},
    ("ask.files", ""): set(),
    ("ask.files", "others"): set(),
    ("$SYS.REQ.USER.AUTH", ""): set(),
    ("$SYS.REQ.USER.AUTH", "feeds"): {"feeds"},
    ("feeds.in.>", ""): set(),
    ("feeds.in.>", "feeds"): {"feeds"},
    ("feeds.out.>", ""): set(),
    **{(f"_INBOX.{user}.x.*", ""): {user} for user in permissions.USERS},
}


class Broker(NamedTuple):
    """A server, and the passwords of its users."""

    port: int
    passwords: Mapping[str, str]

    def bus(self, user: str | None) -> Bus:
        return Bus(f"nats://127.0.0.1:{self.port}", config.Nats(passwords=dict(self.passwords)), user=user)


@pytest.fixture(scope="module")
def embedded_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    server = embedded.Nats(tmp_path_factory.mktemp("nats"))
    server.start()
    system = server.url.partition(":")[2].partition(":")[2].partition("@")[0]
    yield Broker(server.port, {**server.passwords, "system": system})
    server.stop()


@pytest.fixture(scope="module")
def deployed_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A node as the containers start it, but for its addresses."""
    base, port = tmp_path_factory.mktemp("deployed"), processes.choose_port()
    text = CONF.read_text().replace("port: 4222", f"port: {port}").replace("port: 6222", "port: -1")
    (base / "nats.conf").write_text(text.replace("127.0.0.1:8222", "127.0.0.1:-1"))
    passwords = {user: f"word of {user}" for user in WHO}
    variables = {f"{user.upper()}_PASSWORD": f'"{word}"' for user, word in passwords.items()}
    variables |= {
        "PASSWORD": variables.pop("SYSTEM_PASSWORD"),
        "ISSUER": callout.Issuer("a secret").public,
        "NODE": '"nats-1"',
        "STORE": f'"{base}"',
        "ROUTES": '["nats-route://127.0.0.1:9"]',
    }
    with open(base / "log", "wb") as log:
        command = [str(embedded.nats_server()), "-c", str(base / "nats.conf")]
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)
    assert until(lambda: not processes.port_is_free(port) or process.poll() is not None)
    yield Broker(port, passwords)
    process.kill()
    process.wait()


@pytest.fixture(params=["embedded_one", "deployed_one"])
def broker(request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue(request.param)
    return found


class Rogue:
    """A connection that keeps what it was refused."""

    def __init__(self, broker: Broker, user: str) -> None:
        self._broker, self._user = broker, user
        self.refused: list[str] = []

    async def __aenter__(self) -> Rogue:
        self.client: Client = await nats.connect(
            f"nats://127.0.0.1:{self._broker.port}",
            user=self._user,
            password=self._broker.passwords[self._user],
            error_cb=self._keep,
            allow_reconnect=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def _keep(self, error: Exception) -> None:
        self.refused.append(str(error))

    async def may_publish(self, subject: str, reply: str = "") -> bool:
        return await self._allowed(self.client.publish(subject, b"", reply=reply))

    async def may_hear(self, subject: str, queue: str) -> bool:
        return await self._allowed(self.client.subscribe(subject, queue=queue, cb=_ignore))

    async def _allowed(self, doing: object) -> bool:
        self.refused.clear()
        await doing  # type: ignore[misc]
        for _ in range(2):  # its first ping overtakes what it has not sent yet
            await self.client.flush()
        return not any("permissions violation" in text for text in self.refused)


async def _ignore(_: object) -> None:
    pass


async def test_nobody_may_say_what_is_not_his_to_say(broker: Broker) -> None:
    for user in permissions.USERS:
        async with Rogue(broker, user) as rogue:
            found = {subject for subject in PUBLISHES if await rogue.may_publish(subject)}
            assert found == {subject for subject, who in PUBLISHES.items() if user in who}, user


async def test_nobody_may_hear_what_is_not_for_him(broker: Broker) -> None:
    for user in permissions.USERS:
        async with Rogue(broker, user) as rogue:
            found = {which for which in HEARS if await rogue.may_hear(*which)}
            assert found == {which for which, who in HEARS.items() if user in who}, user


async def test_nobody_comes_in_with_the_password_of_another(broker: Broker) -> None:
    for user in ("relay", "system", "nobody"):
        reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        said = json.dumps({"user": user, "pass": broker.passwords["worker"], "verbose": False, "pedantic": False})
        writer.write(f"CONNECT {said}\r\nPING\r\n".encode())
        assert (await reader.readline()).startswith(b"INFO ")
        while (line := await reader.readline()) == b"PING\r\n":  # nobody answers for those that are none of ours
            pass
        assert b"Authorization Violation" in line
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


# And what each does still works.


@pytest.fixture
async def connect(embedded_one: Broker) -> AsyncIterator[Callable[[str], Bus]]:
    made: list[Bus] = []

    def begin(user: str) -> Bus:
        made.append(embedded_one.bus(user))
        return made[-1]

    yield begin
    for one in made:
        await one.close()


async def opened(bus: Bus) -> Bus:
    await bus.connect()
    assert await bus.ready(10)
    return bus


async def test_who_governs_the_stream_makes_the_consumer_of_who_listens(connect: Callable[[str], Bus]) -> None:
    relay, core = await opened(connect("relay")), await opened(connect("core"))
    stream = Stream(relay, "EVENTS")
    await stream.delete()
    await stream.create({"subjects": ["evt.>"]})
    arrived = asyncio.Event()
    feed = Feed(core, 0.05, arrived.set, relay)
    running = asyncio.create_task(feed.run(lambda: 0))
    async with asyncio.timeout(20):
        while not feed.alive:
            await asyncio.sleep(0.01)
        for number in range(3000):  # so many that the server asks whether they are taken
            await relay.publish("evt.main._.jobs.queued", b"x" * 1000, {"Undrift-Position": str(number + 1)})
        while len(feed.inbox) < 3000:
            arrived.clear()
            await arrived.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(errors.TimedOut):
        await jetstream.Stream(core, "EVENTS", timeout=0.3).state()
    assert (await stream.state()) is not None
    await stream.delete()


async def test_asks_are_answered(connect: Callable[[str], Bus]) -> None:
    gateway, worker = await opened(connect("gateway")), await opened(connect("worker"))

    async def answer(payload: bytes, seconds: float) -> bytes:
        return payload.upper()

    with pytest.raises(errors.Unavailable):
        await gateway.ask("files", b"word", 5)
    desk = await worker.answer("files", answer)
    await asyncio.sleep(0.05)
    assert await gateway.ask("files", b"word", 5) == b"WORD"
    await desk.close()


async def test_no_answer_is_sent_into_the_stream(embedded_one: Broker, connect: Callable[[str], Bus]) -> None:
    """Whoever answers an ask does so where the asker wants it: workers may answer to the gateway's inboxes alone."""
    relay, worker = await opened(connect("relay")), await opened(connect("worker"))
    stream = Stream(relay, "EVENTS")
    await stream.create({"subjects": ["evt.>"]})

    async def answer(payload: bytes, seconds: float) -> bytes:
        return b"forged"

    desk = await worker.answer("files", answer)
    info = json.dumps({}).encode()
    for user, subject in (("gateway", "ask.files"), ("core", f"{_API}.STREAM.INFO.EVENTS")):
        async with Rogue(embedded_one, user) as rogue:
            await rogue.client.publish(subject, info, reply="evt.main._.jobs.forged")
            await rogue.client.flush()
    await asyncio.sleep(0.3)
    state = await stream.state()
    assert state is not None
    assert state.messages == 0
    await desk.close()
    await stream.delete()
