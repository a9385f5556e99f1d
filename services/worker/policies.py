"""What an integration's policy does to a run: whether it may begin, how long it may take, whether it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from domain import errors, integrations, jobs, messages, policies
from infra.leases import Lease, Leases
from projections import integrations as integrations_read
from services import integrations as declared
from services import projector
from services.main import Process
from services.worker import child
from services.worker.remotes import LONGEST_S

_LOOKS, _LOOK_S = 50, 0.02


class Policy:
    """Of one run of one job; jobs without an integration, and those that somebody waits for, are tried once."""

    def __init__(self, process: Process, tenant: str, state: jobs.Job, rules: policies.Rules | None) -> None:
        assert state.queued is not None
        self._process, self._tenant, self._state, self._rules = process, tenant, state, rules
        self._queued = state.queued
        self._ticket = state.queued.ticket

    @property
    def timeout_s(self) -> float | None:
        """How long this attempt may take."""
        return None if self._rules is None or not self._rules.timeout else self._rules.timeout / 1000

    def timed_out(self) -> child.Failed:
        assert self._rules is not None
        return child.Failed(errors.TimedOut.code, f"It took longer than {self._rules.timeout / 1000:g} s", {})

    async def wait(self, since: int) -> jobs.Pause | None:
        """For a scheduled run, or a further attempt, that an open breaker leaves no room; whoever asks for a run by
        hand gets it. `since` is a position that the read model must have seen, if it does so soon."""
        integration = self._ticket.integration
        if integration is None or self._rules is None or self._state.by_hand:
            return None
        if not await self._seen(since):
            return None
        row = await integrations_read.get(self._process.db, self._tenant, integration)
        found = None if row is None else declared.breaker(self._process.settings, row, datetime.now(UTC))
        if found is None or found.state != "open":
            return None
        reason = f"It waits, because the last {found.failures} attempts of its integration failed"
        return jobs.Pause(reason, until=found.probe_at)

    async def _seen(self, position: int) -> bool:
        for _ in range(_LOOKS):
            at = await projector.positions(self._process.db, [integrations_read])
            if at[integrations_read.NAME] >= position:
                return True
            await asyncio.sleep(_LOOK_S)
        return False

    def again(self, said: child.Failed, state: jobs.Job, counters: jobs.Counters) -> jobs.Pause | None:
        """The pause before another attempt at what may pass by itself, unless there were enough; `state` is the job's
        by now."""
        tried = state.tried + 1
        if self._rules is None or self._queued.waited or tried >= self._rules.attempts:
            return None
        if not errors.is_transient(said.code):
            return None
        wait = max(policies.backoff(self._rules, self._ticket.job, tried), _asked(said.details))
        until = datetime.now(UTC) + wait
        return jobs.Pause(said.message, code=said.code, until=until, counters=counters, usage=said.usage)


def _asked(details: dict[str, Any]) -> timedelta:
    """How long the remote asked to be left alone."""
    asked = details.get("retry_after")
    if not isinstance(asked, int | float) or not asked > 0:
        return timedelta()
    return timedelta(seconds=min(float(asked), LONGEST_S))


async def load(process: Process, tenant: str, state: jobs.Job) -> Policy:
    """As the integration says now."""
    assert state.queued is not None
    integration = state.queued.ticket.integration
    if integration is None:
        return Policy(process, tenant, state, None)
    stream = messages.stream(integrations.STREAM, tenant, integration)
    found: integrations.Integration = (await process.store.load(integrations, stream)).state
    return Policy(process, tenant, state, declared.rules(process.settings, state.queued.ticket.kind, found.policy))


class Slots:
    """How many jobs of integrations run at a time, over all workers: each holds one of so many leases. Those of a
    worker that died are free once their beat has stood still."""

    def __init__(self, leases: Leases, size: int | None) -> None:
        self._leases, self._size = leases, size
        self._held: dict[str, Lease] = {}

    @property
    def held(self) -> Sequence[Lease]:
        return list(self._held.values())

    async def take(self, stream: str) -> bool:
        """Whether there was one for the job of that stream."""
        if self._size is None:
            return True
        mine = {lease.name for lease in self._held.values()}
        for name in (f"slot/{number}" for number in range(self._size)):
            if name not in mine and (lease := await self._leases.take(name)) is not None:
                self._held[stream] = lease
                return True
        return False

    async def release(self, stream: str) -> None:
        lease = self._held.pop(stream, None)
        if lease is not None:
            await self._leases.release(lease)
