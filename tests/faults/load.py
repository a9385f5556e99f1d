"""A load of jobs and commands whose every answer is kept, and what must be true of it when all is quiet again."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats

from tests.journeys.system import ADMIN, NAMES, Answer, System, tree, until

RETRIED = (503, 202)  # not now; and: it is queued, ask again for the result


@dataclass(frozen=True)
class Entry:
    """One request that was acknowledged."""

    method: str
    path: str
    body: Any
    key: str
    answer: Answer


@dataclass
class Load:
    """Clients that say each thing until it is acknowledged, under one key."""

    system: System
    seed: int
    entries: list[Entry] = field(default_factory=list)
    tries: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    pairs: list[tuple[Path, Path]] = field(default_factory=list)

    def insist(self, method: str, path: str, body: Any, key: str, patience_s: float = 120) -> Answer:
        """Sends a request until it is answered with what became of it."""
        deadline = time.monotonic() + patience_s
        while True:
            self.tries += 1
            answer = self.once(method, path, body, key)
            if answer is not None and answer.status not in RETRIED:
                assert answer.status == 200, (method, path, body, answer)
                self.entries.append(Entry(method, path, body, key, answer))
                return answer
            assert time.monotonic() < deadline, (method, path, answer, self.system.said())
            time.sleep(0.05)

    def once(self, method: str, path: str, body: Any, key: str) -> Answer | None:
        try:
            return self.system.call(
                method, path, body, token=ADMIN, headers={"Idempotency-Key": key} if key else {}, timeout=60
            )
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return None

    # The clients: each a thread with its own folders.

    def sync_folders(self, name: str) -> None:
        """Changes a folder and syncs it, again and again, with the result in the response."""
        source, target = self._pair(name)
        rng = random.Random(f"{self.seed} {name}")
        for turn in self._turns():
            self._change(source, rng, turn)
            body = {"sourceDirectory": str(source), "targetDirectory": str(target), "deleteMissingInTarget": True}
            self.insist("POST", "/api/v1/sync/files", {**body, "force": True}, f"{name}-{turn}")

    def run_integration(self, name: str) -> None:
        """Queues jobs of an integration while its folder changes."""
        source, target = self._pair(name)
        rng = random.Random(f"{self.seed} {name}")
        self.create(name, source, target)
        for turn in self._turns():
            self._change(source, rng, turn)
            kind = rng.choice(["full", "incremental"])
            self.insist("POST", "/api/sync/jobs", {"integrationId": name, "type": kind}, f"{name}-{turn}")
            self.stopped.wait(0.2)
        self.insist("POST", "/api/sync/jobs", {"integrationId": name, "type": "full"}, f"{name}-last")

    def command(self, name: str) -> None:
        """Small commands, each of which changes something."""
        source, target = self._pair(name)
        self.create(name, source, target)
        for turn in self._turns():
            self.insist("PUT", f"/api/sync/integrations/{name}", {"name": f"turn {turn}"}, f"{name}-{turn}-put")
            self.insist("POST", f"/api/sync/integrations/{name}/stop", None, f"{name}-{turn}-stop")
            body = {"scheduleImmediate": False}
            self.insist("POST", f"/api/sync/integrations/{name}/start", body, f"{name}-{turn}-start")

    def create(self, name: str, source: Path, target: Path, interval: int | None = None) -> None:
        config = {"sourceDirectory": str(source), "targetDirectory": str(target)}
        body = {"id": name, "name": name, "kind": "files", "config": config, "syncInterval": interval}
        self.insist("POST", "/api/sync/integrations", body, f"{name}-created")

    def _turns(self) -> Iterator[int]:
        turn = 0
        while not self.stopped.is_set():
            yield turn
            turn += 1

    def _pair(self, name: str) -> tuple[Path, Path]:
        source, target = self.system.roots / f"{name}-source", self.system.roots / f"{name}-target"
        source.mkdir(exist_ok=True)
        for number in range(50):
            (source / f"file-{number}").write_text(f"{number}\n" * 100)
        self.pairs.append((source, target))
        return source, target

    def _change(self, source: Path, rng: random.Random, turn: int) -> None:
        """As a careful program would: never half a file."""
        for number in rng.sample(range(60), 4):
            new = source.with_suffix(".new")
            new.write_text(f"{turn} {number}\n" * rng.randrange(1, 2000))
            new.rename(source / f"file-{number}")

    # What must be true in the end.

    def verify(self) -> None:
        """Every acknowledged command is in the log, once; every job has ended; targets equal sources; all is well."""
        self.system.whole()
        assert until(lambda: self._open() == 0, 120), self.system.said()
        self.verify_answers()
        self.verify_log()
        failed = self.system.ok("GET", "/api/sync/jobs?status=failed&limit=100", token=ADMIN)["jobs"]
        assert failed == []
        for source, target in self.pairs:
            if target.exists():
                assert tree(source) == {name: text for name, text in tree(target).items() if "trash" not in name}
        report = self.system.undrift("doctor")
        assert report["well"], report
        verify_jetstream(self.system)

    def _open(self) -> int:
        [(count,)] = self.system.sql("select count(*) from undrift.claims where kind like 'work/%%'")
        return int(count)

    def verify_answers(self) -> None:
        """The same request gets the same bytes, and its events are where they were said to be, once."""
        commands = {
            key: (first, count)
            for key, first, count in self.system.sql(
                "select key, first_pos, n from undrift.commands where principal = 'key:admin'"
            )
        }
        for entry in self.entries:
            assert entry.key in commands, f"lost: {entry}"
            first, count = commands[entry.key]
            if entry.path != "/api/v1/sync/files":
                assert entry.answer.position == first + max(count - 1, 0), entry
        for entry in random.Random(self.seed).sample(self.entries, min(len(self.entries), 200)):
            again = self.once(entry.method, entry.path, entry.body, entry.key)
            assert again is not None
            assert (entry.answer.status, entry.answer.body) == (again.status, again.body), entry

    def verify_log(self) -> None:
        """Positions and versions have no gap; what was asked for once is there once."""
        [(count, first, last)] = self.system.sql("select count(*), min(pos), max(pos) from undrift.events")
        assert (first, last) == (1, count)
        gaps = self.system.sql(
            "select stream_id from undrift.events group by stream_id"
            " having min(version) <> 1 or max(version) <> count(*)"
        )
        assert gaps == []
        queued = self.system.sql(
            "select count(*) from undrift.events where topic = 'jobs.queued' and metadata::text like '%%key:admin%%'"
        )
        asked = {one.key for one in self.entries if one.path in ("/api/v1/sync/files", "/api/sync/jobs")}
        assert queued == [(len(asked),)]


def verify_jetstream(system: System) -> None:
    """Every event is in JetStream at the sequence that is its position."""
    head = system.head()
    found = until(lambda: _stream(system, head), 60)
    rows = system.sql("select pos, event_id from undrift.events where pos <= %s", head)
    assert {position: str(id) for position, id in rows} == {at: id for at, id in found.items() if at <= head}


def _stream(system: System, head: int) -> dict[int, str]:
    """Sequence and event id of every message, once the last is there."""

    async def read() -> dict[int, str]:
        client = await nats.connect(system.ready["nats_url"], connect_timeout=5)
        try:
            streams = client.jetstream()
            state = (await streams.stream_info("EVENTS")).state
            if state.last_seq < head:
                return {}
            found = {}
            for sequence in range(state.first_seq, state.last_seq + 1):
                message = await streams.get_msg("EVENTS", sequence, direct=True)
                headers = message.headers or {}
                assert headers["Undrift-Position"] == str(sequence)
                found[sequence] = headers["ce-id"]
            return found
        finally:
            await client.close()

    return asyncio.run(read())


@contextmanager
def loaded(system: System, seed: int, clients: int = 2) -> Iterator[Load]:
    """The load while the block runs; at its end every client finishes what it has begun."""
    load = Load(system, seed)
    work: list[tuple[Callable[[str], None], str]] = []
    for number in range(clients):
        work += [
            (load.sync_folders, f"folders-{number}"),
            (load.run_integration, f"jobs-{number}"),
            (load.command, f"commands-{number}"),
        ]
    source, target = load._pair("scheduled")
    load.create("scheduled", source, target, interval=1)
    with ThreadPoolExecutor(len(work)) as pool:
        running: list[Future[None]] = [pool.submit(run, name) for run, name in work]
        try:
            yield load
        finally:
            load.stopped.set()
            for one in running:
                one.result()
    load.insist("DELETE", "/api/sync/integrations/scheduled", None, "scheduled-deleted")


def kill_often(system: System, seed: int, kills: int, pause_s: float = 1.0) -> dict[str, int]:
    """Kills processes one after the other, each as often as the others; answers how often."""
    rng = random.Random(seed)
    counts = dict.fromkeys(sorted(NAMES), 0)
    while sum(counts.values()) < kills:
        fewest = min(counts.values())
        name = rng.choice([name for name, count in counts.items() if count <= fewest + 1])
        if system.kill(name):
            counts[name] += 1
        time.sleep(rng.uniform(0.2, 1.8) * pause_s)
    return counts
