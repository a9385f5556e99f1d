"""The role `runtime`: of all processes of an installation that have it, the one that holds the lease acts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from infra.db import CONNECTION_LOST
from infra.leases import Lease
from infra.volumes import Volumes
from services.gateway.waits import Waits
from services.main import Process
from services.node import desk, runtimes
from services.node.fleet import Fleet
from services.supervised import FAREWELL

log = structlog.get_logger("node")

#: Of the time that `up` has for its own end, what servers have to end by themselves.
_GRACE = 0.35

_LEASE = "node"
_farewell, _began = asyncio.Event(), asyncio.Event()
#: Beats that whoever holds the lease may miss when there is no time to wait until it counts as dead.
_MISSED = 2.5


class Lost(Exception):
    """Another process has the lease, or nobody knows who."""


def hear_farewell() -> None:
    """Before there is an event loop: whoever is told to end while starting has servers of another to end. Until now
    the signal was blocked, and waits if it has come."""
    signal.signal(FAREWELL, lambda *_: _farewell.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {FAREWELL})


async def run(process: Process) -> None:
    """The role."""
    asyncio.get_running_loop().add_signal_handler(FAREWELL, _farewell.set)
    ending = asyncio.create_task(_farewell.wait())
    acting = asyncio.create_task(_act(process))
    try:
        await asyncio.wait([acting, ending], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            acting.result()
        began = asyncio.create_task(_began.wait())  # it may still wait for the lease of one that has died
        await asyncio.wait([acting, began], timeout=process.settings.up.stop_s * _GRACE, return_when="FIRST_COMPLETED")
        began.cancel()
        acting.cancel()
        await asyncio.gather(acting, return_exceptions=True)
        os.kill(os.getpid(), signal.SIGTERM)
        await process.stopping.wait()
    finally:
        ending.cancel()
        acting.cancel()
        await asyncio.gather(acting, return_exceptions=True)


async def _act(process: Process) -> None:
    async with _leased(process) as lease, runtimes.opened(process.settings) as runtime:
        waits = Waits(process.store, process.tail)
        fleet = Fleet(process, runtime, Volumes(process.settings), waits, lease.guard, _began)
        async with asyncio.TaskGroup() as group:
            group.create_task(_keep(process, lease), name="node lease")
            group.create_task(waits.run(), name="node waits")
            try:
                async with desk.answering(process.bus, fleet):
                    await fleet.run()
            finally:
                if _farewell.is_set():
                    await fleet.end(process.settings.up.stop_s * _GRACE)
                await fleet.leave()


@asynccontextmanager
async def _leased(process: Process) -> AsyncIterator[Lease]:
    """While the block runs; waits until nobody else has it."""
    lease: Lease | None = None
    seen: tuple[Any, float] = (None, 0.0)
    while lease is None:
        try:
            lease = await process.leases.take(_LEASE)
            if lease is None and _farewell.is_set():
                seen = await _hurry(process, seen)
        except CONNECTION_LOST as error:
            log.warning("the node waits for Postgres", reason=type(error).__name__)
        if lease is None:
            await asyncio.sleep(process.settings.jobs.beat_s / 2)
    try:
        yield lease
    finally:
        try:
            async with asyncio.timeout(1):
                await process.leases.release(lease)
        except (*CONNECTION_LOST, TimeoutError) as error:
            log.warning("the lease of the node was not given back", reason=type(error).__name__)


async def _hurry(process: Process, seen: tuple[Any, float]) -> tuple[Any, float]:
    """Gives back the lease of one that does not beat: servers that it has left must end with `up`."""
    row = await process.db.fetchrow("select owner, fence, beat from undrift.leases where name = $1", _LEASE)
    now = time.monotonic()
    if row is None or tuple(row) != seen[0]:
        return None if row is None else tuple(row), now
    if now - seen[1] >= _MISSED * process.settings.jobs.beat_s:
        await process.leases.release(Lease(_LEASE, row["owner"], row["fence"]))
    return seen


async def _keep(process: Process, lease: Lease) -> None:
    while True:
        try:
            lost = await process.leases.beat([lease])
        except CONNECTION_LOST:
            lost = set()  # nobody else can take it either
        if lost:
            raise Lost("another process carries out what servers are to do")
        await asyncio.sleep(process.settings.jobs.beat_s)
