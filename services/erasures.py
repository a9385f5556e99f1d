"""The role that completes erasures: those that were interrupted, and those that a restored log has to be told of."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from services.erasing import TRANSIENT, Eraser

if TYPE_CHECKING:
    from services.main import Process

log = structlog.get_logger("erasing")

_LOOK_S = 20.0


async def run(process: Process) -> None:
    """The role. Any number may run: each step may be taken twice."""
    eraser = Eraser(process.store, process.settings.directory, process.contents, process.governor)
    while True:
        try:
            for entry in await eraser.pending():
                await eraser.erase(entry.tenant, entry.subject)
        except TRANSIENT as error:
            log.warning("erasures are completed later", reason=type(error).__name__)
        await asyncio.sleep(_LOOK_S)
