"""Delivers webhooks: makes a row of each message for each endpoint, posts it, and records what became of it.

One process does so at a time, while its lease lives; another one takes over where it was. What was under way when a
process died is sent once more, under the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import asyncpg
import structlog

from domain import errors, messages, webhooks
from infra import egress
from infra.db import CONNECTION_LOST
from infra.leases import Lease
from infra.vault import Vault
from services.main import Process
from services.notifying import retention, rows
from services.notifying.courier import Courier
from services.notifying.directory import Directory
from services.notifying.fanout import Fanout, Known, Overtaken
from services.notifying.ledger import Health, Ledger
from services.notifying.letters import Letters
from services.notifying.office import Office
from services.notifying.queue import Queue
from services.notifying.rows import Key, Own, Row

log = structlog.get_logger("notifier")

LEASE = "notifier"
_METADATA = messages.Metadata(actor="system:notifier")
#: What is under way when the process is to end has so long, and so long what became of it to be recorded.
_GRACE_S, _LAST_S = 2.0, 2.0
_TROUBLE = (*CONNECTION_LOST, asyncpg.PostgresError, errors.Unavailable)


class Lost(Exception):
    """Another notifier has the lease."""


class Notifier:
    """One at a time leads."""

    def __init__(self, process: Process, resolver: egress.Resolve = egress.system_resolver) -> None:
        self._process, self._resolver = process, resolver

    async def run(self) -> None:
        """Serves until cancelled."""
        settings = self._process.settings
        while True:
            try:
                if (lease := await self._process.leases.take(LEASE)) is not None:
                    await self._lead(lease)
            except _TROUBLE as error:
                log.warning("the notifier waits", reason=type(error).__name__)
            await asyncio.sleep(min(settings.webhooks.poll_s, settings.jobs.beat_s))

    async def _lead(self, lease: Lease) -> None:
        leader = Leader(self._process, lease, self._resolver)
        try:
            await leader.run()
        except* (Overtaken, Lost) as group:
            log.warning("another notifier was here", reason=repr(group.exceptions[0]))
        except* _TROUBLE as group:
            log.warning("the notifier waits for Postgres", reason=type(group.exceptions[0]).__name__)
        finally:
            with contextlib.suppress(*CONNECTION_LOST):
                await self._process.leases.release(lease)


class Leader:
    """What the one that leads has in memory."""

    def __init__(self, process: Process, lease: Lease, resolver: egress.Resolve) -> None:
        self._process, self._lease = process, lease
        self._settings = process.settings.webhooks
        self._retry_s = process.settings.eventstore.reconnect_s
        self._beaten = time.monotonic()
        making, reading, recording = (Own(process.db) for _ in range(3))
        self._owned = (making, reading, recording)
        self._couriers: dict[Key, Courier] = {}
        self._to_disable: dict[Key, str] = {}
        self._disabling = asyncio.Event()
        self._ledger = Ledger(recording, self._retry_s, self._pump_all)
        self._office = Office(
            self._settings,
            Letters(process.store),
            self._ledger,
            Vault(process.db, process.master),
            reading,
            self._leads,
            self._disable,
            self._retry_s,
            resolver,
        )
        self._fanout = Fanout(making, process.store, process.tail, self._retry_s, self._offer, self._forget)
        self._live = Directory()

    def _leads(self) -> bool:
        """Whether nobody else can have taken the lease yet. A process that stood still finds out by itself."""
        return time.monotonic() - self._beaten < self._process.settings.jobs.lease_s

    async def run(self) -> None:
        """Until cancelled, or until another notifier is found to lead: raises a group with Overtaken or Lost."""
        try:
            known = await self._fanout.load()
            self._live = Directory(self._fanout.directory.states)
            for key, state in self._live.states.items():
                self._courier(key, known.get(key)).update(state)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat())
                group.create_task(self._ledger.run())
                group.create_task(self._fanout.run())
                group.create_task(self._fanout.replay())
                group.create_task(self._follow())
                group.create_task(self._disables())
                group.create_task(self._look())
                group.create_task(retention.run(self._process))
        finally:
            await self._end()

    async def _end(self) -> None:
        """What is under way may end; what became of it is recorded if that can be done soon."""
        await self._office.close(_GRACE_S)
        with contextlib.suppress(TimeoutError, *CONNECTION_LOST):
            async with asyncio.timeout(_LAST_S):
                while not self._ledger.empty:
                    await self._ledger.flush()
        for courier in self._couriers.values():
            courier.close()
        for own in self._owned:
            await own.close()

    async def _beat(self) -> None:
        while True:
            begun = time.monotonic()
            with contextlib.suppress(*CONNECTION_LOST):
                if await self._process.leases.beat([self._lease]):
                    raise Lost
                idle = not self._leads()
                self._beaten = begun
                if idle:
                    self._pump_all()
            await asyncio.sleep(self._process.settings.jobs.beat_s)

    async def _follow(self) -> None:
        """Endpoints as they are now, however far the fan-out is behind."""
        subscription = self._process.tail.subscribe(self._fanout.position, contexts=frozenset({webhooks.STREAM}))
        try:
            async for page in subscription:
                for key in {key: None for one in page if (key := self._live.follow(one)) is not None}:
                    state = self._live.states.get(key)
                    if state is not None:
                        self._courier(key).update(state)
                    elif key in self._couriers:
                        self._couriers[key].update(webhooks.initial)
        finally:
            subscription.close()

    async def _look(self) -> None:
        """What somebody wants once more, and what nobody woke anybody for."""
        while True:
            try:
                await self._fanout.note()
                for key, wanted in (await rows.asked(self._office.reading)).items():
                    if (courier := self._couriers.get(key)) is not None:
                        courier.again(wanted)
            except _TROUBLE as error:
                log.warning("the notifier waits for Postgres", reason=type(error).__name__)
            self._pump_all()
            await asyncio.sleep(self._settings.poll_s)

    def _courier(self, key: Key, known: Known | None = None) -> Courier:
        courier = self._couriers.get(key)
        if courier is None:
            queue = Queue(last=known.seq) if known is not None else Queue()
            health = known.health if known is not None else Health()
            courier = self._couriers[key] = Courier(self._office, key, queue, health, fresh=known is None)
        return courier

    def _offer(self, key: Key, made: Sequence[Row]) -> None:
        courier = self._courier(key)
        if made:
            courier.queue.offer(made)
            courier.pump()

    def _forget(self, key: Key) -> None:
        if (courier := self._couriers.pop(key, None)) is not None:
            courier.close()

    def _pump_all(self) -> None:
        for courier in list(self._couriers.values()):
            courier.pump()

    # Disabling.

    def _disable(self, key: Key, reason: str) -> None:
        self._to_disable[key] = reason
        self._disabling.set()

    async def _disables(self) -> None:
        """Says so in the log, as often as need be."""
        while True:
            await self._disabling.wait()
            self._disabling.clear()
            for key, reason in list(self._to_disable.items()):
                try:
                    await self._say_disabled(key, reason)
                except _TROUBLE as error:
                    log.warning("an endpoint cannot be disabled now", reason=type(error).__name__)
                    self._disabling.set()
            if self._disabling.is_set():
                await asyncio.sleep(self._retry_s)

    async def _say_disabled(self, key: Key, reason: str) -> None:
        tenant, endpoint = key
        with contextlib.suppress(errors.NotFound, errors.Conflict):
            await self._process.store.execute(
                webhooks,
                endpoint,
                webhooks.Disable(reason),
                tenant=tenant,
                metadata=_METADATA,
                guards=[self._lease.guard],
            )
            log.warning("an endpoint was disabled", endpoint=endpoint, reason=reason)
        del self._to_disable[key]


async def run(process: Process) -> None:
    """The role."""
    await Notifier(process).run()
