"""A server that runs as a process, seen from here: all that is asked of it and of the shim beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from domain import errors
from domain.server_config import Limits, Stop
from infra import log
from infra.runtimes import Identity, Usage, cgroups, rlimits, shim_console, shim_machine

_LOOK_S = 0.5
_ANSWER_S = 10.0
_LONGEST_SAID = 16 * 1024
_TICKS = os.sysconf("SC_CLK_TCK")


class State(Struct, frozen=True):
    """What a shim wrote down when its server began."""

    pid: int
    started: int
    boot: str
    shim: int
    shim_started: int
    places: list[cgroups.Place]

    def shim_lives(self) -> bool:
        return self.boot == shim_machine.boot() and shim_machine.started(self.shim) == self.shim_started

    def lives(self) -> bool:
        return self.boot == shim_machine.boot() and shim_machine.started(self.pid) == self.started


class End(Struct, frozen=True):
    """How it ended; `took`: the last of its lines that was given to somebody; `told`: somebody knows."""

    pid: int
    started: int
    code: int | None
    took: int = 0
    told: bool = False


class Settings(Struct, frozen=True):
    """What of the node's settings matters to a server that runs."""

    pids: int
    user: int


def read_state(folder: Path) -> State | None:
    try:
        return msgspec.json.decode((folder / "state").read_bytes(), type=State)
    except (OSError, msgspec.DecodeError):
        return None


def read_end(folder: Path, state: State) -> End | None:
    """None while it runs, and when nobody wrote it down."""
    try:
        end = msgspec.json.decode((folder / "end").read_bytes(), type=End)
    except (OSError, msgspec.DecodeError):
        return None
    return end if (end.pid, end.started) == (state.pid, state.started) else None


def write_end(folder: Path, end: End) -> None:
    with contextlib.suppress(OSError):  # it was removed meanwhile, or the disk is full: it is told once more, then
        shim_machine.write(str(folder / "end"), msgspec.to_builtins(end))


def settle(folder: Path, state: State) -> End:
    """After its shim has ended: whatever it left is killed, and how it ended is known, or that nobody knows. Never are
    there two of one server. Blocks; raises errors.Unavailable when something of it cannot be ended."""
    end = read_end(folder, state)
    left: Callable[[], set[int]] = set
    if state.boot == shim_machine.boot() and end is None:
        left = lambda: shim_machine.session(state.pid, state.started)  # noqa: E731
    group = cgroups.Group(state.places)
    if not shim_machine.kill_all(group.folders, left):
        raise errors.Unavailable("Processes of it that were killed are still there")
    group.remove()
    if end is None:
        end = End(state.pid, state.started, None)
        write_end(folder, end)
    return end


def kept_lines(folder: Path, state: State) -> list[tuple[int, bytes]]:
    """The last lines of it that were kept, with their numbers. Blocks."""
    found: list[tuple[int, bytes]] = []
    for name in ("console.1", "console"):
        with contextlib.suppress(OSError, ValueError):
            header, *lines = (folder / name).read_bytes().split(b"\n")
            first, pid, started = map(int, header.split())
            if (pid, started) == (state.pid, state.started):
                found += enumerate(lines[:-1], first)
    return found


class Attached:
    """The port `Running`. Made in an event loop, in which it watches the shim until `close`."""

    def __init__(self, folder: Path, descriptor: int, state: State, settings: Settings) -> None:
        """`descriptor` of the folder is its own from now on: the path may be too long for a socket's address."""
        self._folder = folder
        self._descriptor = descriptor
        self._state = state
        self._settings = settings
        self._group = cgroups.Group(state.places)
        self._last: tuple[float, int] | None = None
        self._log = log.get()
        self._closed = asyncio.Event()
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._watch = asyncio.create_task(self._until_end())

    @property
    def identity(self) -> Identity:
        return Identity(self._state.pid, self._state.started)

    @property
    def is_over(self) -> bool:
        return self._end.done()

    async def lives(self) -> bool:
        return not self.is_over and await asyncio.to_thread(self._state.lives)

    async def close(self) -> None:
        """It runs on; nobody looks."""
        self._closed.set()
        self._watch.cancel()
        await asyncio.wait([self._watch])
        if not self._end.done():
            self._end.cancel()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def output(self) -> AsyncIterator[bytes]:
        last = 0
        connection = await self._connect()
        if connection is not None:
            reader, writer = connection
            try:
                _tell(writer, b"attach")
                async for lines in _numbered(reader):
                    for last, line in lines:  # noqa: B007 - of those that were taken
                        yield line
                    _tell(writer, b"took %d" % last)
            finally:
                _tell(writer, b"took %d" % last)
                await _leave(writer)
        if not self._closed.is_set():
            for line in await self._rest(last):
                yield line

    async def _rest(self, last: int) -> list[bytes]:
        """What nobody was given when it ended."""
        end = await asyncio.shield(self._end)
        lines = await asyncio.to_thread(kept_lines, self._folder, self._state)
        after = max(last, end.took)
        return [line for number, line in lines if number > after]

    async def recent(self, lines: int) -> Sequence[bytes]:
        kept = await asyncio.to_thread(kept_lines, self._folder, self._state)
        return [line for _, line in kept[-lines:]] if lines > 0 else []

    async def say(self, line: str) -> None:
        """Raises errors.SyncFailed for a line that is too long, or when it does not take what was said before."""
        text = line.rstrip("\r\n").replace("\r", " ").replace("\n", " ").encode("utf-8", "replace")
        if len(text) > _LONGEST_SAID:
            raise errors.SyncFailed(f"A line of {len(text)} bytes is too long")
        if await self._ask(b"say " + text) == b"full\n":
            raise errors.SyncFailed("It does not read its input")

    async def _ask(self, request: bytes) -> bytes:
        """The answer; empty when it has ended."""
        connection = await self._connect()
        if connection is None:
            return b""
        reader, writer = connection
        try:
            _tell(writer, request)
            return await asyncio.wait_for(reader.readline(), _ANSWER_S)
        except TimeoutError:
            raise errors.Unavailable("What holds its input does not answer") from None
        except OSError:
            return b""
        finally:
            await _leave(writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        if self.is_over or self._closed.is_set():
            return None
        try:
            return await asyncio.open_unix_connection(f"/proc/self/fd/{self._descriptor}/socket")
        except OSError:
            return None

    async def limit(self, limits: Limits) -> None:
        await asyncio.to_thread(self._limit, limits)

    def _limit(self, limits: Limits) -> None:
        if self._state.lives():
            missing = without(self._group) - {"pids"}  # those are the node's, and of the start
            confines = rlimits.confines(limits, self._settings.pids, missing, self._settings.user)
            rlimits.apply(self._members(), confines)
            self._group.apply(limits, self._settings.pids)

    def _members(self) -> set[int]:
        return shim_machine.members(self._group.folders[:1]) or shim_machine.below(self._state.shim)

    async def stop(self, how: Stop) -> None:
        if how.type == "command":
            await self.say(how.value or "")
        else:
            signum = _signal(how.value) if how.type == "signal" else signal.SIGTERM
            await self._ask(b"signal %d" % signum)

    async def kill(self) -> None:
        await asyncio.to_thread(self._kill)

    def _kill(self) -> None:
        groups = self._group.folders
        others: Callable[[], set[int]] = set
        if not groups and self._state.shim_lives():
            others = lambda: shim_machine.below(self._state.shim)  # noqa: E731
        if not shim_machine.kill_all(groups, others):
            raise errors.Unavailable("Processes of it that were killed are still there")

    async def ended(self) -> int | None:
        end = await asyncio.shield(self._end)
        if not end.told:
            await asyncio.to_thread(write_end, self._folder, msgspec.structs.replace(end, told=True))
        return end.code

    async def usage(self) -> Usage:
        return Usage() if self.is_over else await asyncio.to_thread(self._usage)

    def _usage(self) -> Usage:
        """What it sends and receives goes over the machine's own network, where nobody counts it by process."""
        used = self._group.used()
        memory, cpu_ns = used.memory, used.cpu_ns
        if memory is None or cpu_ns is None:
            counted = rlimits.used(self._members())
            memory = counted[0] if memory is None else memory
            cpu_ns = counted[1] if cpu_ns is None else cpu_ns
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        began = self._state.started / _TICKS
        since, before = self._last or (began, 0)
        self._last = now, cpu_ns
        share = max(cpu_ns - before, 0) / 1e9 / max(now - since, 1 / _TICKS) * 100
        return Usage(memory, round(share, 3), uptime_ms=max(int((now - began) * 1000), 0))

    async def _until_end(self) -> None:
        """The shim writes down how it ended, then ends itself."""
        await self._shim_gone()
        while True:
            try:
                end = await asyncio.to_thread(settle, self._folder, self._state)
            except (errors.Unavailable, OSError) as error:
                self._log.error("a server cannot be ended", pid=self._state.pid, reason=str(error))
                await asyncio.sleep(_LOOK_S)
            else:
                break
        if not self._end.done():
            self._end.set_result(end)

    async def _shim_gone(self) -> None:
        try:
            descriptor = os.pidfd_open(self._state.shim)
        except ProcessLookupError:
            return
        except OSError:  # a kernel or a sandbox without them
            descriptor = -1
        try:
            if descriptor < 0:
                await _until(self._not_there)
            elif await asyncio.to_thread(self._state.shim_lives):
                await _readable(descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    async def _not_there(self) -> bool:
        return not await asyncio.to_thread(self._state.shim_lives)


def without(group: cgroups.Group) -> set[str]:
    """What no control group limits."""
    return set(cgroups.CONTROLLERS) - set(group.controllers)


async def _until(true: Callable[[], Awaitable[bool]]) -> None:
    while not await true():
        await asyncio.sleep(_LOOK_S)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


async def _numbered(reader: asyncio.StreamReader) -> AsyncIterator[list[tuple[int, bytes]]]:
    """Lines with their numbers, as many as came at once."""
    rest = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(shim_console.LONGEST * 4):
            *lines, rest = (rest + data).split(b"\n")
            parts = [line.partition(b" ") for line in lines]
            yield [(int(number), text) for number, _, text in parts]


def _tell(writer: asyncio.StreamWriter, line: bytes) -> None:
    """If it still listens: it may have ended since, and some loops raise for that."""
    if not writer.is_closing():
        with contextlib.suppress(RuntimeError, OSError):
            writer.write(line + b"\n")


async def _leave(writer: asyncio.StreamWriter) -> None:
    """With whatever was still to be said, if anybody hears it."""
    writer.close()
    with contextlib.suppress(OSError, RuntimeError, TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), _LOOK_S)


def _signal(name: str | None) -> int:
    """`SIGINT`, `INT`, `^C` and `C` are the same; a name that there is not is SIGTERM."""
    short = (name or "").upper().removeprefix("^").removeprefix("SIG")
    short = {"C": "INT", "\\": "QUIT"}.get(short, short)
    return getattr(signal.Signals, f"SIG{short}", signal.SIGTERM)
