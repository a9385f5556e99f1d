"""What takes a history away or somebody out of it: a wiped JetStream, a restored dump, an erased person."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import embedded
from tests.faults.load import verify_jetstream
from tests.faults.restoring import dump, epochs_in_jetstream, restore
from tests.journeys import libraries
from tests.journeys.canaries import Canary, erase
from tests.journeys.cursors import GONE, Cursors
from tests.journeys.system import QUICK, System, until

SETTINGS = f"{QUICK}\n[auth]\nopen_loopback = true\n"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path / "own", settings=SETTINGS).start()
    yield system
    system.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[embedded.Postgres]:
    server = embedded.Postgres(tmp_path / "fresh")
    server.start()
    yield server
    server.stop()


def wipe(system: System) -> None:
    """NATS dies, and its disk with it, while everything else runs."""
    store = system.directory / "nats"
    with system.paused("core"):
        pid = system.kill("nats", signal.SIGKILL)
        shutil.rmtree(store / "jetstream", ignore_errors=True)
    system.replaced("nats", pid)


def test_a_wipe_of_jetstream_takes_nothing_and_brings_nobody_back(own: System) -> None:
    held, canary = Cursors(own), Canary(own)
    canary.live()
    assert "nats" in canary.found()
    assert erase(own, canary.user.id, "--yes").returncode == 0
    wipe(own)
    assert {name: status for name, (status, _) in held.answers().items()} == dict.fromkeys(held.answers(), 200)
    libraries.user(own).device().upload("after", b"after")
    verify_jetstream(own)
    assert epochs_in_jetstream(own) == {str(held.epoch)}
    assert until(lambda: own.undrift("doctor")["well"])
    assert canary.found() == {}


def test_a_restored_dump_is_another_history_in_which_the_erased_stay_erased(
    own: System, fresh: embedded.Postgres, tmp_path: Path
) -> None:
    canary, held = Canary(own), Cursors(own)
    canary.live()
    dump(own.ready["database_url"], tmp_path / "dump")
    assert erase(own, canary.user.id, "--yes").returncode == 0
    later = libraries.user(own)
    later.device().upload("lost", b"lost")
    own.stop()

    restore(fresh.url, tmp_path / "dump")
    own.variables = {"UNDRIFT_DATABASE_URL": fresh.url}
    own.start()
    own.wrote = 0
    own.whole("postgres")
    assert libraries.login(own, canary.words["zelda"]).status == 401
    assert canary.user.call("GET", "/api/v1/auth/me").status == 401
    answers = held.answers()
    assert {name: status for name, (status, _) in answers.items()} == GONE
    assert until(lambda: own.undrift("doctor")["well"])
    assert canary.found() == {}
    assert epochs_in_jetstream(own) == {str(held.epoch + 1)}


def test_no_epoch_is_numbered_twice(own: System, fresh: embedded.Postgres, tmp_path: Path) -> None:
    """A dump of before another epoch was opened; its keys are in one of their own."""
    first = Cursors(own)
    files = first.device.files()
    dump(own.ready["database_url"], tmp_path / "log", "--exclude-schema=undrift_keys")
    dump(own.ready["database_url"], tmp_path / "keys", "--schema=undrift_keys")
    own.undrift("epoch", "new", "--yes")
    own.stop()
    restore(fresh.url, tmp_path / "log", tmp_path / "keys")
    own.variables = {"UNDRIFT_DATABASE_URL": fresh.url}
    own.start()
    own.wrote = 0
    own.whole("postgres")
    assert [one["epoch"] for one in own.undrift("epoch", "list")["epochs"]] == [first.epoch, first.epoch + 2]
    assert first.device.files() == files
    assert until(lambda: own.undrift("doctor")["well"])
