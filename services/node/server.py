"""One server: what is asked of it one after the other, what its process does, and both in the log."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import assert_never

import structlog

from domain import errors, messages, server_config, servers
from domain.server_config import Configuration
from infra.db import CONNECTION_LOST
from infra.eventstore.recorder import Guard
from infra.eventstore.store import Loaded
from infra.runtimes import Identity, Running, Runtime
from infra.volumes import Volumes
from services import servers as shared
from services.gateway.waits import Waits
from services.main import Process
from services.node import launching, runtimes
from services.node.console import Console
from services.node.life import Life

log = structlog.get_logger("node")

#: A suspended server has no longer than this to end by itself.
_SUSPENDED_S = 60.0
#: What was killed is gone by then, or nothing here can end it.
_KILLED_S = 10.0
_AGAIN_S = 0.2
#: When it is tried again to end what must not run.
_INSIST_S = 5.0
#: Exit codes of what the kernel may have ended for want of memory.
_KILLED = (-9, 137)
_BY_NODE = messages.Metadata(actor="system:node")


@dataclass
class Shared:
    """What all servers of a node have in common; so many `syncs` run at once when many are started."""

    process: Process
    runtime: Runtime
    volumes: Volumes
    waits: Waits
    guard: Guard
    syncs: asyncio.Semaphore


class Server:
    """`loaded` is what the log says, kept up to date by whoever follows it. What is asked of it goes into `inbox`;
    a kill, a deletion and the end of the node need not wait for what is under way."""

    def __init__(self, shared: Shared, uuid: str, loaded: Loaded) -> None:
        self.uuid, self.loaded = uuid, loaded
        self.life: Life | None = None
        self.console = Console(shared.process.bus, uuid)
        self.inbox: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self.hurry = asyncio.Event()
        self._shared = shared
        self._crashed_at: float | None = None
        self._starting: asyncio.Future[Running] | None = None

    @property
    def state(self) -> servers.Server:
        found: servers.Server = self.loaded.state
        return found

    @property
    def configuration(self) -> Configuration:
        assert self.state.configuration is not None
        return self.state.configuration

    async def run(self) -> None:
        """Serves until cancelled; its process runs on."""
        while True:
            doing = await self.inbox.get()
            try:
                await doing()
            except errors.LeaseLost:
                raise
            except (errors.Error, *CONNECTION_LOST) as error:
                reason = error.message if isinstance(error, errors.Error) else type(error).__name__
                log.warning("a server is not as it should be", server=self.uuid, reason=reason)
                self.console.say(reason)
                if self.life is not None and (self.state.suspended or self.state.deleted):  # it must end
                    asyncio.get_running_loop().call_later(_INSIST_S, self.inbox.put_nowait, doing)

    # What the log says.

    def note(self, recorded: messages.Recorded) -> None:
        """The next event of its stream; one that is known already changes nothing."""
        if recorded.version <= self.loaded.version:
            return
        event = recorded.event
        assert isinstance(event, servers.Event)
        self.loaded = Loaded(servers.evolve(self.state, event), recorded.version, recorded.position)
        match event:
            case servers.PowerAsked():
                self.ask(event.action)
            case servers.Suspended():
                self.inbox.put_nowait(self._suspend)
            case servers.Deleted():
                self.delete()
            case servers.LimitsChanged():
                self.inbox.put_nowait(self._limit)
            case _:
                pass

    def ask(self, action: servers.Action) -> None:
        if action == "kill":
            self.hurry.set()
        self.inbox.put_nowait(self._doing(action))

    def _doing(self, action: servers.Action) -> Callable[[], Awaitable[None]]:
        match action:
            case "start":
                return self._start
            case "stop":
                return self._stop
            case "restart":
                return self._restart
            case "kill":
                return self._kill
            case _:
                assert_never(action)

    def delete(self) -> None:
        self.hurry.set()
        self.inbox.put_nowait(self._delete)

    async def adopt(self, running: Running | None) -> None:
        """At the start of the node: what its process does, if there is one, and what was not carried out yet."""
        before = self.state
        if running is not None:
            await self._live(running, known=before.power)
            await self._limit()
        elif before.power != "offline":  # the machine was switched off, or the process was ended with us
            again = before.power in ("starting", "running") and not before.suspended
            await self._record(servers.Observe("offline", again=again))
        if before.suspended:
            self.inbox.put_nowait(self._suspend)
        elif self.state.asked is not None:
            self.ask(self.state.asked)

    # What is carried out.

    async def _start(self) -> None:
        if self.life is not None:
            self.console.say("The server is already running.")
            return
        self.hurry.clear()
        try:
            running = await self._launch()
        except (errors.Error, *CONNECTION_LOST) as error:
            if isinstance(error, errors.LeaseLost):
                raise
            reason = error.message if isinstance(error, errors.Error) else "Postgres is out of reach"
            log.warning("a server could not be started", server=self.uuid, reason=reason)
            self.console.say(f"The server could not be started: {reason}")
            await self._record(servers.FailStart(reason[:500]))
            return
        await self._live(running, known="starting")

    async def _launch(self) -> Running:
        """Raises what stands against it."""
        process = self._shared.process
        self.console.say("Asking the Panel for the configuration of the server...")
        await self._sync()
        self._may_start()
        clear = await shared.clear(process, self.configuration)
        interface = await runtimes.interface(self._shared.runtime)
        launch, said = await launching.prepared(process.settings, self._shared.volumes, clear, interface)
        for line in said:
            self.console.say(line)
        await self._record(servers.Observe("starting"))
        self._may_start()
        self.console.say("Starting the server...")
        self._starting = asyncio.ensure_future(self._shared.runtime.start(launch))
        try:
            running = await asyncio.shield(self._starting)
        except Exception:
            self._starting = None
            raise
        self._starting = None  # not where we are cancelled: whoever did that ends what has begun
        return running

    def _may_start(self) -> None:
        if self.state.deleted:
            raise errors.NotFound("There is no such server", kind="server")
        if self.state.suspended:
            raise errors.InvalidState("The server is suspended")
        if self.hurry.is_set():
            raise errors.InvalidState("It was called off")

    async def _sync(self) -> None:
        process = self._shared.process
        async with self._shared.syncs:
            until = shared.deadline()
            done = await process.store.execute_all([shared.queue(self.uuid, until)], metadata=_BY_NODE)
            job = done.events[0].stream
            await shared.synced(process, self._shared.waits, job, until, _BY_NODE)
        await self._catch_up()

    async def _catch_up(self) -> None:
        """What the log says now, though the tail may not have told yet."""
        for recorded in await self._shared.process.store.stream(shared.stream(self.uuid), after=self.loaded.version):
            self.note(recorded)

    async def _stop(self) -> None:
        await self._end(self._shared.process.settings.servers.stop_s)

    async def _suspend(self) -> None:
        if self.life is not None:
            self.console.say("The server is suspended.")
        await self._end(min(self._shared.process.settings.servers.stop_s, _SUSPENDED_S))

    async def _restart(self) -> None:
        await self._stop()
        if self.state.asked not in ("stop", "kill"):  # whoever asked for that did so later
            await self._start()

    async def _kill(self) -> None:
        await self._end(0)
        self.hurry.clear()

    async def _limit(self) -> None:
        if self.life is None or self.state.deleted:
            return
        try:
            await self.life.running.limit(server_config.limits(self.configuration.build))
        except errors.Error as error:
            log.warning("limits could not be applied", server=self.uuid, reason=error.message)
            self.console.say(f"The new limits could not be applied: {error.message}")

    async def _delete(self) -> None:
        if not self.state.deleted:
            return
        await self._end(0)
        await self._shared.runtime.remove(self.uuid)
        try:
            await asyncio.to_thread(self._shared.volumes.remove, self.uuid)
        except (OSError, errors.Invalid) as error:
            log.warning("the files of a server could not be deleted", server=self.uuid, reason=str(error))
        self.hurry.clear()
        log.info("a server was deleted", server=self.uuid)

    # Its process.

    async def _live(self, running: Running, known: servers.Power) -> None:
        """From now on its process is looked after. `known` is what it was doing before; where nobody knew of it, it
        has long said that it has started."""
        done = self.configuration.process if known == "starting" and not self.state.deleted else None
        life = self.life = Life(running, self.console, done)
        for pattern in life.complaints:
            self.console.say(f"This is no pattern, and not looked for: {pattern}")
        life.begin(
            ready=lambda: self.inbox.put_nowait(lambda: self._ready(life)),
            over=lambda: self.inbox.put_nowait(lambda: self._over(life)),
        )
        power: servers.Power = "starting" if life.starting else "running"
        if known == "stopping":
            self.inbox.put_nowait(self._stop)
            power = "stopping"
        await self._seen(power, running.identity)

    async def _ready(self, life: Life) -> None:
        if life is self.life and self.state.power == "starting":
            await self._seen("running", life.running.identity)

    async def _over(self, life: Life) -> None:
        """It ended by itself; whoever ended it has settled that already."""
        if life is not self.life:
            return
        code, self.life = await life.ended, None
        await life.leave()
        if self.state.deleted:
            return
        if not self.configuration.crash_detection:
            self.console.say("Aborting automatic restart, crash detection is disabled for this instance.")
            await self._record(servers.Observe("offline", exit_code=code))
            return
        again = self._is_first()
        for line in (
            "---------- Detected server process in a crashed state! ----------",
            f"Exit code: {'unknown' if code is None else code}",
            f"Out of memory: {'perhaps' if code in _KILLED else 'false'}",
        ):
            self.console.say(line)
        if not again:
            within_s = self._shared.process.settings.servers.crash_s
            self.console.say(f"Aborting automatic restart, last crash occurred less than {within_s:g} seconds ago.")
        log.warning("a server crashed", server=self.uuid, exit_code=code, again=again)
        await self._record(servers.NoteCrash(code, again))
        if self.state.asked == "start":
            self.ask("start")

    def _is_first(self) -> bool:
        now, before = time.monotonic(), self._crashed_at
        first = before is None or now - before >= self._shared.process.settings.servers.crash_s
        if first:
            self._crashed_at = now
        return first

    async def _end(self, patience_s: float, *, again: bool = False) -> None:
        """Asks its process to end and waits; after that long, or when somebody is in a hurry, ends it."""
        life = self.life
        if life is None:
            return
        if patience_s > 0 and not self.hurry.is_set():
            await self._note_stopping(life)
            await self._ask_to_end(life, patience_s)
        if not life.ended.done():
            await life.running.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILLED_S):
                    await asyncio.shield(life.ended)
        if not life.ended.done():
            raise errors.SyncFailed("The server cannot be killed")
        self.life = None
        await life.leave()
        if not self.state.deleted:
            await self._note_stopping(life)
            await self._record(servers.Observe("offline", exit_code=life.ended.result(), again=again))

    async def _note_stopping(self, life: Life) -> None:
        """Tried once: whoever has to end does so whether or not it can be written down."""
        if self.state.power == "stopping":
            return
        seen = servers.Observe("stopping", life.running.identity.pid, life.running.identity.started)
        with contextlib.suppress(errors.NotFound, errors.Unavailable, errors.Conflict, *CONNECTION_LOST):
            await self._execute(seen)
            await self._catch_up()

    async def _ask_to_end(self, life: Life, patience_s: float) -> None:
        try:
            await life.running.stop(self.configuration.process.stop)
        except errors.Error as error:
            self.console.say(f"The server could not be asked to end: {error.message}")
            return
        hurried = asyncio.create_task(self.hurry.wait())
        try:
            await asyncio.wait([life.ended, hurried], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()

    async def finish(self, patience_s: float) -> None:
        """At the end of the node, when nothing else is carried out any more: its process ends with it, to be started
        again when there is a node again."""
        if self._starting is not None and self.life is None:
            await asyncio.wait([self._starting], timeout=patience_s)
            if self._starting.done() and not self._starting.cancelled() and self._starting.exception() is None:
                await self._live(self._starting.result(), known="starting")
        wanted = self.state.asked not in ("stop", "kill") and not self.state.suspended
        wanted = wanted and self.state.power in ("starting", "running")
        await self._end(patience_s, again=wanted)

    async def leave(self) -> None:
        """Nothing is heard of it any more; its process runs on."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self.life is not None:
            await self.life.leave()

    # The log.

    async def _seen(self, power: servers.Power, identity: Identity) -> None:
        await self._record(servers.Observe(power, identity.pid, identity.started))

    async def _record(self, command: servers.Command) -> None:
        """Until it is in the log, or there is no such server any more."""
        while True:
            try:
                await self._execute(command)
                await self._catch_up()
                return
            except errors.NotFound:
                await self._catch_up()
                return
            except (errors.Unavailable, errors.Conflict, *CONNECTION_LOST) as error:
                log.warning("the node waits for Postgres", server=self.uuid, reason=type(error).__name__)
                await asyncio.sleep(_AGAIN_S)

    async def _execute(self, command: servers.Command) -> None:
        store = self._shared.process.store
        await store.execute(servers, self.uuid, command, metadata=_BY_NODE, guards=[self._shared.guard])
