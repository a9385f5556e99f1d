"""What gateway and scheduler both do with integrations: queue their jobs, and create what the settings declare."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from msgspec import Raw

from domain import errors, integrations, jobs, kinds, messages
from infra.config import IntegrationDeclared, InvalidSetting, Settings
from infra.eventstore.store import Store
from projections import integrations as integrations_read
from services import roots


def new_id() -> str:
    return f"sync-job-{uuid.uuid4()}"


def queued(
    row: integrations_read.Row,
    type: jobs.Type,
    options: kinds.Options,
    min_full_interval_s: float,
    now: datetime,
    due: datetime | None = None,
) -> jobs.Queued:
    """A job of an integration; an incremental one without a baseline becomes a full one. Raises RecentSync, Invalid."""
    promoted = type == "incremental_sync" and row.baseline_at is None
    chosen: jobs.Type = "full_sync" if promoted else type
    recent = row.baseline_at is not None and now - row.baseline_at < timedelta(seconds=min_full_interval_s)
    if chosen == "full_sync" and recent and not (options.force or promoted or due is not None):
        raise errors.RecentSync()
    spec = kinds.spec(row.kind, row.config, chosen, options)
    ticket = jobs.Ticket(
        job=new_id(),
        kind=row.kind,
        type=chosen,
        lane="later",
        integration=row.id,
        target=kinds.kind(row.kind).target(spec),
    )
    return jobs.Queued(
        ticket=ticket,
        spec=Raw(msgspec.json.encode(spec)),
        options=Raw(msgspec.json.encode(options)),
        requested_type=type if promoted else None,
        estimated_ms=row.estimate(chosen),
        trigger="request" if due is None else "schedule",
        due=due,
    )


def check(settings: Settings) -> None:
    """Raises InvalidSetting, naming it, for a declared integration that cannot be."""
    ids: set[str] = set()
    for one in settings.integrations:
        try:
            integrations.check_id(one.id)
            integrations.check_interval(one.sync_interval)
            paths = kinds.kind(one.kind).paths(kinds.configuration(one.kind, one.config))
            roots.check(settings, (), *paths)
            if one.id in ids:
                raise errors.AlreadyExists("It is declared twice")
        except errors.Error as error:
            raise InvalidSetting(f"[[integrations]] {one.id}: {error.message}") from None
        ids.add(one.id)


async def declare(store: Store, declared: Sequence[IntegrationDeclared]) -> int:
    """Creates and changes what the configuration file declares; answers the position where that is done."""
    position = 0
    for one in declared:
        config = Raw(msgspec.json.encode(kinds.configuration(one.kind, one.config)))
        create = integrations.Create(
            id=one.id, name=one.name, kind=one.kind, config=config, interval=one.sync_interval, declared=True
        )
        change = integrations.Change(name=one.name, config=config, interval=one.sync_interval)
        stream = messages.stream(integrations.STREAM, "main", one.id)
        there = (await store.load(integrations, stream)).state.name is not None
        try:
            done = await store.execute(integrations, one.id, change if there else create)
        except errors.AlreadyExists:  # another process declared it at this moment
            continue
        position = max(position, done.position)
    return position
