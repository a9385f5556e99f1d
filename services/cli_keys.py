"""`undrift keys` and `undrift tenants`: who may ask, and who shares nothing with whom."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from cyclopts import App

from services.cli_common import Exit, Instance, Many, Problem, console, emit, printable, remark

_NOTE = "This works on the data directory itself, on its own machine: `--url` is not enough."

app = App(name="keys", help=f"Give out and revoke API keys.\n\n{_NOTE}")
tenants_app = App(name="tenants", help=f"Add and list tenants: they share nothing with each other.\n\n{_NOTE}")


@app.command
def add(
    name: str,
    /,
    *,
    scope: Annotated[tuple[str, ...], Many],
    tenant: str = "main",
    root: Annotated[tuple[str, ...], Many] = (),
    instance: Instance = Instance(),
) -> Exit:
    """Add a key. Its token is printed on stdout, now and never again; only its SHA-256 is kept.

    Parameters
    ----------
    name
        What it is for; no two keys of a tenant that are in use have the same name.
    scope
        What it may do: `files`, `jobs:read`, …, `admin`; `files` stands for `files:read` and `files:write`.
        May be given several times.
    tenant
        Whose it is.
    root
        Bind it to this folder; may be given several times. Without it every root of the instance is open to it.
    """
    roots = tuple(os.path.abspath(os.path.expanduser(one)) for one in root)
    return asyncio.run(_add(name, tenant, scope, roots, instance))


async def _add(name: str, tenant: str, scope: tuple[str, ...], roots: tuple[str, ...], instance: Instance) -> Exit:
    from domain import errors, keys, messages, tenants
    from infra import secrets
    from infra.eventstore.recorder import Claimed
    from services import cli_data, tokens

    async with cli_data.opened(instance) as data:
        if (await data.store.load(tenants, messages.stream(tenants.STREAM, tenants.FIRST, tenant))).state.name is None:
            raise Problem(Exit.FAILED, f"there is no tenant {tenant}; add it: undrift tenants add {tenant}")
        id = uuid.uuid4().hex[:20]
        token = tokens.of_key(id, secrets.token(data.master, "api key", id))
        try:
            command = keys.Add(name, tokens.digest(token), tuple(sorted(tokens.scopes(scope))), roots)
            metadata = messages.Metadata(actor="system:cli")
            done = await data.store.execute(keys, id, command, tenant=tenant, metadata=metadata)
        except errors.Invalid as error:
            raise Problem(Exit.USAGE, error.message) from None
        except Claimed:
            raise Problem(Exit.FAILED, f"tenant {tenant} has a key named {name}; revoke it first") from None
        await data.caught_up(done.position)
    made = done.state.added
    if instance.json:
        emit({"id": id, "name": name, "tenant": tenant, "scopes": made.scopes, "roots": made.roots, "token": token})
        return Exit.OK
    remark(f"Key {name} ({id}) of tenant {tenant} may {', '.join(made.scopes)}. Its token is shown only now:")
    sys.stdout.write(f"{token}\n")
    return Exit.OK


@app.command(name="list")
def list_(*, tenant: str | None = None, instance: Instance = Instance()) -> Exit:
    """List the keys; never their tokens.

    Parameters
    ----------
    tenant
        Only keys of this tenant.
    """
    found = asyncio.run(_keys(tenant, instance))
    if instance.json:
        emit({"keys": found})
        return Exit.OK
    rows: list[Sequence[str]] = []
    for one in found:
        roots = ", ".join(one["roots"]) or "every root"
        state = f"revoked {one['revokedAt']}" if one["revokedAt"] else "in use"
        rows.append((one["id"], one["name"], one["tenant"], ", ".join(one["scopes"]), roots, state))
    _print_table(("id", "name", "tenant", "scopes", "roots", "state"), rows)
    return Exit.OK


async def _keys(tenant: str | None, instance: Instance) -> list[dict[str, Any]]:
    from projections import keys as keys_read
    from projections import tenants as tenants_read
    from services import cli_data

    async with cli_data.opened(instance) as data:
        await data.caught_up()
        names = [row.name for row in await tenants_read.list_(data.database)]
        if tenant is not None and tenant not in names:
            raise Problem(Exit.FAILED, f"there is no tenant {tenant}")
        chosen = names if tenant is None else [tenant]
        rows = [row for name in chosen for row in await keys_read.list_(data.database, name)]
    return [
        {
            "id": row.id,
            "name": row.name,
            "tenant": row.tenant,
            "scopes": row.scopes,
            "roots": row.roots,
            "createdAt": row.created_at.isoformat(timespec="seconds"),
            "revokedAt": row.revoked_at and row.revoked_at.isoformat(timespec="seconds"),
        }
        for row in rows
    ]


@app.command
def revoke(id: str, /, *, instance: Instance = Instance()) -> Exit:
    """Revoke a key: from here on its token opens nothing.

    Parameters
    ----------
    id
        The key's id, as `undrift keys list` shows it.
    """
    return asyncio.run(_revoke(id, instance))


async def _revoke(id: str, instance: Instance) -> Exit:
    from domain import keys, messages
    from projections import keys as keys_read
    from projections import tenants as tenants_read
    from services import cli_data

    async with cli_data.opened(instance) as data:
        await data.caught_up()
        names = [row.name for row in await tenants_read.list_(data.database)]
        rows = [row for name in names for row in await keys_read.list_(data.database, name) if row.id == id]
        if not rows:
            raise Problem(Exit.FAILED, f"there is no key {id}; undrift keys list{instance.flags} shows their ids")
        metadata = messages.Metadata(actor="system:cli")
        done = await data.store.execute(keys, id, keys.Revoke(), tenant=rows[0].tenant, metadata=metadata)
        await data.caught_up(done.position)
    if instance.json:
        emit({"id": id, "name": rows[0].name, "tenant": rows[0].tenant, "revoked": True})
    else:
        remark(f"Key {rows[0].name} ({id}) of tenant {rows[0].tenant} opens nothing any more")
    return Exit.OK


@tenants_app.command(name="add")
def add_tenant(name: str, /, *, instance: Instance = Instance()) -> Exit:
    """Add a tenant. Adding it again changes nothing.

    Parameters
    ----------
    name
        1 to 63 of a-z, 0-9 and -.
    """
    return asyncio.run(_add_tenant(name, instance))


async def _add_tenant(name: str, instance: Instance) -> Exit:
    from domain import errors, messages, tenants
    from services import cli_data

    async with cli_data.opened(instance) as data:
        metadata = messages.Metadata(actor="system:cli")
        try:
            done = await data.store.execute(tenants, name, tenants.Add(name), metadata=metadata)
        except errors.Invalid as error:
            raise Problem(Exit.USAGE, error.message) from None
        await data.caught_up(done.position)
    if instance.json:
        emit({"name": name, "added": bool(done.events)})
    else:
        remark(f"Tenant {name} " + ("is added" if done.events else "is there already"))
    return Exit.OK


@tenants_app.command(name="list")
def list_tenants(*, instance: Instance = Instance()) -> Exit:
    """List the tenants."""
    found = asyncio.run(_tenants(instance))
    if instance.json:
        emit({"tenants": found})
    else:
        _print_table(("name", "created"), [(one["name"], one["createdAt"]) for one in found])
    return Exit.OK


async def _tenants(instance: Instance) -> list[dict[str, str]]:
    from projections import tenants as tenants_read
    from services import cli_data

    async with cli_data.opened(instance) as data:
        await data.caught_up()
        rows = await tenants_read.list_(data.database)
    return [{"name": row.name, "createdAt": row.created_at.isoformat(timespec="seconds")} for row in rows]


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(printable, row))
    out = console()
    if not out.is_terminal:
        out.width = 1000
    out.print(table, markup=False)
