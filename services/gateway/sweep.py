"""Uploads that nothing was heard of for long are dropped, with their bytes."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from domain import errors, messages, uploads
from infra.db import CONNECTION_LOST
from infra.uploads import Uploads
from services.main import Process

log = structlog.get_logger("gateway")

_TRANSIENT = (*CONNECTION_LOST, errors.Unavailable, errors.Conflict)
_AT_ONCE = 100


async def run(process: Process) -> None:
    """Serves until cancelled. Any number of gateways may: an upload expires once."""
    while True:
        await asyncio.sleep(process.settings.library.sweep_s)
        try:
            while await sweep(process) == _AT_ONCE:
                pass
        except _TRANSIENT as error:
            log.warning("uploads are swept later", reason=type(error).__name__)


async def sweep(process: Process) -> int:
    """Drops the longest forgotten uploads; answers how many."""
    rows = await process.db.fetch(
        "select id, tenant, owner from undrift.uploads where last_activity < clock_timestamp() - $1::interval"
        " order by last_activity limit $2",
        timedelta(hours=process.settings.library.upload_hours),
        _AT_ONCE,
    )
    files = Uploads(process.settings.directory / "uploads")
    for row in rows:
        metadata = messages.Metadata(actor="system:gateway", owner=row["owner"], subject=row["owner"])
        try:
            await process.store.execute(uploads, row["id"], uploads.Expire(), tenant=row["tenant"], metadata=metadata)
        except errors.NotFound:  # its opening was never recorded
            log.info("an upload without a beginning is dropped", upload=row["id"])
        await asyncio.to_thread(files.remove, row["id"])
        await process.db.execute("delete from undrift.uploads where id = $1", row["id"])
    return len(rows)
