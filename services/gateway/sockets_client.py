"""One websocket of a server: what its client may say, and what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec import Struct, field

from domain import errors, messages, servers, tenants
from services.gateway import power

if TYPE_CHECKING:
    from services.gateway.sockets import Hub

log = structlog.get_logger("gateway")

SUSPENDED = 4409
#: What a client may say: so large, and so many in so many seconds.
MAX_BYTES, _MOST_SAID, _WINDOW_S = 32 * 1024, 60, 5.0
_WAITING, _ROOM_S = 256, 0.01
_SOON_S = 60.0
_POWERS = {"start": "control.start", "stop": "control.stop", "restart": "control.restart", "kill": "control.stop"}


class Said(Struct):
    """As both sides say it."""

    event: str
    args: list[Any] | None = field(default_factory=list)


class Claims(Struct):
    """What is read of a token, beside its times, which PyJWT checks."""

    jti: str
    iat: int
    exp: int
    server_uuid: str
    user_uuid: str = ""
    permissions: list[str] = field(default_factory=list)


class Cut(Exception):
    """The connection ends; with a `code` it is told why."""

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Denied(Exception):
    """A token does not open the room, and why."""


_decode = msgspec.json.Decoder(Said).decode
_encode = msgspec.json.Encoder().encode


class Socket:
    """One client. What it is told waits in a queue; who does not take it is cut off."""

    def __init__(self, hub: Hub, uuid: str, receive: Any, send: Any) -> None:
        self.claims: Claims | None = None
        self._hub, self._uuid, self._receive, self._send = hub, uuid, receive, send
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(_WAITING)
        self._ending: asyncio.Future[Cut] = asyncio.get_running_loop().create_future()
        self._renewed = asyncio.Event()
        self._heard: deque[float] = deque()
        self._throttled = False
        self._power: servers.Power | None = None

    def say(self, event: str, *args: Any) -> None:
        """To whoever has shown a token that is still good, and anything about tokens to everybody."""
        if self.claims is None and event not in ("jwt error", "daemon error", "throttled"):
            return
        try:
            self._waiting.put_nowait(_encode(Said(event, list(args))))
        except asyncio.QueueFull:
            self.cut(Cut())

    def status(self, power: servers.Power) -> None:
        """Once for each, however often it is recorded."""
        if power != self._power:
            self._power = power
            self.say("status", power)

    def pass_on(self, event: str, text: str) -> None:
        """What may be lost: a client that lags behind misses some of it, and stays."""
        if self.claims is not None and self._waiting.qsize() < _WAITING // 2:
            self._waiting.put_nowait(_encode(Said(event, [text])))

    async def _room(self) -> None:
        """Waits until the client has taken some of what is for it; who takes nothing is ended by whoever writes."""
        while self._waiting.qsize() >= _WAITING // 2:
            await asyncio.sleep(_ROOM_S)

    def cut(self, why: Cut) -> None:
        if not self._ending.done():
            self._ending.set_result(why)

    async def serve(self, state: servers.Server) -> None:
        """Until either side ends it. What was heard since it came is newer than the state that was read then."""
        self._power = self._power or state.power
        if state.configuration is None or state.deleted:
            self.cut(Cut(1000, "deleted"))
        elif state.configuration.suspended:
            self.cut(Cut(SUSPENDED, "server is suspended"))
        serving = () if self._ending.done() else (self._listen(), self._tell(), self._watch())  # nobody is let in first
        work: list[asyncio.Future[Any]] = [asyncio.ensure_future(one) for one in serving]
        try:
            await asyncio.wait([*work, self._ending], return_when=asyncio.FIRST_COMPLETED)
            failed = next((one for one in work if one.done() and not one.cancelled() and one.exception()), None)
            why = self._ending.result() if self._ending.done() else Cut()
            if failed is not None:
                log.error("a websocket ended in an error of ours", error=repr(failed.exception()))
        finally:
            for one in work:
                one.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        if why.code is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._send({"type": "websocket.close", "code": why.code, "reason": why.reason})
        # Whoever is cut off without a code: the connection ends as this returns.

    async def _tell(self) -> None:
        while True:
            await self._send({"type": "websocket.send", "text": (await self._waiting.get()).decode()})

    async def _watch(self) -> None:
        """Says when the token expires soon, and when it has: from then on nothing is heard until there is another."""
        while True:
            await self._renewed.wait()
            self._renewed.clear()
            while self.claims is not None:
                soon = self.claims.exp - _SOON_S
                if self._hub.clock() < soon and await self._is_renewed(soon):
                    continue
                self.say("token expiring")
                if not await self._is_renewed(self.claims.exp):
                    self.say("token expired")
                    self.claims = None

    async def _is_renewed(self, until: float) -> bool:
        try:
            async with asyncio.timeout(max(until - self._hub.clock(), 0)):
                await self._renewed.wait()
        except TimeoutError:
            return False
        self._renewed.clear()
        return True

    async def _listen(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                self.cut(Cut())
                return
            if self._is_too_much():
                continue
            try:
                said = _decode(message.get("text") or message.get("bytes") or b"")
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self.say("daemon error", "The message could not be understood.")
                continue
            await self._heed(said)

    def _is_too_much(self) -> bool:
        """Whether a message is dropped, because there were many in a short time; the first that is says so."""
        now = time.monotonic()
        while self._heard and now - self._heard[0] >= _WINDOW_S:
            self._heard.popleft()
        if len(self._heard) < _MOST_SAID:
            self._heard.append(now)
            self._throttled = False
            return False
        if not self._throttled:
            self._throttled = True
            self.say("throttled", "global")
        return True

    async def _heed(self, said: Said) -> None:
        args = said.args or []
        if said.event == "auth":
            self._authenticate(args[0] if args else "")
            return
        if self.claims is None:
            self.say("jwt error", "jwt: no token, or it has expired")
            return
        wanted = args[0] if args else ""
        match said.event:
            case "set state":
                await self._set_state(wanted)
            case "send command":
                await self._send_command("".join(one for one in args if isinstance(one, str)))
            case "send logs":
                for line in await power.recent(self._hub.bus, self._uuid):
                    await self._room()
                    self.say("console output", line)
            case "send stats":
                self.say("stats", await self._hub.figures(self._uuid))
            case _:  # what nobody knows
                pass

    def _authenticate(self, token: Any) -> None:
        """From the moment on in which it is let in it hears all, the status first."""
        try:
            self.claims = self._hub.admit(token, self._uuid)
        except Denied as denied:
            self.say("jwt error", str(denied))
            return
        self.say("auth success")
        self.say("status", self._power)
        self._renewed.set()

    async def _set_state(self, action: Any) -> None:
        needed = _POWERS.get(action) if isinstance(action, str) else None
        if needed is None:
            self.say("daemon error", "There is no such power action.")
            return
        if not self._may(needed):
            return
        assert self.claims is not None
        command = servers.Ask(action, f"user:{self.claims.user_uuid}"[:64])
        metadata = messages.Metadata(actor=command.by)
        try:
            await self._hub.store.execute(servers, self._uuid, command, tenant=tenants.FIRST, metadata=metadata)
        except errors.InvalidState:
            self.cut(Cut())  # it is suspended
        except errors.Error as error:
            self.say("daemon error", error.message)

    async def _send_command(self, line: str) -> None:
        if not self._may("control.console"):
            return
        try:
            if (await self._hub.state(self._uuid)).suspended:
                raise errors.Forbidden
            await power.say(self._hub.bus, self._uuid, [line])
        except errors.Forbidden:
            self.cut(Cut())  # it is suspended
        except errors.InvalidState:
            pass  # it does not run: the real system says nothing either
        except errors.Error as error:
            self.say("daemon error", error.message)

    def _may(self, permission: str) -> bool:
        return self.claims is not None and ("*" in self.claims.permissions or permission in self.claims.permissions)
