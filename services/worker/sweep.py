"""Sweeps what has been in the trash for long enough."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from domain.plans.patterns import OWN_FOLDER
from infra import paths
from services import roots
from services.main import Process

log = structlog.get_logger("worker")

_DAY_S = 86_400
_EVERY_S = 3600


async def run(process: Process) -> None:
    """Once at the start and every hour; with `files.trash_days` at 0 the trash is kept for ever."""
    days = process.settings.files.trash_days
    if not days:
        await process.stopping.wait()
    while not process.stopping.is_set():
        folders = [Path(root) / os.fsdecode(OWN_FOLDER) / "trash" for root in roots.configured(process.settings)]
        for folder in (*folders, process.settings.directory / "trash"):
            for name in await asyncio.to_thread(sweep, folder, time.time() - days * _DAY_S):
                log.info("a generation of the trash was removed", job=name)
        await asyncio.sleep(_EVERY_S)


def sweep(trash: Path, before: float) -> list[str]:
    """Removes the generations that were made before a time (Unix, seconds); answers their names. Follows no links."""
    removed = []
    for name, made in _generations(trash):
        if made < before:
            shutil.rmtree(trash / name, ignore_errors=True)
            removed.append(name)
    return removed


def _generations(trash: Path) -> Iterator[tuple[str, float]]:
    with contextlib.suppress(OSError):
        folder = os.open(trash, paths.FOLDER)
        try:
            with os.scandir(folder) as entries:
                for entry in list(entries):
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False).st_mtime
        finally:
            os.close(folder)
