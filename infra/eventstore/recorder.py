"""The log in Postgres, under the method names of the `eventsourcing` library but asynchronous."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
from eventsourcing.persistence import IntegrityError, OperationalError, StoredEvent, Tracking
from msgspec import Struct

from domain import messages
from infra.db import Database
from infra.eventstore.mapper import LogEvent, LogNotification, content_hash

_COLUMNS = "pos, tenant, stream_id, version, topic, schema_version, event_id, metadata, state, hash, recorded_at"


class VersionConflict(IntegrityError):
    """The stream has moved: somebody else appended to it first."""


class Claimed(IntegrityError):
    """A name is taken by another stream."""

    def __init__(self, kind: str, name: str, holder: str) -> None:
        super().__init__(f"{kind} is taken")
        self.kind, self.name, self.holder = kind, name, holder


class GuardFailed(IntegrityError):
    """The lease has another owner or fence by now."""


class KeyReused(IntegrityError):
    """The idempotency key was used with another request."""


class Overloaded(OperationalError):
    """The writer's queue is full."""


class Key(Struct, frozen=True):
    """An idempotency key within its principal, and the SHA-256 of the request it stands for."""

    principal: str
    key: str
    request_hash: bytes


class Guard(Struct, frozen=True):
    """The command counts only while this lease has this owner and fence."""

    lease: str
    owner: str
    fence: int


class Write(Struct, frozen=True):
    """Events for one stream; `expected` is its last version, 0 where there must be no stream yet."""

    stream: str
    expected: int
    events: Sequence[LogEvent]
    claims: Sequence[messages.Claim] = ()


class Append(Struct, frozen=True):
    """One command: its writes are carried out together or not at all."""

    tenant: str
    writes: Sequence[Write]
    key: Key | None = None
    guards: Sequence[Guard] = ()
    principal: str = "system"


class Appended(Struct, frozen=True):
    """Where the command's events stand: `first` .. `first + count - 1`. `replayed` when its key had done it before."""

    first: int
    count: int
    recorded_at: datetime
    replayed: bool = False

    @property
    def last(self) -> int:
        """The position at which the command's effect is complete; for one without events, the head it saw."""
        return self.first + self.count - 1


Outcome = Appended | Exception


async def append_group(connection: asyncpg.Connection[asyncpg.Record], commands: Sequence[Append]) -> list[Outcome]:
    """Appends a group in one call; answers one outcome per command, in order.

    The commands must share no stream, key or claimed name. Whatever the call itself raises applies to all of them.
    """
    row = await connection.fetchrow(_APPEND, *_arguments(commands))
    assert row is not None
    return _outcomes(commands, row["head"], row["stamp"], msgspec.json.decode(row["refused"]))


_APPEND = (
    "select head, stamp, refused from undrift.append($1::int[], $2::text[], $3::text[], $4::int[], $5::text[],"
    " $6::int[], $7::uuid[], $8::text[], $9::bytea[], $10::bytea[], $11::int[], $12::text[], $13::int[], $14::int[],"
    " $15::text[], $16::text[], $17::text[], $18::bytea[], $19::int[], $20::text[], $21::text[], $22::text[],"
    " $23::text[], $24::bool[], $25::bool[], $26::int[], $27::text[], $28::text[], $29::bigint[])"
)


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _arguments(commands: Sequence[Append]) -> list[tuple[Any, ...]]:
    events: list[tuple[Any, ...]] = []
    writes: list[tuple[Any, ...]] = []
    keys: list[tuple[Any, ...]] = []
    claims: list[tuple[Any, ...]] = []
    guards: list[tuple[Any, ...]] = []
    for number, command in enumerate(commands):
        for write in command.writes:
            writes.append((number, write.stream, write.expected))
            events.extend(
                (number, e.tenant, write.stream, e.originator_version, e.topic, *_body(e)) for e in write.events
            )
        if command.key is not None:
            k = command.key
            keys.append((number, command.tenant, k.principal, k.key, k.request_hash))
        if any(write.claims for write in command.writes):
            claims.extend((number, command.tenant, *claim) for claim in net_claims(command.writes))
        guards.extend((number, g.lease, g.owner, g.fence) for g in command.guards)
    return _columns(events, 10) + _columns(writes, 3) + _columns(keys, 5) + _columns(claims, 7) + _columns(guards, 4)


def _body(event: LogEvent) -> tuple[Any, ...]:
    return event.schema_version, event.event_id, event.metadata, event.state, event.hash


def net_claims(writes: Iterable[Write]) -> list[tuple[str, str, str, bool, bool]]:
    """The net effect of a command's claims and releases in their order, as (kind, key, stream, shared, take).

    Raises Claimed when the command itself takes a name twice for different streams.
    """
    net: dict[tuple[str, str, str], tuple[bool, bool]] = {}
    for write in writes:
        for claim in write.claims:
            name = (claim.kind, claim.key, write.stream)
            if claim.action == "release":
                # A name taken and given back in one command was never taken.
                net[name] = (False, False)
                continue
            for (kind, key, stream), (take, shared) in net.items():
                other = take and (kind, key) == (claim.kind, claim.key) and stream != write.stream
                if other and not (shared and claim.shared):
                    raise Claimed(claim.kind, claim.key, stream)
            net[name] = (True, claim.shared)
    return [(kind, key, stream, shared, take) for (kind, key, stream), (take, shared) in net.items()]


def _outcomes(commands: Sequence[Append], head: int, stamp: datetime, refused: list[dict[str, Any]]) -> list[Outcome]:
    reasons = {row["command"]: row for row in reversed(refused)}
    outcomes: list[Outcome] = []
    for number, command in enumerate(commands):
        if (row := reasons.get(number)) is not None:
            outcomes.append(_refusal(row))
            continue
        count = sum(len(write.events) for write in command.writes)
        outcomes.append(Appended(head + 1, count, stamp))
        head += count
    return outcomes


def _refusal(row: dict[str, Any]) -> Outcome:
    match row["why"]:
        case "replayed":
            return Appended(row["first"], row["n"], datetime.fromisoformat(row["at"]), replayed=True)
        case "key_reused":
            return KeyReused("the idempotency key was used with another request")
        case "guard":
            return GuardFailed("the lease was taken over")
        case "claimed":
            return Claimed(row["kind"], row["name"], row["holder"])
        case _:
            return VersionConflict(f"{row['name']} is at version {row['actual']}")


def notification(row: asyncpg.Record) -> LogNotification:
    return LogNotification(
        originator_id=row[2],
        originator_version=row[3],
        topic=row[4],
        state=row[8],
        id=row[0],
        tenant=row[1],
        schema_version=row[5],
        event_id=row[6],
        metadata=row[7],
        hash=row[9],
        recorded_at=row[10],
    )


class Recorder:
    """The library's ProcessRecorder, asynchronous. Raw stored events; `Store` and `Writer` are what programs use."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_events(
        self, stored_events: Sequence[StoredEvent], tracking: Tracking | None = None
    ) -> Sequence[int]:
        """Appends the events, and the tracking object with them. Raises IntegrityError when either is refused."""
        command = _plain_append(stored_events)
        async with self._database.transaction() as connection:
            if tracking is not None:
                await _insert_tracking(connection, tracking)
            if not stored_events:
                return []
            [outcome] = await append_group(connection, [command])
            if isinstance(outcome, Exception):
                raise outcome
            return range(outcome.first, outcome.first + outcome.count)

    async def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> list[LogNotification]:
        """The events of one stream, by version."""
        rows = await self._database.fetch(
            f"select {_COLUMNS} from undrift.events where stream_id = $1 and version > $2 and version <= $3"
            f" order by version {'desc' if desc else 'asc'} limit $4",
            str(originator_id),
            -1 if gt is None else gt,
            2**31 - 1 if lte is None else lte,
            limit,
        )
        return [notification(row) for row in rows]

    async def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> list[LogNotification]:
        """The log by position."""
        after = 0 if start is None else start - 1 if inclusive_of_start else start
        rows = await self._database.fetch(
            f"select {_COLUMNS} from undrift.events where pos > $1 and pos <= $2"
            " and ($3::text[] is null or topic = any ($3)) order by pos limit $4",
            after,
            2**62 if stop is None else stop,
            list(topics) or None,
            limit,
        )
        return [notification(row) for row in rows]

    async def max_notification_id(self) -> int | None:
        """The head of the log."""
        head: int | None = await self._database.fetchval("select max(pos) from undrift.events")
        return head

    async def insert_tracking(self, tracking: Tracking) -> None:
        """Records how far a reader has come. Raises IntegrityError unless that is further than before."""
        async with self._database.connection() as connection:
            await _insert_tracking(connection, tracking)

    async def max_tracking_id(self, application_name: str) -> int | None:
        position: int | None = await self._database.fetchval(
            "select pos from undrift.tracking where projection = $1 and generation = 0", application_name
        )
        return position


def _plain_append(stored_events: Sequence[StoredEvent]) -> Append:
    streams: dict[str, list[LogEvent]] = {}
    for e in stored_events:
        streams.setdefault(str(e.originator_id), []).append(e if isinstance(e, LogEvent) else _dress(e))
    writes = [Write(stream, events[0].originator_version - 1, events) for stream, events in streams.items()]
    return Append("main", writes)


def _dress(event: StoredEvent) -> LogEvent:
    header = ("main", str(event.originator_id), event.originator_version, event.topic, 1, uuid4(), "{}")
    return LogEvent(
        originator_id=event.originator_id,
        originator_version=event.originator_version,
        topic=event.topic,
        state=event.state,
        tenant="main",
        schema_version=1,
        event_id=header[5],
        metadata="{}",
        hash=content_hash(*header, event.state),
    )


async def _insert_tracking(connection: asyncpg.Connection[asyncpg.Record], tracking: Tracking) -> None:
    moved = await connection.fetchval(
        "insert into undrift.tracking as t values ($1, 0, $2) on conflict (projection, generation)"
        " do update set pos = excluded.pos where t.pos < excluded.pos returning true",
        tracking.application_name,
        tracking.notification_id,
    )
    if not moved:
        raise IntegrityError(f"{tracking.application_name} is already at {tracking.notification_id}")
