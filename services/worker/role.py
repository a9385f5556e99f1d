"""The worker: takes jobs whose lease nobody keeps, runs each in a child, and says in the log how they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from domain import errors, jobs, messages
from infra import traces
from infra.db import CONNECTION_LOST
from infra.eventstore.recorder import Claimed
from infra.eventstore.store import Done
from infra.leases import Lease
from services.main import Process
from services.worker import engines, policies, run
from services.worker.children import Children

if TYPE_CHECKING:
    from infra.panel import Panel

log = structlog.get_logger("worker")

# The oldest jobs whose line nobody else holds: a job's claim is named `<job>|<line>` (domain.jobs).
_CANDIDATES = (
    "select c.tenant, c.stream_id, c.line, l.owner, l.fence, l.beat"
    " from (select *, substr(key, strpos(key, '|') + 1) as line from undrift.claims"
    " where kind = any ($1) and kind like 'work/%') c"  # as the index of open work says it
    " left join undrift.leases l on l.name = c.stream_id"
    " where c.stream_id <> all ($2) and c.tenant || '/' || c.line <> all ($3)"
    " and not exists (select from undrift.claims r where r.tenant = c.tenant"
    " and r.kind = 'jobs.running' and r.key = c.line and r.stream_id <> c.stream_id)"
    " order by c.pos limit $4"
)
_LOOKED_AT = 200
_HEARD = frozenset({jobs.STREAM})
_TRANSIENT = (*CONNECTION_LOST, TimeoutError)


class Worker:
    """Runs up to `concurrency` jobs of its lanes; everything about them is in the log and in rows."""

    def __init__(
        self, process: Process, lanes: Sequence[jobs.Lane], children: Children, panel: Panel | None = None
    ) -> None:
        self._process, self._children, self._panel = process, children, panel
        self._kinds = [f"work/{lane}" for lane in lanes]
        self._slots = process.settings.jobs.concurrency
        self._shared = policies.Slots(process.leases, process.settings.policies.concurrency)
        self._running: dict[str, tuple[Lease, run.Run, asyncio.Task[None]]] = {}
        self._blocked: set[str] = set()
        self._wake = asyncio.Event()
        self._tidying: asyncio.TaskGroup

    async def serve(self) -> None:
        """Until cancelled; then what runs is ended, to be taken up again from its checkpoint."""
        try:
            async with asyncio.TaskGroup() as group:
                self._tidying = group
                group.create_task(self._process.tail.follow(self._hear, _HEARD))
                group.create_task(self._beat())
                group.create_task(self._look())
        finally:
            await self._leave()

    async def _leave(self) -> None:
        held = list(self._running.values())
        grace_s = self._process.settings.jobs.stop_grace_s
        for _, one, task in held:
            if not await one.leave():
                task.cancel()
        if held:
            _, late = await asyncio.wait([task for _, _, task in held], timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*(task for _, _, task in held), return_exceptions=True)

    def _hear(self, recorded: messages.Recorded) -> None:
        match recorded.event:
            case jobs.Queued() | jobs.Resumed():
                self._wake.set()
            case jobs.StopRequested():
                if (one := self._concerned(recorded)) is not None:
                    one.stop(recorded.event.graceful)
                self._wake.set()
            case jobs.Stopped() | jobs.Completed() | jobs.Failed() | jobs.Held() | jobs.Paused():
                if (one := self._concerned(recorded)) is not None:
                    one.ended_elsewhere()
                self._blocked.clear()
                self._wake.set()
            case jobs.Deleted():
                self._tidying.create_task(engines.discard(engines.folder(self._process.settings, recorded.id)))
            case _:
                pass

    def _concerned(self, recorded: messages.Recorded) -> run.Run | None:
        """Our run of that job, unless the event is older than the run: the tail may be behind what was read."""
        _, one, _ = self._running.get(recorded.stream, (None, None, None))
        return one if one is not None and recorded.position > one.since else None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._process.settings.jobs.beat_s)
            held = {lease.name: one for lease, one, _ in self._running.values()}
            try:
                leases = [lease for lease, _, _ in self._running.values()]
                for name in await self._process.leases.beat([*leases, *self._shared.held]):
                    if name in held:
                        held[name].lost()
            except _TRANSIENT as error:
                log.warning("the beat of the leases failed", reason=type(error).__name__)

    async def _look(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._take_all()
            except _TRANSIENT as error:
                log.warning("the queue is out of reach", reason=type(error).__name__)
                await asyncio.sleep(self._process.settings.jobs.poll_s)
            try:
                async with asyncio.timeout(self._process.settings.jobs.poll_s):
                    await self._wake.wait()
            except TimeoutError:
                self._blocked.clear()  # whatever freed their names may have been heard before they were found blocked

    async def _take_all(self) -> None:
        """Takes the oldest jobs that nobody works on, as long as there is room."""
        if len(self._running) >= self._slots:
            return
        rows = await self._process.db.fetch(
            _CANDIDATES, self._kinds, list(self._running), list(self._blocked), _LOOKED_AT
        )
        lines: set[tuple[str, str]] = set()
        for row in rows:
            if len(self._running) >= self._slots:
                return
            line = (row["tenant"], row["line"])
            if row["line"] and line in lines:
                continue
            lines.add(line)
            living = row["fence"] is not None and self._process.leases.living(
                row["stream_id"], row["owner"], row["fence"], row["beat"]
            )
            if not living:
                await self._take(row["tenant"], row["stream_id"], row["line"])

    async def _take(self, tenant: str, stream: str, line: str) -> None:
        if line.startswith("integration/") and not await self._shared.take(stream):
            return
        lease = await self._process.leases.take(stream)
        if lease is None:
            await self._shared.release(stream)
            return
        job = stream.rpartition("/")[2]
        queued_by = await self._queued_by(stream) if traces.active() else None
        done = await self._start(tenant, job, line, lease, queued_by)
        if done is None or done.state.status != "running":
            await self._process.leases.release(lease)
            await self._shared.release(stream)
            return
        kind = "" if done.state.queued is None else done.state.queued.ticket.kind
        span = traces.span(f"job {kind}", queued_by, {"undrift.job": job, "undrift.kind": kind}, "consumer")
        one = run.Run(self._process, self._children, self._panel, tenant, job, lease, done.state, done.position, span)
        task = asyncio.create_task(self._serve(one, stream, span), name=job)
        self._running[stream] = (lease, one, task)
        task.add_done_callback(lambda _: self._finished(stream))

    async def _queued_by(self, stream: str) -> str | None:
        """The trace of whoever queued the job."""
        try:
            first = (await self._process.store.at([(stream, 1)])).get(stream)
        except _TRANSIENT:
            return None
        return None if first is None else first.metadata.traceparent

    async def _serve(self, one: run.Run, stream: str, span: traces.Span) -> None:
        try:
            with span:
                await one.serve()
        finally:
            with contextlib.suppress(*_TRANSIENT):  # then it dies of itself
                await asyncio.shield(self._shared.release(stream))

    async def _start(self, tenant: str, job: str, line: str, lease: Lease, traceparent: str | None) -> Done | None:
        """How the job was started under our fence, or None when it is not to be run now."""
        start = jobs.Start(fence=lease.fence, worker=lease.owner, at=datetime.now(UTC))
        try:
            return await self._process.store.execute(
                jobs,
                job,
                start,
                tenant=tenant,
                metadata=messages.Metadata(actor="system:worker", traceparent=traceparent),
                guards=[lease.guard],
            )
        except Claimed:  # another job of its integration, or on its target, runs
            self._blocked.add(f"{tenant}/{line}")
        except errors.Error as error:
            log.info("a job is not to be started", job=job, reason=error.message)
        return None

    def _finished(self, stream: str) -> None:
        _, _, task = self._running.pop(stream)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a run ended in an error of ours", job=stream.rpartition("/")[2], error=repr(error))
