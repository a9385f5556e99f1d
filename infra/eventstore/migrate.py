"""Brings the database to the present schema: numbered SQL files, once each, under one lock, their hashes kept."""

from __future__ import annotations

import hashlib
from importlib import resources

import asyncpg

_LOCK = 7305011220


class Drift(Exception):
    """A migration that was applied has since been edited, or the database is newer than this program."""


_ROLES = "roles.sql"
_ROLES_COMPLETE = """\
select coalesce(
    pg_has_role(session_user, app::oid, case when current_setting('server_version_num')::int < 160000
        then 'member' else 'set' end)
    and has_database_privilege(app::oid, current_database(), 'create')
    and has_table_privilege(app::oid, 'undrift.events', 'select')
    and not exists (select from pg_namespace where nspname like 'rm\\_%' and nspowner <> app), false)
from (select to_regrole('undrift_app') as app) r
"""


def _sql(name: str) -> str:
    return resources.files("infra.eventstore").joinpath("sql", name).read_text("utf-8")


def _files() -> list[tuple[str, str]]:
    folder = resources.files("infra.eventstore").joinpath("sql")
    names = [file.name for file in folder.iterdir() if file.name.endswith(".sql") and file.name != _ROLES]
    return [(name, _sql(name)) for name in sorted(names)]


async def migrate(dsn: str) -> list[str]:
    """Applies what is missing and answers with the names applied; sees to the application's role and its rights.
    Any number of starters may call it at once.

    Raises Drift when an applied file differs from ours.
    """
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"select pg_advisory_lock({_LOCK})")
        await connection.execute(
            "create table if not exists public.undrift_migrations"
            " (name text primary key, sha256 text not null, applied_at timestamptz not null default now())"
        )
        rows = await connection.fetch("select name, sha256 from public.undrift_migrations")
        applied, done = {row["name"]: row["sha256"] for row in rows}, []
        for name, sql in _files():
            digest = hashlib.sha256(sql.encode()).hexdigest()
            if name in applied:
                if applied[name] != digest:
                    raise Drift(f"{name} was applied with other contents; this database needs the program that made it")
                continue
            async with connection.transaction():
                await connection.execute(sql)
                await connection.execute("insert into public.undrift_migrations values ($1, $2)", name, digest)
            done.append(name)
        if newer := applied.keys() - {name for name, _ in _files()}:
            raise Drift(f"the database has migrations that this program does not know: {', '.join(sorted(newer))}")
        if done or not await connection.fetchval(_ROLES_COMPLETE):
            async with connection.transaction():
                await connection.execute(_sql(_ROLES))
        return done
    finally:
        await connection.close()
