"""Servers as plain processes of this machine, each beside a shim of its own that outlives us."""

from __future__ import annotations

from domain import errors
from infra import config
from infra.runtimes import Launch, Running


class Processes:
    """The port `Runtime`, without containers. Its records lie in `run/servers` of the data directory."""

    def __init__(self, settings: config.Settings) -> None:
        self._settings = settings
        self._folder = settings.directory / "run" / "servers"

    async def start(self, launch: Launch) -> Running:
        """Raises errors.SyncFailed with what is wrong, errors.Unavailable where nothing can be started at present."""
        raise errors.Unavailable("Servers cannot be started here yet")

    async def adopt(self) -> dict[str, Running]:
        return {}

    async def remove(self, uuid: str) -> None:
        return

    async def close(self) -> None:
        return
