"""What the notifier promises: everything, in order, signed, tried again, and nobody delays anybody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tests.journeys.notifying import World, in_order, open_world


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(database, tmp_path) as opened:
        yield opened


async def test_everything_arrives_once_in_order_and_signed(world: World) -> None:
    first, second = await world.subscribe("ok/a"), await world.subscribe("ok/b", "integrations.started")
    world.start()
    positions = await world.say(100, streams=5)
    await world.settled(first, 100)
    await world.settled(second, 50)
    got = world.receiver.got("ok/a")
    assert sorted(one.json()["data"]["position"] for one in got) == positions
    assert in_order(got)
    for one in got:
        Webhook(world.secrets[first]).verify(one.body, dict(one.headers))
    rows = await world.rows(first)
    assert [row["seq"] for row in rows] == list(range(1, 101))
    assert [row["position"] for row in rows] == positions
    assert {one.id for one in got} == {row["message"] for row in rows}
    assert {one.json()["type"] for one in world.receiver.got("ok/b")} == {"integrations.started"}
