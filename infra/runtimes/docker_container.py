"""One container of a server: its console, its input, its limits, its end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path

import aiohttp
import structlog
from msgspec import Struct, field

from domain import errors
from domain.server_config import Limits, Stop
from infra.runtimes import Identity, Usage, docker_spec
from infra.runtimes.docker_api import Engine, Refused, container
from infra.runtimes.docker_console import LINE, Following, Place
from infra.runtimes.docker_kept import Kept, Note

log = structlog.get_logger("docker")

_AGAIN_S = 0.5
_NOTE_S = 1.0
_PROMPT_S = 1.0
_FRACTION = re.compile(r"\.(\d+)")


class State(Struct, rename="pascal"):
    status: str = ""
    running: bool = False
    pid: int = 0
    started_at: str = ""
    exit_code: int | None = None

    @property
    def runs(self) -> bool:
        """podman says of one that was told to stop that it is not running."""
        return self.running or self.status == "stopping"


class Inspected(Struct):
    """What the engine knows of a container."""

    id: str = field(name="Id")
    state: State = field(name="State", default_factory=State)


class _Waited(Struct):
    code: int | None = field(name="StatusCode", default=None)


class _Answer(Struct):
    warnings: list[str] | None = field(name="Warnings", default=None)


class _CpuUsage(Struct):
    total: int = field(name="total_usage", default=0)


class _Cpu(Struct):
    usage: _CpuUsage = field(name="cpu_usage", default_factory=_CpuUsage)
    system: int = field(name="system_cpu_usage", default=0)
    cores: int = field(name="online_cpus", default=0)


class _Memory(Struct):
    usage: int = 0
    stats: dict[str, int] = field(default_factory=dict)


class _Traffic(Struct):
    rx_bytes: int = 0
    tx_bytes: int = 0


class _Stats(Struct):
    cpu: _Cpu = field(name="cpu_stats", default_factory=_Cpu)
    memory: _Memory = field(name="memory_stats", default_factory=_Memory)
    networks: dict[str, _Traffic] | None = None


class Container:
    """Raises Refused where the engine does not do what is asked, errors.Unavailable where it does not answer. A
    container that is gone takes no command and no limit, which is no error."""

    def __init__(
        self, engine: Engine, kept: Kept, uuid: str, found: Inspected, *, pids: int, stop_s: float, place: Place
    ) -> None:
        self._engine, self._kept, self._uuid, self.id = engine, kept, uuid, found.id
        self._pids, self._stop_s = pids, stop_s
        self._place = place
        self._noted = Note(found.id, place)
        self._noted_at = 0.0
        self._first: list[bytes] = []
        self._started_s = _seconds(found.state.started_at)
        self._identity = Identity(found.state.pid, _ticks(found.state.pid))
        self._over: _Waited | None = None
        self._input: asyncio.StreamWriter | None = None
        self._input_reader: asyncio.StreamReader | None = None
        self._saying = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()
        self._cpu = _Cpu()

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def over(self) -> bool:
        """Whether its end was given."""
        return self._over is not None

    def before(self, lines: Sequence[bytes]) -> None:
        """Lines that come before its own."""
        self._first += lines

    async def output(self) -> AsyncGenerator[bytes, None]:
        """The engine keeps the lines: who takes them slowly holds nobody up, and loses what has left the log."""
        while self._first:
            yield self._first.pop(0)
        while True:
            over = not await self._runs()
            try:
                async with contextlib.aclosing(self._follow(follow=not over)) as lines:
                    async for line in lines:
                        yield line
            except errors.Unavailable:
                over = False
            except Refused as refused:
                log.info("a container's log cannot be read", server=self._uuid, error=str(refused))
            if over:
                await self._note()
                return
            if await self._runs():
                await asyncio.sleep(_AGAIN_S)

    async def recent(self, lines: int) -> Sequence[bytes]:
        following = Following(Place())
        found: list[bytes] = []
        try:
            async with self._log({"tail": str(lines), "timestamps": "1"}) as answer:
                async for data in answer.iter_chunked(2 * LINE):
                    found += following.feed(data)
        except Refused as refused:
            if refused.status != 404:
                raise
        found += following.rest()
        return found[-lines:]

    async def say(self, line: str) -> None:
        data = line.encode() + b"\n"
        async with self._saying:
            for last in (False, True):
                writer = None if self.over else await self._attached()
                if writer is None:
                    return
                try:
                    writer.write(data)
                    await writer.drain()
                    return
                except OSError:
                    self._detach()
                    if last and await self._runs():
                        raise errors.Unavailable("The container's input was closed") from None

    async def limit(self, limits: Limits) -> None:
        body = docker_spec.updated(limits, self._pids, await self._engine.machine())
        async with self._gone_is_fine():
            answer = await self._engine.ask("POST", self._path("/update"), None, body, kind=_Answer)
            warn(self._uuid, answer.warnings)

    async def stop(self, how: Stop) -> None:
        match how.type:
            case "command":
                await self.say(how.value or "")
            case "signal":
                await self._kill(signal_of(how.value))
            case "stop":
                await self._stop()

    async def kill(self) -> None:
        await self._kill("SIGKILL")

    async def ended(self) -> int | None:
        while self._over is None:
            try:
                self._over = await self._end()
            except (errors.Unavailable, errors.SyncFailed):
                await asyncio.sleep(_AGAIN_S)
        await self._note(ended=True)
        self._detach()
        return _code(self._over.code)

    async def usage(self) -> Usage:
        found: _Stats | None = None
        async with self._gone_is_fine():
            query = {"stream": "false", "one-shot": "true"}
            found = await self._engine.ask("GET", self._path("/stats"), query, kind=_Stats)
        if found is None or not found.memory.usage:
            return Usage()
        networks = (found.networks or {}).values()
        before, self._cpu = self._cpu, found.cpu
        return Usage(
            memory_bytes=_memory(found.memory),
            cpu_absolute=_cpu(before, found.cpu),
            rx_bytes=sum(one.rx_bytes for one in networks),
            tx_bytes=sum(one.tx_bytes for one in networks),
            uptime_ms=max(int((time.time() - self._started_s) * 1000), 0),
        )

    async def close(self) -> None:
        """Lets go of it; it runs on."""
        self._detach()
        for task in self._stopping:
            task.cancel()
        await self._note()

    # What these are made of.

    def _path(self, what: str) -> str:
        return container(self.id, what)

    async def _end(self) -> _Waited | None:
        """None when it runs nevertheless: podman, just started, says that all have ended, and so it is looked."""
        wait = {"condition": "not-running"}
        try:
            waited = await self._engine.ask("POST", self._path("/wait"), wait, kind=_Waited, within_s=None)
            found = await self._engine.ask("GET", self._path("/json"), kind=Inspected)
        except Refused as refused:
            if refused.status != 404:
                raise
            return _Waited()
        if found.state.runs:
            await asyncio.sleep(_AGAIN_S)
            return None
        return waited if found.state.exit_code is None else _Waited(found.state.exit_code)

    async def _runs(self) -> bool:
        """As far as one knows: an engine that is away has ended nothing."""
        try:
            found = await self._engine.ask("GET", self._path("/json"), kind=Inspected)
        except errors.Unavailable:
            return True
        except Refused as refused:
            return refused.status != 404
        return found.state.runs

    @contextlib.asynccontextmanager
    async def _gone_is_fine(self) -> AsyncGenerator[None, None]:
        """What is gone, or does not run, needs nothing done to it. Engines say so in several ways, and 404 as well of
        what they cannot do, so it is looked."""
        try:
            yield
        except errors.SyncFailed:
            if await self._runs():
                raise

    async def _follow(self, follow: bool) -> AsyncGenerator[bytes, None]:
        following = Following(self._place)
        query = {"since": self._place.since, "timestamps": "1", "follow": "1" if follow else "0"}
        async with self._log(query) as answer:
            async for data in answer.iter_chunked(2 * LINE):
                for line in following.feed(data):
                    self._place = following.place
                    yield line
                await self._note_soon()
        if not follow:
            for line in following.rest():
                self._place = following.place
                yield line

    def _log(self, query: dict[str, str]) -> AbstractAsyncContextManager[aiohttp.StreamReader]:
        return self._engine.stream("GET", self._path("/logs"), {"stdout": "1", "stderr": "1", **query})

    async def _note_soon(self) -> None:
        if time.monotonic() - self._noted_at >= _NOTE_S:
            await self._note()

    async def _note(self, ended: bool = False) -> None:
        note = Note(self.id, self._place, ended or self._noted.ended)
        if note != self._noted:
            self._noted, self._noted_at = note, time.monotonic()
            await self._kept.write(self._uuid, note)

    async def _attached(self) -> asyncio.StreamWriter | None:
        """Its input; None where the container is gone."""
        if self._input is not None and (self._input_reader is None or self._input_reader.at_eof()):
            self._detach()  # the engine was away
        if self._input is None:
            async with self._gone_is_fine():
                query = {"stream": "1", "stdin": "1"}
                self._input_reader, self._input = await self._engine.take(self._path("/attach"), query)
        return self._input

    def _detach(self) -> None:
        if self._input is not None:
            self._input.close()
        self._input = self._input_reader = None

    async def _kill(self, name: str) -> None:
        async with self._gone_is_fine():
            await self._engine.tell("POST", self._path("/kill"), {"signal": name})

    async def _stop(self) -> None:
        """The engine answers when it has ended; what it says at once is heard here."""
        task = asyncio.create_task(self._stopped())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        done, _ = await asyncio.wait({task}, timeout=_PROMPT_S)
        if done:
            task.result()
        else:
            task.add_done_callback(self._heard)

    async def _stopped(self) -> None:
        seconds = max(round(self._stop_s), 1)
        async with self._gone_is_fine():
            await self._engine.tell("POST", self._path("/stop"), {"t": str(seconds)}, within_s=seconds + 30.0)

    def _heard(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a container was not stopped", server=self._uuid, error=str(error))


def warn(uuid: str, warnings: Sequence[str] | None) -> None:
    """What the engine does only in part."""
    for warning in warnings or ():
        log.info("the Docker Engine says", server=uuid, warning=warning)


def signal_of(value: str | None) -> str:
    """`SIGINT`, `INT` and the Panel's `^C` alike; what is no signal ends it for sure, as the real Wings does."""
    name = (value or "").upper().removeprefix("^").removeprefix("SIG")
    name = {"C": "INT"}.get(name, name)
    return f"SIG{name}" if f"SIG{name}" in signal.Signals.__members__ else "SIGKILL"


def _code(code: int | None) -> int | None:
    """The engine says 128 and its number for a signal."""
    if code is not None and 128 < code <= 128 + signal.SIGRTMAX:
        return 128 - code
    return code


def _memory(memory: _Memory) -> int:
    """Without pages of files that nobody would miss, as `docker stats` shows it."""
    for name in ("total_inactive_file", "inactive_file"):
        if 0 < memory.stats.get(name, 0) < memory.usage:
            return memory.usage - memory.stats[name]
    return memory.usage


def _cpu(before: _Cpu, now: _Cpu) -> float:
    """In percent of one core between two looks; 0 at the first."""
    used, passed = now.usage.total - before.usage.total, now.system - before.system
    if not before.system or passed <= 0 or used <= 0:
        return 0.0
    return round(used / passed * max(now.cores, 1) * 100.0, 3)


def _seconds(text: str) -> float:
    """Since 1970, of the engine's RFC 3339 with nanoseconds; now where it says nothing."""
    try:
        return datetime.fromisoformat(_FRACTION.sub(lambda m: "." + m[1][:6].ljust(6, "0"), text)).timestamp()
    except ValueError:
        return time.time()


def _ticks(pid: int) -> int:
    """When a process of this machine began, in clock ticks since boot; 0 where that cannot be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat.rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
