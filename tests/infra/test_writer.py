"""The writer: what a group does to the log, and that no accident loses, doubles or holds up a command."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from eventsourcing.persistence import OperationalError

from domain import messages
from infra import config, embedded
from infra.db import Database
from infra.eventstore.migrate import migrate
from infra.eventstore.recorder import (
    Append,
    Appended,
    Claimed,
    Guard,
    GuardFailed,
    Key,
    KeyReused,
    Overloaded,
    VersionConflict,
    Write,
)
from infra.eventstore.writer import Writer
from infra.leases import Leases
from tests.infra.appends import Held, Line, append, blocked, open_writers, whole, write

NUL = "notes/main/\0"


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    opened = Database(database, 8)
    yield opened
    await opened.close()


@pytest.fixture
async def writer(database: str) -> AsyncIterator[Writer]:
    async with open_writers(database) as [one]:
        yield one


async def outcomes(writer: Writer, commands: list[Append]) -> list[Appended | BaseException]:
    """All at once, so that they share groups."""
    return await asyncio.gather(*(writer.append(command) for command in commands), return_exceptions=True)


async def test_positions_follow_each_other_and_versions_are_what_was_expected(writer: Writer, db: Database) -> None:
    answers = await outcomes(writer, [append(f"notes/main/{n}", count=n % 3 + 1) for n in range(40)])
    log = await whole(db)
    for n, answer in enumerate(answers):
        assert isinstance(answer, Appended)
        mine = log[answer.first - 1 : answer.last]
        assert [(f"notes/main/{n}", version) for version in range(1, n % 3 + 2)] == [
            (note.originator_id, note.originator_version) for note in mine
        ]
        assert {answer.recorded_at} == {note.recorded_at for note in mine}
    assert writer.groups < 10


async def test_a_command_is_stored_whole_or_not_at_all(writer: Writer, db: Database) -> None:
    await writer.append(append("notes/main/a"))
    both = Append("main", [write("notes/main/b", 0, 3), write("notes/main/a", 0, 1)])
    with pytest.raises(VersionConflict):
        await writer.append(both)
    assert len(await whole(db)) == 1
    await writer.append(Append("main", [write("notes/main/b", 0, 3), write("notes/main/a", 1, 1)]))
    assert len(await whole(db)) == 5


@pytest.mark.parametrize("expected", [-1, 0, 1, 3, 100])
async def test_a_stream_that_moved_is_a_conflict(writer: Writer, db: Database, expected: int) -> None:
    await writer.append(append("notes/main/a", count=2))
    with pytest.raises(VersionConflict):
        await writer.append(append("notes/main/a", expected))
    assert len(await whole(db)) == 2


async def test_a_write_without_events_still_expects_its_version(writer: Writer) -> None:
    await writer.append(append("notes/main/a", count=2))
    await writer.append(Append("main", [write("notes/main/a", 2, 0), write("notes/main/b")]))
    with pytest.raises(VersionConflict):
        await writer.append(Append("main", [write("notes/main/a", 1, 0), write("notes/main/c")]))


@pytest.mark.parametrize("versions", [(2,), (1, 3), (1, 1), (0,)])
async def test_events_that_leave_a_gap_are_a_mistake(writer: Writer, versions: tuple[int, ...]) -> None:
    events = [write("notes/main/a", version - 1).events[0] for version in versions]
    with pytest.raises(ValueError, match="does not follow"):
        await writer.append(Append("main", [Write("notes/main/a", 0, events)]))


async def test_one_command_writes_once_to_a_stream(writer: Writer) -> None:
    with pytest.raises(ValueError, match="once"):
        await writer.append(Append("main", [write("notes/main/a"), write("notes/main/a", 1)]))


@pytest.mark.parametrize(
    "poison",
    [
        pytest.param(lambda: append(NUL), id="a NUL in the stream"),
        pytest.param(lambda: append(key="\0"), id="a NUL in the key"),
        pytest.param(lambda: append(key="\ud800"), id="half a surrogate pair"),
        pytest.param(lambda: append(claims=[messages.take("k", "\0")]), id="a NUL in a claim"),
        pytest.param(lambda: Append("main", [Write("notes/main/far", 2**31, [])]), id="a version that is no int"),
        pytest.param(lambda: append(guards=[Guard("a", "b", 2**63)]), id="a fence that is no bigint"),
    ],
)
async def test_poison_fails_alone(writer: Writer, db: Database, poison: Any) -> None:
    async with Held(db):
        first = asyncio.create_task(writer.append(append()))
        await blocked(db)
        commands = [append(key=str(n)) for n in range(20)]
        commands.insert(11, poison())
        rest = asyncio.create_task(outcomes(writer, commands))
        await asyncio.sleep(0)
    assert (await first).first == 1
    answers = await rest
    bad = answers.pop(11)
    assert isinstance(bad, asyncpg.PostgresError | asyncpg.InterfaceError | ValueError | OverflowError)
    assert sorted(answer.first for answer in answers if isinstance(answer, Appended)) == list(range(2, 22))
    assert len(await whole(db)) == 21


async def test_a_server_that_refuses_everything_answers_everybody(writer: Writer, database: str, db: Database) -> None:
    owner = await asyncpg.connect(database)
    signature = await owner.fetchval("select oid::regprocedure::text from pg_proc where proname = 'append'")
    await owner.execute("revoke execute on function " + signature + " from undrift_app")
    answers = await outcomes(writer, [append() for _ in range(5)])
    assert [asyncpg.InsufficientPrivilegeError] * 5 == [type(answer) for answer in answers]
    await owner.execute("grant execute on function " + signature + " to undrift_app")
    await owner.close()
    assert (await writer.append(append())).first == 1


async def test_a_key_replays_the_same_events(writer: Writer, db: Database) -> None:
    first = await writer.append(append(key="k", count=3))
    await writer.append(append())
    before = await whole(db)
    again = await writer.append(append(key="k", count=2))
    assert again == Appended(first.first, 3, first.recorded_at, replayed=True)
    assert before == await whole(db)


async def test_a_key_of_another_request_is_refused(writer: Writer, db: Database) -> None:
    await writer.append(append(key="k"))
    with pytest.raises(KeyReused):
        await writer.append(append(key="k", request=b"other"))
    assert len(await whole(db)) == 1


async def test_a_key_belongs_to_its_principal_and_tenant(writer: Writer) -> None:
    await writer.append(append(key="k"))
    assert not (await writer.append(append(key="k", principal="other"))).replayed
    theirs = append(key="k")
    assert not (await writer.append(Append("second", theirs.writes, theirs.key, (), "tests"))).replayed


async def test_a_key_without_events_remembers_the_head_it_saw(writer: Writer) -> None:
    await writer.append(append(count=2))
    nothing = Append("main", [], Key("tests", "k", b"r" * 32))
    assert ((await writer.append(nothing)).last, (await writer.append(append())).first) == (2, 3)
    again = await writer.append(nothing)
    assert (again.last, again.count, again.replayed) == (2, 0, True)


async def test_32_tries_of_one_key_store_one_set_of_events(database: str, db: Database) -> None:
    async with open_writers(database, 4) as writers:
        answers = await asyncio.gather(*(writers[n % 4].append(append(key="k", count=2)) for n in range(32)))
    assert {(answer.first, answer.count, answer.recorded_at) for answer in answers} == {
        (1, 2, (await whole(db))[0].recorded_at)
    }
    assert Counter(answer.replayed for answer in answers) == {True: 31, False: 1}
    assert len(await whole(db)) == 2


async def held(db: Database) -> set[tuple[str, str, str, bool]]:
    return {tuple(row) for row in await db.fetch("select kind, key, stream_id, shared from undrift.claims")}


async def test_a_name_is_taken_once(writer: Writer, db: Database) -> None:
    take = [messages.take("name", "x")]
    await writer.append(append("notes/main/a", claims=take))
    with pytest.raises(Claimed) as refused:
        await writer.append(append("notes/main/b", claims=take))
    assert (refused.value.kind, refused.value.name, refused.value.holder) == ("name", "x", "notes/main/a")
    await writer.append(append("notes/main/a", 1, claims=[messages.release("name", "x")]))
    await writer.append(append("notes/main/b", claims=take))
    assert await held(db) == {("name", "x", "notes/main/b", False)}


async def test_32_takers_of_one_name_have_one_winner(database: str, db: Database) -> None:
    async with open_writers(database, 4) as writers:
        answers = await asyncio.gather(
            *(writers[n % 4].append(append(claims=[messages.take("name", "x")])) for n in range(32)),
            return_exceptions=True,
        )
    assert Counter(map(type, answers)) == {Appended: 1, Claimed: 31}
    assert (len(await held(db)), len(await whole(db))) == (1, 1)


async def test_a_shared_name_made_exclusive_is_exclusive(writer: Writer, db: Database) -> None:
    await writer.append(append("notes/main/a", claims=[messages.take("name", "x", shared=True)]))
    await writer.append(append("notes/main/a", 1, claims=[messages.take("name", "x")]))
    with pytest.raises(Claimed):
        await writer.append(append(claims=[messages.take("name", "x", shared=True)]))
    assert await held(db) == {("name", "x", "notes/main/a", False)}


async def test_a_name_passes_from_stream_to_stream_in_one_command(writer: Writer, db: Database) -> None:
    await writer.append(append("notes/main/a", claims=[messages.take("name", "x")]))
    give = write("notes/main/a", 1, claims=[messages.release("name", "x")])
    await writer.append(Append("main", [give, write("notes/main/b", claims=[messages.take("name", "x")])]))
    assert await held(db) == {("name", "x", "notes/main/b", False)}


async def test_a_command_cannot_take_a_name_for_two_streams(writer: Writer, db: Database) -> None:
    take = [messages.take("name", "x")]
    with pytest.raises(Claimed):
        await writer.append(Append("main", [write("notes/main/a", claims=take), write("notes/main/b", claims=take)]))
    assert await whole(db) == []


async def test_a_guard_holds_while_its_lease_does(writer: Writer, db: Database) -> None:
    now = [0.0]
    mine, theirs = (Leases(db, owner, 1, lambda: now[0]) for owner in ("a", "b"))
    lease = await mine.take("x")
    assert lease is not None
    await writer.append(append(guards=[lease.guard]))
    assert await theirs.take("x") is None
    now[0] = 2
    taken = await theirs.take("x")
    assert taken is not None
    for guards in ([lease.guard], [taken.guard, lease.guard], [Guard("x", "b", 3)], [Guard("none", "a", 1)]):
        with pytest.raises(GuardFailed):
            await writer.append(append(guards=guards))
    await writer.append(append(guards=[taken.guard]))
    assert len(await whole(db)) == 2


async def test_recorded_at_never_goes_back(writer: Writer, database: str, db: Database) -> None:
    await writer.append(append("notes/main/a"))
    owner = await asyncpg.connect(database)
    ahead = datetime.now(UTC) + timedelta(days=1)
    await owner.execute("update undrift.events set recorded_at = $1", ahead)
    await owner.close()
    assert (await writer.append(append(key="k"))).recorded_at == ahead
    assert [note.recorded_at for note in await whole(db)] == [ahead] * 2
    assert (await writer.append(append(key="k"))).recorded_at == ahead


async def test_a_full_queue_refuses_at_once(db: Database) -> None:
    idle = Writer(db, config.EventStore(queue=3))
    waiting = [asyncio.create_task(idle.append(append())) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await idle.append(append())
    assert idle.waiting == 3
    running = asyncio.create_task(idle.run())
    assert len(await asyncio.gather(*waiting)) == 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_cancelled_callers_hold_up_nobody(writer: Writer, db: Database) -> None:
    async with Held(db):
        tasks = [asyncio.create_task(writer.append(append())) for _ in range(3000)]
        await blocked(db)
        for task in tasks:
            task.cancel()
        last = asyncio.create_task(writer.append(append("notes/main/last")))
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(last, 10)
    log = await whole(db)
    assert log[answer.first - 1].originator_id == "notes/main/last"
    assert writer.waiting == 0


async def test_a_writer_that_stops_leaves_nobody_waiting(database: str, db: Database) -> None:
    async with Held(db), open_writers(database) as [writer]:
        under_way = asyncio.create_task(writer.append(append()))
        await blocked(db)
        queued = asyncio.create_task(writer.append(append()))
        await asyncio.sleep(0)
    for task in (under_way, queued):
        with pytest.raises(OperationalError):
            await asyncio.wait_for(task, 5)
    with pytest.raises(OperationalError):
        await writer.append(append())


class Load:
    """Clients that append to streams of their own until told to stop, some with keys, some with claims."""

    def __init__(self, writers: list[Writer], clients: int = 16) -> None:
        self._writers = writers
        self.acknowledged: dict[str, tuple[int, Any]] = {}
        self._until = asyncio.Event()
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]

    async def _client(self, number: int) -> None:
        stream, version = f"notes/main/{number}", 0
        writer = self._writers[number % len(self._writers)]
        while not self._until.is_set():
            claims = [messages.take("name", f"{number}/{version}")] if number % 3 else []
            key = f"{number}/{version}" if number % 2 else None
            command = append(stream, version, number % 2 + 1, key=key, claims=claims)
            answer = await writer.append(command)
            for n, event in enumerate(command.writes[0].events):
                self.acknowledged[str(event.event_id)] = (answer.first + n, event)
            version += answer.count

    async def stop(self) -> None:
        self._until.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), 60)

    def check(self, log: list[Any]) -> None:
        """Everything acknowledged is stored once, where the answer said, and nothing else is."""
        assert {str(note.event_id): note.id for note in log} == {
            id: position for id, (position, _) in self.acknowledged.items()
        }
        assert len({note.event_id for note in log}) == len(log)
        for note in log:
            stored = self.acknowledged[str(note.event_id)][1]
            assert (stored.state, stored.hash) == (note.state, note.hash)


async def test_killed_sessions_lose_and_double_nothing(database: str, db: Database) -> None:
    async with open_writers(database, 3) as writers:
        load = Load(writers)
        owner = await asyncpg.connect(database)
        killed = 0
        for _ in range(25):
            await asyncio.sleep(random.uniform(0.005, 0.03))
            killed += len(
                await owner.fetch(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name like $1 limit 2",
                    "undrift writer %",
                )
            )
        await owner.close()
        await load.stop()
    assert killed > 10
    load.check(await whole(db))


async def test_a_session_that_was_cut_off_cannot_commit_later(database: str, db: Database) -> None:
    line = Line(database)
    async with open_writers(await line.open()) as [writer]:
        async with Held(db):
            waiting = asyncio.create_task(outcomes(writer, [append(f"notes/main/{n}", key=str(n)) for n in range(8)]))
            lost = await blocked(db)
            line.cut()  # the server does not notice: the session still waits, and would commit later
            async with asyncio.timeout(10):
                while await blocked(db) & lost:
                    await asyncio.sleep(0.005)
        answers = await asyncio.wait_for(waiting, 20)
    await line.close()
    assert sorted(answer.first for answer in answers if isinstance(answer, Appended)) == list(range(1, 9))
    assert len(await whole(db)) == 8


async def test_a_cut_after_the_commit_is_found_out(database: str, db: Database) -> None:
    line = Line(database)
    async with open_writers(await line.open(), 2) as writers:
        load = Load(writers)
        for _ in range(15):
            await asyncio.sleep(random.uniform(0.005, 0.03))
            line.cut()
        await load.stop()
    await line.close()
    load.check(await whole(db))


async def test_a_killed_postgres_loses_and_doubles_nothing(tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path, testing=True)
    url = await asyncio.to_thread(server.start)
    try:
        await migrate(url)
        async with open_writers(url, 2) as writers:
            load = Load(writers)
            for _ in range(3):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await asyncio.sleep(0.2)
            await load.stop()
        db = Database(url, 2)
        load.check(await whole(db))
        await db.close()
    finally:
        await asyncio.to_thread(server.stop)
