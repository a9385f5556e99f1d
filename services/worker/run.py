"""One run of one job: its child, its progress, its log lines, its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeGuard

import structlog
from msgspec import Raw
from msgspec.structs import replace

from domain import errors, jobs, messages
from infra import traces
from infra.db import CONNECTION_LOST
from infra.leases import Lease
from services.main import Process
from services.worker import child, engines, pace, policies, progress
from services.worker.children import Child, Children, Died

if TYPE_CHECKING:
    from infra.panel import Panel

log = structlog.get_logger("worker")

ATTEMPTS = 3
_ROW_S = 0.5
_LINES = 200
_STEP = 5


class Run:
    """Ends with a terminal event, or without one when the lease is lost or the process leaves: then another run takes
    the job up from its checkpoint."""

    def __init__(
        self,
        process: Process,
        children: Children,
        panel: Panel | None,
        tenant: str,
        job: str,
        lease: Lease,
        state: jobs.Job,
        since: int,
        span: traces.Span,
    ) -> None:
        """`since` is the position of the event that started it; `span` what its own events continue."""
        assert state.queued is not None
        self.since = since
        self._process, self._children = process, children
        self._tenant, self._job, self._lease = tenant, job, lease
        self._state, self._queued = state, state.queued
        self._metadata = messages.Metadata(actor=f"job:{job}", traceparent=span.traceparent)
        self._span = span
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = state.status == "stopping"
        self._leaving = False
        self._gone = False
        self._now = progress.Progress(state.stage or "initializing", state.progress, state.counters)
        self._said: tuple[str, int] = (state.stage or "", state.progress)
        self._lines: list[tuple[datetime, str, str]] = []
        self._written = 0.0
        self._samples: tuple[pace.Sample, ...] = ()
        folder = engines.folder(process.settings, job)
        self._work = engines.Work(tenant, job, state.queued, folder, state.confirm)
        self._bringing = engines.bringing(process, self._work, lease, self._metadata)
        self._inside = engines.inside(process, self._work, lease, self._metadata, panel)
        self._seen: child.Seen | None = None

    # What the worker tells it.

    def stop(self, graceful: bool) -> None:
        """Gracefully: the child finishes the operation under way; otherwise it is ended now."""
        self._stopping = True
        if not graceful:
            self._cut()
        elif self._child is not None:
            self._tell_stop(self._child)

    def lost(self) -> None:
        """Another worker has the lease: nothing more of ours counts."""
        log.warning("the lease was lost", job=self._job)
        self._gone = True
        self._cut()

    def ended_elsewhere(self) -> None:
        """The job has ended in the log, by a deadline for instance."""
        self._gone = True
        self._cut()

    async def leave(self) -> bool:
        """This process stops: the child is asked to come to an end; whether there is one to wait for."""
        self._leaving = True
        if self._child is None:
            return False
        await self._child.tell(child.Stop())
        return True

    def _cut(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _tell_stop(self, to: Child) -> None:
        task = asyncio.create_task(to.tell(child.Stop()))
        task.add_done_callback(lambda done: done.exception())

    # What it does.

    async def serve(self) -> None:
        self._task = current = asyncio.current_task()
        assert current is not None
        started = time.monotonic()
        try:
            command = await self._outcome(started)
        except asyncio.CancelledError:
            if not self._stopping or self._gone:
                await self._release()
                raise
            current.uncancel()
            command = jobs.EndStop(counters=self._counted(self._now.counters))
        except (errors.LeaseLost, errors.InvalidState) as error:
            log.warning("a run ends: the job is no longer its own", job=self._job, reason=error.message)
            command = None
        except Exception:
            log.exception("a run ended in an error of ours", job=self._job)
            command = self._after_a_death()
        finally:
            self._task = None
            await asyncio.shield(self._close())
        if command is not None:
            await self._end(command)
        await self._release()

    async def _outcome(self, started: float) -> jobs.Command | None:
        """How the job ends; None when this run leaves it to another."""
        policy = await policies.load(self._process, self._tenant, self._state)
        if (wait := await policy.wait(self.since)) is not None:
            await self._add_line("warn", wait.reason)
            return wait
        try:
            said = await self._in_time(policy)
        except Died:
            if self._leaving:
                return None
            return self._after_a_death()
        if isinstance(said, child.Failed):
            return await self._failure(said, policy)
        if said.stopped and self._leaving and not self._stopping:
            return None
        if said.stopped:
            return jobs.EndStop(counters=self._counted(said.counters), usage=self._used(said))
        self._seen = said.seen
        await engines.keep(self._process, self._work)
        duration_ms = round((time.monotonic() - started) * 1000)
        used = self._used(said)
        return jobs.Complete(counters=said.counters, result=Raw(said.result), duration_ms=duration_ms, usage=used)

    def _used(self, said: child.Done | child.Failed) -> jobs.Usage | None:
        """What the child measured, and by how much this run moved the counters on."""
        if said.usage is None:
            return None
        before, after = self._state.counters, said.counters if said.counters.processed else self._now.counters
        moved, items = after.bytes - before.bytes, after.processed - before.processed
        return replace(said.usage, bytes=max(moved, 0), items=max(items, 0))

    def _after_a_death(self) -> jobs.Command | None:
        if self._state.attempts < ATTEMPTS:
            log.warning("the child died; the job will be taken up again", job=self._job)
            return None
        message = f"The work ended its process {ATTEMPTS} times without progress"
        return jobs.Fail(code=errors.SyncFailed.code, message=message, counters=self._counted(self._now.counters))

    async def _in_time(self, policy: policies.Policy) -> child.Done | child.Failed:
        """An attempt that takes too long is cut off; it goes on from its checkpoint."""
        try:
            async with asyncio.timeout(policy.timeout_s) as limit:
                return await self._converse()
        except TimeoutError:
            if not limit.expired():
                raise
            return policy.timed_out()

    async def _failure(self, said: child.Failed, policy: policies.Policy) -> jobs.Command:
        counters = self._counted(said.counters if said.counters.processed else self._now.counters)
        used = self._used(said)
        await self._add_line("error", said.message)
        if said.code == errors.Held.code:
            details = dict(said.details)
            plan = str(details.get("plan", ""))
            return jobs.Hold(reason=said.message, plan=plan, counters=counters, details=details, usage=used)
        known = self._bringing is not None and self._bringing.state.status is not None
        state = self._bringing.state if self._bringing is not None and known else self._state
        if (pause := policy.again(said, state, counters)) is not None:
            await self._add_line("info", f"Attempt {state.tried + 2} follows at {pause.until:%Y-%m-%d %H:%M:%S} UTC")
            return replace(pause, usage=used)
        return jobs.Fail(code=said.code, message=said.message, counters=counters, details=said.details, usage=used)

    async def _converse(self) -> child.Done | child.Failed:
        """What the work came to. A target that somebody else works on is waited for: a worker that was taken for dead
        may have left a child there."""
        await self._begin()
        said = await self._attempt()
        if _is_busy(said):
            await self._add_line("warn", f"{said.message}; waiting for its end")
            await self._write_rows()
        while _is_busy(said):
            if self._stopping or self._leaving:
                return child.Done(b"", self._now.counters, stopped=True)
            await asyncio.sleep(_ROW_S)
            said = await self._attempt()
        return said

    async def _attempt(self) -> child.Done | child.Failed:
        try:
            return await self._run()
        except (errors.LeaseLost, errors.InvalidState):
            raise
        except errors.Error as error:  # what was brought cannot be kept; the child has been ended
            return child.Failed(error.code, error.message, error.details)

    async def _run(self) -> child.Done | child.Failed:
        if self._inside is not None:
            return await self._inside.run(self._note, lambda: self._stopping or self._leaving)
        bringing = self._bringing
        task = engines.task(self._process.settings, self._work) if bringing is None else await bringing.task()
        async with self._children.one() as one:
            self._child = one
            try:
                await one.tell(task)
                if self._stopping or self._leaving:
                    await one.tell(child.Stop())
                while True:
                    said = await one.hear()
                    if isinstance(said, child.Done | child.Failed):
                        one.clean = True
                        return said
                    await self._note(said, one)
            finally:
                self._child = None

    async def _begin(self) -> None:
        queued = self._queued
        await self._go_on()
        if self._state.counters.processed or self._state.progress:
            await self._add_line("info", f"Resuming {queued.ticket.type.replace('_', ' ')} at {self._state.progress} %")
            return
        await self._add_line("info", f"Starting {queued.ticket.type.replace('_', ' ')}")
        if queued.requested_type is not None:
            await self._add_line(
                "warn",
                f"There is no baseline for an {queued.requested_type.replace('_', ' ')} yet, so this is a full sync",
            )

    async def _go_on(self) -> None:
        """Progress never goes back: that of a run before may be further than its last event says."""
        with contextlib.suppress(*CONNECTION_LOST):
            before = (await progress.read(self._process.db, [self._job])).get(self._job)
            if before is not None and before.progress.progress > self._now.progress:
                self._now = replace(before.progress, remaining_s=None)
        self._samples = pace.sampled((), pace.Sample(time.monotonic(), self._now.progress))

    def _advance(self, said: child.Report) -> None:
        at = min(max(said.progress, self._now.progress), 99)
        now = time.monotonic()
        self._samples = pace.sampled(self._samples, pace.Sample(now, at))
        remaining_s = pace.remaining_s(self._samples, now)
        self._now = progress.Progress(said.stage, at, self._counted(said.counters), remaining_s)

    async def _note(self, said: child.Said, one: Child | None = None) -> None:
        match said:
            case child.Report():
                self._advance(said)
                await self._say_progress()
            case child.Line():
                await self._add_line(said.level, said.message)
            case child.Changes() | child.Permit() | child.Quota() if self._bringing is not None:
                answer = await self._bringing.hear(said)
                self._heed(self._bringing.state)
                if answer is not None and one is not None:
                    await one.tell(answer)
        if time.monotonic() - self._written >= _ROW_S:
            await self._write_rows()

    def _counted(self, said: jobs.Counters) -> jobs.Counters:
        return said if self._bringing is None else self._bringing.counters(said)

    def _heed(self, state: jobs.Job) -> None:
        """A stop that the tail has yet to tell of."""
        if state.status == "stopping" and not self._stopping:
            self.stop(state.graceful)

    async def _say_progress(self) -> None:
        """An event for each stage and each 5 %."""
        stage, at = self._said
        if self._now.stage == stage and self._now.progress < at + _STEP:
            return
        self._said = (self._now.stage, self._now.progress)
        await self._execute(jobs.Progress(self._now.stage, self._now.progress, self._now.counters))

    async def _add_line(self, level: str, message: str) -> None:
        self._lines.append((datetime.now(UTC), level, message[:4000]))
        if len(self._lines) >= _LINES:
            await self._write_rows()

    async def _write_rows(self) -> None:
        """What is not written because Postgres is away is written later; the work goes on."""
        self._written = time.monotonic()
        lines, self._lines = self._lines, []
        database = self._process.db
        try:
            if lines:
                await progress.add_lines(database, self._tenant, self._job, self._lease, lines)
                lines = []
            await progress.write(database, self._tenant, self._job, self._lease, self._now)
        except CONNECTION_LOST as error:
            self._lines = [*lines, *self._lines]
            log.warning("lines of a job wait", job=self._job, reason=type(error).__name__)

    async def _close(self) -> None:
        await self._write_rows()
        if self._lines:
            log.warning("the last lines of a run were lost", job=self._job, lines=len(self._lines))

    async def _release(self) -> None:
        try:
            await asyncio.shield(self._process.leases.release(self._lease))
        except CONNECTION_LOST as error:  # then it dies of itself
            log.warning("a lease could not be given back", job=self._job, reason=type(error).__name__)

    async def _end(self, command: jobs.Command) -> None:
        self._span.note("undrift.end", type(command).__name__.lower())
        if isinstance(command, jobs.Fail):
            self._span.fail(command.code)
        try:
            if self._bringing is not None and self._seen is not None and isinstance(command, jobs.Complete):
                await self._bringing.complete(command, self._seen)
            elif self._inside is not None and isinstance(command, jobs.Complete):
                await self._inside.complete(command)
            else:
                await self._execute(command)
        except (errors.InvalidState, errors.LeaseLost) as error:  # it ended in the log meanwhile, or is another's
            log.info("an end that does not count", job=self._job, reason=error.message)
            return
        except errors.Error as error:  # what was brought cannot be kept
            if not isinstance(command, jobs.Complete):
                raise
            counters = self._counted(self._now.counters)
            await self._end(jobs.Fail(code=error.code, message=error.message, counters=counters, details=error.details))
            return
        if isinstance(command, jobs.Complete | jobs.EndStop):
            await engines.discard(self._work.folder)
        if isinstance(command, jobs.Complete):
            await self._forget()

    async def _forget(self) -> None:
        try:
            await progress.forget(self._process.db, self._job)
        except CONNECTION_LOST as error:  # nobody looks at the row of a job that has ended
            log.warning("a row of progress stays", job=self._job, reason=type(error).__name__)

    async def _execute(self, command: jobs.Command) -> None:
        """Under our fence only; trouble of the moment is waited out as long as the lease is ours."""
        while True:
            try:
                done = await self._process.store.execute(
                    jobs, self._job, command, tenant=self._tenant, metadata=self._metadata, guards=[self._lease.guard]
                )
            except (*CONNECTION_LOST, errors.Unavailable, errors.Conflict) as error:
                log.warning("a job's event waits", job=self._job, reason=type(error).__name__)
                await asyncio.sleep(_ROW_S)
            else:
                break
        self._heed(done.state)


def _is_busy(said: child.Done | child.Failed) -> TypeGuard[child.Failed]:
    return isinstance(said, child.Failed) and said.code == errors.Conflict.code
