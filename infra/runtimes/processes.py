"""Servers as plain processes of this machine, each beside a shim of its own that outlives us."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from domain import errors
from infra import config, log, processes
from infra.runtimes import Launch, Running, attached, cgroups, rlimits, shim_machine, users

_SHIM = str(Path(__file__).with_name("shim.py"))
_START_S = 30.0
_FREE_S = 2.0
#: How long what a server had started may go on ending, once the server itself has, when that was asked.
_GRACE_S = 10.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_UUID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")
#: When the machine runs out of memory, a server goes before what keeps the installation, unless it is not to be.
_FIRST_TO_GO = 500


class Processes:
    """The port `Runtime`, without containers. Its records lie in `run/servers` of the data directory.

    Mounts and addresses are not its business: a process sees the machine's own files and network. Where we are root, it
    sees of all that lies beside its own folder nothing. All servers are one user's, who can look into and end every
    process of his: whoever runs servers of people that do not trust each other wants containers.
    """

    def __init__(self, settings: config.Settings) -> None:
        """Raises config.InvalidSetting for a user that servers cannot run as."""
        self._folder = settings.directory / "run" / "servers"
        self._name = "undrift-" + hashlib.sha256(os.fsencode(os.path.abspath(settings.directory))).hexdigest()[:12]
        self._user = users.chosen(settings.servers.user)
        self._running_settings = attached.Settings(settings.servers.pids, self._user.uid)
        self._known: dict[str, attached.Attached] = {}
        self._one_at_a_time: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._groups = asyncio.Lock()
        self._told = False
        self._log = log.get()

    async def limits_enforced(self) -> Mapping[str, str]:
        """Limit -> what enforces it here: `cgroup v1`, `cgroup v2`, `rlimit`, `affinity` or `nothing`."""
        async with self._groups:
            return await asyncio.to_thread(self._enforced)

    def _enforced(self) -> dict[str, str]:
        places = cgroups.places(self._name)
        found = dict.fromkeys(cgroups.CONTROLLERS, "nothing")
        found |= {"memory": "rlimit", "pids": "rlimit", "cpuset": "affinity"}
        found |= {name: kind for name, kind in cgroups.Group(places).controllers.items() if name in found}
        cgroups.tidy(places)
        return found

    async def start(self, launch: Launch) -> Running:
        """Raises errors.SyncFailed with what is wrong, errors.Unavailable where nothing can be started at present."""
        _check(launch)
        async with self._one_at_a_time[launch.uuid]:
            before = self._known.pop(launch.uuid, None)
            if before is not None:
                if not before.is_over:
                    self._known[launch.uuid] = before
                    raise errors.SyncFailed("It runs already")
                await before.close()
            await self._tell()
            await self._until_free(self._folder / launch.uuid)
            try:
                async with self._groups:
                    group = await asyncio.to_thread(self._prepare, launch)
                descriptor, state = await asyncio.to_thread(self._start, launch, group)
            except OSError as error:
                raise errors.Unavailable(f"It could not be started: {error.strerror}") from error
            return self._attach(launch.uuid, descriptor, state)

    async def _until_free(self, folder: Path) -> None:
        """A shim whose node was killed while it began, or whose server has ended, is soon gone."""
        deadline = time.monotonic() + _FREE_S
        while await asyncio.to_thread(_is_taken, folder):
            if time.monotonic() > deadline:
                raise errors.SyncFailed("It runs already")
            await asyncio.sleep(0.05)

    async def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._log.info("limits of servers are enforced", user=self._user.name, **await self.limits_enforced())

    def _attach(self, uuid: str, descriptor: int, state: attached.State) -> attached.Attached:
        made = attached.Attached(self._folder / uuid, descriptor, state, self._running_settings)
        self._known[uuid] = made
        return made

    def _prepare(self, launch: Launch) -> cgroups.Group:
        """Its folder, without anything of a run before, and its groups, with their limits."""
        folder = self._folder / launch.uuid
        for each in (self._folder.parent, self._folder, folder):
            processes.private_directory(each)
        state = attached.read_state(folder)
        if state is not None and not state.shim_lives():
            attached.settle(folder, state)
        group = cgroups.Group.named(cgroups.places(self._name), f"{launch.uuid}.{secrets.token_hex(4)}")
        try:
            group.make()
            missing = group.apply(launch.limits, self._running_settings.pids)
        except BaseException:
            group.remove()
            raise
        if missing:
            self._log.info("limits that this machine does not know", server=launch.uuid, missing=missing)
        return group

    def _start(self, launch: Launch, group: cgroups.Group) -> tuple[int, attached.State]:
        folder = self._folder / launch.uuid
        try:
            answer = _run_shim(self._document(launch, group, folder))
            state = attached.read_state(folder)
            if "failed" in answer or state is None:
                raise errors.SyncFailed(f"It could not be started: {self._why(answer)}")
            return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), state
        except BaseException:
            shim_machine.kill_all(group.folders)
            group.remove()
            raise

    def _why(self, answer: dict[str, Any]) -> str:
        reason = str(answer.get("failed", "its record is gone"))
        if reason == "its folder: Permission denied":
            reason += f", for user {self._user.uid}: open the folders above it to be passed through (mode 0711)"
        return reason

    def _document(self, launch: Launch, group: cgroups.Group, folder: Path) -> dict[str, Any]:
        """What the shim is told, over a pipe: no list of processes shows it."""
        confines = rlimits.confines(launch.limits, self._running_settings.pids, attached.without(group), self._user.uid)
        ours = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": launch.folder, "USER": self._user.name}
        return {
            "folder": str(folder),
            "home": launch.folder,
            "command": ["/bin/sh", "-c", _PLACEHOLDER.sub(r"${\1}", launch.invocation)],
            "environment": {**ours, **launch.environment},
            "ids": [self._user.uid, self._user.gid] if self._user.change else None,
            "oom": 0 if launch.oom_disabled else _FIRST_TO_GO,
            "places": to_builtins(group.places),
            "rlimits": to_builtins(confines.rlimits),
            "cores": confines.cores,
            "grace_s": _GRACE_S,
        }

    async def adopt(self) -> dict[str, Running]:
        """Those that somebody else has started meanwhile are in it, too."""
        found: dict[str, Running] = {}
        for uuid, state in (await asyncio.to_thread(self._recorded)).items():
            async with self._one_at_a_time[uuid]:
                known = self._known.get(uuid)
                if known is not None and (known.identity.pid, known.identity.started) != (state.pid, state.started):
                    await known.close()
                    known = None
                if known is None:
                    with contextlib.suppress(FileNotFoundError):
                        descriptor = await asyncio.to_thread(os.open, self._folder / uuid, os.O_PATH | os.O_CLOEXEC)
                        found[uuid] = self._attach(uuid, descriptor, state)
                elif not known.is_over:
                    found[uuid] = known
        async with self._groups:
            await asyncio.to_thread(self._tidy)
        await self._tell()
        return found

    def _recorded(self) -> dict[str, attached.State]:
        """What runs, or has ended and nobody was told."""
        found = {}
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            state = attached.read_state(folder)
            if state is not None:
                end = attached.read_end(folder, state)
                if end is None or not end.told:
                    found[folder.name] = state
        return found

    def _tidy(self) -> None:
        cgroups.tidy(cgroups.places(self._name))

    async def remove(self, uuid: str) -> None:
        """Raises errors.SyncFailed while it runs; of one that was just killed, its end is waited for."""
        async with self._one_at_a_time[uuid]:
            known = self._known.get(uuid)
            if known is not None:
                if await known.lives():
                    raise errors.SyncFailed("It runs")
                await known.ended()
                del self._known[uuid]
                await known.close()
            if _UUID.fullmatch(uuid):
                await asyncio.to_thread(self._remove, self._folder / uuid)

    def _remove(self, folder: Path) -> None:
        state = attached.read_state(folder)
        if state is not None:
            if state.shim_lives():
                raise errors.SyncFailed("It runs")
            attached.settle(folder, state)
        shutil.rmtree(folder, ignore_errors=True)

    async def close(self) -> None:
        known = list(self._known.values())
        self._known.clear()
        await asyncio.gather(*(each.close() for each in known))
        async with self._groups:
            await asyncio.to_thread(self._tidy)


def open(settings: config.Settings) -> Processes:
    """Raises config.InvalidSetting."""
    return Processes(settings)


def _is_taken(folder: Path) -> bool:
    state = attached.read_state(folder)
    return state is not None and state.shim_lives()


def _check(launch: Launch) -> None:
    """Raises errors.SyncFailed for what no process can be given."""
    if not _UUID.fullmatch(launch.uuid):
        raise errors.SyncFailed("The server has no proper uuid")
    if not launch.invocation.strip():
        raise errors.SyncFailed("There is nothing to run: its start-up command is empty")
    if "\0" in launch.invocation:
        raise errors.SyncFailed("Its start-up command holds a NUL")
    for name, value in launch.environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise errors.SyncFailed(f"The variable {name!r} cannot be given to a process")


def _run_shim(document: dict[str, Any]) -> dict[str, Any]:
    """What the shim answers once its server runs, or has failed to; it is nobody's child then."""
    log_file = os.open(os.path.join(document["folder"], "shim.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with builtins.open(log_file, "wb") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _SHIM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={},
            cwd="/",
            start_new_session=True,
        )
    with process:
        try:
            answered, _ = process.communicate(json.dumps(document).encode(), timeout=_START_S)
        except subprocess.TimeoutExpired:  # a shim that nobody hears ends, and its server with it
            process.kill()
            raise errors.Unavailable("It takes too long to start") from None
    if not answered:
        raise errors.Unavailable("What was to start it has ended without a word")
    found: dict[str, Any] = json.loads(answered)
    return found
