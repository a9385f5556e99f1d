"""What clients read of collections: their items as they are, and what each job did to them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from domain import collections, items, messages
from projections.table import Connection, Database, Key, Table

NAME = "collections"
GENERATION = 1
CONTEXTS = ("items", "collections")
SCHEMA = f"rm_{NAME}_{GENERATION}"

Op = Literal["created", "updated", "deleted", "none"]
_CHANGES = items.Created | items.Updated | items.Deleted


class Row(Struct, frozen=True):
    """A collection: `complete` when its last run saw everything there was."""

    tenant: str
    id: str
    position: int
    updated_at: datetime
    complete: bool = False
    observed_at: datetime | None = None


class Entity(Struct, frozen=True):
    """How many items of it there are."""

    tenant: str
    collection: str
    entity: str
    items: int = 0


class Item(Struct, frozen=True):
    """`content` is JSON; it and `hash` are None for a deleted item. `job` brought its last change, if one did."""

    tenant: str
    collection: str
    entity: str
    item: str
    number: int
    hash: str | None
    content: str | None
    revision: str | None
    source: str
    job: str | None
    deleted: bool
    position: int
    updated_at: datetime


class Outcome(Struct, frozen=True):
    """What a job did to an item, however often it changed it: from the version `before` to the version `after` with
    its `hash`. `op` is what that comes to: `none` for what it created and deleted."""

    tenant: str
    job: str
    collection: str
    entity: str
    item: str
    before: int
    after: int
    op: str
    hash: str | None


COLLECTIONS = Table("collections", Row, ("tenant", "id"))
ENTITIES = Table("entities", Entity, ("tenant", "collection", "entity"))
ITEMS = Table("items", Item, ("tenant", "collection", "entity", "item"))
OUTCOMES = Table("outcomes", Outcome, ("tenant", "job", "collection", "entity", "item"))
_TABLES = (COLLECTIONS, ENTITIES, ITEMS, OUTCOMES)


def ddl(schema: str) -> str:
    return ";\n".join(table.ddl(schema) for table in _TABLES)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    last = {key: one for one in events if (key := _item_key(one)) is not None}
    await ITEMS.save(connection, schema, {key: item_of(one) for key, one in last.items()})
    await OUTCOMES.apply(connection, schema, events, _outcome_key, _outcome)
    await ENTITIES.apply(connection, schema, events, _entity_key, _entity)
    await COLLECTIONS.apply(connection, schema, events, _key, _fold)


def _item_key(recorded: messages.Recorded) -> Key | None:
    event = recorded.event
    return (recorded.tenant, event.collection, event.entity, event.item) if isinstance(event, _CHANGES) else None


def item_of(recorded: messages.Recorded) -> Item:
    """From its last event alone."""
    event = recorded.event
    assert isinstance(event, _CHANGES)
    gone = isinstance(event, items.Deleted)
    return Item(
        tenant=recorded.tenant,
        collection=event.collection,
        entity=event.entity,
        item=event.item,
        number=event.number,
        hash=None if isinstance(event, items.Deleted) else event.hash,
        content=None if isinstance(event, items.Deleted) else bytes(event.content).decode(),
        revision=event.revision,
        source=event.source,
        job=_job(recorded),
        deleted=gone,
        position=recorded.position,
        updated_at=recorded.recorded_at,
    )


def _job(recorded: messages.Recorded) -> str | None:
    kind, _, id = recorded.metadata.actor.partition(":")
    return id if kind == "job" else None


def _outcome_key(recorded: messages.Recorded) -> Key | None:
    event, job = recorded.event, _job(recorded)
    if job is None or not isinstance(event, _CHANGES):
        return None
    return recorded.tenant, job, event.collection, event.entity, event.item


def _outcome(row: Outcome | None, recorded: messages.Recorded) -> Outcome:
    event, job = recorded.event, _job(recorded)
    assert isinstance(event, _CHANGES)
    assert job is not None
    was = not isinstance(event, items.Created) if row is None else row.op in ("updated", "deleted")
    gone = isinstance(event, items.Deleted)
    return Outcome(
        tenant=recorded.tenant,
        job=job,
        collection=event.collection,
        entity=event.entity,
        item=event.item,
        before=event.number - 1 if row is None else row.before,
        after=event.number,
        op=_op(was, not gone),
        hash=None if isinstance(event, items.Deleted) else event.hash,
    )


def _op(was: bool, there: bool) -> Op:
    if there:
        return "updated" if was else "created"
    return "deleted" if was else "none"


def _entity_key(recorded: messages.Recorded) -> Key | None:
    event = recorded.event
    if not isinstance(event, items.Created | items.Deleted):
        return None
    return recorded.tenant, event.collection, event.entity


def _entity(row: Entity | None, recorded: messages.Recorded) -> Entity:
    event = recorded.event
    assert isinstance(event, items.Created | items.Deleted)
    row = row or Entity(recorded.tenant, event.collection, event.entity)
    return replace(row, items=row.items + (1 if isinstance(event, items.Created) else -1))


def _key(recorded: messages.Recorded) -> Key | None:
    event = recorded.event
    if isinstance(event, collections.Observed):
        return recorded.tenant, recorded.id
    return (recorded.tenant, event.collection) if isinstance(event, _CHANGES) else None


def _fold(row: Row | None, recorded: messages.Recorded) -> Row:
    event, at = recorded.event, recorded.recorded_at
    if row is None:
        id = event.collection if isinstance(event, _CHANGES) else recorded.id
        row = Row(recorded.tenant, id, recorded.position, at)
    row = replace(row, position=recorded.position, updated_at=at)
    if isinstance(event, collections.Observed):
        return replace(row, complete=event.complete, observed_at=at)
    return row


async def position(database: Database) -> int:
    """How far this read model has come; -1 where it was never made."""
    found = await database.fetchval(
        "select pos from undrift.tracking where projection = $1 and generation = $2", NAME, GENERATION
    )
    return -1 if found is None else int(found)


async def dump(connection: Connection, tenant: str, collection: str, path: Path) -> None:
    """Writes entity, item, hash and `project` (empty where the content has none) of what a collection holds into a
    file, in the text format of COPY."""
    await connection.copy_from_query(
        f"select entity, item, hash, split_part(split_part(content, ',\"project\":\"', 2), '\"', 1)"
        f" from {SCHEMA}.items where tenant = $1 and collection = $2 and not deleted",
        tenant,
        collection,
        output=path,
    )


async def list_(database: Database, tenant: str) -> list[tuple[Row, dict[str, int]]]:
    """Every collection, with how many items of each entity it holds."""
    rows = await database.fetch(f"select * from {SCHEMA}.collections where tenant = $1 order by id", tenant)
    counted = await database.fetch(
        f"select collection, entity, items from {SCHEMA}.entities where tenant = $1 order by collection, entity", tenant
    )
    counts: dict[str, dict[str, int]] = {}
    for one in counted:
        counts.setdefault(one["collection"], {})[one["entity"]] = one["items"]
    return [(COLLECTIONS.parse(row), counts.get(row["id"], {})) for row in rows]


async def exists(database: Database, tenant: str, collection: str) -> bool:
    found = await database.fetchval(
        f"select true from {SCHEMA}.collections where tenant = $1 and id = $2", tenant, collection
    )
    return bool(found)


async def page(
    database: Database,
    tenant: str,
    collection: str,
    limit: int,
    *,
    entity: str | None = None,
    after: tuple[str, str] = ("", ""),
    deleted: bool = False,
) -> list[Item]:
    """Items by entity and id, behind the one that `after` names; with `deleted` those that are no more as well."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.items where tenant = $1 and collection = $2 and (entity, item) > ($3, $4)"
        " and ($5::text is null or entity = $5) and (not deleted or $6) order by entity, item limit $7",
        tenant,
        collection,
        *after,
        entity,
        deleted,
        limit,
    )
    return [ITEMS.parse(row) for row in rows]


async def get(database: Database, tenant: str, collection: str, entity: str, item: str) -> Item | None:
    """One item, also a deleted one."""
    row = await database.fetchrow(
        f"select * from {SCHEMA}.items where tenant = $1 and collection = $2 and entity = $3 and item = $4",
        tenant,
        collection,
        entity,
        item,
    )
    return None if row is None else ITEMS.parse(row)


async def outcomes(database: Database, tenant: str, job: str, limit: int, after: Key = ("", "", "")) -> list[Outcome]:
    """What a job did, by collection, entity and item."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.outcomes where tenant = $1 and job = $2 and (collection, entity, item) > ($3, $4, $5)"
        " order by collection, entity, item limit $6",
        tenant,
        job,
        *after,
        limit,
    )
    return [OUTCOMES.parse(row) for row in rows]


async def outcome_count(database: Database, tenant: str, job: str) -> int:
    """How many items a job touched."""
    found = await database.fetchval(
        f"select count(*) from {SCHEMA}.outcomes where tenant = $1 and job = $2", tenant, job
    )
    return int(found)
