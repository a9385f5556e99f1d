"""What a files job is given by whoever runs it, and what its two processes share."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain.plans.files import MAX_ERRORS, Guards, Result, show

FIELDS: Final = ("processed", "created", "updated", "deleted", "errors", "bytes", "conflicts", "skipped", "compared")
_STOP, _QUEUE, _BASE = 0, 1, 8
_CELLS = {name: _BASE + index for index, name in enumerate(FIELDS)}
_POLL_S = 0.02
_EMIT_S = 0.05
_RESULT_BYTES = 128 * 1024


class Progress(Struct, frozen=True):
    """How far a job is: `percent` never falls within a run; `processed` counts unchanged files too."""

    stage: str
    percent: int
    processed: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0
    errors: int = 0
    bytes: int = 0


def _ignore(*_: object) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(kw_only=True)
class Context:
    """Where a job may work and whom it tells.

    `roots` are the folders that requests may touch. `work` is a folder for scratch files, kept while the job may be
    resumed. `trash` receives what is deleted when the target is itself a root, or its own trash cannot be used.
    `record` is the file kept for this pair of folders from one sync to the next (None: nothing is kept). `plan_out`
    receives the encoded plan, whose BLAKE3 is its hash. `emit`, `should_stop` and `log(level, message)` are called in
    the process that called `run`. What a resumed job needs is in `work` and beside `record`.
    """

    roots: Sequence[str]
    job: str
    work: Path
    trash: Path
    record: Path | None = None
    plan_out: Path | None = None
    guards: Guards = field(default_factory=Guards)
    emit: Callable[[Progress], None] = _ignore
    should_stop: Callable[[], bool] = _never
    log: Callable[[str, str], None] = _ignore


class Board:
    """Numbers that both processes see: a stop, the heads of work queues, and counters of each."""

    def __init__(self, work: Path) -> None:
        self._cells = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self._lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._own = 0

    def second(self) -> None:
        """In the forked process: its counters are its own."""
        self._own = len(FIELDS)

    @property
    def stopped(self) -> bool:
        return bool(self._cells[_STOP])

    def stop(self) -> None:
        self._cells[_STOP] = 1

    def add(self, name: str, amount: int = 1) -> None:
        self._cells[_CELLS[name] + self._own] += amount

    def total(self, name: str) -> int:
        at = _CELLS[name]
        return self._cells[at] + self._cells[at + len(FIELDS)]

    def rewind(self) -> None:
        """An empty queue for the next stage."""
        for cell in range(_QUEUE, _BASE):
            self._cells[cell] = 0

    @contextmanager
    def queue(self) -> Iterator[memoryview]:
        """The heads of the work queue, while nobody else reads them; a process that dies lets go."""
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            yield self._cells[_QUEUE:_BASE]
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._lock)


class Troubles:
    """Errors that stop one file and not the others: all are counted, the first are told."""

    def __init__(self) -> None:
        self.count = 0
        self.texts: list[str] = []

    def add(self, path: bytes, what: str | OSError) -> None:
        if isinstance(what, OSError):
            what = what.strerror or type(what).__name__
        self.say(f"{show(path) or '.'}: {what}")

    def say(self, text: str, times: int = 1) -> None:
        self.count += times
        if len(self.texts) < MAX_ERRORS:
            self.texts.append(text)

    def extend(self, texts: Sequence[str], count: int) -> None:
        self.count += count
        self.texts += texts[: MAX_ERRORS - len(self.texts)]


class Pulse:
    """Tells progress and hears of a stop, no more often than is useful; cheap to call for every file."""

    def __init__(self, context: Context, board: Board) -> None:
        self._context, self._board = context, board
        self._stage, self._from, self._to = "scan", 0, 0
        self._done: Callable[[], float] = lambda: 0.0
        self._polled = self._emitted = 0.0
        self._percent = 0

    def stage(self, name: str, start: int, end: int, done: Callable[[], float]) -> None:
        """`done` is the part of the stage that is done, 0 to 1."""
        self._stage, self._from, self._to, self._done = name, start, end, done
        self._polled = self._emitted = 0.0
        self.beat()

    def beat(self) -> bool:
        """Whether to stop."""
        now = time.monotonic()
        if now - self._polled >= _POLL_S:
            self._polled = now
            if self._context.should_stop():
                self._board.stop()
            if now - self._emitted >= _EMIT_S:
                self._emitted = now
                self._emit()
        return self._board.stopped

    def _emit(self) -> None:
        part = min(max(self._done(), 0.0), 1.0)
        self._percent = max(self._percent, self._from + int((self._to - self._from) * part))
        total = self._board.total
        self._context.emit(
            Progress(
                self._stage,
                self._percent,
                total("processed"),
                total("created"),
                total("updated"),
                total("deleted"),
                total("errors"),
                total("bytes"),
            )
        )


def bounded(result: Result) -> bytes:
    """An event is at most 256 KiB: the errors' texts are cut to what fits, their number stays."""
    encoded = msgspec.json.encode(result)
    while len(encoded) > _RESULT_BYTES:
        result = replace(result, errors=result.errors[: len(result.errors) // 2])
        encoded = msgspec.json.encode(result)
    return encoded
