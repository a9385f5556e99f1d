"""What waits to be delivered: figures for health and Prometheus."""

from __future__ import annotations

from msgspec import Struct

from infra.db import Database
from services.notifying.fanout import NAME

_PENDING = (
    "select tenant, count(*), coalesce(extract(epoch from clock_timestamp() - min(made_at)), 0)::float8"
    " from undrift.deliveries where state = 'pending' group by tenant"
)
_LAG = (
    "select coalesce((select max(pos) from undrift.events), 0) - pos from undrift.tracking"
    " where projection = $1 and generation = 1"
)
_FAILING = "select tenant, count(*) from undrift.endpoints where failures > 0 group by tenant"


class Figures(Struct, frozen=True):
    """Of one tenant: messages that wait, the age in seconds of the oldest, and endpoints that fail at present."""

    pending: int = 0
    oldest_s: float = 0.0
    failing: int = 0


async def by_tenant(database: Database) -> dict[str, Figures]:
    failing = {row[0]: row[1] for row in await database.fetch(_FAILING)}
    found = {row[0]: Figures(row[1], row[2], failing.pop(row[0], 0)) for row in await database.fetch(_PENDING)}
    return found | {tenant: Figures(failing=count) for tenant, count in failing.items()}


async def lag(database: Database) -> int:
    """How many events of the log were not fanned out yet."""
    found: int | None = await database.fetchval(_LAG, NAME)
    return found or 0
