"""Sessions under load while every process is killed: each ends once, with what was attached to it and nothing else."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.faults.load import kill_often
from tests.journeys.system import ADMIN, QUICK, Answer, System, until

KILLS, CLIENTS, EACH = 24, 3, 4
BASE = "/api/v1/sync/session"
SETTINGS = f"{QUICK}\n[sessions]\ntick_s = 0.2\n"


def insist(system: System, path: str, body: Any, **headers: str) -> Answer:
    """Says it until it is known what became of it."""
    deadline = time.monotonic() + 120
    headers["Undrift-Min-Position"] = str(system.wrote)
    while True:
        try:
            answer = system.post(path, body, token=ADMIN, headers=headers, timeout=60)
        except (OSError, http.client.HTTPException):
            answer = None
        if answer is not None and answer.status != 503:
            return answer
        assert time.monotonic() < deadline, (path, answer, system.said())
        time.sleep(0.05)


def client(system: System, name: str, stop: threading.Event, ends: dict[str, bytes]) -> None:
    """Session after session with jobs, each completed twice; what the second answer says is kept."""
    turn = 0
    while not stop.is_set():
        turn += 1
        places = {"sourceLocation": name, "targetLocation": "System2"}
        answer = insist(system, f"{BASE}/start", places, **{"Idempotency-Key": f"{name}-{turn}"})
        assert answer.status == 200, answer
        session = answer.json()["sessionId"]
        for n in range(EACH):
            more = {"Idempotency-Key": f"{name}-{turn}-{n}", "Undrift-Session": session}
            body = {"integrationId": name, "type": "full"}
            assert insist(system, "/api/sync/jobs", body, **more).status == 200
        ends[session] = b""
        while (done := insist(system, f"{BASE}/{session}/complete", None)).status == 202:
            time.sleep(0.05)
        assert done.status == 200, done
        ends[session] = done.body
        late = insist(system, "/api/sync/jobs", {"integrationId": name, "type": "full"}, **{"Undrift-Session": session})
        assert late.status == 409, late
        assert insist(system, f"{BASE}/{session}/complete", None).body == done.body


def test_sessions_end_once_whatever_dies(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULTS_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
    print(f"FAULTS_SEED={seed}")
    system = System(tmp_path, settings=SETTINGS).start()
    try:
        ends: dict[str, bytes] = {}
        for n in range(CLIENTS):
            system.integration(f"client-{n}", system.folder(a="1"), system.place())
        stop = threading.Event()
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(client, system, f"client-{n}", stop, ends) for n in range(CLIENTS)]
            counts = kill_often(system, seed, KILLS, pause_s=3.0)
            stop.set()
            for one in running:
                one.result()
        system.whole()
        verify(system, ends)
        print(f"{counts}, {len(ends)} sessions, {system.head()} events")
    finally:
        system.stop()


def verify(system: System, ends: dict[str, bytes]) -> None:
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    queued: dict[str, set[str]] = defaultdict(set)
    for one in system.events():
        context, _, id = one["subject"].partition("/main/")
        if context == "sessions":
            told[id].append(one)
        elif one["type"] == "jobs.queued" and one["data"].get("session"):
            queued[one["data"]["session"]].add(id)
    assert ends.keys() == told.keys()
    assert len(ends) >= CLIENTS
    for id, events in told.items():
        types = [one["type"] for one in events]
        expected = ["sessions.started", *["sessions.attached"] * EACH]
        assert types[:-1] == [*expected, "sessions.completion_requested"], (id, types)
        assert types[-1] in ("sessions.completed", "sessions.failed")
        attached = {one["data"]["item"] for one in events if one["type"] == "sessions.attached"}
        assert attached == queued[id]
        totals = events[-1]["data"]["totals"]
        assert totals["jobs"] == EACH
    leases = "select count(*) from undrift.session_leases"
    assert until(lambda: system.sql(leases) == [(0,)])
    system.undrift("doctor")
