"""The stream of events as one process sees it: an ordered consumer of its own, made anew whenever it may be stale."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from nats.aio.msg import Msg

from domain import errors
from infra import jetstream
from infra.bus import Bus, Listener
from infra.envelope import lines

STREAM = "EVENTS"

_HEARTBEAT_S = 1.0
_SILENCE_S = 3.0
_IDLE_S = 10.0
_GOODBYE_S = 0.5
_ROOM = 16_384
_NO_STATUS = b"NATS/1.0\r\n"


class Delivery(NamedTuple):
    """A message: `headers` with their status line, as they came; empty where there were none."""

    headers: bytes
    data: bytes


class Feed:
    """Puts what JetStream delivers into `inbox` and calls `arrived`. It promises nothing: not order, not completeness,
    not that a message is ours. `governor` is the connection that may make a consumer, where `bus` may only listen."""

    def __init__(self, bus: Bus, retry_s: float, arrived: Callable[[], None], governor: Bus | None = None) -> None:
        self.inbox: deque[Delivery] = deque()
        self._answers: set[asyncio.Task[None]] = set()
        self._bus, self._retry_s, self._arrived = bus, retry_s, arrived
        self._stream = jetstream.Stream(governor or bus, STREAM)
        self._subject = bus.inbox()
        self._consumer: str | None = None
        self._heard = 0.0
        self._listener: Listener | None = None
        self._changed = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether what is published now can be expected to be delivered."""
        return self._consumer is not None and self._bus.connected and not self._silent()

    @property
    def subject(self) -> str:
        """Where deliveries go."""
        return self._subject

    async def run(self, position: Callable[[], int | None]) -> None:
        """Keeps a consumer that begins behind `position()`; none while that is None. Serves until cancelled."""
        self._listener = await self._bus.subscribe(self._subject, self._plain, tap=self._receive)
        forget = self._bus.watch(self._forget)
        try:
            while True:
                after = position()
                if not self.alive and after is not None and await self._bus.ready(self._retry_s):
                    await self._renew(after + 1)
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._retry_s):
                        await self._changed.wait()
        finally:
            forget()
            await self._end()

    async def _renew(self, first: int) -> None:
        with contextlib.suppress(errors.Unavailable, errors.TimedOut, jetstream.Refused):
            await self._drop()
            self.inbox.clear()
            name = f"tail-{secrets.token_hex(8)}"
            if await self._stream.consume(name, self._config(first)):
                self._consumer, self._heard = name, asyncio.get_running_loop().time()

    def _config(self, first: int) -> dict[str, object]:
        return {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": first,
            "deliver_subject": self._subject,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
            "inactive_threshold": int(_IDLE_S * 1e9),
            "num_replicas": 1,
            "mem_storage": True,
        }

    def _receive(self, reply: str, headers: bytes, data: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        if not headers.startswith(_NO_STATUS):
            if reply := reply or lines(headers).get("Nats-Consumer-Stalled", ""):
                task = asyncio.create_task(self._answer(reply))
                self._answers.add(task)
                task.add_done_callback(self._answers.discard)
            return
        if len(self.inbox) < _ROOM:  # else there is a gap, and gaps are read from Postgres
            self.inbox.append(Delivery(headers, data))
        self._arrived()

    async def _plain(self, message: Msg) -> None:
        """Nothing of ours is without headers."""
        self._receive("", _NO_STATUS, message.data)

    async def _answer(self, reply: str) -> None:
        with contextlib.suppress(errors.Unavailable):
            await self._bus.publish(reply)

    def _silent(self) -> bool:
        return asyncio.get_running_loop().time() - self._heard > _SILENCE_S

    def _forget(self, _connected: bool) -> None:
        self._consumer = None
        self._changed.set()

    async def _drop(self) -> None:
        name, self._consumer = self._consumer, None
        if name is not None:
            await self._stream.drop(name)

    async def _end(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(errors.Unavailable, errors.TimedOut, jetstream.Refused, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):  # the server forgets an idle consumer by itself
                    await self._drop()
            await self._listener.close()
