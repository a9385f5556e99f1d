"""What programs use of the log: typed reads, and `execute`, which decides a command and appends its events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import asyncpg
from eventsourcing.persistence import OperationalError
from msgspec import Struct
from msgspec.structs import replace

from domain import errors, messages
from infra import traces
from infra.db import Database
from infra.eventstore.mapper import Draft, LogNotification, Mapper
from infra.eventstore.recorder import (
    Append,
    Appended,
    Guard,
    GuardFailed,
    Key,
    KeyReused,
    Overloaded,
    Recorder,
    VersionConflict,
    Write,
)
from infra.eventstore.writer import Writer

_TRIES = 8
#: Streams looked up at once; and how many events are made ready on the loop itself.
_LOOKED_UP = 2000
_AT_ONCE = 100
#: Streams whose state is remembered, of contexts that are LONG_LIVED.
_REMEMBERED = 2000


class Loaded(Struct, frozen=True):
    """A stream folded to its state: `version` 0 and `position` 0 where there is none."""

    state: Any
    version: int = 0
    position: int = 0


class Wish(Struct, frozen=True):
    """A command for one stream of a context. `fresh` says that the stream is new, so it need not be read."""

    context: Any
    id: str
    command: messages.Command
    fresh: bool = False


class Decided(Struct, frozen=True):
    """What was decided for one stream of a context, and what it rests on."""

    context: Any
    id: str
    before: Loaded
    events: Sequence[Any]


class Done(Struct, frozen=True):
    """A command that was carried out: its events, and the state of the first stream after them.

    `position` is where its effect is complete; `replayed` when its idempotency key had done it before. Answers are
    functions of this, so a retry gets the same bytes.
    """

    position: int
    state: Any
    events: Sequence[messages.Recorded]
    replayed: bool = False


class Store:
    """The log with its writer: reads decode, appends encode."""

    def __init__(self, database: Database, mapper: Mapper, writer: Writer) -> None:
        self.database, self.mapper, self.writer = database, mapper, writer
        self.recorder = Recorder(database)
        self._remembered: dict[str, Loaded] = {}

    async def head(self) -> int:
        """The last position, 0 in an empty log."""
        return await self.recorder.max_notification_id() or 0

    async def read(self, after: int, limit: int, until: int | None = None) -> list[messages.Recorded]:
        """The log after a position, in order. An event that cannot be read is an Unreadable."""
        return await self.decode(
            await self.recorder.select_notifications(after, limit, until, inclusive_of_start=False)
        )

    async def read_raw(self, after: int, limit: int) -> list[LogNotification]:
        """As `read`, undecoded: what the relay copies."""
        return await self.recorder.select_notifications(after, limit, inclusive_of_start=False)

    async def stream(self, name: str, after: int = 0, until: int | None = None) -> list[messages.Recorded]:
        """The events of a stream by version, to those at or before position `until`."""
        notes = await self.recorder.select_events(name, gt=after)
        return await self.decode([note for note in notes if until is None or note.id <= until])

    async def latest(self, names: Sequence[str]) -> dict[str, messages.Recorded]:
        """The last event of each of many streams, where there is one."""
        found: dict[str, messages.Recorded] = {}
        for start in range(0, len(names), _LOOKED_UP):
            notes = await self.recorder.select_last(names[start : start + _LOOKED_UP])
            found |= {recorded.stream: recorded for recorded in await self.decode(notes)}
        return found

    async def at(self, versions: Sequence[tuple[str, int]]) -> dict[str, messages.Recorded]:
        """The event of that version of each of many streams, where there is one."""
        found: dict[str, messages.Recorded] = {}
        for start in range(0, len(versions), _LOOKED_UP):
            notes = await self.recorder.select_versions(versions[start : start + _LOOKED_UP])
            found |= {recorded.stream: recorded for recorded in await self.decode(notes)}
        return found

    async def decode(self, notes: list[LogNotification]) -> list[messages.Recorded]:
        """As they were said, personal fields in clear as far as there are keys."""
        if self.mapper.keyring is not None and (subjects := self.mapper.subjects(notes)):
            await self.mapper.keyring.load(subjects)
        return [self.mapper.read(note) for note in notes]

    async def load(self, context: Any, stream: str, until: int | None = None) -> Loaded:
        """Folds a stream. Raises errors.Unavailable when it holds an event this program cannot read."""
        if until is not None or not getattr(context, "LONG_LIVED", False):
            return _folded(context, await self.stream(stream, until=until))
        before = self._remembered.get(stream, Loaded(context.initial))
        now = _folded(context, await self.stream(stream, after=before.version), before)
        self._remember(stream, now)
        return now

    def _remember(self, stream: str, now: Loaded) -> None:
        """The newest of what is known, which another may have read meanwhile; the one read last goes last."""
        known = self._remembered.pop(stream, now)
        self._remembered[stream] = max(known, now, key=lambda one: one.version)
        if len(self._remembered) > _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    async def load_all(self, context: Any, streams: Sequence[str]) -> dict[str, Loaded]:
        """Folds many streams, in one look at the log. Raises errors.Unavailable as `load`."""
        found: dict[str, list[messages.Recorded]] = {stream: [] for stream in streams}
        for recorded in await self.decode(await self.recorder.select_streams(streams)):
            found[recorded.stream].append(recorded)
        return {stream: _folded(context, recorded) for stream, recorded in found.items()}

    async def execute(
        self,
        context: Any,
        id: str,
        command: messages.Command,
        *,
        tenant: str = "main",
        metadata: messages.Metadata = messages.Metadata(),
        key: Key | None = None,
        guards: Sequence[Guard] = (),
        fresh: bool = False,
    ) -> Done:
        """Decides one command and appends what follows. As `execute_all`, for one stream."""
        wish = Wish(context, id, command, fresh)
        return await self.execute_all([wish], tenant=tenant, metadata=metadata, key=key, guards=guards)

    async def execute_all(
        self,
        wishes: Sequence[Wish],
        *,
        tenant: str = "main",
        metadata: messages.Metadata = messages.Metadata(),
        key: Key | None = None,
        guards: Sequence[Guard] = (),
    ) -> Done:
        """Decides commands, one for each stream, and appends what follows as one, again when any of the streams has
        moved meanwhile.

        With a key, a command that was carried out before is answered from its events. Raises whatever `decide`
        raises, Claimed when a name is taken, errors.LeaseLost, errors.KeyReused, errors.Unavailable,
        errors.StorageFull, errors.Conflict.
        """
        # A fresh stream cannot refuse what was done before, so the append itself finds the key.
        if not all(wish.fresh for wish in wishes):
            earlier = await self._said_before(wishes, tenant, key)
            if earlier is not None:
                return earlier
        with _in_our_words():
            return await self._try(wishes, tenant, metadata, key, guards)

    async def _try(
        self,
        wishes: Sequence[Wish],
        tenant: str,
        metadata: messages.Metadata,
        key: Key | None,
        guards: Sequence[Guard],
    ) -> Done:
        moved = False
        for _ in range(_TRIES):
            loaded = [await self._loaded(wish, tenant, moved) for wish in wishes]
            try:
                return await self._append(wishes, loaded, tenant, metadata, key, guards)
            except VersionConflict:
                moved = True
            except errors.Error:  # perhaps because the same request, at the same moment, has just been carried out
                earlier = await self._said_before(wishes, tenant, key)
                if earlier is None:
                    raise
                return earlier
        raise errors.Conflict()

    async def _said_before(self, wishes: Sequence[Wish], tenant: str, key: Key | None) -> Done | None:
        if key is None:
            return None
        return await self.earlier([wish.context for wish in wishes], tenant, key, _first(wishes, tenant))

    async def _loaded(self, wish: Wish, tenant: str, moved: bool) -> Loaded:
        if wish.fresh and not moved:
            return Loaded(wish.context.initial)
        return await self.load(wish.context, messages.stream(wish.context.STREAM, tenant, wish.id))

    async def _append(
        self,
        wishes: Sequence[Wish],
        loaded: Sequence[Loaded],
        tenant: str,
        metadata: messages.Metadata,
        key: Key | None,
        guards: Sequence[Guard],
    ) -> Done:
        decided = [
            Decided(wish.context, wish.id, before, wish.context.decide(wish.command, before.state))
            for wish, before in zip(wishes, loaded, strict=True)
        ]
        if metadata.subject is not None and self.mapper.keyring is not None:
            await self.mapper.keyring.ensure(tenant, metadata.subject)
        if key is None and not any(one.events for one in decided):
            return Done(max((one.position for one in loaded), default=0), loaded[0].state if loaded else None, [])
        drafts, appended = await self._store(decided, tenant, metadata, key, guards)
        if appended.replayed:
            return await self._replay([wish.context for wish in wishes], appended, _first(wishes, tenant))
        recorded = [_recorded(draft, appended.first + n, appended) for n, draft in enumerate(drafts)]
        return Done(appended.last, _after(wishes, loaded, recorded, tenant), recorded)

    async def append(
        self,
        decided: Sequence[Decided],
        *,
        tenant: str = "main",
        metadata: messages.Metadata = messages.Metadata(),
        guards: Sequence[Guard] = (),
    ) -> int:
        """Appends what was decided elsewhere, as one; answers the last position.

        Raises errors.Conflict when a stream has moved since: then it has to be decided again. Else as `execute_all`.
        """
        try:
            with _in_our_words():
                return (await self._store(decided, tenant, metadata, None, guards))[1].last
        except VersionConflict:
            raise errors.Conflict() from None

    async def _store(
        self,
        decided: Sequence[Decided],
        tenant: str,
        metadata: messages.Metadata,
        key: Key | None,
        guards: Sequence[Guard],
    ) -> tuple[Sequence[Draft], Appended]:
        """What follows from the events continues the trace of this append."""
        if not traces.active():
            return await self._put(decided, tenant, metadata, key, guards)
        about = {"undrift.events": sum(len(one.events) for one in decided)}
        with traces.span("append", metadata.traceparent, about, "producer") as span:
            metadata = replace(metadata, traceparent=span.traceparent)
            return await self._put(decided, tenant, metadata, key, guards)

    async def _put(
        self,
        decided: Sequence[Decided],
        tenant: str,
        metadata: messages.Metadata,
        key: Key | None,
        guards: Sequence[Guard],
    ) -> tuple[Sequence[Draft], Appended]:
        if sum(len(one.events) for one in decided) > _AT_ONCE:
            drafts, writes = await asyncio.to_thread(self._writes, decided, tenant, metadata)
        else:
            drafts, writes = self._writes(decided, tenant, metadata)
        return drafts, await self.writer.append(Append(tenant, writes, key, guards, metadata.actor))

    def _writes(
        self, decided: Sequence[Decided], tenant: str, metadata: messages.Metadata
    ) -> tuple[list[Draft], list[Write]]:
        drafts: list[Draft] = []
        writes: list[Write] = []
        for one in decided:
            stream = messages.stream(one.context.STREAM, tenant, one.id)
            mine = [
                Draft(tenant, stream, one.before.version + n, uuid4(), event, metadata)
                for n, event in enumerate(one.events, start=1)
            ]
            drafts += mine
            claims = [claim for event in one.events for claim in one.context.claims(event)]
            stored = [self.mapper.to_stored_event(draft) for draft in mine]
            # Also without events: what is decided here rests on this version of the stream.
            writes.append(Write(stream, one.before.version, stored, claims))
        return drafts, writes

    async def earlier(self, contexts: Sequence[Any], tenant: str, key: Key, stream: str | None = None) -> Done | None:
        """What a key did before, or None; the state is that of `stream`, else of the first stream it wrote.

        Raises errors.KeyReused when the key stood for another request.
        """
        row = await self.database.fetchrow(
            "select request_hash, first_pos, n, at from undrift.commands"
            " where tenant = $1 and principal = $2 and key = $3",
            tenant,
            key.principal,
            key.key,
        )
        if row is None:
            return None
        if row["request_hash"] != key.request_hash:
            raise errors.KeyReused()
        return await self._replay(contexts, Appended(row["first_pos"], row["n"], row["at"], replayed=True), stream)

    async def _replay(self, contexts: Sequence[Any], appended: Appended, stream: str | None) -> Done:
        """A command's answer once more: its events, and its first stream folded to where they ended."""
        recorded = await self.read(appended.first - 1, appended.count) if appended.count else []
        state = contexts[0].initial if contexts else None
        if stream := stream or (recorded[0].stream if recorded else None):
            context = next(one for one in contexts if stream.partition("/")[0] == one.STREAM)
            state = (await self.load(context, stream, until=appended.last)).state
        return Done(appended.last, state, recorded, replayed=True)


@contextmanager
def _in_our_words() -> Iterator[None]:
    """What the writer raises, as errors of the catalogue; VersionConflict and Claimed are the caller's."""
    try:
        yield
    except GuardFailed:
        raise errors.LeaseLost() from None
    except KeyReused:
        raise errors.KeyReused() from None
    except Overloaded:
        raise errors.Unavailable("Too many commands are waiting; try again", retry_after=1) from None
    except OperationalError:
        raise errors.Unavailable(retry_after=1) from None
    except asyncpg.DiskFullError:
        raise errors.StorageFull() from None


def _folded(context: Any, recorded: Sequence[messages.Recorded], before: Loaded | None = None) -> Loaded:
    """From the beginning, or from what it was before."""
    before = before or Loaded(context.initial)
    state = before.state
    for one in recorded:
        if isinstance(one.event, messages.Unreadable):
            raise errors.Unavailable(f"{one.stream} holds an event that this version cannot read")
        state = context.evolve(state, one.event)
    return Loaded(state, recorded[-1].version, recorded[-1].position) if recorded else before


def _first(wishes: Sequence[Wish], tenant: str) -> str | None:
    """The stream whose state answers; None where a retry may have made up another name for it."""
    if not wishes or wishes[0].fresh:
        return None
    return messages.stream(wishes[0].context.STREAM, tenant, wishes[0].id)


def _recorded(draft: Draft, position: int, appended: Appended) -> messages.Recorded:
    return messages.Recorded(
        position=position,
        tenant=draft.tenant,
        stream=draft.stream,
        version=draft.version,
        event_id=draft.event_id,
        event=draft.event,
        metadata=draft.metadata,
        recorded_at=appended.recorded_at,
    )


def _after(wishes: Sequence[Wish], loaded: Sequence[Loaded], recorded: Sequence[messages.Recorded], tenant: str) -> Any:
    if not wishes:
        return None
    first = wishes[0]
    stream, state = messages.stream(first.context.STREAM, tenant, first.id), loaded[0].state
    for one in recorded:
        if one.stream == stream:
            state = first.context.evolve(state, one.event)
    return state
