"""Whose values can be asked after: for each kind of thing how it looks after each of its events, as GET shows it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from domain import errors, items, library, messages, server_config
from projections import collections as collections_read
from projections import devices as devices_read
from projections import integrations as integrations_read
from projections import jobs as jobs_read
from projections import library as library_read
from projections import servers as servers_read
from projections import sessions as sessions_read
from services import integrations as declarations
from services import integrations_past
from services.gateway import as_of, changes, collections, devices, integrations_shapes, sessions_shapes, things
from services.gateway import library as library_routes
from services.gateway.auth import Kind as PrincipalKind
from services.gateway.jobs_shapes import Detail, job, outcome
from services.gateway.routes import Call
from services.gateway.things import Source

KEYS: frozenset[PrincipalKind] = frozenset({"key"})
PEOPLE: frozenset[PrincipalKind] = frozenset({"user", "device"})

_OF_CONFLICTS = library.ConflictFound | library.ConflictResolved | library.ConflictReopened

States = AsyncIterator[tuple[messages.Recorded, Any]]


class Kind(Struct, frozen=True):
    """`states` gives each event of a thing with what its read model then held, `show` what a client was shown of that.
    `glance` tells of two whether they can differ in what is shown."""

    admits: frozenset[PrincipalKind]
    needs: str | None
    find: Callable[[Call, str], Awaitable[Source]]
    states: Callable[[Call, Source], States]
    show: Callable[[Call, Any], Any]
    glance: Callable[[Any], Any] = lambda row: row


def _folded(fold: Callable[[Any, messages.Recorded], Any]) -> Callable[[Call, Source], States]:
    async def states(call: Call, source: Source) -> States:
        row = None
        for recorded in await call.api.process.store.stream(source.stream):
            if source.tells(recorded):
                row = fold(row, as_of.readable(recorded))
                yield recorded, row

    return states


def _job(call: Call, row: jobs_read.Row) -> Any:
    if row.deleted_at is not None:
        return None
    detail: Detail = job(row, Detail)
    detail.stats = outcome(row.counters)
    detail.stage = msgspec.UNSET if row.stage is None else row.stage
    return detail


async def _integration_states(call: Call, source: Source) -> States:
    store, first = call.api.process.store, source.first
    moment = as_of.Moment(await store.head())
    await as_of.reached(call, moment)
    async for one in integrations_past.rows(store, call.tenant, first.id, source.stream, moment.position):
        yield one


def _integration(call: Call, row: integrations_read.Row) -> Any:
    breaker = declarations.breaker(call.api.process.settings, row, datetime.now(UTC))
    return integrations_shapes.shape(row, breaker, None)


def _glance(row: integrations_read.Row | None) -> Any:
    """Without what only counts, which changes with every job."""
    if row is None:
        return None
    said = (row.name, row.kind, row.config, row.interval, row.schedule, row.policy, row.active, row.created_at)
    return (*said, row.last_failed, row.last_sync, row.next_fires, row.full_fires, row.failures, row.failed_at)


def _fold_file(row: library_read.Version | None, recorded: messages.Recorded) -> library_read.Version | None:
    """Conflicts say nothing about what stands there."""
    return row if isinstance(recorded.event, _OF_CONFLICTS) else library_read.fold_version(row, recorded)


def _file(call: Call, row: library_read.Version) -> Any:
    return None if row.hash is None else changes.file(row)


def _session(call: Call, row: sessions_read.Row) -> Any:
    return sessions_shapes.summary(row, [], row.progress)


async def _find_item(call: Call, id: str) -> Source:
    """`<collection>/<entity>/<item>`; an item's name may hold slashes."""
    collection, _, rest = id.partition("/")
    entity, _, item = rest.partition("/")
    found = await things.source(call, items, items.stream_id(collection, entity, item))
    if found is None:
        raise errors.NotFound("There is no such item", kind="item")
    return found


def _fold_item(row: collections_read.Item | None, recorded: messages.Recorded) -> collections_read.Item:
    return collections_read.item_of(recorded)


def _server(call: Call, row: servers_read.Row) -> Any:
    """Secrets by reference, as the log has them: only the node's token reads them."""
    shown = server_config.shown(row.configured())
    return {"state": row.power, "is_suspended": row.suspended, "configuration": shown}


def _plain(find: Callable[[Call, str], Awaitable[Source]]) -> Callable[[Call, str], Awaitable[Source]]:
    """An id with a slash is none."""

    async def found(call: Call, id: str) -> Source:
        if "/" in id:
            raise errors.NotFound
        return await find(call, id)

    return found


KINDS: Mapping[str, Kind] = {
    "jobs": Kind(KEYS, None, _plain(things.JOB.find), _folded(jobs_read.fold), _job),
    "integrations": Kind(
        KEYS, "jobs:read", _plain(things.INTEGRATION.find), _integration_states, _integration, _glance
    ),
    "items": Kind(
        KEYS,
        "jobs:read",
        _find_item,
        _folded(_fold_item),
        lambda _, row: None if row.deleted else collections.shape(row),
    ),
    "sessions": Kind(KEYS, "sessions:read", _plain(things.SESSION.find), _folded(sessions_read.fold), _session),
    "servers": Kind(KEYS, "admin", _plain(things.SERVER.find), _folded(servers_read.fold), _server),
    "devices": Kind(
        PEOPLE,
        None,
        _plain(things.DEVICE.find),
        _folded(devices_read.fold),
        lambda call, row: devices.shape(call, row, devices.State()),
    ),
    "files": Kind(PEOPLE, None, _plain(things.FILE.find), _folded(_fold_file), _file),
    "conflicts": Kind(
        PEOPLE,
        None,
        _plain(things.CONFLICT.find),
        _folded(library_read.fold_conflict),
        lambda _, row: library_routes.shape(row),
    ),
}
