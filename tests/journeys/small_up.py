"""The real `up` with its real servers and four small real programs, for tests that want to hurt them.

    python small_up.py up [OPTION ...]        `undrift up` with these programs
    python small_up.py program NAME [--lane LANE] --config FILE

A program obeys files that a test puts into DIR/files: `NAME.deaf` blocks its event loop, `NAME.child` starts a
child, `NAME.exit` ends it with the code in the file, each time it is there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from infra import config, configfile, processes
from services import supervised, up
from services.supervisor import Program

STAGES = {"gateway": 0, "worker-now": 1, "worker": 1, "core": 2}


def programs(file: Path) -> Sequence[Program]:
    return [
        Program(name, [sys.executable, __file__, "program", name, "--config", str(file)], stage)
        for name, stage in STAGES.items()
    ]


async def program(name: str, settings: config.Settings) -> int:
    refusal = settings.directory / "files" / f"{name}.exit"
    if refusal.exists():
        return int(refusal.read_text())
    stop = asyncio.Event()
    if not (settings.directory / "files" / f"{name}.stubborn").exists():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    info: dict[str, object] = {}
    if name == "gateway":
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", settings.gateway.port)
        info["port"] = server.sockets[0].getsockname()[1]
    speaking = asyncio.create_task(supervised.announce(info))
    obeying = asyncio.create_task(obey(name, settings.directory / "files"))
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait([obeying, waiting], return_when=asyncio.FIRST_COMPLETED)
    with open(settings.directory / "files" / "ends", "a") as ends:
        ends.write(f"{name}\n")
    speaking.cancel()
    return obeying.result() if obeying.done() else 0


async def obey(name: str, folder: Path) -> int:
    while True:
        if (folder / f"{name}.deaf").exists():
            time.sleep(600)
        if (folder / f"{name}.child").exists():
            child = subprocess.Popen(["sleep", "600"], preexec_fn=processes.follow_parent(signal.SIGKILL))
            (folder / f"{name}.child").rename(folder / f"{name}.child-{child.pid}")
        if (folder / f"{name}.exit").exists():
            return int((folder / f"{name}.exit").read_text())
        await asyncio.sleep(0.02)


def main(kind: str, *arguments: str) -> int:
    if kind == "up":
        chosen = up.settings(arguments[0], port=int(arguments[1]), config_file=(*arguments, None, None)[2])
        return up.up(chosen, programs)
    name, _, file = arguments
    return asyncio.run(program(name, configfile.load(file)))


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
