"""A crowd that writes into the libraries of several people, and everybody who can follow a library's feed."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp

from domain import library, messages, tenants
from domain.library import Content, Place
from infra import secrets
from infra.db import Database
from infra.eventstore.mapper import Draft, LogNotification, Mapper
from infra.eventstore.recorder import Append, Write
from tests.journeys import libraries
from tests.journeys.libraries import Device, User
from tests.journeys.system import System

#: What a follower is told: where in the feed, which file, and what became of it.
Told = tuple[int, str, str]
TYPES = {
    "library.created": "created",
    "library.modified": "modified",
    "library.moved": "moved",
    "library.deleted": "deleted",
}
_KINDS = (library.Created, library.Modified, library.Moved, library.Deleted)
_DOWN = (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError, TimeoutError)


class Libraries:
    """People, and commands that write into their libraries: files with short lives, several to a command."""

    def __init__(self, system: System, people: int) -> None:
        self.users = [libraries.user(system) for _ in range(people)]
        self._master = secrets.load_master(system.directory)

    async def open(self, database: Database) -> None:
        keyring = secrets.Keyring(database, self._master)
        for user in self.users:
            await keyring.ensure(tenants.FIRST, user.id)
        self._mapper = Mapper({messages.topic(kind): kind for kind in _KINDS}, keyring=keyring)  # type: ignore[arg-type]

    def command(self) -> Append:
        return Append(tenants.FIRST, [self._file(random.choice(self.users)) for _ in range(random.randint(1, 3))])

    def _file(self, user: User) -> Write:
        id = str(uuid4())
        stream = messages.stream(library.STREAM, tenants.FIRST, id)
        metadata = messages.Metadata(actor="system:test", owner=user.id, subject=user.id)
        content = Content(uuid4().hex * 2, random.randint(0, 10_000))
        old, new = Place(f"{id}-old"), Place(f"{id}-new")
        life: list[messages.Event] = [
            library.Created(f"in/{id}", old, content, None),
            library.Modified(f"in/{id}", old, content, None, 2),
            library.Moved(f"out/{id}", new, f"in/{id}", old, content, None, 3),
            library.Deleted(f"out/{id}", new, None, 4),
        ]
        drafts = [
            Draft(tenants.FIRST, stream, number, uuid4(), event, metadata)
            for number, event in enumerate(life[: random.choice((1, 1, 1, 2, 4))], 1)
        ]
        return Write(stream, 0, [self._mapper.to_stored_event(draft) for draft in drafts])

    def expected(self, log: Sequence[LogNotification]) -> dict[str, list[Told]]:
        """What each owner's followers must have been told."""
        found: dict[str, list[Told]] = {user.id: [] for user in self.users}
        for note in log:
            if (change := TYPES.get(note.topic)) is not None:
                file = str(note.originator_id).rpartition("/")[2]
                found.setdefault(json.loads(note.metadata)["owner"], []).append((note.id, file, change))
        return found


@dataclass
class Follower:
    """One device that follows. It comes back where it was, whatever happens to the gateway, and acknowledges what it
    has the moment it has it."""

    system: System
    device: Device
    owner: str
    kind: str
    told: list[Told] = field(default_factory=list)
    cursor: str | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    last: int = 0  # once it has ended: where the last change is
    breaks: int = 0
    acks: int = 0

    def __post_init__(self) -> None:
        self._url = f"{self.system.ready['url']}/api/v1/sync"
        self._headers = {"Authorization": f"Bearer {self.device.token}"}

    async def follow(self) -> None:
        how: dict[str, Callable[[aiohttp.ClientSession], Awaitable[bool]]] = {
            "pages": self._page,
            "long polls": self._long_poll,
            "stream": self._listen,
            "slow stream": self._dawdle,
        }
        while True:
            try:
                async with self._session() as session:
                    while not await how[self.kind](session):
                        pass
                    return
            except _DOWN:
                self.breaks += 1
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """What is slow has little room, so that the gateway has to wait for it."""
        make = _narrow if self.kind == "slow stream" else None
        connector = aiohttp.TCPConnector(socket_factory=make)
        room = 1024 if self.kind == "slow stream" else 1 << 16
        async with aiohttp.ClientSession(headers=self._headers, connector=connector, read_bufsize=room) as session:
            yield session

    def _take(self, change: dict[str, Any], cursor: str) -> None:
        self.told.append((change["sequence"], change["media_id"], change["change_type"]))
        self.cursor = cursor

    def _is_done(self) -> bool:
        return self.ended.is_set() and self.last <= (self.told[-1][0] if self.told else 0)

    async def _page(self, session: aiohttp.ClientSession) -> bool:
        if not await self._pages(session, 0):
            await asyncio.sleep(0.005)
            return self._is_done()
        return False

    async def _long_poll(self, session: aiohttp.ClientSession) -> bool:
        return not await self._pages(session, 1) and self._is_done()

    async def _pages(self, session: aiohttp.ClientSession, wait: int) -> int:
        limit = random.choice((1, 3, 10, 100, 1000))
        query: dict[str, Any] = {"limit": limit, "wait": wait}
        if self.cursor is not None:
            query["cursor"] = self.cursor
        async with session.get(f"{self._url}/changes", params=query) as answer:
            assert answer.status == 200 or answer.status >= 502, await answer.text()
            answer.raise_for_status()
            page = await answer.json()
        assert len(page["changes"]) <= limit
        assert not page["has_more"] or len(page["changes"]) == limit
        for change in page["changes"]:
            self._take(change, page["cursor"])
        if page["changes"] and (not self.acks or random.random() < 0.3):
            await self._ack(session)
        return len(page["changes"])

    async def _ack(self, session: aiohttp.ClientSession) -> None:
        async with session.post(f"{self._url}/ack", json={"cursor": self.cursor}) as answer:
            assert answer.status == 200 or answer.status >= 502, (self.kind, await answer.text())
            answer.raise_for_status()
            self.acks += 1

    async def _listen(self, session: aiohttp.ClientSession) -> bool:
        """A stream, until it has had enough of it."""
        return await self._stream(session, random.choice((1, 20, 500, 5000)), 0)

    async def _dawdle(self, session: aiohttp.ClientSession) -> bool:
        """As before, but now and then it does not read for a while."""
        return await self._stream(session, random.choice((200, 5000)), 0.01)

    async def _stream(self, session: aiohttp.ClientSession, enough: int, pause: float) -> bool:
        headers = {"Accept": "text/event-stream"}
        if self.cursor is not None:
            headers["Last-Event-ID"] = self.cursor
        timeout = aiohttp.ClientTimeout(sock_read=1)
        async with session.get(f"{self._url}/changes", headers=headers, timeout=timeout) as answer:
            assert answer.status == 200 or answer.status >= 502, await answer.text()
            answer.raise_for_status()
            event: dict[str, str] = {}
            while enough:
                try:
                    line = (await answer.content.readuntil(b"\n")).decode().rstrip("\n")
                except aiohttp.SocketTimeoutError:
                    return self._is_done()
                if not line and not event:
                    continue
                if line:
                    name, _, value = line.partition(":")
                    event[name] = value.strip()
                    if name == "":
                        event.clear()
                    continue
                if "data" in event:
                    enough -= 1
                    self._take(json.loads(event["data"]), event["id"])
                    if not self.acks or random.random() < (0.02 if pause else 0.1):
                        await self._ack(session)
                    if pause and random.random() < pause:
                        await asyncio.sleep(random.uniform(0, 0.5))
                event.clear()
        return False


def _narrow(address: Any) -> socket.socket:
    made = socket.socket(family=address[0], type=address[1], proto=address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    return made


def followers(system: System, users: Sequence[User], kinds: Sequence[str]) -> list[Follower]:
    """One of each kind in turn, dealt out to the users so that each has several."""
    found = []
    for number, kind in enumerate(kinds):
        user = users[number % len(users)]
        found.append(Follower(system, user.device(f"device {number}"), user.id, kind))
    return found
