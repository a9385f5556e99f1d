"""What gateway and scheduler both do with integrations: queue their jobs, and create what the settings declare."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Raw

from domain import errors, integrations, jobs, kinds, messages, policies
from domain.policies import Policy
from domain.schedules import Schedule
from infra.config import IntegrationDeclared, InvalidSetting, Settings
from infra.eventstore.store import Store
from infra.vault import Vault
from projections import integrations as integrations_read
from services import roots, vaulted


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
        lane=kinds.kind(row.kind).lane,
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


class StrictSchedule(Schedule, frozen=True, forbid_unknown_fields=True):
    # As people write it: a word that means nothing is a mistake. What it means is for the document.
    __doc__ = Schedule.__doc__


class StrictPolicy(Policy, frozen=True, forbid_unknown_fields=True):
    __doc__ = Policy.__doc__


def schedule(written: StrictSchedule | None) -> Schedule | None:
    """As it is kept."""
    return None if written is None else Schedule(**msgspec.structs.asdict(written))


def policy(written: StrictPolicy | None) -> Policy | None:
    return None if written is None else Policy(**msgspec.structs.asdict(written))


def rules(settings: Settings, kind: str, policy: Policy | None) -> policies.Rules:
    """What holds for an integration of that kind with that policy."""
    said = settings.policies
    timeout_s = said.timeout_s or kinds.kind(kind).timeout_s
    defaults = policies.Rules(
        attempts=said.attempts,
        backoff=round(said.backoff_s * 1000),
        backoff_max=round(said.backoff_max_s * 1000),
        breaker_failures=said.breaker_failures,
        breaker_pause=round(said.breaker_pause_s * 1000),
        breaker_pause_max=round(said.breaker_pause_max_s * 1000),
        timeout=round(timeout_s * 1000),
    )
    return policies.rules(policy, defaults)


def breaker(settings: Settings, row: integrations_read.Row, now: datetime) -> policies.Breaker:
    return policies.breaker(rules(settings, row.kind, row.rules), row.failures, row.failed_at, now)


def check(settings: Settings) -> None:
    """Raises InvalidSetting, naming it, for a declared integration that cannot be."""
    ids: set[str] = set()
    for one in settings.integrations:
        try:
            kind = kinds.kind(one.kind)
            integrations.decide(_declared(one), integrations.initial)
            roots.check(settings, (), *kind.paths(kinds.configuration(one.kind, one.config)))
            if one.id in ids:
                raise errors.AlreadyExists("It is declared twice")
        except errors.Error as error:
            raise InvalidSetting(f"[[integrations]] {one.id}: {error.message}") from None
        ids.add(one.id)


def _declared(one: IntegrationDeclared) -> integrations.Create:
    """Raises errors.Invalid."""
    return integrations.Create(
        id=one.id,
        name=one.name,
        kind=one.kind,
        config=Raw(msgspec.json.encode(kinds.configuration(one.kind, one.config))),
        interval=one.sync_interval,
        declared=True,
        schedule=schedule(_written("schedule", one.schedule, StrictSchedule)),
        policy=policy(_written("policy", one.policy, StrictPolicy)),
    )


def _written(name: str, value: dict[str, Any] | None, kind: type[Any]) -> Any:
    try:
        return None if value is None else msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise errors.Invalid(f"{name}: {error}") from None


async def declare(store: Store, vault: Vault, declared: Sequence[IntegrationDeclared]) -> int:
    """Creates and changes what the configuration file declares, its secrets sealed; answers the position where that is
    done."""
    position = 0
    for one in declared:
        stream = messages.stream(integrations.STREAM, "main", one.id)
        before = (await store.load(integrations, stream)).state
        there = before.name is not None
        config = await vaulted.sealed(vault, "main", one.kind, one.id, one.config, before.config if there else None)
        create = msgspec.structs.replace(_declared(one), config=Raw(msgspec.json.encode(config)))
        change = integrations.Change(
            name=create.name,
            config=create.config,
            interval=msgspec.UNSET if create.interval is None else create.interval,
            schedule=Schedule(every=create.interval)
            if create.schedule is None and create.interval
            else create.schedule,
            policy=create.policy,
        )
        try:
            done = await store.execute(integrations, one.id, change if there else create)
        except errors.AlreadyExists:  # another process declared it at this moment
            continue
        position = max(position, done.position)
    return position
