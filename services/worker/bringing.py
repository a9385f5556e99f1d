"""How what a kind brings from outside gets into the log: page by page under the job's lease, or all at its end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Raw, Struct
from msgspec.structs import replace

from domain import collections, integrations, items, jobs, kinds, messages
from infra.db import CONNECTION_LOST
from infra.eventstore.store import Decided, Loaded
from infra.leases import Lease
from infra.vault import PREFIX, Vault
from projections import collections as collections_read
from services.main import Process
from services.worker import child, endings
from services.worker.appending import Appending, End, after, off_the_loop
from services.worker.remotes import Remotes

log = structlog.get_logger("worker")

_WAIT_S = 0.5
_COUNTED: Mapping[type[messages.Event], str] = {
    items.Created: "created",
    items.Updated: "updated",
    items.Deleted: "deleted",
}

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
        self._process, self._tenant, self._id, self._folder = process, tenant, job, folder
        self._log = Appending(process, tenant, job, lease, metadata)
        self._origin, self._kind = Origin("", ""), ""
        self._kept: list[child.Changes] = []
        self._remotes = Remotes(process.db, process.master)

    @property
    def state(self) -> jobs.Job:
        """As of the last append or look."""
        return self._log.state

    def counters(self, said: jobs.Counters) -> jobs.Counters:
        """What the child read, and what the log took."""
        ours = self.state.counters
        return replace(said, created=ours.created, updated=ours.updated, deleted=ours.deleted)

    # The beginning.

    async def task(self) -> child.Task:
        """What the child is told: from where it goes on, and what the collection holds."""
        self._kept.clear()
        await self._log.look()
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

    async def _where(self, queued: jobs.Queued) -> Origin:
        """An integration's configuration is the one of the moment in which the job was queued."""
        store, integration = self._process.store, queued.ticket.integration
        if integration is None:
            return Origin(queued.ticket.kind, _digest(queued.spec))
        [first] = await store.recorder.select_events(self._log.stream, limit=1)
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
        await self._log.caught_up()
        async with self._process.db.connection() as connection:
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
            return [self._log.decided(jobs.Checkpoint(cursor, _sum(changes.counters, state.counters, applied)))]

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
            return [observed, *more, self._log.decided(replace(command, counters=counters))]

        await self._append(self._kept, end)

    async def _append(self, changes: Sequence[child.Changes], end: End) -> child.Applied:
        size = sum(len(one.puts) + len(one.removes) for one in changes)
        wishes = await off_the_loop(size, _wishes, changes, self._tenant, self._origin.collection, self._kind)

        async def decide() -> tuple[Sequence[Decided], child.Applied]:
            before = await self._process.store.latest([*wishes])
            return await off_the_loop(size, _decide, wishes, before)

        return await self._log.append(decide, end)

    async def _permit(self, remote: str) -> float:
        try:
            return await self._remotes.permit(remote)
        except CONNECTION_LOST:
            return _WAIT_S

    async def _learn(self, said: child.Quota) -> None:
        reset_at = None
        if said.reset_at is not None:
            with contextlib.suppress(ValueError, OverflowError, OSError):  # whatever the remote calls a time
                reset_at = datetime.fromtimestamp(said.reset_at, UTC)
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
            loaded = Loaded(after(items, items.initial, last), last.version, last.position)
        events = items.decide(command, loaded.state)
        if events:
            decided.append(Decided(items, id, loaded, events))
        for event in events:
            counts[_COUNTED[type(event)]] += 1
    return decided, child.Applied(**counts)


def _sum(read: jobs.Counters, before: jobs.Counters, applied: child.Applied) -> jobs.Counters:
    return replace(
        read,
        created=before.created + applied.created,
        updated=before.updated + applied.updated,
        deleted=before.deleted + applied.deleted,
    )


def _digest(config: Raw) -> str:
    return hashlib.sha256(items.canonical(msgspec.json.decode(config))).hexdigest()
