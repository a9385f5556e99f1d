"""The library as it was at a position: every version knows from where to where it stood."""

from __future__ import annotations

from collections.abc import Sequence

from projections.library import SCHEMA, VERSIONS, Version
from projections.table import Database

_THEN = (
    f"from {SCHEMA}.versions where tenant = $1 and owner = $2 and from_pos <= $3 and (to_pos is null or to_pos > $3)"
)


async def file(database: Database, tenant: str, owner: str, position: int, file: str) -> Version | None:
    """A file as it was, also where it was deleted; None before it was there."""
    row = await database.fetchrow(f"select * {_THEN} and file = $4", tenant, owner, position, file)
    return None if row is None else VERSIONS.parse(row)


async def standing(database: Database, tenant: str, owner: str, position: int, places: Sequence[str]) -> dict[str, str]:
    """Which file stood in each of these places, where one did."""
    rows = await database.fetch(
        f"select place, file {_THEN} and place = any ($4) and change <> 'deleted'",
        tenant,
        owner,
        position,
        list(places),
    )
    return {row["place"]: row["file"] for row in rows}
