"""What this process has of the machine: room in a folder, and memory."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import Literal

from msgspec import Struct

_RESIDENT = re.compile(r"^VmRSS:\s+([0-9]+) kB$", re.MULTILINE)
_TOTAL = re.compile(r"^MemTotal:\s+([0-9]+) kB$", re.MULTILINE)
_GROUP = re.compile(r"^0::(/.*)$", re.MULTILINE)
_GROUPS = Path("/sys/fs/cgroup")


class Room(Struct, frozen=True):
    """`free_bytes` are what an ordinary user may still write."""

    free_bytes: int
    state: Literal["writable", "read-only", "unavailable"] = "writable"


def room(folder: Path) -> Room:
    """Blocks as long as the filesystem does."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return Room(0, "unavailable")
    read_only = bool(found.f_flag & os.ST_RDONLY) or not os.access(folder, os.W_OK)
    return Room(found.f_bavail * found.f_frsize, "read-only" if read_only else "writable")


def memory_held() -> int:
    """Bytes of memory that this process holds."""
    match = _RESIDENT.search(Path("/proc/self/status").read_text())
    return 0 if match is None else int(match[1]) * 1024


def memory_allowed() -> int:
    """Bytes that it may hold: the least of what the machine has, its container gives, and its own limit is."""
    limits = [_machine(), _group()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limit for limit in limits if limit)


def _machine() -> int:
    match = _TOTAL.search(Path("/proc/meminfo").read_text())
    return int(match[1]) * 1024 if match is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group() -> int:
    """The least limit of the control group and those around it; 0 without one."""
    match = _GROUP.search(Path("/proc/self/cgroup").read_text())
    if match is None:
        return 0
    folder = _GROUPS / match[1].lstrip("/")
    found = [_limit(each / "memory.max") for each in (folder, *folder.parents) if each.is_relative_to(_GROUPS)]
    return min((limit for limit in found if limit), default=0)


def _limit(file: Path) -> int:
    try:
        text = file.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdecimal() else 0
