"""What one piece of work took of the machine, measured in the process that did it."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from pathlib import Path

from domain import jobs

_PEAK = re.compile(r"^VmHWM:\s+([0-9]+) kB$", re.MULTILINE)


class Meter:
    """From its making on. The process is used again and again, so the kernel is asked to forget its peak before."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # a kernel without it: then the peak is that of the process
            Path("/proc/self/clear_refs").write_text("5")
        self._cpu_s = _cpu_s()
        self._below = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss

    def read(self) -> jobs.Usage:
        """CPU time of this process and its children that have ended, and the largest of them."""
        below = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peak = max(_peak_bytes(), below * 1024 if below > self._below else 0)
        return jobs.Usage(cpu_ms=round((_cpu_s() - self._cpu_s) * 1000), peak_bytes=peak)


def _cpu_s() -> float:
    below = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + below.ru_utime + below.ru_stime


def _peak_bytes() -> int:
    match = _PEAK.search(Path("/proc/self/status").read_text())
    return 0 if match is None else int(match[1]) * 1024
