"""The doctor's look at the bytes of libraries: what is referred to and gone, and what is there and nobody's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.blobs import Contents
from infra.db import Database
from projections.library import SCHEMA

_PAGE = 2000
_SHOWN = 3
_STORED = (
    "select owner, blake3, tenant from undrift.stored where (owner, blake3, tenant) > ($1, $2, $3)"
    " order by owner, blake3, tenant limit $4"
)
_STILL = "select from undrift.stored where owner = $1 and blake3 = $2 and tenant = $3"
_UNSTORED = (
    f"select v.hash from {SCHEMA}.versions v where v.to_pos is null and v.hash is not null and not exists"
    " (select from undrift.stored s where s.tenant = v.tenant and s.owner = v.owner and s.blake3 = v.hash)"
)
_OURS = "select blake3 from undrift.stored where blake3 = any ($1)"


async def missing(database: Database, contents: Contents) -> list[str]:
    """Hashes that are noted as stored and are not there."""
    found: list[str] = []
    last = ("", "", "")
    while rows := [tuple(row) for row in await database.fetch(_STORED, *last, _PAGE)]:
        gone = await asyncio.to_thread(_without, contents, rows)
        # What was dropped while we looked is no loss.
        found += [row[1] for row in gone if await database.fetchrow(_STILL, *row) is not None]
        last = rows[-1]
    return found


def _without(contents: Contents, rows: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [row for row in rows if not contents.exists(row[1])]


async def unstored(database: Database) -> list[str]:
    """Hashes of files as they are now that are not noted as stored for their owner."""
    if await database.fetchval("select to_regclass($1)", f"{SCHEMA}.versions") is None:
        return []
    return [row["hash"] for row in await database.fetch(_UNSTORED)]


async def orphans(database: Database, directory: Path) -> tuple[int, int]:
    """How many blobs in a directory are nobody's, and their bytes. An upload that is just being completed has one."""
    count = size = 0
    pages = iter(_pages(directory))
    while (page := await asyncio.to_thread(next, pages, None)) is not None:
        known = {row["blake3"] for row in await database.fetch(_OURS, list(page))}
        others = [length for digest, length in page.items() if digest not in known]
        count, size = count + len(others), size + sum(others)
    return count, size


def _pages(directory: Path) -> Iterator[dict[str, int]]:
    page: dict[str, int] = {}
    for path in directory.glob("[0-9a-f][0-9a-f]/*"):
        if path.name.startswith("."):
            continue
        page[path.parent.name + path.name] = path.stat().st_size
        if len(page) >= _PAGE:
            yield page
            page = {}
    if page:
        yield page


def named(hashes: Sequence[str]) -> str:
    """The first few, for a person."""
    more = f" and {len(hashes) - _SHOWN} more" if len(hashes) > _SHOWN else ""
    return ", ".join(hashes[:_SHOWN]) + more
