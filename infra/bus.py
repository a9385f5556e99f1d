"""The connection to NATS of one process: it never blocks a start, comes back by itself, and carries asks to workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import structlog
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from domain import errors
from infra import asks, config, permissions, subjects
from infra.wire import Parser, Tap

log = structlog.get_logger()

Callback = Callable[[Msg], Awaitable[None]]
#: Why a request over the bus fails that says nothing about the request itself.
LOST = (OSError, NatsError, TimeoutError)


class Listener:
    """A subscription that is made again after every reconnect. `close` ends it."""

    def __init__(self, bus: Bus, subject: str, callback: Callback, queue: str, tap: Tap | None = None) -> None:
        self.subject, self.callback, self.queue = subject, callback, queue
        self._bus, self._tap = bus, tap
        self._current: Subscription | None = None

    async def open(self, client: Client) -> None:
        self._current = await client.subscribe(self.subject, queue=self.queue, cb=self.callback)
        if self._tap is not None and isinstance(client._ps, Parser):
            client._ps.taps[self._current._id] = self._tap

    async def close(self) -> None:
        """Nothing is delivered after this."""
        self._bus.listeners.discard(self)
        if self._current is not None and self._bus.connected:
            with contextlib.suppress(*LOST):
                await self._current.unsubscribe()
        self._current = None


class Reply(Struct, frozen=True):
    """What came back: `headers` is empty where there were none."""

    data: bytes
    headers: Mapping[str, str]


class Bus:
    """One connection, of our own reconnecting: nats-py's gives up for good on some errors, sends what it buffered
    for a server that was away, and logs tracebacks.

    `url` may name several servers, separated by commas. `user` connects with its own password where the settings hold
    one, and as the address says where they do not.
    """

    def __init__(
        self, url: str, settings: config.Nats | None = None, *, name: str = "undrift", user: str | None = None
    ) -> None:
        self.settings = settings or config.Nats()
        self.listeners: set[Listener] = set()
        self.connections = 0
        self._servers = [part.strip() for part in url.split(",") if part.strip()]
        self._name = name
        self._client: Client | None = None
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watchers: list[Callable[[bool], None]] = []
        self._user = user if user in self.settings.passwords else None
        self._inbox = self.inbox()
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._signs: dict[str, int] = {}
        self._count = 0

    def inbox(self) -> str:
        """A subject that is ours alone, as far as the server lets others hear."""
        prefix = "_INBOX" if self._user is None else permissions.inbox(self._user)
        return f"{prefix}.{secrets.token_hex(12)}"

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    @property
    def max_bytes(self) -> int:
        """The largest message, headers and data, that the server takes."""
        return 1024 * 1024 if self._client is None else self._client.max_payload

    async def connect(self) -> None:
        """Begins to connect and keeps trying; returns at once, whether or not there is a server."""
        logging.getLogger("nats").setLevel(logging.CRITICAL)  # it logs tracebacks of what is handled here
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="bus")

    async def ready(self, timeout: float) -> bool:
        """Whether there is a connection, after at most `timeout` seconds."""
        if not self.connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._up.wait()
        return self.connected

    def watch(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """`callback` is told of every connection (True) and loss (False). The answer ends it."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    async def close(self) -> None:
        """Ends the connection. What waits for a reply gets errors.Unavailable."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # again, where nats-py has swallowed it
            await asyncio.wait([task], timeout=0.1)
        self.listeners.clear()

    async def subscribe(self, subject: str, callback: Callback, queue: str = "", tap: Tap | None = None) -> Listener:
        """Calls back for every message, one at a time; of a `queue` group one member gets each. A `tap` gets those
        with headers instead, at once: for those who take thousands in a second."""
        listener = Listener(self, subject, callback, queue, tap)
        self.listeners.add(listener)
        if self._client is not None:
            with contextlib.suppress(*LOST):
                await listener.open(self._client)
        return listener

    async def publish(self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Sends without waiting for anything. Raises errors.Unavailable without a connection."""
        try:
            await self._connected().publish(subject, data, headers=None if headers is None else dict(headers))
        except LOST as error:
            raise _unavailable(error) from None

    async def send(self, commands: bytes) -> None:
        """Sends complete protocol commands as they are: a batch costs a fifth of what it does one by one."""
        client = self._connected()
        try:
            await client._send_command(commands)
            await client._flush_pending()
        except LOST as error:
            raise _unavailable(error) from None

    async def request(
        self,
        subject: str,
        data: bytes,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        silence_s: float | None = None,
    ) -> Reply:
        """Sends and waits for the reply. Raises errors.TimedOut, and errors.Unavailable when nobody can answer, or
        when whoever was asked is not heard of for `silence_s`."""
        with self.expect() as (inbox, future):
            try:
                async with asyncio.timeout(timeout):
                    await self._connected().publish(subject, data, inbox, None if headers is None else dict(headers))
                    await self._heard(inbox, future, silence_s)
                    reply = future.result()
            except TimeoutError:
                raise errors.TimedOut() from None
            except LOST as error:
                raise _unavailable(error) from None
        if reply.headers.get("Status") == "503":
            raise errors.Unavailable("Nobody is there to answer; try again", retry_after=1)
        return reply

    async def ask(self, kind: str, payload: bytes, timeout: float) -> bytes:
        """Has a worker look at something, and answers with what it said; nothing is recorded.

        Raises errors.Unavailable when there is no NATS or no worker, or the worker dies meanwhile, errors.TimedOut
        after `timeout` seconds, errors.TooLarge above 256 KiB, and whatever error of the catalogue the worker
        answered with.
        """
        if len(payload) > asks.MAX_BYTES:
            raise errors.TooLarge()
        headers = {asks.TIMEOUT: str(round(timeout * 1000))}
        reply = await self.request(subjects.ask(kind), payload, timeout, headers, asks.SILENCE_S)
        if (code := reply.headers.get(asks.ERROR)) is not None:
            raise asks.error(code, reply.data)
        return reply.data

    async def answer(
        self, kind: str, handler: asks.Handler, slots: asyncio.Semaphore | int = 4, limit: int = 64
    ) -> asks.Desk:
        """Answers asks of a kind, sharing them with the other workers that do.

        `handler(payload, seconds)` has that many seconds left. At most `slots` run at once (kinds may share a
        semaphore), and at most `limit` run or wait; what comes on top is refused at once, for another try elsewhere.
        """
        shared = asyncio.Semaphore(slots) if isinstance(slots, int) else slots
        desk = asks.Desk(self.publish, kind, handler, shared, limit)
        desk.listener = await self.subscribe(subjects.ask(kind), desk.receive, queue=asks.WORKERS)
        return desk

    async def _heard(self, inbox: str, future: asyncio.Future[Reply], silence_s: float | None) -> None:
        """Waits for the reply as long as there are signs of life."""
        token = inbox.rpartition(".")[2]
        while silence_s is not None and not future.done():
            before = self._signs.get(token, 0)
            await asyncio.wait([future], timeout=silence_s)
            if not future.done() and self._signs.get(token, 0) == before:
                raise errors.Unavailable("Whoever was asked has gone; try again", retry_after=1)
        await asyncio.wait([future])

    @contextlib.contextmanager
    def expect(self) -> Iterator[tuple[str, asyncio.Future[Reply]]]:
        """An inbox, and the future of the first reply to it; errors.Unavailable when the connection is lost."""
        self._count += 1
        token = f"{self._count:x}"
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        try:
            yield f"{self._inbox}.{token}", future
        finally:
            self._waiting.pop(token, None)
            self._signs.pop(token, None)
            if not future.cancel() and not future.cancelled():
                future.exception()  # nobody may be left to look at it

    async def _replied(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        future = self._waiting.get(token)
        if future is not None and asks.WORKING in (message.headers or {}):
            self._signs[token] = self._signs.get(token, 0) + 1
            return
        if future is not None and not future.done():
            future.set_result(Reply(message.data, message.headers or {}))

    def _connected(self) -> Client:
        if self._client is None or not self.connected:
            raise errors.Unavailable("NATS is not connected; try again", retry_after=1)
        return self._client

    async def _run(self) -> None:
        """Connects, watches, and connects again. One line is logged for each loss and each return."""
        told = False
        while True:
            closed = asyncio.Event()
            try:
                client = await self._dial(closed)
            except LOST as error:
                if not told:
                    log.warning("NATS cannot be reached", reason=type(error).__name__)
                told = True
                await asyncio.sleep(self.settings.reconnect_s)
                continue
            told = True
            try:
                await self._serve(client, closed)
            finally:
                self._down()
                await _discard(client, self.settings.ping_s)

    async def _dial(self, closed: asyncio.Event) -> Client:
        client = Client()
        client._ps = Parser(client)

        async def lost() -> None:
            closed.set()

        options: dict[str, Any] = {
            "name": self._name,
            "error_cb": _ignored,
            "closed_cb": lost,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": self.settings.connect_timeout_s,
            "ping_interval": 86_400,  # we look ourselves
            # Without limits nothing waits inside nats-py, which swallows cancellations there, and nothing is kept
            # for a server that is away. What we send is bounded: batches and asks wait for their replies.
            "pending_size": 0,
            "flusher_queue_size": 0,
        }
        if self._user is not None:
            options |= {"user": self._user, "password": self.settings.passwords[self._user]}
        try:
            await client.connect(self._servers, **options)
            self._client = client
            await client.subscribe(f"{self._inbox}.*", cb=self._replied)
            for listener in list(self.listeners):
                await listener.open(client)
        except BaseException:
            self._client = None
            await _discard(client, self.settings.ping_s)
            raise
        return client

    async def _serve(self, client: Client, closed: asyncio.Event) -> None:
        self._up.set()
        self.connections += 1
        log.info("connected to NATS", version=str(client.connected_server_version))
        self._tell(True)
        while not closed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.ping_s):
                    await closed.wait()
                    break
            if not await _answers(client, self.settings.ping_s):
                break
        log.warning("the connection to NATS was lost")

    def _down(self) -> None:
        if not self.connected:
            return
        self._up.clear()
        self._client = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(errors.Unavailable("The connection to NATS was lost; try again", retry_after=1))
        self._tell(False)

    def _tell(self, connected: bool) -> None:
        for callback in list(self._watchers):
            callback(connected)


def _unavailable(error: BaseException) -> errors.Unavailable:
    return errors.Unavailable(f"NATS cannot be reached ({type(error).__name__}); try again", retry_after=1)


async def _ignored(_: Exception) -> None:
    """Whatever it is, the connection is watched and made again; nats-py would log a traceback."""


async def _answers(client: Client, patience_s: float) -> bool:
    try:
        async with asyncio.timeout(patience_s):
            await client.rtt()
    except LOST:
        return False
    return True


async def _discard(client: Client, patience_s: float) -> None:
    """Closes a connection, by force where the server does not take what is still to be sent."""
    with contextlib.suppress(*LOST):
        async with asyncio.timeout(patience_s):
            await client.close()
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
