"""Migrations: once each, by whoever is first; and what the application's role may not do afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from infra import embedded
from infra.db import Database
from infra.eventstore import epochs, migrate
from tests.infra.appends import append, open_writers, whole


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    opened = Database(database, 4)
    yield opened
    await opened.close()


async def test_every_file_is_applied_once(blank_database: str) -> None:
    names = [name for name, _ in migrate._files()]
    assert names[0] == "0001_log.sql"
    assert await migrate.migrate(blank_database) == names
    assert await migrate.migrate(blank_database) == []


async def test_of_many_starters_one_applies(blank_database: str) -> None:
    applied = await asyncio.gather(*(migrate.migrate(blank_database) for _ in range(6)))
    assert sorted(map(len, applied)) == [0] * 5 + [len(migrate._files())]


async def test_an_edited_file_is_refused(blank_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate.migrate(blank_database)
    edited = [(name, sql + "\n-- edited") for name, sql in migrate._files()]
    monkeypatch.setattr(migrate, "_files", lambda: edited)
    with pytest.raises(migrate.Drift, match="other contents"):
        await migrate.migrate(blank_database)


async def test_a_newer_database_is_refused(blank_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = migrate._files()
    monkeypatch.setattr(migrate, "_files", lambda: [*files, ("9999_later.sql", "create table public.later ()")])
    assert (await migrate.migrate(blank_database))[-1] == "9999_later.sql"
    monkeypatch.setattr(migrate, "_files", lambda: files)
    with pytest.raises(migrate.Drift, match="9999_later"):
        await migrate.migrate(blank_database)


async def test_a_file_that_fails_leaves_nothing_behind(blank_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = migrate._files()
    broken = "create table public.half (); select 1 / 0"
    monkeypatch.setattr(migrate, "_files", lambda: [*files, ("9999_broken.sql", broken)])
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate.migrate(blank_database)
    connection = await asyncpg.connect(blank_database)
    assert await connection.fetchval("select to_regclass('public.half')") is None
    await connection.close()
    monkeypatch.setattr(migrate, "_files", lambda: files)
    assert await migrate.migrate(blank_database) == []


async def test_an_ordinary_owner_is_enough_and_databases_share_the_role(tmp_path: Path) -> None:
    """On a server that is not ours: no superuser, and several installations that begin at the same moment."""
    server = embedded.Postgres(tmp_path, testing=True)
    url = await asyncio.to_thread(server.start)
    try:
        superuser = await asyncpg.connect(url)
        await superuser.execute("create role plain login createrole password 'plain'")
        urls = []
        for name in "abcd":
            await superuser.execute(f"create database {name} owner plain")
            parts = urlsplit(url)
            urls.append(urlunsplit(parts._replace(netloc=f"plain:plain@127.0.0.1:{parts.port}", path=f"/{name}")))
        await superuser.close()
        assert await asyncio.gather(*map(migrate.migrate, urls)) == [[name for name, _ in migrate._files()]] * 4
        for one in urls:
            await _works(one)
    finally:
        await asyncio.to_thread(server.stop)


async def _works(url: str) -> None:
    database = Database(url, 2)
    assert await epochs.open_epoch(database) == 1
    async with open_writers(url) as [writer]:
        await writer.append(append())
        owner = await asyncpg.connect(url)
        for _ in range(2):
            await owner.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'undrift writer %'"
            )
            await writer.append(append())
        await owner.close()
    assert len(await whole(database)) == 3
    await database.close()


async def test_what_a_copy_or_a_restore_leaves_out_is_given_again(database: str) -> None:
    """Rights to the database, and read models that belong to whoever restored them."""
    db = Database(database, 2)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await db.execute("create schema rm_jobs_1")
    owner = await asyncpg.connect(database)
    await owner.execute("create schema rm_jobs_1; create table rm_jobs_1.jobs (); create schema other")
    await owner.execute("revoke all on undrift.events from undrift_app")
    for _ in range(2):
        assert await migrate.migrate(database) == []
        assert await owner.fetchval("select to_regnamespace('rm_jobs_1')") is None
    assert await owner.fetchval("select to_regnamespace('other')") is not None
    await db.execute("create schema rm_jobs_1; create table rm_jobs_1.jobs ()")
    await migrate.migrate(database)
    assert await owner.fetchval("select to_regclass('rm_jobs_1.jobs')") is not None
    assert await db.fetchval("select count(*) from undrift.events") == 0
    await owner.close()
    await db.close()


#: What the role may do beside reading.
_MAY = {
    "undrift.allowances": {"insert", "update", "delete"},
    "undrift.erasures": {"insert", "update"},
    "undrift.session_leases": {"insert", "update", "delete"},
    "undrift.epochs": {"insert"},
    "undrift.events": set(),
    "undrift.commands": set(),
    "undrift.claims": set(),
    "undrift.seals": {"insert"},
    "undrift.leases": {"insert", "update", "delete"},
    "undrift.tracking": {"insert", "update", "delete"},
    "undrift.parked": {"insert", "update", "delete"},
    "undrift.job_progress": {"insert", "update", "delete"},
    "undrift.job_logs": {"insert", "update", "delete"},
    "undrift.file_records": {"insert", "update", "delete"},
    "undrift.remotes": {"insert", "update", "delete"},
    "undrift.remote_uses": {"insert", "update", "delete"},
    "undrift.stored": {"insert", "update", "delete"},
    "undrift.device_state": {"insert", "update", "delete"},
    "undrift.uploads": {"insert", "update", "delete"},
    "undrift.upload_chunks": {"insert", "update", "delete"},
    "undrift.dropped": {"insert", "update", "delete"},
    "undrift.deliveries": {"insert", "update", "delete"},
    "undrift.endpoints": {"insert", "update", "delete"},
    "undrift.replays": {"insert", "update", "delete"},
    "undrift.sessions": {"insert", "update", "delete"},
    "undrift_keys.passwords": {"insert", "update", "delete"},
    "undrift_keys.subjects": {"insert", "update", "delete"},
    "undrift_keys.secrets": {"insert", "delete"},
}
_RIGHTS = ("insert", "update", "delete", "truncate", "references", "trigger")


async def test_what_the_application_may_change(db: Database) -> None:
    tables = await db.fetch(
        "select schemaname || '.' || tablename as name from pg_tables where schemaname in ('undrift', 'undrift_keys')"
    )
    found = {}
    for table in sorted(row["name"] for row in tables):
        assert await db.fetchval("select has_table_privilege($1, 'select')", table)
        may = {right for right in _RIGHTS if await db.fetchval("select has_table_privilege($1, $2)", table, right)}
        columns = {
            right
            for right in ("insert", "update")
            if await db.fetchval("select has_any_column_privilege($1, $2)", table, right)
        }
        assert columns == may & {"insert", "update"}
        found[table] = may
    assert found == _MAY


#: What it is refused, as any change of the log's shape.
_MAY_NOT = [
    "update undrift.events set state = ''",
    "delete from undrift.events",
    "truncate undrift.events",
    "insert into undrift.events select pos + 1, tenant, stream_id, version + 1, topic, schema_version, event_id,"
    " metadata, state, hash, recorded_at from undrift.events",
    "select * from undrift.events for update",
    "update undrift.commands set n = 0",
    "delete from undrift.claims",
    "update undrift.epochs set epoch = 7",
    "update undrift.seals set root = ''",
    "alter table undrift.events disable trigger all",
    "alter table undrift.events add column x int",
    "drop table undrift.events",
    "create trigger t before insert on undrift.events execute function suppress_redundant_updates_trigger()",
    "create rule r as on insert to undrift.events do instead nothing",
    "create or replace function undrift.append() returns void language sql as ''",
    "create table undrift.mine ()",
    "drop schema undrift cascade",
    "update public.undrift_migrations set sha256 = ''",
    "create role other",
]


async def test_what_the_application_cannot_do(db: Database) -> None:
    async with open_writers(db.dsn) as [writer]:
        await writer.append(append())
    before = await whole(db)
    for statement in _MAY_NOT:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute(statement)
        assert await whole(db) == before, statement


async def test_every_connection_has_the_application_s_role(db: Database) -> None:
    async with db.connection() as one, db.connection() as other, db.transaction() as third:
        for connection in (one, other, third):
            assert await connection.fetchval("select current_user") == "undrift_app"
    own = await db.connect()
    assert await own.fetchval("select current_user") == "undrift_app"
    await own.execute("reset role")
    await own.execute("reset all")
    assert await own.fetchval("select current_user") == "undrift_app"
    await own.close()
