"""The settings that the Panel wants in a server's files before its start.

A process of its own writes them: some patterns take for ever, and whoever tries one is deaf meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from typing import Any

import msgspec
from msgspec import Struct

from domain.server_config import Configuration
from infra import server_files
from infra.volumes import Volumes

_PATIENCE_S = 30.0
#: Of the processor; after it the kernel ends the process, whoever is left to wait for it.
_CPU_S = 20
_NONE = ("", "[]")


class _Order(Struct):
    """`folder` is a descriptor."""

    folder: int
    files: str
    variables: dict[str, Any]


async def written(volumes: Volumes, one: Configuration, interface: str) -> list[str]:
    """From a configuration with its secrets; answers what could not be done. `interface` is this machine's address as
    servers see it. Raises OSError."""
    if one.process.files in _NONE:
        return []
    folder = await asyncio.to_thread(volumes.open, one.uuid)
    try:
        order = msgspec.json.encode(_Order(folder, one.process.files, variables(one, interface)))
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "services.node.writing"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=(folder,),
        )
    finally:
        os.close(folder)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            answer, _ = await child.communicate(order)
        return msgspec.json.decode(answer, type=list[str])
    except (TimeoutError, msgspec.MsgspecError):
        return ["the settings in the files of the server could not all be written"]
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def variables(one: Configuration, interface: str) -> dict[str, Any]:
    """What placeholders stand for that the Panel has left to the node, and those that older ones have."""
    default = one.allocations.default
    build = {
        "default": {"ip": "", "port": ""} if default is None else {"ip": default.ip, "port": default.port},
        "memory": one.build.memory_limit,
        "swap": one.build.swap,
        "io": one.build.io_weight,
        "cpu": one.build.cpu_limit,
        "disk": one.build.disk_space,
        "image": one.startup.image,
        "env": one.environment,
    }
    return {
        "config": {"docker": {"interface": interface, "network": {"interface": interface}}},
        "server": {"uuid": one.uuid, "build": build, "environment": one.environment},
        "env": one.environment,
    }


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    said = server_files.apply(order.folder, order.files, order.variables)
    sys.stdout.buffer.write(msgspec.json.encode(said))


if __name__ == "__main__":
    main()
