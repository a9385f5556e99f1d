"""Clients of SFTP, OpenSSH's and asyncssh's, and what a node's files are: for journeys and faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.doubles import panel as double
from tests.journeys.nodes import ask, sftp, sftp_address
from tests.journeys.system import System

OPENSSH = pytest.mark.skipif(not shutil.which("sftp"), reason="needs OpenSSH's sftp (package openssh-client)")
LOST = (asyncssh.Error, asyncssh.ChannelListenError, OSError, EOFError)
MIB = 1 << 20


def build(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = double.settings("")["build"]
    return {**made, **changed}


def folder(node: System, uuid: str) -> Path:
    made = node.directory / "servers" / uuid
    made.mkdir(parents=True, exist_ok=True)
    return made


@contextlib.contextmanager
def changed(node: System, panel: double.Panel, uuid: str, **settings: Any) -> Iterator[None]:
    panel.change(uuid, **settings)
    assert ask(node, "POST", f"/api/servers/{uuid}/sync").status == 204
    yield


async def refused(node: System, username: str, password: str, **more: Any) -> bool:
    try:
        async with sftp(node, username, password, **more):
            return False
    except asyncssh.PermissionDenied:
        return True


class OpenSsh:
    """OpenSSH's `sftp` in batch mode, with a password or a key."""

    def __init__(self, node: System, username: str, base: Path) -> None:
        self._host, self._port = sftp_address(node)
        self._username, self.base = username, base
        self._askpass = base / "askpass"
        self._askpass.write_text('#!/bin/sh\nprintf "%s\\n" "$PASSWORD"\n')
        self._askpass.chmod(0o700)

    def __call__(self, *commands: str, password: str = "ann's password", key: Path | None = None) -> tuple[int, str]:
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "NumberOfPasswordPrompts=1"]
        options += ["IdentitiesOnly=yes", f"IdentityFile={key or '/nonexistent'}", "IdentityAgent=none"]
        options += ["PreferredAuthentications=" + ("publickey" if key else "password"), f"User={self._username}"]
        given = ["sftp", "-F", "/dev/null", "-P", str(self._port), *(f"-o{option}" for option in options)]
        environment = {
            **os.environ,
            "SSH_ASKPASS": str(self._askpass),
            "SSH_ASKPASS_REQUIRE": "force",
            "PASSWORD": password,
        }
        done = subprocess.run(
            [*given, "-b", "-", self._host] if key else [*given, self._host],  # a batch of its own takes no password
            input="\n".join([*commands, "bye", ""]),
            env=environment,
            cwd=self.base,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
        )
        return done.returncode, done.stdout + done.stderr


def listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


async def write(client: asyncssh.SFTPClient, name: str, size: int) -> None:
    async with client.open(name, "wb") as file:
        for offset in range(0, size, 100_000):
            await file.write(b"x" * 100_000, offset)


async def read_again_and_again(client: asyncssh.SFTPClient, name: str) -> None:
    async with asyncio.timeout(20):
        while True:
            async with client.open(name, "rb") as file:
                await file.read()


def suspend(node: System, panel: double.Panel, uuid: str, suspended: bool = True) -> float:
    """When the Panel had its answer."""
    assert panel.toggle(node.ready["url"], uuid, suspend=suspended)
    return time.monotonic()


async def uploading(client: asyncssh.SFTPClient, name: str, begun: asyncio.Event) -> None:
    """Writes until that ends."""
    with contextlib.suppress(*LOST):
        async with client.open(name, "wb") as file:
            while True:
                await file.write(b"x" * 30_000, 0)
                begun.set()


async def cut_off(client: asyncssh.SFTPClient) -> bool:
    """Waits for it."""
    with contextlib.suppress(*LOST):
        async with asyncio.timeout(20):
            while True:
                await client.stat(".")
                await asyncio.sleep(0.01)
    try:
        await client.stat(".")
    except LOST:
        return True
    return False
