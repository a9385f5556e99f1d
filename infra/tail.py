"""The log as one ordered, contiguous stream per process: from JetStream what can be believed, else from Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Callable

import structlog
from msgspec import Struct

from domain import messages
from infra import config
from infra.bus import Bus
from infra.db import CONNECTION_LOST
from infra.envelope import Envelope, Recent, Verdict, claimed, lines
from infra.eventstore.mapper import LogNotification
from infra.eventstore.store import Store
from infra.feed import Feed
from infra.hints import Hints
from infra.subscription import RETRY_S, Broken, Contexts, Page, Span, Subscription

log = structlog.get_logger()

#: Events that wait in memory for a slow subscriber before it has to read them from Postgres.
BACKLOG = 4096
_CHUNK = 256
#: After as many hints on which JetStream was too late it gets no grace, until something comes from there.
_LATE = 3
#: A page of some contexts covers that many times as many positions: hardly any of them has to be read.
_STRIDE = 10


class Ended(Exception):
    """The tail has stopped."""


class Counts(Struct):
    """Where the events came from, and the messages that were not taken: known already, or not to be believed."""

    from_nats: int = 0
    from_postgres: int = 0
    ignored: int = 0
    forged: int = 0


class Tail:
    """One per process. `poll_s` is how often it looks without being told to; processes that hold client connections
    look more often.

    With `feed` it takes events from JetStream as they come: for whoever applies each of them. Without, it reads
    Postgres in pages whenever there is a hint, which costs a busy process far less for each event.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        settings: config.Tail,
        key: bytes,
        epoch: int,
        *,
        feed: bool = True,
        poll_s: float | None = None,
        hints: Hints | None = None,
        governor: Bus | None = None,
    ) -> None:
        self.page = settings.page
        self.position = 0
        self.counts = Counts()
        self.hints = hints or Hints(store.database)
        self.feed = Feed(bus, RETRY_S, self._arrived, governor)
        self.recent = Recent()
        self.task: asyncio.Task[None] | None = None
        self._fed = feed
        self._store, self._settings = store, settings
        self._poll_s = settings.poll_s if poll_s is None else poll_s
        self._envelope = Envelope(key, epoch)
        self._subscriptions: set[Subscription] = set()
        self._waiters: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._numbers = itertools.count()
        self._work = asyncio.Event()
        self._must_read = False
        self._caught_up = False
        self._timer: asyncio.TimerHandle | None = None
        self._later = -1
        self._late = 0
        self._next_look = self._looked = 0.0
        self._behind = False

    async def start(self, after: int | None = None) -> None:
        """Begins behind a position, or at the head. Needs Postgres, not NATS."""
        self.position = await self._store.head() if after is None else after
        self._must_read = True
        self.task = asyncio.create_task(self._run(), name="tail")
        self.task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Ends it, and every subscription and wait with it."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        for subscription in list(self._subscriptions):
            subscription.close()

    def subscribe(self, after: int, backlog: int = BACKLOG, contexts: Contexts = None) -> Subscription:
        """Every event behind `after`, whether it is older or newer than where the tail stands; or those of some
        contexts. A process that subscribes to nothing else hardly feels how busy the rest of the log is."""
        subscription = Subscription(self, after, backlog, contexts)
        self._subscriptions.add(subscription)
        self._catch_up()
        return subscription

    async def follow(self, hear: Callable[[messages.Recorded], object], contexts: Contexts) -> None:
        """Tells of every event of some contexts from now on. Serves until cancelled."""
        subscription = self.subscribe(self.position, contexts=contexts)
        try:
            async for page in subscription:
                for recorded in page:
                    hear(recorded)
        finally:
            subscription.close()

    def forget(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    async def reached(self, position: int, timeout: float) -> bool:
        """Whether the tail comes to `position` within `timeout` seconds."""
        if self.position >= position:
            return True
        self.check()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (position, next(self._numbers), future))
        self._catch_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                return await future
        return False

    def wake(self, position: int | None = None) -> None:
        """Says that the log has grown, to `position` where that is known; JetStream is given its grace to deliver."""
        self._hint(None if position is None else position - 1)

    def check(self) -> None:
        """Raises what ended the tail, if it has ended."""
        if self.task is not None and self.task.done():
            error = None if self.task.cancelled() else self.task.exception()
            raise Ended("the tail has stopped") from error

    async def read(self, after: int, until: int | None = None) -> Page:
        """A page of the log. Raises Broken when it does not continue at `after`."""
        page = await self._store.read(after, self.page, until)
        if page and (page[0].position != after + 1 or page[-1].position != after + len(page)):
            raise Broken(f"the log has a gap behind position {after}")
        if not page and until is not None:
            raise Broken(f"the log ends at position {after}, before {until}")
        return page

    def stride(self, contexts: Contexts) -> int:
        """How many positions a page covers."""
        return self.page if contexts is None else self.page * _STRIDE

    async def span(self, after: int, until: int | None, contexts: Contexts) -> Span | None:
        """What comes behind `after`, as far as a page goes; None where the log ends. Raises Broken."""
        if contexts is None:
            page = await self.read(after, until)
            return Span(after + 1, page[-1].position, page) if page else None
        stop = after + self.stride(contexts)
        stop = stop if until is None else min(stop, until)
        last, notes = await self._store.recorder.select_contexts(after, stop, contexts)
        if last is None:
            if until is not None:
                raise Broken(f"the log ends at position {after}, before {until}")
            return None
        return Span(after + 1, last, await self._decode(notes), contexts)

    async def _run(self) -> None:
        unsubscribe = self.hints.subscribe(self._hint, self._wants)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.hints.run(), name="tail hints")
                if self._fed:
                    group.create_task(self.feed.run(self._feed_from), name="tail feed")
                await self._follow()
        finally:
            unsubscribe()
            if self._timer is not None:
                self._timer.cancel()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                if self._must_read or loop.time() >= self._next_look:
                    await self._read_on()
                elif self.feed.inbox:
                    await self._take()
                    await asyncio.sleep(0)
                else:
                    await self._wait()
            except CONNECTION_LOST as error:
                log.warning("the tail waits for Postgres", reason=type(error).__name__, position=self.position)
                self._must_read = True
                await asyncio.sleep(RETRY_S)

    async def _wait(self) -> None:
        self._work.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._next_look):
                await self._work.wait()

    async def _read_on(self) -> None:
        """A page from Postgres; a full one is not the last. Hints that come in a burst are answered by one look, so
        that under load a page holds many events, while the first after a pause is answered at once."""
        early = self._looked + self._settings.pace_s - asyncio.get_running_loop().time()
        if self._caught_up and early > 0:
            await asyncio.sleep(early)
        self._looked = asyncio.get_running_loop().time()
        self._must_read = self._behind = False  # a hint that comes meanwhile asks for another look
        contexts = self._interest()
        span = await self.span(self.position, None, contexts)
        self._next_look = asyncio.get_running_loop().time() + self._poll_s
        self._caught_up = span is None or span.last - self.position < self.stride(contexts)
        self._must_read |= not self._caught_up
        if span is not None:
            self.counts.from_postgres += span.last - self.position
            self._publish(span)

    async def _take(self) -> None:
        """What JetStream delivered, as far as it is next; anything else is known, not ours, or a reason to read."""
        notes: list[LogNotification] = []
        while self.feed.inbox and len(notes) < _CHUNK and not self._must_read:
            message = self.feed.inbox.popleft()
            self._late = 0
            expected = self.position + len(notes) + 1
            if (note := self.recent.take(expected, message.headers, message.data)) is not None:
                notes.append(note)
                continue
            position = claimed(message.headers)
            if position is None or position < expected:
                self.counts.ignored += 1
                continue
            verdict = self._envelope.unpack(lines(message.headers), message.data)
            if verdict is Verdict.FORGED:
                self.counts.forged += 1
            elif verdict is Verdict.FOREIGN:
                self.counts.ignored += 1
            elif isinstance(verdict, LogNotification) and verdict.id == expected:
                notes.append(verdict)
            else:
                self._must_read = True  # a gap, or an event too large for a message
        if notes:
            page = await self._decode(notes)
            self.counts.from_nats += len(page)
            self._publish(Span(page[0].position, page[-1].position, page))

    async def _decode(self, notes: list[LogNotification]) -> Page:
        mapper = self._store.mapper
        if mapper.keyring is not None and (subjects := mapper.subjects(notes)):
            await mapper.keyring.load(subjects)
        return [mapper.read(note) for note in notes]

    def _publish(self, span: Span) -> None:
        self.position = span.last
        self.recent.forget(span.last)
        for subscription in list(self._subscriptions):
            subscription.offer(span)
        while self._waiters and self._waiters[0][0] <= self.position:
            _, _, future = heapq.heappop(self._waiters)
            if not future.done():
                future.set_result(True)

    def _ended(self, _: object) -> None:
        """Nobody waits for what will not come any more."""
        for subscription in list(self._subscriptions):
            subscription.nudge()
        for _, _, future in self._waiters:
            if not future.done():
                future.set_result(False)

    def _interest(self) -> Contexts:
        """What is read: with the feed everything, else no more than somebody wants to see."""
        found: set[str] = set()
        for subscription in self._subscriptions:
            if self._fed or subscription.contexts is None:
                return None
            found |= subscription.contexts
        return None if self._fed else frozenset(found)

    def _wants(self, contexts: frozenset[str]) -> bool:
        """Whether to look at once for these; else it is for the next look."""
        interest = self._interest()
        wanted = interest is None or bool(self._waiters) or not interest.isdisjoint(contexts)
        self._behind |= not wanted
        return wanted

    def _catch_up(self) -> None:
        """Somebody wants to know what nobody wanted to know before."""
        if self._behind:
            self._read_now()

    def _feed_from(self) -> int | None:
        """JetStream is asked for what comes behind; the long way there goes through Postgres."""
        return self.position if self._caught_up else None

    def _arrived(self) -> None:
        self._work.set()

    def _read_now(self) -> None:
        self._must_read = True
        self._work.set()

    def _hint(self, passed: int | None) -> None:
        """The log has more than `passed`. JetStream gets its grace, unless there is none to expect."""
        if passed is not None and passed < self.position:
            return
        if passed is None or not self.feed.alive or self._late >= _LATE or self._settings.grace_s == 0:
            self._read_now()
        elif self._timer is None:
            self._set_timer(passed)
        else:
            self._later = max(self._later, passed)

    def _set_timer(self, passed: int) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._settings.grace_s, self._grace_over, passed)

    def _grace_over(self, passed: int) -> None:
        self._timer = None
        later, self._later = self._later, -1
        if self.position <= passed:
            self._late += 1
            self._read_now()
        elif later >= self.position:
            self._set_timer(later)
