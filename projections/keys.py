"""Which API key a token is, and the list of keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from domain import keys, messages
from projections.table import Connection, Database, Key, Table

NAME = "keys"
GENERATION = 1
CONTEXTS = ("keys",)
SCHEMA = f"rm_{NAME}_{GENERATION}"


class Row(Struct, frozen=True):
    tenant: str
    id: str
    name: str
    token_sha256: str
    scopes: tuple[str, ...]
    roots: tuple[str, ...]
    connections: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None = None


TABLE = Table("keys", Row, ("tenant", "id"), ("(token_sha256) where revoked_at is null",))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, _fold)


def _key(recorded: messages.Recorded) -> Key:
    return recorded.tenant, recorded.id


def _fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    match recorded.event:
        case keys.Added() as event:
            return Row(
                tenant=recorded.tenant,
                id=recorded.id,
                name=event.name,
                token_sha256=event.token_sha256,
                scopes=event.scopes,
                roots=event.roots,
                connections=event.connections,
                created_at=recorded.recorded_at,
            )
        case keys.Revoked():
            return None if row is None else replace(row, revoked_at=recorded.recorded_at)
        case _:
            raise LookupError(f"{recorded.topic} is not an event of a key")


async def by_token(database: Database, token_sha256: str) -> Row | None:
    """The key whose token has this SHA-256 (hex), unless it was revoked."""
    row = await database.fetchrow(
        f"select * from {SCHEMA}.keys where token_sha256 = $1 and revoked_at is null", token_sha256
    )
    return None if row is None else TABLE.parse(row)


async def list_(database: Database, tenant: str) -> list[Row]:
    rows = await database.fetch(f"select * from {SCHEMA}.keys where tenant = $1 order by created_at, id", tenant)
    return [TABLE.parse(row) for row in rows]
