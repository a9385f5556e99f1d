"""Folders synced over `POST /api/v1/sync/files`, with the result in the response."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.system import ADMIN, Answer, System, at_once, tree, until

SECONDS = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
RESULT = ["success", "changesApplied", "conflictsEncountered", "errors", "syncedAt", "executionTimeMs"]


def done(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()
    assert (answer.status, list(found)) == (200, RESULT), answer
    assert SECONDS.fullmatch(found["syncedAt"])
    assert isinstance(found["executionTimeMs"], int)
    assert answer.position > 0
    return found


def refused(answer: Answer, status: int, code: str) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()
    assert (status, code) == (answer.status, found["errorCode"]), answer
    assert found.keys() - {"context"} == {"errorCode", "message", "details", "timestamp"}
    assert SECONDS.fullmatch(found["timestamp"])
    return found


@contextmanager
def nothing_recorded(system: System) -> Iterator[None]:
    before, jobs = system.head(), _jobs(system)
    yield
    assert (before, jobs) == (system.head(), _jobs(system))


def _jobs(system: System) -> int:
    """How many there are, whoever queued the last of them."""
    there = {"Undrift-Min-Position": str(system.head())}
    return int(system.ok("GET", "/api/sync/jobs", headers=there)["total"])


def same_times(*paths: Path) -> None:
    for path in paths:
        os.utime(path, ns=(5, 5))


@contextmanager
def in_the_way(source: Path, target: Path) -> Iterator[None]:
    """A file that cannot be brought over: nobody may read it, or, as root may, write it."""
    if os.geteuid():
        source.chmod(0)
        yield
        source.chmod(0o600)
        return
    if subprocess.run(["chattr", "+i", target], capture_output=True).returncode:
        pytest.skip("no attributes on this file system")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", target], check=True)


def trash(target: Path) -> list[bytes]:
    """The bytes of every file that was kept beside a target."""
    return [path.read_bytes() for path in target.parent.rglob("*") if path.is_file() and "trash" in str(path)]


# Syncing.


def test_the_first_sync_brings_everything_and_the_second_nothing(system: System) -> None:
    source, target = system.folder(a="one", deep__er__b="two", empty=""), system.place()
    (source / "folder without files").mkdir()
    (source / "link").symlink_to("deep/er/b")
    os.utime(source / "a", ns=(1, 1_234_567_890_123_456_789))
    (source / "a").chmod(0o640)
    first = done(system.sync(source, target))
    assert (first["success"], first["conflictsEncountered"], first["errors"]) == (True, 0, [])
    assert first["changesApplied"] >= 4
    assert tree(source) == tree(target)
    assert (target / "folder without files").is_dir()
    assert (target / "link").readlink() == Path("deep/er/b")
    found = (target / "a").stat()
    assert (found.st_mtime_ns, found.st_mode & 0o777) == (1_234_567_890_123_456_789, 0o640)
    second = done(system.sync(source, target))
    assert (second["success"], second["changesApplied"], second["conflictsEncountered"]) == (True, 0, 0)


def test_a_target_changed_since_the_last_sync_is_a_conflict_and_its_file_is_kept(system: System) -> None:
    source, target = system.folder(a="one", b="two"), system.place()
    done(system.sync(source, target))
    (target / "a").write_text("edited here!")
    found = done(system.sync(source, target))
    assert (found["changesApplied"], found["conflictsEncountered"], found["success"]) == (1, 1, True)
    assert tree(target) == {"a": b"one", "b": b"two"} | {
        name: text for name, text in tree(target).items() if "trash" in name
    }
    assert b"edited here!" in trash(target)
    assert done(system.sync(source, target))["changesApplied"] == 0


def test_what_is_excluded_is_neither_brought_nor_removed(system: System) -> None:
    source = system.folder(a="1", b__tmp="2", keep="3", deep__c="4", deep__d="5")
    (source / "x.tmp").write_text("no")
    (source / "deep" / "y.bak").write_text("no")
    target = system.folder(own__tmp="mine")
    (target / "z.tmp").write_text("mine too")
    options = {"excludePatterns": ["*.tmp", "*.bak", "deep/c"], "deleteMissingInTarget": True, "force": True}
    done(system.sync(source, target, **options))
    found = {name for name in tree(target) if "trash" not in name}
    assert found == {"a", "b/tmp", "keep", "deep/d", "z.tmp"}
    assert done(system.sync(source, target, **options))["changesApplied"] == 0


def test_integrity_is_verified_whatever_size_and_time_say(system: System) -> None:
    source, target = system.folder(a="right"), system.place()
    done(system.sync(source, target))
    before = (target / "a").stat()
    (target / "a").write_text("wrong")
    os.utime(target / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert done(system.sync(source, target, verifyIntegrity=False))["changesApplied"] == 0
    assert (target / "a").read_bytes() == b"wrong"
    assert done(system.sync(source, target))["changesApplied"] == 1
    assert (target / "a").read_bytes() == b"right"


def test_any_bytes_in_a_name(system: System) -> None:
    source, target = system.folder(), system.place()
    names = [b"\xff\xfe", b"new\nline", b"-rf", "e\u0301".encode(), "\u00e9".encode(), b"x" * 255, b" ", b"a\\b", b"*"]
    for name in names:
        Path(os.fsdecode(bytes(source) + b"/" + name)).write_bytes(name)
    assert done(system.sync(source, target))["success"] is True
    assert {os.fsencode(path.name): path.read_bytes() for path in target.iterdir()} == {name: name for name in names}


def test_a_file_that_cannot_be_brought_fails_alone(system: System) -> None:
    source, target = system.folder(a="1", b="2"), system.place()
    done(system.sync(source, target))
    (source / "a").write_text("new")
    (source / "b").write_text("new")
    with in_the_way(source / "b", target / "b"):
        found = done(system.sync(source, target))
        assert (found["success"], found["changesApplied"]) == (False, 1)
        [error] = found["errors"]
        assert error.startswith("b: ")
        assert tree(target) == {"a": b"new", "b": b"2"}
    again = done(system.sync(source, target))
    assert (again["success"], again["changesApplied"]) == (True, 1)
    assert tree(source) == tree(target)


def test_a_guard_holds_what_would_take_a_folder_for_a_file(system: System) -> None:
    source, target = system.folder(b="now a file"), system.folder(b__inside="kept")
    refused(system.sync(source, target), 500, "SYNC_FAILED")
    assert tree(target) == {"b/inside": b"kept"}


# Guards.


def test_a_deletion_guard_changes_nothing_until_it_is_told_to(system: System) -> None:
    source, target = system.folder(a="1"), system.folder(a="1", b="2", c="3", d="4")
    same_times(source / "a", target / "a")
    before = system.head()
    answer = system.sync(source, target, deleteMissingInTarget=True)
    held = refused(answer, 500, "SYNC_FAILED")
    assert len(tree(target)) == 4
    plan = held["context"]["plan"]
    assert re.fullmatch(r"[0-9a-f]{64}", plan)
    assert plan in held["details"]
    assert held["context"]["deleted"] == 3
    types = [one["type"] for one in system.events(before)]
    assert types[-2:] == ["jobs.held", "jobs.failed"]
    again = refused(system.sync(source, target, deleteMissingInTarget=True), 500, "SYNC_FAILED")
    assert again["context"] == held["context"]
    carried = done(system.sync(source, target, deleteMissingInTarget=True, headers={"If-Match": f'"{plan}"'}))
    assert carried["changesApplied"] == 3
    assert {name for name in tree(target) if "trash" not in name} == {"a"}
    assert {b"2", b"3", b"4"} <= set(trash(target))


def test_force_carries_out_what_a_guard_would_hold(system: System) -> None:
    source, target = system.folder(), system.folder(a="1", b="2")
    refused(system.sync(source, target, deleteMissingInTarget=True), 500, "SYNC_FAILED")
    assert done(system.sync(source, target, deleteMissingInTarget=True, force=True))["changesApplied"] == 2
    assert {name for name in tree(target) if "trash" not in name} == set()


def test_a_source_that_was_not_empty_and_is_deletes_nothing(system: System) -> None:
    source, target = system.folder(**{f"f{n}": str(n) for n in range(3)}), system.place()
    done(system.sync(source, target, deleteMissingInTarget=True))
    for path in source.iterdir():
        path.unlink()
    refused(system.sync(source, target, deleteMissingInTarget=True), 500, "SYNC_FAILED")
    source.rmdir()
    found = refused(system.sync(source, target, deleteMissingInTarget=True), 500, "SYNC_FAILED")
    assert found["details"] == "Source directory not found"
    assert len(tree(target)) == 3


# Plans.


def test_a_plan_writes_nothing_and_is_applied_as_it_was(system: System) -> None:
    source, target = system.folder(a="new", b="same"), system.folder(b="same", c="old")
    same_times(source / "b", target / "b")
    before = tree(target)
    with nothing_recorded(system):
        answers = [
            system.sync(source, target, deleteMissingInTarget=True, headers={"Prefer": "return=plan"}) for _ in range(2)
        ]
        plans = [answer.json() for answer in answers]
    assert [answer.status for answer in answers] == [200, 200]
    assert plans[0] == plans[1]
    plan = plans[0]
    assert plan.keys() == {
        "planHash",
        "actionCount",
        "created",
        "updated",
        "deleted",
        "conflicts",
        "bytes",
        "actions",
        "truncated",
        "held",
        "errors",
    }
    assert (plan["actionCount"], plan["truncated"]) == (len(plan["actions"]), False)
    assert (plan["created"], plan["deleted"], plan["bytes"], plan["errors"]) == (1, 1, 3, [])
    shown = {(one["action"], one["path"]) for one in plan["actions"]}
    assert shown >= {("create", "a"), ("delete", "c")}
    assert before == tree(target)
    match = {"If-Match": f'"{plan["planHash"]}"'}
    done(system.sync(source, target, deleteMissingInTarget=True, headers=match))
    assert {name: text for name, text in tree(target).items() if "trash" not in name} == {"a": b"new", "b": b"same"}


def test_a_target_that_is_not_there_is_not_made_by_a_plan(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    answer = system.sync(source, target, headers={"Prefer": "return=plan"})
    assert (answer.status, answer.json()["created"]) == (200, 1)
    assert not target.exists()


def test_a_plan_whose_world_has_moved_is_not_applied_and_nothing_is_recorded(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    plan = system.sync(source, target, headers={"Prefer": "return=plan"}).json()["planHash"]
    (source / "b").write_text("late")
    with nothing_recorded(system):
        answer = system.sync(source, target, headers={"If-Match": f'"{plan}"'})
        found = refused(answer, 412, "PRECONDITION_FAILED")
        other = system.sync(source, target, verifyIntegrity=False, headers={"If-Match": plan})
        refused(other, 412, "PRECONDITION_FAILED")
        refused(system.sync(source, target, headers={"If-Match": '"a", "b"'}), 400, "INVALID_REQUEST")
    assert not target.exists()
    done(system.sync(source, target, headers={"If-Match": found["context"]["plan"]}))
    assert tree(source) == tree(target)


def test_a_plan_that_a_guard_would_hold_says_so(system: System) -> None:
    source, target = system.folder(a="1"), system.folder(b="2", c="3", d="4")
    headers = {"Prefer": "return=plan"}
    plan = system.sync(source, target, deleteMissingInTarget=True, headers=headers).json()
    assert plan["held"]
    held = refused(system.sync(source, target, deleteMissingInTarget=True), 500, "SYNC_FAILED")
    assert plan["planHash"] == held["context"]["plan"]


# What is refused.


def test_a_source_that_is_not_there(system: System) -> None:
    found = refused(system.sync(system.place(), system.place()), 500, "SYNC_FAILED")
    assert found["message"] == "Synchronization operation failed"
    assert found["details"] == "Source directory not found"
    plan = system.sync(system.place(), system.place(), headers={"Prefer": "return=plan"})
    assert refused(plan, 500, "SYNC_FAILED")["details"] == "Source directory not found"


@pytest.mark.parametrize(
    "path",
    ["/etc", "/", "/proc/self/root", "/dev/fd", "/root/x", "{roots}x", "/tmp", "//etc", "/{roots}/../../etc"],
)
def test_a_folder_outside_the_roots_is_forbidden_and_not_recorded(system: System, path: str) -> None:
    inside = system.folder(a="1")
    outside = Path(path.format(roots=str(system.roots).strip("/") if "../" in path else system.roots))
    with nothing_recorded(system):
        for source, target in ((inside, outside), (outside, inside)):
            answer = system.post(
                "/api/v1/sync/files",
                {"sourceDirectory": str(source), "targetDirectory": str(target)},
                token=ADMIN,
            )
            if "../" in path:
                refused(answer, 400, "INVALID_REQUEST")
            else:
                refused(answer, 403, "FORBIDDEN")
    assert tree(inside) == {"a": b"1"}


def test_a_link_does_not_lead_out_of_the_roots(system: System, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    inside, door = system.folder(a="1"), system.place()
    door.symlink_to(tmp_path)
    for source, target in ((inside, door), (door, inside), (inside, door / "deeper")):
        answer = system.sync(source, target)
        assert answer.status in (403, 500), answer
        answer.json()
    assert tree(tmp_path) == {"secret": b"outside"}
    assert tree(inside) == {"a": b"1"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"sourceDirectory": "/a"}',
        b'{"sourceDirectory": "C:\\\\source", "targetDirectory": "C:\\\\target"}',
        b'{"sourceDirectory": "relative", "targetDirectory": "other"}',
        b'{"sourceDirectory": "", "targetDirectory": ""}',
        b'{"sourceDirectory": "/a\\u0000", "targetDirectory": "/b"}',
        b'{"sourceDirectory": "/a\\ud800", "targetDirectory": "/b"}',
        b'{"sourceDirectory": "/a/../b", "targetDirectory": "/b"}',
        b'{"sourceDirectory": 5, "targetDirectory": "/b"}',
        b'{"sourceDirectory": "/' + b"x" * 5000 + b'", "targetDirectory": "/b"}',
        b'{"sourceDirectory": "/' + b"x" * 300 + b'", "targetDirectory": "/b"}',
    ],
    ids=range(12),
)
def test_what_is_no_request_is_refused(system: System, body: bytes) -> None:
    with nothing_recorded(system):
        refused(system.post("/api/v1/sync/files", body, token=ADMIN), 400, "INVALID_REQUEST")


def test_folders_that_are_the_same_or_lie_in_each_other(system: System) -> None:
    one = system.folder(a="1")
    with nothing_recorded(system):
        for source, target in (
            (one, one),
            (one, one / "in"),
            (one / "in", one),
            (one, Path(f"{one}//./").parent / one.name),
        ):
            refused(system.sync(source, target), 400, "INVALID_REQUEST")
        body = {"sourceDirectory": f"{one}/", "targetDirectory": f"//{one}"}
        refused(system.post("/api/v1/sync/files", body, token=ADMIN), 400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "patterns",
    [["x" * 257], ["*" * 17], ["a"] * 101, ["a\u0000"], "*.tmp", [5]],
    ids=["long", "wild", "many", "nul", "string", "number"],
)
def test_patterns_are_bounded(system: System, patterns: Any) -> None:
    with nothing_recorded(system):
        answer = system.sync(system.roots / "a", system.roots / "b", excludePatterns=patterns)
        refused(answer, 400, "INVALID_REQUEST")


# Doing it later, and once.


def test_who_does_not_want_to_wait_is_told_where_to_look(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    answer = system.sync(source, target, headers={"Prefer": "respond-async"})
    found = answer.json()
    assert (answer.status, found.keys()) == (202, {"jobId", "status"})
    assert answer.headers["location"] == f"/api/sync/jobs/{found['jobId']}"
    job = system.wait(found["jobId"])
    assert (job["status"], job["kind"], job["result"]["created"]) == ("completed", "files", 1)
    assert tree(source) == tree(target)


def test_a_key_makes_one_of_many(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    before = system.head()
    headers = {"Idempotency-Key": "sync-once"}
    answers = at_once(32, lambda _: system.sync(source, target, headers=headers))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert [one["type"] for one in system.events(before)].count("jobs.queued") == 1
    refused(system.sync(source, system.place(), headers=headers), 422, "INVALID_REQUEST")


def test_a_key_remembers_a_failure_too(system: System) -> None:
    source, target = system.place(), system.place()
    headers = {"Idempotency-Key": "failed-once"}
    first = system.sync(source, target, headers=headers)
    refused(first, 500, "SYNC_FAILED")
    source.mkdir()
    until(lambda: system.sync(system.place(), system.place()).json()["timestamp"] > first.json()["timestamp"])
    second = system.sync(source, target, headers=headers)
    assert (first.status, first.body, first.position) == (second.status, second.body, second.position)


def test_jobs_on_one_target_take_turns(system: System) -> None:
    sources = [system.folder(**{f"f{n}": str(n)}) for n in range(6)]
    target = system.place()
    answers = at_once(6, lambda n: system.sync(sources[n], target))
    assert [done(answer)["success"] for answer in answers] == [True] * 6
    assert tree(target) == {f"f{n}": str(n).encode() for n in range(6)}


def test_who_waits_while_the_gateway_is_told_to_end_is_told_where_to_look(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    with ThreadPoolExecutor(1) as pool, system.numb():
        waiting = pool.submit(system.sync, source, target)
        assert until(lambda: system.ok("GET", "/api/sync/jobs?status=running")["jobs"])
        ended = system.kill("gateway", signal.SIGTERM)
        answer = waiting.result()
    assert answer.status == 202
    system.replaced("gateway", ended)
    assert answer.headers["location"] == f"/api/sync/jobs/{answer.json()['jobId']}"
    assert system.wait(answer.json()["jobId"])["status"] == "completed"
    assert tree(source) == tree(target)


def test_without_nats_only_plans_have_to_wait(system: System) -> None:
    source, target = system.folder(a="1"), system.place()
    plan = system.sync(source, target, headers={"Prefer": "return=plan"}).json()["planHash"]
    with system.paused("nats"):
        answer = system.sync(source, target, headers={"Prefer": "return=plan"})
        refused(answer, 503, "UNAVAILABLE")
        assert int(answer.headers["retry-after"]) >= 1
        refused(system.sync(source, target, headers={"If-Match": "0" * 64}), 412, "PRECONDITION_FAILED")
        assert not target.exists()
        done(system.sync(source, target, headers={"If-Match": plan}))
    assert tree(source) == tree(target)
    system.whole()
    plans = until(lambda: system.sync(source, target, headers={"Prefer": "return=plan"}).status == 200)
    assert plans


def test_the_answer_is_of_this_family(system: System) -> None:
    answer = system.sync(system.folder(a="1"), system.place())
    assert int(answer.headers["x-ratelimit-limit"]) > int(answer.headers["x-ratelimit-remaining"]) > 0
    refused(system.get("/api/v1/sync/files", token=ADMIN), 405, "INVALID_REQUEST")
    refused(system.get("/api/v1/nothing", token=ADMIN), 404, "NOT_FOUND")
