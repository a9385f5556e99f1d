"""Sixty deaths under load, of every process, and nothing that was acknowledged is lost or done twice."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.load import kill_often, loaded
from tests.journeys.system import NAMES, System

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
