"""Docker Engines for tests: the double, and a real one where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from domain import server_config
from domain.server_config import Allocations, Build, Limits
from infra import config
from infra.runtimes import Launch, Running
from infra.runtimes.docker import Docker
from tests.doubles.engine import Engine
from tests.doubles.engine_process import ENTRYPOINT

IMAGE = "undrift-test:latest"
UUID = "8d3f9a2e-5c7b-4f1e-9d2a-6e8f1c3b5a7d"
_PROGRAMS = ("sh", "sed", "sleep", "cat", "env")


def settings(socket: str, data: Path, **changed: Any) -> config.Settings:
    return config.Settings(data_dir=str(data), servers=config.Servers(docker_socket=socket, **changed))


def limits(memory: int = 64, swap: int = 0, cpu: int = 100, threads: str | None = None) -> Limits:
    return server_config.limits(Build(memory, swap, 500, cpu, threads, 0, False))


def launch(folder: Path, script: str, uuid: str = UUID, **changed: Any) -> Launch:
    """`script` is what the image's shell evaluates."""
    made: dict[str, Any] = {
        "uuid": uuid,
        "folder": str(folder),
        "image": IMAGE,
        "invocation": script,
        "environment": {"TZ": "UTC", "STARTUP": script, "SERVER_IP": "127.0.0.1", **changed.pop("environment", {})},
        "limits": limits(),
        "allocations": Allocations(False, None, {}),
        "oom_disabled": False,
    }
    return Launch(**{**made, **changed})


async def lines(running: Running, until: str, within_s: float = 20.0) -> list[str]:
    """What it says until a line has those words."""
    found: list[str] = []
    async with asyncio.timeout(within_s):
        async with contextlib.aclosing(running.output()) as output:  # type: ignore[type-var]
            async for line in output:
                found.append(line.decode())
                if until in found[-1]:
                    break
    return found


def _session(socket: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=socket))


async def inspect(socket: str, name: str) -> dict[str, Any]:
    async with _session(socket) as session, session.get(f"http://docker/containers/{name}/json") as answer:
        found: dict[str, Any] = await answer.json()
        return found if answer.status == 200 else {}


async def sweep(socket: str) -> None:
    """Removes what a test has left at a real engine."""
    async with _session(socket) as session:
        await session.delete(f"http://docker/containers/{UUID}", params={"force": "1"})


@contextlib.contextmanager
def double(folder: Path) -> Iterator[Engine]:
    with Engine(folder) as engine:
        engine.images.add(IMAGE)
        yield engine


@contextlib.contextmanager
def real(folder: Path) -> Iterator[str]:
    """Its socket. Skips the test where there is none."""
    if (socket := os.environ.get("UNDRIFT_TEST_DOCKER_SOCKET", "/var/run/docker.sock")) and Path(socket).exists():
        _import(socket)
        yield socket
        return
    if shutil.which("podman") is None:
        pytest.skip("no engine answers, and podman (Debian: podman) is not installed")
    socket, said = str(folder / "podman.sock"), folder / "podman.log"
    stores = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]
    command = ["podman", *stores, "system", "service", "--time", "0", f"unix://{socket}"]
    with said.open("wb") as file:
        program = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        for _ in range(200):
            if Path(socket).exists() or program.poll() is not None:
                break
            time.sleep(0.05)
        if program.poll() is not None:
            pytest.skip(f"podman system service does not run here: {said.read_text()[-300:]}")
        _import(socket)
        yield socket
    finally:
        program.terminate()
        program.wait(20)


def _import(socket: str) -> None:
    """An image of this machine's own shell, with the start-up of images of servers."""
    changes = [f"ENTRYPOINT {json.dumps(ENTRYPOINT)}", "WORKDIR /home/container"]
    answer = asyncio.run(_send(socket, changes))
    if "error" in answer:
        pytest.skip(f"the engine does not take an image: {answer[-300:]}")


async def _send(socket: str, changes: list[str]) -> str:
    name, tag = IMAGE.split(":")
    query = [("fromSrc", "-"), ("repo", name), ("tag", tag), *(("changes", change) for change in changes)]
    url = "http://docker/images/create"
    async with _session(socket) as session, session.post(url, params=query, data=io.BytesIO(_archive())) as answer:
        return await answer.text()


def _archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for folder in ("bin", "lib", "lib64", "tmp", "proc", "dev", "etc", "home", "home/container"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            archive.addfile(entry)
        libraries: set[str] = set()
        for name in _PROGRAMS:
            path = shutil.which(name)
            assert path is not None
            archive.add(os.path.realpath(path), f"bin/{name}")
            linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
            libraries |= set(re.findall(r"(/\S+\.so\S*)", linked))
        for library in libraries:
            archive.add(os.path.realpath(library), library.lstrip("/"))
    return file.getvalue()


@contextlib.asynccontextmanager
async def runtime(socket: str, data: Path, **changed: Any) -> AsyncIterator[Docker]:
    made = Docker(settings(socket, data, **changed))
    try:
        yield made
    finally:
        await made.close()
