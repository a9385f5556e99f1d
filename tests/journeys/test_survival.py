"""What `make faults` does at length, in short: every process dies once under load."""

from __future__ import annotations

from pathlib import Path

from tests.faults.load import kill_often, loaded
from tests.journeys.system import NAMES, System


def test_every_process_dies_once_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    system = System(tmp_path).start()
    try:
        with loaded(system, seed=1, clients=1) as load:
            counts = kill_often(system, seed=1, kills=len(NAMES), pause_s=0.5)
        assert set(counts) == NAMES
        load.verify()
    finally:
        system.stop()
