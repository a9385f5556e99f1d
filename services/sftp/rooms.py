"""Who is connected to which server, and who is cut off when.

Whoever logs in is in the room before the server's state is read: a suspension that comes between the two finds them
there, one that came before is in what is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from domain import errors, messages, server_config, servers, tenants
from infra import subjects
from infra.bus import Bus
from infra.eventstore.store import Loaded, Store
from infra.panel import Login
from infra.tail import Tail
from infra.volumes import Volumes
from services.servers import CUT, Cut
from services.sftp.denied import Denied, denied
from services.sftp.quota import Quota
from services.sftp.tree import Tree, forbidden

#: Calls into the file system that one server may have at the same time.
_AT_ONCE = 4
_NOTHING: tuple[str, ...] = ()


class Note(Protocol):
    """Tells the Panel what somebody did to which files, or from where to where. Called from any thread."""

    def __call__(self, session: Session, event: str, *files: str | tuple[str, str]) -> None: ...


class Room:
    """A server, and the sessions of those who are logged in to it. Its folder is opened when it is first needed, and
    closed when nobody has anything of it any more."""

    def __init__(self, uuid: str, volumes: Volumes) -> None:
        self.uuid, self.volumes = uuid, volumes
        self.sessions: set[Session] = set()
        self.state = servers.initial
        self.version = 0
        self.turns = asyncio.Semaphore(_AT_ONCE)
        self._early: list[messages.Recorded] = []
        self._opened: tuple[Tree, Quota] | None = None
        self._opening = threading.Lock()

    @property
    def is_open(self) -> bool:
        there = self.state.configuration
        return there is not None and not self.state.deleted and not there.suspended

    def limit(self) -> int:
        there = self.state.configuration
        return 0 if there is None else server_config.limits(there.build).disk

    def denied(self) -> Denied:
        there = self.state.configuration
        return denied(_NOTHING if there is None else there.egg.file_denylist)

    def files(self) -> tuple[Tree, Quota]:
        """Blocks. Raises OSError."""
        with self._opening:
            if self._opened is None:
                tree = Tree(self.volumes.open(self.uuid))
                self._opened = tree, Quota(tree, self.limit)
            return self._opened

    def loaded(self, found: Loaded) -> None:
        """What the log says of it, which may be older than what was heard meanwhile, and newer."""
        if found.version > self.version:
            self.state, self.version = found.state, found.version
        early, self._early = self._early, []
        for recorded in early:
            self.hear(recorded)

    def hear(self, recorded: messages.Recorded) -> None:
        if recorded.version == self.version + 1:
            assert isinstance(recorded.event, servers.Event)
            self.state, self.version = servers.evolve(self.state, recorded.event), recorded.version
        elif recorded.version > self.version:
            self._early.append(recorded)


class Session:
    """Somebody who is logged in to a server. Its files are opened when they are first asked for."""

    def __init__(self, login: Login, address: str, room: Room, end: Callable[[], None], note: Note) -> None:
        self.login, self.address, self.room = login, address, room
        self.began = time.monotonic()
        self.read = self.written = 0
        self._end, self._note = end, note
        self._cut = threading.Event()

    @property
    def server(self) -> str:
        return self.login.server

    @property
    def is_cut(self) -> bool:
        return self._cut.is_set()

    def cut(self) -> None:
        """From now on nothing is done any more."""
        if not self._cut.is_set():
            self._cut.set()
            self._end()

    def silence(self) -> None:
        """The same for a connection that has ended by itself."""
        self._cut.set()

    def check(self) -> None:
        """Raises PermissionError for whoever is cut off, and where the server is suspended."""
        if self._cut.is_set() or not self.room.is_open:
            raise forbidden()

    def may(self, permission: str) -> bool:
        return "*" in self.login.permissions or permission in self.login.permissions

    def need(self, permission: str) -> None:
        """Raises PermissionError."""
        self.check()
        if not self.may(permission):
            raise forbidden()

    def note(self, event: str, *files: str | tuple[str, str]) -> None:
        self._note(self, event, *files)


class Waiting:
    """Somebody about whom the Panel is asked; who is deauthorized meanwhile is kept."""

    def __init__(self) -> None:
        self.deauthorized: set[tuple[str, str]] = set()


class Hub:
    """All sessions of this process."""

    def __init__(self, store: Store, tail: Tail, bus: Bus, volumes: Volumes, most: int) -> None:
        """`most` sessions of one server."""
        self._store, self._tail, self._bus, self._volumes, self._most = store, tail, bus, volumes, most
        self._rooms: dict[str, Room] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._waiting: set[Waiting] = set()

    @property
    def sessions(self) -> list[Session]:
        return [session for room in self._rooms.values() for session in room.sessions]

    # Who comes.

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Waiting]:
        one = Waiting()
        self._waiting.add(one)
        try:
            yield one
        finally:
            self._waiting.discard(one)

    def room(self, uuid: str) -> Room:
        """Where whoever comes to a server goes."""
        if uuid not in self._rooms:
            self._rooms[uuid] = Room(uuid, self._volumes)
        return self._rooms[uuid]

    async def admit(self, session: Session, waiting: Waiting) -> bool:
        """Whether a session may begin; it is in the room until it leaves. Raises errors.Error, errors.Unavailable where
        too many are in it, and what Postgres does."""
        if len(session.room.sessions) >= self._most:
            raise errors.Unavailable("Too many SFTP sessions of this server")
        session.room.sessions.add(session)
        try:
            stream = messages.stream(servers.STREAM, tenants.FIRST, session.server)
            found = await self._store.load(servers, stream)
        except BaseException:
            self.leave(session)
            raise
        session.room.loaded(found)
        welcome = (session.server, session.login.user) not in waiting.deauthorized
        if session.room.is_open and welcome and not session.is_cut:
            return True
        self.leave(session)
        return False

    def leave(self, session: Session) -> None:
        room = session.room
        room.sessions.discard(session)
        if not room.sessions and self._rooms.get(session.server) is room:
            del self._rooms[session.server]

    # What the log says.

    async def run(self) -> None:
        """Serves until cancelled."""
        await self._tail.follow(self._hear, frozenset({servers.STREAM}))

    def _hear(self, recorded: messages.Recorded) -> None:
        uuid, event = recorded.id, recorded.event
        if isinstance(event, servers.UserDeauthorized):
            for one in self._waiting:
                one.deauthorized.add((uuid, event.user))
        room = self._rooms.get(uuid)
        if room is None:
            return
        room.hear(recorded)
        match event:
            case servers.Suspended() | servers.Deleted():
                leaving = list(room.sessions)
            case servers.UserDeauthorized():
                leaving = [session for session in room.sessions if session.login.user == event.user]
            case _:
                return
        if isinstance(event, servers.Deleted):
            del self._rooms[uuid]  # one of that name that comes later has another folder
        for session in leaving:
            session.cut()
        if leaving and isinstance(event, servers.Suspended):
            task = asyncio.create_task(self._tell(uuid, Cut(recorded.position, len(leaving))))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, uuid: str, cut: Cut) -> None:
        with contextlib.suppress(errors.Unavailable):  # nor does anybody count them then
            await self._bus.publish(subjects.server(uuid, CUT), msgspec.json.encode(cut))
