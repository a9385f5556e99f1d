"""Webhooks that are received: the signature is the credential, and nothing newer is ever overwritten."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from domain import errors, items, kinds, messages
from domain.plans import plane
from infra.eventstore.recorder import Key
from infra.eventstore.store import Done, Wish
from infra.vault import Vault
from projections import collections as collections_read
from projections import integrations as integrations_read
from services.gateway import bodies
from services.gateway.auth import Principal
from services.gateway.dialects import JOBS
from services.gateway.routes import Call, Parameter, Route

#: An item of 192 KiB with every character escaped, once as it is and twice as it was and became.
LIMIT = 4 * 1024 * 1024
KIND = "plane"
_TRIES = 3
_LONGEST = 255
_DELIVERED = b"x-plane-delivery"
_CHANGES = ("created", "updated", "create", "update")
_DELETIONS = ("deleted", "delete")


class Delivery(Struct):
    """What is read of a webhook; the rest is not needed."""

    event: str
    action: str
    data: dict[str, Any] | None = None


class Received(Struct):
    """`status` is `applied`, `unchanged` (it said nothing new) or `ignored` (it is about nothing that is kept)."""

    success: bool
    status: str


async def plane_hook(call: Call) -> Any:
    limit = min(LIMIT, call.api.process.settings.gateway.max_body_bytes)
    call.raw = await bodies.raw_json(call.scope, call.receive, limit=limit)
    row = await _owner(call)
    call.principal = Principal(tenant=row.tenant, id=row.id, kind="hook", name=row.name)
    delivery = await bodies.parse(call.raw, Delivery)
    done = await _apply(call, row, delivery)
    if done is None:
        return call.reply(Received(True, "ignored"), await call.caught_up())
    return call.reply(Received(True, "applied" if done.events else "unchanged"), done.position)


async def _owner(call: Call) -> integrations_read.Row:
    """The integration whose secret the body is signed with: the id alone may be used by several tenants."""
    process, id = call.api.process, call.path("integration_id")
    vault = Vault(process.db, process.master)
    rows = [row for row in await integrations_read.by_id(process.db, id) if row.kind == KIND]
    if not rows:  # perhaps it was created a moment ago
        await call.api.reads.reached(await process.store.head(), process.settings.gateway.read_wait_s)
        rows = [row for row in await integrations_read.by_id(process.db, id) if row.kind == KIND]
    if not rows:
        raise errors.NotFound("There is no such integration", kind="integration")
    signature = call.fields.get(b"x-plane-signature", b"").strip().lower()
    for row in rows:
        reference = msgspec.json.decode(row.config, type=dict[str, Any]).get("webhookSecret")
        if reference is None:
            continue
        secret = await vault.unseal(row.tenant, reference)
        made = hmac.new(secret.encode(), call.raw, hashlib.sha256).hexdigest()
        if hmac.compare_digest(made.encode(), signature):
            return row
    raise errors.Unauthenticated("A webhook is signed with the integration's config.webhookSecret")


async def _apply(call: Call, row: integrations_read.Row, delivery: Delivery) -> Done | None:
    """None for what is about nothing that is kept."""
    entity, data = plane.EVENTS.get(delivery.event), delivery.data
    id = None if data is None else data.get("id")
    if entity is None or data is None or not isinstance(id, str) or not id:
        return None
    if delivery.action in _DELETIONS:
        return await _execute(call, row, entity, id, None)
    if delivery.action not in _CHANGES or not await _is_ours(call, row, entity, data):
        return None
    return await _execute(call, row, entity, id, data)


async def _is_ours(call: Call, row: integrations_read.Row, entity: str, data: plane.Row) -> bool:
    """Whether a run of this integration would keep the item; one that cannot be dated is left to the next run."""
    if plane.revision(data) is None or data.get("is_draft"):
        return False
    spec = kinds.spec(row.kind, row.config, "full_sync", kinds.Options())
    assert isinstance(spec, plane.Spec)
    if not spec.within:
        return True
    project = data if entity == plane.PROJECTS else await _project(call, row, data.get("project"))
    return plane.is_named(project, spec.within)


async def _project(call: Call, row: integrations_read.Row, id: Any) -> plane.Row:
    """What is known of an item's project: at least its id."""
    found = None
    if isinstance(id, str):
        found = await collections_read.get(call.api.process.db, row.tenant, row.id, plane.PROJECTS, id)
    if found is None or found.content is None:
        return {"id": id}
    known: dict[str, Any] = msgspec.json.decode(found.content)
    return known


async def _execute(call: Call, row: integrations_read.Row, entity: str, id: str, data: plane.Row | None) -> Done | None:
    """Against the item as it is now, so that what arrives late changes nothing."""
    store, stream_id = call.api.process.store, items.stream_id(row.id, entity, id)
    stream = messages.stream(items.STREAM, row.tenant, stream_id)
    for _ in range(_TRIES):
        if (done := await _earlier(call, stream)) is not None:
            return done
        recorded = await store.stream(stream)
        state = items.initial
        for one in recorded:
            if isinstance(one.event, items.Created | items.Updated | items.Deleted):
                state = items.evolve(state, one.event)
        command = _command(row.id, entity, id, data, state, recorded)
        if command is None:
            return Done(recorded[-1].position if recorded else await call.caught_up(), state, [])
        try:
            return await store.execute_all(
                [Wish(items, stream_id, command)], tenant=row.tenant, metadata=call.metadata(), key=_key(call)
            )
        except errors.Conflict:
            continue
    raise errors.Unavailable("The item changes too often right now; send this again", retry_after=1)


def _command(
    collection: str,
    entity: str,
    id: str,
    data: plane.Row | None,
    state: items.Item,
    recorded: Sequence[messages.Recorded],
) -> items.Command | None:
    """None for what is older than what is kept, and for news of what has been deleted: an id never comes back."""
    last = recorded[-1].event if recorded else None
    if isinstance(last, items.Deleted) and last.reason == "deleted":
        return None
    revision = None if data is None else plane.revision(data)
    if data is None or plane.is_archived(data):
        reason = "deleted" if data is None else "archived"
        return items.Remove(collection, entity, id, reason, KIND, revision, None if data is not None else state.number)
    if revision is not None and state.revision is not None and revision < state.revision:
        return None
    content = items.canonical(plane.content(entity, data))
    return items.Put(collection, entity, id, Raw(content), items.digest(content), revision, KIND, state.number)


def _key(call: Call) -> Key | None:
    """Plane names each delivery, and may send it again."""
    name = call.fields.get(_DELIVERED)
    if name is None or not 0 < len(name) <= _LONGEST or not name.isascii():
        return None
    return Key(call.principal.actor, name.decode("ascii"), hashlib.sha256(call.raw).digest())


async def _earlier(call: Call, stream: str) -> Done | None:
    key = _key(call)
    return None if key is None else await call.api.process.store.earlier((items,), call.tenant, key, stream)


_SIGNATURE = Parameter(
    "X-Plane-Signature",
    {"type": "string"},
    "HMAC-SHA256 of the body under `config.webhookSecret`, in hexadecimal",
    required=True,
    where="header",
)

ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/sync/integrations/{integration_id:str}/hooks/plane",
        plane_hook,
        JOBS,
        "Receive a webhook of Plane's; its signature is the credential",
        open=True,
        body=Delivery,
        query=(_SIGNATURE,),
        answers={200: Received},
        errors=(400, 401, 404, 413, 415, 422, 503),
    ),
)
