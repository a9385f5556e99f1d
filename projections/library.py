"""What devices read of a library: its files, every version they ever had, the feed of their changes, and the conflicts
between devices."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from domain import library, messages
from projections import library_changes
from projections.table import Connection, Database, Key, Table, erasing

NAME = "library"
GENERATION = 2
CONTEXTS = ("library", "accounts")
SCHEMA = f"rm_{NAME}_{GENERATION}"


class Version(Struct, frozen=True):
    """A file as it was from one position of the log to another (None: it still is), and the change that made it so.

    `hash`, `size` (bytes) and `mtime` are None for a deletion. `again` marks what was only said once more.
    """

    tenant: str
    id: str
    owner: str
    file: str
    number: int
    change: str
    path: str
    place: str
    at: datetime
    from_pos: int
    to_pos: int | None = None
    old_path: str | None = None
    hash: str | None = None
    size: int | None = None
    mtime: datetime | None = None
    device: str | None = None


class Conflict(Struct, frozen=True):
    """`local_*` is the side of `device`, `server_*` what stood there; hashes are None for a side that deleted."""

    tenant: str
    conflict: str
    owner: str
    file: str
    path: str
    place: str
    rule: str
    device: str
    local_change: str
    server_number: int
    detected_at: datetime
    position: int
    local_hash: str | None = None
    local_size: int | None = None
    local_mtime: datetime | None = None
    base_hash: str | None = None
    server_hash: str | None = None
    server_device: str | None = None
    server_mtime: datetime | None = None
    resolved_at: datetime | None = None
    resolution: str | None = None
    resolved_by: str | None = None
    awaits: str | None = None
    kept: str | None = None


VERSIONS = Table(
    "versions",
    Version,
    ("tenant", "id"),
    (
        "(tenant, owner, place, from_pos desc)",
        "(tenant, owner, path, from_pos desc)",
        "(tenant, file, number desc)",
        "(tenant, owner, hash)",
    ),
)
CONFLICTS = Table(
    "conflicts",
    Conflict,
    ("tenant", "conflict"),
    ("(tenant, owner, position) where resolved_at is null", "(tenant, file)", "(tenant, owner, awaits)"),
)

_CHANGES: dict[type[messages.Event], str] = {
    library.Created: "created",
    library.Restored: "created",
    library.Modified: "modified",
    library.Touched: "metadata_updated",
    library.Moved: "moved",
    library.Deleted: "deleted",
}
_Change = library.Created | library.Restored | library.Modified | library.Touched | library.Moved | library.Deleted


def ddl(schema: str) -> str:
    return ";\n".join(table.ddl(schema) for table in (VERSIONS, library_changes.TABLE, CONFLICTS))


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await erasing(connection, schema, events, (VERSIONS, library_changes.TABLE, CONFLICTS), _apply)


async def _apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await VERSIONS.apply(connection, schema, events, _version_key, fold_version)
    await VERSIONS.apply(connection, schema, events, _earlier_key, _closed)
    await _tell(connection, schema, events)
    await CONFLICTS.apply(connection, schema, events, _conflict_key, fold_conflict)


async def _tell(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    new = library_changes.rows(fold_version(None, one) for one in events if isinstance(one.event, _Change))
    await library_changes.TABLE.save(connection, schema, new)


def _version_key(recorded: messages.Recorded) -> Key | None:
    event = recorded.event
    return (recorded.tenant, f"{recorded.id}/{event.number}") if isinstance(event, _Change) else None


def fold_version(row: Version | None, recorded: messages.Recorded) -> Version:
    event = recorded.event
    assert isinstance(event, _Change)
    version = Version(
        tenant=recorded.tenant,
        id=f"{recorded.id}/{event.number}",
        owner=recorded.metadata.owner,
        file=recorded.id,
        number=event.number,
        change=_CHANGES[type(event)],
        path=event.path,
        place=event.place.at,
        at=recorded.recorded_at,
        from_pos=recorded.position,
        old_path=event.old_path if isinstance(event, library.Moved) else None,
        device=event.device,
    )
    if isinstance(event, library.Deleted):
        return version
    return replace(version, hash=event.content.hash, size=event.content.size, mtime=event.content.mtime)


def _earlier_key(recorded: messages.Recorded) -> Key | None:
    event = recorded.event
    if not isinstance(event, _Change) or event.number == 1:
        return None
    return recorded.tenant, f"{recorded.id}/{event.number - 1}"


def _closed(row: Version | None, recorded: messages.Recorded) -> Version | None:
    return None if row is None else replace(row, to_pos=recorded.position)


def _conflict_key(recorded: messages.Recorded) -> Key | None:
    match recorded.event:
        case library.ConflictFound() | library.ConflictResolved() | library.ConflictReopened() as event:
            return recorded.tenant, event.conflict
        case _:
            return None


def fold_conflict(row: Conflict | None, recorded: messages.Recorded) -> Conflict | None:
    """A conflict as it is after an event."""
    match recorded.event:
        case library.ConflictFound() as event:
            return _found(event, recorded)
        case library.ConflictResolved() as event if row is not None:
            return replace(
                row,
                resolved_at=recorded.recorded_at,
                resolution=event.resolution,
                resolved_by=event.device,
                awaits=event.awaits,
                kept=event.kept,
            )
        case library.ConflictReopened() if row is not None:
            return replace(row, resolved_at=None, resolution=None, resolved_by=None, awaits=None, kept=None)
        case _:
            return row


def _found(event: library.ConflictFound, recorded: messages.Recorded) -> Conflict:
    return Conflict(
        tenant=recorded.tenant,
        conflict=event.conflict,
        owner=recorded.metadata.owner,
        file=recorded.id,
        path=event.path,
        place=event.place.at,
        rule=event.rule,
        device=event.device,
        local_change=event.local_change,
        server_number=event.server_number,
        detected_at=recorded.recorded_at,
        position=recorded.position,
        local_hash=event.local_hash,
        local_size=event.local_size,
        local_mtime=event.local_mtime,
        base_hash=event.base_hash,
        server_hash=event.server_hash,
        server_device=event.server_device,
        server_mtime=event.server_mtime,
    )


# Queries.


async def listing(database: Database, tenant: str, owner: str, position: int, after: str, limit: int) -> list[Version]:
    """The library as it was at a position, by path, after one path."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.versions where tenant = $1 and owner = $2 and from_pos <= $3"
        " and (to_pos is null or to_pos > $3) and change <> 'deleted' and path > $4 collate \"C\""
        ' order by path collate "C" limit $5',
        tenant,
        owner,
        position,
        after,
        limit,
    )
    return [VERSIONS.parse(row) for row in rows]


async def at_path(database: Database, tenant: str, owner: str, path: str) -> Version | None:
    """What stands at a path now."""
    row = await database.fetchrow(
        f"select * from {SCHEMA}.versions where tenant = $1 and owner = $2 and path = $3"
        " and to_pos is null and change <> 'deleted'",
        tenant,
        owner,
        path,
    )
    return None if row is None else VERSIONS.parse(row)


async def version_at(database: Database, tenant: str, owner: str, path: str, sequence: int) -> Version | None:
    """What began to stand at a path with one change of the feed."""
    row = await database.fetchrow(
        f"select * from {SCHEMA}.versions where tenant = $1 and owner = $2 and path = $3 and from_pos = $4",
        tenant,
        owner,
        path,
        sequence,
    )
    return None if row is None else VERSIONS.parse(row)


async def last_at_path(database: Database, tenant: str, owner: str, path: str) -> str | None:
    """The file that stands at a path, or the last that did."""
    file: str | None = await database.fetchval(
        f"select file from {SCHEMA}.versions where tenant = $1 and owner = $2 and path = $3"
        " order by from_pos desc limit 1",
        tenant,
        owner,
        path,
    )
    return file


async def versions(database: Database, tenant: str, owner: str, file: str, limit: int = 1000) -> list[Version]:
    """All versions of a file, the newest first."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.versions where tenant = $1 and owner = $2 and file = $3 order by number desc limit $4",
        tenant,
        owner,
        file,
        limit,
    )
    return [VERSIONS.parse(row) for row in rows]


async def open_conflicts(
    database: Database, tenant: str, owner: str, after: int = 0, limit: int = 1000
) -> list[Conflict]:
    """Unresolved conflicts, in the order in which they were found."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.conflicts where tenant = $1 and owner = $2 and position > $3 and resolved_at is null"
        " order by position limit $4",
        tenant,
        owner,
        after,
        limit,
    )
    return [CONFLICTS.parse(row) for row in rows]


async def conflicts(database: Database, tenant: str, owner: str, ids: Sequence[str]) -> dict[str, Conflict]:
    """Conflicts by id, resolved or not."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.conflicts where tenant = $1 and owner = $2 and conflict = any ($3)",
        tenant,
        owner,
        list(ids),
    )
    return {row["conflict"]: CONFLICTS.parse(row) for row in rows}


async def conflict(database: Database, tenant: str, owner: str, id: str) -> Conflict | None:
    row = await database.fetchrow(
        f"select * from {SCHEMA}.conflicts where tenant = $1 and owner = $2 and conflict = $3", tenant, owner, id
    )
    return None if row is None else CONFLICTS.parse(row)
