"""NATS' protocol as it comes in: what a tap asks for is handed over as it is, without a task and a queue for each
message and without a look at its headers."""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol import parser

#: Given the reply subject, the headers with their status line, and the data of a message with headers.
Tap = Callable[[str, bytes, bytes], None]


class Parser(parser.Parser):
    """nats-py's parser, fed frame by frame; the frames of tapped subscriptions never reach it."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.taps: dict[int, Tap] = {}
        self._rest = b""

    def reset(self) -> None:
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        data = self._rest + data if self._rest else bytes(data)
        at, size = 0, len(data)
        while at < size:
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            end = line + 2
            words = data[at:line].split()
            if words and words[0] in (b"HMSG", b"MSG") and words[-1].isdigit():
                end += int(words[-1]) + 2
                if end > size:
                    break
            if not self._tapped(words, data, line + 2):
                await super().parse(data[at:end])
            at = end
        self._rest = data[at:]
        if len(self._rest) > parser.MAX_CONTROL_LINE_SIZE and b"\r\n" not in self._rest:
            raise ProtocolError("nats: unknown protocol")

    def _tapped(self, words: list[bytes], data: bytes, start: int) -> bool:
        if len(words) < 5 or words[0] != b"HMSG" or (tap := self.taps.get(int(words[2]))) is None:
            return False
        reply = words[3].decode() if len(words) == 6 else ""
        head, total = int(words[-2]), int(words[-1])
        tap(reply, data[start : start + head], data[start + head : start + total])
        return True
