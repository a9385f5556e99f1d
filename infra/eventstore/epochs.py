"""Whether this is still the same history: a log that was restored or copied elsewhere opens a new epoch by itself."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from msgspec import Struct

from infra import processes
from infra.db import Database

#: Where processes hear that another epoch was opened.
CHANNEL = "undrift_epoch"
_SAME = "l.system_identifier = h.system_identifier and l.timeline = h.timeline and l.database = h.database"
_FILE = "epoch"
#: That of the log: nothing is appended meanwhile.
_LOCK = "select pg_advisory_xact_lock(7305011221)"
_IDENTITY = (
    "select (select system_identifier::text from pg_control_system()) as system_identifier,"
    # Of the log that is being written: after a promotion the control file may name the old one for minutes.
    " ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline,"
    " (select oid from pg_database where datname = current_database()) as database"
)


class NewEpoch(Exception):
    """The log is another history than the one this process started with: it has to start again."""


class Epoch(Struct, frozen=True):
    """From which position on a history has been counted under this number, and since when."""

    epoch: int
    from_position: int
    opened_at: datetime


async def present(database: Database) -> int | None:
    """The present epoch; None where this is not the server, timeline and database that it was opened for."""
    found: int | None = await database.fetchval(
        f"select l.epoch from (select * from undrift.epochs order by epoch desc limit 1) l, ({_IDENTITY}) h"
        f" where {_SAME}"
    )
    return found


def remembered(directory: Path) -> int:
    """The highest epoch that this installation has served, or 0. A log that was restored knows less."""
    try:
        return int((directory / _FILE).read_text("ascii"))
    except (FileNotFoundError, ValueError):
        return 0


def remember(directory: Path, epoch: int) -> None:
    if epoch > remembered(directory):
        processes.write_private(directory / _FILE, b"%d\n" % epoch)


async def advance(database: Database, floor: int = 0) -> Epoch:
    """Opens another epoch, above `floor`, whatever the log looks like: what follows is another history."""
    async with database.transaction() as connection:
        await connection.execute(_LOCK)
        row = await connection.fetchrow(
            "insert into undrift.epochs select greatest(max(e.epoch), $1) + 1,"
            " (select coalesce(max(pos), 0) from undrift.events), h.system_identifier, h.timeline, h.database"
            f" from ({_IDENTITY}) h left join undrift.epochs e on true"
            " group by h.system_identifier, h.timeline, h.database returning epoch, from_pos, opened_at",
            floor,
        )
        await connection.execute(f"select pg_notify('{CHANNEL}', '')")
        assert row is not None
        return Epoch(*row)


async def all_(database: Database) -> list[Epoch]:
    """Every epoch of this log, the oldest first."""
    rows = await database.fetch("select epoch, from_pos, opened_at from undrift.epochs order by epoch")
    return [Epoch(*row) for row in rows]


async def open_epoch(database: Database, floor: int = 0) -> int:
    """The present epoch; a new one is opened when the server, its timeline or the database is not the last one's, or
    when epochs up to `floor` have been served of which this log knows nothing."""
    async with database.transaction() as connection:
        await connection.execute(_LOCK)
        here = await connection.fetchrow(_IDENTITY)
        last = await connection.fetchrow("select * from undrift.epochs order by epoch desc limit 1")
        assert here is not None
        known = 0 if last is None else int(last["epoch"])
        if last is not None and known >= floor and all(here[name] == last[name] for name in here.keys()):  # noqa: SIM118
            return known
        epoch = max(known, floor) + 1
        await connection.execute(
            "insert into undrift.epochs select $1, coalesce(max(pos), 0), $2, $3, $4 from undrift.events",
            epoch,
            here["system_identifier"],
            here["timeline"],
            here["database"],
        )
        await connection.execute(f"select pg_notify('{CHANNEL}', '')")
        return epoch


async def current(database: Database) -> int:
    """The last epoch that was opened."""
    return int(await database.fetchval("select max(epoch) from undrift.epochs") or 0)
