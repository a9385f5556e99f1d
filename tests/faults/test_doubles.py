"""Every role twice at the same time, by mistake or on purpose: nothing is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.load import kill_often, loaded
from tests.journeys.system import System, until

TWINS = {"core": [], "worker": [], "worker-now": ["--lane", "now"]}


@contextmanager
def twins(system: System) -> Iterator[None]:
    """A second core and second workers beside those of `up`, on the same settings; killed and started again too."""
    command = [sys.executable, "-P", "-m"]
    settings = ["--config", str(system.directory / "settings.json")]
    own = {name: text for name, text in os.environ.items() if not name.startswith("UNDRIFT_")}
    with open(system.log, "ab") as log:
        running = [
            subprocess.Popen(
                [*command, f"services.{name.partition('-')[0]}", *more, *settings], env=own, stdout=log, stderr=log
            )
            for name, more in TWINS.items()
        ]
    try:
        yield
        assert [one.poll() for one in running] == [None] * len(running), system.said()
    finally:
        for one in running:
            one.send_signal(signal.SIGTERM)
        codes = [one.wait(20) for one in running]
    assert codes == [0] * len(running)


def test_two_of_everything_do_everything_once(tmp_path: Path) -> None:
    system = System(tmp_path).start()
    try:
        with twins(system), loaded(system, seed=3) as load:
            assert until(lambda: len(load.entries) > 50)
            counts = kill_often(system, seed=3, kills=12)
        assert counts
        load.verify()
        due = system.sql(
            "select state::text from undrift.events where topic = 'jobs.queued' and metadata::text like '%%scheduler%%'"
        )
        assert len(due) == len(set(due)) > 0
    finally:
        system.stop()
