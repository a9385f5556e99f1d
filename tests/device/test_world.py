"""Seeded histories of several devices, with crashes and lost answers: all come to the same, and nothing is lost."""

from __future__ import annotations

import pytest

from tests.device.world import World

SEEDS = 400


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_devices_converge_and_no_edit_is_lost(first: int) -> None:
    for seed in range(first, first + 100):
        world = World(seed, devices=3 + seed % 3)
        world.play(50 + seed % 100)
        world.settle()
        world.check()


def test_without_trouble_nothing_is_said_twice() -> None:
    world = World(7, trouble=0.0)
    world.play(300)
    world.settle()
    world.check()
    said = len(world.log.events)
    world.settle()
    assert len(world.log.events) == said
