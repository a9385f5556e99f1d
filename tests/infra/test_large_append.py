"""Commands of very many writes: sent in parts, stored whole or not at all, and nobody is kept from being served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from msgspec import Raw

from domain import errors, events, items, messages, tenants
from infra.db import Database
from infra.eventstore.mapper import Mapper
from infra.eventstore.recorder import Append, Appended, Guard, GuardFailed, Key, KeyReused, VersionConflict, Write
from infra.eventstore.store import Decided, Loaded, Store
from infra.eventstore.writer import Writer
from infra.leases import Leases
from tests.infra.appends import Held, Line, append, blocked, open_writers, whole, write

MANY = 2500


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    opened = Database(database, 8)
    yield opened
    await opened.close()


@pytest.fixture
async def writer(database: str) -> AsyncIterator[Writer]:
    async with open_writers(database) as [one]:
        yield one


def large(
    *last: Write, many: int = MANY, guards: Sequence[Guard] = (), key: Key | None = None, name: str = "many"
) -> Append:
    return Append("main", [*(write(f"notes/main/{name}-{n}") for n in range(many)), *last], key, guards)


async def test_a_large_command_has_positions_in_a_row(writer: Writer, db: Database) -> None:
    await writer.append(append())
    answer, *others = await asyncio.gather(writer.append(large()), *(writer.append(append()) for _ in range(50)))
    assert (answer.count, answer.last - answer.first) == (MANY, MANY - 1)
    log = await whole(db)
    mine = [note.originator_id for note in log[answer.first - 1 : answer.last]]
    assert mine == [f"notes/main/many-{n}" for n in range(MANY)]
    assert len(log) == 1 + MANY + len(others)
    times = [note.recorded_at for note in log]
    assert times == sorted(times)


@pytest.mark.parametrize("at", [0, 1, 1500, MANY - 1])
async def test_one_conflict_anywhere_refuses_all_of_it(writer: Writer, db: Database, at: int) -> None:
    await writer.append(append(f"notes/main/many-{at}"))
    with pytest.raises(VersionConflict, match=f"many-{at} is at version 1"):
        await writer.append(large())
    assert len(await whole(db)) == 1
    assert isinstance(await writer.append(append()), Appended)


async def test_its_guard_and_its_claim_hold_for_all_of_it(writer: Writer, db: Database) -> None:
    leases = Leases(db, "me", 1.0)
    lease = await leases.take("a job")
    assert lease is not None
    with pytest.raises(GuardFailed):
        await writer.append(large(guards=[Guard(lease.name, "another", lease.fence)]))
    assert len(await whole(db)) == 0
    claim = messages.take("name", "mine")
    assert (
        await writer.append(large(write("notes/main/last", claims=[claim]), guards=[lease.guard]))
    ).count == MANY + 1
    assert await db.fetchval("select stream_id from undrift.claims where key = 'mine'") == "notes/main/last"


async def test_a_key_makes_it_one_command_as_ever(writer: Writer, db: Database) -> None:
    key = Key("tests", "k", b"r" * 32)
    first = await writer.append(large(key=key))
    again = await writer.append(large(key=key, name="other"))
    assert (again.first, again.count, again.replayed) == (first.first, first.count, True)
    with pytest.raises(KeyReused):
        await writer.append(large(key=Key("tests", "k", b"s" * 32), name="third"))
    assert len(await whole(db)) == MANY


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1])
async def test_a_connection_that_dies_in_the_middle_leaves_nothing_or_everything(
    database: str, db: Database, after_s: float
) -> None:
    """The writer finds out which, and its caller is told the truth."""
    line = Line(database)
    try:
        async with open_writers(await line.open()) as [writer]:
            await writer.append(append())
            async with Held(db):
                task = asyncio.create_task(writer.append(large()))
                await blocked(db)
            await asyncio.sleep(after_s)
            line.cut()
            assert (await task).count == MANY
    finally:
        await line.close()
    assert len(await whole(db)) == 1 + MANY


# Of the store.


@pytest.fixture
def store(db: Database, writer: Writer) -> Store:
    return Store(db, Mapper(events.REGISTRY), writer)


def put(name: str, value: int = 1) -> items.Put:
    content = items.canonical({"value": value})
    return items.Put("c", "things", name, Raw(content), items.digest(content), None, "tests")


async def decided(store: Store, names: Sequence[str], value: int) -> list[Decided]:
    streams = {f"items/main/{items.stream_id('c', 'things', name)}": name for name in names}
    last = await store.latest([*streams])
    found = []
    for stream, name in streams.items():
        recorded = last.get(stream)
        before = Loaded(items.initial)
        if recorded is not None:
            assert isinstance(recorded.event, items.Created | items.Updated | items.Deleted)
            before = Loaded(items.evolve(items.initial, recorded.event), recorded.version, recorded.position)
        events = items.decide(put(name, value), before.state)
        found.append(Decided(items, stream.rpartition("/")[2], before, events))
    return found


async def test_many_streams_are_read_and_written_at_once(store: Store) -> None:
    names = [f"{number}" for number in range(3000)]
    for value in (1, 2):
        assert await store.append(await decided(store, names, value)) == value * 3000
    last = await store.latest([f"items/main/{items.stream_id('c', 'things', name)}" for name in [*names, "none"]])
    assert len(last) == 3000
    assert {one.version for one in last.values()} == {2}
    first = await store.at([(stream, 1) for stream in last])
    assert {one.version for one in first.values()} == {1}
    assert len(first) == 3000
    assert await store.at([("items/main/none", 1), (next(iter(last)), 3)]) == {}


async def test_what_has_moved_has_to_be_decided_again(store: Store) -> None:
    stale = await decided(store, ["a", "b"], 1)
    await store.append(await decided(store, ["b"], 2))
    with pytest.raises(errors.Conflict):
        await store.append(stale)
    assert await store.head() == 1
    assert await store.append(await decided(store, ["a", "b"], 3)) == 3


async def test_others_are_served_while_a_large_command_is_made_ready(store: Store) -> None:
    """Nobody's append waits behind the making of another's."""
    many = await decided(store, [f"{number}" for number in range(20_000)], 1)
    large = asyncio.create_task(store.append(many))
    await asyncio.sleep(0)
    small = await store.execute(tenants, "a", tenants.Add("a"))
    assert (small.position, large.done()) == (1, False)
    assert await large == 20_001
