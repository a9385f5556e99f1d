"""20,000 commits by 16 writers that pause, roll back and linger, while everybody who can read follows."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import nats

from domain import messages, tenants
from infra.db import Database
from infra.eventstore.mapper import Draft, LogNotification, Mapper
from infra.eventstore.recorder import Append, Write
from tests.infra.appends import open_writers
from tests.infra.crowd import Crowd, Seen
from tests.journeys.system import System

COMMITS = int(os.environ.get("FAULTS_COMMITS", "20000"))
MAPPER = Mapper({"tenants.added": tenants.Added})


def some_tenants() -> Append:
    """Events that the running system knows and that no worker acts on."""
    writes = []
    for _ in range(random.randint(1, 3)):
        name = uuid4().hex
        stream = messages.stream(tenants.STREAM, tenants.FIRST, name)
        draft = Draft(tenants.FIRST, stream, 1, uuid4(), tenants.Added(name), messages.Metadata(actor="system:test"))
        writes.append(Write(stream, 0, [MAPPER.to_stored_event(draft)]))
    return Append(tenants.FIRST, writes)


class Readers:
    """The ways out of a running system."""

    def __init__(self, system: System) -> None:
        self._url, self._nats = system.ready["url"], system.ready["nats_url"]
        self._headers = {"Authorization": f"Bearer {system.ready['admin_token']}"}

    async def pages(self, ended: asyncio.Event) -> Seen:
        """HTTP, in pages of any size."""
        return await self._http(ended, wait=0)

    async def long_polls(self, ended: asyncio.Event) -> Seen:
        """HTTP, waiting for what comes."""
        return await self._http(ended, wait=1)

    async def _http(self, ended: asyncio.Event, wait: int) -> Seen:
        found: Seen = []
        async with aiohttp.ClientSession(headers=self._headers) as session:
            while True:
                last = ended.is_set()
                after = found[-1][0] if found else 0
                query = {"after": after, "limit": random.choice((1, 10, 1000)), "wait": wait}
                async with session.get(f"{self._url}/api/v1/feeds/events", params=query) as answer:
                    assert answer.status == 200, await answer.text()
                    page = await answer.json()
                found += [(event["position"], UUID(event["id"])) for event in page["events"]]
                if last and not page["events"]:
                    return found
                await asyncio.sleep(0 if page["events"] else 0.005)

    async def messages(self, ended: asyncio.Event) -> Seen:
        """JetStream, whose sequence is the position, until it has what the log has."""
        found: Seen = []
        connection = await nats.connect(self._nats)
        subscription = await connection.jetstream().subscribe("evt.>", stream="EVENTS", ordered_consumer=True)
        quiet = 0
        while not (ended.is_set() and found and found[-1][0] >= await self._head()):
            try:
                message = await subscription.next_msg(1)
            except nats.errors.TimeoutError:
                quiet += 1
                assert quiet < 60, "the relay stands still"
                continue
            quiet = 0
            assert message.headers is not None
            sequence = message.metadata.sequence.stream
            assert message.headers["Undrift-Position"] == str(sequence)
            found.append((sequence, UUID(message.headers["ce-id"])))
        await connection.close()
        return found

    async def _head(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self._url}/readyz") as answer:
            return int((await answer.json())["head"])


class Watched:
    """A read model, looked at again and again: how far it was, and what was in it at that very moment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.seen: list[tuple[int, int]] = []

    async def until(self, ended: asyncio.Event) -> None:
        """Looks until it has come to where the log is after the end."""
        while True:
            last = ended.is_set()
            head, *seen = await self._look()
            if not self.seen or self.seen[-1][0] != seen[0]:
                self.seen.append((seen[0], seen[1]))
            if last and seen[0] == head:
                return
            await asyncio.sleep(0.002)

    async def _look(self) -> tuple[int, int, int]:
        row = await self._database.fetchrow(
            "select (select max(pos) from undrift.events), pos, (select count(*) from rm_tenants_1.tenants)"
            " from undrift.tracking where projection = 'tenants' and generation = 1"
        )
        assert row is not None
        return row[0], row[1], row[2]

    def verify(self, log: Sequence[LogNotification]) -> None:
        """At no moment was there more or less in it than the events up to where it was."""
        assert self.seen == sorted(self.seen)
        added = list(accumulate((note.topic == "tenants.added" for note in log), initial=0))
        for position, count in self.seen:
            assert count == added[position], position


def test_nobody_skips_repeats_or_sees_another_order(tmp_path: Path) -> None:
    system = System(tmp_path).start()
    try:
        log, crowd, watched = asyncio.run(_crowded(system))
        assert len(log) > COMMITS
        assert len(crowd.rolled_back) > COMMITS / 20
        known = {row[0] for row in system.sql("select name from rm_tenants_1.tenants")}
        assert known >= {str(note.originator_id).rpartition("/")[2] for note in log if note.topic == "tenants.added"}
        findings = system.undrift("doctor")
        assert all(finding["well"] for finding in findings["findings"]), findings
        watched.verify(log)
        assert len(watched.seen) > 100
        print(f"{COMMITS} commits, {len(log)} events, {len(crowd.rolled_back)} events rolled back")
        print(f"read models looked at in {len(watched.seen)} positions")
    finally:
        system.stop()


async def _crowded(system: System) -> tuple[list[LogNotification], Crowd, Watched]:
    url = system.ready["database_url"]
    database = Database(url, 24)
    readers, watched, ended = Readers(system), Watched(database), asyncio.Event()
    watching = asyncio.create_task(watched.until(ended))
    async with open_writers(url, 3) as writers:
        crowd = Crowd(database, writers, COMMITS, some_tenants)
        log = await crowd.run(readers.pages, readers.long_polls, readers.messages)
    ended.set()
    await asyncio.wait_for(watching, 120)
    await database.close()
    return log, crowd, watched
