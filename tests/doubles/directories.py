"""Directory servers of the RAIDA network on loopback: real sockets, raw HTTP, and every way to behave badly."""

from __future__ import annotations

import asyncio
import csv
import functools
import io
import json
import random
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

PATHS = ("/service/users", "/service/qmail_servers", "/service/raida_servers")
HEADER = ("CustomSerialNumber", "FirstName", "LastName", "Description", "InboxFee", "Class", "Beacon")
CLASSES = ("bit", "byte", "kilo", "mega", "giga")
DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True)
class User:
    """One person as the directory knows it; `serial` in base 32."""

    serial: str
    first: str
    last: str
    description: str = "QMail"
    fee: str = "0.1"
    class_: str = "giga"
    beacon: str = "RAIDA11"

    @property
    def row(self) -> tuple[str, ...]:
        return self.serial, self.first, self.last, self.description, self.fee, self.class_, self.beacon


@dataclass(frozen=True)
class Content:
    """What a directory publishes; `qmail` are its servers' JSON objects, `raida` its lines."""

    users: tuple[User, ...] = ()
    qmail: tuple[Mapping[str, Any], ...] = ()
    raida: tuple[str, ...] = ()
    wrapped: bool = False

    def bodies(self) -> dict[str, bytes]:
        """path -> body."""
        text = io.StringIO()
        csv.writer(text).writerows([HEADER, *(user.row for user in self.users)])
        servers: Any = {"servers": list(self.qmail)} if self.wrapped else list(self.qmail)
        lines = "".join(f"{line}\n" for line in self.raida)
        return dict(zip(PATHS, (text.getvalue().encode(), json.dumps(servers).encode(), lines.encode()), strict=True))


def serial(number: int) -> str:
    """A number in the network's base 32."""
    text = ""
    while number or not text:
        number, digit = divmod(number, 32)
        text = DIGITS[digit] + text
    return text


def content(pick: random.Random, users: int = 40, servers: int = 25, ports: Sequence[int] = ()) -> Content:
    """A plausible network. With `ports` the QMail servers are on loopback, where those are listened on."""
    numbers = pick.sample(range(1, 32**4), users)
    people = tuple(
        User(
            serial=serial(number),
            first=pick.choice(("Ada", "Zoë", "Sean", "Anne, the first", 'Bo "b"')),
            last=f"Number{number}",
            description=pick.choice(("", "QMail", "über, alles", "line")),
            fee=pick.choice(("", "0", "0.5", "12", "1e2")),
            class_=pick.choice((*CLASSES, "Giga", "unheard-of")),
            beacon=f"RAIDA{pick.randrange(25)}",
        )
        for number in numbers
    )
    qmail = tuple(
        {
            "server_id": f"RAIDA{index}",
            "ip_address": "127.0.0.1" if ports else f"10.1.{pick.randrange(256)}.{index}",
            "port": ports[index % len(ports)] if ports else 50_000 + index,
            "server_index": index,
            "cost_per_mb": pick.choice((1, 0.5, 2.25)),
            "percent_uptime": pick.randrange(101),
            "region": pick.choice(("EU", "US", None)),
            "description": f"server {index}",
        }
        for index in range(servers)
    )
    raida = tuple(f"10.0.{pick.randrange(256)}.{index}" + pick.choice(("", ":443")) for index in range(25))
    return Content(people, qmail, raida)


def lie(pick: random.Random, truth: Content, much: float = 0.3) -> Content:
    """Another story: people, servers and addresses changed, left out and made up."""
    users = [_other(pick, user) if pick.random() < much else user for user in truth.users if pick.random() > much / 3]
    users += [User(serial(pick.randrange(32**4, 32**5)), "Eve", "Nobody", fee=str(pick.random()))]
    qmail = [
        {**one, "ip_address": f"6.6.6.{pick.randrange(256)}", "cost_per_mb": pick.random()}
        if pick.random() < much
        else one
        for one in truth.qmail
        if pick.random() > much / 3
    ]
    raida = [f"6.6.7.{pick.randrange(256)}" if pick.random() < much else line for line in truth.raida]
    return replace(truth, users=tuple(users), qmail=tuple(qmail), raida=tuple(raida))


def _other(pick: random.Random, user: User) -> User:
    return pick.choice(
        (
            replace(user, fee=f"{pick.random():.6f}"),
            replace(user, last=f"Liar{pick.randrange(10**6)}"),
            replace(user, class_=pick.choice(CLASSES), beacon=f"RAIDA{pick.randrange(10**6)}"),
        )
    )


GARBAGE: Sequence[bytes] = (
    b"\xff\xfe\x00garbage\x80",
    b"<html><body>\n<h1>It works!</h1>\n<p>welcome</p></body></html>\n",
    b'{"servers": 7}',
    b'{"servers": [' + b"[" * 10_000,
    b"A,B\n" * 30,
    b"\0" * 1000,
)

Behave = Callable[["Directory", str, asyncio.StreamWriter], Awaitable[None]]


def _head(status: str, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *fields, "", ""]).encode()


async def ok(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    body = directory.bodies.get(path)
    if body is None:
        out.write(_head("404 Not Found", "Content-Length: 0"))
        return
    out.write(_head("200 OK", f"Content-Length: {len(body)}", "Content-Type: text/plain") + body)


async def broken(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    out.write(_head("500 Internal Server Error", "Content-Length: 4") + b"oops")


async def slow(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    """Answers rightly, after everybody's patience."""
    await directory.forever()


async def dripping(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    """A byte at a time, never silent for long."""
    out.write(_head("200 OK", "Content-Length: 1000000"))
    while not directory.closing.is_set():
        out.write(b"C")
        await out.drain()
        await asyncio.sleep(0.05)


async def cut(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    """Promises more than it sends."""
    body = directory.bodies[path]
    out.write(_head("200 OK", f"Content-Length: {len(body) + 100}") + body)


async def garbage(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    body = GARBAGE[(directory.number + PATHS.index(path)) % len(GARBAGE)]
    out.write(_head("200 OK", f"Content-Length: {len(body)}") + body)


async def noise(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    """Does not speak HTTP."""
    out.write(b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(range(256)))


@functools.cache
def _ten_thousand_rows() -> bytes:
    rows = "".join(f"{serial(number)},A,B,C,0,bit,RAIDA1\n" for number in range(10_000)).encode()
    return f"{len(rows):x}\r\n".encode() + rows + b"\r\n"


async def huge(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    """Ten million rows."""
    out.write(_head("200 OK", "Transfer-Encoding: chunked"))
    for _ in range(1000):
        out.write(_ten_thousand_rows())
        await out.drain()
    out.write(b"0\r\n\r\n")


async def redirecting(directory: Directory, path: str, out: asyncio.StreamWriter) -> None:
    """To itself, where the same would be served, but nobody promised that."""
    out.write(_head("302 Found", f"Location: {directory.elsewhere}{path}", "Content-Length: 0"))


BEHAVIOURS: Mapping[str, Behave] = {
    each.__name__: each for each in (ok, broken, slow, dripping, cut, garbage, noise, huge, redirecting)
}


@dataclass
class Directory:
    """One of them. `bodies` is what it serves; `behaviour` is of BEHAVIOURS, or `down`; `asked` are the requests."""

    number: int
    port: int
    bodies: dict[str, bytes]
    behaviour: str = "ok"
    elsewhere: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def forever(self) -> None:
        await self.closing.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = request.split(" ")[1]
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
            self.asked.append((path, fields))
            await BEHAVIOURS[self.behaviour](self, path, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def listen(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)

    async def hush(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None


class Directories:
    """A number of them on a thread of their own, as a context manager."""

    def __init__(self, count: int, serves: Content) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        ports = _free_ports(count)
        self.all = [Directory(number, port, serves.bodies()) for number, port in enumerate(ports)]
        for one in self.all:
            one.elsewhere = self.all[(one.number + 1) % count].url

    @property
    def urls(self) -> list[str]:
        return [one.url for one in self.all]

    def __enter__(self) -> Self:
        self._thread.start()
        for one in self.all:
            self._run(one.listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        for one in self.all:
            one.closing.set()
            await one.hush()
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        if others:
            await asyncio.wait(others, timeout=5)

    def _run(self, what: Any) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(what, self._loop)
        done.result(10)

    def serve(self, serves: Content, *numbers: int) -> None:
        """All of them, or these, publish this from now on."""
        for one in self.all:
            if not numbers or one.number in numbers:
                one.bodies = serves.bodies()

    def become(self, behaviour: str, *numbers: int) -> None:
        """All of them, or these, behave like this from now on."""
        for one in self.all:
            if numbers and one.number not in numbers:
                continue
            one.behaviour = behaviour
            if behaviour == "down":
                self._run(one.hush())
            elif one.server is None:
                self._run(one.listen())

    def asked(self) -> int:
        return sum(len(one.asked) for one in self.all)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is found, so that they differ."""
    held = []
    try:
        for _ in range(count):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
            held.append(one)
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()
