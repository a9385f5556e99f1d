"""What is read about the network: people, servers, what a sync saw of them, and the parity."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from domain import items, jobs, messages, network
from domain.plans import network as plan
from infra.eventstore.store import Store
from projections import network as read
from projections.table import schema
from services import projector
from tests.doubles import network_oracle
from tests.doubles.directories import User
from tests.projections.histories import T0, World, fill, open_store


class Told:
    """Says commands and applies what comes of them."""

    def __init__(self, store: Store) -> None:
        self.database = store.database
        self._store, self._world = store, World(0)
        self._versions: dict[str, int] = {}
        self._position = 0
        self._jobs = 0

    async def say(self, context: Any, id: str, *commands: messages.Command, tenant: str = "main") -> list[Any]:
        said = [event for command in commands for event in self._world.say(context, tenant, id, command)]
        await fill(self.database, said, self._versions)
        events = await self._store.read(self._position, 1000)
        async with self.database.transaction() as connection:
            await projector.fold_page(connection, read, schema(read), events)
        self._position += len(events)
        assert await self.database.fetch("select * from undrift.parked") == []
        return events

    async def put(self, entity: str, id: str, content: Any, collection: str = "network", tenant: str = "main") -> None:
        text = items.canonical(content)
        command = items.Put(collection, entity, id, Raw(text), items.digest(text), None, "network")
        await self.say(items, items.stream_id(collection, entity, id), command, tenant=tenant)

    async def remove(self, entity: str, id: str) -> None:
        command = items.Remove("network", entity, id, "deleted", "network")
        await self.say(items, items.stream_id("network", entity, id), command)

    async def synced(self, *servers: plan.Sighting, integration: str = "network") -> datetime:
        """When it was."""
        self._jobs += 1
        id = f"job-{self._jobs}"
        ticket = jobs.Ticket(job=id, kind="network", type="full_sync", lane="now", integration=integration)
        result = plan.Result(0, len(servers), 0, None, servers)
        events = await self.say(
            jobs,
            id,
            jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))),
            jobs.Start(fence=1, worker="w", at=T0),
            jobs.Complete(jobs.Counters(), Raw(msgspec.json.encode(result)), 1),
        )
        at: datetime = events[-1].recorded_at
        return at

    async def servers(self, *, unavailable: bool = True) -> list[read.Seen]:
        return await read.servers(self.database, "main", unavailable=unavailable)


@pytest.fixture
async def told(database: str) -> AsyncIterator[Told]:
    async with open_store(database) as store:
        await projector.prepare(store.database)
        yield Told(store)


def machine(id: str, **more: Any) -> dict[str, Any]:
    return network_oracle.server({"server_id": id, "ip_address": "10.0.0.1", **more})


async def test_servers_are_listed_by_index_and_stay_when_they_vanish(told: Told) -> None:
    await told.put("servers", "b", machine("b", server_index=1))
    await told.put("servers", "a", machine("a", server_index=2))
    await told.remove("servers", "b")
    await told.put("servers", "other", machine("other"), collection="elsewhere")
    await told.put("servers", "foreign", machine("foreign"), tenant="second")
    found = await told.servers()
    assert [(one.server.id, one.server.available) for one in found] == [("b", False), ("a", True)]
    assert [one.server.id for one in await told.servers(unavailable=False)] == ["a"]
    await told.put("servers", "b", machine("b", port=7))
    assert [(one.server.port, one.server.available) for one in await told.servers()] == [(7, True), (50000, True)]


async def test_a_server_keeps_the_type_it_came_with(told: Told) -> None:
    await told.put("servers", "a", machine("a", server_type="QMAIL"))
    await told.put("servers", "a", machine("a", server_type="OTHER", region="EU"))
    [one] = await told.servers()
    assert (one.server.server_type, one.server.region) == ("QMAIL", "EU")


async def test_what_a_sync_saw(told: Told) -> None:
    for id in "abc":
        await told.put("servers", id, machine(id))
    assert [one.seen_at for one in await told.servers()] == [None] * 3
    first = await told.synced(plan.Sighting("a", 3, checked=True), plan.Sighting("b", None, checked=True))
    await told.remove("servers", "b")
    second = await told.synced(plan.Sighting("a"), plan.Sighting("c", 5, checked=True))
    await told.synced(plan.Sighting("a", 99, checked=True), integration="another")
    found = [(one.seen_at, one.ping_ms, one.checked_at) for one in await told.servers()]
    assert found == [(second, 3, first), (first, None, first), (second, 5, second)]


async def test_one_server_keeps_the_parity(told: Told) -> None:
    assert await read.parity(told.database, "main") is None
    await told.put("servers", "a", machine("a"))
    await told.put("servers", "b", machine("b"))
    await told.say(network, "network", network.DesignateIfNone("b"), network.DesignateIfNone("a"))
    assert [one.use_for_parity for one in await told.servers()] == [False, True]
    await told.say(network, "network", network.Designate("a"))
    await told.remove("servers", "a")
    found = await read.parity(told.database, "main")
    assert found is not None
    assert (found.server.id, found.server.available, found.use_for_parity) == ("a", False, True)
    assert await read.parity(told.database, "second") is None


async def test_users_are_found(told: Told) -> None:
    for serial, first in (("C23", "Ada"), ("A", "Zoë"), ("B", "100%_")):
        person = network_oracle.user(User(serial, first, "Lovelace"))
        await told.put("users", str(person["serial_number"]), person)

    async def found(text: str, limit: int = 20) -> list[int]:
        return [one.serial_number for one in await read.search(told.database, "main", text, limit)]

    assert await found("LOVE") == [10, 11, 12355]
    assert await found("love", 2) == [10, 11]
    assert await found("zOË") == [10]
    assert await found("#c23.giga") == [12355]
    assert await found("100%_") == [11]
    assert await found("1__%") == await found("\\") == []
    await told.remove("users", "12355")
    assert await found("ada") == []
    assert await read.search(told.database, "second", "love", 20) == []
