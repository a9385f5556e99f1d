"""A read model's table: every type comes back, a page is one read and one write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from domain import messages, tenants
from infra.db import Database
from infra.eventstore.migrate import migrate
from projections import library
from projections.table import Table


class Row(Struct, frozen=True):
    tenant: str
    id: str
    text: str
    number: int
    flag: bool
    ratio: float
    at: datetime
    words: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    maybe: str | None = None
    maybe_number: int | None = None
    maybe_at: datetime | None = None


TABLE = Table("things", Row, ("tenant", "id"), ("(number desc) where flag",))
SCHEMA = "rm_things_1"
AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
async def db(postgres_url: str) -> AsyncIterator[Database]:
    await migrate(postgres_url)
    opened = Database(postgres_url, 2)
    await opened.execute(f"create schema {SCHEMA}")
    await opened.execute(TABLE.ddl(SCHEMA))
    yield opened
    await opened.execute(f"drop schema {SCHEMA} cascade")
    await opened.close()


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
times = st.datetimes(min_value=datetime(1900, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
integers = st.integers(-(2**63), 2**63 - 1)
rows = st.builds(
    Row,
    tenant=st.sampled_from("ab"),
    id=st.sampled_from("wxyz"),
    text=texts,
    number=integers,
    flag=st.booleans(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    at=times,
    words=st.lists(texts, max_size=3).map(tuple),
    numbers=st.lists(integers, max_size=3).map(tuple),
    maybe=st.none() | texts,
    maybe_number=st.none() | integers,
    maybe_at=st.none() | times,
)


def recorded(position: int) -> messages.Recorded:
    return messages.Recorded(
        position,
        "main",
        "tenants/main/x",
        position,
        uuid4(),
        tenants.Added("x"),
        messages.Metadata(),
        datetime.now(UTC),
    )


@given(st.lists(st.lists(st.tuples(rows, st.booleans()), min_size=1, max_size=6), max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
async def test_pages_of_rows_as_in_a_dictionary(db: Database, pages: list[list[tuple[Row, bool]]]) -> None:
    """Each event sets a row or takes it away."""
    await db.execute(f"truncate {SCHEMA}.things")
    expected: dict[Any, Row] = {}
    for page in pages:
        told = dict(enumerate(page, start=1))
        async with db.transaction() as connection:
            await TABLE.apply(
                connection,
                SCHEMA,
                [recorded(position) for position in told],
                lambda event, told=told: (told[event.position][0].tenant, told[event.position][0].id),
                lambda row, event, told=told: told[event.position][0] if told[event.position][1] else None,
            )
        for row, kept in page:
            if kept:
                expected[row.tenant, row.id] = row
            else:
                expected.pop((row.tenant, row.id), None)
    found = [TABLE.parse(row) for row in await db.fetch(f"select * from {SCHEMA}.things")]
    assert {(row.tenant, row.id): row for row in found} == expected


async def test_a_fold_sees_the_row_before_and_those_of_its_page(db: Database) -> None:
    await db.execute(f"truncate {SCHEMA}.things")
    base = Row("a", "x", "", 0, False, 0.0, AT, ())
    seen: list[int | None] = []

    def fold(row: Row | None, event: messages.Recorded) -> Row:
        seen.append(None if row is None else row.number)
        return Row(**{**{name: getattr(base, name) for name in base.__struct_fields__}, "number": event.position})

    for page in ([1, 2, 3], [4], [5, 6]):
        async with db.transaction() as connection:
            await TABLE.apply(connection, SCHEMA, [recorded(n) for n in page], lambda _: ("a", "x"), fold)
    assert seen == [None, 1, 2, 3, 4, 5]


async def test_rows_are_found_by_their_key_however_small_the_table_was(db: Database) -> None:
    """Other indexes that begin with the tenant cost a planner the same then, and everything later."""
    await db.execute(library.VERSIONS.ddl(SCHEMA))
    async with db.transaction() as connection:
        await connection.execute("set local enable_seqscan = off; set local plan_cache_mode = force_generic_plan")
        assert await library.VERSIONS.load(connection, SCHEMA, [("a", "x"), ("b", "y")]) == {}
        scanned = await connection.fetch(
            "select indexrelid::regclass::text as name from pg_index"
            " where indrelid = $1::regclass and pg_stat_get_xact_numscans(indexrelid) > 0",
            f"{SCHEMA}.versions",
        )
    assert [one["name"] for one in scanned] == [f"{SCHEMA}.versions_pkey"]


async def test_what_concerns_nobody_touches_nothing(db: Database) -> None:
    async with db.transaction() as connection:
        await TABLE.apply(connection, "no_such_schema", [recorded(1)], lambda _: None, lambda row, _: row)
        await TABLE.apply(connection, "no_such_schema", [], lambda _: ("a", "x"), lambda row, _: row)


def test_the_table_is_made_from_the_struct() -> None:
    ddl = TABLE.ddl("s")
    assert "text text not null, number bigint not null, flag boolean not null, ratio double precision not null" in ddl
    assert "at timestamptz not null, words text[] not null, numbers bigint[] not null, maybe text," in ddl
    assert "primary key (tenant, id)" in ddl
    assert ddl.endswith("create index on s.things (number desc) where flag")
