"""A tiny context to fill a log with, and a log with its writer, for tests and benchmarks of what stands around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, assert_never

from msgspec import Struct

from domain import messages
from infra import config
from infra.db import Database
from infra.eventstore import epochs
from infra.eventstore.mapper import Mapper
from infra.eventstore.store import Store
from infra.eventstore.writer import Writer
from infra.secrets import Keyring

MASTER = b"m" * 32
STREAM = "notes"


class Written(messages.Event, frozen=True, tag="notes.written"):
    text: str


class Confided(messages.Event, frozen=True, tag="notes.confided"):
    PERSONAL = ("text",)

    text: str


Event = Written | Confided


class Note(Struct, frozen=True):
    lines: int = 0


initial = Note()


def evolve(state: Note, event: Event) -> Note:
    match event:
        case Written() | Confided():
            return Note(state.lines + 1)
        case _:
            assert_never(event)


def claims(event: Event) -> Iterable[messages.Claim]:
    return ()


class Write(messages.Command, frozen=True):
    texts: Sequence[str]
    confide: bool = False


def decide(command: Write, state: Note) -> Sequence[Event]:
    kind = Confided if command.confide else Written
    return [kind(text=text) for text in command.texts]


async def until(condition: Callable[[], bool], timeout: float = 15) -> None:
    """Waits for something that must come true."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(*roles: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Runs roles beside the body. One that fails by itself fails the body."""
    tasks = [asyncio.create_task(role()) for role in roles]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


class Notes:
    """A log on a database of its own."""

    STREAM = STREAM
    initial = initial
    evolve = staticmethod(evolve)
    claims = staticmethod(claims)
    decide = staticmethod(decide)

    def __init__(self, store: Store, database: Database, epoch: int) -> None:
        self.store, self.database, self.epoch = store, database, epoch

    async def write(
        self, count: int, id: str = "a", *, size: int = 20, per: int = 100, metadata: messages.Metadata | None = None
    ) -> int:
        """Appends `count` events to a stream; the last position."""
        said = metadata or messages.Metadata()
        last = 0
        for start in range(0, count, per):
            texts = [f"{n}:".ljust(size, "x") for n in range(start, min(start + per, count))]
            command = Write(texts, confide=said.subject is not None)
            last = (await self.store.execute(self, id, command, metadata=said)).position
        return last

    async def all(self) -> list[messages.Recorded]:
        found: list[messages.Recorded] = []
        while page := await self.store.read(len(found), 1000):
            found += page
        return found


@asynccontextmanager
async def open_log(url: str, settings: config.EventStore | None = None) -> AsyncIterator[Notes]:
    database = Database(url, 8)
    writer = Writer(database, settings or config.EventStore())
    keyring = Keyring(database, MASTER)
    registry = {messages.topic(kind): kind for kind in (Written, Confided)}
    store = Store(database, Mapper(registry, keyring=keyring, max_bytes=1 << 24), writer)
    writing = asyncio.create_task(writer.run())
    try:
        yield Notes(store, database, await epochs.open_epoch(database))
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await database.close()
