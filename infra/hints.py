"""Notifications of the log: only hints that it has grown, so losing one costs time and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from infra.db import CONNECTION_LOST, Database, naming_loss

log = structlog.get_logger()

CHANNEL = "undrift_log"

#: Told the position the log has certainly passed, or None when anything may have happened.
Hint = Callable[[int | None], None]
#: Told what was said on a channel, or None when something may have been missed.
Notice = Callable[[str | None], None]
#: Asked with the contexts of what was appended, where they are known, whether to be told.
Wants = Callable[[frozenset[str]], bool]


class Hints:
    """Listens on a connection of its own, which is made again when it is lost."""

    def __init__(self, database: Database, retry_s: float = 0.2, channel: str = CHANNEL, look_s: float = 5.0) -> None:
        self._database, self._retry_s, self._channel, self._look_s = database, retry_s, channel, look_s
        self._hints: list[tuple[Hint, Wants | None]] = []
        self._others: list[tuple[str, Notice]] = []

    def hear(self, channel: str, notice: Notice) -> None:
        """Also listens on another channel. To be said before `run`."""
        self._others.append((channel, notice))

    def subscribe(self, hint: Hint, wants: Wants | None = None) -> Callable[[], None]:
        """The answer ends it."""
        entry = (hint, wants)
        self._hints.append(entry)
        return lambda: self._hints.remove(entry)

    async def run(self) -> None:
        """Serves until cancelled."""
        told = False
        while True:
            try:
                await self._listen()
            except CONNECTION_LOST as error:
                if not told:
                    log.warning("notifications of the log are interrupted", reason=type(error).__name__)
                told = True
            else:
                told = False
            await asyncio.sleep(self._retry_s)

    async def _listen(self) -> None:
        """Returns when the connection has ended."""
        connection = await self._database.connect()
        ended = asyncio.Event()
        try:
            with naming_loss(connection):
                connection.add_termination_listener(lambda _: ended.set())
                await connection.add_listener(self._channel, self._notified)
                for channel, _ in self._others:
                    await connection.add_listener(channel, self._heard)
                for _, notice in self._others:
                    notice(None)
                self._tell(None)  # what was said in between was missed
                while not ended.is_set():
                    try:
                        async with asyncio.timeout(self._look_s):
                            await ended.wait()
                    except TimeoutError:
                        await connection.execute("select", timeout=self._look_s)
        finally:
            connection.terminate()

    def _notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        text, *contexts = str(payload).split(" ")
        passed = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None
        self._tell(passed, frozenset(contexts) if contexts else None)

    def _heard(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        for one, notice in self._others:
            if one == channel:
                notice(str(payload))

    def _tell(self, passed: int | None, contexts: frozenset[str] | None = None) -> None:
        for hint, wants in list(self._hints):
            if contexts is None or wants is None or wants(contexts):
                hint(passed)
