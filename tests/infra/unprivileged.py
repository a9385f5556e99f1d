"""Servers of an ordinary user, who may make no control groups: a program of its own, since it gives up being root.

`python -m tests.infra.unprivileged DIRECTORY PYTHON` prints what it saw as JSON; PYTHON is one that everybody can run.
"""

from __future__ import annotations

import concurrent.futures.thread  # while it can be read
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import uvloop

from domain.server_config import Stop
from infra import processes as parents
from infra.runtimes import shim_machine
from tests.infra.houses import House, limits, until

NOBODY = 65534
HOARDER = """
held = []
for line in iter(input, "end"):
    try:
        held.append(b"x" * (int(line) << 20))
        print("holds", sum(map(len, held)) >> 20, flush=True)
    except MemoryError:
        print("no more", flush=True)
"""


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is ours, as after an exec


async def scenes(directory: Path, python: str) -> dict[str, Any]:
    house = House(directory, pids=30)
    try:
        return {
            "enforced": dict(await house.runtime.limits_enforced()),
            "memory": await memory(house, python),
            "pids": await pids(house),
            "whole": await whole(house),
            "last": await flood(house),
        }
    finally:
        await house.leave()


async def memory(house: House, python: str) -> list[str]:
    server = await house.start(f"exec {python} -I -S -c '{HOARDER}'", limits=limits(memory=500))
    await server.running.say("40")
    await server.says("holds 40")
    await server.running.limit(limits(memory=100))
    await server.running.say("200")
    await server.says("no more")
    assert (await server.running.usage()).memory_bytes > 40 << 20
    await server.running.say("end")
    assert await server.end() == 0
    return server.lines


async def pids(house: House) -> bool:
    bomb = "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; echo all"
    server = await house.start(f"id -u; ({bomb}); cat")
    await until(lambda: any("fork" in line.lower() for line in server.lines), "a refusal")
    assert server.lines[0] == str(os.geteuid())
    await server.running.kill()
    return await server.end() == -9


async def whole(house: House) -> bool:
    server = await house.start("setsid sleep 1000 & sleep 0.1; echo up; exec cat")
    await server.says("up")
    left = shim_machine.below(house.state("one")["shim"])
    await house.runtime.close()
    again = house.hear((await house.another().adopt())["one"])
    await again.running.stop(Stop("stop", None))
    assert await again.end() == -15
    return len(left) == 2 and not any(map(shim_machine.started, left))


async def flood(house: House) -> str:
    """It ends while there is much to hear of it still."""
    server = await house.start("yes | head -c 1000000; echo why it ended", "two")
    assert await server.end() == 0
    return server.lines[-1]


def main() -> None:
    directory, python = Path(sys.argv[1]), sys.argv[2]
    parents.adopt_orphans()
    if os.geteuid() == 0:
        assert concurrent.futures.thread
        become_nobody()
        sys.executable = python
    print(json.dumps(uvloop.run(scenes(directory / "data", python))))  # the loop that services have


if __name__ == "__main__":
    main()
