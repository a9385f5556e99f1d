"""What led to an event: the facts that came before it and the wish of somebody, as far as the log tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from domain import accounts, devices, integrations, jobs, keys, library, messages, servers, sessions
from domain.messages import Recorded
from domain.plans import reverts
from infra.eventstore.store import Store
from services.gateway.as_of import readable

#: Contexts whose first event says who an actor is.
_ACTORS: dict[str, Any] = {
    "key": keys,
    "user": accounts,
    "device": devices,
    "job": jobs,
    "hook": integrations,
}
_WISHES = jobs.Queued | jobs.Resumed
_SAID_BY_WORKERS = (
    jobs.Started | jobs.Progressed | jobs.Checkpointed | jobs.Held | jobs.Paused | jobs.Completed | jobs.Failed
)
_OF_SCHEDULES = integrations.Created | integrations.Changed | integrations.Started | integrations.Stopped
#: Why a server's process is to do something; a suspension ends it.
_POWERS = servers.PowerAsked | servers.Suspended | servers.Crashed
_RESTS = jobs.Held | jobs.Paused | jobs.Failed
#: How many jobs that failed are named for a session.
_FAILED = 5


class Causes:
    """For one answer; what was read is remembered."""

    def __init__(self, store: Store, tenant: str) -> None:
        self._store, self._tenant = store, tenant
        self._streams: dict[str, list[Recorded]] = {}

    async def of(self, recorded: Recorded) -> list[Recorded]:
        """What led to an event, the nearest first; nothing where the log says no more."""
        found = await self._because(recorded)
        named = [one for one in found if one.position < recorded.position]
        actor = await self.actor(recorded)
        if actor is not None and actor.position < recorded.position and not _speaks_for(actor, recorded):
            named.append(actor)
        return list({one.position: one for one in named}.values())

    async def actor(self, recorded: Recorded) -> Recorded | None:
        """The first event of whoever said it; None for a part of the system."""
        kind, _, id = recorded.metadata.actor.partition(":")
        context = _ACTORS.get(kind)
        if context is None or not id:
            return None
        events = await self._stream(context, id)
        return events[0] if events else None

    async def _stream(self, context: Any, id: str) -> list[Recorded]:
        name = messages.stream(context.STREAM, self._tenant, id)
        if name not in self._streams:
            self._streams[name] = [readable(one) for one in await self._store.stream(name)]
        return self._streams[name]

    async def _last(self, context: Any, id: str, kinds: Any, before: int) -> list[Recorded]:
        """The last event of these kinds before a position."""
        events = await self._stream(context, id)
        return [one for one in events if one.position < before and isinstance(one.event, kinds)][-1:]

    async def _because(self, recorded: Recorded) -> Sequence[Recorded]:
        event, at = recorded.event, recorded.position
        match event:
            case jobs.Queued():
                return await self._queued(event, at)
            case jobs.Resumed():
                return await self._last(jobs, recorded.id, _RESTS, at)
            case jobs.Stopped():
                return await self._last(jobs, recorded.id, _WISHES | jobs.StopRequested, at)
            case _ if isinstance(event, _SAID_BY_WORKERS):
                return await self._last(jobs, recorded.id, _WISHES, at)
            case integrations.Overdue():
                job = [] if event.job is None else await self._last(jobs, event.job, jobs.Queued, at)
                return [*job, *await self._last(integrations, recorded.id, _OF_SCHEDULES, at)]
            case _ if isinstance(event, servers.Event) and recorded.metadata.actor == "system:node":
                return await self._last(servers, recorded.id, _POWERS, at)
            case _ if isinstance(event, library.Event):
                return await self._library(event, recorded)
            case _ if isinstance(event, sessions.Event):
                return await self._session(event, recorded)
            case _:
                return []

    async def _queued(self, event: jobs.Queued, at: int) -> Sequence[Recorded]:
        """The session it is part of, the schedule or the integration it is of, the job it undoes."""
        found: list[Recorded] = []
        if event.session is not None:
            found += (await self._stream(sessions, event.session))[:1]
        if event.ticket.integration is not None:
            kinds = _OF_SCHEDULES if event.trigger == "schedule" else integrations.Created | integrations.Changed
            found += await self._last(integrations, event.ticket.integration, kinds, at)
        if event.ticket.kind == "revert":
            undone = msgspec.json.decode(event.spec, type=reverts.Spec).job
            found += (await self._stream(jobs, undone))[-1:]
        return found

    async def _library(self, event: library.Event, recorded: Recorded) -> Sequence[Recorded]:
        file, at = recorded.id, recorded.position
        match event:
            case library.ConflictFound():
                changes = [one for one in await self._stream(library, file) if one.position < at]
                return [one for one in changes if getattr(one.event, "number", None) == event.server_number]
            case library.ConflictResolved():
                return await self._of_conflict(file, event.conflict, library.ConflictFound)
            case library.ConflictReopened():
                resolved = await self._of_conflict(file, event.conflict, library.ConflictResolved)
                return [one for one in resolved if one.position < at][-1:]
            case _:
                before = [one for one in await self._stream(library, file) if one.position == at - 1]
                same = [one for one in before if one.recorded_at == recorded.recorded_at]
                return [
                    one for one in same if isinstance(one.event, library.ConflictResolved | library.ConflictReopened)
                ]

    async def _of_conflict(self, file: str, conflict: str, kind: Any) -> list[Recorded]:
        events = await self._stream(library, file)
        return [one for one in events if isinstance(one.event, kind) and getattr(one.event, "conflict", "") == conflict]

    async def _session(self, event: sessions.Event, recorded: Recorded) -> Sequence[Recorded]:
        id, at = recorded.id, recorded.position
        match event:
            case sessions.Started():
                return []
            case sessions.Attached(kind="job"):
                return (await self._stream(jobs, event.item))[:1]
            case sessions.Completed() | sessions.Failed():
                asked = await self._last(sessions, id, sessions.CompletionRequested, at)
                failed = [] if isinstance(event, sessions.Completed) else await self._failed(id, at)
                return [*failed, *asked] or (await self._stream(sessions, id))[:1]
            case _:
                return (await self._stream(sessions, id))[:1]

    async def _failed(self, session: str, before: int) -> list[Recorded]:
        """How jobs of a session ended that did not complete."""
        found: list[Recorded] = []
        for one in await self._stream(sessions, session):
            if isinstance(one.event, sessions.Attached) and one.event.kind == "job" and len(found) < _FAILED:
                found += await self._last(jobs, one.event.item, jobs.Failed | jobs.Stopped | jobs.Held, before)
        return found


def _speaks_for(actor: Recorded, recorded: Recorded) -> bool:
    """Whether what it says of itself."""
    return actor.stream == recorded.stream
