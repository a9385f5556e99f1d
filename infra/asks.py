"""What both sides of an ask share, and the desk where a worker answers those of one kind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from domain import errors

log = structlog.get_logger()

#: Answers an ask: the payload and the seconds that are left, to the answer's bytes.
Handler = Callable[[bytes, float], Awaitable[bytes]]

#: What is larger is a blob, named by its hash.
MAX_BYTES = 256 * 1024

WORKERS = "workers"
TIMEOUT = "Undrift-Timeout-Ms"
ERROR = "Undrift-Error"
#: A word without an answer: whoever was asked is alive. Who hears none of these for `SILENCE_S` asks again.
WORKING = "Undrift-Working"
BEAT_S = 1.0
SILENCE_S = 5.0
_PATIENCE_S = 30.0


Publish = Callable[[str, bytes, Mapping[str, str] | None], Awaitable[None]]


class Closable(Protocol):
    async def close(self) -> None: ...


class Desk:
    """Where asks of one kind are answered. `close` ends it: who still waits is told to try again."""

    def __init__(self, publish: Publish, kind: str, handler: Handler, slots: asyncio.Semaphore, limit: int) -> None:
        self.listener: Closable | None = None
        self._publish, self._kind, self._handler, self._slots, self._limit = publish, kind, handler, slots, limit
        self._tasks: set[asyncio.Task[None]] = set()

    async def receive(self, message: Msg) -> None:
        if len(self._tasks) >= self._limit:
            await self._reply(message, errors.Unavailable("The workers are busy; try again", retry_after=1))
            return
        task = asyncio.create_task(self._serve(message), name=f"ask {self._kind}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, message: Msg) -> None:
        seconds = _seconds((message.headers or {}).get(TIMEOUT, ""))
        deadline = asyncio.get_running_loop().time() + seconds
        outcome: bytes | errors.Error
        beating = asyncio.create_task(self._beat(message))
        try:
            async with asyncio.timeout_at(deadline):
                outcome = await self._run(message.data, deadline)
        except errors.Error as error:
            outcome = error
        except TimeoutError:
            outcome = errors.TimedOut()
        except asyncio.CancelledError:
            await self._reply(message, errors.Unavailable("The worker is stopping; try again", retry_after=1))
            raise
        except Exception:
            log.exception("an ask failed", kind=self._kind)
            outcome = errors.Error()
        finally:
            beating.cancel()
        await self._reply(message, outcome)

    async def _beat(self, message: Msg) -> None:
        while message.reply:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(errors.Unavailable):
                await self._publish(message.reply, b"", {WORKING: "1"})

    async def _run(self, payload: bytes, deadline: float) -> bytes:
        async with self._slots:
            answer = await self._handler(payload, deadline - asyncio.get_running_loop().time())
        if len(answer) > MAX_BYTES:
            raise errors.TooLarge("The answer is too large")
        return answer

    async def _reply(self, message: Msg, outcome: bytes | errors.Error) -> None:
        data, headers = (outcome, None) if isinstance(outcome, bytes) else _failure(outcome)
        if message.reply:
            with contextlib.suppress(errors.Unavailable):
                await self._publish(message.reply, data, headers)

    async def close(self) -> None:
        if self.listener is not None:
            await self.listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Said(Struct):
    """An error on its way back."""

    message: str
    details: dict[str, Any]


def _failure(error: errors.Error) -> tuple[bytes, dict[str, str]]:
    return msgspec.json.encode(_Said(error.message, error.details), enc_hook=str), {ERROR: error.code}


def error(code: str, data: bytes) -> errors.Error:
    """The catalogue's error of that code, as the worker raised it."""
    try:
        said = msgspec.json.decode(data, type=_Said)
    except msgspec.MsgspecError:
        said = _Said("", {})
    return errors.catalogue().get(code, errors.Error)(said.message or None, **said.details)


def _seconds(milliseconds: str) -> float:
    return int(milliseconds) / 1000 if milliseconds.isascii() and milliseconds.isdecimal() else _PATIENCE_S
