"""A worker's child: runs one piece of blocking work at a time, alone in its process, and says how it goes.

Frames on the inherited socket are a 4-byte big-endian length and msgpack. The parent sends a Task, then perhaps a
Stop; the child answers with any number of reports and ends with a Done or a Failed.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from domain import errors, jobs


class Task(Struct, frozen=True, tag="task"):
    """`call` is of services.worker.engines.CALLS; `spec` and `guards` are JSON, `roots` the folders it may touch,
    `work` a scratch folder that stays while the job may be resumed, `trash` takes what is deleted, `record` is the
    file in which a pair of folders is remembered."""

    call: str
    spec: bytes
    roots: tuple[str, ...]
    job: str
    work: str
    trash: str
    record: str
    guards: bytes


class Stop(Struct, frozen=True, tag="stop"):
    """Finish the operation under way, then end."""


class Report(Struct, frozen=True, tag="report"):
    stage: str
    progress: int
    counters: jobs.Counters


class Line(Struct, frozen=True, tag="line"):
    level: str
    message: str


class Done(Struct, frozen=True, tag="done"):
    """`result` is JSON; `stopped` when a stop cut the work short."""

    result: bytes
    counters: jobs.Counters
    stopped: bool = False


class Failed(Struct, frozen=True, tag="failed"):
    """`code` is of the catalogue of errors."""

    code: str
    message: str
    details: dict[str, Any]
    counters: jobs.Counters = jobs.Counters()


Said = Report | Line | Done | Failed
Told = Task | Stop

_encode = msgspec.msgpack.Encoder().encode
_told = msgspec.msgpack.Decoder(Told)
said = msgspec.msgpack.Decoder(Said)


def frame(message: Said | Told) -> bytes:
    data = _encode(message)
    return len(data).to_bytes(4, "big") + data


class Parent:
    """The other end of the socket, as the work sees it."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._stopped = False

    def say(self, message: Said) -> None:
        self._channel.sendall(frame(message))

    def next_task(self) -> Task:
        """Waits for work. Raises EOFError when the parent is gone."""
        while True:
            told = self._receive()
            if isinstance(told, Task):
                self._stopped = False
                return told

    def stop_asked(self) -> bool:
        """Whether the parent has asked to stop; costs one system call until it has."""
        while not self._stopped and select.select([self._channel], [], [], 0)[0]:
            self._stopped = isinstance(self._receive(), Stop)
        return self._stopped

    def _receive(self) -> Told:
        told: Told = _told.decode(self._exactly(int.from_bytes(self._exactly(4), "big")))
        return told

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            got = self._channel.recv(size - len(parts))
            if not got:
                raise EOFError
            parts += got
        return bytes(parts)


def main(descriptor: int) -> None:
    from services.worker import engines  # before there is work

    parent = Parent(socket.socket(fileno=descriptor))
    try:
        while True:
            task = parent.next_task()
            _work(engines.CALLS[task.call], task, parent)
    except (EOFError, ConnectionError):  # the parent is gone
        return


def _work(call: Callable[[Task, Parent], Done], task: Task, parent: Parent) -> None:
    try:
        Path(task.work).mkdir(parents=True, exist_ok=True, mode=0o700)
        parent.say(call(task, parent))
    except errors.Error as error:
        parent.say(Failed(error.code, error.message, error.details))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = errors.StorageFull.code if full else errors.SyncFailed.code
        parent.say(Failed(code, error.strerror or type(error).__name__, {}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
