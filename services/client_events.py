"""Following a stream of server-sent events from the command line: what is cut off goes on behind the last event."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from services.client import Client, Unreachable

#: Longer than a heartbeat of the server.
_SILENCE_S = 60.0
_PAUSE_S = 0.2
_BUSY = (429, 503)


@dataclass(frozen=True)
class Event:
    type: str
    data: Any


def follow(client: Client, path: str, *, patience_s: float = 30.0) -> Iterator[Event]:
    """The events of a stream, up to one of type `end`; none where it is answered with anything but a stream.

    Raises Unreachable; an instance that has answered may be away for `patience_s`.
    """
    last: str | None = None
    deadline = time.monotonic()
    while True:
        headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
        try:
            with client.stream(path, headers, timeout_s=_SILENCE_S) as response:
                deadline = time.monotonic() + patience_s
                if response.status != 200 and response.status not in _BUSY:
                    return
                for event, id in _parsed(response) if response.status == 200 else ():
                    last = id or last
                    deadline = time.monotonic() + patience_s
                    yield event
                    if event.type == "end":
                        return
        except Unreachable:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)


def _parsed(lines: Iterable[bytes]) -> Iterator[tuple[Event, str]]:
    type, data, id = "message", "", ""
    for line in lines:
        name, _, value = line.decode().rstrip("\n").partition(":")
        value = value.removeprefix(" ")
        if line == b"\n":
            if data:
                yield Event(type, json.loads(data)), id
            type, data = "message", ""
        elif name == "event":
            type = value
        elif name == "data":
            data += value
        elif name == "id":
            id = value
