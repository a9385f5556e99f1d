"""The gateway process."""

from __future__ import annotations

import asyncio
import sys

import structlog

from domain import keys, tenants
from infra import memory, secrets
from infra.eventstore.recorder import Claimed
from services import main, tokens
from services.gateway import retention, server, sweep
from services.gateway.app import Gateway
from services.main import Process

log = structlog.get_logger("gateway")

ADMIN = "admin"


async def admit_admin(process: Process) -> None:
    """Makes sure that the first tenant and the key of the installation's own token exist."""
    await process.store.execute(tenants, tenants.FIRST, tenants.Add(tenants.FIRST))
    token = secrets.admin_token(process.settings.directory, process.master)
    try:
        await process.store.execute(keys, ADMIN, keys.Add(ADMIN, tokens.digest(token), ("admin", "databases:raw")))
    except Claimed:
        log.warning("a key of another id is named admin")


async def run(process: Process) -> None:
    """The role."""
    memory.keep()
    settings = process.settings.gateway
    await admit_admin(process)
    sockets = server.bind(settings)
    ports = server.ports(sockets)
    gateway = Gateway(process, ports)
    await asyncio.to_thread(memory.trim)
    async with asyncio.TaskGroup() as group:
        following = [
            group.create_task(gateway.reads.run()),
            group.create_task(gateway.waits.run()),
            group.create_task(gateway.sockets.run()),
            group.create_task(gateway.watch_credentials()),
            group.create_task(gateway.live.run()),
            group.create_task(sweep.run(process)),
            group.create_task(gateway.limits.run()),
            group.create_task(retention.run(process, gateway.reads)),
        ]
        try:
            async with server.serving(gateway.app, sockets, settings, process.stopping, gateway.limits.told):
                await gateway.reads.reached(await process.store.head(), 30)
                process.announced.update(url=server.url(sockets), port=ports[0], ports=ports)
                process.ready.set()
                log.info("listening", url=server.url(sockets), ports=ports)
                await process.stopping.wait()
        finally:
            for task in following:
                task.cancel()


if __name__ == "__main__":
    sys.exit(main.main("gateway", lambda _: {"gateway": run}, clients=True))
