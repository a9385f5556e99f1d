"""A container's console out of its log, and the place in it up to which lines were given.

The log is asked for with timestamps: after an interruption it is asked again from the last one on, and what was given
of that very instant is left out, so that no line is lost and none comes twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from msgspec import Struct

#: A longer line comes in pieces, as the engine itself cuts it.
LINE = 16 * 1024

_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
_STAMP_MAX = 40
#: podman puts another before a line's end that was written by itself.
_LAST_STAMP = re.compile(_STAMP.pattern + rb"\Z")


class Place(Struct, frozen=True):
    """`at` in nanoseconds since 1970; `lines` of that instant were given."""

    at: int = 0
    lines: int = 0

    @property
    def since(self) -> str:
        """As the engine is asked for what follows: seconds, with nanoseconds."""
        return f"{self.at // 10**9}.{self.at % 10**9:09d}" if self.at else "0"

    def after(self, at: int) -> Place:
        return Place(at, self.lines + 1) if at == self.at else Place(at, 1)


class Following:
    """Bytes of a log into lines, from a place on; `place` moves with them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._from: Place | None = place if place.at else None
        self._repeated = 0
        self._buffer = bytearray()
        self._at = place.at
        self._fresh, self._cut = True, False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while (line := self._next()) is not None:
            if self._is_new():
                self.place = self.place.after(self._at)
                yield line

    def rest(self) -> Iterator[bytes]:
        """At the end of a container: a last line without its end."""
        if self._buffer:
            yield from self.feed(b"\n")

    def _next(self) -> bytes | None:
        """The next whole line, or piece of one that is too long."""
        while True:
            if self._fresh and self._stamp():
                return None
            end = self._buffer.find(b"\n", 0, LINE + 2)
            if end < 0 and len(self._buffer) < LINE + 2:
                return None
            cut, self._cut, self._fresh = self._cut, end < 0, True
            size = LINE if end < 0 else end
            line = bytes(self._buffer[:size])
            del self._buffer[: size if end < 0 else size + 1]
            if end >= 0:
                line = _LAST_STAMP.sub(b"", line.removesuffix(b"\r"))
            if line or not cut:  # what follows a piece may be nothing but the line's end
                return line

    def _stamp(self) -> bool:
        """Takes the timestamp off; whether more must come first. After a piece of a line there may be none."""
        match = _STAMP.match(self._buffer)
        if match is None:
            if len(self._buffer) < _STAMP_MAX and b"\n" not in self._buffer:
                return True
        else:
            self._at = _nanoseconds(match)
            del self._buffer[: match.end()]
        self._fresh = False
        return False

    def _is_new(self) -> bool:
        if self._from is None:
            return True
        if self._at > self._from.at:
            self._from = None
            return True
        if self._at == self._from.at:
            self._repeated += 1
            return self._repeated > self._from.lines
        return False


def _nanoseconds(match: re.Match[bytes]) -> int:
    zone = match[3].decode().replace("Z", "+00:00")
    seconds = int(datetime.fromisoformat(match[1].decode() + zone).timestamp())
    return seconds * 10**9 + int((match[2] or b"0").ljust(9, b"0"))
