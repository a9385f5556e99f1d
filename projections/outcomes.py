"""What two jobs did to one collection, side by side."""

from __future__ import annotations

from domain import errors
from domain.plans import diffs
from projections.collections import SCHEMA
from projections.table import Database

# Each side begins behind the page before, in the order of the index.
_SIDES = (
    f"(select * from {SCHEMA}.outcomes where tenant = $1 and job = $2 and collection = $4"
    f" and (entity, item) > ($5, $6)) l full join"
    f" (select * from {SCHEMA}.outcomes where tenant = $1 and job = $3 and collection = $4"
    f" and (entity, item) > ($5, $6)) r on r.entity = l.entity and r.item = l.item"
)
_DIFFERS = "(l.op, l.hash) is distinct from (r.op, r.hash)"
_PAGE = (
    "select coalesce(l.entity, r.entity) as entity, coalesce(l.item, r.item) as item,"
    " l.op as left_op, l.hash as left_hash, r.op as right_op, r.hash as right_hash"
    f" from {_SIDES} where {_DIFFERS} order by 1, 2 limit $7"
)
_COUNTS = (
    f"select count(*) filter (where not {_DIFFERS}) as same,"
    f" count(*) filter (where l.op is not null and r.op is not null and {_DIFFERS}) as different,"
    " count(*) filter (where r.op is null) as only_left, count(*) filter (where l.op is null) as only_right"
    f" from {_SIDES}"
)


async def collection(database: Database, tenant: str, jobs: tuple[str, str]) -> str | None:
    """The collection that both jobs changed, or that one of them did; None where neither changed any.

    Raises errors.Invalid where they changed different ones.
    """
    rows = await database.fetch(
        f"select (select collection from {SCHEMA}.outcomes where tenant = $1 and job = j limit 1) as collection"
        " from unnest($2::text[]) as j",
        tenant,
        list(jobs),
    )
    found = {row["collection"] for row in rows} - {None}
    if len(found) > 1:
        raise errors.Invalid("The two runs changed different collections")
    return None if not found else str(found.pop())


async def counts(database: Database, tenant: str, jobs: tuple[str, str], collection: str) -> diffs.Counts:
    row = await database.fetchrow(_COUNTS, tenant, *jobs, collection, "", "")
    assert row is not None
    return diffs.Counts(*row)


async def page(
    database: Database, tenant: str, jobs: tuple[str, str], collection: str, limit: int, after: tuple[str, str]
) -> list[tuple[tuple[str, str], diffs.Pair]]:
    """Items to which the jobs did something different behind (entity, item), with that key."""
    found = []
    for row in await database.fetch(_PAGE, tenant, *jobs, collection, *after, limit):
        left, right = _done(row["left_op"], row["left_hash"]), _done(row["right_op"], row["right_hash"])
        found.append(((row["entity"], row["item"]), diffs.Pair(f"{row['entity']}/{row['item']}", left, right)))
    return found


def _done(op: diffs.Op | None, hash: str | None) -> diffs.Done | None:
    if op is None:
        return None
    return diffs.Done(op) if hash is None else diffs.Done(op, hash=hash)
