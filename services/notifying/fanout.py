"""Makes a row for each message of each endpoint, in log order, in the transaction that moves the notifier's place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog
from msgspec import Struct

from domain import catalogue, messages, webhooks
from infra.db import CONNECTION_LOST
from infra.eventstore.store import Store
from infra.tail import Tail
from services import deliverable
from services.notifying.directory import Directory
from services.notifying.ledger import Health
from services.notifying.rows import Connection, Key, Own, Row

log = structlog.get_logger("notifier")

NAME = "notifier"
_PAGE = 500

_MOVE = "update undrift.tracking set pos = $2 where projection = 'notifier' and generation = 1 and pos = $1 returning 1"
_MOVE_REPLAY = (
    "update undrift.replays set pos = $2 where pos = $1 and tenant = $3 and endpoint = $4 and replay = $5 returning 1"
)
# Each endpoint's numbers go on from its last one, and its rows count back from there.
_INSERT = """
with numbered as (
    insert into undrift.endpoints as e (tenant, endpoint, seq)
    select g.tenant, g.endpoint, g.n from unnest($1::text[], $2::text[], $3::bigint[]) as g(tenant, endpoint, n)
    on conflict (tenant, endpoint) do update set seq = e.seq + excluded.seq
    returning e.tenant, e.endpoint, e.seq
), made as (
    insert into undrift.deliveries (tenant, endpoint, seq, position, name, stream, message, replay)
    select n.tenant, n.endpoint, n.seq - r.back, r.position, r.name, r.stream, r.message, r.replay
    from unnest($4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[], $11::text[])
        as r(tenant, endpoint, back, position, name, stream, message, replay)
    join numbered n on n.tenant = r.tenant and n.endpoint = r.endpoint
)
select tenant, endpoint, seq from numbered
"""


class Overtaken(Exception):
    """The place is not where this notifier left it: another has moved it."""


class Known(Struct, frozen=True):
    """What is kept of an endpoint: its last number, and how it fares."""

    seq: int
    health: Health


class Fanout:
    """`offer` gets the rows of an endpoint that were just made, `forget` an endpoint that was deleted."""

    def __init__(
        self,
        own: Own,
        store: Store,
        tail: Tail,
        retry_s: float,
        offer: Callable[[Key, Sequence[Row]], None],
        forget: Callable[[Key], None],
    ) -> None:
        self._own, self._store, self._tail, self._retry_s = own, store, tail, retry_s
        self._offer, self._forget = offer, forget
        self._noted = 0
        self._replaying = asyncio.Event()
        self._replaying.set()
        self.directory = Directory()
        self.position = 0

    async def load(self) -> dict[Key, Known]:
        """Where it is, and the endpoints there: what is kept of each."""
        async with self._own.use() as connection:
            self.position = self._noted = await _place(connection, self._store)
            rows = await connection.fetch(
                "select tenant, endpoint, seq, failures, failing_since, held_until from undrift.endpoints"
            )
        found = {(row["tenant"], row["endpoint"]): Known(row["seq"], Health(*row[3:])) for row in rows}
        self.directory = await Directory.at(self._store, found, self.position)
        return found

    async def run(self) -> None:
        """Serves until cancelled. Raises Overtaken when another notifier has moved the place."""
        while True:
            subscription = self._tail.subscribe(self.position)
            try:
                async for page in subscription:
                    for start in range(0, len(page), _PAGE):
                        await self._again(page[start : start + _PAGE])
            finally:
                subscription.close()

    async def _again(self, page: Sequence[messages.Recorded]) -> None:
        """A page, as often as need be: it takes effect once."""
        told = self._told(page)
        while True:
            try:
                return await self._fan_out(page, told)
            except CONNECTION_LOST as error:
                log.warning("the notifier waits for Postgres", reason=type(error).__name__)
                await asyncio.sleep(self._retry_s)

    async def note(self) -> None:
        """Writes down where it is, if it came there without anything to do."""
        if self.position > self._noted:
            async with self._own.use() as connection:
                reached = self.position  # it goes on meanwhile
                if await connection.fetchval(_MOVE, self._noted, reached) is None:
                    raise Overtaken
                self._noted = reached

    def _told(self, page: Sequence[messages.Recorded]) -> dict[Key, list[Row]]:
        """What each endpoint is sent; endpoints without anything are those that are new."""
        found: dict[Key, list[Row]] = {}
        for recorded in page:
            key = self.directory.follow(recorded)
            if key is not None and isinstance(recorded.event, webhooks.Subscribed):
                found.setdefault(key, [])
            for name, endpoints in self.directory.told(recorded):
                message = deliverable.message_id(recorded, name)
                for endpoint in endpoints:
                    found.setdefault((recorded.tenant, endpoint), []).append(_row(recorded, name, message))
        return found

    async def _fan_out(self, page: Sequence[messages.Recorded], told: dict[Key, list[Row]]) -> None:
        """When the connection is lost at the end and it was done all the same, the next try is overtaken by it."""
        last = page[-1].position
        special = [one for one in page if isinstance(one.event, webhooks.Replayed | webhooks.Deleted)]
        if not (told or special):
            self.position = last
            return
        async with self._own.use() as connection, connection.transaction():
            if await connection.fetchval(_MOVE, self._noted, last) is None:
                raise Overtaken
            seqs = await _insert(connection, told) if told else {}
            for one in special:
                await _special(connection, one)
        self._noted = self.position = last
        self._hand_over(told, seqs)
        for one in special:
            if isinstance(one.event, webhooks.Deleted):
                self._forget((one.tenant, one.id))
            else:
                self._replaying.set()

    def _hand_over(self, told: dict[Key, list[Row]], seqs: dict[Key, int]) -> None:
        for key, rows in told.items():
            for seq, row in enumerate(rows, start=seqs[key] - len(rows) + 1):
                row.seq = seq
            self._offer(key, rows)

    # Replays.

    async def replay(self) -> None:
        """Serves until cancelled: page by page, between those of what happens now."""
        while True:
            await self._replaying.wait()
            self._replaying.clear()
            try:
                while await self._replay_pages():
                    pass
            except CONNECTION_LOST as error:
                log.warning("the notifier waits for Postgres", reason=type(error).__name__)
                self._replaying.set()
                await asyncio.sleep(self._retry_s)

    async def _replay_pages(self) -> bool:
        """One page of each replay; whether there was any."""
        async with self._own.use() as connection:
            replays = await connection.fetch("select tenant, endpoint, replay, pos, until, names from undrift.replays")
        for tenant, endpoint, replay, position, until, names in replays:
            await self._replay_page((tenant, endpoint), replay, position, until, names)
        return bool(replays)

    async def _replay_page(self, key: Key, replay: str, position: int, until: int, names: Sequence[str]) -> None:
        page = await self._store.read(position, _PAGE, until=until) if position < until else []
        rows = [
            _row(one, name, deliverable.message_id(one, name, replay), replay)
            for one in page
            if one.tenant == key[0]
            for name in deliverable.names_of(one)
            if catalogue.matches(names, name)
        ]
        last = page[-1].position if page else until
        async with self._own.use() as connection, connection.transaction():
            if await connection.fetchval(_MOVE_REPLAY, position, last, *key, replay) is None:
                return  # the endpoint was deleted, or another notifier goes on with it
            seqs = await _insert(connection, {key: rows}) if rows else {}
            if last >= until:
                await connection.execute(
                    "delete from undrift.replays where tenant = $1 and endpoint = $2 and replay = $3", *key, replay
                )
        if rows:
            self._hand_over({key: rows}, seqs)


async def _place(connection: Connection, store: Store) -> int:
    """Where it has come to; before the first endpoint there is nothing to be told."""
    place: int | None = await connection.fetchval(
        f"select pos from undrift.tracking where projection = '{NAME}' and generation = 1"
    )
    if place is not None:
        return place
    head = await store.head()
    first = await connection.fetchval("select min(pos) from undrift.events where topic = 'webhooks.subscribed'")
    await connection.execute(
        "insert into undrift.tracking values ($1, 1, $2) on conflict do nothing",
        NAME,
        head if first is None or first > head else first - 1,
    )
    return await _place(connection, store)


async def _insert(connection: Connection, told: dict[Key, list[Row]]) -> dict[Key, int]:
    """The last number of each endpoint now."""
    of = [(key, row, len(rows) - n) for key, rows in told.items() for n, row in enumerate(rows, start=1)]
    rows = await connection.fetch(
        _INSERT,
        [tenant for tenant, _ in told],
        [endpoint for _, endpoint in told],
        [len(rows) for rows in told.values()],
        [key[0] for key, _, _ in of],
        [key[1] for key, _, _ in of],
        [back for _, _, back in of],
        [row.position for _, row, _ in of],
        [row.name for _, row, _ in of],
        [row.stream for _, row, _ in of],
        [row.message for _, row, _ in of],
        [row.replay for _, row, _ in of],
    )
    return {(row["tenant"], row["endpoint"]): row["seq"] for row in rows}


async def _special(connection: Connection, recorded: messages.Recorded) -> None:
    key, event = (recorded.tenant, recorded.id), recorded.event
    if isinstance(event, webhooks.Replayed):
        await connection.execute(
            "insert into undrift.replays values ($1, $2, $3, $4, $5, $6)",
            *key,
            event.replay,
            event.first - 1,
            event.until,
            list(event.events),
        )
        return
    await connection.execute(
        "update undrift.deliveries set state = 'dropped', last_at = clock_timestamp()"
        " where tenant = $1 and endpoint = $2 and state = 'pending'",
        *key,
    )
    await connection.execute("delete from undrift.replays where tenant = $1 and endpoint = $2", *key)
    await connection.execute("delete from undrift.endpoints where tenant = $1 and endpoint = $2", *key)


def _row(recorded: messages.Recorded, name: str, message: str, replay: str | None = None) -> Row:
    return Row(0, recorded.position, name, recorded.stream, message, replay, event=recorded)
