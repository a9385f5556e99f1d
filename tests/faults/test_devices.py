"""Two clients with 2,000 files each on one library, killed a hundred times."""

from __future__ import annotations

import os
from pathlib import Path

from tests.journeys.libraries import user
from tests.journeys.system import System, system
from tests.journeys.test_device_client import files, killed, link, run

__all__ = ["system"]  # a fixture

FILES, KILLS = 2_000, 100


def test_two_clients_killed_a_hundred_times_end_equal(system: System, tmp_path: Path) -> None:
    ann = user(system)
    pair = link(ann, tmp_path / "a", "alpha"), link(ann, tmp_path / "b", "beta")
    for folder in pair:
        for number in range(FILES):
            path = folder / folder.name / f"{number % 40}" / f"{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(1 + number % 5000))
    killed(pair, kills=KILLS, edits=5, seed=7)
    assert files(pair[0]) == files(pair[1])
    assert len(files(pair[0])) > 2 * FILES * 0.9
    assert run("status", pair[0], "--json").json()["conflicts"] == 0
