"""Another epoch, opened by hand: running processes notice, and no place of before is taken for one of now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.load import verify_jetstream
from tests.faults.restoring import epochs_in_jetstream
from tests.journeys import libraries
from tests.journeys.cursors import GONE, Cursors
from tests.journeys.sse import follow
from tests.journeys.system import ADMIN, QUICK, System, until

OURS = {"gateway", "core", "worker", "worker-now"}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path, settings=f"{QUICK}\n[auth]\nopen_loopback = true\n").start()
    yield system
    system.stop()


def test_processes_that_run_notice_another_epoch(own: System) -> None:
    held = Cursors(own)
    assert {name: status for name, (status, _) in held.answers().items()} == dict.fromkeys(held.answers(), 200)
    assert [one["epoch"] for one in own.undrift("epoch", "list")["epochs"]] == [held.epoch]
    assert own.undrift("epoch", "new")["opened"] is None
    before = own.pids

    with follow(own, "/api/v1/feeds/events", last=f"{held.epoch}.{held.position}") as stream:
        assert own.undrift("epoch", "new", "--yes")["opened"]["epoch"] == held.epoch + 1
        for _ in stream:
            pass  # it ends: whoever comes again is told
    assert until(lambda: all(own.pids.get(name, before[name]) != before[name] for name in OURS)), own.said()
    own.whole()

    answers = held.answers()
    assert {name: status for name, (status, _) in answers.items()} == GONE
    assert all(resync for status, resync in answers.values() if status == 410), answers
    assert answers["feed"][1]["epoch"] == held.epoch + 1
    assert len(held.device.files()) == 1
    assert own.ok("GET", "/api/v1/feeds/events?after=0&limit=1", token=ADMIN)["epoch"] == held.epoch + 1
    assert until(lambda: epochs_in_jetstream(own) == {str(held.epoch + 1)})
    libraries.user(own).device().upload("after", b"after")
    verify_jetstream(own)
    assert until(lambda: own.undrift("doctor")["well"])
