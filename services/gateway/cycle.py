"""One request and its answer on a connection: uvicorn's, with whole answers in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from services.gateway.outlet import Stream

#: An answer's body, in the message that begins it: then it is the whole answer. A server that takes this says so
#: under this name in the scope's extensions.
WHOLE = "undrift.whole"
#: A stream, likewise: the rest of the answer is what it pushes, whenever that is, and the request's task may end.
STREAM = "undrift.stream"
#: A large body of known length, likewise: `divert` of what stands there has it go into an intake. With the cycle.
BODY = "undrift.body"
EXTENSIONS: dict[str, dict[object, object]] = {WHOLE: {}, STREAM: {}}


class Cycle(RequestResponseCycle):
    """Head and body of an answer that is whole leave in one write: every write costs a system call, and wakes the
    client once more."""

    hand_over: Callable[[Cycle, Stream], None]
    turn_aside: Callable[[Cycle, Any], Any]

    def divert(self, intake: Any) -> Any:
        """The rest of the body goes into an intake, by the inlet that is answered; None where it must be received."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        return self.turn_aside(self, intake)

    async def send(self, message: Any) -> None:
        body = message.get(WHOLE)
        if body is None:
            await (self._begin_stream(message) if STREAM in message else super().send(message))
        elif self.response_started or self.flow.write_paused or self.disconnected or not self.keep_alive:
            await super().send(message)
            await super().send({"type": "http.response.body", "body": body})
        else:
            self._write(message["status"], message["headers"], body)

    def _write(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        head = b"".join([b"%b: %b\r\n" % line for line in self.default_headers + headers])
        count = len(self.default_headers) + len(headers)
        if head.count(b"\n") != count or head.count(b"\r") != count:
            raise RuntimeError("a header holds the end of a line")
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head, body))
        self.message_event.set()
        self.on_response()

    async def _begin_stream(self, message: Any) -> None:
        if self.scope["http_version"] == "1.0":
            self.chunked_encoding = False  # the end of the connection is the end of the answer
        await super().send(message)
        if not self.disconnected and not self.transport.is_closing():
            self.response_complete = True
            self.hand_over(self, message[STREAM])
