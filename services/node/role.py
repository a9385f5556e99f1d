"""The role `runtime`: of all processes of an installation that have it, the one that holds the lease acts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
_farewell = asyncio.Event()


class Lost(Exception):
    """Another process has the lease, or nobody knows who."""


def hear_farewell() -> None:
    """Before there is an event loop: whoever is told to end while starting has nothing to take leave of."""
    signal.signal(FAREWELL, lambda *_: os._exit(0))


async def run(process: Process) -> None:
    """The role."""
    asyncio.get_running_loop().add_signal_handler(FAREWELL, _farewell.set)
    ending = asyncio.create_task(_farewell.wait())
    acting = asyncio.create_task(_act(process))
    try:
        await asyncio.wait([acting, ending], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            acting.result()
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
        fleet = Fleet(process, runtime, Volumes(process.settings), waits, lease.guard)
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
    lease = None
    while lease is None:
        try:
            lease = await process.leases.take(_LEASE)
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


async def _keep(process: Process, lease: Lease) -> None:
    while True:
        try:
            lost = await process.leases.beat([lease])
        except CONNECTION_LOST:
            lost = set()  # nobody else can take it either
        if lost:
            raise Lost("another process carries out what servers are to do")
        await asyncio.sleep(process.settings.jobs.beat_s)
