"""What the couriers of all endpoints share: who may begin, how many are under way, and where outcomes go."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine

from infra import config, egress
from infra.vault import Vault
from services.notifying.ledger import Ledger
from services.notifying.letters import Letters
from services.notifying.rows import Key, Own


class Office:
    """`leads` says whether this process still is the one that delivers; `disable` has an endpoint disabled in the
    log."""

    def __init__(
        self,
        settings: config.Webhooks,
        letters: Letters,
        ledger: Ledger,
        vault: Vault,
        reading: Own,
        leads: Callable[[], bool],
        disable: Callable[[Key, str], None],
        retry_s: float,
        resolver: egress.Resolve = egress.system_resolver,
    ) -> None:
        self.settings, self.letters, self.ledger, self.vault = settings, letters, ledger, vault
        self.reading, self.disable, self.resolver = reading, disable, resolver
        self.retry_s = retry_s
        self.tls = ssl.create_default_context()
        self.in_flight = 0
        self._leads = leads
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> bool:
        """Whether anything new may begin."""
        return not self._closed and not self.ledger.full and self._leads()

    def room(self, own: int) -> bool:
        """Whether one more may be under way for an endpoint that has `own`: the first one always may, so that those who
        are slow leave room for everybody."""
        if own and self.in_flight >= self.settings.concurrency:
            return False
        self.in_flight += 1
        return True

    def left(self) -> None:
        self.in_flight -= 1

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, patience_s: float) -> None:
        """Nothing new begins; what is under way has so long to end."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_s)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
