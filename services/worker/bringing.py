"""How what a kind brings from outside gets into the log: page by page under the job's lease, or all at its end."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec
import structlog
from msgspec import Raw, Struct
from msgspec.structs import replace

from domain import collections, errors, integrations, items, jobs, kinds, messages
from infra.db import CONNECTION_LOST
from infra.eventstore.store import Decided, Loaded
from infra.leases import Lease
from infra.vault import PREFIX, Vault
from projections import collections as collections_read
from services.main import Process
from services.worker import child, endings
from services.worker.remotes import Remotes

log = structlog.get_logger("worker")

_WAIT_S = 0.5
#: How long a run waits for the read model before it begins with an older one: what it then takes for news is none.
_PATIENCE_S = 30.0
_POLL_S = 0.02
_AT_ONCE = 100
_COUNTED: Mapping[type[messages.Event], str] = {
    items.Created: "created",
    items.Updated: "updated",
    items.Deleted: "deleted",
}

P = ParamSpec("P")
T = TypeVar("T")
End = Callable[[child.Applied], Awaitable[Sequence[Decided]]]
Wishes = dict[str, tuple[str, items.Command]]


class Origin(Struct, frozen=True):
    """Where the items of a job belong, and the digest of the configuration that its mark belongs to."""

    collection: str
    config: str


class Bringing:
    """One run of one job, in the worker's process. It alone counts what was created, updated and deleted."""

    def __init__(
        self, process: Process, tenant: str, job: str, lease: Lease, folder: Path, metadata: messages.Metadata
    ) -> None:
        self._process, self._tenant, self._lease = process, tenant, lease
        self._stream = messages.stream(jobs.STREAM, tenant, job)
        self._id, self._folder, self._metadata = job, folder, metadata
        self._job = Loaded(jobs.initial)
        self._origin, self._kind = Origin("", ""), ""
        self._kept: list[child.Changes] = []
        self._remotes = Remotes(process.db, process.master)

    @property
    def state(self) -> jobs.Job:
        """As of the last append or look."""
        state: jobs.Job = self._job.state
        return state

    def counters(self, said: jobs.Counters) -> jobs.Counters:
        """What the child read, and what the log took."""
        ours = self.state.counters
        return replace(said, created=ours.created, updated=ours.updated, deleted=ours.deleted)

    # The beginning.

    async def task(self) -> child.Task:
        """What the child is told: from where it goes on, and what the collection holds."""
        self._kept.clear()
        await self._look()
        state = self.state
        assert state.queued is not None
        queued = state.queued
        self._kind = queued.ticket.kind
        self._origin = await self._where(queued)
        known = self._folder / "known"
        await self._write_known(known)
        options = msgspec.json.decode(queued.options, type=kinds.Options)
        limits = self._process.settings.collections
        left = None if queued.deadline is None else (queued.deadline - datetime.now(UTC)).total_seconds()
        mark = await self._mark()
        return child.Task(
            call="collect",
            spec=bytes(queued.spec),
            job=self._id,
            work=str(self._folder),
            collect=child.Collect(
                kind=queued.ticket.kind,
                collection=self._origin.collection,
                known=str(known),
                options=bytes(queued.options),
                secrets=await self._secrets(queued),
                mark=None if mark == b"null" else mark,
                cursor=None if state.cursor is None else bytes(state.cursor),
                counters=state.counters,
                progress=state.progress,
                confirm=state.confirm,
                force=options.force,
                max_delete_fraction=limits.max_delete_fraction,
                max_items=limits.max_items,
                seconds=left,
            ),
        )

    async def _look(self) -> None:
        """Brings the job's state up to the log, reading only what is new."""
        version, state, position = self._job.version, self._job.state, self._job.position
        for recorded in await self._process.store.stream(self._stream, after=version):
            state, version, position = _after(jobs, state, recorded), recorded.version, recorded.position
        self._job = Loaded(state, version, position)

    async def _where(self, queued: jobs.Queued) -> Origin:
        """An integration's configuration is the one of the moment in which the job was queued."""
        store, integration = self._process.store, queued.ticket.integration
        if integration is None:
            return Origin(queued.ticket.kind, _digest(queued.spec))
        [first] = await store.recorder.select_events(self._stream, limit=1)
        stream = messages.stream(integrations.STREAM, self._tenant, integration)
        state = (await store.load(integrations, stream, until=first.id)).state
        return Origin(integration, _digest(state.config))

    async def _mark(self) -> bytes:
        stream = messages.stream(collections.STREAM, self._tenant, self._origin.collection)
        state: collections.Collection = (await self._process.store.load(collections, stream)).state
        return bytes(state.mark_for(self._origin.config))

    async def _secrets(self, queued: jobs.Queued) -> dict[str, str]:
        """In clear, by the names that the specification gives to their references. One that was set anew since is
        taken as it is now: a job that failed over a wrong key goes on with the right one."""
        vault = Vault(self._process.db, self._process.master)
        spec: dict[str, Any] = msgspec.json.decode(queued.spec)
        config: dict[str, Any] = {}
        if queued.ticket.integration is not None:
            stream = messages.stream(integrations.STREAM, self._tenant, queued.ticket.integration)
            config = msgspec.json.decode((await self._process.store.load(integrations, stream)).state.config)
        return {
            name: await vault.unseal(self._tenant, config.get(name) or value)
            for name, value in spec.items()
            if isinstance(value, str) and value.startswith(PREFIX)
        }

    async def _write_known(self, path: Path) -> None:
        await asyncio.to_thread(self._folder.mkdir, 0o700, parents=True, exist_ok=True)
        database = self._process.db
        head, until = await self._process.store.head(), time.monotonic() + _PATIENCE_S
        while await collections_read.position(database) < head:
            if time.monotonic() > until:
                log.warning("a run begins with what the read model knows", job=self._id)
                break
            await asyncio.sleep(_POLL_S)
        async with database.connection() as connection:
            await collections_read.dump(connection, self._tenant, self._origin.collection, path)

    # On the way.

    async def hear(self, said: child.Changes | child.Permit | child.Quota) -> child.Applied | child.Wait | None:
        """The answer, where there is one. Raises errors.LeaseLost, errors.InvalidState (the job has ended)."""
        match said:
            case child.Changes():
                if said.keep:
                    self._kept.append(said)
                    return None
                return await self._take(said)
            case child.Permit():
                return child.Wait(await self._permit(said.remote))
            case child.Quota():
                await self._learn(said)
                return None

    async def _take(self, changes: child.Changes) -> child.Applied:
        async def end(applied: child.Applied) -> Sequence[Decided]:
            state = self.state
            cursor = (state.cursor or Raw(b"null")) if changes.cursor is None else Raw(changes.cursor)
            return [self._decided(jobs.Checkpoint(cursor, _sum(changes.counters, state.counters, applied)))]

        return await self._append([changes], end)

    async def complete(self, command: jobs.Complete, seen: child.Seen) -> None:
        """The end: what was kept, the collection's mark and the job's completion become part of the log together.

        Raises as `hear`, and errors.Error for what cannot be stored.
        """
        stream = messages.stream(collections.STREAM, self._tenant, self._origin.collection)
        mark = None if seen.mark is None else Raw(seen.mark)
        observe = collections.Observe(mark, self._origin.config, seen.complete)

        async def end(applied: child.Applied) -> Sequence[Decided]:
            before = await self._process.store.load(collections, stream)
            observed = Decided(collections, self._origin.collection, before, collections.decide(observe, before.state))
            counters = _sum(command.counters, self.state.counters, applied)
            more = await endings.further(
                self._process.store, self._tenant, self._kind, self._origin.collection, command.result
            )
            return [observed, *more, self._decided(replace(command, counters=counters))]

        await self._append(self._kept, end)

    def _decided(self, command: jobs.Command) -> Decided:
        return Decided(jobs, self._id, self._job, jobs.decide(command, self.state))

    async def _append(self, changes: Sequence[child.Changes], end: End) -> child.Applied:
        """As one, decided again as often as any of the streams has moved; trouble of the moment is waited out."""
        size = sum(len(one.puts) + len(one.removes) for one in changes)
        wishes = await _off_the_loop(size, _wishes, changes, self._tenant, self._origin.collection, self._kind)
        while True:
            try:
                await self._look()
                before = await self._process.store.latest([*wishes])
                decided, applied = await _off_the_loop(size, _decide, wishes, before)
                ended = await end(applied)
                await self._process.store.append(
                    [*decided, *ended], tenant=self._tenant, metadata=self._metadata, guards=[self._lease.guard]
                )
            except errors.Conflict:
                continue
            except (*CONNECTION_LOST, errors.Unavailable) as error:
                log.warning("what a job brings waits", job=self._id, reason=type(error).__name__)
                await asyncio.sleep(_WAIT_S)
            else:
                self._pass(ended[-1])
                return applied

    def _pass(self, done: Decided) -> None:
        """The job behind its own events; what others said of it is read with the next look."""
        state = done.before.state
        for event in done.events:
            state = jobs.evolve(state, event)
        self._job = Loaded(state, done.before.version + len(done.events))

    async def _permit(self, remote: str) -> float:
        try:
            return await self._remotes.permit(remote)
        except CONNECTION_LOST:
            return _WAIT_S

    async def _learn(self, said: child.Quota) -> None:
        reset_at = None if said.reset_at is None else datetime.fromtimestamp(said.reset_at, UTC)
        try:
            await self._remotes.learn(
                said.remote,
                said.remaining,
                reset_at,
                said.retry_after,
                tenant=self._tenant,
                integration=self._origin.collection,
            )
        except CONNECTION_LOST as error:
            log.warning("what a remote said of its limits is lost", job=self._id, reason=type(error).__name__)


async def _off_the_loop(size: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Where there is much to do, others are served meanwhile."""
    if size > _AT_ONCE:
        return await asyncio.to_thread(call, *args, **kwargs)
    return call(*args, **kwargs)


def _wishes(changes: Sequence[child.Changes], tenant: str, collection: str, source: str) -> Wishes:
    """By stream: of what was said twice of one item, the last counts."""
    wishes: Wishes = {}
    for one in changes:
        for put in one.puts:
            id = items.stream_id(collection, put.entity, put.item)
            content = Raw(put.content)
            wish = items.Put(collection, put.entity, put.item, content, put.hash, put.revision, source)
            wishes[messages.stream(items.STREAM, tenant, id)] = id, wish
        for remove in one.removes:
            id = items.stream_id(collection, remove.entity, remove.item)
            gone = items.Remove(collection, remove.entity, remove.item, remove.reason, source)
            wishes[messages.stream(items.STREAM, tenant, id)] = id, gone
    return wishes


def _decide(wishes: Wishes, before: Mapping[str, messages.Recorded]) -> tuple[Sequence[Decided], child.Applied]:
    """What changes, and how much of each. An item's last event says all of it."""
    decided: list[Decided] = []
    counts = dict.fromkeys(_COUNTED.values(), 0)
    for stream, (id, command) in wishes.items():
        loaded = Loaded(items.initial)
        if (last := before.get(stream)) is not None:
            loaded = Loaded(_after(items, items.initial, last), last.version, last.position)
        events = items.decide(command, loaded.state)
        if events:
            decided.append(Decided(items, id, loaded, events))
        for event in events:
            counts[_COUNTED[type(event)]] += 1
    return decided, child.Applied(**counts)


def _after(context: Any, state: Any, recorded: messages.Recorded) -> Any:
    if isinstance(recorded.event, messages.Unreadable):
        raise errors.SyncFailed(f"{recorded.stream} holds an event that this version cannot read")
    return context.evolve(state, recorded.event)


def _sum(read: jobs.Counters, before: jobs.Counters, applied: child.Applied) -> jobs.Counters:
    return replace(
        read,
        created=before.created + applied.created,
        updated=before.updated + applied.updated,
        deleted=before.deleted + applied.deleted,
    )


def _digest(config: Raw) -> str:
    return hashlib.sha256(items.canonical(msgspec.json.decode(config))).hexdigest()
