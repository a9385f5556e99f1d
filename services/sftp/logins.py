"""Who may come in: the Panel is asked, and then the log, in which a server may be suspended of which the Panel does not
say so yet."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import asyncpg
import asyncssh
import structlog
from asyncssh.channel import SSHChannel
from asyncssh.stream import SSHServerStreamSession

from domain import errors
from infra import config
from infra.db import CONNECTION_LOST
from infra.panel import Login, Panel, Refused
from services.sftp.files import Files
from services.sftp.rooms import Hub, Note, Session
from services.sftp.server import Server

log = structlog.get_logger("sftp")

Kind = Literal["password", "public_key"]

#: Attempts as many as OpenSSH and the real Wings allow on a connection; what may be open on it at once.
_ATTEMPTS, _CHANNELS = 6, 4
#: Who failed so often in so many seconds, from one address, is not listened to for a while; such addresses are kept.
_FAILURES, _WINDOW_S, _ADDRESSES = 30, 60.0, 10_000
#: The Panel's words for: not now.
_LATER = (409, 429)
#: Of an address, a fraction of all places may be taken by connections that nobody is logged in on.
_STRANGERS = 0.5
_USERNAME = re.compile(r".+\.([a-z0-9]{8})", re.IGNORECASE | re.DOTALL)
_MAX_SECRET = 16 * 1024


class Addresses:
    """How the addresses behaved that connections come from."""

    def __init__(self) -> None:
        self.strangers: dict[str, int] = {}
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def arrived(self, address: str) -> None:
        self.strangers[address] = self.strangers.get(address, 0) + 1

    def known(self, address: str) -> None:
        left = self.strangers.get(address, 0) - 1
        if left > 0:
            self.strangers[address] = left
        else:
            self.strangers.pop(address, None)

    def failed(self, address: str) -> None:
        self._failed.setdefault(address, deque(maxlen=_FAILURES)).append(time.monotonic())
        self._failed.move_to_end(address)
        if len(self._failed) > _ADDRESSES:
            self._failed.popitem(last=False)

    def is_shunned(self, address: str) -> bool:
        failed = self._failed.get(address)
        return failed is not None and len(failed) == _FAILURES and time.monotonic() - failed[0] < _WINDOW_S


class House:
    """What the connections of this process share."""

    def __init__(self, settings: config.Sftp, hub: Hub, panel: Panel, note: Note, pool: ThreadPoolExecutor) -> None:
        self.settings, self.hub, self.panel, self.note, self.pool = settings, hub, panel, note, pool
        self.addresses = Addresses()
        self.doors: set[Door] = set()
        self.is_closed = False

    def is_full(self, address: str) -> bool:
        most = self.settings.connections
        strangers = self.addresses.strangers.get(address, 0)
        return self.is_closed or len(self.doors) >= most or strangers >= max(most * _STRANGERS, 1)


class Door(asyncssh.SSHServer):
    """One connection. The methods are asyncssh's."""

    def __init__(self, house: House) -> None:
        self.session: Session | None = None
        self._house = house
        self._files: Files | None = None
        self._address = ""
        self._username: str | None = None
        self._asked: bytes | None = None  # a digest of what opened it
        self._attempts = self._channels = 0
        self._is_in = self._is_stranger = False
        self._id = os.urandom(32)

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn = conn
        self._address = str((conn.get_extra_info("peername") or ("",))[0])
        if self._house.is_full(self._address) or self._house.addresses.is_shunned(self._address):
            conn.abort()
            return
        self._house.doors.add(self)
        self._house.addresses.arrived(self._address)
        self._is_stranger = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._house.doors.discard(self)
        self._is_known()
        self._leave()

    def _is_known(self) -> None:
        if self._is_stranger:
            self._is_stranger = False
            self._house.addresses.known(self._address)

    def _leave(self) -> None:
        session, files = self.session, self._files
        self.session = self._files = None
        if session is None:
            return
        session.silence()
        self._house.hub.leave(session)
        if files is not None:
            self._house.pool.submit(files.close_all)
        if self._is_in:
            log.info(
                "an SFTP session ended",
                server=session.server,
                user=session.login.user,
                seconds=round(time.monotonic() - session.began, 3),
                read_bytes=session.read,
                written_bytes=session.written,
            )

    def end(self) -> None:
        """Says so and closes, whatever waits to be sent."""
        self._conn.disconnect(asyncssh.DISC_BY_APPLICATION, "The connection was closed by the server")

    # Who it is.

    async def begin_auth(self, username: str) -> bool:
        if self._username not in (None, username):
            self.end()
        self._username = username
        return True

    def password_auth_supported(self) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def kbdint_auth_supported(self) -> bool:
        return False

    async def validate_password(self, username: str, password: str) -> bool:
        return await self._try("password", username, password)

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Asked before the client has shown that the key is its own, and again when it has."""
        return await self._try("public_key", username, key.export_public_key().decode().strip())

    async def _try(self, kind: Kind, username: str, secret: str) -> bool:
        asked = hashlib.sha256(f"{kind}\0{username}\0{secret}".encode()).digest()
        if self.session is not None and asked == self._asked:
            return self.session.room.is_open and not self.session.is_cut
        self._attempts += 1
        if self._attempts > _ATTEMPTS or self._house.addresses.is_shunned(self._address):
            self.end()
            return False
        self._leave()
        named = _USERNAME.fullmatch(username)
        if named is None or len(secret) > _MAX_SECRET:
            self._house.addresses.failed(self._address)
            return False
        self.session = await self._admitted(kind, username, secret, named[1].lower())
        self._asked = asked
        if self not in self._house.doors:
            self._leave()  # the client has gone meanwhile
        return self.session is not None

    async def _admitted(self, kind: Kind, username: str, secret: str, server: str) -> Session | None:
        version = str(self._conn.get_extra_info("client_version") or "").encode()
        hub = self._house.hub
        with hub.waiting() as waiting:
            try:
                login = await self._house.panel.login(kind, username, secret, self._address, self._id, version)
                if not login.server.lower().startswith(server):
                    raise errors.RemoteRefused("The Panel's answer is about another server")
                session = self._session(login)
                if await hub.admit(session, waiting):
                    return session
                log.info("an SFTP login was refused", reason="the server is not open", server=login.server)
            except (Refused, errors.NotFound) as error:
                if kind == "password" and not (isinstance(error, Refused) and error.status in _LATER):
                    self._house.addresses.failed(self._address)
                log.info("an SFTP login was refused", reason=error.message)
            except errors.Error as error:
                log.warning("an SFTP login could not be judged", reason=error.message)
            except (*CONNECTION_LOST, asyncpg.PostgresError) as error:
                log.warning("an SFTP login could not be judged", reason=type(error).__name__)
            except Exception as error:
                log.error("an SFTP login ended in an error of ours", error=repr(error))
        return None

    def _session(self, login: Login) -> Session:
        house = self._house
        return Session(login, self._address, house.hub.room(login.server), self.end, house.note)

    def auth_completed(self) -> None:
        self._is_in = True
        self._is_known()
        if self.session is None:
            self.end()
            return
        log.info("an SFTP session began", server=self.session.server, user=self.session.login.user)

    # What it does.

    def session_requested(self) -> Channel | bool:
        if self.session is None or self.session.is_cut or self._channels >= _CHANNELS:
            return False
        self._channels += 1
        return Channel(self)

    def serve(self, channel: SSHChannel[bytes]) -> Server:
        """What answers on a channel, once it is to be SFTP."""
        assert isinstance(channel, asyncssh.SSHServerChannel)
        session = self.session
        if session is None:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "Nobody is logged in")
        if self._files is None:
            self._files = Files(session)
        return Server(channel, session, self._files, self._house.pool)

    def channel_closed(self) -> None:
        self._channels -= 1


class Channel(SSHServerStreamSession[bytes]):
    """SFTP and nothing else: no shell, no command. The methods are asyncssh's."""

    def __init__(self, door: Door) -> None:
        super().__init__(None, door.serve, asyncssh.sftp.MAX_SFTP_VERSION, False)
        self._door = door

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.channel_closed()
        super().connection_lost(exc)
