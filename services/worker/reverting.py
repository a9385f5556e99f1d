"""Undoing what a job did to a collection: each item gets the content back that it had before, unless it moved since."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from msgspec import Raw, Struct, field

from domain import items, jobs, messages
from domain.plans import reverts
from infra.eventstore.store import Decided, Loaded
from projections import collections as read
from services.worker import child
from services.worker.appending import Appending, after

_PAGE = 500
SOURCE = "revert"
MOVED = "it has changed since"

Say = Callable[[child.Said], Awaitable[None]]


class Cursor(Struct, frozen=True):
    """Behind which item the next run goes on, and what it had found up to there."""

    entity: str = ""
    item: str = ""
    seen: int = 0
    conflicts: reverts.Conflicts = field(default_factory=reverts.Conflicts)


class Reverting:
    """One run, in the worker's own process: all it needs is in the log."""

    def __init__(self, log: Appending, spec: reverts.Spec) -> None:
        self._log, self._spec = log, spec
        self._database, self._store = log.process.db, log.process.store
        self._cursor = Cursor()

    async def run(self, say: Say, stopped: Callable[[], bool]) -> child.Done:
        """Raises errors.LeaseLost, errors.InvalidState when the job is no longer its own."""
        await self._log.look()
        state = self._log.state
        if state.cursor is not None:  # of a run before
            self._cursor = msgspec.json.decode(state.cursor, type=Cursor)
        await self._log.caught_up()
        total = await read.outcome_count(self._database, self._log.tenant, self._spec.job)
        while page := await self._page():
            if stopped():
                return self._done(stopped=True)
            await self._take(page)
            await say(child.Report("reverting", 100 * self._cursor.seen // total, self._log.state.counters))
        return self._done()

    async def complete(self, command: jobs.Complete) -> None:
        async def nothing() -> tuple[Sequence[Decided], child.Applied]:
            return [], child.Applied(0, 0, 0)

        async def end(_: child.Applied) -> Sequence[Decided]:
            return [self._log.decided(command)]

        await self._log.append(nothing, end)

    def _done(self, *, stopped: bool = False) -> child.Done:
        counters = self._log.state.counters
        result = self._cursor.conflicts.result(counters.created + counters.updated + counters.deleted)
        return child.Done(msgspec.json.encode(result), counters, stopped)

    async def _page(self) -> list[read.Outcome]:
        assert self._spec.collection is not None
        after = (self._spec.collection, self._cursor.entity, self._cursor.item)
        return await read.outcomes(self._database, self._log.tenant, self._spec.job, _PAGE, after)

    async def _take(self, page: Sequence[read.Outcome]) -> None:
        found: tuple[list[Decided], reverts.Conflicts]
        there = {self._stream(one): one for one in page}
        last = page[-1]

        async def decide() -> tuple[Sequence[Decided], child.Applied]:
            nonlocal found
            now = await self._store.latest([*there])
            before = await self._store.at([(stream, one.before) for stream, one in there.items() if one.before])
            found = await asyncio.to_thread(self._decide, there, now, before)
            return found[0], _applied(found[0])

        async def end(applied: child.Applied) -> Sequence[Decided]:
            counters = self._log.state.counters
            counters = jobs.Counters(
                processed=counters.processed + len(page),
                created=counters.created + applied.created,
                updated=counters.updated + applied.updated,
                deleted=counters.deleted + applied.deleted,
            )
            cursor = Cursor(last.entity, last.item, self._cursor.seen + len(page), found[1])
            return [self._log.decided(jobs.Checkpoint(Raw(msgspec.json.encode(cursor)), counters))]

        await self._log.append(decide, end)
        self._cursor = Cursor(last.entity, last.item, self._cursor.seen + len(page), found[1])

    def _stream(self, one: read.Outcome) -> str:
        id = items.stream_id(one.collection, one.entity, one.item)
        return messages.stream(items.STREAM, self._log.tenant, id)

    def _decide(
        self,
        there: Mapping[str, read.Outcome],
        now: Mapping[str, messages.Recorded],
        before: Mapping[str, messages.Recorded],
    ) -> tuple[list[Decided], reverts.Conflicts]:
        conflicts = msgspec.structs.replace(self._cursor.conflicts, first=[*self._cursor.conflicts.first])
        decided: list[Decided] = []
        for stream, one in there.items():
            last = now[stream]
            state: items.Item = after(items, items.initial, last)
            wanted: items.Item = after(items, items.initial, before[stream]) if one.before else items.initial
            if state.hash == wanted.hash:
                continue
            if state.number != one.after:
                conflicts.add(f"{one.entity}/{one.item}", MOVED)
                continue
            command = _back(one, wanted, state.number)
            events = items.decide(command, state)
            decided.append(Decided(items, last.id, Loaded(state, last.version, last.position), events))
        return decided, conflicts


def _back(one: read.Outcome, wanted: items.Item, number: int) -> items.Command:
    names = one.collection, one.entity, one.item
    if wanted.content is None or wanted.hash is None:
        return items.Remove(*names, "reverted", SOURCE, expect=number)
    return items.Put(*names, wanted.content, wanted.hash, wanted.revision, SOURCE, expect=number)


def _applied(decided: Sequence[Decided]) -> child.Applied:
    kinds = [type(event) for one in decided for event in one.events]
    return child.Applied(kinds.count(items.Created), kinds.count(items.Updated), kinds.count(items.Deleted))
