"""A process's word to whoever keeps it running: a beat every second, and once that it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

FD = "UNDRIFT_READY_FD"
BEAT_FILE = "UNDRIFT_BEAT_FILE"
BEAT = b".\n"
READY = b"ready "
BEAT_S = 1.0
#: By it the node hears that whoever keeps it running is ending for good, and the servers with it.
FAREWELL = signal.SIGUSR1
#: The exit code of a process that no restart can help, such as a wrong setting or a port that is taken.
CANNOT_RUN = 2


async def announce(info: Mapping[str, object], ready: asyncio.Event | None = None) -> None:
    """Beats from this event loop until cancelled; once `ready` is set (without one, at once) says so with `info`.

    `info` is read at that moment; the gateway's has its `port`. The supervisor of `undrift up` hears it through
    a pipe, a container's health check in the age of the file that UNDRIFT_BEAT_FILE names, there only once ready.
    """
    pipe, file = _take_pipe(), os.environ.get(BEAT_FILE)
    try:
        said = False
        while True:
            is_ready = ready is None or ready.is_set()
            if pipe is not None:
                said = said or (is_ready and _write(pipe, READY + json.dumps(dict(info)).encode() + b"\n"))
                _write(pipe, BEAT)
            if file and is_ready:
                _touch(file)
            await _beat(None if is_ready else ready)
    finally:
        if pipe is not None:
            os.close(pipe)


def _take_pipe() -> int | None:
    """The inherited end of the supervisor's pipe, which no process of ours shall inherit in turn."""
    text = os.environ.pop(FD, "")
    try:
        descriptor = int(text)
        os.set_inheritable(descriptor, False)
        os.set_blocking(descriptor, False)
    except (ValueError, OSError):
        return None
    return descriptor


def _write(descriptor: int, line: bytes) -> bool:
    """A full pipe means that the supervisor is busy, a broken one that it is gone: neither is ours to handle."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        return os.write(descriptor, line) == len(line)
    return False


def _touch(file: str) -> None:
    Path(file).touch()  # it is in the memory of the container


async def _beat(ready: asyncio.Event | None) -> None:
    """The time until the next beat; what becomes ready says so at once."""
    if ready is None:
        await asyncio.sleep(BEAT_S)
    else:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ready.wait(), BEAT_S)
