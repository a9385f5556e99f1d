"""A job that is followed: what was told of it, what is new, and how both are said."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from msgspec import UNSET

from domain import messages
from projections import jobs as jobs_read
from services.gateway import jobs_shapes as shapes
from services.gateway.dialects import timestamp_ms
from services.gateway.streams import encode, frame
from services.worker import progress

_PIECE = 64 * 1024
_MOVING = ("running", "stopping")


class Cursor(NamedTuple):
    """Where a client has come to: the position of the last state change, and the number of the last log line."""

    position: int = 0
    seq: int = 0

    def id(self, epoch: int) -> str:
        return f"{epoch}.{self.position}.{self.seq}"


class Piece(NamedTuple):
    """Frames to send, and where a client is that has them."""

    body: bytes
    cursor: Cursor


class Change(NamedTuple):
    """A change of a job's state, as it is shown."""

    position: int
    at: datetime
    data: bytes


class Follower(Protocol):
    def tell(self, pieces: Sequence[Piece], watched: Watched, /) -> None: ...
    def end(self) -> None: ...


class Watched:
    """A job that somebody follows: `cursor` is what was told to those who have caught up, `story` its changes up to
    there, `now` the frame of its progress."""

    def __init__(self, stream: str, epoch: int) -> None:
        _, self.tenant, self.id = stream.split("/")
        self.stream = stream
        self.followers: set[Follower] = set()
        self.cursor = Cursor()
        self.story: list[Change] = []
        self.changes: list[Change] = []
        self.now = b""
        self.ended = False
        self.loaded = False
        self.loading: asyncio.Task[None] | None = None
        self._epoch = epoch
        self._early: list[messages.Recorded] = []
        self._row: jobs_read.Row | None = None
        self._shown: object = None
        self._progress = 0

    @property
    def moving(self) -> bool:
        return self._row is not None and self._row.status in _MOVING

    # How it comes to know.

    def reset(self, seen: progress.Seen | None) -> None:
        """Before its events are loaded."""
        self._row, self.changes = None, []
        self._progress = 0 if seen is None else seen.progress.progress

    def fold(self, recorded: messages.Recorded) -> None:
        """The job's next event."""
        if isinstance(recorded.event, messages.Unreadable):
            return
        row = self._row = jobs_read.fold(self._row, recorded)
        assert row is not None
        self._progress = max(self._progress, row.progress)
        seen = (row.status, row.error, row.started_at, row.completed_at, row.deleted_at)
        if seen != self._shown:
            self._shown = seen
            data = encode(shapes.status(row, recorded.recorded_at, self._progress))
            self.changes.append(Change(recorded.position, recorded.recorded_at, data))

    def begin(self, seen: progress.Seen | None, last_line: int) -> None:
        """Once its events are loaded: what is there now is its story, what comes is told."""
        self.loaded = True
        early, self._early = self._early, []
        for recorded in early:
            self.hear(recorded)
        self.take(seen)
        self.story, self.changes = self.changes, []
        self.cursor = Cursor(self.story[-1].position if self.story else 0, last_line)
        self.ended = self._is_over()

    def hear(self, recorded: messages.Recorded) -> None:
        """An event as it happens; before the job is loaded they are kept."""
        if not self.loaded:
            self._early.append(recorded)
        elif self._row is None or recorded.position > self._row.position:
            self.fold(recorded)

    def take(self, seen: progress.Seen | None) -> bool:
        """The row of progress, if there is one; whether there is something new to tell."""
        row = self._row
        if row is None:
            return False
        counters, stage = row.counters, row.stage
        expected: datetime | None = None
        if seen is not None and seen.progress.progress >= row.progress and row.status not in shapes.ENDED:
            self._progress = max(self._progress, seen.progress.progress)
            counters, stage = seen.progress.counters, seen.progress.stage
        if seen is not None and row.status == "running":
            expected = seen.completion(datetime.now(UTC))
        now = shapes.Now(
            progress=self._progress,
            stats=shapes.outcome(counters),
            stage=UNSET if stage is None else stage,
            estimated_completion=UNSET if expected is None else timestamp_ms(expected),
        )
        said = frame("progress", encode(now))
        if said == self.now:
            return False
        self.now = said
        return True

    def _is_over(self) -> bool:
        """Whether it has come to an end that was told."""
        over = self._row is None or self._row.status in shapes.ENDED or self._row.deleted_at is not None
        return over and not self.changes

    # What is told, to those who have caught up and those who have not.

    def tell(self, lines: Sequence[progress.Line], changes: int, news: bool) -> list[Piece]:
        """Lines, the next so many changes and, with `news`, the progress; the cursor is behind them."""
        told, self.changes = self.changes[:changes], self.changes[changes:]
        self.story += told
        pieces, self.cursor = self.pieces(self.cursor, lines, told)
        self.ended = self._is_over()
        if self.ended:
            pieces.append(Piece(self.end, self.cursor))
        elif news:
            pieces.append(Piece(self.now, self.cursor))
        return pieces

    def pieces(
        self, cursor: Cursor, lines: Sequence[progress.Line], changes: Sequence[Change]
    ) -> tuple[list[Piece], Cursor]:
        """In the order of their times, in pieces that are not much larger than a client's buffer."""
        found: list[Piece] = []
        body = bytearray()
        for one in _merged(lines, changes):
            if isinstance(one, Change):
                cursor = cursor._replace(position=one.position)
                body += frame("status", one.data, cursor.id(self._epoch))
            else:
                cursor = cursor._replace(seq=one.seq)
                logged = shapes.Logged(one.seq, timestamp_ms(one.at), one.level, one.message)
                body += frame("log", encode(logged), cursor.id(self._epoch))
            if len(body) >= _PIECE:
                found.append(Piece(bytes(body), cursor))
                body.clear()
        if body:
            found.append(Piece(bytes(body), cursor))
        return found, cursor

    @property
    def end(self) -> bytes:
        row = self._row
        status = "deleted" if row is None or row.deleted_at is not None else row.status
        return frame("end", encode(shapes.End(self.id, status)), self.cursor.id(self._epoch))


def _merged(lines: Sequence[progress.Line], changes: Sequence[Change]) -> Iterator[progress.Line | Change]:
    """By time, and each of the two in its own order, whatever the clocks say."""
    waiting = deque(changes)
    for line in lines:
        while waiting and waiting[0].at <= line.at:
            yield waiting.popleft()
        yield line
    yield from waiting
