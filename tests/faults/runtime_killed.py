"""A node that is killed at any moment while it starts, stops and kills a server: `DIRECTORY ROUNDS SEED`.

The server holds a lock while anything of it lives, and says so when it finds it held: then there were two of it.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from domain import errors
from domain.server_config import Stop
from infra import log
from infra.runtimes import Running, attached, cgroups, shim_machine
from tests.infra.houses import House, limits

SERVER = "exec flock -n held sh -c 'sleep 1000 & echo up; while :; do sleep 0.05; done' || echo doubled >> doubled"
STOP = Stop("stop", None)


async def node(house: House, chance: random.Random) -> None:
    """Until it is killed."""
    running: Running | None = (await house.runtime.adopt()).get("one")
    while True:
        if running is not None:
            await asyncio.sleep(chance.random() * 0.1)
            if chance.random() < 0.5:
                await running.stop(STOP)
            await running.kill()
            await running.ended()
        running = None
        with suppress(errors.Unavailable):  # its shim was killed before it could say anything
            running = await house.runtime.start(house.launch(SERVER, limits=limits(memory=200, cpu=100)))


def kill_shim(house: House) -> bool:
    state = attached.read_state(house.record("one"))
    if state is None or not state.shim_lives():
        return False
    with suppress(ProcessLookupError):
        os.kill(state.shim, signal.SIGKILL)
    return True


def main() -> None:
    directory, rounds, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
    log.get()
    House(directory).folder("one")
    shims = 0
    for round_ in range(rounds):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            asyncio.run(node(House(directory), random.Random(f"{sys.argv[3]} {round_}")))
        time.sleep(chance.random() * 0.6)
        shims += chance.random() < 0.3 and kill_shim(House(directory))
        if chance.random() < 0.5:
            time.sleep(chance.random() * 0.2)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            raise SystemExit(f"round {round_}: a node ended by itself with {status}")
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    asyncio.run(settle(House(directory)))
    print(f"{rounds} nodes and {shims} shims were killed")


async def settle(house: House) -> None:
    """There is one of it or none, and then none."""
    doubled = house.folder("one") / "doubled"
    if doubled.exists():
        raise SystemExit(f"twice at once: {doubled.read_text().count('doubled')} times")
    cgroups.UNUSED_S = 0.0
    running = (await house.runtime.adopt()).get("one")
    if running is not None:
        await running.kill()
        await running.ended()
    left = [name for name in os.listdir("/proc") if name.isdecimal() and _is_of(house, int(name))]
    if left:
        raise SystemExit(f"{len(left)} processes are left")
    await house.leave()


def _is_of(house: House, pid: int) -> bool:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd").startswith(str(house.folder("one"))) and bool(shim_machine.started(pid))
    return False


if __name__ == "__main__":
    main()
