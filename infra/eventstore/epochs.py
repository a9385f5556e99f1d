"""Whether this is still the same history: a log that was restored or copied elsewhere opens a new epoch by itself."""

from __future__ import annotations

from infra.db import Database

_IDENTITY = (
    "select (select system_identifier::text from pg_control_system()) as system_identifier,"
    # Of the log that is being written: after a promotion the control file may name the old one for minutes.
    " ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline,"
    " (select oid from pg_database where datname = current_database()) as database"
)


async def open_epoch(database: Database) -> int:
    """The present epoch; a new one is opened when the server, its timeline or the database is not the last one's."""
    async with database.transaction() as connection:
        await connection.execute("select pg_advisory_xact_lock(7305011221)")
        here = await connection.fetchrow(_IDENTITY)
        last = await connection.fetchrow("select * from undrift.epochs order by epoch desc limit 1")
        assert here is not None
        if last is not None and all(here[name] == last[name] for name in here.keys()):  # noqa: SIM118
            return int(last["epoch"])
        epoch = 1 if last is None else last["epoch"] + 1
        await connection.execute(
            "insert into undrift.epochs select $1, coalesce(max(pos), 0), $2, $3, $4 from undrift.events",
            epoch,
            here["system_identifier"],
            here["timeline"],
            here["database"],
        )
        return epoch


async def current(database: Database) -> int:
    """The last epoch that was opened."""
    return int(await database.fetchval("select max(epoch) from undrift.epochs") or 0)
