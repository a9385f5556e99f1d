"""What limits servers that are real processes: control groups, or what there is without them."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from domain import errors
from infra.runtimes import cgroups, processes, shim_machine
from tests.infra.houses import AS_WE_ARE, ROOT, House, limits, until
from tests.infra.unprivileged import HOARDER, NOBODY

PLACES = cgroups.places(f"undrift-probe-{os.getpid()}")
cgroups.tidy(PLACES)
GROUPED = {controller for place in PLACES for controller in place.controllers}


def needs(controller: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(controller not in GROUPED, reason=f"no control group has {controller} here")


@pytest.fixture
async def ours(data_dir: Path) -> AsyncIterator[House]:
    """Whose servers run as we do."""
    made = House(data_dir, AS_WE_ARE, pids=24)
    yield made
    await made.leave()


@pytest.fixture(params=["groups", "none"])
async def both(request: pytest.FixtureRequest, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """A machine with control groups, and one without."""
    if request.param == "none":
        monkeypatch.setattr(cgroups, "places", lambda name: [])
    made = House(data_dir, pids=24)
    yield made
    await made.leave()


@pytest.fixture
async def bare(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """A machine without control groups."""
    monkeypatch.setattr(cgroups, "places", lambda name: [])
    made = House(data_dir, AS_WE_ARE, pids=24)
    yield made
    await made.leave()


def python(program: str) -> str:
    return f"exec {shlex.quote(sys.executable)} -I -S -c {shlex.quote(program)}"


def _all_of(house: House) -> set[int]:
    state = house.state("one")
    return shim_machine.members([place["folder"] for place in state["places"]]) or shim_machine.below(state["shim"])


@needs("memory")
async def test_a_running_process_feels_a_new_memory_limit(ours: House) -> None:
    server = await ours.start(python(HOARDER), limits=limits(memory=1000))
    identity = server.running.identity
    await server.running.say("40")
    await server.says("holds 40")
    assert (await server.running.usage()).memory_bytes > 40 << 20
    await server.running.limit(limits(memory=100))
    await server.running.say("20")
    await server.says("holds 60")
    assert server.running.identity == identity
    await server.running.say("200")
    assert await server.end() == -9


@needs("memory")
async def test_memory_that_it_holds_is_not_taken_away_without_a_word(ours: House) -> None:
    server = await ours.start(python(HOARDER), limits=limits(memory=1000))
    await server.running.say("60")
    await server.says("holds 60")
    version1 = (await ours.runtime.limits_enforced())["memory"] == "cgroup v1"
    if version1:
        with pytest.raises(errors.SyncFailed, match=r"It holds .* bytes, more than the 34500000 .* until it ends$"):
            await server.running.limit(limits(memory=30))
        await server.running.say("100")
    else:
        await server.running.limit(limits(memory=30))
    assert await server.end() == -9


@needs("cpu")
async def test_a_running_process_feels_a_new_cpu_limit(ours: House) -> None:
    server = await ours.start("echo up; while :; do :; done")
    await server.says("up")
    [folder] = [place["folder"] for place in ours.state("one")["places"] if "cpu" in place["controllers"]]

    def throttled() -> int:
        text = Path(folder, "cpu.stat").read_text().split()
        return int(text[text.index("nr_throttled") + 1])

    await asyncio.sleep(0.3)
    assert throttled() == 0
    await server.running.limit(limits(cpu=5))
    await until(lambda: throttled() > 2, "a throttled process")
    await server.running.limit(limits())
    before = (await server.running.usage()).uptime_ms
    await until(lambda: shim_machine.started(server.pid), "it")
    assert before > 0
    await server.running.kill()
    assert await server.end() == -9


@needs("cpuset")
async def test_a_limit_that_the_machine_cannot_give_is_said(ours: House) -> None:
    server = await ours.start("cat", limits=limits(threads="0"))
    assert os.sched_getaffinity(server.pid) == {0}
    with pytest.raises(errors.SyncFailed, match=r"does not take cpuset.cpus = 4000"):
        await server.running.limit(limits(threads="4000"))
    assert os.sched_getaffinity(server.pid) == {0}
    await server.running.limit(limits())
    assert os.sched_getaffinity(server.pid) == os.sched_getaffinity(0)


BOMB = "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; echo all"


async def test_who_multiplies_meets_a_limit(both: House) -> None:
    server = await both.start(f"({BOMB}); cat")
    await until(lambda: any("fork" in line.lower() for line in server.lines), "a refusal")
    left = _all_of(both)
    counted_alone = (await both.runtime.limits_enforced())["pids"] != "rlimit"
    if counted_alone:
        assert 10 < len(left) <= 24
    else:  # with whatever else that user runs
        assert len(left) < 100
    await server.running.kill()
    assert await server.end() in (-9, 2)  # a shell gives up with 2, should it be refused one itself
    assert not any(map(shim_machine.started, left))


async def test_without_control_groups_it_feels_a_new_memory_limit_all_the_same(bare: House) -> None:
    assert await bare.runtime.limits_enforced() == {
        "cpu": "nothing",
        "io": "nothing",
        "memory": "rlimit",
        "pids": "rlimit",
        "cpuset": "affinity",
    }
    server = await bare.start(python(HOARDER), limits=limits(memory=500, threads="0"))
    assert os.sched_getaffinity(server.pid) == {0}
    await server.running.say("40")
    await server.says("holds 40")
    usage = await server.running.usage()
    assert 40 << 20 < usage.memory_bytes < 400 << 20
    await server.running.limit(limits(memory=100))
    assert os.sched_getaffinity(server.pid) == os.sched_getaffinity(0)
    await server.running.say("200")
    await server.says("no more")
    await server.running.limit(limits(memory=0))
    await server.running.say("120")
    await server.says("holds 160")
    await server.running.say("end")
    assert await server.end() == 0


async def test_without_control_groups_kill_reaches_all_it_started(bare: House) -> None:
    server = await bare.start("setsid setsid sleep 1000 & sleep 0.2; (sleep 1000 &) ; echo up; cat")
    await server.says("up")
    left = _all_of(bare)
    assert len(left) >= 4
    await server.running.kill()
    assert await server.end() == -9
    assert not any(map(shim_machine.started, left))


def _python_of_everybody() -> str | None:
    """One that an ordinary user can run, and our shim with it; ours may lie where only root can go."""
    nobody = NOBODY if ROOT else None
    reads = f"open({processes.__file__!r})"
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([path, "-I", "-c", reads], user=nobody, group=nobody, check=True, capture_output=True)
            return path
    return None


def test_an_ordinary_user_has_servers_too() -> None:
    python = _python_of_everybody()
    if python is None:
        pytest.skip("only root can run Python here")
    with tempfile.TemporaryDirectory(prefix="undrift-tests-") as directory:
        if ROOT:
            os.chown(directory, NOBODY, NOBODY)
        ran = subprocess.run(
            [sys.executable, "-m", "tests.infra.unprivileged", directory, python], capture_output=True, timeout=120
        )
    assert ran.returncode == 0, ran.stderr.decode()[-4000:]
    seen = json.loads(ran.stdout.splitlines()[-1])
    if ROOT:
        assert (seen["enforced"]["memory"], seen["enforced"]["cpu"]) == ("rlimit", "nothing")
        assert seen["memory"] == ["holds 40", "no more"]
    assert (seen["pids"], seen["whole"], seen["last"]) == (True, True, "why it ended")
