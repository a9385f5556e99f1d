"""What `make faults` does at length, in short: every process dies once under load, and a dump is restored."""

from __future__ import annotations

from pathlib import Path

from infra import embedded
from tests.faults.load import kill_often, loaded
from tests.faults.restoring import check
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


def test_a_restored_dump_is_another_history(tmp_path: Path) -> None:
    fresh = embedded.Postgres(tmp_path / "fresh")
    fresh.start()
    try:
        check(tmp_path, fresh, clients=0)
    finally:
        fresh.stop()
