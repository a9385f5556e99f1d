"""One user's reports of one change each, alone and beside another user whose reports have a thousand."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from tests.journeys.libraries import Device, created, user
from tests.journeys.system import Answer, System

SECTION = "a user's single reports beside another's of 1,000 changes"
MANY = 1000


class Reporter:
    """A device that reports new files, whose bytes the library has already."""

    def __init__(self, device: Device) -> None:
        self._device, self._numbers = device, count()
        self._data = os.urandom(100)
        device.upload("first", self._data)

    def report(self, changes: int) -> float:
        """Seconds for so many new files in one report."""
        items = [created(f"{next(self._numbers)}/file", self._data) for _ in range(changes)]
        began = time.perf_counter()
        while (answer := self._say(items)).status == 503:
            time.sleep(0.05)
        took = time.perf_counter() - began
        said = answer.json()
        assert len(said["accepted"]) == changes, said["rejected"][:1]
        return took

    def _say(self, items: list[dict[str, Any]]) -> Answer:
        """As a client does, which knows nothing of others."""
        device = self._device
        return device.system.post("/api/v1/sync/report", {"changes": items}, token=device.token)


def _meanwhile(other: Reporter, taken: list[float], over: threading.Event) -> None:
    while not over.is_set():
        taken.append(other.report(MANY))


def _singles(reporter: Reporter, seconds: float) -> Iterator[float]:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        yield reporter.report(1) * 1000
        time.sleep(0.005)


def run(system: System, quick: bool) -> list[dict[str, Any]]:
    """In turn: each round once alone and once beside."""
    seconds, rounds = (3.0, 2) if quick else (8.0, 4)
    one, other = Reporter(user(system).device()), Reporter(user(system).device())
    alone: list[float] = []
    beside: list[float] = []
    large: list[float] = []
    list(_singles(one, 1.0))
    for _ in range(rounds):
        alone += _singles(one, seconds)
        over = threading.Event()
        thread = threading.Thread(target=_meanwhile, args=(other, large, over))
        thread.start()
        beside += _singles(one, seconds)
        over.set()
        thread.join()
    return [_row("alone", alone, alone), _row("beside", beside, alone, f"{statistics.median(large) * 1000:.0f}")]


def _row(what: str, taken: list[float], alone: list[float], large: str = "") -> dict[str, Any]:
    p50, p99 = (_quantile(taken, share) for share in (0.5, 0.99))
    return {
        "section": SECTION,
        "single reports": what,
        "count": f"{len(taken):,}",
        "p50_ms": f"{p50:.1f}",
        "p99_ms": f"{p99:.1f}",
        "most_ms": f"{max(taken):.1f}",
        "p50, times": f"{p50 / _quantile(alone, 0.5):.2f}",
        "p99, times": f"{p99 / _quantile(alone, 0.99):.2f}",
        "a report of 1,000, ms": large,
        "must": "not noticeably more",
    }


def _quantile(taken: list[float], share: float) -> float:
    return sorted(taken)[int(len(taken) * share)]
