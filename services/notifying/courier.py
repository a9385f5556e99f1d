"""Delivers to one endpoint: so many at a time, at the pace it bears, whatever the others do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import asyncpg
import structlog

from domain import errors, webhooks
from infra import egress, posts, traces
from infra.db import CONNECTION_LOST
from infra.posts import Answer, Poster
from services.notifying import rows
from services.notifying.ledger import Health, Outcome
from services.notifying.letters import Signer, Unreadable
from services.notifying.office import Office
from services.notifying.queue import Queue
from services.notifying.rows import Key, Row

log = structlog.get_logger("notifier")

_PAGE = 500
#: Failures in a row after which an endpoint is left alone for a while, and those without which it is not disabled.
_HOLD_AFTER, _DISABLE_AFTER = 3, 5
_GONE = 410
_UNREADABLE = "the event cannot be read"
_BUSY = (429, 503)
_FIXED = b"User-Agent: Undrift\r\nContent-Type: application/json\r\nAccept: */*\r\n"
_TROUBLE = (*CONNECTION_LOST, asyncpg.PostgresError, errors.Unavailable)


class Courier:
    """`state` is the endpoint as it is now, wherever in the log the messages are from."""

    def __init__(self, office: Office, key: Key, queue: Queue, health: Health, *, fresh: bool) -> None:
        self.key, self.queue = key, queue
        self.state = webhooks.initial
        self._office, self._health = office, health
        self._poster: Poster | None = None
        self._signer: Signer | None = None
        self._read, self._reading = fresh, False
        self._workers = 0
        self._failed_at = 0.0
        self._held_until = _on_loop(health.held_until) or 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0

    def update(self, state: webhooks.Endpoint) -> None:
        """What was said of the endpoint: nothing new begins when it is disabled or deleted."""
        before, self.state = self.state, state
        self._signer = None
        if state.url != before.url and self._poster is not None:
            self._poster.close()
            self._poster = None
        if state.enabled and not before.enabled and before.url is not None:
            self._health, self._held_until = Health(), 0.0
            self._office.ledger.fares(self.key, self._health)
            self.queue.hurry()
        self.pump()

    def again(self, wanted: Sequence[Row]) -> None:
        """Somebody wants these once more, now."""
        self.queue.hurry([row.seq for row in wanted])
        for row in wanted:
            if row.seq <= self.queue.seen:
                self.queue.add(row)
        self.pump()

    def close(self) -> None:
        """The endpoint is no more."""
        self.state = webhooks.initial
        if self._timer is not None:
            self._timer.cancel()
        if self._poster is not None:
            self._poster.close()

    @property
    def _limit(self) -> int:
        return 1 if self._health.failures else self._office.settings.per_endpoint

    def pump(self) -> None:
        """Begins what may begin now, and sees to it that it is called again when there is more."""
        now = asyncio.get_running_loop().time()
        if not self.state.enabled or not self._office.open:
            return None
        if now < self._held_until:
            return self._wake_at(self._held_until)
        if not self._reading and (not self._read or self.queue.turns or self.queue.wants_more):
            self._reading = True
            self._office.spawn(self._read_more())
        new = min(self._limit - self._workers, self.queue.ready(now))
        while new > 0 and self._office.room(self._workers):
            self._workers += 1
            self._office.spawn(self._work())
            new -= 1
        if (due := self.queue.next_due) is not None:
            self._wake_at(due)
        return None

    def _wake_at(self, due: float) -> None:
        if self._timer is not None and not self._timer.cancelled() and self._wakes_at <= due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = due
        self._timer = asyncio.get_running_loop().call_at(due, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self.pump()

    # What waits in the database.

    async def _read_more(self) -> None:
        try:
            if not self._read:
                last = self.queue.last
                first = await rows.first_pending(self._office.reading, self.key)
                self.queue.skip(last if first is None else first - 1)
                self._read = True
            while self.queue.turns:
                await self._read_stream(self.queue.turns[0])
                self.queue.turns.popleft()
            if self.queue.wants_more:
                await self._read_page()
        except _TROUBLE as error:
            log.warning("the notifier waits for Postgres", reason=type(error).__name__)
            await asyncio.sleep(self._office.retry_s)
        finally:
            self._reading = False
        self.pump()

    async def _read_page(self) -> None:
        last = self.queue.last
        page = await rows.pending(self._office.reading, self.key, self.queue.seen, _PAGE)
        await self._office.letters.read(page)
        whole = len(page) < _PAGE
        self.queue.load(page, last if whole else page[-1].seq, _due)

    async def _read_stream(self, stream: str) -> None:
        first, until = self.queue.hidden(stream), self.queue.seen
        page = await rows.of_stream(self._office.reading, self.key, stream, first, until, _PAGE)
        await self._office.letters.read(page)
        self.queue.turn(stream, page, first, until, more=len(page) >= _PAGE)

    # What is sent.

    async def _work(self) -> None:
        try:
            while (row := self._next()) is not None:
                await self._deliver(row)
        finally:
            self._workers -= 1
            self._office.left()
        self.pump()

    def _next(self) -> Row | None:
        now = asyncio.get_running_loop().time()
        if not self.state.enabled or not self._office.open or now < self._held_until or self._workers > self._limit:
            return None
        if self.queue.turns or self.queue.wants_more:
            self.pump()
        return self.queue.next(now)

    async def _deliver(self, row: Row) -> None:
        """One attempt, and what follows from how it ended."""
        loop = asyncio.get_running_loop()
        at, begun = datetime.now(UTC), loop.time()
        row.attempts += 1
        row.first_at = row.first_at or at
        status: int | None = None
        try:
            answer = await self._post(row, at)
            status, error = answer.status, _judged(answer)
        except _TROUBLE as trouble:
            row.attempts -= 1
            self.queue.again(row)
            log.warning("the notifier waits for Postgres", reason=type(trouble).__name__)
            return await asyncio.sleep(self._office.retry_s)
        except Unreadable:
            answer, error = None, _UNREADABLE
        except (posts.Failed, errors.Error) as failed:
            answer, error = None, str(failed)
        except Exception as failed:  # an error of ours must not hold up the queue
            log.error("a delivery could not be made", endpoint=self.key[1], seq=row.seq, reason=repr(failed))
            answer, error = None, "the message could not be made"
        took_ms = int((loop.time() - begun) * 1000)
        due = None if error is None else self._failed(row, answer, error, at, begun)
        self._office.ledger.record(Outcome(self.key, row.seq, row.attempts, at, took_ms, status, error, due))
        if error is None:
            self._succeeded()
        if due is None:
            self.queue.done(row)
        else:
            self.queue.retry(row, _on_loop(due) or loop.time())
        return None

    async def _post(self, row: Row, at: datetime) -> Answer:
        office = self._office
        body = await office.letters.body(row)
        if self._signer is None:
            self._signer = await Signer.of(office.vault, self.key[0], self.state)
        if self._poster is None:
            assert self.state.url is not None
            target = egress.check_url(self.state.url, office.settings)
            self._poster = Poster(target, office.settings, office.tls, office.resolver)
        headers = _FIXED + self._signer.headers(row.message, body, at)
        if row.replay is not None:
            headers += b"undrift-replay: %b\r\n" % row.replay.encode("ascii")
        if traces.active():
            return await self._traced(row, self._poster, headers, body)
        return await self._poster.post(headers, body, office.settings.timeout_s)

    async def _traced(self, row: Row, poster: Poster, headers: bytes, body: bytes) -> Answer:
        """Part of the trace of what the message is about; the receiver may continue it."""
        of = None if row.event is None else row.event.metadata.traceparent
        about: dict[str, traces.Attribute] = {"undrift.event": row.name, "undrift.endpoint": self.key[1]}
        about["undrift.attempt"] = row.attempts
        with traces.span("webhook delivery", of, about, "client") as span:
            if span.traceparent is not None:
                headers += b"traceparent: %b\r\n" % span.traceparent.encode()
            answer = await poster.post(headers, body, self._office.settings.timeout_s)
            span.note("http.response.status_code", answer.status)
            if _judged(answer) is not None:
                span.fail(str(answer.status))
            return answer

    def _succeeded(self) -> None:
        if not self._health.failures:
            return
        recovered = self._health.failures >= _HOLD_AFTER
        self._health = Health()
        self._office.ledger.fares(self.key, self._health)
        if recovered:
            log.info("an endpoint answers again", endpoint=self.key[1])
            self.queue.hurry()

    def _failed(self, row: Row, answer: Answer | None, error: str, at: datetime, begun: float) -> datetime | None:
        """When to try again; None when it is given up."""
        settings, now = self._office.settings, datetime.now(UTC)
        wanted_s = _retry_after_s(answer, settings.retry_after_max_s)
        if begun >= self._failed_at:  # of several that were under way at once, one counts
            self._failed_at = asyncio.get_running_loop().time()
            self._worsen(now, wanted_s)
        if answer is not None and answer.status == _GONE:
            self._disable("It answered 410 Gone")
            return now
        since = self._health.failing_since or now
        if self._health.failures >= _DISABLE_AFTER and (now - since).total_seconds() >= settings.disable_after_s:
            self._disable(f"It failed for {settings.disable_after_s:g} seconds")
            return now
        if answer is None and error == _UNREADABLE:
            return None
        first = row.first_at or at
        end = max(first, row.made_at or first) + timedelta(seconds=settings.give_up_s)
        if now >= end:
            log.warning("a delivery is given up", endpoint=self.key[1], seq=row.seq, reason=error)
            return None
        pause_s = max(_backoff_s(row.attempts, settings.retry_s, settings.retry_max_s), wanted_s)
        return min(now + timedelta(seconds=pause_s), end)

    def _worsen(self, now: datetime, wanted_s: float) -> None:
        """It failed once more: soon it is asked with one message at a time only, and more and more seldom."""
        settings, failures = self._office.settings, self._health.failures + 1
        held_s = wanted_s
        if failures >= _HOLD_AFTER:
            held_s = max(held_s, _backoff_s(failures - _HOLD_AFTER + 1, settings.retry_s, settings.probe_s))
        held = now + timedelta(seconds=held_s) if held_s else None
        self._health = Health(failures, self._health.failing_since or now, held)
        self._held_until = _on_loop(held) or 0.0
        self._office.ledger.fares(self.key, self._health)

    def _disable(self, reason: str) -> None:
        """Nothing more begins, from now on; the log says so in a moment."""
        if self.state.enabled:
            self.state = _without(self.state, reason)
            self._office.disable(self.key, reason)


def _without(state: webhooks.Endpoint, reason: str) -> webhooks.Endpoint:
    return webhooks.evolve(state, webhooks.Disabled(reason))


def _judged(answer: Answer) -> str | None:
    """What is wrong with an answer."""
    if 200 <= answer.status < 300:
        return None
    if 300 <= answer.status < 400:
        return f"it answered {answer.status}; redirects are not followed"
    return f"it answered {answer.status}"


def _retry_after_s(answer: Answer | None, most_s: float) -> float:
    """How long it wants to be left alone."""
    if answer is None or answer.retry_after is None or answer.status not in _BUSY:
        return 0.0
    text = answer.retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), most_s)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), most_s)


def _backoff_s(attempts: int, first_s: float, most_s: float) -> float:
    """Twice as long each time, more or less: those that failed together do not come back together."""
    return float(min(first_s * 2.0 ** min(attempts - 1, 40), most_s) * random.uniform(0.75, 1.25))


def _due(row: Row) -> float | None:
    """Of one that was tried already, when it is its turn; the others have none."""
    return _on_loop(row.due) if row.attempts else None


def _on_loop(at: datetime | None) -> float | None:
    """A time on the loop's clock; None when it has passed."""
    if at is None:
        return None
    wait_s = (at - datetime.now(UTC)).total_seconds()
    return asyncio.get_running_loop().time() + wait_s if wait_s > 0 else None
