"""Random histories of everything there is, made by the deciders, and logs filled with them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Raw, Struct

from domain import collections, errors, events, integrations, items, jobs, keys, messages, network, tenants
from domain.plans import network as network_plan
from domain.policies import Policy
from domain.schedules import Schedule
from infra import config
from infra.bus import Bus
from infra.db import Database
from infra.eventstore.mapper import Draft, Mapper
from infra.eventstore.migrate import migrate
from infra.eventstore.recorder import Append, Write, append_group, prepare
from infra.eventstore.store import Store
from infra.eventstore.writer import Writer
from infra.secrets import Keyring
from infra.tail import Tail
from projections.table import Connection
from tests.projections import people

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SOON = T0 + timedelta(days=400)
TENANTS = ("main", "second")
MASTER = b"m" * 32
SCHEDULES = (
    None,
    Schedule(cron="30 2 * * *", time_zone="Europe/Berlin", overlap="skip"),
    Schedule(every=30, full_cron="0 3 * * 0", overlap="cancel_other", jitter=5),
    Schedule(full_every=60, catch_up="none"),
)


class Said(Struct, frozen=True):
    """An event that is to be appended."""

    context: Any
    tenant: str
    id: str
    event: messages.Event

    @property
    def stream(self) -> str:
        return messages.stream(self.context.STREAM, self.tenant, self.id)

    @property
    def owner(self) -> str:
        return people.owner(self.context, self.id)

    @property
    def metadata(self) -> messages.Metadata:
        owner = self.owner
        return messages.Metadata(owner=owner, subject=None if owner == "_" else owner)


class World:
    """Says commands at random and keeps what follows from them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._states: dict[tuple[str, str, str], Any] = {}
        self._people = people.People(self._random, self._state)

    def history(self, events: int) -> list[Said]:
        said: list[Said] = []
        while len(said) < events:
            said += self.say(*self._any())
        return said

    def say(self, context: Any, tenant: str, id: str, command: messages.Command) -> list[Said]:
        state = self._state(context, tenant, id)
        try:
            events = context.decide(command, state)
        except errors.Error:
            return []
        for event in events:
            state = context.evolve(state, event)
        self._states[context.STREAM, tenant, id] = state
        return [Said(context, tenant, id, event) for event in events]

    def _state(self, context: Any, tenant: str, id: str) -> Any:
        return self._states.get((context.STREAM, tenant, id), context.initial)

    def _any(self) -> tuple[Any, str, str, messages.Command]:
        pick = self._random
        tenant = pick.choice(TENANTS)
        kinds = {"jobs": 12, "items": 6, "network": 4, "collections": 1, "integrations": 3, "keys": 2, "tenants": 1}
        kinds |= people.WEIGHTS
        match pick.choices([*kinds], [*kinds.values()])[0]:
            case "jobs":
                id = f"job-{pick.randrange(40)}"
                return jobs, tenant, id, self._job(id)
            case "items":
                return self._item(tenant)
            case "network":
                return self._network(tenant)
            case "collections":
                observe = collections.Observe(Raw(b"%d" % pick.randrange(9)), "config", pick.random() < 0.5)
                return collections, tenant, f"i{pick.randrange(4)}", observe
            case "integrations":
                id = f"i{pick.randrange(4)}"
                return integrations, tenant, id, self._integration(id)
            case "keys":
                id = f"key-{pick.randrange(6)}"
                add = keys.Add(f"{id} né", f"{pick.randrange(2**32):064x}", ("admin",), ("a", "b"))
                return keys, tenant, id, pick.choice((add, add, keys.Revoke()))
            case "tenants":
                id = f"t{pick.randrange(6)}"
                return tenants, tenants.FIRST, id, tenants.Add(id)
            case kind:
                return self._people.any(kind, tenant)

    def _network(self, tenant: str) -> tuple[Any, str, str, messages.Command]:
        """People, servers, runs and the parity of the RAIDA network."""
        pick = self._random
        server, number = f"RAIDA{pick.randrange(5)}", pick.randrange(5)
        match pick.choice(("user", "server", "server", "gone", "run", "parity")):
            case "user":
                return items, tenant, *self._record("users", str(number), _person(number, pick.choice("ab")))
            case "server":
                return items, tenant, *self._record("servers", server, _machine(server, pick.randrange(3)))
            case "gone":
                entity, id = pick.choice((("users", str(number)), ("servers", server)))
                remove = items.Remove(network.NAME, entity, id, "deleted", "network")
                return items, tenant, items.stream_id(network.NAME, entity, id), remove
            case "run":
                return jobs, tenant, f"run-{pick.randrange(9)}", self._run()
            case _:
                return network, tenant, network.NAME, pick.choice((network.Designate, network.DesignateIfNone))(server)

    def _record(self, entity: str, id: str, content: Any) -> tuple[str, messages.Command]:
        text = items.canonical(content)
        put = items.Put(network.NAME, entity, id, Raw(text), items.digest(text), None, "network")
        return items.stream_id(network.NAME, entity, id), put

    def _run(self) -> messages.Command:
        pick = self._random
        ticket = jobs.Ticket(job="run", kind="network", type="full_sync", lane="now", integration=network.NAME)
        seen = tuple(
            network_plan.Sighting(f"RAIDA{n}", pick.choice((None, 7)), pick.random() < 0.7)
            for n in range(pick.randrange(5))
        )
        result = network_plan.Result(0, len(seen), 0, None, seen)
        return pick.choice(
            (
                jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))),
                jobs.Start(fence=pick.randrange(1, 1000), worker="w", at=T0),
                jobs.Complete(jobs.Counters(), Raw(msgspec.json.encode(result)), 1),
            )
        )

    def _job(self, id: str) -> messages.Command:
        pick = self._random
        ticket = jobs.Ticket(
            job=id,
            kind="files",
            type=pick.choice(("full_sync", "incremental_sync", "selective_sync")),
            lane=pick.choice(("now", "later")),
            integration=pick.choice((None, *(f"i{n}" for n in range(4)))),
        )
        scheduled = pick.random() < 0.4
        queued = jobs.Queued(
            ticket=ticket,
            spec=Raw(b"{}"),
            waited=pick.random() < 0.2,
            trigger="schedule" if scheduled else "request",
            due=T0 if scheduled else None,
            estimated_ms=pick.randrange(1000),
        )
        counters = jobs.Counters(*(pick.randrange(100) for _ in range(6)))
        return pick.choice(
            (
                jobs.Queue(queued),
                jobs.Queue(queued),
                jobs.Start(fence=pick.randrange(1, 1000), worker="w", at=T0),
                jobs.Start(fence=pick.randrange(1, 1000), worker="w", at=T0),
                jobs.Progress(pick.choice(("scanning", "copying")), pick.randrange(100), counters),
                jobs.Progress(pick.choice(("scanning", "copying")), pick.randrange(100), counters),
                jobs.Stop(pick.random() < 0.5),
                jobs.EndStop(counters),
                jobs.Hold("much", "plan", counters, {"deletions": 3}),
                jobs.Pause("shutdown"),
                jobs.Pause("no answer", pick.choice((None, "remote_busy")), T0, pick.choice((None, counters))),
                jobs.Resume(None, pick.random() < 0.5),
                jobs.Resume(None, pick.random() < 0.5, T0),
                jobs.Complete(counters, Raw(b'{"ok":true}'), pick.randrange(10_000)),
                jobs.Complete(counters, Raw(b'{"ok":true}'), pick.randrange(10_000)),
                jobs.Fail("sync_failed", "näo\n", counters, {"path": "a"}),
                jobs.Delete(),
            )
        )

    def _item(self, tenant: str) -> tuple[Any, str, str, messages.Command]:
        pick = self._random
        name = f"i{pick.randrange(4)}", pick.choice(("things", "people")), f"{pick.randrange(8)} né\t'"
        if pick.random() < 0.3:
            return items, tenant, items.stream_id(*name), items.Remove(*name, "deleted", "outside")
        content = items.canonical({"value": pick.randrange(3), "text": "\0näo"})
        put = items.Put(*name, Raw(content), items.digest(content), None, "outside")
        return items, tenant, items.stream_id(*name), put

    def _integration(self, id: str) -> messages.Command:
        pick = self._random
        config = Raw(pick.choice((b'{"a":1}', b'{"a":2}')))
        return pick.choice(
            (
                integrations.Create(id, f"named {id}", "files", config, pick.choice((None, 60))),
                integrations.Create(id, f"named {id}", "files", config, 3600, declared=True),
                integrations.Change(name=pick.choice("xy")),
                integrations.Change(interval=pick.choice((None, 30, 60))),
                integrations.Change(schedule=pick.choice(SCHEDULES), policy=pick.choice((None, Policy(attempts=2)))),
                integrations.Miss(T0 + timedelta(days=pick.randrange(9)), pick.choice(("main", "full")), None, SOON),
                integrations.Change(config=config),
                integrations.Start(),
                integrations.Stop(),
                integrations.Delete() if pick.random() < 0.3 else integrations.Start(),
            )
        )


def _person(number: int, name: str) -> dict[str, Any]:
    address = f"{name}.é@#{number}"
    return {"serial_number": number, "first_name": name, "last_name": "é", "auto_address": address, "class": "bit"}


def _machine(id: str, number: int) -> dict[str, Any]:
    return {
        "server_id": id,
        "ip_address": "10.0.0.1",
        "port": 50_000 + number,
        "server_index": number,
        "server_type": f"T{number}",
        "cost_per_mb": 0.5,
        "cost_per_8_weeks": 1.0,
        "percent_uptime": 99.5,
        "performance_benchmark_percentile": 0,
        "region": None,
        "description": "",
        "date_created": None,
    }


def mapper(keyring: Keyring) -> Mapper:
    return Mapper(events.REGISTRY, keyring=keyring)


async def fill(database: Database, said: Sequence[Said], versions: dict[str, int] | None = None) -> int:
    """Appends in that order; answers the head. `versions` remembers the streams' between calls."""
    known: dict[str, int] = {} if versions is None else versions
    keyring, last = Keyring(database, MASTER), 0
    for pair in {(one.tenant, one.owner) for one in said if one.owner != "_"}:
        await keyring.ensure(*pair)
    mapping = mapper(keyring)
    async with database.transaction() as connection:
        for one in said:
            known[one.stream] = version = known.get(one.stream, 0) + 1
            actor = f"job:job-{version % 3}" if one.context is items else f"key:{one.id}"
            metadata = msgspec.structs.replace(one.metadata, actor=actor)
            draft = Draft(one.tenant, one.stream, version, uuid4(), one.event, metadata)
            write = Write(one.stream, version - 1, [mapping.to_stored_event(draft)])
            [answer] = await append_group(connection, [prepare(Append(one.tenant, [write]))])
            assert not isinstance(answer, Exception), answer
            last = answer.last
    return last


async def tables(connection: Connection | Database, schema: str) -> dict[str, list[tuple[Any, ...]]]:
    """What is in the tables of a schema, in no order of its own."""
    names = await connection.fetch("select tablename from pg_tables where schemaname = $1 order by 1", schema)
    found = {}
    for (name,) in names:
        rows = await connection.fetch(f"select t::text from {schema}.{name} t")
        found[name] = sorted(tuple(row) for row in rows)
    return found


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    await migrate(url)  # a copy of a database has not the rights to it
    database = Database(url, 8)
    try:
        yield Store(database, mapper(Keyring(database, MASTER)), Writer(database, config.EventStore()))
    finally:
        await database.close()


@asynccontextmanager
async def open_tail(store: Store) -> AsyncIterator[Tail]:
    """A tail that reads Postgres only."""
    bus = Bus("nats://127.0.0.1:9")
    tail = Tail(store, bus, config.Tail(poll_s=0.05), b"k" * 32, 1, feed=False)
    await tail.start(0)
    try:
        yield tail
    finally:
        await tail.close()


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
