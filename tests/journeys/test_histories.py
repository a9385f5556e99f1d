"""A few histories of devices around a library, over HTTP; `make faults` plays six hundred."""

from __future__ import annotations

import pytest

from tests.device.http_world import HttpWorld
from tests.journeys.system import System


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_devices_converge_over_http(system: System, seed: int) -> None:
    world = HttpWorld(system, seed, devices=3)
    world.play(60)
    world.settle()
    world.check()
