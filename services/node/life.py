"""A process of a server while it runs: its lines go to the console until it has ended, and tell when it has started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from domain.server_config import Process
from infra.runtimes import Running
from services.node.console import Console
from services.node.matching import Matching, TooSlow

log = structlog.get_logger("node")

#: How long what it said last is waited for after its end.
_DRAIN_S = 1.0
_LINES = 1000


class Life:
    """`done` says how it is known to have started, None for one that has; `starting` until then. `ended` is its exit
    code."""

    def __init__(self, running: Running, console: Console, done: Process | None) -> None:
        self.running, self._console = running, console
        self._matching = Matching(() if done is None else done.done, done is not None and done.strip_ansi)
        self.complaints = self._matching.complaints
        self.starting = not self._matching.empty
        self._ready: Callable[[], None] | None = None
        self._looking: asyncio.Queue[bytes] = asyncio.Queue(_LINES)
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, ready: Callable[[], None], over: Callable[[], None]) -> None:
        """`ready` is called once it has started, `over` once it has ended and all it said was passed on."""
        self.ended = asyncio.create_task(self.running.ended())
        self._ready = ready
        self._tasks = [asyncio.create_task(self._pass_on()), asyncio.create_task(self._watch(over))]
        if self.starting:
            self._tasks.append(asyncio.create_task(self._look()))

    async def leave(self) -> None:
        """It is not looked after any more, whether or not it has ended."""
        if self.ended.done():
            await asyncio.wait(self._tasks[:1], timeout=_DRAIN_S)
        for task in (*self._tasks, self.ended):
            task.cancel()
        await asyncio.gather(*self._tasks, self.ended, return_exceptions=True)
        await self._matching.close()

    async def _pass_on(self) -> None:
        async for line in self.running.output():
            self._console.line(line)
            if self.starting and not self._looking.full():
                self._looking.put_nowait(line)

    async def _watch(self, over: Callable[[], None]) -> None:
        await asyncio.wait([self.ended])
        await asyncio.wait(self._tasks[:1], timeout=_DRAIN_S)
        over()

    async def _look(self) -> None:
        while self.starting:
            line = await self._looking.get()
            try:
                found = await self._matching.matches(line)
            except TooSlow:
                self._console.say("The patterns by which a start is known take too long, and are not tried any more.")
                found = self._matching.empty
            if found:
                self.starting = False
                await self._matching.close()
                assert self._ready is not None
                self._ready()
