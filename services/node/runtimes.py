"""Which runtime a node has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infra import config
from infra.runtimes import Runtime
from infra.runtimes.docker import Docker
from infra.runtimes.processes import Processes


def make(settings: config.Settings) -> Runtime:
    """Raises config.InvalidSetting where servers are not to run here."""
    match settings.servers.runtime:
        case "processes":
            return Processes(settings)
        case "docker":
            return Docker(settings)
        case "none":
            raise config.InvalidSetting("servers.runtime: `none` runs no servers, so this process has nothing to do")


async def interface(runtime: Runtime) -> str:
    """This machine's address as servers see it. Raises errors.SyncFailed, errors.Unavailable."""
    return await runtime.interface() if isinstance(runtime, Docker) else "127.0.0.1"


@asynccontextmanager
async def opened(settings: config.Settings) -> AsyncIterator[Runtime]:
    runtime = make(settings)
    try:
        yield runtime
    finally:
        await runtime.close()
