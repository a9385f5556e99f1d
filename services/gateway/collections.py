"""Collections: what integrations brought from outside, item by item."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from domain import errors
from infra import secrets
from projections import collections as read
from projections import integrations as integrations_read
from services.gateway import bodies
from services.gateway.dialects import JOBS, Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route

LIMIT = 100
LIMIT_MAX = 1000
_MAC = 16


class Collection(Struct, rename="camel"):
    """`entities` counts the items of each; `complete` when the last run saw everything there was."""

    collection_id: str
    items: int
    entities: dict[str, int]
    complete: bool
    last_observed: Timestamp | None
    updated_at: Timestamp


class Collections(Struct):
    collections: list[Collection]
    total: int


class Item(Struct, rename="camel"):
    """`version` counts the item's changes, `hash` is the SHA-256 of its content in canonical form; both content and
    hash are null for a deleted item. `jobId` is the job that brought it as it is, null for a hook."""

    entity: str
    id: str
    version: int
    hash: str | None
    content: Raw
    revision: str | None
    source: str
    job_id: str | None
    deleted: bool
    position: int
    updated_at: Timestamp


class Items(Struct, rename="camel"):
    """`nextCursor` is the `cursor` of the following page, null on the last."""

    items: list[Item]
    next_cursor: str | None


def shape(row: read.Item) -> Item:
    return Item(
        entity=row.entity,
        id=row.item,
        version=row.number,
        hash=row.hash,
        content=Raw(b"null" if row.content is None else row.content.encode()),
        revision=row.revision,
        source=row.source,
        job_id=row.job,
        deleted=row.deleted,
        position=row.position,
        updated_at=timestamp_ms(row.updated_at),
    )


async def list_(call: Call) -> Any:
    position = await call.caught_up()
    found = [
        Collection(
            collection_id=row.id,
            items=sum(entities.values()),
            entities=entities,
            complete=row.complete,
            last_observed=None if row.observed_at is None else timestamp_ms(row.observed_at),
            updated_at=timestamp_ms(row.updated_at),
        )
        for row, entities in await read.list_(call.api.process.db, call.tenant)
    ]
    return call.reply(Collections(found, len(found)), position)


async def items(call: Call) -> Any:
    query, collection = call.query(), call.path("collection_id")
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    deleted = _boolean(query, "deleted")
    entity = query.get("entity")
    cursors = Cursors(call.api.process.master, call.tenant, collection, entity or "", str(deleted))
    after = cursors.read(query["cursor"]) if query.get("cursor") else ("", "")
    position = await call.caught_up()
    await _must_exist(call, collection)
    rows = await read.page(
        call.api.process.db, call.tenant, collection, limit + 1, entity=entity, after=after, deleted=deleted
    )
    more = cursors.write(rows[limit - 1].entity, rows[limit - 1].item) if len(rows) > limit else None
    return call.reply(Items([shape(row) for row in rows[:limit]], more), position)


async def item(call: Call) -> Any:
    position = await call.caught_up()
    names = call.path("collection_id"), call.path("entity"), call.path("item").removeprefix("/")
    row = await read.get(call.api.process.db, call.tenant, *names)
    if row is None:
        raise errors.NotFound("There is no such item", kind="item")
    return call.reply(shape(row), position)


async def _must_exist(call: Call, id: str) -> None:
    """A collection is there with its first item, or with its integration."""
    database = call.api.process.db
    if not await read.exists(database, call.tenant, id) and not await integrations_read.get(database, call.tenant, id):
        raise errors.NotFound("There is no such collection", kind="collection")


def _boolean(query: dict[str, str], name: str) -> bool:
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise errors.Invalid(f"Expected `bool` - at query `{name}`")
    return text == "true"


class Cursors:
    """Where a page ended, sealed against changes and good for the same question only."""

    def __init__(self, master: bytes, *question: str) -> None:
        self._key = secrets.derive(master, "collection cursors", *question)

    def write(self, entity: str, item: str) -> str:
        text = msgspec.json.encode((entity, item))
        return urlsafe_b64encode(self._mac(text) + text).rstrip(b"=").decode()

    def read(self, cursor: str) -> tuple[str, str]:
        """Raises errors.Invalid."""
        try:
            raw = b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
            mac, text = raw[:_MAC], raw[_MAC:]
            if hmac.compare_digest(mac, self._mac(text)):
                return msgspec.json.decode(text, type=tuple[str, str])
        except (ValueError, msgspec.MsgspecError):
            pass
        raise errors.Invalid("The cursor is not of a page before this one")

    def _mac(self, text: bytes) -> bytes:
        return hmac.digest(self._key, text, hashlib.sha256)[:_MAC]


ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/sync/collections",
        list_,
        JOBS,
        "List what integrations have brought",
        needs="jobs:read",
        answers={200: Collections},
        errors=(400, 401, 403, 503),
    ),
    Route(
        "GET",
        "/api/sync/collections/{collection_id:str}/items",
        items,
        JOBS,
        "The items of a collection, page by page, by entity and id",
        needs="jobs:read",
        query=(
            Parameter("entity", {"type": "string"}, "only items of this one"),
            Parameter("cursor", {"type": "string"}, "the `nextCursor` of the page before"),
            Parameter("limit", {"type": "integer", "default": LIMIT}, f"clamped to 1..{LIMIT_MAX}"),
            Parameter("deleted", {"type": "boolean", "default": False}, "with those that are no more"),
        ),
        answers={200: Items},
        errors=(400, 401, 403, 404, 503),
    ),
    Route(
        "GET",
        "/api/sync/collections/{collection_id:str}/items/{entity:str}/{item:path}",
        item,
        JOBS,
        "One item, also a deleted one",
        needs="jobs:read",
        answers={200: Item},
        errors=(400, 401, 403, 404, 503),
    ),
)
