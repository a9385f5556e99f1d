"""A read model's table, made from a struct: rows are loaded, folded in memory and written back once per page."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import asyncpg
import msgspec
from msgspec import Struct

from domain import accounts, messages

R = TypeVar("R", bound=Struct)
Key = tuple[Any, ...]
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

_TYPES: dict[Any, str] = {
    str: "text",
    int: "bigint",
    bool: "boolean",
    float: "double precision",
    datetime: "timestamptz",
}


class Projection(Protocol):
    """What a projection module provides. Its tables stand in the schema `rm_<NAME>_<GENERATION>`; a change of its
    tables or of its fold takes the next generation. `CONTEXTS` are the contexts whose events it reads."""

    @property
    def NAME(self) -> str: ...  # noqa: N802

    @property
    def GENERATION(self) -> int: ...  # noqa: N802

    @property
    def CONTEXTS(self) -> tuple[str, ...]: ...  # noqa: N802

    def ddl(self, schema: str, /) -> str: ...

    def apply(self, connection: Connection, schema: str, events: Sequence[messages.Recorded], /) -> Awaitable[None]: ...


class Database(Protocol):
    """What queries need of a database."""

    def fetch(self, sql: str, /, *args: Any) -> Awaitable[list[asyncpg.Record]]: ...

    def fetchrow(self, sql: str, /, *args: Any) -> Awaitable[asyncpg.Record | None]: ...

    def fetchval(self, sql: str, /, *args: Any) -> Awaitable[Any]: ...


def schema(projection: Projection) -> str:
    return f"rm_{projection.NAME}_{projection.GENERATION}"


def _column(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        inner = [arg for arg in get_args(hint) if arg is not type(None)]
        return _type(inner[0])
    return f"{_type(hint)} not null"


def _type(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"{_TYPES[get_args(hint)[0]]}[]"
    return _TYPES[hint]


async def erasing(
    connection: Connection,
    schema: str,
    events: Sequence[messages.Recorded],
    tables: Sequence[Table[Any]],
    apply: Callable[[Connection, str, Sequence[messages.Recorded]], Awaitable[None]],
) -> None:
    """Applies a page; where the log says that a person is erased, their rows of `tables` (`tenant`, `owner`) go."""
    start = 0
    for end, recorded in enumerate(events, start=1):
        if isinstance(recorded.event, accounts.Erased):
            await apply(connection, schema, events[start:end])
            for table in tables:
                sql = f"delete from {schema}.{table.name} where tenant = $1 and owner = $2"
                await connection.execute(sql, recorded.tenant, recorded.id)
            start = end
    await apply(connection, schema, events[start:])


class Table(Generic[R]):
    """Rows of the frozen struct `row`: str, int, bool, float, datetime, tuples of these, each also `| None`."""

    def __init__(self, name: str, row: type[R], key: tuple[str, ...], indexes: Iterable[str] = ()) -> None:
        self.name, self.row, self.key, self.indexes = name, row, key, tuple(indexes)
        self.columns = row.__struct_fields__
        hints = get_type_hints(row)
        self._ddl = ", ".join(f"{column} {_column(hints[column])}" for column in self.columns)

    def ddl(self, schema: str) -> str:
        statements = [f"create table {schema}.{self.name} ({self._ddl}, primary key ({', '.join(self.key)}))"]
        statements += [f"create index on {schema}.{self.name} {index}" for index in self.indexes]
        return ";\n".join(statements)

    async def apply(
        self,
        connection: Connection,
        schema: str,
        events: Sequence[messages.Recorded],
        key: Callable[[messages.Recorded], Key | None],
        fold: Callable[[R | None, messages.Recorded], R | None],
    ) -> None:
        """Folds a page of events into their rows: one read, one write, whatever their number."""
        keyed = [(found, event) for event in events if (found := key(event)) is not None]
        if not keyed:
            return
        before = await self.load(connection, schema, {found for found, _ in keyed})
        after: dict[Key, R | None] = dict(before)
        for found, event in keyed:
            after[found] = fold(after.get(found), event)
        changed = {found: row for found, row in after.items() if row != before.get(found)}
        await self.save(connection, schema, changed)

    async def load(self, connection: Connection, schema: str, keys: Collection[Key]) -> dict[Key, R]:
        """Rows by their keys. Each is looked for in the order of the primary key, which no other index has: they all
        cost the same while a table is small, and a plan that was made then outlives that."""
        columns = list(zip(*keys, strict=True))
        kinds = ", ".join(f"${n}::text[]" for n in range(1, len(self.key) + 1))
        mine, wanted = (", ".join(f"{of}.{name}" for name in self.key) for of in "tk")
        rows = await connection.fetch(
            f"select t.* from unnest({kinds}) as k ({', '.join(self.key)}) cross join lateral"
            f" (select * from {schema}.{self.name} t where ({mine}) >= ({wanted}) order by {mine} limit 1) t"
            f" where ({mine}) = ({wanted})",
            *columns,
        )
        return {tuple(row[name] for name in self.key): self.parse(row) for row in rows}

    async def save(self, connection: Connection, schema: str, rows: Mapping[Key, R | None]) -> None:
        """Writes rows by their keys; None takes one away."""
        table = f"{schema}.{self.name}"
        kept = [row for row in rows.values() if row is not None]
        gone = [key for key, row in rows.items() if row is None]
        if kept:
            updates = ", ".join(f"{c} = excluded.{c}" for c in self.columns if c not in self.key)
            await connection.execute(
                f"insert into {table} select * from json_populate_recordset(null::{table}, $1::json)"
                f" on conflict ({', '.join(self.key)}) do update set {updates}",
                msgspec.json.encode(kept).decode(),
            )
        if gone:
            kinds = ", ".join(f"${n}::text[]" for n in range(1, len(self.key) + 1))
            await connection.execute(
                f"delete from {table} where ({', '.join(self.key)}) in (select * from unnest({kinds}))",
                *zip(*gone, strict=True),
            )

    def parse(self, row: asyncpg.Record) -> R:
        """A struct from a row of `select *`."""
        values = (tuple(value) if isinstance(value, list) else value for value in row.values())
        return self.row(**dict(zip(row.keys(), values, strict=True)))
