"""The store: commands decided and appended, retries answered alike, streams read and folded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import Raw

from domain import errors, events, integrations, jobs, keys, messages, servers, tenants
from infra import config
from infra.db import Database
from infra.eventstore.mapper import LogNotification, Mapper
from infra.eventstore.recorder import Claimed, Guard, Key
from infra.eventstore.store import Done, Store, Wish
from infra.eventstore.writer import Writer
from infra.leases import Leases
from tests.domain.test_servers_plan import read as configured
from tests.infra.appends import Held, append, blocked, open_writers

QUEUED = jobs.Queued(ticket=jobs.Ticket(job="j", kind="files", type="full_sync", lane="later"), spec=Raw(b"{}"))
CREATE = integrations.Create(id="i", name="first", kind="files", config=Raw(b"{}"))


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    opened = Database(database, 8)
    yield opened
    await opened.close()


@pytest.fixture
async def store(database: str, db: Database) -> AsyncIterator[Store]:
    async with open_writers(database) as [writer]:
        yield Store(db, Mapper(events.REGISTRY), writer)


def key(name: str = "k", request: bytes = b"r") -> Key:
    return Key("key:tests", name, request.ljust(32, b"."))


async def test_a_command_s_events_and_state(store: Store) -> None:
    done = await store.execute(integrations, "i", CREATE, metadata=messages.Metadata(actor="key:1"))
    assert (done.position, done.state.name, done.replayed) == (1, "first", False)
    assert done.events == await store.stream("integrations/main/i") == await store.read(0, 10)
    [recorded] = done.events
    assert (recorded.tenant, recorded.id, recorded.version, recorded.topic) == ("main", "i", 1, "integrations.created")
    assert recorded.metadata.actor == "key:1"


async def test_a_wish_said_twice_appends_nothing(store: Store) -> None:
    await store.execute(tenants, "a", tenants.Add("a"))
    await store.execute(tenants, "b", tenants.Add("b"))
    again = await store.execute(tenants, "a", tenants.Add("a"))
    assert again == Done(1, tenants.Tenant("a"), [])
    assert await store.head() == 2


async def test_what_decide_refuses_is_not_stored(store: Store) -> None:
    with pytest.raises(errors.NotFound):
        await store.execute(integrations, "i", integrations.Start())
    with pytest.raises(errors.NotFound):
        await store.execute_all([Wish(integrations, "a", CREATE), Wish(integrations, "i", integrations.Start())])
    assert await store.head() == 0


async def test_commands_for_several_streams_are_one(store: Store) -> None:
    done = await store.execute_all([Wish(integrations, "i", CREATE), Wish(jobs, "j", jobs.Queue(QUEUED), fresh=True)])
    assert [recorded.stream for recorded in done.events] == ["integrations/main/i", "jobs/main/j"]
    assert (done.position, done.state.name) == (2, "first")
    with pytest.raises(ValueError, match="once"):
        await store.execute_all([Wish(integrations, "i", integrations.Stop())] * 2)


async def test_tenants_share_no_stream(store: Store) -> None:
    await store.execute(integrations, "i", CREATE)
    done = await store.execute(integrations, "i", CREATE, tenant="second")
    assert done.events[0].stream == "integrations/second/i"


async def test_a_name_taken_elsewhere(store: Store) -> None:
    add = keys.Add("name", "0" * 64, ("admin",))
    await store.execute(keys, "a", add)
    with pytest.raises(Claimed):
        await store.execute(keys, "b", add)
    await store.execute(keys, "b", add, tenant="second")
    await store.execute(keys, "a", keys.Revoke())
    await store.execute(keys, "b", add)


async def test_writers_of_one_stream_all_get_their_turn(store: Store) -> None:
    await store.execute(integrations, "i", CREATE)
    changes = [integrations.Change(name=str(n)) for n in range(6)]
    done = await asyncio.gather(*(store.execute(integrations, "i", change) for change in changes))
    assert sorted(one.events[0].version for one in done) == list(range(2, 8))
    for one in done:
        assert one.state.name == one.events[0].event.name


async def test_a_fresh_stream_that_is_not_is_read_after_all(store: Store) -> None:
    await store.execute(integrations, "i", CREATE)
    with pytest.raises(errors.AlreadyExists):
        await store.execute(integrations, "i", CREATE, fresh=True)


async def test_a_decision_without_events_rests_on_its_stream_too(store: Store, db: Database) -> None:
    """A start that finds the schedule on, beside a job; meanwhile somebody stops the schedule."""
    await store.execute(integrations, "i", CREATE)
    start = [Wish(integrations, "i", integrations.Start()), Wish(jobs, "j", jobs.Queue(QUEUED), fresh=True)]
    async with open_writers(db.dsn) as [other]:
        elsewhere = Store(db, store.mapper, other)
        async with Held(db):
            stopping = asyncio.create_task(elsewhere.execute(integrations, "i", integrations.Stop()))
            await blocked(db)
            starting = asyncio.create_task(store.execute_all(start))
            await blocked(db, 2)
        await stopping
        done = await starting
    assert [recorded.topic for recorded in done.events] == ["integrations.started", "jobs.queued"]
    assert done.state.active


def same(one: Done, other: Done) -> bool:
    return (one.position, one.state, one.events) == (other.position, other.state, other.events) and other.replayed


async def test_a_retry_gets_the_same_answer(store: Store) -> None:
    first = await store.execute(integrations, "i", CREATE, key=key())
    await store.execute(integrations, "i", integrations.Change(name="second"))
    assert same(first, await store.execute(integrations, "i", CREATE, key=key()))
    assert await store.head() == 2


async def test_a_retry_under_a_new_name_gets_the_first_one_s_answer(store: Store) -> None:
    first = await store.execute(jobs, "j", jobs.Queue(QUEUED), key=key(), fresh=True)
    again = await store.execute(jobs, "other", jobs.Queue(QUEUED), key=key(), fresh=True)
    assert same(first, again)
    assert again.events[0].id == "j"


async def test_a_retry_answers_with_the_first_stream_although_only_others_changed(store: Store) -> None:
    await store.execute(integrations, "i", CREATE)
    both = [Wish(integrations, "i", integrations.Start()), Wish(jobs, "j", jobs.Queue(QUEUED), fresh=True)]
    first = await store.execute_all(both, key=key())
    assert [recorded.topic for recorded in first.events] == ["jobs.queued"]
    assert same(first, await store.execute_all(both, key=key()))


async def test_a_retry_of_what_changed_nothing(store: Store) -> None:
    await store.execute(integrations, "i", CREATE)
    first = await store.execute(integrations, "i", integrations.Start(), key=key())
    assert (first.position, first.events) == (1, [])
    await store.execute(integrations, "i", integrations.Stop())
    assert same(first, await store.execute(integrations, "i", integrations.Start(), key=key()))


async def test_what_changed_nothing_answers_with_the_state_at_its_position(store: Store, db: Database) -> None:
    await store.execute(integrations, "i", CREATE)
    async with open_writers(db.dsn) as [other]:
        elsewhere = Store(db, store.mapper, other)
        async with Held(db):
            renaming = asyncio.create_task(elsewhere.execute(integrations, "i", integrations.Change(name="second")))
            await blocked(db)
            starting = asyncio.create_task(store.execute(integrations, "i", integrations.Start(), key=key()))
            await blocked(db, 2)
        await renaming
        done = await starting
    assert (done.position, done.state.name) == (2, "second")
    assert same(done, await store.execute(integrations, "i", integrations.Start(), key=key()))


async def test_a_key_of_another_request(store: Store) -> None:
    await store.execute(jobs, "j", jobs.Queue(QUEUED), key=key(), fresh=True)
    for fresh in (True, False):
        with pytest.raises(errors.KeyReused):
            await store.execute(jobs, "k", jobs.Queue(QUEUED), key=key(request=b"other"), fresh=fresh)
    assert await store.head() == 1


async def test_32_retries_at_once_get_one_answer(store: Store) -> None:
    done = await asyncio.gather(*(store.execute(integrations, "i", CREATE, key=key()) for _ in range(32)))
    assert await store.head() == 1
    assert {(one.position, one.state.name, one.events[0].event_id) for one in done} == {
        (1, "first", done[0].events[0].event_id)
    }


async def test_what_a_key_did_can_be_asked(store: Store) -> None:
    assert await store.earlier([integrations], "main", key()) is None
    first = await store.execute(integrations, "i", CREATE, key=key())
    earlier = await store.earlier([integrations], "main", key())
    assert earlier is not None
    assert same(first, earlier)
    with pytest.raises(errors.KeyReused):
        await store.earlier([integrations], "main", key(request=b"other"))


async def test_a_lost_lease_loses_the_command(store: Store, db: Database) -> None:
    lease = await Leases(db, "me", 1).take("x")
    assert lease is not None
    await store.execute(tenants, "a", tenants.Add("a"), guards=[lease.guard])
    with pytest.raises(errors.LeaseLost):
        await store.execute(tenants, "b", tenants.Add("b"), guards=[Guard("x", "me", lease.fence + 1)])


async def test_a_full_queue_and_a_stopped_writer_are_unavailable(db: Database) -> None:
    writer = Writer(db, config.EventStore(queue=1))
    store = Store(db, Mapper(events.REGISTRY), writer)
    waiting = asyncio.create_task(store.execute(tenants, "a", tenants.Add("a"), fresh=True))
    await asyncio.sleep(0)
    with pytest.raises(errors.Unavailable):
        await store.execute(tenants, "b", tenants.Add("b"))
    running = asyncio.create_task(writer.run())
    await waiting
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(errors.Unavailable):
        await store.execute(tenants, "b", tenants.Add("b"))


async def test_a_stream_is_read_in_parts(store: Store) -> None:
    await store.execute(integrations, "i", CREATE)
    for n in range(4):
        await store.execute(integrations, "i", integrations.Change(name=str(n)))
        await store.execute(tenants, str(n), tenants.Add(str(n)))
    name = "integrations/main/i"
    assert [one.version for one in await store.stream(name)] == [1, 2, 3, 4, 5]
    assert [one.version for one in await store.stream(name, after=3)] == [4, 5]
    assert [one.version for one in await store.stream(name, until=4)] == [1, 2, 3]
    assert (await store.load(integrations, name, until=2)).state.name == "0"
    loaded = await store.load(integrations, name)
    assert (loaded.state.name, loaded.version, loaded.position) == ("3", 5, 8)
    assert (await store.load(integrations, "integrations/main/none")).version == 0
    assert [one.position for one in await store.read(3, 4)] == [4, 5, 6, 7]
    assert [one.position for one in await store.read(3, 10, until=5)] == [4, 5]
    assert await store.read_raw(3, 2) == (await store.read_raw(0, 10))[3:5]


async def test_a_stream_that_cannot_be_read_takes_no_command(store: Store) -> None:
    await store.execute(integrations, "i", CREATE)
    await store.writer.append(append("integrations/main/i", 1))  # a topic that is not in the registry
    [_, strange] = await store.read(0, 10)
    assert isinstance(strange.event, messages.Unreadable)
    assert strange.event.stored_topic == "notes.written"
    with pytest.raises(errors.Unavailable):
        await store.execute(integrations, "i", integrations.Stop())
    await store.execute(integrations, "other", integrations.Create("other", "o", "files", Raw(b"{}")))


async def test_an_event_that_is_too_large_is_refused(store: Store) -> None:
    large = integrations.Create("i", "x" * 300_000, "files", Raw(b"{}"))
    with pytest.raises(errors.TooLarge):
        await store.execute(integrations, "i", large)
    await store.execute(integrations, "i", integrations.Create("i", "x" * 250_000, "files", Raw(b"{}")))


async def test_a_long_stream_is_read_on_from_where_it_was(
    store: Store, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(user: str, by: Store = store) -> None:
        await by.execute(servers, "s", servers.Deauthorize(user))

    await store.execute(servers, "s", servers.Sync(configured()))
    await ask("first")
    read: list[int] = []
    select = store.recorder.select_events

    async def noting(*about: Any, **bounds: Any) -> list[LogNotification]:
        found = await select(*about, **bounds)
        read.append(len(found))
        return found

    monkeypatch.setattr(store.recorder, "select_events", noting)
    before = await store.load(servers, "servers/main/s")
    other = Store(store.database, store.mapper, store.writer)
    await ask("second", other)
    await other.execute(servers, "s", servers.Observe("running", 7, 8))
    after = await store.load(servers, "servers/main/s")
    assert (before.version, after.version) == (2, 4)
    assert after == await other.load(servers, "servers/main/s")
    assert after.state.pid == 7
    assert sum(read) == 3
    assert (await store.load(servers, "servers/main/s", until=before.position)) == before
