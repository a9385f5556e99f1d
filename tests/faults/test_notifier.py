"""20,000 events for 20 endpoints of which five are evil, while the notifier is killed thirty times."""

from __future__ import annotations

import os
from pathlib import Path

from tests.doubles.receiver import receiver
from tests.journeys.notifier_killed import EVIL, SETTINGS, check, late, settled, subscribe, tell_and_kill
from tests.journeys.system import System

EVENTS = int(os.environ.get("FAULTS_WEBHOOK_EVENTS", "20000"))
KILLS = int(os.environ.get("FAULTS_WEBHOOK_KILLS", "30"))
GOOD, PER_SECOND = 15, 100.0
PATIENCE_S = 1800.0


async def test_good_endpoints_have_everything_whatever_dies_and_whoever_is_evil(tmp_path: Path) -> None:
    found = {}
    for name, evil in (("without", ()), ("with", EVIL)):
        (tmp_path / name).mkdir()
        system = System(tmp_path / name, SETTINGS).start()
        try:
            with receiver(tmp_path / name, brief=True) as sink:
                good, bad = subscribe(system, sink, GOOD, evil)
                told = await tell_and_kill(system, EVENTS, KILLS, seed=len(evil) + 1, per_second=PER_SECOND)
                await settled(system, good, EVENTS, PATIENCE_S)
                twice = check(system, sink, good, told)
                found[name] = late(sink, system, good, told)
                for id in bad:
                    assert system.sql("select count(*) from undrift.deliveries where endpoint = %s", id) == [(EVENTS,)]
                print(f"{name} the five: {twice}, p50 {found[name][0]:.2f} s, p99 {found[name][1]:.2f} s")
                assert system.undrift("doctor")["well"]
        finally:
            system.stop()
    print(f"p99 with the five: {found['with'][1] - found['without'][1]:+.2f} s")
