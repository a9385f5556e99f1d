"""A data directory in which servers run as real processes, and what they say; and nothing of them afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from domain import server_config
from infra import config
from infra.runtimes import Launch, attached, processes, shim_machine

PATIENCE_S = 20.0
ROOT = os.geteuid() == 0
#: Ourselves, since this Python may lie where nobody else can go.
AS_WE_ARE = f"{os.geteuid()}:{os.getegid()}"


async def until(true: Callable[[], object], what: str = "it") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come about"
        await asyncio.sleep(0.01)


def limits(memory: int = 0, cpu: int = 0, threads: str | None = None) -> server_config.Limits:
    """Megabytes, percent of a core, cores."""
    return server_config.limits(server_config.Build(memory, 0, 500, cpu, threads, 0, True))


class Server:
    """One that runs, and the lines it said since we listen."""

    def __init__(self, running: attached.Attached) -> None:
        self.running = running
        self.lines: list[str] = []
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for line in self.running.output():
            self.lines.append(line.decode())

    async def says(self, line: str) -> None:
        await until(lambda: line in self.lines or self.listening.done(), f"{line!r} among {self.lines[-20:]}")
        assert line in self.lines

    async def end(self) -> int | None:
        code = await asyncio.wait_for(self.running.ended(), PATIENCE_S)
        await self.listening
        return code

    @property
    def pid(self) -> int:
        return self.running.identity.pid


class House:
    """Runtimes of one data directory."""

    def __init__(self, directory: Path, user: str = "", pids: int = 512) -> None:
        self.settings = config.Settings(data_dir=str(directory))
        self.settings.servers.user = user
        self.settings.servers.pids = pids
        self.runtimes: list[processes.Processes] = []
        self.servers: list[Server] = []
        self.runtime = self.another()

    def another(self) -> processes.Processes:
        """As after a restart."""
        made = processes.Processes(self.settings)
        self.runtimes.append(made)
        return made

    def folder(self, uuid: str) -> Path:
        folder = self.settings.directory / "servers" / uuid
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
            if os.geteuid() == 0 and not self.settings.servers.user:
                os.chown(folder, 988, 988)
        return folder

    def record(self, uuid: str) -> Path:
        return self.settings.directory / "run" / "servers" / uuid

    def state(self, uuid: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.record(uuid) / "state").read_text())
        return found

    def launch(self, invocation: str, uuid: str = "one", **more: Any) -> Launch:
        given = {"environment": {}, "limits": limits(), **more}
        return Launch(uuid, str(self.folder(uuid)), "image", invocation, **given)

    async def start(self, invocation: str, uuid: str = "one", **more: Any) -> Server:
        return self.hear(await self.runtime.start(self.launch(invocation, uuid, **more)))

    def hear(self, running: object) -> Server:
        assert isinstance(running, attached.Attached)
        self.servers.append(Server(running))
        return self.servers[-1]

    async def leave(self) -> None:
        records = self.settings.directory / "run" / "servers"
        for name in os.listdir(records) if records.exists() else ():
            state = attached.read_state(records / name)
            if state is not None:
                if state.shim_lives():
                    os.kill(state.shim, signal.SIGKILL)
                await until(lambda state=state: not state.shim_lives())  # type: ignore[misc]
                shim_machine.kill_all([place.folder for place in state.places])
                shim_machine.remove_groups([place.folder for place in state.places])
        for runtime in self.runtimes:
            await runtime.close()
        for server in self.servers:
            server.listening.cancel()
            with suppress(asyncio.CancelledError):
                await server.listening
        shutil.rmtree(self.settings.directory, ignore_errors=True)
