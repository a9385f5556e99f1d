"""Feeds, listeners, reports, uploads and downloads of a library, each beside a peer of the same run."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import library_feed, library_listeners, library_reports, library_transfers
from tests.journeys.libraries import user
from tests.journeys.system import System

SETTINGS = """
[limits]
family3 = 0
[gateway]
connections = 100000
"""


@contextlib.contextmanager
def instance() -> Iterator[System]:
    """A real `undrift up` on a free port, without limits on requests."""
    with tempfile.TemporaryDirectory(prefix="undrift-bench-") as directory:
        system = System(Path(directory), settings=SETTINGS)
        try:
            yield system.start()
        finally:
            system.stop()


def run(quick: bool) -> list[dict[str, Any]]:
    with instance() as system:
        device = user(system).device()
        rows = library_transfers.run(system, device, quick)
        rows += asyncio.run(library_listeners.run(system, device, quick))
        rows += library_reports.run(system, quick)
        return [*rows, *library_feed.run(system, quick)]
