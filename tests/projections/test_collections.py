"""The read model of collections: items as their last events say, and what each job did to them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from domain import collections, items, messages
from infra.eventstore.mapper import MAX_BYTES
from infra.eventstore.store import Store, Wish
from projections import collections as read
from services import projector
from tests.projections.histories import ended, open_store

Command = tuple[str, str, dict[str, Any] | None]


class Site:
    """A log, and the read model brought up to it on demand."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._read = 0

    async def say(self, job: str, *commands: Command, collection: str = "c", tenant: str = "main") -> None:
        """A job's puts, and removes where there is no content."""
        wishes = []
        for entity, item, content in commands:
            id, names = items.stream_id(collection, entity, item), (collection, entity, item)
            if content is None:
                wishes.append(Wish(items, id, items.Remove(*names, "deleted", "outside")))
                continue
            text = items.canonical(content)
            wishes.append(Wish(items, id, items.Put(*names, Raw(text), items.digest(text), None, "outside")))
        metadata = messages.Metadata(actor=job)
        await self.store.execute_all(wishes, tenant=tenant, metadata=metadata)

    async def fold(self, page: int = 1000) -> None:
        while events := await self.store.read(self._read, page):
            async with self.store.database.transaction() as connection:
                await projector.fold_page(connection, read, read.SCHEMA, events)
            self._read = events[-1].position

    async def items(self, **more: Any) -> list[tuple[str, str, int, Any]]:
        await self.fold()
        found = await read.page(self.store.database, "main", "c", 1000, **more)
        return [(one.entity, one.item, one.number, one.content and msgspec.json.decode(one.content)) for one in found]

    async def outcomes(self, job: str) -> list[tuple[str, int, int, str]]:
        await self.fold()
        found = await read.outcomes(self.store.database, "main", job, 1000)
        return [(one.item, one.before, one.after, one.op) for one in found]


@pytest.fixture
async def site(database: str) -> AsyncIterator[Site]:
    async with open_store(database) as store:
        await projector.prepare(store.database, [read])
        writing = asyncio.create_task(store.writer.run())
        try:
            yield Site(store)
        finally:
            await ended(writing)


async def test_an_item_is_as_its_last_event_says(site: Site) -> None:
    await site.say("job:1", ("a", "1", {"v": 1}), ("a", "2", {"v": 1}))
    await site.say("job:2", ("a", "1", {"v": 2}), ("a", "2", None))
    assert await site.items() == [("a", "1", 2, {"v": 2})]
    assert await site.items(deleted=True) == [("a", "1", 2, {"v": 2}), ("a", "2", 2, None)]
    found = await read.get(site.store.database, "main", "c", "a", "2")
    assert found is not None
    assert (found.deleted, found.hash, found.content, found.job) == (True, None, None, "2")


async def test_what_a_job_did_is_what_it_came_to(site: Site) -> None:
    await site.say("job:1", ("a", "kept", {}), ("a", "gone", {}), ("a", "back", {}), ("a", "changed", {"v": 0}))
    for value in (1, 2):
        await site.say("job:2", ("a", "changed", {"v": value}), ("a", "new", {"v": value}))
    await site.say("job:2", ("a", "gone", None), ("a", "back", None), ("a", "brief", {}))
    await site.say("job:2", ("a", "brief", None), ("a", "back", {"v": 9}))
    assert await site.outcomes("2") == [
        ("back", 1, 3, "updated"),
        ("brief", 0, 2, "none"),
        ("changed", 1, 3, "updated"),
        ("gone", 1, 2, "deleted"),
        ("new", 0, 2, "created"),
    ]
    assert [op for *_, op in await site.outcomes("1")] == ["created"] * 4


async def test_what_no_job_did_is_nobodys_outcome(site: Site) -> None:
    await site.say("hook:c", ("a", "1", {}))
    assert [(one.item, one.job) for one in await read.page(site.store.database, "main", "c", 9)] == []
    await site.fold()
    assert [(one.item, one.job) for one in await read.page(site.store.database, "main", "c", 9)] == [("1", None)]
    assert await site.store.database.fetchval(f"select count(*) from {read.SCHEMA}.outcomes") == 0


async def test_pages_go_on_behind_the_last(site: Site) -> None:
    names = [(entity, f"{number}") for entity in ("a", "b") for number in range(5)]
    await site.say("job:1", *((entity, item, {}) for entity, item in names))
    found: list[tuple[str, str]] = []
    await site.fold()
    after = ("", "")
    while page := await read.page(site.store.database, "main", "c", 3, after=after):
        found += [(one.entity, one.item) for one in page]
        after = found[-1]
    assert found == names
    assert [item for _, item, _, _ in await site.items(entity="b", after=("b", "2"))] == ["3", "4"]


async def test_collections_count_their_items(site: Site) -> None:
    await site.say("job:1", ("a", "1", {}), ("a", "2", {}), ("b", "1", {}))
    await site.say("job:2", ("a", "1", None), ("b", "1", None))
    await site.say("job:1", ("x", "1", {}), collection="d")
    await site.say("job:1", ("x", "1", {}), collection="c", tenant="other")
    await site.store.execute(collections, "d", collections.Observe(Raw(b"1"), "config", True))
    await site.fold()
    found = await read.list_(site.store.database, "main")
    assert [(row.id, row.complete, counts) for row, counts in found] == [
        ("c", False, {"a": 1, "b": 0}),
        ("d", True, {"x": 1}),
    ]
    assert isinstance(found[1][0].observed_at, datetime)
    assert [row.id for row, _ in await read.list_(site.store.database, "other")] == ["c"]
    assert await read.exists(site.store.database, "main", "c")
    assert not await read.exists(site.store.database, "other", "d")


async def test_the_largest_item_and_the_longest_names_fit(site: Site) -> None:
    name = "é" * items.MAX_NAME
    await site.say("job:" + "j" * 36, (name, name, {"v": "x" * (items.MAX_BYTES - len('{"v":""}'))}))
    assert [(entity, item) for entity, item, _, _ in await site.items()] == [(name, name)]
    assert items.MAX_BYTES < MAX_BYTES


@pytest.mark.parametrize("seed", range(3))
async def test_it_agrees_with_a_model(site: Site, seed: int) -> None:
    """Against a dictionary, whatever the pages."""
    pick = random.Random(seed)
    model: dict[tuple[str, str], Any] = {}
    touched: dict[str, dict[str, tuple[bool, bool]]] = {}
    for _ in range(60):
        job = f"{pick.randrange(5)}"
        commands = {
            ("a", f"{pick.randrange(12)}"): pick.choice((None, {"v": 1}, {"v": 2})) for _ in range(pick.randrange(1, 6))
        }
        await site.say(f"job:{job}", *((*name, content) for name, content in commands.items()))
        for name, content in commands.items():
            if model.get(name) != content:
                was = touched.setdefault(job, {}).get(name[1], (name in model, False))[0]
                touched[job][name[1]] = was, content is not None
                model.pop(name, None)
                model |= {} if content is None else {name: content}
        if pick.random() < 0.3:
            await site.fold(pick.randrange(1, 50))
    assert {(entity, item): content for entity, item, _, content in await site.items()} == model
    names = {(False, True): "created", (True, True): "updated", (True, False): "deleted", (False, False): "none"}
    for job, found in touched.items():
        expected = {item: names[ends] for item, ends in found.items()}
        assert expected == {item: op for item, _, _, op in await site.outcomes(job)}
