"""Whatever happens to NATS, every event ends in JetStream under its own position, in order, once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from domain import errors, messages
from infra import config, embedded, jetstream
from infra.bus import Bus
from infra.envelope import Envelope
from infra.eventstore import epochs
from infra.eventstore.mapper import LogNotification
from infra.eventstore.migrate import migrate
from infra.feed import STREAM
from infra.hints import Hints
from infra.tail import Tail
from services import relay as relays
from services.relay import Relay
from tests.notes import MASTER, Notes, open_log, running, until

KEY = relays.key(MASTER)
NATS = config.Nats(reconnect_s=0.02, ping_s=0.2, connect_timeout_s=0.5)
QUICK = config.Relay(check_s=0.2, poll_s=0.1, publish_timeout_s=0.5, degraded_s=0.2)
PATIENT = config.Relay(check_s=3600, poll_s=0.1)

Make = Callable[..., Relay]


@pytest.fixture
async def log(database: str) -> AsyncIterator[Notes]:
    async with open_log(database) as log:
        yield log


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus(nats_url, NATS)
    await bus.connect()
    assert await bus.ready(5)
    yield bus
    await bus.close()


@pytest.fixture
async def make(log: Notes, bus: Bus) -> AsyncIterator[Make]:
    hints = Hints(log.database, retry_s=0.02)

    def make(settings: config.Relay = QUICK, nats: config.Nats = NATS, **changes: Any) -> Relay:
        given = {"bus": bus, "epoch": log.epoch, "hints": hints, **changes}
        return Relay(log.store, given["bus"], settings, nats, KEY, given["epoch"], given["hints"])

    async with running(hints.run):
        yield make


@pytest.fixture
def stream(bus: Bus) -> jetstream.Stream:
    return jetstream.Stream(bus, STREAM)


async def copied(log: Notes, stream: jetstream.Stream, first: int = 1, epoch: int | None = None) -> list[str]:
    """Asserts that the stream is the log from `first` on, and gives the MACs."""
    state = await stream.state()
    assert state is not None
    head = await log.store.head()
    assert (state.first, state.last, state.messages) == (first, head, head - first + 1)
    envelope, macs = Envelope(KEY, epoch or log.epoch), []
    for note in await log.store.read_raw(first - 1, head):
        stored = await stream.message(note.id)
        assert stored is not None
        assert stored.headers["Undrift-Position"] == str(note.id)
        assert envelope.unpack(stored.headers, stored.data) == note
        macs.append(stored.headers["Undrift-Mac"])
    return macs


async def settled(log: Notes, relay: Relay) -> None:
    head = await log.store.head()
    await until(lambda: relay.position == head and relay.status.last_error is None)


async def test_many_writers_one_order(log: Notes, make: Make, stream: jetstream.Stream) -> None:
    relay = make()
    async with running(relay.run):
        await asyncio.gather(*(log.write(60, id=f"s{n}", per=1 + n % 7) for n in range(12)))
        await settled(log, relay)
    await copied(log, stream)
    assert relay.renewals == 1
    assert relay.status.lag == 0


async def test_a_message_is_a_cloud_event(log: Notes, make: Make, bus: Bus, stream: jetstream.Stream) -> None:
    received: asyncio.Queue[Any] = asyncio.Queue()
    await bus.subscribe("evt.>", received.put)
    said = messages.Metadata(actor="key:ä%1", owner="User.1", correlation="100 % \n ü")
    await log.write(1, id="ä b%c", metadata=said)
    relay = make()
    async with running(relay.run):
        message = await asyncio.wait_for(received.get(), 10)
    [event] = await log.all()
    assert message.subject == "evt.main.b32_kvzwk4roge.notes.written"
    headers = dict(message.headers)
    assert datetime.fromisoformat(headers.pop("ce-time")) == event.recorded_at
    assert len(headers.pop("Undrift-Mac")) == 64
    assert {
        "ce-specversion": "1.0",
        "ce-id": str(event.event_id),
        "ce-type": "notes.written",
        "ce-source": "urn:undrift:main",
        "ce-subject": "notes/main/%C3%A4%20b%25c",
        "Undrift-Position": "1",
        "Undrift-Epoch": "1",
        "Undrift-Version": "1",
        "Undrift-Schema": "1",
    }.items() <= headers.items()
    assert message.data.startswith(b'{"event":"notes.written","text":"0:')
    await copied(log, stream)


async def test_large_events_go_in_bounded_batches(log: Notes, make: Make, stream: jetstream.Stream) -> None:
    await log.write(90, size=200_000, per=10)
    relay = make()
    async with running(relay.run):
        await settled(log, relay)
    await copied(log, stream)


async def test_an_event_too_large_for_a_message_keeps_its_place(
    log: Notes, make: Make, bus: Bus, stream: jetstream.Stream
) -> None:
    await log.write(2)
    await log.write(1, size=1_500_000)
    await log.write(1, metadata=messages.Metadata(correlation="é" * 30_000))
    await log.write(2)
    relay, tail = make(), Tail(log.store, bus, config.Tail(), KEY, log.epoch)
    async with running(relay.run):
        await settled(log, relay)
        await tail.start(0)
        seen = [event async for event in first(tail, 6)]
        await tail.close()
    assert seen == await log.all()
    for position, elided in enumerate((False, False, True, True, False, False), start=1):
        stored = await stream.message(position)
        assert stored is not None
        assert (elided, stored.headers["Undrift-Position"]) == (not stored.data, str(position))


async def first(tail: Tail, count: int) -> AsyncIterator[messages.Recorded]:
    subscription = tail.subscribe(0)
    async for page in subscription:
        for event in page:
            yield event
        count -= len(page)
        if not count:
            subscription.close()


async def test_a_lost_end_is_refilled_under_the_same_sequences(
    log: Notes, make: Make, stream: jetstream.Stream, nats_server: embedded.Nats, tmp_path: Path
) -> None:
    """As after a power cut: JetStream comes back healthy, with less than it had acknowledged."""
    relay = make(PATIENT)
    async with running(relay.run):
        await log.write(300)
        await settled(log, relay)
        store = nats_server.home / "jetstream"
        nats_server.kill()
        shutil.copytree(store, tmp_path / "old")
        nats_server.start()
        await log.write(300)
        await settled(log, relay)
        before = await copied(log, stream)
        nats_server.kill()
        shutil.rmtree(store)
        shutil.copytree(tmp_path / "old", store)
        nats_server.start()
        await until(lambda: relay.status.connected)
        await until_copied(stream, 600)
        await settled(log, relay)
    assert await copied(log, stream) == before
    assert relay.renewals == 1


async def until_copied(stream: jetstream.Stream, last: int) -> None:
    async with asyncio.timeout(15):
        while True:
            with contextlib.suppress(errors.Unavailable):
                state = await stream.state()
                if state is not None and state.last == last and state.messages == last - state.first + 1:
                    return
            await asyncio.sleep(0.02)


async def test_a_wiped_store_is_filled_anew_under_load(
    log: Notes, make: Make, stream: jetstream.Stream, nats_server: embedded.Nats
) -> None:
    relay = make()
    async with running(relay.run):
        writing = asyncio.create_task(log.write(600, per=5))
        for _ in range(3):
            await asyncio.sleep(0.05)
            nats_server.kill()
            shutil.rmtree(nats_server.home / "jetstream")
            nats_server.start()
            await until(lambda: relay.status.connected)
        await writing
        await until_copied(stream, 600)
        await settled(log, relay)
    await copied(log, stream)


async def purge(stream: jetstream.Stream, bus: Bus) -> None:
    await bus.request(f"$JS.API.STREAM.PURGE.{STREAM}", b"", 5)


async def purge_some(stream: jetstream.Stream, bus: Bus) -> None:
    await bus.request(f"$JS.API.STREAM.PURGE.{STREAM}", b'{"keep":10}', 5)


async def delete_stream(stream: jetstream.Stream, bus: Bus) -> None:
    await stream.delete()


async def delete_in_the_middle(stream: jetstream.Stream, bus: Bus) -> None:
    await bus.request(f"$JS.API.STREAM.MSG.DELETE.{STREAM}", b'{"seq":40}', 5)


async def delete_the_last(stream: jetstream.Stream, bus: Bus) -> None:
    state = await stream.state()
    assert state is not None
    await bus.request(f"$JS.API.STREAM.MSG.DELETE.{STREAM}", b'{"seq":%d}' % state.last, 5)


async def change_settings(stream: jetstream.Stream, bus: Bus) -> None:
    state = await stream.state()
    assert state is not None
    await stream.update({**state.config, "max_msgs_per_subject": 3})


async def make_another(stream: jetstream.Stream, bus: Bus) -> None:
    await stream.delete()
    await stream.create({"subjects": ["evt.>"], "storage": "memory"})


async def publish(bus: Bus, data: bytes, headers: Mapping[str, str]) -> None:
    plain = {name: value for name, value in headers.items() if not name.startswith("Nats-")}
    answer = await bus.request("evt.main._.notes.written", data, 5, plain)
    assert b"error" not in answer.data


async def forge(stream: jetstream.Stream, bus: Bus) -> None:
    stored = await stream.message(7)
    assert stored is not None
    await publish(bus, b'{"event":"notes.written","text":"?"}', stored.headers)


async def replay(stream: jetstream.Stream, bus: Bus) -> None:
    """A genuine message, once more behind the others."""
    stored = await stream.message(7)
    assert stored is not None
    await publish(bus, stored.data, stored.headers)


@pytest.mark.parametrize(
    "harm",
    [
        purge,
        purge_some,
        delete_stream,
        delete_in_the_middle,
        delete_the_last,
        change_settings,
        make_another,
        forge,
        replay,
    ],
)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_harm_is_noticed_and_the_stream_made_anew(
    log: Notes, make: Make, bus: Bus, stream: jetstream.Stream, harm: Callable[..., Any], busy: bool
) -> None:
    relay = make()
    async with running(relay.run):
        await log.write(100)
        await settled(log, relay)
        writing = asyncio.create_task(log.write(100, id="b", per=4)) if busy else None
        await harm(stream, bus)
        await until(lambda: relay.renewals > 1)
        if writing is not None:
            await writing
        await until_copied(stream, 100 + 100 * busy)
        await settled(log, relay)
    await copied(log, stream)


async def test_what_was_erased_stays_away(log: Notes, make: Make, bus: Bus, stream: jetstream.Stream) -> None:
    """Purging a person's subjects leaves holes that are no reason to bring the person back."""
    keyring = log.store.mapper.keyring
    assert keyring is not None
    relay = make()
    async with running(relay.run):
        for n in range(20):
            owner = "alice" if n % 3 == 0 else "bob"
            await log.write(1, id=owner, metadata=messages.Metadata(owner=owner, subject=owner))
        await settled(log, relay)
        await keyring.destroy("main", "alice")
        await bus.request(f"$JS.API.STREAM.PURGE.{STREAM}", b'{"filter":"evt.main.alice.>"}', 5)
        await relay.compare()
        assert relay.renewals == 1
        await log.write(1, id="bob", metadata=messages.Metadata(owner="bob", subject="bob"))
        await settled(log, relay)
        state = await stream.state()
        assert state is not None
        assert (state.last, state.messages, relay.renewals) == (21, 14, 1)
        await bus.request(f"$JS.API.STREAM.PURGE.{STREAM}", b'{"filter":"evt.main.bob.>"}', 5)
        await until(lambda: relay.renewals == 2)


async def test_a_stream_ahead_of_the_log_is_made_anew(log: Notes, make: Make, stream: jetstream.Stream) -> None:
    """The log was restored from before, without another epoch: its last message tells."""
    note = (await filled(log, 3))[0]
    relay = make()
    assert await relay.difference() == "there is none"
    await relay.compare()
    await stream.publish([Envelope(KEY, log.epoch).pack(note)] * 5, 0)
    assert await relay.difference() == "it is ahead of the log, at 5"
    async with running(relay.run):
        await until(lambda: relay.renewals == 2)
        await settled(log, relay)
        assert await relay.difference() is None
    await copied(log, stream)


async def test_an_older_log_in_the_same_place_is_another_epoch(
    log: Notes, make: Make, stream: jetstream.Stream
) -> None:
    """Nothing but what was relayed knows that there was more: same server, same database."""
    relay = make()
    async with running(relay.run):
        await log.write(9)
        await settled(log, relay)
    owner = await asyncpg.connect(log.database.dsn)
    await owner.execute("delete from undrift.events where pos > 5")
    await owner.close()
    await log.write(2, id="another")
    relay = make()
    with pytest.raises(epochs.NewEpoch):
        await relay.compare()
    assert await epochs.current(log.database) == log.epoch + 1
    relay = make(epoch=log.epoch + 1)
    async with running(relay.run):
        await settled(log, relay)
    await copied(log, stream, epoch=log.epoch + 1)


async def test_consumers_outside_read_what_is_personal_until_it_is_erased(
    log: Notes, make: Make, stream: jetstream.Stream
) -> None:
    said = messages.Metadata(owner="alice", subject="alice")
    await log.write(3, metadata=said)
    relay = make()
    async with running(relay.run):
        await settled(log, relay)
        stored = await stream.message(1)
        assert stored is not None
        assert b'"text":"0:' in stored.data
        assert "Undrift-Clear" in stored.headers
        assert await relay.difference() is None
        keyring = log.store.mapper.keyring
        assert keyring is not None
        await keyring.destroy("main", "alice")
        await stream.delete()
        await relay.compare()
        await settled(log, relay)
        stored = await stream.message(1)
        assert stored is not None
        assert b'"text":"erased"' in stored.data
        assert await relay.difference() is None


async def filled(log: Notes, count: int) -> list[LogNotification]:
    await log.write(count)
    return await log.store.read_raw(0, count)


async def test_another_epoch_makes_the_stream_anew_and_ends_the_old_relay(
    log: Notes, make: Make, stream: jetstream.Stream
) -> None:
    old = make()
    task = asyncio.create_task(old.run())
    await log.write(50)
    await settled(log, old)
    before = await copied(log, stream)
    await log.database.execute(
        "insert into undrift.epochs select 2, 50, 'other', timeline, database from undrift.epochs"
    )
    with pytest.raises(epochs.NewEpoch):
        await asyncio.wait_for(task, 10)
    new = make(epoch=2)
    async with running(new.run):
        await settled(log, new)
    assert new.renewals == 1
    assert set(await copied(log, stream, epoch=2)).isdisjoint(before)


async def test_of_two_relays_one_stands_by_and_takes_over(
    log: Notes, make: Make, nats_url: str, stream: jetstream.Stream
) -> None:
    other = Bus(nats_url, NATS)
    await other.connect()
    assert await other.ready(5)
    one, two = make(PATIENT), make(PATIENT, bus=other)
    async with running(one.run) as [first_task], running(two.run) as [second_task]:
        writing = asyncio.create_task(log.write(400, per=1))
        await until(lambda: one.status.standby or two.status.standby)
        await writing
        await until_copied(stream, 400)
        first_stands_by = one.status.standby
        (second_task if first_stands_by else first_task).cancel()
        await log.write(100, per=1)
        await until_copied(stream, 500)
        await settled(log, one if first_stands_by else two)
    await copied(log, stream)
    assert one.renewals + two.renewals <= 2
    await other.close()


async def test_without_nats_it_waits_visibly_and_recovers(
    log: Notes, make: Make, stream: jetstream.Stream, nats_server: embedded.Nats
) -> None:
    relay = make()
    async with running(relay.run):
        await log.write(20)
        await settled(log, relay)
        nats_server.kill()
        await log.write(20)
        await until(lambda: relay.status.degraded)
        assert not relay.status.connected
        assert relay.status.last_error is not None
        nats_server.start()
        await settled(log, relay)
        assert not relay.status.degraded
    await copied(log, stream)


async def test_a_server_that_does_not_acknowledge_is_waited_out(
    log: Notes, make: Make, stream: jetstream.Stream, nats_server: embedded.Nats
) -> None:
    """As with a full disk: publishes time out until the server is well again."""
    relay = make()
    async with running(relay.run):
        await log.write(20)
        await settled(log, relay)
        assert nats_server.pid is not None
        os.kill(nats_server.pid, signal.SIGSTOP)
        try:
            await log.write(20)
            await until(lambda: relay.status.degraded)
        finally:
            os.kill(nats_server.pid, signal.SIGCONT)
        await settled(log, relay)
        assert not relay.status.degraded
    await copied(log, stream)


async def test_what_is_too_old_is_not_copied_and_its_expiry_is_no_harm(
    log: Notes, make: Make, stream: jetstream.Stream
) -> None:
    await log.write(30)
    await asyncio.sleep(3.1)
    await log.write(10)
    nats = config.Nats(max_age_s=3.0)
    relay = make(nats=nats)
    async with running(relay.run):
        await settled(log, relay)
        state = await stream.state()
        assert state is not None
        assert (state.config["first_seq"], state.last) == (31, 40)
        async with asyncio.timeout(10):
            while (state := await stream.state()) is not None and state.messages:
                await asyncio.sleep(0.05)
        await relay.compare()
        await log.write(5)
        await settled(log, relay)
    assert relay.renewals == 1
    await copied(log, stream, first=41)


async def test_a_restart_of_postgres_is_waited_out(tmp_path: Path, bus: Bus, stream: jetstream.Stream) -> None:
    server = embedded.Postgres(tmp_path, testing=True)
    try:
        await migrate(server.start())
        async with open_log(server.url) as log:
            tail = Tail(log.store, bus, config.Tail(poll_s=3600, grace_s=0), KEY, log.epoch)
            await tail.start(0)
            relay = Relay(log.store, bus, QUICK, NATS, KEY, log.epoch, tail.hints)
            async with running(relay.run):
                for _ in range(2):
                    await log.write(50)
                    await settled(log, relay)
                    server.kill()
                    await asyncio.sleep(0.1)
                    server.start()
                await log.write(50)
                await settled(log, relay)
                assert await tail.reached(150, 10)
            await copied(log, stream)
            await stream.delete()
            await log.write(1)
            assert await tail.reached(151, 10), "notifications are heard again"
            await tail.close()
    finally:
        server.stop()
