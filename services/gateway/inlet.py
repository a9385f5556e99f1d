"""The body of one request, straight from the transport into the buffers of an intake."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from services.gateway.bodies import Disconnected
from services.gateway.intake import Intake

_DROPPED = memoryview(bytearray(64 * 1024))
"""Where bytes go that nobody wants; all write there at once."""


class Behind(Protocol):
    """The connection whose place is taken meanwhile."""

    flow: Any
    transport: Any

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def body_came(self, count: int) -> None: ...

    def body_ended(self) -> None: ...


class Inlet(asyncio.BufferedProtocol):
    """Stands in front of the transport until the body has come, or was dropped, to its end."""

    def __init__(self, behind: Behind, intake: Intake, left: int) -> None:
        self._behind, self._intake, self._left = behind, intake, left
        self._wanted = True
        intake.thirsty = behind.flow.resume_reading
        self._stand_in(self)
        if intake.room is None:
            behind.flow.pause_reading()

    def _stand_in(self, protocol: Any) -> None:
        """A transport may ask for the way its protocol reads only when it begins to."""
        flow = self._behind.flow
        flow.pause_reading()
        self._behind.transport.set_protocol(protocol)
        flow.resume_reading()

    def drop(self) -> None:
        """What still comes of the body is not wanted."""
        if self._wanted:
            self._wanted = False
            self._behind.flow.resume_reading()

    def leave(self) -> None:
        """The request ends without the rest of its body."""
        self._stand_in(self._behind)
        self._intake.broke_off(Disconnected())
        self._wanted = False

    # what the transport says

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._intake.room if self._wanted else _DROPPED
        assert room is not None
        return room if len(room) <= self._left else room[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        self._behind.body_came(nbytes)
        if self._wanted:
            self._intake.came(nbytes)
        if not self._left:
            self._end()
        elif self._wanted and self._intake.room is None:
            self._behind.flow.pause_reading()

    def _end(self) -> None:
        self._stand_in(self._behind)
        self._behind.body_ended()
        if self._wanted:
            self._intake.end()

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._intake.broke_off(Disconnected())
        self._behind.connection_lost(exc)
