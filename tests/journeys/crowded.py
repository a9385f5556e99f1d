"""Many who write into libraries, eight who follow them, and a gateway that is killed now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from infra.db import Database
from tests.infra.appends import open_writers
from tests.infra.crowd import Crowd
from tests.journeys.followers import Follower, Libraries, followers
from tests.journeys.system import System

KINDS = (
    "pages",
    "long polls",
    "stream",
    "stream",
    "long polls",
    "slow stream",
    "pages",
    "stream",
)


async def crowded(system: System, commits: int, kills: int, pause_s: float) -> Sequence[Follower]:
    """Eight followers, each of whom was found to have been told exactly what its owner's library went through."""
    people = await asyncio.to_thread(Libraries, system, 3)
    everybody = await asyncio.to_thread(followers, system, people.users, KINDS)
    database = Database(system.ready["database_url"], 24)
    await people.open(database)
    following = [asyncio.ensure_future(one.follow()) for one in everybody]
    killing = asyncio.create_task(_kill(system, kills, pause_s))
    async with open_writers(system.ready["database_url"], 3) as writers:
        log = await Crowd(database, writers, commits, people.command).run()
    await killing
    expected = people.expected(log)
    for one in everybody:
        one.last = expected[one.owner][-1][0]
        one.ended.set()
    await database.close()
    async with asyncio.timeout(120):
        await asyncio.gather(*following)
    for one in everybody:
        assert one.told == expected[one.owner], (one.kind, len(one.told), len(expected[one.owner]))
        assert one.acks
    return everybody


async def _kill(system: System, times: int, pause_s: float) -> None:
    for _ in range(times):
        await asyncio.sleep(pause_s)
        pid = await asyncio.to_thread(system.kill, "gateway")
        await asyncio.to_thread(system.replaced, "gateway", pid)
