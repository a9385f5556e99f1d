"""Everybody who follows a library is told all of it, in order, once; however they follow, whoever writes meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator

import aiohttp
import pytest

from infra.db import Database
from tests.infra.appends import open_writers
from tests.journeys.crowded import crowded
from tests.journeys.followers import Libraries
from tests.journeys.libraries import Device
from tests.journeys.system import System


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """An instance of its own: nobody else writes."""
    system = System(tmp_path_factory.mktemp("alone"))
    try:
        yield system.start()
    finally:
        system.stop()


async def _heard(system: System, device: Device, cursor: str | None, meanwhile: asyncio.Event) -> tuple[int, str]:
    """The first change behind a cursor, on one stream; `meanwhile` is set when it is about to open."""
    headers = {"Authorization": f"Bearer {device.token}", "Accept": "text/event-stream"}
    if cursor is not None:
        headers["Last-Event-ID"] = cursor
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.timeout(30):
        meanwhile.set()
        async with session.get(f"{system.ready['url']}/api/v1/sync/changes") as answer:
            assert answer.status == 200
            async for line in answer.content:
                name, _, value = line.decode().strip().partition(": ")
                if name == "id":
                    cursor = value
                if name == "data":
                    assert cursor is not None
                    return json.loads(value)["sequence"], cursor
    raise AssertionError("the stream ended")


async def _openings(system: System, times: int) -> None:
    people = await asyncio.to_thread(Libraries, system, 1)
    device = await asyncio.to_thread(people.users[0].device)
    database = Database(system.ready["database_url"], 4)
    await people.open(database)
    cursor: str | None = None
    async with open_writers(system.ready["database_url"]) as [writer]:
        for _ in range(times):
            opening = asyncio.Event()
            hearing = asyncio.create_task(_heard(system, device, cursor, opening))
            await opening.wait()
            await asyncio.sleep(random.uniform(0, 0.02))
            written = await writer.append(people.command())
            position, cursor = await hearing
            assert position <= written.last
            while position < written.last:  # the others of the same command
                position, cursor = await _heard(system, device, cursor, asyncio.Event())
    await database.close()


def test_a_change_that_comes_while_the_only_stream_opens_is_heard(alone: System) -> None:
    """Nothing follows that would wake it again."""
    asyncio.run(_openings(alone, 25))


def test_followers_are_told_everything_in_order_once(alone: System) -> None:
    everybody = asyncio.run(crowded(alone, commits=400, kills=1, pause_s=1.0))
    assert sum(one.breaks for one in everybody)
