"""The node dies again and again while servers are started and stopped: none ever runs twice, none is lost, and in the
end each does what was asked of it last, as the log says.

POWERS (60) makes it shorter or longer, FAULTS_SEED repeats a run as far as chance goes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import processes
from tests.doubles import panel as double
from tests.infra import engines
from tests.journeys.nodes import ask, settings, taken_over
from tests.journeys.system import System, until
from tests.journeys.test_servers_power import events

POWERS = int(os.environ.get("POWERS", "60"))
SEED = int(os.environ.get("FAULTS_SEED", str(time.time_ns() % 100_000)))
SERVERS = 4
SERVER = "echo $$ >> pids; echo ready; while read -r line; do [ $line = stop ] && exit 0; done"
MORE = "[servers]\nstop_s = 2.0\ncrash_s = 0.01\n"


@pytest.fixture
def panel() -> Iterator[double.Panel]:
    with double.Panel() as one:
        yield one


@pytest.fixture
def node(panel: double.Panel, tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path, settings=settings(panel) + MORE)
    try:
        yield system.start()
    finally:
        system.stop()


def alive(node: System, uuid: str) -> list[int]:
    """The processes of a server that run now, of all that ever began."""
    file = node.directory / "servers" / uuid / "pids"
    begun = file.read_text().split() if file.exists() else []
    return [int(pid) for pid in begun if processes.alive(int(pid))]


def power(node: System, uuid: str) -> str:
    found: str = ask(node, "GET", f"/api/servers/{uuid}").json()["state"]
    return found


def agrees(node: System, uuid: str, wanted: str) -> bool:
    return (power(node, uuid), len(alive(node, uuid))) == (wanted, int(wanted == "running"))


class Twice(threading.Thread):
    """Looks all the time whether a server runs twice."""

    def __init__(self, node: System, uuids: list[str]) -> None:
        super().__init__(daemon=True)
        self._node, self._uuids = node, uuids
        self.found: list[list[int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.found += [found for found in (alive(self._node, uuid) for uuid in self._uuids) if len(found) > 1]


def test_a_node_that_dies_anywhere_loses_nothing_and_doubles_nothing(node: System, panel: double.Panel) -> None:
    chance = random.Random(SEED)
    uuids = [taken_over(node, panel, invocation=SERVER) for _ in range(SERVERS)]
    wanted = dict.fromkeys(uuids, "offline")
    watching = Twice(node, uuids)
    watching.start()
    for number in range(POWERS):
        uuid = chance.choice(uuids)
        action = chance.choice(["start", "start", "stop", "restart", "kill"])
        assert ask(node, "POST", f"/api/servers/{uuid}/power", {"action": action}).status == 202
        wanted[uuid] = "running" if action in ("start", "restart") else "offline"
        time.sleep(chance.random())
        if number % 8 == 0:
            node.kill("node")
    for uuid, state in wanted.items():
        assert until(lambda uuid=uuid, state=state: agrees(node, uuid, state)), (  # type: ignore[misc]
            SEED, uuid, state, power(node, uuid), alive(node, uuid), events(node, uuid), node.said()[-5000:],
        )  # fmt: skip
    watching.over.set()
    watching.join()
    assert watching.found == [], SEED


def test_the_death_of_everything_leaves_servers_running(node: System, panel: double.Panel) -> None:
    uuids = [taken_over(node, panel, invocation=SERVER) for _ in range(SERVERS)]
    for uuid in uuids:
        assert ask(node, "POST", f"/api/servers/{uuid}/power", {"action": "start"}).status == 202
    assert until(lambda: all(agrees(node, uuid, "running") for uuid in uuids)), node.said()
    before = {uuid: alive(node, uuid) for uuid in uuids}
    for _ in range(2):
        assert node.process is not None
        node.process.kill()
        node.process.wait()
        assert {uuid: alive(node, uuid) for uuid in uuids} == before
        node.start()
        for uuid in uuids:
            answer = until(lambda uuid=uuid: told(node, uuid))  # type: ignore[misc]
            assert answer, node.said()[-5000:]
    assert {uuid: alive(node, uuid) for uuid in uuids} == before
    node.stop()
    assert {uuid: alive(node, uuid) for uuid in uuids} == {uuid: [] for uuid in uuids}
    node.start()
    assert until(lambda: all(agrees(node, uuid, "running") for uuid in uuids)), node.said()


def told(node: System, uuid: str) -> bool:
    return ask(node, "POST", f"/api/servers/{uuid}/commands", {"commands": ["hello"]}).status == 204


def test_of_two_nodes_one_acts_and_the_other_takes_over(node: System, panel: double.Panel) -> None:
    command = [sys.executable, "-m", "services.node", "--config", str(node.directory / "settings.json")]
    with open(node.base / "other.log", "wb") as log:
        other = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        uuid = taken_over(node, panel, invocation=SERVER)
        assert ask(node, "POST", f"/api/servers/{uuid}/power", {"action": "start"}).status == 202
        assert until(lambda: agrees(node, uuid, "running")), node.said()
        [before] = alive(node, uuid)
        with node.paused("node"):  # it is not dead, and whoever takes its place does not know that either
            assert until(lambda: b"servers were adopted" in (node.base / "other.log").read_bytes())
            assert ask(node, "POST", f"/api/servers/{uuid}/power", {"action": "restart"}).status == 202
            assert until(lambda: alive(node, uuid) not in ([before], [])), (node.base / "other.log").read_text()
        assert until(lambda: agrees(node, uuid, "running")), node.said()
        time.sleep(1)  # whoever was paused may say nothing any more
        assert agrees(node, uuid, "running")
    finally:
        other.send_signal(signal.SIGTERM)
        assert other.wait(20) == 0


def test_a_server_that_the_log_does_not_know_yet_runs_on(node: System, panel: double.Panel, tmp_path: Path) -> None:
    """As after a restore of an older log."""
    uuid = taken_over(node, panel, invocation=SERVER)
    assert ask(node, "POST", f"/api/servers/{uuid}/power", {"action": "start"}).status == 202
    assert until(lambda: agrees(node, uuid, "running")), node.said()
    before = alive(node, uuid)
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    node.process = None
    other = System(tmp_path / "restored", settings=node.settings)
    other.directory.mkdir(mode=0o700)
    for name in ("run", "servers"):
        (node.directory / name).rename(other.directory / name)
    other.start()
    try:
        assert ask(other, "POST", "/api/servers", {"uuid": uuid}).status == 202
        assert until(lambda: told(other, uuid), 15), other.said()[-5000:]
        assert alive(other, uuid) == before
        assert until(lambda: agrees(other, uuid, "running")), other.said()[-5000:]
    finally:
        other.stop()
    assert alive(other, uuid) == []


def test_up_may_end_while_servers_begin(node: System, panel: double.Panel) -> None:
    uuids = [taken_over(node, panel, invocation=SERVER) for _ in range(SERVERS)]
    for uuid in uuids:
        assert ask(node, "POST", f"/api/servers/{uuid}/power", {"action": "start"}).status == 202
    assert until(lambda: any(alive(node, uuid) for uuid in uuids))
    node.stop()
    assert {uuid: alive(node, uuid) for uuid in uuids} == {uuid: [] for uuid in uuids}
    node.start()
    assert until(lambda: all(agrees(node, uuid, "running") for uuid in uuids)), node.said()


def test_up_may_end_while_the_node_is_dead(node: System, panel: double.Panel) -> None:
    uuid = taken_over(node, panel, invocation=SERVER)
    assert ask(node, "POST", f"/api/servers/{uuid}/power", {"action": "start"}).status == 202
    assert until(lambda: agrees(node, uuid, "running")), node.said()
    node.replaced("node", node.kill("node"))
    assert until(lambda: node.log.read_text().count('"process": "node", "roles"') == 2), node.said()
    node.stop()
    assert alive(node, uuid) == []


def test_containers_are_servers_too(panel: double.Panel, tmp_path: Path) -> None:
    with engines.double(tmp_path) as engine:
        more = f'{MORE}runtime = "docker"\ndocker_socket = "{engine.socket}"\n'
        system = System(tmp_path, settings=settings(panel) + more)
        system.start()
        try:
            image = {"image": engines.IMAGE, "oom_disabled": True, "requires_rebuild": False}
            uuid = taken_over(system, panel, invocation=SERVER, container=image)
            assert ask(system, "POST", f"/api/servers/{uuid}/power", {"action": "start"}).status == 202
            assert until(lambda: agrees(system, uuid, "running")), system.said()[-5000:]
            before = alive(system, uuid)
            system.replaced("node", system.kill("node"))
            assert until(lambda: told(system, uuid)), system.said()[-5000:]
            engine.away()
            panel.change(uuid, suspended=True)
            assert ask(system, "POST", f"/api/servers/{uuid}/sync").status == 204
            assert alive(system, uuid) == before
            engine.back()  # what cannot be ended now is ended as soon as it can
            assert until(lambda: agrees(system, uuid, "offline")), system.said()[-5000:]
        finally:
            system.stop()
