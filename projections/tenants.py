"""The list of tenants."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from domain import messages, tenants
from projections.table import Connection, Database, Key, Table

NAME = "tenants"
GENERATION = 1
CONTEXTS = ("tenants",)
SCHEMA = f"rm_{NAME}_{GENERATION}"


class Row(Struct, frozen=True):
    name: str
    created_at: datetime


TABLE = Table("tenants", Row, ("name",))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, _fold)


def _key(recorded: messages.Recorded) -> Key:
    return (recorded.id,)


def _fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    assert isinstance(recorded.event, tenants.Added)
    return Row(name=recorded.event.name, created_at=recorded.recorded_at)


async def list_(database: Database) -> list[Row]:
    rows = await database.fetch(f"select * from {SCHEMA}.tenants order by created_at, name")
    return [TABLE.parse(row) for row in rows]
