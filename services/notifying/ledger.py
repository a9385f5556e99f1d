"""What became of attempts: recorded in the order in which they ended, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import asyncpg
import structlog
from msgspec import Struct

from infra.db import CONNECTION_LOST
from services.notifying.rows import Key, Own

log = structlog.get_logger("notifier")

#: Outcomes in one statement, and how many may wait for theirs before no more attempts begin.
_AT_ONCE, MOST = 500, 4000

_DELIVERED = """
update undrift.deliveries d set state = 'delivered', attempts = o.attempts, status = o.status, error = null,
    first_at = coalesce(d.first_at, o.at), last_at = o.at, took_ms = o.took_ms
from unnest($1::text[], $2::text[], $3::bigint[], $4::int[], $5::timestamptz[], $6::int[], $7::int[])
    as o(tenant, endpoint, seq, attempts, at, took_ms, status)
where d.tenant = o.tenant and d.endpoint = o.endpoint and d.seq = o.seq and d.state = 'pending'
"""
_FAILED = """
update undrift.deliveries d set state = o.state, attempts = o.attempts, status = o.status, error = o.error, due = o.due,
    first_at = coalesce(d.first_at, o.at), last_at = o.at, took_ms = o.took_ms
from unnest($1::text[], $2::text[], $3::bigint[], $4::int[], $5::timestamptz[], $6::int[], $7::int[], $8::text[],
    $9::text[], $10::timestamptz[]) as o(tenant, endpoint, seq, attempts, at, took_ms, status, state, error, due)
where d.tenant = o.tenant and d.endpoint = o.endpoint and d.seq = o.seq and d.state = 'pending'
"""
_HEALTH = """
update undrift.endpoints e set failures = h.failures, failing_since = h.failing_since, held_until = h.held_until
from unnest($1::text[], $2::text[], $3::int[], $4::timestamptz[], $5::timestamptz[])
    as h(tenant, endpoint, failures, failing_since, held_until)
where e.tenant = h.tenant and e.endpoint = h.endpoint
"""


class Outcome(Struct, frozen=True):
    """How one attempt ended. `at` is when it began; `due` is when to try again, where it is to be."""

    key: Key
    seq: int
    attempts: int
    at: datetime
    took_ms: int
    status: int | None = None
    error: str | None = None
    due: datetime | None = None

    @property
    def delivered(self) -> bool:
        return self.error is None


class Health(Struct, frozen=True):
    """How an endpoint fares: failures since the last success, since when, and until when it is left alone."""

    failures: int = 0
    failing_since: datetime | None = None
    held_until: datetime | None = None


class Ledger:
    """One flush at a time, so that of a stream what ended first is recorded first."""

    def __init__(self, own: Own, retry_s: float, drained: Callable[[], None]) -> None:
        self._own, self._retry_s, self._drained = own, retry_s, drained
        self._outcomes: list[Outcome] = []
        self._health: dict[Key, Health] = {}
        self._work = asyncio.Event()

    def record(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._work.set()

    def fares(self, key: Key, health: Health) -> None:
        self._health[key] = health
        self._work.set()

    @property
    def full(self) -> bool:
        """Whether so much waits to be recorded that no more is to begin."""
        return len(self._outcomes) >= MOST

    @property
    def empty(self) -> bool:
        return not (self._outcomes or self._health)

    async def run(self) -> None:
        """Serves until cancelled; what cannot be recorded now is recorded later."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._outcomes or self._health:
                await self.flush()

    async def flush(self) -> None:
        """Records what there is, as much as fits."""
        was_full = self.full
        outcomes, self._outcomes = self._outcomes[:_AT_ONCE], self._outcomes[_AT_ONCE:]
        health, self._health = self._health, {}
        try:
            await self._store(outcomes, health)
        except BaseException as error:
            self._outcomes[:0] = outcomes
            self._health = {**health, **self._health}
            if not isinstance(error, (*CONNECTION_LOST, asyncpg.PostgresError)):
                raise
            log.warning("what became of deliveries cannot be recorded now", reason=type(error).__name__)
            await asyncio.sleep(self._retry_s)
        if was_full and not self.full:
            self._drained()

    async def _store(self, outcomes: Sequence[Outcome], health: dict[Key, Health]) -> None:
        delivered = [one for one in outcomes if one.delivered]
        failed = [one for one in outcomes if not one.delivered]
        async with self._own.use() as connection:
            if not (failed or health):
                await connection.execute(_DELIVERED, *_common(delivered))
                return
            async with connection.transaction():
                await connection.execute(_DELIVERED, *_common(delivered))
                await connection.execute(
                    _FAILED,
                    *_common(failed),
                    ["exhausted" if one.due is None else "pending" for one in failed],
                    [one.error for one in failed],
                    [one.due or one.at for one in failed],
                )
                await connection.execute(
                    _HEALTH,
                    [key[0] for key in health],
                    [key[1] for key in health],
                    [one.failures for one in health.values()],
                    [one.failing_since for one in health.values()],
                    [one.held_until for one in health.values()],
                )


def _common(outcomes: Sequence[Outcome]) -> tuple[list[object], ...]:
    return (
        [one.key[0] for one in outcomes],
        [one.key[1] for one in outcomes],
        [one.seq for one in outcomes],
        [one.attempts for one in outcomes],
        [one.at for one in outcomes],
        [one.took_ms for one in outcomes],
        [one.status for one in outcomes],
    )
