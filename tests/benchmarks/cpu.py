"""Processor time of running processes, by name: what a request costs, whatever else the machine does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """User and system time so far of each process and of those below it, also of those that have ended since."""
    below: dict[int, list[int]] = {}
    spent: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it has just ended
            below.setdefault(int(fields[1]), []).append(int(entry.name))
            spent[int(entry.name)] = sum(int(ticks) for ticks in fields[11:15]) * _TICK_S
    return {name: _sum(pid, below, spent) for name, pid in processes.items()}


def _sum(pid: int, below: Mapping[int, list[int]], spent: Mapping[int, float]) -> float:
    return spent.get(pid, 0.0) + sum(_sum(child, below, spent) for child in below.get(pid, ()))


def per_request(before: Mapping[str, float], after: Mapping[str, float], requests: float) -> dict[str, int]:
    """Microseconds of each for one request."""
    return {name: round((after[name] - before[name]) / requests * 1e6) for name in before}
