"""The children of a worker process: warm, one task each at a time, ended with it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from infra import processes
from services.worker import child

log = structlog.get_logger("worker")

#: The module that a child runs.
PROGRAM = "services.worker.child"


class Died(Exception):
    """The child ended without an answer."""


class Child:
    """One child process and our end of its socket."""

    def __init__(
        self, program: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._program, self._reader, self._writer = program, reader, writer
        self.clean = True

    @classmethod
    async def start(cls) -> Child:
        ours, theirs = socket.socketpair()
        try:
            program = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                PROGRAM,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                preexec_fn=processes.follow_parent(signal.SIGKILL),
                start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
            )
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(program, reader, writer)

    @property
    def alive(self) -> bool:
        return self._program.returncode is None

    async def tell(self, message: child.Told) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(child.frame(message))
            await self._writer.drain()

    async def hear(self) -> child.Said:
        """The next message. Raises Died."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            said: child.Said = child.said.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Died from None
        return said

    async def end(self) -> None:
        """Ends it at once, whatever it does."""
        self._writer.close()
        with contextlib.suppress(ProcessLookupError):
            self._program.kill()
        await self._program.wait()


class Children:
    """At most `size` at a time; idle ones are kept for the next task. One that was cut off is replaced."""

    def __init__(self, size: int) -> None:
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Child] = []
        self._ended: set[asyncio.Task[None]] = set()

    async def warm(self, count: int = 1) -> None:
        """Starts children before there is work."""
        self._idle += [await Child.start() for _ in range(count)]

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Child]:
        """A child for one task; left before its Done or Failed came (an error, a cancellation), it is ended."""
        async with self._slots:
            taken = await self._take()
            taken.clean = False
            try:
                yield taken
            finally:
                if taken.clean and taken.alive:
                    self._idle.append(taken)
                else:
                    await asyncio.shield(self._end(taken))

    async def _take(self) -> Child:
        while self._idle:
            taken = self._idle.pop()
            if taken.alive:
                return taken
        return await Child.start()

    def _end(self, taken: Child) -> asyncio.Task[None]:
        task = asyncio.create_task(taken.end())
        self._ended.add(task)
        task.add_done_callback(self._ended.discard)
        return task

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for one in idle:
            await one.end()
        if self._ended:
            await asyncio.wait(self._ended, timeout=5)
