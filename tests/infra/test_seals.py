"""Whoever changes the log, even by one bit and even as its owner, is found out at the exact position."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import blake3
import pytest

from infra.eventstore import seals
from tests.notes import Notes, open_log

EVERY = 10

Tamper = Callable[[str], Awaitable[None]]


@pytest.fixture
async def log(database: str) -> AsyncIterator[Notes]:
    async with open_log(database) as log:
        yield log


@pytest.fixture
async def tamper(database: str) -> AsyncIterator[Tamper]:
    """Changes the log as its owner, whom nothing stops."""
    connection = await asyncpg.connect(database)

    async def execute(sql: str) -> None:
        async with connection.transaction():
            await connection.execute(sql)

    yield execute
    await connection.close()


async def filled(log: Notes, count: int = 35) -> None:
    for n in range(count):
        await log.write(1, id="abc"[n % 3])
    assert await seals.seal(log.database, EVERY) == count // EVERY


async def positions(log: Notes, since: int = 0) -> list[int]:
    return [damage.position for damage in await seals.verify(log.database, since)]


def test_the_root_of_one_to_five_leaves() -> None:
    def node(left: bytes, right: bytes) -> bytes:
        return blake3.blake3(b"\1" + left + right).digest()

    a, b, c, d, e = (bytes([n]) * 32 for n in range(5))
    assert seals.root([a]) == a
    assert seals.root([a, b]) == node(a, b)
    assert seals.root([a, b, c]) == node(node(a, b), c)
    assert seals.root([a, b, c, d]) == node(node(a, b), node(c, d))
    assert seals.root([a, b, c, d, e]) == node(node(node(a, b), node(c, d)), e)


async def test_complete_ranges_are_sealed_once(log: Notes) -> None:
    await filled(log)
    assert await seals.seal(log.database, EVERY) == 0
    await log.write(5)
    made = await asyncio.gather(*(seals.seal(log.database, EVERY) for _ in range(5)))
    assert sum(made) == 1
    rows = await log.database.fetch("select first_pos, last_pos from undrift.seals order by 1")
    assert [tuple(row) for row in rows] == [(1, 10), (11, 20), (21, 30), (31, 40)]
    assert await positions(log) == []


async def test_an_empty_log_is_whole(log: Notes) -> None:
    assert await seals.seal(log.database, EVERY) == 0
    assert await positions(log) == []


FIELDS = {
    "tenant": "tenant = 'other'",
    "stream": "stream_id = stream_id || 'x'",
    "version": "version = version + 100",
    "topic": "topic = 'notes.writteN'",
    "schema version": "schema_version = 2",
    "id": "event_id = gen_random_uuid()",
    "metadata": """metadata = '{"actor":"key:other"}'""",
    "state": "state = set_bit(state, 21, 1 - get_bit(state, 21))",
    "hash": "hash = set_bit(hash, 0, 1 - get_bit(hash, 0))",
}


async def test_a_change_of_any_field_is_found_where_it_is(log: Notes, tamper: Tamper) -> None:
    await filled(log)
    await tamper("create table saved as select * from undrift.events")
    for position in (1, 17, 30, 33):
        for name, change in FIELDS.items():
            await tamper(f"update undrift.events set {change} where pos = {position}")
            assert (name, await positions(log)) == (name, [position])
            await tamper(f"delete from undrift.events where pos = {position}")
            await tamper(f"insert into undrift.events select * from saved where pos = {position}")
    assert await positions(log) == []


async def test_every_bit_of_the_state_counts(log: Notes, tamper: Tamper) -> None:
    await filled(log, 20)
    size = await log.database.fetchval("select length(state) from undrift.events where pos = 7")
    for bit in random.Random(1).sample(range(size * 8), 25):
        flip = f"update undrift.events set state = set_bit(state, {bit}, 1 - get_bit(state, {bit})) where pos = 7"
        await tamper(flip)
        assert await positions(log) == [7]
        await tamper(flip)
    assert await positions(log) == []


@pytest.mark.parametrize("shift", ["1 microsecond", "-1 microsecond", "40 years", "-40 years"])
async def test_another_time_in_a_sealed_range_is_found(log: Notes, tamper: Tamper, shift: str) -> None:
    await filled(log)
    await tamper(f"update undrift.events set recorded_at = recorded_at + interval '{shift}' where pos = 14")
    assert await positions(log) == [14]


async def test_no_time_at_all_is_found(log: Notes, tamper: Tamper) -> None:
    await filled(log)
    await tamper("update undrift.events set recorded_at = 'infinity' where pos = 14")
    assert await positions(log) == [14]


async def test_a_time_that_goes_back_is_found_before_it_is_sealed(log: Notes, tamper: Tamper) -> None:
    await filled(log)
    await tamper("update undrift.events set recorded_at = recorded_at - interval '1 day' where pos = 33")
    assert await positions(log) == [33]


async def test_a_consistent_forgery_is_found(log: Notes, tamper: Tamper) -> None:
    """Another event with a hash that fits it: only the seal knows."""
    await filled(log)
    [row] = await log.database.fetch("select * from undrift.events where pos = 5")
    state = row["state"].replace(b"x", b"y", 1)
    forged = seals.content_hash(
        row["tenant"], row["stream_id"], row["version"], row["topic"], 1, row["event_id"], row["metadata"], state
    )
    await tamper(f"update undrift.events set state = '\\x{state.hex()}', hash = '\\x{forged.hex()}' where pos = 5")
    assert await positions(log) == [5]


@pytest.mark.parametrize("position", [1, 15, 30, 32])
async def test_a_missing_event_is_found(log: Notes, tamper: Tamper, position: int) -> None:
    await filled(log)
    await tamper(f"delete from undrift.events where pos = {position}")
    assert await positions(log) == [position]


async def test_missing_ends_are_found_as_far_as_they_were_sealed(log: Notes, tamper: Tamper) -> None:
    await filled(log)
    await tamper("delete from undrift.events where pos > 26 or pos < 3")
    assert await positions(log) == [1, 2, 27, 28, 29, 30]


async def test_two_events_that_changed_places_are_found(log: Notes, tamper: Tamper) -> None:
    await filled(log)
    for old, new in ((4, -4), (19, 4), (-4, 19)):
        await tamper(f"update undrift.events set pos = {new} where pos = {old}")
    assert await positions(log) == [4, 19]


async def test_a_position_far_away_does_not_take_for_ever(log: Notes, tamper: Tamper) -> None:
    await filled(log)
    await tamper("update undrift.events set pos = pos + (1::bigint << 50) where pos = 35")
    found = await seals.verify(log.database)
    assert found[0] == seals.Damage(35, "missing")
    assert len(found) == 1001


async def test_a_damaged_seal_is_told_from_a_damaged_event(log: Notes, tamper: Tamper) -> None:
    await filled(log)
    await tamper("update undrift.seals set root = sha256(root) where first_pos = 11")
    [damage] = await seals.verify(log.database)
    assert damage == seals.Damage(11, "the seal of positions 11 to 20 is damaged")


@pytest.mark.parametrize("first", [1, 11])
async def test_a_missing_seal_is_found(log: Notes, tamper: Tamper, first: int) -> None:
    await filled(log)
    await tamper(f"delete from undrift.seals where first_pos = {first}")
    [damage] = await seals.verify(log.database)
    assert damage == seals.Damage(first + 10, "the seals in front of it are missing")


async def test_what_lies_before_is_left_out_on_request(log: Notes, tamper: Tamper) -> None:
    await filled(log)
    await tamper("update undrift.events set topic = 'x' where pos in (5, 25)")
    assert await positions(log, since=20) == [25]
    assert await positions(log, since=7) == [25]
    assert await positions(log) == [5, 25]


async def test_a_header_that_is_no_text_is_found(log: Notes) -> None:
    await filled(log, 1)
    [row] = await log.database.fetch(seals._ROWS, 0, 1)
    assert seals._differs(row) is None
    assert seals._differs({**row, "metadata": b"\xff"}) == "its header is not text"
