"""What people did to files, told to the Panel in batches; nobody waits for that."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog

from domain import errors
from infra.panel import Activity, Panel
from services.sftp.rooms import Session

log = structlog.get_logger("sftp")

_PAUSE_S, _RETRY_S, _END_S = 1.0, 5.0, 3.0
#: What waits for the Panel at most, how much of it is told at once, how many files in one activity, and of all files
#: the names' characters.
_MOST, _BATCH, _FILES, _CHARACTERS = 20_000, 100, 100, 500_000


class _Done(NamedTuple):
    server: str
    user: str
    address: str
    event: str
    minute: int
    at: float
    file: str | tuple[str, str]


class Reporter:
    """The oldest is forgotten when the Panel is away for long."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._waiting: deque[_Done] = deque(maxlen=_MOST)
        self._forgotten = 0
        self._batch: list[Activity] = []

    def __call__(self, session: Session, event: str, *files: str | tuple[str, str]) -> None:
        now = time.time()
        for file in files:
            self._forgotten += len(self._waiting) == _MOST
            who = session.login
            self._waiting.append(_Done(who.server, who.user, session.address, event, int(now // 60), now, file))

    async def run(self) -> None:
        """Until cancelled; then what waits is told once more."""
        try:
            while True:
                await asyncio.sleep(_PAUSE_S)
                while self._next():
                    await self._tell()
        finally:
            await self._last()

    async def _last(self) -> None:
        try:
            async with asyncio.timeout(_END_S):
                while self._next():
                    await self._panel.report(self._batch)
                    self._batch = []
        except (errors.Error, TimeoutError) as error:
            reason = error.message if isinstance(error, errors.Error) else "it did not answer in time"
            log.warning("the Panel was not told of what was done over SFTP", reason=reason)

    async def _tell(self) -> None:
        while True:
            try:
                await self._panel.report(self._batch)
            except (errors.NotFound, errors.RemoteRefused) as error:
                reason, lost = error.message, len(self._batch)
                log.warning("the Panel does not take what was done over SFTP", reason=reason, activities=lost)
            except errors.RemoteUnavailable as error:
                log.warning("the Panel is told later of what was done over SFTP", reason=error.message)
                await asyncio.sleep(_RETRY_S)
                continue
            break
        self._batch = []
        if self._forgotten:
            log.warning("files that the Panel was never told of", files=self._forgotten)
            self._forgotten = 0

    def _next(self) -> bool:
        """Whether there is something to tell: what was begun, or a new batch."""
        self._batch = self._batch or self._taken()
        return bool(self._batch)

    def _taken(self) -> list[Activity]:
        """What somebody did to many files within a minute is one activity."""
        found: list[Activity] = []
        latest: dict[tuple[Any, ...], Activity] = {}
        characters = 0
        while self._waiting and len(found) < _BATCH and characters < _CHARACTERS:
            done = self._waiting.popleft()
            characters += sum(map(len, done.file)) if isinstance(done.file, tuple) else len(done.file)
            file = {"from": done.file[0], "to": done.file[1]} if isinstance(done.file, tuple) else done.file
            one = latest.get(done[:5])
            if one is None or len(one.metadata["files"]) == _FILES:
                one = latest[done[:5]] = _activity(done)
                found.append(one)
            one.metadata["files"].append(file)
        return found


def _activity(done: _Done) -> Activity:
    at = datetime.fromtimestamp(done.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Activity(
        server=done.server, event=done.event, metadata={"files": []}, ip=done.address, timestamp=at, user=done.user
    )
