"""The same histories against the log: claims, streams and indexes say what the model says, as the read model does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from typing import Any

import pytest

from domain import library
from domain.library import File
from domain.plans.library import Known
from infra import secrets
from infra.db import Database
from infra.eventstore.store import Store, Wish
from projections import library as library_read
from services import projector
from services.gateway import changes_pages
from services.library_shelf import LogShelf
from services.shelf import Who
from tests.device.world import Log, World
from tests.projections.histories import ended, open_store


class Kept(Log):
    """A log in Postgres, followed here; each answer of the shelf is compared with the model's."""

    def __init__(self, database: Database, store: Store) -> None:
        super().__init__()
        self.database, self.store, self.shelf = database, store, LogShelf(database, store)

    async def there(self, who: Who, places: Collection[str]) -> Mapping[str, str]:
        found = await self.shelf.there(who, places)
        assert found == await super().there(who, places)
        return found

    async def files(self, who: Who, ids: Collection[str]) -> Mapping[str, File]:
        found = await self.shelf.files(who, ids)
        assert found == await super().files(who, ids)
        return found

    async def known(self, who: Who, places: Collection[str]) -> Mapping[str, Known]:
        found = await self.shelf.known(who, places)
        assert found == await super().known(who, places)
        return found

    async def conflicts(self, who: Who, places: Collection[str]) -> Sequence[library.ConflictFound]:
        found = await self.shelf.conflicts(who, places)
        expected = await super().conflicts(who, places)
        assert sorted(one.conflict for one in found) == sorted(one.conflict for one in expected)
        return found

    async def contents(self, who: Who, hashes: Collection[str]) -> Mapping[str, tuple[str, int]]:
        found = await self.shelf.contents(who, hashes)
        assert found == await super().contents(who, hashes)
        return found

    async def keep(self, who: Who, hash: str) -> None:
        await super().keep(who, hash)
        await self.database.execute(
            "insert into undrift.stored values ($1, $2, $3, $4, 1) on conflict do nothing",
            who.tenant,
            who.owner,
            hash,
            hash[::-1],
        )

    async def append(self, who: Who, wishes: Sequence[Wish]) -> int:
        position = await self.shelf.append(who, wishes)
        recorded = await self.store.read(len(self.events), 1000)
        for one in recorded:
            assert isinstance(one.event, library.Event)
            assert one.position == len(self.events) + 1
            for claim in library.claims(one.event):
                self._claim(self.claims, claim, one.id)
            self.states[one.id] = library.evolve(self.states.get(one.id, library.initial), one.event)
            self.events.append((one.id, one.event))
        return position


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        opened.mapper.keyring = secrets.Keyring(opened.database, b"m" * 32)
        writing = asyncio.create_task(opened.writer.run())
        await projector.prepare(opened.database, [library_read])
        yield opened
        await ended(writing)


@pytest.mark.parametrize("seed", [0, 44, 458])
async def test_the_log_answers_what_the_model_answers(store: Store, seed: int) -> None:
    loop = asyncio.get_running_loop()

    def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    log = Kept(store.database, store)
    world = World(seed, log=log, now=now)

    def play() -> None:
        world.play(120)
        world.settle()
        world.check()

    await asyncio.to_thread(play)
    recorded = await store.read(0, 10_000)
    async with store.database.transaction() as connection:  # only now: nothing of it was needed before
        await projector.fold_page(connection, library_read, library_read.SCHEMA, recorded)
    listed = await library_read.listing(store.database, "main", "user", len(log.events), "", 10_000)
    assert {one.path: one.hash for one in listed} == log.living()
    every = await changes_pages.one_by_one(store.database, ("main", "user"), 0, len(log.events), 10_000)
    assert [json.loads(told)["sequence"] for _, told in every] == [position for position, _ in every]
    first = await changes_pages.read(store.database, ("main", "user"), 0, len(log.events), 7)
    assert json.loads(b"[%b]" % first.changes) == [json.loads(told) for _, told in every[:7]]
    assert (first.last, first.has_more) == (every[6][0], True)
