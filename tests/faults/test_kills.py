"""Sixty deaths under load, of every process, and nothing that was acknowledged is lost or done twice."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.faults.load import kill_often, loaded
from tests.journeys.system import NAMES, System, gone, until

KILLS = 60


def test_sixty_deaths_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULTS_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
    print(f"FAULTS_SEED={seed}")
    system = System(tmp_path).start()
    try:
        with loaded(system, seed) as load:
            counts = kill_often(system, seed, KILLS)
        assert sum(counts.values()) == KILLS
        assert min(counts[name] for name in NAMES) >= KILLS // len(NAMES) - 2
        load.verify()
        print(f"{counts}, {len(load.entries)} commands in {load.tries} tries, {system.head()} events")
    finally:
        system.stop()


def test_everything_dies_at_once_and_comes_back(tmp_path: Path) -> None:
    system = System(tmp_path).start()
    try:
        with loaded(system, seed=4) as load:
            for _ in range(5):
                time.sleep(2)
                assert system.process is not None
                pids = list(system.pids.values())
                system.process.kill()
                system.process.wait()
                assert until(lambda: gone(pids), 15)  # noqa: B023
                system.start()
        load.verify()
    finally:
        system.stop()
