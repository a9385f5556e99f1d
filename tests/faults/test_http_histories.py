"""Six hundred histories of devices around libraries of a running instance."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from tests.device.http_world import HttpWorld
from tests.journeys.system import System, system

__all__ = ["system"]  # a fixture

HISTORIES = int(os.environ.get("HISTORIES", "600"))
#: The first of their seeds.
FIRST = int(os.environ.get("HISTORIES_FROM", "0"))


def test_six_hundred_histories_over_http_converge_and_lose_nothing(system: System) -> None:
    def play(seed: int) -> str:
        world = HttpWorld(system, seed, devices=3 + seed % 3)
        try:
            world.play(50 + seed * 7 % 451)
            world.settle()
            world.check()
        except Exception as error:  # a seed is told, however it ends
            return f"seed {seed}: {error!r}"
        return ""

    with ThreadPoolExecutor(6) as pool:
        troubles = [said for said in pool.map(play, range(FIRST, FIRST + HISTORIES)) if said]
    assert not troubles, troubles[:5]
