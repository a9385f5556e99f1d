"""What sessions came to: a fold of their own events, and of those of the jobs and uploads that are part of them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from domain import jobs, sessions, uploads
from infra.eventstore.store import Store
from projections import sessions as read
from projections.sessions import Work
from services import projector
from services import sessions as services
from tests.projections.histories import T0, Said, World, fill, open_store, tables

HERE = sessions.Location("System1")


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        yield opened


class Told:
    """A history of sessions, with what their jobs and uploads should add up to."""

    def __init__(self, seed: int) -> None:
        self.world, self.pick = World(seed), random.Random(seed)
        self.said: list[Said] = []
        self.sums: dict[str, dict[str, int]] = {}

    def say(self, context: Any, id: str, command: Any) -> None:
        self.said += self.world.say(context, "main", id, command)

    def session(self, number: int) -> None:
        id = f"session-{number}"
        self.sums[id] = {"jobs": 0, "uploads": 0, "bytes": 0, "changes": 0, "wrong": 0}
        self.say(sessions, id, sessions.Start(HERE, HERE, "Full"))
        for n in range(self.pick.randrange(5)):
            self.pick.choice((self.job, self.upload))(id, n)
        self.job(None, number)

    def job(self, session: str | None, n: int) -> None:
        id = f"job-{session}-{n}"
        ticket = jobs.Ticket(job=id, kind="files", type="full_sync", lane="later")
        self.say(jobs, id, jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"), session=session)))
        counters = jobs.Counters(*(self.pick.randrange(9) for _ in range(6)))
        ends = (
            jobs.Complete(counters, Raw(b'{"conflicts":2,"errors":["x"]}'), 7),
            jobs.Fail("sync_failed", "no", counters),
        )
        end = self.pick.choice(ends)
        self.say(jobs, id, jobs.Start(fence=1, worker="w", at=T0))
        self.say(jobs, id, jobs.Progress("copying", 40, counters))
        self.say(jobs, id, end)
        if session is None:
            return
        self.say(sessions, session, sessions.Attach("job", id))
        sums = self.sums[session]
        sums["jobs"] += 1
        sums["bytes"] += counters.bytes
        sums["changes"] += counters.created + counters.updated + counters.deleted
        sums["wrong"] += isinstance(end, jobs.Fail)

    def upload(self, session: str, n: int) -> None:
        id = f"ann.{session}-{n}"
        opened = uploads.Opened(path="a", hash=None, size=100, chunk_size=64, device=None, session=session)
        self.say(uploads, id, uploads.Open(opened))
        self.say(sessions, session, sessions.Attach("upload", id))
        done = self.pick.random() < 0.5
        self.say(uploads, id, uploads.Complete("0" * 64, 5) if done else uploads.Fail("bad"))
        sums = self.sums[session]
        sums["uploads"] += 1
        sums["bytes"] += 100 * done
        sums["changes"] += done
        sums["wrong"] += not done


async def folded(store: Store, page: int) -> dict[str, Any]:
    name = f"rm_sessions_by_{page}"
    async with store.database.transaction() as connection:
        await projector.create(connection, read, name)
    position = 0
    while events := await store.read(position, page):
        async with store.database.transaction() as connection:
            await projector.fold_page(connection, read, name, events)
        position = events[-1].position
    return await tables(store.database, name)


@pytest.mark.parametrize("seed", range(3))
async def test_sessions_are_the_sums_of_their_work(store: Store, seed: int) -> None:
    told = Told(seed)
    for number in range(20):
        told.session(number)
    await fill(store.database, told.said)
    await projector.prepare(store.database)
    first = await folded(store, 1000)
    assert first == await folded(store, 1)
    async with store.database.transaction() as connection:
        await projector.fold_page(connection, read, read.SCHEMA, await store.read(0, 10_000))
    rows, total = await read.list_(store.database, "main", None, 100)
    assert (len(rows), total) == (20, 20)
    for row in rows:
        work = await read.work(store.database, "main", row.id)
        totals, sums = services.totals(work, over=True), told.sums[row.id]
        found = {name: getattr(totals, name) for name in ("jobs", "uploads", "bytes", "changes")}
        assert found == {name: value for name, value in sums.items() if name != "wrong"}
        assert (services.failure(work) is None) == (sums["wrong"] == 0)
        assert row.attached == len(work) == sums["jobs"] + sums["uploads"]
        assert totals.conflicts == 2 * sum(one.is_job and one.status == "completed" for one in work)
        assert 0 <= services.progress(work) < 100


def test_what_is_open_is_an_error_only_once_all_is_over() -> None:
    running = Work("main", "job", "j", "s", 1, "running", progress=50)
    sent = Work("main", "upload", "u", "s", 1, "pending")
    left = Work("main", "upload", "v", "s", 1, "cancelled")
    assert services.totals([running, sent, left]).errors == 0
    over = services.totals([running, sent, left], over=True)
    assert (over.errors, over.messages) == (2, ("job j is not complete", "upload u is not complete"))
    assert services.failure([left]) is None
    assert services.failure([running, sent, left]) == "1 of 1 job did not complete; 1 of 2 uploads did not complete"
    assert services.progress([running, sent]) == 25
    assert services.progress([]) == 0


def test_a_result_of_any_kind_can_be_read() -> None:
    for raw in (b"null", b"[]", b'"x"', b"{}", b'{"conflicts":[{}],"conflict_count":3}', b'{"errors":[1,"a"]}'):
        row = Work("main", "job", "j", "s", 1, "running")
        found = read._resulted(row, Raw(raw))
        said = msgspec.json.decode(raw)
        assert found.conflicts == (said.get("conflict_count", 0) if isinstance(said, dict) else 0)
