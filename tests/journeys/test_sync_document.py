"""The Sync Management document, taken at its word: its curl lines are run, and answered with what it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.plane import Plane
from tests.journeys.system import QUICK, System, until

DOCUMENT = Path(__file__).parents[1] / "data" / "sync-management.txt"
#: The same, where this repository has been checked out beside the documents it was made from.
ORIGINALS = Path(__file__).parents[3] / "shared" / "seeds"
ID = "plane-integration-456"
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
_ENDPOINT = re.compile(r"^(GET|POST|PUT|DELETE) (/api/sync/\S+)$")


def document() -> list[str]:
    return DOCUMENT.read_text("utf-8").splitlines()


def curl_lines() -> list[str]:
    """The commands of the document, each whole: a line ends where its quotes are closed and no backslash follows."""
    found: list[str] = []
    open_ = ""
    for line in document():
        if open_ or line.startswith("curl "):
            open_ += line + "\n"
            if open_.count("'") % 2 == 0 and not line.endswith("\\"):
                found.append(open_)
                open_ = ""
    return found


def shown() -> dict[str, Any]:
    """What the document says is answered, `POST /api/sync/jobs` -> the JSON."""
    lines, found, endpoint = document(), {}, ""
    for number, line in enumerate(lines):
        if match := _ENDPOINT.match(line):
            endpoint = f"{match[1]} {match[2]}"
        elif line == "Response:":
            text = "\n".join(lines[number + 1 :])
            found[endpoint] = json.JSONDecoder().raw_decode(text)[0]
    return found


def like(shown: Any, answered: Any, place: str = "") -> None:
    """Has every key that is shown, and under it a value of that kind: a time for a time, a number for a number."""
    if isinstance(shown, dict):
        assert isinstance(answered, dict), place
        assert shown.keys() <= answered.keys(), (place, answered)
        for key, value in shown.items():
            like(value, answered[key], f"{place}.{key}")
    elif isinstance(shown, list):
        assert isinstance(answered, list), place
        for one in answered:
            like(shown[0], one, f"{place}[]")
    elif isinstance(shown, str):
        assert isinstance(answered, str), place
        assert not _TIME.fullmatch(shown) or _TIME.fullmatch(answered), (place, answered)
    elif isinstance(shown, float):
        assert isinstance(answered, float | int), place
    else:
        assert type(shown) is type(answered), (place, answered)


@dataclass
class World:
    system: System
    plane: Plane

    def curl(self, number: int, **ids: str) -> Any:
        """A line of the document, with nothing changed but where the server is, and ids that answers gave."""
        command = curl_lines()[number].replace("http://localhost:3001", str(self.system.ready["url"]))
        for old, new in ids.items():
            command = command.replace(old.replace("_", "-"), new)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stderr)
        return json.loads(done.stdout)

    def start(self) -> str:
        return str(self.curl(0)["jobId"])

    @contextmanager
    def in_the_middle(self) -> Iterator[str]:
        """A job that is at its fifth page of work items meanwhile."""
        self.plane.requests.clear()
        hold = threading.Event()
        fault = self.plane.fault(r"/work-items/\?.*cursor=50:4:0", times=None, hold=hold)
        try:
            job = self.start()
            assert until(lambda: self.system.job(job).get("stage") == "syncing_work_items")
            assert until(lambda: self.plane.asked("cursor=50:4:0"))
            yield job
        finally:
            hold.set()
            self.plane.faults.remove(fault)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`undrift up` with the document's integration, and another, declared in its settings file."""
    system = System(tmp_path_factory.mktemp("document"))
    for name in ("source", "target"):
        (system.roots / name).mkdir()
    with Plane() as plane:
        for name in ("Rockets", "Boats", "Trains"):
            plane.world.items(plane.world.project(name, plane.owner), plane.owner, 240)
        system.settings = f"""{QUICK}
[[integrations]]
id = "{ID}"
name = "Plane.so Integration"
kind = "plane"
sync_interval = 300
config = {{ baseUrl = "{plane.url}", workspace = "acme", apiKey = "{plane.key.token}" }}

[[integrations]]
id = "folders"
name = "Folders"
kind = "files"
config = {{ sourceDirectory = "{system.roots}/source", targetDirectory = "{system.roots}/target" }}
"""
        try:
            yield World(system.start(), plane)
        finally:
            system.stop()


def test_the_copy_of_the_document_is_the_document() -> None:
    originals = [path.read_bytes() for path in ORIGINALS.glob("*.txt")] if ORIGINALS.exists() else []
    assert not originals or DOCUMENT.read_bytes() in originals
    assert len(curl_lines()) == 5
    assert len(shown()) == 12


def test_initialize(world: World) -> None:
    assert until(lambda: initialized(world)["schedulerStatus"] == "running")
    assert initialized(world) == shown()["POST /api/sync/initialize"]


def initialized(world: World) -> Any:
    return world.system.ok("POST", "/api/sync/initialize")


def test_start_manual_sync(world: World) -> None:
    answer = world.curl(0)
    expected = shown()["POST /api/sync/jobs"]
    like(expected, answer)
    assert (answer["success"], answer["status"]) == (True, "queued")
    assert answer.keys() == expected.keys()
    job = world.system.wait(answer["jobId"])
    assert job["status"] == "completed"
    assert {one["message"] for one in job["logs"]} >= {"Starting full sync", "Processed 50 work items"}
    listed = world.system.ok("GET", f"/api/sync/jobs?integrationId={ID}&status=completed")
    like(shown()["GET /api/sync/jobs"], listed)
    assert listed["total"] == len(listed["jobs"])


def test_check_sync_status(world: World) -> None:
    world.system.wait(world.start())
    detail: dict[str, Any] = {}
    slow = world.plane.fault(r"/(labels|members|cycles|modules|work-items)/", times=None, seconds=0.3)
    with world.in_the_middle() as job:
        world.plane.faults.remove(slow)
        assert until(lambda: detail.update(world.system.job(job)) or "estimatedCompletion" in detail)
        answer = world.curl(1)
    expected = shown()["GET /api/sync/integrations/status"]
    mine = next(one for one in answer["integrations"] if one["integrationId"] == ID)
    like(expected["integrations"][0], mine)
    for name in ("integrationId", "name", "status", "syncInterval"):
        assert mine[name] == expected["integrations"][0][name]
    assert mine["currentJob"] == {"id": job, "status": "running", "progress": mine["currentJob"]["progress"]}
    assert (detail["type"], detail["status"]) == ("incremental_sync", "running")
    like(shown()["GET /api/sync/jobs/:jobId"], detail)
    assert detail["stage"] == shown()["GET /api/sync/jobs/:jobId"]["stage"]
    assert [line["message"] for line in detail["logs"]][:2] == ["Starting incremental sync", "Processed 50 work items"]
    assert world.system.wait(job)["status"] == "completed"


def test_stop_all_syncs(world: World) -> None:
    with world.in_the_middle() as job:
        started = [job, world.start(), world.start()]
        answer = world.curl(2)
    expected = shown()["POST /api/sync/jobs/stop-all"]
    like(expected, answer)
    assert (answer["success"], answer["stoppedJobs"]) == (True, expected["stoppedJobs"])
    assert set(answer["jobs"]) == set(started)
    assert [world.system.wait(job)["status"] for job in started] == ["stopped"] * 3


def test_change_sync_interval(world: World) -> None:
    job = world.start()
    world.system.wait(job)
    answer = world.curl(3, sync_job_123=job)
    expected = shown()["PUT /api/sync/jobs/:jobId/interval"]
    like(expected, answer)
    constant = {name: expected[name] for name in ("success", "oldInterval", "newInterval")}
    assert {name: answer[name] for name in constant} == constant
    assert answer["jobId"] == job


def test_resume_failed_job(world: World) -> None:
    key = world.plane.world.keys.pop(world.plane.key.token)
    job = world.start()
    assert world.system.wait(job)["status"] == "failed"
    world.plane.world.keys[key.token] = key
    answer = world.curl(4, sync_job_123=job)
    expected = shown()["POST /api/sync/jobs/:jobId/resume"]
    assert answer == {**expected, "jobId": job}
    assert world.system.wait(job, "completed")


def test_the_rest_of_the_endpoints(world: World) -> None:
    system, says = world.system, shown()
    one = f"/api/sync/integrations/{ID}"
    started = system.ok("POST", f"{one}/start", {"syncType": "incremental", "scheduleImmediate": True})
    assert started == {**says["POST /api/sync/integrations/:integrationId/start"], "jobId": started["jobId"]}
    system.wait(started["jobId"])
    with world.in_the_middle() as job:
        jobs = [job, world.start()]
        stopping = system.ok("POST", f"/api/sync/jobs/{jobs[0]}/stop", {"graceful": True})
        assert stopping == {**says["POST /api/sync/jobs/:jobId/stop"], "jobId": jobs[0]}
        stopped = system.ok("POST", f"{one}/stop")
        like(says["POST /api/sync/integrations/:integrationId/stop"], stopped)
        assert stopped["message"] == "Integration sync stopped"
    assert [system.wait(job)["status"] for job in jobs] == ["stopped"] * 2
    deleted = system.call("DELETE", f"/api/sync/jobs/{jobs[1]}", {"deleteLogs": False}).json()
    assert deleted == {**says["DELETE /api/sync/jobs/:jobId"], "deleted": jobs[1]}
    assert system.get(f"/api/sync/jobs/{jobs[1]}").status == 404


def test_a_declared_key_is_sealed_once(world: World) -> None:
    """Starting again declares again, and changes nothing."""
    system, secret = world.system, world.plane.key.token
    stream = f"integrations/main/{ID}"
    counts = (
        "select (select count(*) from undrift_keys.secrets), (select count(*) from undrift.events where stream_id = %s)"
    )
    initialized(world)  # the interval is again as it was declared
    before = system.sql(counts, stream)
    initialized(world)
    assert system.sql(counts, stream) == before
    assert before[0][0] == 1
    events = system.sql(
        "select convert_from(state, 'utf8') from undrift.events where stream_id = %s", f"integrations/main/{ID}"
    )
    assert any("sealed:" in text for (text,) in events)
    assert not any(secret in text for (text,) in events)
    for path in system.directory.rglob("*.json"):
        assert secret not in path.read_text(errors="replace") or path.stat().st_mode & 0o077 == 0
    assert secret not in system.said()
    assert os.stat(system.directory).st_mode & 0o077 == 0
