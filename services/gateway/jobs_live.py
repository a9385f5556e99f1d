"""A job as it goes on, for everybody who follows it: what its events say, its log lines and its progress, live.

One look at the rows serves all jobs and all clients of a process. The state changes of a job are kept in memory while
somebody follows it, its log lines are not: who catches up reads them in pages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from domain import jobs, messages
from infra.db import CONNECTION_LOST
from services.gateway.auth import Principal
from services.gateway.consistency import Reads
from services.gateway.jobs_watched import Cursor, Piece, Watched
from services.gateway.streams import Stream, Streams
from services.main import Process
from services.worker import progress

log = structlog.get_logger("gateway")

_LINES = 500
_EVENTS = 500


class JobStream(Stream):
    """One client that follows one job."""

    __slots__ = ("_actor", "_cursor", "_feed", "_key", "_live", "_now", "_watched")

    def __init__(self, streams: Streams, principal: Principal, feed: JobFeed, key: str, cursor: Cursor) -> None:
        super().__init__(streams, principal.credential)
        self._actor = principal.actor
        self._feed, self._key, self._cursor = feed, key, cursor
        self._watched: Watched | None = None
        self._live = False
        self._now = b""

    async def catch_up(self) -> bool:
        watched = self._watched = self._watched or self._feed.watch(self._key, self)
        self._cursor = await self._feed.ready(watched, self._cursor)
        while self._cursor != watched.cursor:
            lines, seq = await self._feed.lines(watched, self._cursor.seq)
            more = seq < watched.cursor.seq
            changes = [
                one
                for one in watched.story
                if one.position > self._cursor.position and not (more and one.at > lines[-1].at)
            ]
            for piece in watched.pieces(self._cursor, lines, changes)[0]:
                self._cursor = piece.cursor
                if not self.push(piece.body):
                    return False
            self._cursor = self._cursor._replace(seq=seq)
        return self._join(watched)

    def _join(self, watched: Watched) -> bool:
        if watched.ended:
            self.push(watched.end)
            self._end(watched)
        elif self._now is not watched.now:
            self._now = watched.now
            if not self.push(self._now):
                return False
        self._live = True
        return True

    def tell(self, pieces: Sequence[Piece], watched: Watched) -> None:
        """What is new, if the stream has heard everything before it."""
        if not self._live:
            return
        for piece in pieces:
            self._cursor = piece.cursor
            if not self.push(piece.body):
                self.lag()
                return
        self._now = watched.now
        if watched.ended:
            self._end(watched)

    def _end(self, watched: Watched) -> None:
        """Whoever was told of the end reads nothing older from here on."""
        self._feed.reads.wrote(self._actor, watched.cursor.position, jobs.STREAM)
        self.end()

    def leave(self) -> None:
        self._live = False

    def gone(self) -> None:
        super().gone()
        if self._watched is not None:
            self._feed.forget(self._watched, self)


class JobFeed:
    """All jobs that are followed in this process."""

    def __init__(self, process: Process, reads: Reads, poll_s: float) -> None:
        self.reads = reads
        self._database, self._store, self._tail = process.db, process.store, process.tail
        self._epoch, self._poll_s = process.epoch, poll_s
        self._watched: dict[str, Watched] = {}
        self._wake = asyncio.Event()
        self._turning = asyncio.Lock()

    # What streams use.

    def watch(self, key: str, stream: JobStream) -> Watched:
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = Watched(key, self._epoch)
        watched.followers.add(stream)
        return watched

    def forget(self, watched: Watched, stream: JobStream) -> None:
        watched.followers.discard(stream)
        if not watched.followers and self._watched.get(watched.stream) is watched:
            del self._watched[watched.stream]

    async def ready(self, watched: Watched, cursor: Cursor) -> Cursor:
        """Loads what is not loaded yet, and looks again where a client knows more than we do. Who still does then
        was told so by nobody, and is where everybody is."""
        if not watched.loaded:
            if watched.loading is None or watched.loading.done():
                watched.loading = asyncio.create_task(self._load(watched))
            await asyncio.shield(watched.loading)
        if cursor.position > watched.cursor.position or cursor.seq > watched.cursor.seq:
            await self._turn([watched])
        return Cursor(min(cursor.position, watched.cursor.position), min(cursor.seq, watched.cursor.seq))

    async def lines(self, watched: Watched, after: int) -> tuple[list[progress.Line], int]:
        """Those that were told to whoever has caught up, and the number up to which there are no others."""
        until = watched.cursor.seq
        if after >= until:
            return [], until
        found = await progress.lines(self._database, watched.tenant, watched.id, after, _LINES)
        return [line for line in found if line.seq <= until], min(found[-1].seq, until) if len(
            found
        ) == _LINES else until

    async def _load(self, watched: Watched) -> None:
        seen = (await progress.read(self._database, [watched.id])).get(watched.id)
        watched.reset(seen)
        version = 0
        while notes := await self._store.recorder.select_events(watched.stream, gt=version, limit=_EVENTS):
            for recorded in map(self._store.mapper.read, notes):  # nothing personal is in them
                version = recorded.version
                watched.fold(recorded)
        watched.begin(seen, await progress.last_line(self._database, watched.id))
        self._wake.set()

    # What it does all the time.

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tail.follow(self._hear, frozenset({jobs.STREAM})))
            group.create_task(self._look())

    def _hear(self, recorded: messages.Recorded) -> None:
        if (watched := self._watched.get(recorded.stream)) is None:
            return
        try:
            watched.hear(recorded)
            self._wake.set()
        except Exception:  # of ours, and no reason to end anything but the streams of this job
            log.exception("an event of a job cannot be followed", stream=recorded.stream, position=recorded.position)
            for stream in list(watched.followers):
                stream.end()

    async def _look(self) -> None:
        while True:
            self._wake.clear()
            due = [one for one in self._watched.values() if one.loaded and (one.changes or one.moving)]
            try:
                if due:
                    await self._turn(due)
            except CONNECTION_LOST as error:
                log.warning("jobs that are followed are out of sight", reason=type(error).__name__)
            except Exception:
                log.exception("jobs that are followed cannot be looked at", jobs=[one.id for one in due][:10])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s if due else None):
                    await self._wake.wait()

    async def _turn(self, due: Sequence[Watched]) -> None:
        """Tells what is new. Lines that were written before a change of state are told before it."""
        async with self._turning:
            changes = {one.id: len(one.changes) for one in due}
            looks = await progress.look(self._database, {one.id: one.cursor.seq for one in due}, _LINES)
            for watched in due:
                look = looks[watched.id]
                news = watched.take(look.seen)
                if len(look.lines) == _LINES:  # there are more, and they come first
                    changes[watched.id] = 0
                    self._wake.set()
                pieces = watched.tell(look.lines, changes[watched.id], news)
                for stream in list(watched.followers):
                    stream.tell(pieces, watched)
