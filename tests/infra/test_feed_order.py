"""Whoever pages through the log by position skips nothing, repeats nothing and sees the order all others see."""

from __future__ import annotations

from infra.db import Database
from tests.infra.appends import open_writers
from tests.infra.crowd import Crowd


async def test_readers_agree_while_16_writers_pause_linger_and_roll_back(database: str) -> None:
    opened = Database(database, 24)
    async with open_writers(database, 3) as writers:
        crowd = Crowd(opened, writers, 600)
        log = await crowd.run()
    await opened.close()
    assert len(log) > 600
    assert crowd.rolled_back
