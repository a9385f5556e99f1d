"""Websockets of servers, as the Panel's pages speak them: who may listen, what they hear, and who is cut off when.

Whoever connects is in the room before the server's state is read: a suspension that comes between the two finds them
there, one that came before is in what is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import jwt
import msgspec
from nats.aio.msg import Msg

from domain import errors, messages, servers, tenants
from infra import subjects
from infra.bus import Bus, Listener
from infra.config import Panel as Settings
from infra.eventstore.store import Store
from infra.tail import Tail
from services import servers as shared
from services.gateway import headers, power
from services.gateway.dialects import WINGS, Reply
from services.gateway.sockets_client import Claims, Cut, Denied, Socket

MOST = 30
#: The Panel's tokens live for 10 minutes; a denial is remembered for longer.
_DENIED_S = 3600.0
#: How long whoever connects waits for NATS before nothing is heard by it.
_EAR_S = 1.0
_PATH = re.compile(r"/api/servers/([^/]{1,64})/ws")
_TOO_MANY = b'{"error":"Too many open websocket connections."}'
_FORBIDDEN = b'{"error":"You are not authorized to access this endpoint."}'

_encode = msgspec.json.Encoder().encode
_heard = msgspec.json.Decoder(shared.Heard).decode


class Hub:
    """All websockets of this gateway. Tokens from before it was there open nothing, so it need not know what was denied
    before."""

    def __init__(
        self,
        store: Store,
        tail: Tail,
        bus: Bus,
        settings: Settings,
        origins: Callable[[bytes], bool],
        clock: Callable[[], float],
    ) -> None:
        self.store, self.bus, self.settings, self.clock = store, bus, settings, clock
        self._tail, self._origins, self._since = tail, origins, int(clock())
        self._rooms: dict[str, set[Socket]] = {}
        self._ears: dict[str, asyncio.Task[Listener]] = {}
        self._denied: dict[tuple[str, str], float] = {}
        self._telling: set[asyncio.Task[None]] = set()

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
            state = await self.state(uuid)
            await self._listen(uuid)
            await socket.serve(state)
        finally:
            room.discard(socket)
            if not room:
                self._rooms.pop(uuid, None)
                if (ear := self._ears.pop(uuid, None)) is not None:
                    self._soon(_close(ear))

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

    async def figures(self, uuid: str) -> str:
        """JSON of what a server uses."""
        found = (await power.figures(self.bus, [uuid])).get(uuid)
        state = await self.state(uuid)
        if found is None and state.configuration is not None:
            found = shared.still(state.power, state.configuration)
        return _encode(found).decode()

    # What the node says.

    async def _listen(self, uuid: str) -> None:
        """Whoever is first in a room opens its ear."""
        if uuid not in self._ears:
            subject = subjects.server(uuid, "*")
            self._ears[uuid] = asyncio.create_task(self.bus.subscribe(subject, self._overhear(uuid)))
        await asyncio.wait([self._ears[uuid]], timeout=_EAR_S)
        self._soon(self._tell(uuid, shared.LISTENING))

    def _overhear(self, uuid: str) -> Callable[[Msg], Coroutine[Any, Any, None]]:
        async def pass_on(message: Msg) -> None:
            room = list(self._rooms.get(uuid, ()))
            match message.subject.rpartition(".")[2]:
                case shared.CONSOLE:
                    said = _heard(message.data).said
                case shared.STATS:
                    said = [("stats", message.data.decode())]
                case _:
                    return
            for event, text in said:
                for socket in room:
                    socket.pass_on(event, text)

        return pass_on

    async def _tell(self, uuid: str, what: str, data: bytes = b"") -> None:
        with contextlib.suppress(errors.Unavailable):  # nor is anything heard then
            await self.bus.publish(subjects.server(uuid, what), data)

    async def _keep_listening(self) -> None:
        while True:
            await asyncio.sleep(shared.LISTENING_S)
            for uuid in [*self._rooms]:
                await self._tell(uuid, shared.LISTENING)

    def _soon(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    # What the log says.

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_listening())
            group.create_task(self._tail.follow(self._hear, frozenset({servers.STREAM})))

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
                if room:
                    cut = shared.Cut(recorded.position, len(room))
                    self._soon(self._tell(uuid, shared.CUT, _encode(cut)))
            case servers.Deleted():
                for socket in room:
                    socket.say("deleted")
                    socket.cut(Cut(1000, "deleted"))
            case servers.PowerChanged():
                for socket in room:
                    socket.status(event.power)
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


async def _refuse(reply: Reply, send: Any) -> None:
    """As an answer to the handshake."""
    sent = [*reply.headers, (b"content-type", reply.media), (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "websocket.http.response.start", "status": reply.status, "headers": sent})
    await send({"type": "websocket.http.response.body", "body": reply.body})


async def _close(ear: asyncio.Task[Listener]) -> None:
    await (await ear).close()
