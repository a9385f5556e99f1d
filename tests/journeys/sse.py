"""A client of server-sent events, by the letter of the standard, for the journeys."""

from __future__ import annotations

import contextlib
import io
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.journeys.system import ADMIN, System


@dataclass(frozen=True)
class Event:
    """An event as it is dispatched: `id` is the last that was seen up to it."""

    id: str
    type: str
    data: Any


class Stream:
    """An open answer; iterate it until the server ends it. `last` is the last id, `whole` whether it was ended well
    rather than cut off."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.status = int(file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while line := file.readline().decode().strip():
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        self.last = ""
        self.beats = 0
        self.whole = False
        self._lines = self._read_lines()

    def __iter__(self) -> Iterator[Event]:
        type, data = "message", ""
        for line in self._lines:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "" if not line:
                    if data:
                        yield Event(self.last, type, json.loads(data))
                    type, data = "message", ""
                case "":
                    self.beats += 1
                case "id":
                    self.last = value
                case "event":
                    type = value
                case "data":
                    data += value
                case _:
                    assert name == "retry", line

    def _read_lines(self) -> Iterator[str]:
        rest = b""
        for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode()

    def _chunks(self) -> Iterator[bytes]:
        with contextlib.suppress(ConnectionError):
            while size := self._file.readline():
                chunk = self._file.read(int(size, 16))
                self._file.readline()
                if not chunk:
                    self.whole = int(size, 16) == 0
                    return
                yield chunk

    def body(self) -> Any:
        """What an answer that is no stream says."""
        return json.loads(self._file.read(int(self.headers.get("content-length", 0))) or b"null")


@contextlib.contextmanager
def follow(
    system: System, path: str, *, last: str | None = None, token: str | None = ADMIN, timeout: float = 60
) -> Iterator[Stream]:
    """A stream from `path`, behind an event where `last` is its id."""
    address = urlsplit(system.ready["url"])
    lines = [f"GET {path} HTTP/1.1", f"Host: {address.netloc}", "Accept: text/event-stream"]
    lines.append(f"Undrift-Min-Position: {system.wrote}")
    if token is not None:
        lines.append(f"Authorization: Bearer {system.ready['admin_token'] if token == ADMIN else token}")
    if last is not None:
        lines.append(f"Last-Event-ID: {last}")
    with socket.create_connection((address.hostname, address.port), timeout) as wire, wire.makefile("rb") as file:
        wire.sendall("\r\n".join([*lines, "", ""]).encode())
        yield Stream(file)
