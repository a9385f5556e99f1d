"""All servers of this node: what the log says of each goes to it, and what it uses is told to whoever listens."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Awaitable, Iterable, Sequence

import msgspec
import structlog
from nats.aio.msg import Msg

from domain import errors, messages, servers, tenants
from infra import subjects
from infra.db import CONNECTION_LOST
from infra.eventstore.recorder import Guard
from infra.eventstore.store import Loaded
from infra.runtimes import Running, Runtime, Usage
from infra.volumes import Volumes
from services import servers as shared
from services.gateway.waits import Waits
from services.main import Process
from services.node.server import Server, Shared

log = structlog.get_logger("node")

_AGAIN_S, _RUNTIME_S = 0.2, 1.0
#: Of servers that are started at the same time, so many ask the Panel at once.
_SYNCS = 4
#: Whoever has not said for so long that it has clients has none.
_HEARD_S = 3 * shared.LISTENING_S

_encode = msgspec.json.Encoder().encode


class Fleet:
    """Raises errors.LeaseLost when another process acts in our place."""

    def __init__(
        self, process: Process, runtime: Runtime, volumes: Volumes, waits: Waits, guard: Guard, began: asyncio.Event
    ) -> None:
        self._process, self._runtime, self._volumes = process, runtime, volumes
        self._shared = Shared(process, runtime, volumes, waits, guard, asyncio.Semaphore(_SYNCS))
        self._servers: dict[str, Server] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._strays: dict[str, Running] = {}
        self._began = began
        self._heard: dict[str, float] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Serves until cancelled; servers run on."""
        subscription = self._process.tail.subscribe(self._process.tail.position, contexts=frozenset({servers.STREAM}))
        listener = await self._process.bus.subscribe(subjects.server("*", shared.LISTENING), self._listening)
        try:
            async with asyncio.TaskGroup() as self._group:
                await self._begin(await self._adopted())
                self._began.set()
                self._group.create_task(self._tell_figures(), name="node figures")
                async for page in subscription:
                    for recorded in page:
                        self._hear(recorded)
        finally:
            subscription.close()
            await listener.close()

    async def end(self, within_s: float) -> None:
        """Servers end with the node; nothing else may be under way."""
        log.info("servers are asked to end", within_s=round(within_s, 1))
        await _all([*(one.finish(within_s) for one in self._servers.values()), *map(_kill, self._strays.values())])

    async def leave(self) -> None:
        """Whatever runs, runs on."""
        await _all(one.leave() for one in self._servers.values())

    def __getitem__(self, uuid: str) -> Server:
        """Raises errors.NotFound."""
        found = self._servers.get(uuid)
        if found is None or found.state.deleted or found.state.configuration is None:
            raise errors.NotFound("There is no such server", kind="server")
        return found

    # What there is, and what comes.

    async def _begin(self, adopted: dict[str, Running]) -> None:
        """What should be and what is."""
        loaded = await self._loaded()
        known = {stream.rpartition("/")[2]: one for stream, one in loaded.items()}
        self._strays = {uuid: running for uuid, running in adopted.items() if uuid not in known}
        for uuid in self._strays:  # such as after a restore: the Panel will say more of it
            log.warning("a process of a server that the log does not know runs on", server=uuid)
        folders = await asyncio.to_thread(_names, self._volumes)
        made = []
        for uuid, one in known.items():
            state: servers.Server = one.state
            if state.deleted and uuid not in adopted and uuid not in folders:
                continue
            made.append((server := self._add(uuid, one)).adopt(adopted.get(uuid)))
            if state.deleted:
                server.delete()
        await _all(made)
        for uuid in [*self._servers]:
            self._serve(uuid)
        log.info("servers were adopted", servers=len(self._servers), running=len(adopted))

    async def _adopted(self) -> dict[str, Running]:
        """As soon as the runtime answers."""
        told = False
        while True:
            try:
                return await self._runtime.adopt()
            except errors.Error as error:
                if not told:
                    log.warning("the runtime of servers does not answer", reason=error.message)
                told = True
                await asyncio.sleep(_RUNTIME_S)

    async def _loaded(self) -> dict[str, Loaded]:
        store, prefix = self._process.store, messages.stream(servers.STREAM, tenants.FIRST, "")
        while True:
            try:
                rows = await self._process.db.fetch(
                    "select stream_id from undrift.events where version = 1 and starts_with(stream_id, $1)", prefix
                )
                return await store.load_all(servers, [row["stream_id"] for row in rows])
            except CONNECTION_LOST as error:
                log.warning("the node waits for Postgres", reason=type(error).__name__)
                await asyncio.sleep(_AGAIN_S)

    def _hear(self, recorded: messages.Recorded) -> None:
        if recorded.tenant != tenants.FIRST or isinstance(recorded.event, messages.Unreadable):
            return
        uuid = recorded.id
        if uuid not in self._servers:
            if recorded.version > 1 and not isinstance(recorded.event, servers.Added):
                return  # it was deleted before we began
            made = self._add(uuid, Loaded(servers.initial, recorded.version - 1))
            made.inbox.put_nowait(functools.partial(made.adopt, self._strays.pop(uuid, None)))
            self._serve(uuid)
        self._servers[uuid].note(recorded)

    def _add(self, uuid: str, loaded: Loaded) -> Server:
        made = self._servers[uuid] = Server(self._shared, uuid, loaded)
        return made

    def _serve(self, uuid: str) -> None:
        assert self._group is not None
        self._running[uuid] = self._group.create_task(self._servers[uuid].run(), name=f"server {uuid}")

    # What they use.

    async def _listening(self, message: Msg) -> None:
        token = message.subject.split(".")[1]
        now = time.monotonic()
        if len(self._heard) > len(self._servers):
            self._heard = {one: at for one, at in self._heard.items() if now - at < _HEARD_S}
        self._heard[token] = now

    def _is_heard(self, uuid: str) -> bool:
        return time.monotonic() - self._heard.get(subjects.token(uuid), -_HEARD_S) < _HEARD_S

    async def _tell_figures(self) -> None:
        while True:
            await asyncio.sleep(self._process.settings.servers.stats_s)
            heard = [one for one in self._servers.values() if one.life is not None and self._is_heard(one.uuid)]
            await _all(self._tell(one) for one in heard)

    async def _tell(self, server: Server) -> None:
        found = await self.figures(server.uuid)
        if found is not None:
            try:
                await self._process.bus.publish(subjects.server(server.uuid, shared.STATS), _encode(found))
            except errors.Unavailable:
                log.debug("nobody hears what servers use")

    async def figures(self, uuid: str) -> shared.Utilization | None:
        """None for a server that is not known."""
        try:
            server = self[uuid]
            disk = await asyncio.to_thread(self._volumes.usage, uuid)
        except errors.Error:
            return None
        except OSError as error:
            log.warning("the files of a server cannot be measured", server=uuid, reason=str(error.strerror))
            disk = 0
        made = shared.still(server.state.power, server.configuration, disk)
        life = server.life
        if life is None or life.ended.done():
            return made
        used = await _usage(life.running)
        network = shared.Network(used.rx_bytes, used.tx_bytes)
        return msgspec.structs.replace(
            made,
            memory_bytes=used.memory_bytes,
            cpu_absolute=round(used.cpu_absolute, 3),
            network=network,
            uptime=used.uptime_ms,
        )


async def _kill(running: Running) -> None:
    await running.kill()


async def _usage(running: Running) -> Usage:
    try:
        return await running.usage()
    except errors.Error:  # it has just ended, or its runtime does not answer
        return Usage()


def _names(volumes: Volumes) -> set[str]:
    try:
        return set(os.listdir(volumes.base))
    except FileNotFoundError:
        return set()


async def _all(doing: Iterable[Awaitable[None]]) -> None:
    """Each, whatever becomes of the others; raises only when we act no longer."""
    found: Sequence[BaseException | None] = await asyncio.gather(*doing, return_exceptions=True)
    for error in found:
        if isinstance(error, errors.LeaseLost):
            raise error
        if error is not None:
            log.error("a server is not as it should be", error=repr(error))
