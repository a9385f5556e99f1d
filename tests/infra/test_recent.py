"""What this process sealed itself is known again when it comes back, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from infra import config
from infra.bus import Bus
from infra.envelope import Envelope, Recent
from infra.eventstore.mapper import LogNotification
from infra.hints import Hints
from infra.subscription import Page
from infra.tail import Tail
from services import relay as relays
from services.relay import Relay
from tests.notes import MASTER, Notes, open_log, running, until

KEY = relays.key(MASTER)
STATUS = b"NATS/1.0\r\n"


class Silent(Hints):
    """No notifications, so that only JetStream speaks."""

    async def run(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
async def log(database: str) -> AsyncIterator[Notes]:
    async with open_log(database) as log:
        yield log


async def test_only_the_same_bytes_at_the_same_position_are_taken(log: Notes) -> None:
    await log.write(4)
    notes = await log.store.read_raw(0, 4)
    envelope, recent = Envelope(KEY, 1), Recent()

    def back(note: LogNotification) -> tuple[bytes, bytes]:
        sealed = envelope.pack(note)
        recent.keep(note, sealed)
        return STATUS + sealed.headers + b"Nats-Msg-Id: 7\r\n\r\n", sealed.data

    headers, data = back(notes[0])
    assert recent.take(1, headers, data) is notes[0]
    assert recent.take(1, headers, data) is None, "once"
    for n, note in enumerate(notes[1:], start=2):
        headers, data = back(note)
        wrong = [(n + 1, headers, data), (n, headers, data + b" "), (n, headers.replace(b"ce-id: ", b"ce-id: f"), data)]
        assert recent.take(*wrong[n - 2]) is None


async def test_what_is_too_large_to_travel_is_not_taken(log: Notes) -> None:
    await log.write(1, size=4000)
    [note] = await log.store.read_raw(0, 1)
    recent, sealed = Recent(), Envelope(KEY, 1).pack(note, max_bytes=2000)
    assert sealed.data == b""
    recent.keep(note, sealed)
    assert recent.take(1, STATUS + sealed.headers + b"\r\n", b"") is None


async def test_it_forgets_what_is_passed_and_never_grows_beyond_its_room(log: Notes) -> None:
    await log.write(10)
    envelope, recent = Envelope(KEY, 1), Recent(room=4)
    notes = await log.store.read_raw(0, 10)
    for note in notes[:4]:
        recent.keep(note, envelope.pack(note))
    recent.forget(2)
    sealed = [envelope.pack(note) for note in notes]
    assert recent.take(2, STATUS + sealed[1].headers, sealed[1].data) is None
    assert recent.take(3, STATUS + sealed[2].headers, sealed[2].data) is notes[2]
    for note, one in zip(notes[4:], sealed[4:], strict=True):
        recent.keep(note, one)
    assert len(recent._kept) <= 4


async def test_a_relay_and_a_tail_of_one_process_hand_each_other_nothing_but_the_log(log: Notes, nats_url: str) -> None:
    bus, hints = Bus(nats_url, config.Nats()), Hints(log.database, retry_s=0.02)
    await bus.connect()
    assert await bus.ready(5)
    tail = Tail(log.store, bus, config.Tail(poll_s=3600), KEY, log.epoch, hints=Silent(log.database))
    relay = Relay(log.store, bus, config.Relay(), config.Nats(), KEY, log.epoch, hints, tail.recent)
    async with running(hints.run, relay.run):
        await until(lambda: relay.renewals == 1)
        await tail.start()
        await until(lambda: tail.feed.alive)
        seen = tail.subscribe(0)
        await asyncio.gather(*(log.write(100, id=f"s{n}", per=7) for n in range(5)))
        found: Page = []
        while len(found) < 500:
            found += await anext(seen)
    assert found == await log.all()
    assert (tail.counts.from_nats, tail.counts.from_postgres, tail.counts.ignored) == (500, 0, 0)
    assert not tail.recent._kept
    await tail.close()
    await bus.close()
