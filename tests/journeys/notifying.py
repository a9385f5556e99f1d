"""Notifiers in this process on a database of their own, and endpoints that are told of events on several streams."""

from __future__ import annotations

import asyncio
import base64
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from domain import integrations, messages, webhooks
from infra import config, configfile
from infra.eventstore.store import Decided, Loaded, Store
from infra.vault import Vault
from services import main
from services.main import Process
from services.notifier import Notifier
from tests.doubles.receiver import Got, Receiver

#: Quick timers; `per_endpoint` and `concurrency` stay as they are.
QUICK: Mapping[str, Any] = {
    "webhooks.allow_loopback": True,
    "webhooks.timeout_s": 1.0,
    "webhooks.retry_s": 0.1,
    "webhooks.retry_max_s": 0.5,
    "webhooks.probe_s": 0.3,
    "webhooks.poll_s": 0.1,
    "jobs.lease_s": 1.0,
    "jobs.beat_s": 0.2,
    "database.durable": False,
    "tail.poll_s": 0.1,
    "nats.connect_timeout_s": 0.2,
}
PATIENCE_S = 30.0
_EVENTS = (integrations.Started(), integrations.Stopped())


class Teller:
    """Events that are public and change nothing, on streams of their own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._versions: dict[str, int] = {}

    async def say(self, count: int, streams: int = 1, name: str = "i") -> list[int]:
        """As many events, in turn on so many streams; their positions."""
        positions: list[int] = []
        for start in range(0, count, 100):
            events: dict[str, list[messages.Event]] = {}
            for n in range(start, min(start + 100, count)):
                id = f"{name}-{n % streams}"
                said = events.setdefault(id, [])
                version = self._versions[id] = self._versions.get(id, 0) + 1
                said.append(_EVENTS[version % 2])
            decided = [
                Decided(integrations, id, Loaded(None, self._versions[id] - len(said)), said)
                for id, said in events.items()
            ]
            last = await self.store.append(decided)
            positions += range(last - sum(map(len, events.values())) + 1, last + 1)
        return positions


class World(Teller):
    def __init__(self, process: Process, receiver: Receiver) -> None:
        super().__init__(process.store)
        self.process, self.receiver = process, receiver
        self.secrets: dict[str, str] = {}
        self._running: list[asyncio.Task[None]] = []

    def start(self, **more: Any) -> Notifier:
        """One more notifier."""
        notifier = Notifier(self.process, **more)
        self._running.append(asyncio.create_task(notifier.run()))
        return notifier

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    async def subscribe(self, path: str, *events: str, url: str | None = None) -> str:
        """The id of a new endpoint at a path of the receiver."""
        id, secret = f"wh-{uuid.uuid4().hex}", self._secret()
        reference = await Vault(self.process.db, self.process.master).seal("main", secret, f"webhooks/{id}")
        names = events or ("integrations.started", "integrations.stopped")
        await self.tell(id, webhooks.Subscribe(url or self.receiver.url(path), names, "", reference, len(self.secrets)))
        self.secrets[id] = secret
        return id

    def _secret(self) -> str:
        return f"whsec_{base64.b64encode(os.urandom(32)).decode()}"

    async def rotate(self, id: str, until: Any) -> str:
        secret, vault = self._secret(), Vault(self.process.db, self.process.master)
        reference = await vault.seal("main", secret, f"webhooks/{id}")
        await self.tell(id, webhooks.Rotate(reference, 2, until))
        return secret

    async def tell(self, id: str, command: webhooks.Command) -> int:
        return (await self.store.execute(webhooks, id, command)).position

    async def rows(self, endpoint: str) -> list[Any]:
        return await self.process.db.fetch(
            "select * from undrift.deliveries where endpoint = $1 order by seq", endpoint
        )

    async def states(self, endpoint: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in await self.rows(endpoint):
            found[row["state"]] = found.get(row["state"], 0) + 1
        return found

    async def settled(self, endpoint: str, count: int) -> list[Any]:
        """Its rows, once there are so many and none waits."""

        async def done() -> bool:
            rows = await self.rows(endpoint)
            return len(rows) >= count and all(row["state"] != "pending" for row in rows)

        assert await soon(done), await self.states(endpoint)
        return await self.rows(endpoint)

    async def received(self, path: str, count: int) -> list[Got]:
        async def enough() -> bool:
            return len(self.receiver.got(path)) >= count

        assert await soon(enough), len(self.receiver.got(path))
        return self.receiver.got(path)


async def soon(true: Callable[[], Any], patience_s: float = PATIENCE_S) -> bool:
    """Whether it becomes true in time."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while not await true():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def in_order(got: Sequence[Got]) -> bool:
    """Whether each stream's events first arrived in the order of their positions."""
    last: dict[str, int] = {}
    seen: set[str] = set()
    for one in got:
        if one.id in seen:
            continue
        seen.add(one.id)
        data = one.json()["data"]
        if data["position"] <= last.get(data["id"], 0):
            return False
        last[data["id"]] = data["position"]
    return True


def settings(database: str, directory: Path, **more: Any) -> config.Settings:
    """`more` are dotted with `__`."""
    overrides = {**QUICK, **{name.replace("__", "."): value for name, value in more.items()}}
    overrides |= {"data_dir": str(directory), "database.url": database, "nats.url": "nats://127.0.0.1:9"}
    return configfile.load(environ={}, overrides=list(overrides.items()))


@asynccontextmanager
async def open_world(
    database: str, directory: Path, *, brief: bool = False, mute: bool = False, **more: Any
) -> AsyncIterator[World]:
    """One without a notifier yet."""
    receiver = Receiver(directory, brief=brief, mute=mute)
    try:
        async with main.process("core", settings(database, directory, **more)) as process:
            world = World(process, receiver)
            try:
                yield world
            finally:
                await world.stop()
    finally:
        receiver.close()
