"""How a job's own events and what it changes elsewhere become part of the log together, under its lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import structlog

from domain import errors, jobs, messages
from infra.db import CONNECTION_LOST
from infra.eventstore.store import Decided, Loaded
from infra.leases import Lease
from projections import collections as collections_read
from services.main import Process
from services.worker import child

log = structlog.get_logger("worker")

P = ParamSpec("P")
T = TypeVar("T")
Decide = Callable[[], Awaitable[tuple[Sequence[Decided], child.Applied]]]
End = Callable[[child.Applied], Awaitable[Sequence[Decided]]]

_WAIT_S = 0.5
_POLL_S = 0.02
_AT_ONCE = 100
#: How long a run waits for the read model before it begins with an older one.
_PATIENCE_S = 30.0


class Appending:
    """One run of one job."""

    def __init__(self, process: Process, tenant: str, job: str, lease: Lease, metadata: messages.Metadata) -> None:
        self.process, self.tenant, self.job = process, tenant, job
        self.stream = messages.stream(jobs.STREAM, tenant, job)
        self._lease, self._metadata = lease, metadata
        self._loaded = Loaded(jobs.initial)

    @property
    def state(self) -> jobs.Job:
        """The job as of the last append or look."""
        state: jobs.Job = self._loaded.state
        return state

    async def look(self) -> None:
        """Brings the job's state up to the log, reading only what is new."""
        version, state, position = self._loaded.version, self._loaded.state, self._loaded.position
        for recorded in await self.process.store.stream(self.stream, after=version):
            state, version, position = after(jobs, state, recorded), recorded.version, recorded.position
        self._loaded = Loaded(state, version, position)

    def decided(self, command: jobs.Command) -> Decided:
        """What follows for the job itself. Raises errors.InvalidState when it is no longer being worked on."""
        return Decided(jobs, self.job, self._loaded, jobs.decide(command, self.state))

    async def append(self, decide: Decide, end: End) -> child.Applied:
        """What `decide` and `end` say, as one; the last of `end` is the job's own. They are asked again as often as
        any of the streams has moved; trouble of the moment is waited out.

        Raises errors.LeaseLost, errors.InvalidState, and what else they raise.
        """
        while True:
            try:
                await self.look()
                changes, applied = await decide()
                ended = await end(applied)
                await self.process.store.append(
                    [*changes, *ended], tenant=self.tenant, metadata=self._metadata, guards=[self._lease.guard]
                )
            except errors.Conflict:
                continue
            except (*CONNECTION_LOST, errors.Unavailable) as error:
                log.warning("what a job brings waits", job=self.job, reason=type(error).__name__)
                await asyncio.sleep(_WAIT_S)
            else:
                self._pass(ended[-1])
                return applied

    def _pass(self, done: Decided) -> None:
        """The job behind its own events; what others said of it is read with the next look."""
        state = done.before.state
        for event in done.events:
            state = jobs.evolve(state, event)
        self._loaded = Loaded(state, done.before.version + len(done.events))

    async def caught_up(self) -> None:
        """Waits, but not for ever, until the read model of collections shows everything that is in the log."""
        head, until = await self.process.store.head(), time.monotonic() + _PATIENCE_S
        while await collections_read.position(self.process.db) < head:
            if time.monotonic() > until:
                log.warning("a run begins with what the read model knows", job=self.job)
                return
            await asyncio.sleep(_POLL_S)


def after(context: Any, state: Any, recorded: messages.Recorded) -> Any:
    """The state behind an event. Raises errors.SyncFailed for one that this program cannot read."""
    if isinstance(recorded.event, messages.Unreadable):
        raise errors.SyncFailed(f"{recorded.stream} holds an event that this version cannot read")
    return context.evolve(state, recorded.event)


async def off_the_loop(size: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Where there is much to do, others are served meanwhile."""
    if size > _AT_ONCE:
        return await asyncio.to_thread(call, *args, **kwargs)
    return call(*args, **kwargs)
