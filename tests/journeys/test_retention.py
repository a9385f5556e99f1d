"""Old bytes go when nobody needs them: never the newest, never what a device has yet to see; what was, stays listed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import blake3
import pytest

from tests.journeys.libraries import Device, User, created, user
from tests.journeys.system import System, until

KEPT = 2
SETTINGS = """
[library]
keep_versions = 2
retain_s = 0.2
drop_s = 1.0
quota_bytes = 1000000
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    base = tmp_path_factory.mktemp("short")
    system = System(base, System(base).settings + SETTINGS)
    try:
        yield system.start()
    finally:
        system.stop()


@pytest.fixture
def ann(short: System) -> User:
    return user(short)


def blob(system: System, data: bytes) -> bool:
    digest = blake3.blake3(data).hexdigest()
    return (system.directory / "blobs" / "library" / digest[:2] / digest[2:]).exists()


def versions(device: Device, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = device.ok("GET", f"/api/v1/sync/versions/{path}")["versions"]
    return found


def available(device: Device, path: str) -> list[bool]:
    return [one["available"] for one in versions(device, path)]


def sweeps(system: System, many: int = 3) -> None:
    """Waits for that many whole sweeps, told by a file of somebody else that one has to drop."""
    other = user(system).device()
    for number in range(many):
        data = [os.urandom(10) for _ in range(KEPT + 1)]
        for one in data:
            other.upload(f"{number}", one)
        other.follow()
        assert until(lambda other=other, number=number: available(other, f"{number}") == [True, True, False])  # type: ignore[misc]
        assert until(lambda data=data: not blob(system, data[0]))  # type: ignore[misc]


def test_the_newest_versions_keep_their_bytes(ann: User, short: System) -> None:
    laptop = ann.device()
    data = [os.urandom(1000) for _ in range(4)]
    for one in data:
        laptop.upload("notes", one)
    laptop.follow()
    assert until(lambda: available(laptop, "notes") == [True, True, False, False])
    assert until(lambda: [blob(short, one) for one in data] == [False, False, True, True])
    listed = versions(laptop, "notes")
    assert laptop.download("notes").body == data[3]
    assert laptop.download(f"notes?version={listed[1]['sequence']}").body == data[2]
    gone = laptop.download(f"notes?version={listed[3]['sequence']}")
    assert (gone.status, "kept no longer" in gone.json()["error"]) == (410, True)
    back = {"media_id": listed[3]["media_id"], "sequence": listed[3]["sequence"]}
    assert laptop.call("POST", "/api/v1/sync/restore", back).status == 410
    assert laptop.ok("POST", "/api/v1/sync/restore", back | {"sequence": listed[1]["sequence"]})["content_hash"]
    assert laptop.download("notes").body == data[2]


def test_what_a_device_has_not_seen_stays(ann: User, short: System) -> None:
    laptop, phone = ann.pair()
    data = [os.urandom(1000) for _ in range(4)]
    laptop.upload("late", data[0])
    phone.follow()
    for one in data[1:]:
        laptop.upload("late", one)
    laptop.follow()
    sweeps(short)
    assert available(laptop, "late") == [True] * 4
    phone.follow()
    assert until(lambda: available(laptop, "late") == [True, True, False, False])


def test_a_device_that_is_disabled_or_deleted_is_not_waited_for(ann: User, short: System) -> None:
    laptop, phone = ann.pair()
    for one in range(4):
        laptop.upload("alone", os.urandom(1000 + one))
    laptop.follow()
    sweeps(short, 1)
    assert available(laptop, "alone") == [True] * 4
    ann.ok("PUT", f"/api/v1/sync/devices/{phone.id}", {"enabled": False})
    assert until(lambda: available(laptop, "alone") == [True, True, False, False])


def test_sides_of_an_open_conflict_stay(ann: User, short: System) -> None:
    laptop, phone = ann.pair()
    base, theirs, mine = (os.urandom(1000) for _ in range(3))
    laptop.upload("fought", base)
    phone.follow()
    laptop.upload("fought", theirs)
    upload = phone.open("fought", mine)
    phone.chunk(upload, 0, mine)
    assert phone.ok("POST", f"/api/v1/sync/upload/{upload['id']}/complete")["conflict_id"]
    for _ in range(3):
        laptop.upload("fought", os.urandom(1000))
    laptop.follow()
    phone.follow()
    sweeps(short)
    assert all(blob(short, one) for one in (base, theirs, mine))


def test_bytes_that_are_said_again_are_there(ann: User, short: System) -> None:
    """The same contents as another file, or as a later version, are needed."""
    laptop = ann.device()
    data = [os.urandom(1000) for _ in range(4)]
    for one in (*data, data[0]):
        laptop.upload("again", one)
    laptop.upload("copy", data[1])
    laptop.follow()
    assert until(lambda: available(laptop, "again") == [True, True, False, True, True])
    sweeps(short, 1)
    assert [blob(short, one) for one in data] == [True, True, False, True]
    laptop.upload("again", data[2])
    assert laptop.download("again").body == data[2]


def test_somebody_elses_same_bytes_stay(ann: User, short: System) -> None:
    laptop, other = ann.device(), user(short).device()
    data = os.urandom(1000)
    other.upload("theirs", data)
    for one in (data, b"1", b"2"):
        laptop.upload("mine", one)
    laptop.follow()
    assert until(lambda: available(laptop, "mine") == [True, True, False])
    sweeps(short)
    assert other.download("theirs").body == data


def test_room_is_free_again(ann: User, short: System) -> None:
    laptop = ann.device()
    for _ in range(3):
        laptop.upload("big", os.urandom(300_000))
    wanted = {"target_path": "more", "expected_hash": "0" * 64, "expected_size": 300_000}
    assert laptop.call("POST", "/api/v1/sync/upload", wanted).status == 507
    laptop.follow()
    assert until(lambda: laptop.call("POST", "/api/v1/sync/upload", wanted).status == 200)


def test_bytes_that_are_named_while_they_are_dropped_stay(ann: User, short: System) -> None:
    """Reports of old bytes, all the time: what was accepted can be downloaded."""
    laptop = ann.device()
    data = [b"%d" % one + os.urandom(100) for one in range(3)]
    for one in data:
        laptop.upload("busy", one)
    laptop.follow()
    deadline, said, turn = time.monotonic() + 8, 0, 0
    while time.monotonic() < deadline:
        turn += 1
        one = data[turn % 3]
        answer = laptop.report(created("busy", one, change_type="modified"))
        assert answer["accepted"] == ["busy"], answer
        if answer["upload_required"]:
            laptop.upload("busy", one)
        said += 1
        assert laptop.download("busy").body == one
        laptop.follow()
    sweeps(short, 1)
    assert said > 10
    assert laptop.download("busy").body == data[turn % 3]
