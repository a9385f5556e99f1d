"""Which credential a consumer outside has shown, and the list of credentials."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from domain import consumers, messages
from projections.table import Connection, Database, Key, Table

NAME = "consumers"
GENERATION = 1
CONTEXTS = ("consumers",)
SCHEMA = f"rm_{NAME}_{GENERATION}"
_LIVE = "revoked_at is null and (expires_at is null or expires_at > clock_timestamp())"


class Row(Struct, frozen=True):
    tenant: str
    id: str
    name: str
    token_sha256: str
    topics: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


TABLE = Table("consumers", Row, ("tenant", "id"), ("(id) where revoked_at is null",))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, _fold)


def _key(recorded: messages.Recorded) -> Key:
    return recorded.tenant, recorded.id


def _fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    match recorded.event:
        case consumers.Issued() as event:
            return Row(
                tenant=recorded.tenant,
                id=recorded.id,
                name=event.name,
                token_sha256=event.token_sha256,
                topics=event.topics,
                created_at=recorded.recorded_at,
                expires_at=event.expires_at,
            )
        case consumers.Revoked():
            return None if row is None else replace(row, revoked_at=recorded.recorded_at)
        case _:
            raise LookupError(f"{recorded.topic} is not an event of a consumer")


async def live(database: Database, id: str) -> Row | None:
    """The credential of this id, unless it was revoked or its time is over."""
    row = await database.fetchrow(f"select * from {SCHEMA}.consumers where id = $1 and {_LIVE}", id)
    return None if row is None else TABLE.parse(row)


async def living(database: Database, ids: Sequence[str]) -> set[str]:
    """Which of these are neither revoked nor over."""
    rows = await database.fetch(f"select id from {SCHEMA}.consumers where id = any ($1) and {_LIVE}", list(ids))
    return {row["id"] for row in rows}


async def get(database: Database, tenant: str, id: str) -> Row | None:
    row = await database.fetchrow(f"select * from {SCHEMA}.consumers where tenant = $1 and id = $2", tenant, id)
    return None if row is None else TABLE.parse(row)


async def list_(database: Database, tenant: str) -> list[Row]:
    """The credentials of a tenant, the oldest first."""
    rows = await database.fetch(f"select * from {SCHEMA}.consumers where tenant = $1 order by created_at, id", tenant)
    return [TABLE.parse(row) for row in rows]
