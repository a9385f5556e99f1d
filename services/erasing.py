"""Erasure of a person: first they are on the list, so whatever happens it is carried out; then the key is destroyed,
nothing of theirs opens anything any more, and the log says so; then what is kept elsewhere goes, place by place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from msgspec import Struct

from domain import accounts, devices, errors, events, messages, uploads
from infra import jetstream, subjects
from infra.blobs import Contents
from infra.bus import Bus
from infra.db import CONNECTION_LOST
from infra.erasures import Entry, Erasures
from infra.eventstore.store import Store
from infra.feed import STREAM
from infra.uploads import Uploads
from projections import ALL

log = structlog.get_logger("erasing")

#: Trouble of the moment: it is tried again.
TRANSIENT = (*CONNECTION_LOST, errors.Unavailable, errors.TimedOut, errors.Conflict, jetstream.Refused)

#: How long what is under way in other processes takes to be appended, once they have heard that the key is gone.
_SETTLES_S = 1.0
_ROUNDS = 5
#: How long the relay may be behind, and how long it may take to fill a stream again.
_RELAYS_S, _REFILLS_S, _LOOK_S = 10.0, 120.0, 0.2
#: Each message that is overwritten costs the server up to some 30 ms; of so many, all are made anew in less.
_OVERWRITES = 5_000
_AT_ONCE = 64
_PAGE = 1000
_PERSONAL = sorted(topic for topic, kind in events.REGISTRY.items() if kind.PERSONAL)
_ERASED = messages.topic(accounts.Erased)

# What is somebody's by the metadata of its event; most events are told apart before any JSON is read.
_MINE = (
    "e.tenant = $1 and position('\"owner\":\"' || $2 || '\"' in e.metadata) > 0 and e.metadata::jsonb ->> 'owner' = $2"
)
_EXTENT = f"""
select (select count(*) from undrift.events e where {_MINE}) as events,
    (select count(*) from undrift.events e where {_MINE} and e.topic = 'devices.registered') as devices,
    (select count(*) from undrift.stored where tenant = $1 and owner = $2) as blobs,
    (select coalesce(sum(size), 0)::bigint from undrift.stored where tenant = $1 and owner = $2) as bytes,
    (select count(*) from undrift.uploads where tenant = $1 and owner = $2) as uploads,
    (select count(*) from undrift.sessions where tenant = $1 and owner = $2) as sessions
"""
# The one who has the name now, else the last who had it and is not erased, else the last.
_NAMED = f"""
select e.stream_id from undrift.events e
left join undrift.claims c on c.tenant = e.tenant and c.kind = '{accounts.NAME}' and c.key = $2
    and c.stream_id = e.stream_id
where e.tenant = $1 and e.topic = 'accounts.created' and convert_from(e.state, 'UTF8')::jsonb ->> 'name_key' = $2
order by c.stream_id is not null desc,
    exists (select from undrift.events d where d.stream_id = e.stream_id and d.topic = '{_ERASED}'), e.pos desc
limit 1
"""


# What somebody on the list must not have.
_LEFT = """
select l.subject, w.what from unnest($1::text[], $2::text[]) as l(tenant, subject) cross join lateral (
    select 'a key' as what from undrift_keys.subjects k
        where k.tenant = l.tenant and k.subject = l.subject and k.wrapped is not null
    union all select 'blobs' where exists
        (select from undrift.stored s where s.tenant = l.tenant and s.owner = l.subject)
    union all select 'uploads' where exists
        (select from undrift.uploads u where u.tenant = l.tenant and u.owner = l.subject)
    union all select 'sessions' where exists
        (select from undrift.sessions s where s.tenant = l.tenant and s.owner = l.subject)
) w order by 1, 2 limit 5
"""


class Extent(Struct, frozen=True):
    """What there is of a person: events in the log, devices that were ever registered, blobs of the library with their
    bytes, uploads under way, sessions."""

    events: int
    devices: int
    blobs: int
    bytes: int
    uploads: int
    sessions: int


class Report(Struct, frozen=True):
    """What was done: `position` is where the log says so. `complete` is False where something could not be reached; it
    is done later, by the core process."""

    position: int
    blobs: int
    messages: int
    complete: bool


class Eraser:
    """Works on one installation. `bus` is the connection of the relay's user; None where NATS is not to be asked."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        contents: Contents | None = None,
        bus: Bus | None = None,
        settles_s: float = _SETTLES_S,
        overwrites: int = _OVERWRITES,
    ) -> None:
        self._store, self._database, self._directory = store, store.database, directory
        self._contents, self._settles_s, self._overwrites = contents, settles_s, overwrites
        self._stream = None if bus is None else jetstream.Stream(bus, STREAM)
        self._list = Erasures(directory)

    async def find(self, tenant: str, subject: str, name_key: str) -> str:
        """The id of a user by id, or by the keyed hash of their name. Raises errors.NotFound."""
        stream = messages.stream(accounts.STREAM, tenant, subject)
        known = "select exists (select from undrift.events where stream_id = $1 and tenant = $2)"
        if await self._database.fetchval(known, stream, tenant):
            return subject
        named = await self._database.fetchval(_NAMED, tenant, name_key)
        if named is None:
            raise errors.NotFound(f"There is no user {subject} in the tenant {tenant}", kind="user")
        return str(named).rpartition("/")[2]

    async def extent(self, tenant: str, subject: str) -> Extent:
        row = await self._database.fetchrow(_EXTENT, tenant, subject)
        assert row is not None
        return Extent(**dict(row))

    async def pending(self) -> list[Entry]:
        """Those of the list whose erasure this log does not know to be complete."""
        if not (entries := self._list.all()):
            return []
        done = {tuple(row) for row in await self._database.fetch("select tenant, subject from undrift.erasures")}
        return [entry for entry in entries if (entry.tenant, entry.subject) not in done]

    async def erase(self, tenant: str, subject: str) -> Report:
        """Everything. Once this has begun it is carried out, by this call or by the core process."""
        await asyncio.to_thread(self._list.add, tenant, subject, datetime.now(UTC))
        position = await self.withdraw(tenant, subject)
        for _ in range(_ROUNDS):
            await asyncio.sleep(self._settles_s)
            if not await self._said_since(tenant, subject, position):
                break
            position = await self.withdraw(tenant, subject, again=True)
        return await self.complete(tenant, subject, position)

    async def withdraw(self, tenant: str, subject: str, *, again: bool = False) -> int:
        """From here on nothing can be read, and nothing opens anything; answers the position where the log says so,
        0 where it knows no such person."""
        keyring = self._store.mapper.keyring
        assert keyring is not None
        await keyring.destroy(tenant, subject)
        async with self._database.transaction() as connection:
            for table in ("undrift.sessions", "undrift_keys.passwords", "undrift.device_state"):
                await connection.execute(f"delete from {table} where tenant = $1 and owner = $2", tenant, subject)
        for device in await self._of(tenant, subject, "devices.registered"):
            await self._say(tenant, subject, devices, device, devices.Delete())
        for upload in await self._database.fetch(
            "select id from undrift.uploads where tenant = $1 and owner = $2", tenant, subject
        ):
            await self._say(tenant, subject, uploads, upload["id"], uploads.Expire())
        await self._say(tenant, subject, accounts, subject, accounts.Erase(again))
        return await self._erased_at(tenant, subject)

    async def complete(self, tenant: str, subject: str, position: int) -> Report:
        """What is kept apart from the log and the read models goes."""
        await self._read_models(position)
        await self._forget_rows(tenant, subject)
        blobs = await self._delete_bytes(tenant, subject)
        gone = complete = None
        try:
            gone = await self._erase_messages(tenant, subject, position)
            complete = gone is not None
        except TRANSIENT as error:
            log.warning("messages are erased later", reason=type(error).__name__)
        if complete:
            await self._database.execute(
                "insert into undrift.erasures (tenant, subject, position) values ($1, $2, $3)"
                " on conflict (tenant, subject) do update set position = excluded.position",
                tenant,
                subject,
                position,
            )
            log.info("a person was erased", subject=subject, position=position, blobs=blobs, messages=gone)
        return Report(position, blobs, gone or 0, bool(complete))

    async def _of(self, tenant: str, subject: str, topic: str) -> list[str]:
        rows = await self._database.fetch(
            f"select distinct e.stream_id from undrift.events e where {_MINE} and e.topic = $3", tenant, subject, topic
        )
        return [row["stream_id"].rpartition("/")[2] for row in rows]

    async def _say(self, tenant: str, subject: str, context: Any, id: str, command: messages.Command) -> None:
        """What is over, or was never there, needs no word."""
        metadata = messages.Metadata(actor="system:eraser", owner=subject)
        try:
            await self._store.execute(context, id, command, tenant=tenant, metadata=metadata)
        except errors.NotFound:
            return

    async def _erased_at(self, tenant: str, subject: str) -> int:
        return int(
            await self._database.fetchval(
                "select coalesce(max(pos), 0) from undrift.events where stream_id = $1 and topic = $2",
                messages.stream(accounts.STREAM, tenant, subject),
                _ERASED,
            )
        )

    async def _said_since(self, tenant: str, subject: str, position: int) -> bool:
        said: bool = await self._database.fetchval(
            f"select exists (select from undrift.events e where e.pos > $3 and {_MINE} and e.topic = any ($4))",
            tenant,
            subject,
            position,
            _PERSONAL,
        )
        return said

    async def _read_models(self, position: int) -> None:
        """They forget as they fold what the log says. Bytes are not taken from under files that are still listed."""
        if not await folded(self._store, position, 10.0):
            log.warning("the read models have not come to an erasure yet", position=position)

    async def _forget_rows(self, tenant: str, subject: str) -> None:
        """The clients' own words: idempotency keys, lines of jobs; and messages to webhooks that are under way."""
        principals = [f"user:{subject}"]
        principals += [f"device:{device}" for device in await self._of(tenant, subject, "devices.registered")]
        await self._database.fetchval("select undrift.forget_principals($1, $2)", tenant, principals)
        jobs = await self._of(tenant, subject, "jobs.queued")
        await self._database.execute("delete from undrift.job_logs where tenant = $1 and job = any ($2)", tenant, jobs)
        if await self._database.fetchval("select to_regclass('undrift.deliveries') is not null"):
            await self._database.execute(
                "update undrift.deliveries d set error = null,"
                " state = case when d.state = 'pending' then 'dropped' else d.state end"
                " from undrift.events e where d.tenant = $1 and d.position = e.pos and e.topic <> $3"
                f" and (d.state = 'pending' or d.error is not null) and {_MINE}",
                tenant,
                subject,
                _ERASED,
            )

    async def _delete_bytes(self, tenant: str, subject: str) -> int:
        """Bytes that nobody else holds, and uploads with their chunks; how many blobs there were."""
        files = Uploads(self._directory / "uploads")
        for row in await self._database.fetch(
            "select id from undrift.uploads where tenant = $1 and owner = $2", tenant, subject
        ):
            await asyncio.to_thread(files.remove, row["id"])
            await self._database.execute("delete from undrift.uploads where id = $1", row["id"])
        rows = await self._database.fetch(
            "select blake3 from undrift.stored where tenant = $1 and owner = $2"
            " union select blake3 from undrift.dropped where tenant = $1 and owner = $2",
            tenant,
            subject,
        )
        for row in rows:
            await self._delete_one(tenant, subject, row["blake3"])
        return len(rows)

    async def _delete_one(self, tenant: str, subject: str, digest: str) -> None:
        """Others may hold the same bytes, or be about to."""
        async with self._database.transaction() as connection:
            await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", digest)
            for table in ("stored", "dropped"):
                await connection.execute(
                    f"delete from undrift.{table} where tenant = $1 and owner = $2 and blake3 = $3",
                    tenant,
                    subject,
                    digest,
                )
            needed = await connection.fetchval(
                "select exists (select from undrift.stored where blake3 = $1)"
                " or exists (select from undrift.dropped where blake3 = $1)"
                " or exists (select from undrift.uploads where blake3 = $1)",
                digest,
            )
            if not needed and self._contents is not None:
                await asyncio.to_thread(self._contents.delete, digest)

    async def _erase_messages(self, tenant: str, subject: str, position: int) -> int | None:
        """Overwrites the person's messages in JetStream, but for the one that says that they are erased. How many there
        were; None where JetStream was not asked, or has not come to that position."""
        if self._stream is None or (state := await self._reached(position)) is None:
            return None
        count, oldest = await self._relayed(tenant, subject, state.first, position)
        if count > self._overwrites:
            if oldest is not None and await self._is_readable(oldest):
                log.warning("the stream is made anew: overwriting takes longer", messages=count)
                await self._stream.delete()
                if await self._reached(position, _REFILLS_S) is None:
                    return None
            return count
        erased, after = 0, state.first - 1
        while sequences := await self._sequences(tenant, subject, after, position):
            await _at_once(self._stream.erase, sequences)
            erased, after = erased + len(sequences), sequences[-1]
        await self._stream.purge(subjects.person(tenant, subject), before=position)
        return erased

    async def _reached(self, position: int, patience_s: float = _RELAYS_S) -> jetstream.State | None:
        """What the relay packed before it heard of the erasure is there once the stream has come to it."""
        assert self._stream is not None
        for _ in range(int(patience_s / _LOOK_S)):
            state = await self._stream.state()
            if state is not None and state.last >= position:
                return state
            await asyncio.sleep(_LOOK_S)
        return None

    async def _relayed(self, tenant: str, subject: str, first: int, until: int) -> tuple[int, int | None]:
        """How many events of theirs are in the stream, and the first that has something personal."""
        row = await self._database.fetchrow(
            "select count(*), min(e.pos) filter (where e.topic = any ($6)) from undrift.events e"
            f" where e.pos >= $3 and e.pos <= $4 and e.topic <> $5 and {_MINE}",
            tenant,
            subject,
            first,
            until,
            _ERASED,
            _PERSONAL,
        )
        assert row is not None
        return row[0], row[1]

    async def _is_readable(self, sequence: int) -> bool:
        """Whether a message is not as it would be relayed now."""
        assert self._stream is not None
        stored = await self._stream.message(sequence)
        [note] = await self._store.read_raw(sequence - 1, 1)
        return stored is not None and stored.data != self._store.mapper.clear(note)

    async def _sequences(self, tenant: str, subject: str, after: int, until: int) -> list[int]:
        rows = await self._database.fetch(
            f"select e.pos from undrift.events e where e.pos > $3 and e.pos <= $4 and e.topic <> $5 and {_MINE}"
            " order by e.pos limit $6",
            tenant,
            subject,
            after,
            until,
            _ERASED,
            _PAGE,
        )
        return [row["pos"] for row in rows]


async def _at_once(work: Any, each: Sequence[int]) -> None:
    """Some at a time."""
    for start in range(0, len(each), _AT_ONCE):
        await asyncio.gather(*(work(one) for one in each[start : start + _AT_ONCE]))


async def folded(store: Store, position: int, timeout_s: float) -> bool:
    """Whether every read model of this program comes to a position in time."""
    names, generations = [one.NAME for one in ALL], [one.GENERATION for one in ALL]
    try:
        async with asyncio.timeout(timeout_s):
            while not await store.database.fetchval(
                "select coalesce(bool_and(t.pos >= $3), false) and count(t.pos) = cardinality($1::text[])"
                " from unnest($1::text[], $2::int[]) as p(name, generation)"
                " left join undrift.tracking t on t.projection = p.name and t.generation = p.generation",
                names,
                generations,
                position,
            ):
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False
    return True


async def honour(store: Store, directory: Path) -> int:
    """Before anything is served: whoever is on the list and not erased in this log, which an older one was restored in
    the place of, is erased from it again. The last position where it says so, 0 where there was nothing to do."""
    eraser = Eraser(store, directory)
    pending = await eraser.pending()
    for entry in pending:
        log.info("a person is erased from this log", subject=entry.subject)
    return max([await eraser.withdraw(entry.tenant, entry.subject) for entry in pending], default=0)


async def unfinished(store: Store, directory: Path) -> list[str]:
    """What a doctor says of each person who is not erased everywhere."""
    found = [f"{entry.subject} is not erased everywhere yet" for entry in await Eraser(store, directory).pending()]
    entries = Erasures(directory).all()
    tenants, subjects = [entry.tenant for entry in entries], [entry.subject for entry in entries]
    rows = await store.database.fetch(_LEFT, tenants, subjects)
    return found + [f"{row['subject']} is erased and has {row['what']}" for row in rows]
