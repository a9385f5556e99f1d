"""The endpoints that are told of events. Their secrets are not here, and neither is what they were sent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from domain import messages, webhooks
from projections.table import Connection, Database, Key, Table

NAME = "webhooks"
GENERATION = 1
CONTEXTS = (webhooks.STREAM,)
SCHEMA = f"rm_{NAME}_{GENERATION}"


class Row(Struct, frozen=True):
    """`secrets` counts the secrets it has had; `reason` says why it is disabled, None where it is not. `updated_at` is
    when somebody changed it, `position` that of the last event of any kind."""

    tenant: str
    id: str
    url: str
    events: tuple[str, ...]
    description: str
    slot: int
    created_at: datetime
    updated_at: datetime
    position: int
    secrets: int = 1
    previous_until: datetime | None = None
    reason: str | None = None
    disabled_at: datetime | None = None


TABLE = Table("webhooks", Row, ("tenant", "id"), ("(tenant, created_at, id)",))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, fold)


def _key(recorded: messages.Recorded) -> Key:
    return recorded.tenant, recorded.id


def fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    event, at = recorded.event, recorded.recorded_at
    if isinstance(event, webhooks.Subscribed):
        return Row(
            tenant=recorded.tenant,
            id=recorded.id,
            url=event.url,
            events=event.events,
            description=event.description,
            slot=event.slot,
            created_at=at,
            updated_at=at,
            position=recorded.position,
        )
    if row is None:
        raise LookupError(f"{recorded.topic} of a webhook that was never subscribed")
    row = replace(row, position=recorded.position)
    match event:
        case webhooks.Changed():
            return replace(row, url=event.url, events=event.events, description=event.description, updated_at=at)
        case webhooks.SecretRotated():
            return replace(row, secrets=event.number, previous_until=event.previous_until, updated_at=at)
        case webhooks.Disabled():
            return replace(row, reason=event.reason, disabled_at=at)
        case webhooks.Enabled():
            return replace(row, reason=None, disabled_at=None)
        case webhooks.Replayed() | webhooks.Tested():
            return row
        case webhooks.Deleted():
            return None
        case _:
            raise LookupError(f"{recorded.topic} is not an event of a webhook")


async def get(database: Database, tenant: str, id: str) -> Row | None:
    row = await database.fetchrow(f"select * from {SCHEMA}.webhooks where tenant = $1 and id = $2", tenant, id)
    return None if row is None else TABLE.parse(row)


async def list_(database: Database, tenant: str) -> list[Row]:
    """The webhooks of a tenant, the oldest first."""
    rows = await database.fetch(f"select * from {SCHEMA}.webhooks where tenant = $1 order by created_at, id", tenant)
    return [TABLE.parse(row) for row in rows]
