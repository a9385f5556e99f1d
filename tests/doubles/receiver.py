"""A receiver of webhooks in a process of its own, over real sockets: well-behaved or evil, and it remembers everything.

The first part of a path says how it behaves, `PUT /control/NAME` with a mode as body changes that for paths that end in
NAME. Every request is a line of its ledger, written before it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import uvloop

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass(frozen=True)
class Got:
    """A request: when it was read whole (seconds since 1970), where, what, and the status it was answered with; 0 for
    none."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A server while it is open. `brief` leaves headers and bodies out of the ledger but for the id; `mute` keeps
    no ledger."""

    def __init__(self, directory: Path, *, brief: bool = False, mute: bool = False, port: int = 0) -> None:
        self._file = directory / "received.jsonl"
        options = [*(["brief"] * brief), *(["mute"] * mute)]
        command = [sys.executable, "-m", "tests.doubles.receiver", str(port), str(self._file), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._read = 0
        self._got: list[Got] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def become(self, name: str, mode: str) -> None:
        """From now on paths that end so behave like that."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("PUT", f"/control/{name}", mode)
        assert connection.getresponse().status == 200
        connection.close()

    def got(self, path: str | None = None) -> list[Got]:
        """What was received, at one path or at all."""
        if self._file.exists():
            with self._file.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    at, where, headers, body, status = json.loads(line)
                    self._got.append(Got(at, where, headers, body.encode(), status))
        return [one for one in self._got if path is None or one.path == f"/{path}"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def receiver(directory: Path, *, brief: bool = False) -> Iterator[Receiver]:
    made = Receiver(directory, brief=brief)
    try:
        yield made
    finally:
        made.close()


class _Server:
    def __init__(self, ledger: TextIO, brief: bool, mute: bool) -> None:
        self.ledger, self.brief, self.mute = ledger, brief, mute
        self.modes: dict[str, str] = {}
        self.seen: dict[str, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def mode(self, path: str) -> list[str]:
        """The words of a path's mode, such as `slow`, `2`."""
        parts = path.strip("/").split("/")
        return self.modes.get(parts[-1], parts[0]).split("-")

    def note(self, path: str, headers: Mapping[str, str], body: bytes, status: int) -> None:
        if self.mute:
            return
        if self.brief:
            headers, body = {"webhook-id": headers.get("webhook-id", "")}, b""
        line = json.dumps((time.time(), path, headers, body.decode("utf-8", "replace"), status))
        self.ledger.write(line + "\n")
        self.ledger.flush()


class _Connection(asyncio.Protocol):
    def __init__(self, server: _Server) -> None:
        self._server = server
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            whole = end + 4 + int(headers.get("content-length", 0))
            if len(self._buffer) < whole:
                return
            body, self._buffer = self._buffer[end + 4 : whole], self._buffer[whole:]
            self._answer(lines[0].split(" ")[1], headers, body)

    def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        server, transport = self._server, self._transport
        assert transport is not None
        if path.startswith("/control/"):
            server.modes[path.removeprefix("/control/")] = body.decode()
            transport.write(_OK)
            return
        words = server.mode(path)
        if words == ["ok"]:
            server.note(path, headers, body, 200)
            transport.write(_OK)
            return
        task = asyncio.get_running_loop().create_task(self._misbehave(words, path, headers, body))
        server.tasks.add(task)
        task.add_done_callback(server.tasks.discard)

    async def _misbehave(self, words: list[str], path: str, headers: Mapping[str, str], body: bytes) -> None:
        transport, server = self._transport, self._server
        assert transport is not None
        mode, number = words[0], int(words[1]) if len(words) > 1 and words[1].isdigit() else 1
        known = f"{path} {headers.get('webhook-id')}"
        server.seen[known] = tries = server.seen.get(known, 0) + 1
        head = b""
        match mode:
            case "slow":
                await asyncio.sleep(number)
                status, head = 200, _OK
            case "fails":  # so often, each message
                status = 500 if tries <= number else 200
                head = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n" if status == 500 else _OK
            case "status":
                status = number
                head = b"HTTP/1.1 %d Oh\r\nContent-Length: 0\r\n\r\n" % number
            case "redirect":
                status, location = 307, "/".join(words[1:]).replace("+", "/").encode()
                head = b"HTTP/1.1 307 Oh\r\nLocation: http://%b\r\nContent-Length: 0\r\n\r\n" % location
            case "busy":  # the first message once, with a wish to be left alone for so many seconds
                server.seen[path] = server.seen.get(path, 0) + 1
                status = 429 if server.seen[path] == 1 else 200
                head = b"HTTP/1.1 429 Oh\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n" % number
                head = head if status == 429 else _OK
            case _:
                status = 0
        server.note(path, headers, body, status)
        if head and not transport.is_closing():
            transport.write(head)
        elif not head:
            await self._evil(mode)

    async def _evil(self, mode: str) -> None:
        """Answers that come to no end."""
        transport = self._transport
        assert transport is not None
        if mode == "close":
            transport.close()
            return
        if mode == "dripping":
            text = b"HTTP/1.1 200 OK\r\n" + b"X-Drop: x\r\n" * 100_000
            for n in range(len(text)):
                if transport.is_closing():
                    return
                transport.write(text[n : n + 1])
                await asyncio.sleep(0.2)
        elif mode == "huge":
            transport.write(b"HTTP/1.1 200 OK\r\n")
            while not transport.is_closing():
                transport.write(b"X-Huge: " + b"x" * 8000 + b"\r\n")
                await asyncio.sleep(0)
        elif mode == "hugebody":
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
            while not transport.is_closing():
                transport.write(b"x" * 65536)
                await asyncio.sleep(0.001)
        # "silent": nothing


async def _serve(port: int, ledger: TextIO, brief: bool, mute: bool) -> None:
    server = _Server(ledger, brief, mute)
    listening = await asyncio.get_running_loop().create_server(lambda: _Connection(server), "127.0.0.1", port)
    print(listening.sockets[0].getsockname()[1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(1)


def main(arguments: list[str]) -> None:
    """PORT LEDGER [brief] [mute]"""
    with open(arguments[1], "a") as ledger:
        uvloop.run(_serve(int(arguments[0]), ledger, "brief" in arguments, "mute" in arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
