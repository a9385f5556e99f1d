"""The past told from the log is what the read models held: at the head, and at any position before it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

import projections
from domain import devices, integrations, jobs, library, messages
from infra.eventstore.store import Store
from projections import devices as devices_read
from projections import integrations as integrations_read
from projections import jobs as jobs_read
from projections import library as library_read
from projections import library_past
from projections.table import Table, schema
from services import integrations_past, projector
from services.gateway import as_of
from tests.projections.histories import World, fill, open_store

Rows = dict[tuple[str, ...], Any]


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        yield opened


async def held(store: Store, table: Table[Any], name: str) -> Rows:
    """The rows of a read model now."""
    rows = await store.database.fetch(f"select * from {name}.{table.name}")
    return {tuple(row[column] for column in table.key): table.parse(row) for row in rows}


async def everything(store: Store) -> dict[str, Rows]:
    tables: dict[str, tuple[Table[Any], str]] = {
        "jobs": (jobs_read.TABLE, jobs_read.SCHEMA),
        "devices": (devices_read.TABLE, devices_read.SCHEMA),
        "integrations": (integrations_read.INTEGRATIONS, integrations_read.SCHEMA),
        "conflicts": (library_read.CONFLICTS, library_read.SCHEMA),
        "versions": (library_read.VERSIONS, library_read.SCHEMA),
    }
    return {kind: await held(store, table, name) for kind, (table, name) in tables.items()}


async def lived(store: Store, head: int, at: list[int]) -> dict[int, dict[str, Rows]]:
    """What the read models held at each of these positions, as time went by."""
    await projector.prepare(store.database)
    seen, before = {}, 0
    for position in [*at, head]:
        events = await store.read(before, 10_000, until=position)
        async with store.database.transaction() as connection:
            for projection in projections.ALL:
                await projector.fold_page(connection, projection, schema(projection), events)
            await connection.execute("update undrift.tracking set pos = $1", position)
        seen[position], before = await everything(store), position
    return seen


async def folded(store: Store, context: Any, key: tuple[str, ...], until: int, fold: Any) -> Any:
    return as_of.folded(await store.stream(messages.stream(context.STREAM, *key), until=until), fold)


@pytest.mark.parametrize("seed", range(3))
async def test_the_past_is_what_it_was(store: Store, seed: int) -> None:
    head = await fill(store.database, World(seed).history(500))
    positions = sorted(random.Random(seed).sample(range(1, head), 12))
    seen = await lived(store, head, positions)
    names = {kind: {key for rows in seen.values() for key in rows[kind]} for kind in seen[head]}
    assert all(names.values())
    for position, rows in seen.items():
        for key in names["jobs"]:
            assert rows["jobs"].get(key) == await folded(store, jobs, key, position, jobs_read.fold)
        for key in names["devices"]:
            assert rows["devices"].get(key) == await folded(store, devices, key, position, devices_read.fold)
        for key in names["integrations"]:
            stream = messages.stream(integrations.STREAM, *key)
            found = await integrations_past.row(store, key[0], key[1], stream, position)
            assert rows["integrations"].get(key) == found, (key, position)
        await conflicts_were(store, position, rows["conflicts"], seen[head]["conflicts"])
        await files_were(store, position, rows["versions"])


async def conflicts_were(store: Store, position: int, rows: Rows, known: Rows) -> None:
    for key, last in known.items():
        stream = messages.stream(library.STREAM, last.tenant, last.file)
        events = await store.stream(stream, until=position)
        mine = [one for one in events if getattr(one.event, "conflict", None) == last.conflict]
        assert rows.get(key) == as_of.folded(mine, library_read.fold_conflict)


async def files_were(store: Store, position: int, rows: Rows) -> None:
    newest: dict[tuple[str, str, str], Any] = {}
    for row in rows.values():
        key = (row.tenant, row.owner, row.file)
        newest[key] = max(newest.get(key, row), row, key=lambda one: one.number)
    for (tenant, owner, file), row in newest.items():
        found = await library_past.file(store.database, tenant, owner, position, file)
        assert found is not None
        assert row == replace(found, to_pos=None)
        alive = [one for one in newest.values() if one.place == row.place and one.change != "deleted"]
        mine = {one.file for one in alive if (one.tenant, one.owner) == (tenant, owner)}
        standing = await library_past.standing(store.database, tenant, owner, position, [row.place])
        assert set(standing.values()) <= mine
        assert len(standing) == min(1, len(mine))
