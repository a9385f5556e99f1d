"""Workers that stand still, die or are told to stop: one of them works on a job at a time, and every job ends."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.system import WORKERS, System, children, gone, tree, until

FILES = 3000


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("workers"))
    try:
        yield system.start()
    finally:
        system.stop()


@pytest.fixture
def large(workers: System) -> Path:
    """A folder that takes a while."""
    source = workers.place()
    for number in range(FILES):
        path = source / f"folder-{number % 50}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % number * 3000)
    return source


def events_of(system: System, job: str) -> list[dict[str, Any]]:
    return [one for one in system.events() if one["subject"] == f"jobs/main/{job}"]


def types_of(system: System, job: str) -> list[str]:
    return [one["type"].rpartition(".")[2] for one in events_of(system, job)]


def starts(system: System, job: str) -> list[tuple[int, int]]:
    """Fence and process id of each start."""
    found = [one["data"] for one in events_of(system, job) if one["type"] == "jobs.started"]
    return [(one["fence"], int(one["worker"].split("/")[1])) for one in found]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Somebody else works on that folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def test_a_worker_that_stood_still_past_its_lease_can_commit_nothing(workers: System) -> None:
    source, target = workers.folder(a="1", b="2"), workers.place()
    with ThreadPoolExecutor(1) as pool:
        with workers.numb():
            waiting = pool.submit(workers.sync, source, target)
            [job] = until(lambda: workers.ok("GET", "/api/sync/jobs?status=running")["jobs"])
            [(fence, first)] = starts(workers, job["id"])
            os.kill(first, signal.SIGSTOP)
            for child in children(first):  # it ends its work, and nobody hears it
                os.kill(child, signal.SIGCONT)
            assert until(lambda: len(starts(workers, job["id"])) == 2)
        answer = waiting.result()
    assert (answer.status, answer.json()["success"]) == (200, True)
    second_fence, second = starts(workers, job["id"])[1]
    assert second != first
    assert second_fence > fence
    before = events_of(workers, job["id"])
    lines = workers.ok("GET", f"/api/sync/jobs/{job['id']}/logs")
    os.kill(first, signal.SIGCONT)
    assert until(lambda: _said(workers, "the lease was lost") + _said(workers, "no longer its own") > 0)
    again = workers.sync(source, target)  # by whichever worker
    assert again.json()["changesApplied"] == 0
    assert before == events_of(workers, job["id"])
    assert lines == workers.ok("GET", f"/api/sync/jobs/{job['id']}/logs")
    assert types_of(workers, job["id"]).count("completed") == 1
    assert tree(source) == tree(target)


def _said(system: System, text: str) -> int:
    return system.log.read_text().count(text)


@pytest.mark.parametrize("name", ["worker", "gateway", "core", "postgres", "nats"])
def test_a_job_outlives_the_death_of_a_process(workers: System, large: Path, name: str) -> None:
    target = workers.place()
    workers.integration(f"outliving-{name}", large, target)
    job = workers.queue(f"outliving-{name}")
    assert until(lambda: workers.job(job)["stats"]["processed"] > 0)
    workers.replaced(name, workers.kill(name))
    completed = workers.wait(job)
    assert (completed["status"], completed["result"]["errors"]) == ("completed", 0)
    assert completed["result"]["created"] == FILES
    assert tree(large) == tree(target)


def test_a_child_that_dies_is_replaced_and_a_job_that_kills_them_is_given_up(workers: System) -> None:
    source, target = workers.folder(a="1"), workers.place()
    workers.integration("deadly", source, target)
    with workers.numb():
        job = workers.queue("deadly")
        for death in range(1, 4):
            assert until(lambda: len(starts(workers, job)) == death)  # noqa: B023
            worker = starts(workers, job)[-1][1]
            busy = until(lambda: children(worker))  # noqa: B023
            for child in busy:
                os.kill(child, signal.SIGKILL)
        failed = workers.wait(job)
    assert failed["status"] == "failed"
    assert "3 times" in failed["error"]["message"]
    workers.ok("POST", f"/api/sync/jobs/{job}/resume")
    assert workers.wait(job)["status"] == "completed"
    assert tree(target) == {"a": b"1"}


def test_a_hard_stop_ends_the_work_and_leaves_no_half_file(workers: System, large: Path) -> None:
    target = workers.place()
    workers.integration("cut", large, target)
    job = workers.queue("cut")
    assert until(lambda: any(target.glob(".undrift-tmp-*/*")))
    busy = [pid for child in children(workers.pids["worker"]) for pid in (child, *forked(child))]
    for pid in busy:  # however fast it is, it comes to no end before the stop
        os.kill(pid, signal.SIGSTOP)
    assert workers.wait(job, "running", "completed")["status"] == "running"
    workers.ok("POST", f"/api/sync/jobs/{job}/stop", {"graceful": False})
    stopped = workers.wait(job)
    assert stopped["status"] == "stopped"
    assert len(busy) > 1
    assert until(lambda: gone([pid for pid in busy if forked_or_child(pid)]))
    sources = tree(large)
    found = {name: text for name, text in tree(target).items() if name in sources}
    assert {name: sources[name] for name in found} == found
    assert workers.sync(large, target).json()["success"] is True
    assert sources == tree(target)


def forked(child: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split()]


def forked_or_child(pid: int) -> bool:
    """Whether it has worked: an idle child stays."""
    try:
        return b"services.worker.child" not in Path(f"/proc/{pid}/cmdline").read_bytes() or bool(forked(pid))
    except FileNotFoundError:
        return True


def test_who_asked_a_worker_that_died_is_told_to_try_again(workers: System) -> None:
    source, target = workers.folder(a="1"), workers.place()
    before = workers.head()
    with ThreadPoolExecutor(1) as pool, workers.numb():
        planning = pool.submit(workers.sync, source, target, headers={"Prefer": "return=plan"})
        time.sleep(1)  # time enough to reach one of them
        for name in WORKERS:
            workers.replaced(name, workers.kill(name))
        answer = planning.result()
    assert (answer.status, answer.json()["errorCode"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert workers.sync(source, target, headers={"Prefer": "return=plan"}).json()["created"] == 1
    assert before == workers.head()


def test_a_target_that_somebody_else_works_on_is_waited_for(workers: System) -> None:
    source, target = workers.folder(a="1"), workers.folder()
    workers.integration("waiting", source, target)
    with held(target):
        job = workers.queue("waiting")
        assert until(lambda: any("waiting" in line["message"] for line in workers.job(job)["logs"]))
        assert workers.status(job) == "running"
        stopped = workers.queue("waiting")
        other = workers.sync(workers.folder(b="2"), target / "inside", headers={"Prefer": "respond-async"})
        assert until(lambda: workers.status(other.json()["jobId"]) == "running")
        workers.ok("POST", f"/api/sync/jobs/{stopped}/stop")
    assert workers.wait(job)["status"] == "completed"
    assert workers.wait(other.json()["jobId"])["status"] == "completed"
    assert tree(target) == {"a": b"1", "inside/b": b"2"}
    with held(target):
        job = workers.queue("waiting")
        assert until(lambda: any("waiting" in line["message"] for line in workers.job(job)["logs"]))
        workers.ok("POST", f"/api/sync/jobs/{job}/stop")
        assert workers.wait(job)["status"] == "stopped"


def test_the_full_queue_of_one_does_not_hold_up_another(workers: System) -> None:
    target = workers.folder()
    workers.integration("greedy", workers.folder(a="1"), target)
    workers.integration("beside", workers.folder(a="1"), target)  # the same target: its jobs wait for greedy's
    workers.integration("modest", workers.folder(a="1"), workers.place())
    with held(target):
        first = workers.queue("greedy")
        workers.wait(first, "running")
        body = {"type": "full"}
        with ThreadPoolExecutor(8) as pool:
            many = ["greedy", "beside"] * 300
            queued = list(
                pool.map(lambda name: workers.ok("POST", "/api/sync/jobs", {**body, "integrationId": name}), many)
            )
        assert len(queued) == 600
        assert workers.wait(workers.queue("modest"))["status"] == "completed"
        assert workers.sync(workers.folder(b="2"), workers.place()).json()["success"] is True
        stopped = workers.ok("POST", "/api/sync/jobs/stop-all")
        assert stopped["stoppedJobs"] == 601
        assert until(lambda: workers.status(first) == "stopped", 5)
    assert workers.ok("GET", "/api/sync/jobs?status=queued")["total"] == 0
    [(claims,)] = workers.sql("select count(*) from undrift.claims where kind like 'work/%%'")
    assert claims == 0


def test_stop_all_leaves_nothing_running(workers: System, large: Path) -> None:
    for number in range(6):
        workers.integration(f"busy-{number}", large, workers.place())
    jobs = [workers.queue(f"busy-{number % 6}") for number in range(60)]
    assert until(lambda: workers.ok("GET", "/api/sync/jobs?status=running")["total"] >= 2)
    stopped = workers.ok("POST", "/api/sync/jobs/stop-all")
    assert set(stopped["jobs"]) <= set(jobs)
    open_ = ("queued", "running", "stopping")
    assert until(lambda: not any(workers.ok("GET", f"/api/sync/jobs?status={one}")["total"] for one in open_), 5)
    assert {workers.status(job) for job in jobs} <= {"stopped", "completed"}


def test_workers_leave_in_time_and_what_they_did_is_taken_up_again(workers: System, large: Path) -> None:
    target = workers.place()
    workers.integration("interrupted", large, target)
    with workers.numb():  # nor do their children listen
        job = workers.queue("interrupted")
        workers.wait(job, "running")
        workers.stop()
    workers.start()
    assert workers.wait(job)["status"] == "completed"
    assert types_of(workers, job).count("started") == 2
    assert tree(large) == tree(target)
