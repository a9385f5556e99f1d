"""Websockets of servers, as the Panel's pages speak them: who may listen, what they hear, and who is cut off when.

Whoever connects is in the room before the server's state is read: a suspension that comes between the two finds them
there, one that came before is in what is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jwt
import msgspec
import structlog
from msgspec import Struct, field

from domain import errors, messages, servers, tenants
from infra.config import Panel as Settings
from infra.eventstore.store import Store
from infra.tail import Tail
from services.gateway import headers
from services.gateway.dialects import WINGS, Reply

log = structlog.get_logger("gateway")

SUSPENDED = 4409
MOST = 30
#: What a client may say: so large, and so many in so many seconds.
MAX_BYTES, _MOST_SAID, _WINDOW_S = 32 * 1024, 60, 5.0
_WAITING = 256
_SOON_S = 60.0
#: The Panel's tokens live for 10 minutes; a denial is remembered for longer.
_DENIED_S = 3600.0
_PATH = re.compile(r"/api/servers/([^/]{1,64})/ws")
_POWERS = {"start": "control.start", "stop": "control.stop", "restart": "control.restart", "kill": "control.stop"}
_TOO_MANY = b'{"error":"Too many open websocket connections."}'
_FORBIDDEN = b'{"error":"You are not authorized to access this endpoint."}'


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


class Hub:
    """All websockets of this gateway. Tokens from before it was there open nothing, so it need not know what was denied
    before."""

    def __init__(
        self, store: Store, tail: Tail, settings: Settings, origins: Callable[[bytes], bool], clock: Callable[[], float]
    ) -> None:
        self.store, self.settings, self.clock = store, settings, clock
        self._tail, self._origins, self._since = tail, origins, int(clock())
        self._rooms: dict[str, set[Socket]] = {}
        self._denied: dict[tuple[str, str], float] = {}

    @property
    def count(self) -> int:
        return sum(map(len, self._rooms.values()))

    # Connections.

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application of every websocket."""
        await receive()  # websocket.connect
        match = _PATH.fullmatch(scope["path"])
        uuid = match[1] if match else ""
        if (refusal := await self._refusal(scope, uuid)) is not None:
            await _refuse(refusal, send)
            return
        room = self._rooms.setdefault(uuid, set())
        socket = Socket(self, uuid, receive, send)
        room.add(socket)
        try:
            await send({"type": "websocket.accept"})
            await socket.serve(await self.state(uuid))
        finally:
            room.discard(socket)
            if not room:
                self._rooms.pop(uuid, None)

    async def _refusal(self, scope: Any, uuid: str) -> Reply | None:
        origin = headers.of(scope).get(b"origin", b"")
        if origin != self.settings.url.rstrip("/").encode() and not self._origins(origin):
            return Reply(403, _FORBIDDEN)
        if len(self._rooms.get(uuid, ())) >= MOST:
            return Reply(400, _TOO_MANY)
        try:
            found = await self.state(uuid) if uuid else servers.initial
        except errors.Error as error:
            return WINGS.error(error, scope["path"])
        if found.configuration is None or found.deleted:
            return WINGS.error(errors.NotFound(kind="server"), scope["path"])
        return None

    async def state(self, uuid: str) -> servers.Server:
        stream = messages.stream(servers.STREAM, tenants.FIRST, uuid)
        state: servers.Server = (await self.store.load(servers, stream)).state
        return state

    def admit(self, token: Any, uuid: str) -> Claims:
        """Raises Denied."""
        if not self.settings.token:
            raise Denied("jwt: this node has no token")
        try:
            found = jwt.decode(
                token,
                self.settings.token,
                algorithms=["HS256"],
                options={
                    "require": ["exp", "iat", "jti"],
                    "verify_aud": False,
                    "verify_iss": False,
                    "verify_iat": False,
                },
            )
            claims = msgspec.convert(found, Claims)
        except jwt.ExpiredSignatureError:
            raise Denied("jwt: exp claim is invalid") from None
        except (jwt.InvalidTokenError, msgspec.ValidationError, TypeError, ValueError):
            raise Denied("jwt: the token is not valid") from None
        if claims.server_uuid != uuid:
            raise Denied("jwt: the token is for another server")
        if "websocket.connect" not in claims.permissions and "*" not in claims.permissions:
            raise Denied("jwt: no permission to connect")
        if claims.iat < self._since or self.is_denied(uuid, claims):
            raise Denied("jwt: created before a point in time at which tokens were revoked")
        return claims

    def is_denied(self, uuid: str, claims: Claims) -> bool:
        denied = (self._denied.get((uuid, name), -1.0) for name in (claims.jti, f"user/{claims.user_uuid}"))
        return any(claims.iat <= at for at in denied)

    def renewed(self) -> None:
        """The key of all tokens is another: whoever came with one of the old key has to show one of the new."""
        for room in self._rooms.values():
            for socket in list(room):
                if socket.claims is not None:
                    socket.cut(Cut())

    # What the log says.

    async def run(self) -> None:
        """Serves until cancelled."""
        subscription = self._tail.subscribe(self._tail.position, contexts=frozenset({servers.STREAM}))
        try:
            async for page in subscription:
                for recorded in page:
                    self._hear(recorded)
        finally:
            subscription.close()

    def _hear(self, recorded: messages.Recorded) -> None:
        uuid, event, at = recorded.id, recorded.event, recorded.recorded_at.timestamp()
        room = list(self._rooms.get(uuid, ()))
        match event:
            case servers.TokensDenied():
                self._deny(uuid, event.jtis, at)
            case servers.UserDeauthorized():
                self._deny(uuid, [f"user/{event.user}"], at)
            case servers.Suspended():
                for socket in room:
                    socket.cut(Cut())
            case servers.Deleted():
                for socket in room:
                    socket.say("deleted")
                    socket.cut(Cut(1000, "deleted"))
            case servers.PowerChanged():
                for socket in room:
                    socket.say("status", event.power)
            case _:
                pass

    def _deny(self, uuid: str, names: Sequence[str], at: float) -> None:
        self._denied.update({(uuid, name): at for name in names})
        for socket in list(self._rooms.get(uuid, ())):
            if socket.claims is not None and self.is_denied(uuid, socket.claims):
                socket.cut(Cut())
        if len(self._denied) > 10_000:
            now = self.clock()
            self._denied = {key: when for key, when in self._denied.items() if now - when < _DENIED_S}


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

    def say(self, event: str, *args: Any) -> None:
        """To whoever has shown a token that is still good, and anything about tokens to everybody."""
        if self.claims is None and event not in ("jwt error", "daemon error", "throttled"):
            return
        try:
            self._waiting.put_nowait(_encode(Said(event, list(args))))
        except asyncio.QueueFull:
            self.cut(Cut())

    def cut(self, why: Cut) -> None:
        if not self._ending.done():
            self._ending.set_result(why)

    async def serve(self, state: servers.Server) -> None:
        """Until either side ends it."""
        if state.configuration is None or state.deleted:
            self.cut(Cut(1000, "deleted"))
        elif state.configuration.suspended:
            self.cut(Cut(SUSPENDED, "server is suspended"))
        work: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(one) for one in (self._listen(), self._tell(), self._watch())
        ]
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
            await self._authenticate(args[0] if args else "")
            return
        if self.claims is None:
            self.say("jwt error", "jwt: no token, or it has expired")
            return
        match said.event:
            case "set state":
                await self._set_state(args[0] if args else "")
            case "send stats":
                state = await self._hub.state(self._uuid)
                self.say("status", state.power)
            case _:  # what only a running server answers, and what nobody knows
                pass

    async def _authenticate(self, token: Any) -> None:
        try:
            claims = self._hub.admit(token, self._uuid)
        except Denied as denied:
            self.say("jwt error", str(denied))
            return
        self.claims = claims
        self.say("auth success")
        self.say("status", (await self._hub.state(self._uuid)).power)
        self._renewed.set()

    async def _set_state(self, action: Any) -> None:
        assert self.claims is not None
        needed = _POWERS.get(action) if isinstance(action, str) else None
        if needed is None:
            self.say("daemon error", "There is no such power action.")
            return
        if needed not in self.claims.permissions and "*" not in self.claims.permissions:
            return
        command = servers.Ask(action, f"user:{self.claims.user_uuid}"[:64])
        metadata = messages.Metadata(actor=command.by)
        try:
            await self._hub.store.execute(servers, self._uuid, command, tenant=tenants.FIRST, metadata=metadata)
        except errors.InvalidState:
            self.cut(Cut())  # it is suspended
        except errors.Error as error:
            self.say("daemon error", error.message)


async def _refuse(reply: Reply, send: Any) -> None:
    """As an answer to the handshake."""
    sent = [*reply.headers, (b"content-type", reply.media), (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "websocket.http.response.start", "status": reply.status, "headers": sent})
    await send({"type": "websocket.http.response.body", "body": reply.body})
