"""What a server said last, bounded, and who listens to it; nothing of ours is imported here."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

LONGEST = 16 * 1024
#: Bytes of each of the two files.
KEPT = 1024 * 1024
_RING = 256 * 1024
_CHUNK = 64 * 1024
_HEADER = 80
_LAST = 20
#: What a server may say in a moment; more than anybody reads is dropped, as its console would be of no use otherwise.
_MOMENT_S, _MOMENT_LINES, _MOMENT_BYTES = 0.1, 2000, 1024 * 1024


class Console:
    """Lines by their numbers: the latest in memory, more of them in two files, all of it bounded."""

    def __init__(self, whose: str) -> None:
        self.lines: dict[int, bytes] = {}
        self.first = self.next = 1
        self._whose = whose
        self._size = 0
        self._written = 0  # with the first line of the file counted as the longest it may be
        self._partial = bytearray()
        self._new: list[bytes] = []
        self._moment = 0.0
        self._said_lines = self._said_bytes = self._dropped = 0
        self._lost = b""
        self._file = self._open()

    def feed(self, data: bytes) -> None:
        self._turn()
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            if self._said_lines >= _MOMENT_LINES or self._said_bytes >= _MOMENT_BYTES:
                last = data.rfind(b"\n")
                self._lost = data[begin:last]
                self._dropped += data.count(b"\n", begin, last + 1)
                self._partial.clear()
                begin = last + 1
                break
            self._extend(data[begin:end])
            self._complete()
            begin = end + 1
        self._extend(data[begin:])
        self._write()

    def finish(self) -> None:
        """What it said last is why it ended: it is kept however much it was, and need not end in a newline."""
        last = self._lost.split(b"\n")[-_LAST:] if self._dropped else []
        self._dropped -= len(last)
        self._moment = 0.0
        self._turn()
        for line in last:
            self._add(line.rstrip(b"\r")[:LONGEST])
        if self._partial:
            self._complete()
        self._write()

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._moment >= _MOMENT_S:
            self._moment, self._said_lines, self._said_bytes = now, 0, 0
            if self._dropped:
                self._add(b"[%d lines were dropped: too many at once]" % self._dropped)
                self._dropped = 0

    def _extend(self, piece: bytes) -> None:
        self._partial += piece[: max(0, LONGEST - len(self._partial))]

    def _complete(self) -> None:
        self._said_lines += 1
        self._said_bytes += len(self._partial)
        self._add(bytes(self._partial).rstrip(b"\r"))
        self._partial.clear()

    def _add(self, line: bytes) -> None:
        self.lines[self.next] = line
        self.next += 1
        self._size += len(line)
        self._new.append(line)
        while self._size > _RING or len(self.lines) > _RING // 32:
            self._size -= len(self.lines.pop(self.first))
            self.first += 1

    def _write(self) -> None:
        if not self._new:
            return
        text = b"\n".join(self._new) + b"\n"
        if self._written + len(text) > KEPT:
            with suppress(OSError):
                os.replace("console", "console.1")
            self._file = self._open(self._file)
        self._new.clear()
        self._written += len(text)
        with suppress(OSError):  # a full disk costs lines, not the server
            os.write(self._file, text)

    def _open(self, before: int = -1) -> int:
        if before >= 0:
            os.close(before)
        file = os.open("console", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with suppress(OSError):
            os.write(file, f"{self.next - len(self._new)} {self._whose}\n".encode())
        self._written = _HEADER
        return file


class Client:
    """A connection: what of it was not understood yet, what it was not told yet, and the next line it wants."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.next: int | None = None

    def take(self, console: Console) -> None:
        """Lines for it, as many as go in one piece; it is never ahead of what it can take, so nothing piles up."""
        if self.next is None or self.outbox:
            return
        self.next = max(self.next, console.first)
        while self.next < console.next and len(self.outbox) < _CHUNK:
            self.outbox += b"%d %s\n" % (self.next, console.lines[self.next])
            self.next += 1

    def waits(self, console: Console) -> bool:
        return bool(self.outbox) or (self.next is not None and self.next < console.next)
