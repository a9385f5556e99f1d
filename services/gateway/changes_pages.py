"""Pages of a library's feed as they are sent: the read model has each change as it is told, and Postgres strings them
together, so that a page of a thousand costs a gateway, which has others to serve meanwhile, little more than one."""

from __future__ import annotations

from typing import NamedTuple

from projections.library import SCHEMA
from projections.table import Database

_BEHIND = f"from {SCHEMA}.changes where tenant = $1 and owner = $2 and position > $3 and position <= $4"
_PAGE = f"""
with page as (select position, told {_BEHIND} order by position limit $5),
whole as (
    select count(*) as count, max(position) as last, convert_to(string_agg(told, ','), 'UTF8') as changes from page)
select changes, last, count = $5 and exists (select from {SCHEMA}.changes
    where tenant = $1 and owner = $2 and position > last and position <= $4) as more
from whole"""
_ONE_BY_ONE = f"select position, convert_to(told, 'UTF8') as told {_BEHIND} order by position limit $5"


class Page(NamedTuple):
    """`changes` are JSON, with commas between them; `last` is the position of the last, None where there is none."""

    changes: bytes
    last: int | None
    has_more: bool

    def body(self, cursor: str) -> bytes:
        more = b"true" if self.has_more else b"false"
        return b'{"changes":[%b],"cursor":"%b","has_more":%b}' % (self.changes, cursor.encode(), more)


async def read(database: Database, library: tuple[str, str], after: int, until: int, limit: int) -> Page:
    """What changed in a library (tenant and owner) after one position, to another, in order."""
    row = await database.fetchrow(_PAGE, *library, after, until, limit)
    assert row is not None
    return Page(row["changes"] or b"", row["last"], row["more"])


async def one_by_one(
    database: Database, library: tuple[str, str], after: int, until: int, limit: int
) -> list[tuple[int, bytes]]:
    """The same, each change for itself: its position and its JSON."""
    rows = await database.fetch(_ONE_BY_ONE, *library, after, until, limit)
    return [(row["position"], row["told"]) for row in rows]
