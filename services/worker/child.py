"""A worker's child: runs one piece of blocking work at a time, alone in its process, and says how it goes.

Frames on the inherited socket are a 4-byte big-endian length and msgpack. The parent sends a Task, then perhaps a
Stop; the child answers with any number of reports and ends with a Done or a Failed. What a kind brings from outside
goes up in Changes, each answered by Applied; a Permit is answered by a Wait.
"""

from __future__ import annotations

import errno
import select
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from domain import errors, jobs
from services.worker.meter import Meter


class Collect(Struct, frozen=True):
    """What a kind that brings items is told beside its specification.

    `known` is the file of what the collection holds, as the run begins. `mark` and `cursor` are JSON: where the last
    complete run of this configuration ended, and where this job goes on, if it was begun before. `counters` and
    `progress` are what the job came to so far. `confirm` is the hash of a plan that somebody has seen, `force` that
    none need be. `seconds` is what is left of a deadline.
    """

    kind: str
    collection: str
    known: str
    options: bytes = b"{}"
    secrets: dict[str, str] = field(default_factory=dict)
    mark: bytes | None = None
    cursor: bytes | None = None
    counters: jobs.Counters = jobs.Counters()
    progress: int = 0
    confirm: str | None = None
    force: bool = False
    max_delete_fraction: float = 0.5
    max_items: int = 1_000_000
    seconds: float | None = None


class Task(Struct, frozen=True, tag="task"):
    """`call` is of services.worker.engines.CALLS; `spec` and `guards` are JSON, `roots` the folders it may touch,
    `work` a scratch folder that stays while the job may be resumed, `trash` takes what is deleted, `record` is the
    file in which a pair of folders is remembered."""

    call: str
    spec: bytes
    job: str
    work: str
    roots: tuple[str, ...] = ()
    trash: str = ""
    record: str = ""
    guards: bytes = b"{}"
    collect: Collect | None = None


class Stop(Struct, frozen=True, tag="stop"):
    """Finish the operation under way, then end."""


class Applied(Struct, frozen=True, tag="applied"):
    """What became of the Changes before: these are in the log."""

    created: int
    updated: int
    deleted: int


class Wait(Struct, frozen=True, tag="wait"):
    """Whether a request may go out: at once (0), or not before so many seconds have passed; then ask again."""

    seconds: float


class Report(Struct, frozen=True, tag="report"):
    stage: str
    progress: int
    counters: jobs.Counters


class Line(Struct, frozen=True, tag="line"):
    level: str
    message: str


class Put(Struct, frozen=True, array_like=True):
    """`content` is canonical JSON, `hash` its digest."""

    entity: str
    item: str
    content: bytes
    hash: str
    revision: str | None = None


class Remove(Struct, frozen=True, array_like=True):
    entity: str
    item: str
    reason: str


class Changes(Struct, frozen=True, tag="changes"):
    """A part of what was found. With a cursor (JSON) the job can go on behind it; `counters` are the job's by then,
    except what was created, updated and deleted, which only the log knows. With `keep` they wait for the Done."""

    puts: Sequence[Put] = ()
    removes: Sequence[Remove] = ()
    cursor: bytes | None = None
    counters: jobs.Counters = jobs.Counters()
    keep: bool = False


class Permit(Struct, frozen=True, tag="permit"):
    """Asks for one more request to a remote."""

    remote: str


class Quota(Struct, frozen=True, tag="quota"):
    """What a remote said about its limits: requests that remain until `reset_at` (Unix, seconds), and for how many
    seconds it wants none at all."""

    remote: str
    remaining: int | None = None
    reset_at: float | None = None
    retry_after: float | None = None


class Seen(Struct, frozen=True):
    """The outside was seen to its end: `mark` is where the next incremental run begins (JSON; None: where it would
    have begun), `complete` when everything there is was seen."""

    mark: bytes | None
    complete: bool


class Done(Struct, frozen=True, tag="done"):
    """`result` is JSON; `stopped` when a stop cut the work short; `seen` by kinds that bring items."""

    result: bytes
    counters: jobs.Counters
    stopped: bool = False
    seen: Seen | None = None
    usage: jobs.Usage | None = None


class Failed(Struct, frozen=True, tag="failed"):
    """`code` is of the catalogue of errors."""

    code: str
    message: str
    details: dict[str, Any]
    counters: jobs.Counters = jobs.Counters()
    usage: jobs.Usage | None = None


Said = Report | Line | Changes | Permit | Quota | Done | Failed
Told = Task | Stop | Applied | Wait

T = TypeVar("T", Task, Applied, Wait)

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
        self._told: deque[Told] = deque()

    def say(self, message: Said) -> None:
        self._channel.sendall(frame(message))

    def next_task(self) -> Task:
        """Waits for work. Raises EOFError when the parent is gone."""
        self._told.clear()  # answers to work that has ended
        task = self.hear(Task)
        self._stopped = False
        return task

    def hear(self, kind: type[T]) -> T:
        """Waits for the next message of a kind. Raises EOFError when the parent is gone."""
        while True:
            for told in self._told:
                if isinstance(told, kind):
                    self._told.remove(told)
                    return told
            self._take(self._receive())

    def stop_asked(self) -> bool:
        """Whether the parent has asked to stop; costs one system call until it has."""
        while not self._stopped and select.select([self._channel], [], [], 0)[0]:
            self._take(self._receive())
        return self._stopped

    def _take(self, told: Told) -> None:
        if isinstance(told, Stop):
            self._stopped = True
        else:
            self._told.append(told)

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
    meter = Meter()
    try:
        Path(task.work).mkdir(parents=True, exist_ok=True, mode=0o700)
        parent.say(replace(call(task, parent), usage=meter.read()))
    except errors.Error as error:
        parent.say(Failed(error.code, error.message, error.details, usage=meter.read()))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = errors.StorageFull.code if full else errors.SyncFailed.code
        parent.say(Failed(code, error.strerror or type(error).__name__, {}, usage=meter.read()))


if __name__ == "__main__":
    from services.worker import child  # as everybody else knows it: what is heard is told apart by its class

    child.main(int(sys.argv[1]))
