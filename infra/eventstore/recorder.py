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

COLUMNS = "pos, tenant, stream_id, version, topic, schema_version, event_id, metadata, state, hash, recorded_at"


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


class Prepared(Struct, frozen=True):
    """A command with what can be known of it before the log is asked.

    `names` is what it must not share with another of its group: streams, the idempotency key, claimed names.
    `takes` and `releases` are the net effect of its claims, as (kind, key, stream, shared) and (kind, key, stream).
    """

    command: Append
    count: int
    names: frozenset[object]
    takes: Sequence[tuple[str, str, str, bool]] = ()
    releases: Sequence[tuple[str, str, str]] = ()


def prepare(command: Append) -> Prepared:
    """Raises Claimed when the command takes a name for two streams, ValueError for events that do not belong."""
    names: set[object] = set()
    count = 0
    claiming = False
    for write in command.writes:
        version = write.expected
        for event in write.events:
            version += 1
            if event.originator_version != version or event.originator_id != write.stream:
                raise ValueError(f"version {event.originator_version} does not follow in {write.stream}")
        count += len(write.events)
        names.add(write.stream)
        claiming = claiming or bool(write.claims)
    if len(names) != len(command.writes):
        raise ValueError("a command writes to each of its streams once")
    if command.key is not None:
        names.add((command.tenant, command.key.principal, command.key.key))
    if not claiming:
        return Prepared(command, count, frozenset(names))
    takes, releases = net_claims(command.writes)
    names.update(("claim", command.tenant, claim.kind, claim.key) for write in command.writes for claim in write.claims)
    return Prepared(command, count, frozenset(names), takes, releases)


def net_claims(
    writes: Iterable[Write],
) -> tuple[list[tuple[str, str, str, bool]], list[tuple[str, str, str]]]:
    """What a command's claims and releases come to in their order; a name taken and given back was never taken.

    Raises Claimed when the command itself takes a name for two streams.
    """
    net: dict[tuple[str, str, str], bool | None] = {}
    held: dict[tuple[str, str], dict[str, bool]] = {}
    for write in writes:
        for claim in write.claims:
            name, holders = (claim.kind, claim.key, write.stream), held.setdefault((claim.kind, claim.key), {})
            if claim.action == "release":
                net[name] = None
                holders.pop(write.stream, None)
                continue
            other = next((stream for stream in holders if stream != write.stream), None)  # several all share it
            if other is not None and not (holders[other] and claim.shared):
                raise Claimed(claim.kind, claim.key, other)
            net[name] = holders[write.stream] = claim.shared
    takes = [(*name, shared) for name, shared in net.items() if shared is not None]
    return takes, [name for name, shared in net.items() if shared is None]


async def append_group(
    connection: asyncpg.Connection[asyncpg.Record], commands: Sequence[Prepared]
) -> Sequence[Outcome]:
    """Appends a group; answers one outcome per command, in order.

    The commands must share none of their names. A call stores its commands or says which of them are refused; the
    others are sent again. Whatever a call itself raises applies to all of them.
    """
    outcomes: dict[int, Outcome] = {}
    waiting = list(range(len(commands)))
    while waiting:
        arguments, owners = _arguments([commands[number] for number in waiting])
        row = await connection.fetchrow(_APPEND, *arguments)
        assert row is not None
        head, stamp, refused = row
        if refused is None:
            for number in waiting:
                outcomes[number] = Appended(head + 1, commands[number].count, stamp)
                head += commands[number].count
            break
        for reason in msgspec.json.decode(refused):
            outcomes.setdefault(waiting[owners[reason["in"]][reason["nth"] - 1]], _refusal(reason))
        waiting = [number for number in waiting if number not in outcomes]
    return [outcomes[number] for number in range(len(commands))]


_APPEND = (
    "select head, stamp, refused from undrift.append("
    "$1::text[], $2::text[], $3::int[], $4::text[], $5::int[], $6::uuid[], $7::text[], $8::bytea[], $9::bytea[],"
    " $10::text[], $11::int[], $12::text[], $13::text[], $14::text[], $15::bytea[], $16::int[], $17::int[],"
    " $18::text[], $19::text[], $20::text[], $21::text[], $22::bool[], $23::int[],"
    " $24::text[], $25::text[], $26::text[], $27::text[], $28::text[], $29::text[], $30::bigint[])"
)

_Rows = list[tuple[Any, ...]]
#: How many columns each of the function's arrays of rows has, in its order.
_WIDTHS = {"events": 9, "writes": 2, "keys": 6, "takes": 6, "releases": 4, "guards": 3}


def _arguments(commands: Sequence[Prepared]) -> tuple[list[tuple[Any, ...]], dict[str, list[int]]]:
    """The columns, and for each row of writes, keys, takes and guards the place of the command it belongs to."""
    rows: dict[str, _Rows] = {name: [] for name in _WIDTHS}
    owners: dict[str, list[int]] = {"writes": [], "keys": [], "takes": [], "guards": []}
    events, writes = rows["events"], rows["writes"]
    before = 0
    for place, prepared in enumerate(commands):
        command = prepared.command
        tenant = command.tenant
        for write in command.writes:
            writes.append((write.stream, write.expected))
            owners["writes"].append(place)
            for e in write.events:
                body = (e.topic, e.schema_version, e.event_id, e.metadata, e.state, e.hash)
                events.append((tenant, write.stream, e.originator_version, *body))
        if (k := command.key) is not None:
            rows["keys"].append((tenant, k.principal, k.key, k.request_hash, before, prepared.count))
            owners["keys"].append(place)
        for take in prepared.takes:
            rows["takes"].append((tenant, *take, before))
            owners["takes"].append(place)
        for release in prepared.releases:
            rows["releases"].append((tenant, *release))
        for guard in command.guards:
            rows["guards"].append((guard.lease, guard.owner, guard.fence))
            owners["guards"].append(place)
        before += prepared.count
    columns: list[tuple[Any, ...]] = []
    for name, width in _WIDTHS.items():
        columns += zip(*rows[name], strict=True) if rows[name] else [()] * width
    return columns, owners


def _refusal(reason: dict[str, Any]) -> Outcome:
    match reason["why"]:
        case "replayed":
            return Appended(reason["first"], reason["n"], datetime.fromisoformat(reason["at"]), replayed=True)
        case "key_reused":
            return KeyReused("the idempotency key was used with another request")
        case "guard":
            return GuardFailed("the lease was taken over")
        case "claimed":
            return Claimed(reason["kind"], reason["name"], reason["holder"])
        case _:
            return VersionConflict(f"{reason['name']} is at version {reason['actual']}")


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
        try:
            command = prepare(_plain_append(stored_events))
            async with self._database.transaction() as connection:
                if tracking is not None:
                    await _insert_tracking(connection, tracking)
                if not stored_events:
                    return []
                [outcome] = await append_group(connection, [command])
                if isinstance(outcome, Exception):
                    raise outcome
                return list(range(outcome.first, outcome.first + outcome.count))
        except (asyncpg.UniqueViolationError, ValueError) as error:
            raise IntegrityError(str(error)) from error

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
            f"select {COLUMNS} from undrift.events where stream_id = $1 and version > $2 and version <= $3"
            f" order by version {'desc' if desc else 'asc'} limit $4",
            str(originator_id),
            -1 if gt is None else gt,
            2**31 - 1 if lte is None else lte,
            limit,
        )
        return [notification(row) for row in rows]

    async def select_last(self, originator_ids: Sequence[str]) -> list[LogNotification]:
        """The last event of each of these streams, in one query."""
        columns = ", ".join(f"e.{column}" for column in COLUMNS.split(", "))
        rows = await self._database.fetch(
            f"select {columns} from unnest($1::text[]) as s(stream_id) cross join lateral"
            f" (select {COLUMNS} from undrift.events where stream_id = s.stream_id order by version desc limit 1) e",
            list(originator_ids),
        )
        return [notification(row) for row in rows]

    async def select_streams(self, originator_ids: Sequence[str]) -> list[LogNotification]:
        """All events of these streams, each stream's by version, in one query."""
        rows = await self._database.fetch(
            f"select {COLUMNS} from undrift.events where stream_id = any ($1::text[]) order by stream_id, version",
            list(originator_ids),
        )
        return [notification(row) for row in rows]

    async def select_versions(self, versions: Sequence[tuple[str, int]]) -> list[LogNotification]:
        """Of each of these streams the event of that version, in one query."""
        columns = ", ".join(f"e.{column}" for column in COLUMNS.split(", "))
        rows = await self._database.fetch(
            f"select {columns} from unnest($1::text[], $2::int[]) as s(stream_id, version)"
            " join undrift.events e on e.stream_id = s.stream_id and e.version = s.version",
            [stream for stream, _ in versions],
            [version for _, version in versions],
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
            f"select {COLUMNS} from undrift.events where pos > $1 and pos <= $2"
            " and ($3::text[] is null or topic = any ($3)) order by pos limit $4",
            after,
            2**62 if stop is None else stop,
            list(topics) or None,
            limit,
        )
        return [notification(row) for row in rows]

    async def select_contexts(
        self, after: int, until: int, contexts: Iterable[str]
    ) -> tuple[int | None, list[LogNotification]]:
        """Of the positions behind `after`, to `until` at most, the last that there is, and the events of these
        contexts. What is of no interest costs neither its transfer nor its decoding."""
        rows = await self._database.fetch(
            f"select {COLUMNS} from undrift.events where pos > $1 and pos <= $2 and (topic ^@ any ($3::text[])"
            " or pos = (select max(pos) from undrift.events where pos > $1 and pos <= $2)) order by pos",
            after,
            until,
            prefixes := [f"{context}." for context in contexts],
        )
        if not rows:
            return None, []
        return rows[-1][0], [notification(row) for row in rows if row[4].startswith(tuple(prefixes))]

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
