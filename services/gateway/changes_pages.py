"""Pages of a library's feed as they are sent: Postgres writes the changes down, so that a page of a thousand costs a
gateway, which has others to serve meanwhile, no more than a small one."""

from __future__ import annotations

from typing import NamedTuple

from projections.library import SCHEMA
from projections.table import Database


def _time(column: str) -> str:
    """As dialects.timestamp_ms."""
    return f"to_char({column} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"


#: As changes_shapes.shape and its encoder say it.
_CHANGE = f"""concat(
    '{{"id":"', md5(id)::uuid, '","sequence":', from_pos, ',"change_type":"', change, '","media_id":"', file,
    '","path":', to_json(path), ',"content_hash":', coalesce('"' || hash || '"', 'null'),
    ',"file_size":', coalesce(size::text, 'null'), ',"timestamp":"', {_time("at")},
    '","device_id":', coalesce('"' || device || '"', 'null'),
    ',"mtime":', coalesce('"' || {_time("mtime")} || '"', 'null'),
    case when old_path is not null then ',"old_path":' || to_json(old_path) end, '}}')"""

_PAGE = f"""
with page as materialized (
    select from_pos, {_CHANGE} as change from {SCHEMA}.versions
    where tenant = $1 and owner = $2 and from_pos > $3 and from_pos <= $4 order by from_pos limit $5)
select count(*) as count, max(from_pos) as last, convert_to(string_agg(change, ','), 'UTF8') as changes,
    count(*) = $5 and exists (select from {SCHEMA}.versions where tenant = $1 and owner = $2
        and from_pos > (select max(from_pos) from page) and from_pos <= $4) as more
from page"""


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
