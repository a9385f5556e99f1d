"""A process's word to the supervisor that started it: a beat every second, and once that it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping

FD = "UNDRIFT_READY_FD"
BEAT = b".\n"
READY = b"ready "
BEAT_S = 1.0
#: The exit code of a process that no restart can help, such as a wrong setting or a port that is taken.
CANNOT_RUN = 2


async def announce(info: Mapping[str, object], ready: asyncio.Event | None = None) -> None:
    """Beats from this event loop until cancelled; once `ready` is set (without one, at once) says so with `info`.

    `info` is read at that moment; the gateway's has its `port`. Ends at once where there is no supervisor.
    """
    descriptor = _take_descriptor()
    if descriptor is None:
        return
    try:
        said = False
        while True:
            if not said and (ready is None or ready.is_set()):
                said = _write(descriptor, READY + json.dumps(dict(info)).encode() + b"\n")
            _write(descriptor, BEAT)
            if said or ready is None:
                await asyncio.sleep(BEAT_S)
            else:
                await _set_within(ready, BEAT_S)
    finally:
        os.close(descriptor)


def _take_descriptor() -> int | None:
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


async def _set_within(ready: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ready.wait(), seconds)
