"""20,000 commits by 16 writers into three libraries, and eight followers of three kinds, through ten dead gateways."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.journeys.crowded import crowded
from tests.journeys.system import System

COMMITS = int(os.environ.get("FAULTS_COMMITS", "20000"))


def test_no_follower_misses_repeats_or_sees_another_order(tmp_path: Path) -> None:
    system = System(tmp_path).start()
    try:
        everybody = asyncio.run(crowded(system, COMMITS, kills=10, pause_s=5.0))
        for one in everybody:
            print(f"{one.kind}: told of {len(one.told)} changes, came back {one.breaks} times, {one.acks} acknowledged")
    finally:
        system.stop()
