"""A device that speaks to another gateway with every request is judged by what it knows, not by who it asks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.libraries import Device, sha, user
from tests.journeys.system import System, until


@pytest.fixture(scope="module")
def second(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Another gateway over the same log, as a system of which only the address is its own."""
    with beside(system, tmp_path_factory.mktemp("second") / "gateway.log") as url:
        yield Beside(system.base, port=system.port, url=url)


class Beside(System):
    def __init__(self, base: Path, port: int, url: str) -> None:
        super().__init__(base, port=port)
        self._url = url

    @property
    def ready(self) -> dict[str, Any]:
        return {**super().ready, "url": self._url}


@contextmanager
def beside(system: System, log: Path, **settings: str) -> Iterator[str]:
    """The address of a second gateway, started as the first one was, but for settings by their variables' names."""
    pid = system.pids["gateway"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:-1]
    variables = dict(one.split(b"=", 1) for one in raw)
    variables.pop(b"UNDRIFT_READY_FD", None)
    variables |= {b"UNDRIFT_GATEWAY_PORT": b"0", b"UNDRIFT_GATEWAY_ALSO_LISTEN": b"[]"}
    variables |= {name.encode(): value.encode() for name, value in settings.items()}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=variables, stdout=file, stderr=file, cwd=os.readlink(f"/proc/{pid}/cwd")
        )
    try:
        assert until(lambda: process.poll() is not None or listening(log) is not None), log.read_text()
        url = listening(log)
        assert url is not None, log.read_text()
        yield url
    finally:
        process.terminate()
        assert process.wait(20) == 0


def listening(log: Path) -> str | None:
    for line in log.read_text().splitlines():
        if '"listening"' in line:
            return str(json.loads(line)["url"])
    return None


def test_what_a_device_reported_to_one_gateway_the_other_knows(system: System, second: System) -> None:
    """Each edit is based on the one before; with a gateway that has not heard of that it would be a conflict."""
    ann = user(system)
    laptop = ann.device()
    texts = [f"edit {number}".encode() for number in range(24)]
    for number, data in enumerate(texts):
        laptop.upload(f"bytes/{number}", data)
    faces = [laptop, Device(second, laptop.id, laptop.token)]
    for number, data in enumerate(texts):
        change = {"path": "note", "change_type": "modified", "content_hash": sha(data), "file_size": len(data)}
        answer = faces[number % 2].system.post("/api/v1/sync/report", {"changes": [change]}, token=laptop.token)
        assert answer.status == 200, answer
        said = answer.json()
        assert (said["accepted"], said["conflicts"], said["upload_required"]) == (["note"], [], []), number
    answer = faces[0].system.post(
        "/api/v1/sync/report", {"changes": [{"path": "note", "change_type": "deleted"}]}, token=laptop.token
    )
    assert answer.json()["accepted"] == ["note"]
    head = {"Undrift-Min-Position": answer.headers["undrift-position"]}
    assert "note" not in [
        one["path"] for one in second.ok("GET", "/api/v1/sync/snapshot", token=laptop.token, headers=head)["files"]
    ]


def test_a_revoked_device_is_refused_by_both(system: System, second: System) -> None:
    phone = user(system).device("phone")
    head = {"Undrift-Min-Position": str(system.wrote)}
    assert second.get("/api/v1/sync/changes", token=phone.token, headers=head).status == 200
    system.ok("POST", f"/api/v1/sync/devices/{phone.id}/token", token=phone.token)
    assert until(lambda: second.get("/api/v1/sync/changes", token=phone.token).status == 401, 1.0)
