"""What a process has of the machine."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from infra import machine


def test_room_is_what_may_still_be_written(tmp_path: Path) -> None:
    found = machine.room(tmp_path)
    stat = os.statvfs(tmp_path)
    assert found.state == "writable"
    assert abs(found.free_bytes - stat.f_bavail * stat.f_frsize) < 10**9


def test_no_folder_has_no_room(tmp_path: Path) -> None:
    assert machine.room(tmp_path / "gone") == machine.Room(0, "unavailable")


def test_memory_held_is_that_of_this_process() -> None:
    before = machine.memory_held()
    held = bytearray(os.urandom(1)) * (64 * 2**20)
    assert 48 * 2**20 < machine.memory_held() - before < 128 * 2**20
    assert len(held) == 64 * 2**20


def test_the_own_limit_of_a_process_is_heeded() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31));"
        "from infra import machine; print(machine.memory_allowed())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(said) <= 2**31
    assert machine.memory_held() < machine.memory_allowed() <= _machine()


def _machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + resource.getpagesize()
