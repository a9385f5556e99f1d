"""What a server says, on its way to whoever listens: in batches, and never more than listeners can take."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from domain import errors
from infra import subjects
from infra.bus import Bus
from services.servers import CONSOLE, Heard

_BATCH_S = 0.1
#: Of one batch.
_MOST_LINES, _MOST_BYTES = 100, 64 * 1024
_TOO_MUCH = "Server is outputting console data too quickly -- throttling..."

_encode = msgspec.json.Encoder().encode


class Console:
    """Of one server. Nothing waits for NATS: what it does not take is not heard."""

    def __init__(self, bus: Bus, uuid: str) -> None:
        self._bus, self._subject = bus, subjects.server(uuid, CONSOLE)
        self._waiting: list[tuple[str, str]] = []
        self._bytes = 0
        self._throttled = False
        self._sending: asyncio.Task[None] | None = None

    def line(self, raw: bytes) -> None:
        """Of its output."""
        if len(self._waiting) < _MOST_LINES and self._bytes < _MOST_BYTES:
            self._put("console output", raw.decode(errors="replace"))
        elif not self._throttled:
            self._throttled = True
            self._put("daemon message", _TOO_MUCH)

    def say(self, text: str) -> None:
        """Of ours."""
        self._put("daemon message", text)

    def _put(self, event: str, text: str) -> None:
        self._waiting.append((event, text))
        self._bytes += len(text)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Until a batch was empty."""
        try:
            await asyncio.sleep(0)  # what comes in one go is heard at once
            while self._waiting:
                said, self._waiting, self._bytes = self._waiting, [], 0
                full, self._throttled = self._throttled, False
                with contextlib.suppress(errors.Unavailable):
                    await self._bus.publish(self._subject, _encode(Heard(said)))
                await asyncio.sleep(_BATCH_S)
                self._throttled = full and self._throttled
        finally:
            self._sending = None
