"""What limits a server where no control group does: limits of each of its processes, and the cores they may use.

Memory is RLIMIT_DATA, what a process may write to and shares with nobody: RLIMIT_AS would count what a runtime such as
Java's only reserves. It binds each process, not their sum. Processes are counted by user (RLIMIT_NPROC): those it has
already are added. Nothing here bounds the share of a core, nor disks; `nice` could weigh servers against each other,
but their shares are all the same.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from domain import errors
from domain.server_config import Limits

_TICKS = os.sysconf("SC_CLK_TCK")
_CAPABLE = re.compile(r"^CapEff:\s+([0-9a-f]+)$", re.MULTILINE)
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Confines(Struct, frozen=True):
    """(number, soft, hard) of each limit of a process, and its cores: none for all, None as they are."""

    rlimits: tuple[tuple[int, int, int], ...] = ()
    cores: tuple[int, ...] | None = None


def confines(limits: Limits, pids: int, without: set[str], user: int) -> Confines:
    """For the controllers that are missing. Hard limits stay where they are if we could not raise them again: they
    bind a server then that does not want to be rid of them. Blocks for a moment."""
    found = []
    for number, value in (
        (resource.RLIMIT_DATA, limits.memory if "memory" in without else 0),
        (resource.RLIMIT_NPROC, pids + _threads_of(user) if "pids" in without else 0),
    ):
        if value > 0 or ("memory" in without and number == resource.RLIMIT_DATA):
            soft = value if value > 0 else resource.RLIM_INFINITY
            hard = soft if _may_raise() else resource.getrlimit(number)[1]
            found.append((number, _least(soft, hard), hard))
    return Confines(tuple(found), cores(limits.cpuset) if "cpuset" in without else None)


def _may_raise() -> bool:
    """CAP_SYS_RESOURCE."""
    match = _CAPABLE.search(Path("/proc/self/status").read_text())
    return match is not None and bool(int(match[1], 16) >> 24 & 1)


def _least(soft: int, hard: int) -> int:
    return soft if hard == resource.RLIM_INFINITY else hard if soft == resource.RLIM_INFINITY else min(soft, hard)


def cores(text: str) -> tuple[int, ...]:
    """`0-1,3` as numbers; empty for all. Raises errors.SyncFailed."""
    found: set[int] = set()
    try:
        for part in filter(None, text.split(",")):
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if len(numbers) > 4096:
                raise ValueError(part)
            found.update(numbers)
    except ValueError:
        raise errors.SyncFailed(f"{text!r} are no cores of a machine") from None
    return tuple(sorted(found))


def apply(pids: Iterable[int], confines: Confines) -> None:
    """To processes that run, each with all its threads. Raises errors.SyncFailed."""
    everything = confines.cores or tuple(range(os.cpu_count() or 1))
    for pid in pids:
        try:
            for number, soft, hard in confines.rlimits:
                resource.prlimit(pid, number, (soft, hard))
            for thread in os.listdir(f"/proc/{pid}/task") if confines.cores is not None else ():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), everything)
        except (ProcessLookupError, FileNotFoundError):
            continue  # it has ended
        except (OSError, ValueError) as error:
            raise errors.SyncFailed(f"A limit of process {pid} could not be set: {error}") from None


def used(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes that they alone hold, and nanoseconds of a core that they and their children that ended took."""
    memory = ticks = 0
    for pid in pids:
        with suppress(OSError, IndexError, ValueError):
            with open(f"/proc/{pid}/statm") as file:
                _, resident, shared, *_ = file.read().split()
            with open(f"/proc/{pid}/stat", "rb") as stat:
                times = stat.read().rpartition(b")")[2].split()[11:15]
            memory += (int(resident) - int(shared)) * _PAGE
            ticks += sum(map(int, times))
    return memory, ticks * 1_000_000_000 // _TICKS


def _threads_of(user: int) -> int:
    """How many the kernel counts for that user now."""
    count = 0
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count
