"""Every process dies again and again while the Panel changes servers: each is as it was or as it is to be, never half;
what was confirmed is durable, what was refused was not done, and in the end both sides say the same.

SYNCS (200) makes it shorter, FAULTS_SEED repeats a run as far as chance goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.doubles import panel as double
from tests.journeys.nodes import settings, taken_over
from tests.journeys.system import System, until

SYNCS = int(os.environ.get("SYNCS", "200"))
SERVERS = 4
#: Longer than a process takes to come back.
PATIENCE_S = 120.0


def configured(uuid: str, number: int) -> double.Server:
    """A configuration every part of which says its number."""
    made = double.settings(
        uuid,
        meta={"name": f"name {number}", "description": f"description {number}"},
        suspended=number % 2 == 1,
        environment={"N": str(number), "PASSWORD": f"secret {number}", f"V{number}": "x"},
        invocation=f"run {number}",
        allocations={
            "force_outgoing_ip": False,
            "default": {"ip": "127.0.0.1", "port": 1000 + number},
            "mappings": {"127.0.0.1": [1000 + number]},
        },
        mounts=[{"source": f"/mnt/{number}", "target": "/data", "read_only": True}],
        egg={"id": "egg", "file_denylist": [f"{number}.txt"]},
    )
    made["build"] |= {"memory_limit": 1000 + number, "disk_space": 1000 + number, "cpu_limit": number}
    made["container"]["image"] = f"image:{number}"
    return double.Server(made, double.process(stop={"type": "command", "value": f"stop {number}"}))


def number(shown: Any) -> int:
    """Of a configuration that is shown: all of its parts must say the same."""
    one = shown["configuration"]
    found = int(one["environment"]["N"])
    wanted = configured(one["uuid"], found).settings
    for name in ("meta", "suspended", "environment", "invocation", "mounts"):
        assert one[name] == wanted[name], (found, one)
    for name in ("memory_limit", "disk_space", "cpu_limit"):
        assert one["build"][name] == wanted["build"][name], (found, one)
    assert one["allocations"]["default"]["port"] == 1000 + found
    assert one["egg"]["file_denylist"] == [f"{found}.txt"]
    assert one["container"]["image"] == f"image:{found}"
    assert shown["is_suspended"] == one["suspended"]
    return found


class Desk:
    """The Panel's view of one server, and what it does about it."""

    def __init__(self, node: System, panel: double.Panel) -> None:
        self.node, self.panel = node, panel
        self.uuid = taken_over(node, panel)
        self.wanted, self.last = 0, 0
        self.confirmed: list[tuple[int, int]] = []
        self.answers: Counter[int | None] = Counter()
        self.want(0)
        assert self.sync() == 204

    def want(self, number: int) -> None:
        self.wanted = number
        self.panel.servers[self.uuid] = configured(self.uuid, number)

    def sync(self) -> int | None:
        """As the Panel asks for it: the status, None without an answer; what was confirmed is noted."""
        try:
            address = urlsplit(self.node.ready["url"])
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=15)
            with contextlib.closing(connection):
                headers = {"Authorization": f"Bearer {double.TOKEN}", "Content-Length": "0"}
                connection.request("POST", f"/api/servers/{self.uuid}/sync", headers=headers)
                answer = connection.getresponse()
                if answer.status == 204:
                    self.confirmed.append((int(answer.headers["Undrift-Position"]), self.wanted))
                self.answers[answer.status] += 1
                return answer.status
        except (OSError, http.client.HTTPException):
            self.answers[None] += 1
            return None

    def shown(self, position: int | None = None) -> int:
        """The number of what the log says now, or said at a position."""

        def look() -> int | None:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                at = position
                if at is None:
                    ready = self.node.get("/readyz", timeout=15)
                    at = ready.json().get("head") if ready.status == 200 else None
                if at is None:
                    return None
                answer = self.node.get(f"/api/servers/{self.uuid}?as_of={at}", token=double.TOKEN, timeout=15)
                if answer.status == 200:
                    return 1 + number(answer.json())
            return None

        found = until(look, PATIENCE_S)
        assert found is not None, self.node.said()
        return found - 1

    def change(self) -> None:
        """Another configuration; where the node does not confirm it, it is taken back, as the Panel does."""
        time.sleep(random.uniform(0, 1.0))
        before, self.last = self.wanted, self.last + 1
        self.want(self.last)
        status = self.sync()
        if status == 204:
            assert self.shown() == self.wanted
            return
        self.want(before)
        if status is not None:  # an error: nothing was done, or will be
            assert self.shown() == before, (status, before)
            return
        assert until(lambda: self.sync() == 204, PATIENCE_S), self.node.said()
        assert self.shown() == before


@contextlib.contextmanager
def deaths(system: System, rng: random.Random) -> Iterator[Counter[str]]:
    """One process after the other is killed, all of them as often."""
    counts: Counter[str] = Counter(dict.fromkeys(system.pids, 0))
    over = threading.Event()

    def kill() -> None:
        while not over.wait(rng.uniform(0.4, 2.0)):
            fewest = min(counts.values())
            name = rng.choice([name for name, count in counts.items() if count <= fewest + 1])
            with contextlib.suppress(OSError, ValueError):  # what says which processes there are is being written
                counts[name] += system.kill(name) > 0

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        try:
            yield counts
        finally:
            over.set()
            killing.result()


@contextlib.contextmanager
def watched(node: System) -> Iterator[list[int]]:
    """Somebody looks at all servers all the time: how often they saw them."""
    seen: list[int] = [0]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
                answer = node.get("/api/servers", token=double.TOKEN, timeout=15)
                if answer.status == 200:
                    for shown in answer.json():
                        number(shown)
                        seen[0] += 1

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            over.set()
            looking.result()


def test_whoever_dies_a_server_is_as_it_was_or_as_it_is_to_be(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULTS_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
    print(f"FAULTS_SEED={seed}")
    with double.Panel() as panel:
        system = System(tmp_path / "node", settings=settings(panel, budget_s=8.0))
        system.start()
        try:
            desks = [Desk(system, panel) for _ in range(SERVERS)]
            panel.trouble = lambda _: asyncio.sleep(random.uniform(0, 0.4))  # there is time to die in
            began = time.monotonic()
            with ThreadPoolExecutor(SERVERS) as pool, watched(system) as seen:
                with deaths(system, random.Random(seed)) as counts:
                    list(pool.map(lambda desk: [desk.change() for _ in range(SYNCS // SERVERS)], desks))
                took_s = time.monotonic() - began
                system.whole()
            for desk in desks:
                assert (
                    desk.shown()
                    == desk.wanted
                    == number(system.get(f"/api/servers/{desk.uuid}", token=double.TOKEN).json())
                )
                for position, confirmed in desk.confirmed:  # each that was confirmed is in the log, as it was confirmed
                    assert desk.shown(position) == confirmed
            answers = sum((desk.answers for desk in desks), Counter[int | None]())
            print(f"{SYNCS} changes in {took_s:.0f} s: {dict(answers)}; deaths {dict(counts)}; {seen[0]} sightings")
            assert sum(counts.values()) > 0
            assert seen[0] > 0
            assert system.undrift("doctor")["well"]
        finally:
            system.stop()
