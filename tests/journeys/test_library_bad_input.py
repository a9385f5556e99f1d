"""A library under bad input: too many items, many at once, bytes that are gone, a disk that is full."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.libraries import created, sha, user
from tests.journeys.system import UNDRIFT, System, at_once

MANY = 1000


def memory(pid: int) -> int:
    """The most that a process ever held, in bytes."""
    [line] = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("items", [1001, 20_000, 1_000_000])
def test_a_report_with_too_many_items_is_refused(system: System, items: int) -> None:
    laptop = user(system).device()
    gateway = system.pids["gateway"]
    one = json.dumps({"path": "a", "change_type": "deleted"}).encode()
    body = b'{"changes":[' + b",".join([one] * items) + b"]}"
    before, held = system.head(), memory(gateway)
    headers = {"Content-Type": "application/json"}
    answer = system.post("/api/v1/sync/report", body, token=laptop.token, headers=headers)
    assert answer.status == (413 if len(body) > 1 << 20 else 400), answer
    assert memory(gateway) - held < 64 << 20
    assert laptop.report({"path": "a", "change_type": "deleted"})["accepted"] == ["a"]
    assert system.head() == before


def test_a_report_with_bad_items_does_not_hold_up_the_others(system: System) -> None:
    laptop = user(system).device()
    laptop.upload("bytes", b"1")
    bad = ("../a", "/a", "a/../b", "a\\b", "nul", "a. ", "", "x" * 5000, "a\u0301", "\u0085")
    changes = [created(path, b"1") for path in bad]
    changes += [created(f"good {number}", b"1") for number in range(3)]
    changes.append({**created("no hash", b"1"), "content_hash": "x"})
    changes.append({**created("no time", b"1"), "local_mtime": "yesterday"})
    said = laptop.report(*changes)
    assert sorted(said["accepted"]) == ["good 0", "good 1", "good 2"]
    assert sorted(one["path"] for one in said["rejected"]) == sorted([*bad, "no hash", "no time"])


def test_two_devices_that_report_the_same_paths_at_once(system: System) -> None:
    """Each file is there once, and every item has an outcome, whoever was first."""
    ann = user(system)
    pair = ann.pair()
    pair[0].upload("bytes", b"the same")
    paths = [f"folder {number % 7}/file {number}" for number in range(MANY)]
    answers = at_once(2, lambda n: pair[n].report(*(created(path, b"the same") for path in paths)))
    for said in answers:
        assert sorted(said["accepted"]) == sorted(paths), said["rejected"][:3]
        assert said["conflicts"] == said["upload_required"] == said["rejected"] == []
    changes = [one["path"] for one in pair[1].changes()]
    assert sorted(changes) == sorted(["bytes", *paths])
    sides = (b"one side", b"other side")
    for device, data in zip(pair, sides, strict=True):
        device.upload(f"of {data.decode()}", data)
        device.follow()
    again = at_once(
        2, lambda n: pair[n].report(*({**created(path, sides[n]), "change_type": "modified"} for path in paths))
    )
    for said in again:
        assert said["rejected"] == said["upload_required"] == []
        assert sorted([*said["accepted"], *(one["path"] for one in said["conflicts"])]) == sorted(paths)
    assert sum(len(said["accepted"]) for said in again) == len(paths)
    found = {one["path"]: one["content_hash"] for one in pair[0].changes()}
    for n, said in enumerate(again):
        kept = {found[path] for path in said["accepted"]}
        assert len(kept) <= 1, n  # what was accepted is what is there


def test_large_reports_of_one_leave_room_for_the_commands_of_another(system: System) -> None:
    """Others are served between the parts of a report: theirs never wait for all of it."""
    busy, quick = user(system).device(), user(system).device()
    busy.upload("bytes", b"1")
    quick.upload("bytes", b"1")
    answered: list[int] = []
    done = threading.Event()

    def load(n: int) -> None:
        if n:
            while not done.is_set():
                quick.report({"path": "none", "change_type": "deleted"}, created(f"q{len(answered)}", b"1"))
                answered.append(system.head())
            return
        try:
            for batch in range(4):
                busy.report(*(created(f"{batch}/{number}", b"1") for number in range(MANY)))
        finally:
            done.set()

    at_once(2, load)
    assert len(answered) > 4 * MANY // 128 // 3


def test_the_doctor_says_which_bytes_are_missing_and_which_are_nobodys(tmp_path: Path) -> None:
    system = System(tmp_path).start()  # with a short log of its own: the doctor looks at all of it
    try:
        laptop = user(system).device()
        data = os.urandom(1000)
        laptop.upload("precious", data)
        folder = system.directory / "blobs" / "library"
        [blob] = [path for path in folder.glob("*/*") if path.is_file() and path.read_bytes() == data]
        stray = folder / "00" / ("f" * 62)
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"stray")
        found = bytes_finding(system)
        assert found["well"], found
        assert "belong to none" in found["summary"]
        away = blob.rename(blob.with_name(".away"))
        lost = bytes_finding(system)
        assert (lost["well"], blob.parent.name + blob.name in lost["summary"]) == (False, True)
        assert laptop.download("precious").status == 503
        away.rename(blob)
        assert bytes_finding(system)["well"]
        assert laptop.download("precious").body == data
    finally:
        system.stop()


def bytes_finding(system: System) -> dict[str, Any]:
    command = [UNDRIFT, "doctor", "--json", "--data-dir", str(system.directory)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    [found] = [one for one in json.loads(ran.stdout)["findings"] if one["check"] == "bytes"]
    return dict(found)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[System]:
    """An instance whose blobs are on a file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    made = System(tmp_path)
    folder = made.directory / "blobs" / "library"
    folder.mkdir(parents=True)
    made.directory.chmod(0o700)
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield made.start()
    finally:
        made.stop()
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_shows_nothing_half_and_passes_without_a_restart(small: System) -> None:
    laptop = user(small).device()
    data = os.urandom(3 << 20)
    opened = laptop.open("large", data, chunk_size=1 << 20)
    for index in range(opened["chunk_count"]):
        assert laptop.chunk(opened, index, data).status == 200
    complete = f"/api/v1/sync/upload/{opened['id']}/complete"
    for _ in range(2):
        answer = laptop.call("POST", complete)
        assert (answer.status, set(answer.json())) == (507, {"error"})
    assert laptop.files() == {}
    assert laptop.changes() == []
    assert laptop.report(created("large", data))["upload_required"] == ["large"]
    folder = small.directory / "blobs" / "library"
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert laptop.upload("small", b"still served")["status"] == "completed"
    subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
    assert laptop.ok("POST", complete)["status"] == "completed"
    assert sha(laptop.download("large").body) == sha(data)
