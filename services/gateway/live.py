"""Everything in a gateway that goes on after its answer has begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.gateway.changes_live import ChangeFeed, Library
from services.gateway.consistency import Reads
from services.gateway.cursors import Cursors
from services.gateway.feeds_live import EventFeed
from services.gateway.jobs_live import JobFeed
from services.gateway.streams import Streams
from services.main import Process


class Feeds:
    """The streams of a gateway, and what feeds them."""

    def __init__(self, process: Process, reads: Reads, is_revoked: Callable[[str], bool]) -> None:
        settings = process.settings.gateway
        self.streams = Streams(process.stopping, is_revoked, settings.heartbeat_s)
        self.jobs = JobFeed(process, reads, settings.live_poll_s)
        self.events = EventFeed(process.store, process.tail, process.epoch)
        cursors = Cursors(process.master)

        def mark(library: Library, position: int) -> str:
            return cursors.make(*library, process.epoch, position)

        self.changes = ChangeFeed(process.db, process.tail, reads, mark)

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.streams.run())
            group.create_task(self.jobs.run())
            group.create_task(self.events.run())
            group.create_task(self.changes.run())
