"""Copies the log into JetStream in order: a message's sequence is its event's position. Seals the log beside it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct

from domain import errors
from infra import config, jetstream, secrets
from infra.bus import Bus
from infra.db import CONNECTION_LOST
from infra.envelope import Envelope, Recent, Sealed
from infra.eventstore import epochs, seals
from infra.eventstore.epochs import NewEpoch
from infra.eventstore.mapper import LogNotification
from infra.eventstore.store import Store
from infra.feed import STREAM
from infra.hints import Hints
from infra.pace import Pace
from services.copies import Copy

if TYPE_CHECKING:
    from services.main import Process

log = structlog.get_logger()

#: Trouble of the moment; after it the stream is compared with the log before anything is sent.
TRANSIENT = (errors.Unavailable, errors.TimedOut, jetstream.Refused, *CONNECTION_LOST)

_CHUNK = 200


#: Its place in `undrift.tracking`.
TRACKED = "relay"
_REPORT = (
    "insert into undrift.tracking as t values ($1, 1, $2) on conflict (projection, generation) do update set pos = $2"
)


class Status(Struct):
    """What health and metrics show. `degraded` when nothing has succeeded for some time."""

    position: int = 0
    head: int = 0
    lag: int = 0
    connected: bool = False
    standby: bool = False
    degraded: bool = False
    renewals: int = 0
    last_error: str | None = None


def key(master: bytes) -> bytes:
    """The installation's key for the MAC of what is relayed."""
    return secrets.derive(master, "relay mac")


class Relay:
    """One should run; a second is refused by the server, stands by, and takes over when the stream stands still."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        settings: config.Relay,
        nats: config.Nats,
        mac_key: bytes,
        epoch: int,
        hints: Hints | None = None,
        recent: Recent | None = None,
    ) -> None:
        self.position = 0
        self.renewals = 0
        self._store, self._bus, self._settings, self._nats = store, bus, settings, nats
        self._envelope = Envelope(mac_key, epoch)
        self._stream = jetstream.Stream(bus, STREAM, settings.publish_timeout_s, nats.replicas)
        self._copied = Copy(store, self._stream, nats, self._envelope)
        self._hints, self._recent = hints, recent
        self._work = asyncio.Event()
        self._head = 0
        self._compared: float | None = None
        self._pace = Pace(settings.pace_s)
        self._standby = False
        self._failing_since: float | None = None
        self._last_error: str | None = None
        self._told = False

    @property
    def status(self) -> Status:
        since = self._failing_since
        return Status(
            position=self.position,
            head=self._head,
            lag=max(self._head - self.position, 0),
            connected=self._bus.connected,
            standby=self._standby,
            degraded=since is not None and _now() - since > self._settings.degraded_s,
            renewals=self.renewals,
            last_error=self._last_error,
        )

    def wake(self, passed: int | None = None) -> None:
        """Says that the log has grown."""
        if passed is not None:
            self._head = max(self._head, passed + 1)
        self._work.set()

    async def run(self) -> None:
        """Serves until cancelled. Raises NewEpoch."""
        forget = [self._bus.watch(self._reconnected)]
        if self._hints is not None:
            forget.append(self._hints.subscribe(self.wake))
        try:
            while True:
                try:
                    await self._turn()
                except TRANSIENT as error:
                    await self._recover(error)
        finally:
            for each in forget:
                each()

    async def _turn(self) -> None:
        if not await self._bus.ready(self._settings.poll_s):
            raise errors.Unavailable("NATS is not connected")
        if self._compared is None or _now() - self._compared >= self._settings.check_s:
            await self.compare()
        self._work.clear()
        if not await self._copy():
            self._succeeded()
            await self._wait(self._settings.poll_s)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._work.wait()
        except TimeoutError:
            pass

    def _reconnected(self, _connected: bool) -> None:
        self._compared = None
        self._work.set()

    def _succeeded(self) -> None:
        if self._failing_since is not None:
            log.info("the relay goes on", position=self.position, seconds=round(_now() - self._failing_since, 3))
        self._failing_since = None
        self._last_error = None
        self._told = False

    async def _recover(self, error: Exception) -> None:
        self._compared = None
        if isinstance(error, jetstream.Refused) and error.code in jetstream.SOMEBODY_ELSE:
            await self._stand_by()
            return
        self._last_error = f"{type(error).__name__}: {error}"
        if self._failing_since is None:
            self._failing_since = _now()
            log.warning("the relay is interrupted", reason=self._last_error, position=self.position)
        elif self.status.degraded and not self._told:
            self._told = True
            log.error("the relay is degraded", reason=self._last_error, position=self.position)
        await asyncio.sleep(min(self._settings.poll_s, 0.2))

    async def _stand_by(self) -> None:
        """Another relay is at work, or somebody else writes to the stream. Waits until it stands still."""
        if not self._standby:
            log.info("another relay is at work; this one stands by", position=self.position)
        self._standby = True
        while self._standby:
            await asyncio.sleep(self._settings.poll_s * random.uniform(0.5, 1.5))
            try:
                before = self.position
                await self.compare()
                self._standby = self.position != before or self._head == self.position
            except TRANSIENT as error:
                self._last_error = f"{type(error).__name__}: {error}"
                self._standby = False
        log.info("this relay takes over", position=self.position)

    async def _copy(self) -> bool:
        """Relays the next page of the log; whether there was any. Pages that follow one another are paced, so that
        under load each holds more: the server's work and ours is by the page."""
        await self._pace.begin()
        notes = await self._store.read_raw(self.position, self._settings.batch_messages)
        if not notes:
            self._head = self.position
            return False
        self._head = max(self._head, notes[-1].id)
        for batch in _batches(await self._pack(notes), self._settings.batch_bytes):
            last = await self._stream.publish(batch, self.position)
            if last != self.position + len(batch):
                raise jetstream.Refused(0, f"the batch ended at {last}, not {self.position + len(batch)}")
            self.position = last
            self._succeeded()
        self._pace.end(behind=len(notes) == self._settings.batch_messages)
        return True

    async def _pack(self, notes: Sequence[LogNotification]) -> list[Sealed]:
        packed: list[Sealed] = []
        mapper = self._store.mapper
        if mapper.keyring is not None and (persons := mapper.subjects(notes)):
            await mapper.keyring.load(persons)
        for start in range(0, len(notes), _CHUNK):
            for note in map(self._travelling, notes[start : start + _CHUNK]):
                packed.append(self._envelope.pack(note, self._bus.max_bytes))
                if self._recent is not None:
                    self._recent.keep(note, packed[-1])
            await asyncio.sleep(0)
        return packed

    def _travelling(self, note: LogNotification) -> LogNotification:
        """As consumers outside can read it: with personal fields in clear."""
        clear = self._store.mapper.clear(note)
        return note if clear is None else replace(note, state=clear, clear=True)

    async def compare(self) -> None:
        """Compares the stream with the log and continues behind its last message; where they differ it is made anew."""
        if await epochs.current(self._store.database) != self._envelope.epoch:
            raise NewEpoch
        state, difference = await self._copied.look()
        self._head = self._copied.head
        if difference is not None and await self._copied.knows_more():
            log.warning("the log has lost what was relayed: another epoch begins", reason=difference, head=self._head)
            await epochs.advance(self._store.database)
            raise NewEpoch
        if state is None or difference is not None:
            log.warning("the stream is made anew", reason=difference, head=self._head)
            self.position = await self._copied.renew() - 1
            self.renewals += 1
        else:
            self.position = state.last
        self._compared = _now()

    async def difference(self) -> str | None:
        """In what the stream is not the log's copy as far as it goes; None when it is. Changes nothing."""
        return (await self._copied.look())[1]


def _batches(messages: Sequence[Sealed], max_bytes: int) -> list[list[Sealed]]:
    """Runs of messages within the limits of a batch; a larger one goes alone."""
    batches: list[list[Sealed]] = []
    room = 0
    for message in messages:
        size = len(message.headers) + len(message.data)
        if not batches or size > room:
            batches.append([])
            room = max_bytes
        batches[-1].append(message)
        room -= size
    return batches


def _now() -> float:
    return asyncio.get_running_loop().time()


async def run(process: Process) -> None:
    """The relay's role. When the log has become another history, it waits for the process to be ended."""
    settings = process.settings
    relay = Relay(
        process.store,
        process.governor,
        settings.relay,
        settings.nats,
        key(process.master),
        process.epoch,
        process.tail.hints,
        process.tail.recent,
    )
    reporting = asyncio.create_task(_report(process, relay))
    try:
        await relay.run()
    except NewEpoch:
        process.news.set()
        await process.stopping.wait()
    finally:
        reporting.cancel()


async def _report(process: Process, relay: Relay) -> None:
    """Writes down how far JetStream has the log, so that whoever asks a gateway is told."""
    written = -1
    while True:
        position = relay.position
        if position != written and not relay.status.standby:
            with contextlib.suppress(*CONNECTION_LOST):
                await process.db.execute(_REPORT, TRACKED, position)
                written = position
        await asyncio.sleep(process.settings.relay.poll_s)


async def run_sealer(process: Process) -> None:
    """Seals what is complete, now and then. Any number may run."""
    settings = process.settings.eventstore
    while True:
        try:
            await seals.seal(process.db, settings.seal_every)
        except CONNECTION_LOST as error:
            log.warning("sealing waits for Postgres", reason=type(error).__name__)
        await asyncio.sleep(settings.seal_s)
