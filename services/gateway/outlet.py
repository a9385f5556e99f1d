"""One connection whose answer goes on: what is left of it once its request is understood, which is very little."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

_END = b"0\r\n\r\n"


class Stream(Protocol):
    """Whoever writes to an outlet, and is told what becomes of it."""

    def opened(self, outlet: Outlet) -> None:
        """The head of the answer was sent."""

    def drained(self) -> None:
        """There is room again."""

    def gone(self) -> None:
        """Nothing arrives any more."""

    def stop(self) -> None:
        """The server ends: say what is to be said, and end."""


class Outlet(asyncio.Protocol):
    """Takes the place of the connection in front of its transport. What the client still sends is read, so that its
    end is noticed, and dropped."""

    __slots__ = ("_chunked", "_closing_since", "_leave", "_stalled_since", "_timeout_s", "full", "stream", "transport")

    def __init__(
        self,
        transport: Any,
        stream: Stream,
        leave: Callable[[Outlet], None],
        *,
        chunked: bool,
        full: bool,
        timeout_s: float,
    ) -> None:
        """`leave` is called once, at the end; `full` says that what was written before has yet to leave."""
        self.transport, self.stream, self.full = transport, stream, full
        self._leave, self._chunked, self._timeout_s = leave, chunked, timeout_s
        self._stalled_since: float | None = None
        self._closing_since: float | None = None

    @property
    def open(self) -> bool:
        return not self.transport.is_closing()

    def push(self, body: bytes) -> bool:
        """Sends a piece of the answer, which must not be empty; whether there is room for more."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)
        return not self.full

    def finish(self) -> None:
        """Ends the answer as one that is whole, and the connection with it."""
        if self._chunked and self.open:
            self.transport.write(_END)
        self.transport.close()

    # what the transport says

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._stalled_since = None
        self.stream.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave(self)
        self.stream.gone()

    # what the server says

    def check(self, now: float) -> None:
        """Ends it when its client has not read for too long."""
        if not self.open:
            self._closing_since = self._closing_since or now
            late = now - self._closing_since
        elif self.full:
            self._stalled_since = self._stalled_since or now
            late = now - self._stalled_since
        else:
            return
        if late > self._timeout_s:
            self.transport.abort()

    def shutdown(self) -> None:
        self.stream.stop()

    def cut(self) -> None:
        """Ends it now."""
        self.transport.abort()
