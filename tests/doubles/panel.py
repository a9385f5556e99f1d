"""A Panel over a real socket: the remote interface that nodes ask, and its own calls to a node.

In tests it runs in a thread, so that what it says can be changed at once: `with Panel() as panel: panel.add(uuid)`.
What it does follows pterodactyl/panel 1.11: errors as Laravel writes them, `[]` for an empty map, pages from 1.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import http.client
import json
import secrets
import ssl
import threading
import time
import uuid as uuids
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import jwt
from aiohttp import web

TOKEN_ID = "abcdefghij123456"
TOKEN = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01"

Answer = Callable[[web.Request], Any]


def settings(uuid: str, **changed: Any) -> dict[str, Any]:
    """As ServerConfigurationStructureService makes them; `changed` replaces keys of `settings`."""
    made: dict[str, Any] = {
        "uuid": uuid,
        "meta": {"name": "My Server", "description": ""},
        "suspended": False,
        "environment": {"SERVER_JARFILE": "server.jar", "P_SERVER_LOCATION": "us.nyc", "P_SERVER_UUID": uuid},
        "invocation": "sleep 600",
        "skip_egg_scripts": False,
        "build": {
            "memory_limit": 256,
            "swap": 0,
            "io_weight": 500,
            "cpu_limit": 100,
            "threads": None,
            "disk_space": 64,
            "oom_disabled": True,
        },
        "container": {"image": "ghcr.io/pterodactyl/yolks:java_17", "oom_disabled": True, "requires_rebuild": False},
        "allocations": {
            "force_outgoing_ip": False,
            "default": {"ip": "127.0.0.1", "port": 25565},
            "mappings": {"127.0.0.1": [25565]},
        },
        "mounts": [],
        "egg": {"id": "egg-1", "file_denylist": []},
    }
    return {**made, **changed}


def process(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "startup": {"done": ["ready"], "user_interaction": [], "strip_ansi": False},
        "stop": {"type": "command", "value": "stop"},
        "configs": [],
    }
    return {**made, **changed}


@dataclass
class Server:
    settings: dict[str, Any]
    process: dict[str, Any] = field(default_factory=process)


@dataclass
class Account:
    """Somebody who may log in to SFTP as `name.<first 8 of the server>`, with a password or one of the `keys`, each
    as in a file of public keys."""

    user: str
    password: str
    permissions: list[str]
    keys: list[str] = field(default_factory=list)

    def has(self, kind: str, secret: str) -> bool:
        if kind == "password":
            return secret == self.password
        return secret.split()[:2] in [key.split()[:2] for key in self.keys]


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Panel:
    """`trouble(path)` may answer in its place; `seen` is what nodes asked, `activities` what they reported;
    `node` are the credentials of its one node."""

    def __init__(self, port: int = 0, certificate: ssl.SSLContext | None = None) -> None:
        self.servers: dict[str, Server] = {}
        self.accounts: dict[str, Account] = {}
        self.trouble: Answer | None = None
        self.seen: list[Seen] = []
        self.activities: list[dict[str, Any]] = []
        self.resets = 0
        self.node = TOKEN_ID, TOKEN
        self._port, self._certificate = port, certificate
        self._connections: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Panel:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._admit])
        app.add_routes(
            [
                web.get("/api/remote/servers", self._list),
                web.post("/api/remote/servers/reset", self._reset),
                web.get("/api/remote/servers/{uuid}", self._one),
                web.post("/api/remote/sftp/auth", self._login),
                web.post("/api/remote/activity", self._activity),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._certificate)
        await site.start()
        assert site._server is not None
        self.port: int = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self.url = f"http{'s' if self._certificate else ''}://127.0.0.1:{self.port}"

    async def _end(self) -> None:
        await self._runner.cleanup()
        for transport in list(self._connections):  # those over TLS would wait for the other side
            transport.abort()
        await asyncio.sleep(0.01)

    # What people do in it.

    def add(self, uuid: str | None = None, **changed: Any) -> str:
        """A server of this node; its uuid."""
        uuid = uuid or str(uuids.uuid4())
        self.servers[uuid] = Server(settings(uuid, **changed))
        return uuid

    def change(self, uuid: str, **changed: Any) -> None:
        """Replaces keys of its settings; `build={"swap": -1}` those inside a map."""
        made = copy.deepcopy(self.servers[uuid].settings)
        for name, value in changed.items():
            made[name] = {**made[name], **value} if isinstance(value, dict) and isinstance(made[name], dict) else value
        self.servers[uuid].settings = made

    def account(self, uuid: str, name: str, password: str, *permissions: str) -> str:
        """A user with permissions on a server; the name for SFTP."""
        username = f"{name}.{uuid[:8]}"
        self.accounts[username] = Account(str(uuids.uuid5(uuids.NAMESPACE_DNS, name)), password, list(permissions))
        return username

    def token(self, uuid: str, user: str = "ann", *permissions: str, lives_s: float = 600, **changed: Any) -> str:
        """What the Panel's pages show a node's websocket, as NodeJWTService signs it."""
        now = time.time()
        claims = {
            "iss": self.url,
            "aud": ["http://node.example"],
            "jti": hashlib.md5((user + uuid).encode(), usedforsecurity=False).hexdigest(),
            "iat": int(now),
            "nbf": int(now) - 300,
            "exp": int(now + lives_s),
            "server_uuid": uuid,
            "user_uuid": user,
            "user_id": 1,
            "unique_id": secrets.token_hex(8),
            "permissions": list(permissions or ("websocket.connect", "control.start", "control.stop")),
        }
        made: str = jwt.encode({**claims, **changed}, self.node[1], algorithm="HS256")
        return made

    def toggle(self, node: str, uuid: str, *, suspend: bool) -> bool:
        """As SuspensionService: it is written down, the node is told, and on any failure within 15 s all is as it was
        before. Whether it succeeded."""
        before = self.servers[uuid].settings["suspended"]
        self.change(uuid, suspended=suspend)
        if self.sync(node, uuid) == 204:
            return True
        self.change(uuid, suspended=before)
        return False

    def sync(self, node: str, uuid: str) -> int | None:
        """Tells a node to sync a server as Guzzle would; the status, None where there was no answer in time."""
        parts = urlsplit(node)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=15)
        headers = {
            "Authorization": f"Bearer {self.node[1]}",
            "Accept": "application/json",
            "Content-Type": "application/json",
            "Content-Length": "0",
        }
        try:
            connection.request("POST", f"/api/servers/{uuid}/sync", headers=headers)
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def configuration(self) -> dict[str, Any]:
        """Of the node, as Node::getConfiguration has it."""
        return {
            "debug": False,
            "uuid": str(uuids.uuid5(uuids.NAMESPACE_DNS, "node")),
            "token_id": self.node[0],
            "token": self.node[1],
            "api": {
                "host": "0.0.0.0",
                "port": 8080,
                "ssl": {
                    "enabled": False,
                    "cert": "/etc/letsencrypt/live/node.example/fullchain.pem",
                    "key": "/etc/letsencrypt/live/node.example/privkey.pem",
                },
                "upload_limit": 100,
            },
            "system": {"data": "/var/lib/pterodactyl/volumes", "sftp": {"bind_port": 2022}},
            "allowed_mounts": [],
            "remote": self.url,
        }

    def renew(self, node: str) -> int | None:
        """As NodeUpdateService with another token, which it keeps whatever the node answers to the old one; the
        status, None where there was no answer."""
        parts = urlsplit(node)
        headers = {"Authorization": f"Bearer {self.node[1]}", "Content-Type": "application/json"}
        self.node = secrets.token_hex(8), secrets.token_hex(32)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=15)
        try:
            connection.request("POST", "/api/update", json.dumps(self.configuration()), headers)
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    # What nodes ask.

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.transport is not None:
            self._connections.add(request.transport)
        body = await request.text()
        self.seen.append(
            Seen(request.method, str(request.rel_url), dict(request.headers), json.loads(body) if body else None)
        )
        if self.trouble is not None:
            answer = self.trouble(request)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer is not None:
                found: web.StreamResponse = answer
                return found
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer":
            return _error(401, "HttpException", headers={"WWW-Authenticate": "Bearer"})
        if token.count(".") != 1:
            return _error(400, "BadRequestHttpException")
        if token != ".".join(self.node):
            return _error(403, "AccessDeniedHttpException")
        answered: web.StreamResponse = await handler(request)
        return answered

    async def _one(self, request: web.Request) -> web.Response:
        server = self.servers.get(request.match_info["uuid"])
        if server is None:
            return _error(404, "NotFoundHttpException")
        return _json({"settings": _php(server.settings), "process_configuration": server.process})

    async def _list(self, request: web.Request) -> web.Response:
        page, size = max(int(request.query.get("page", "1")), 1), int(request.query.get("per_page", "50"))
        every = sorted(self.servers)
        some = every[(page - 1) * size : page * size]
        data = [
            {
                "uuid": uuid,
                "settings": _php(self.servers[uuid].settings),
                "process_configuration": self.servers[uuid].process,
            }
            for uuid in some
        ]
        first = (page - 1) * size + 1 if some else None
        meta: dict[str, Any] = {
            "current_page": page,
            "from": first,
            "last_page": max(-(-len(every) // size), 1),
            "per_page": size,
            "to": None if first is None else first + len(some) - 1,
            "total": len(every),
            "path": f"{self.url}/api/remote/servers",
            "links": [],
        }
        return _json({"data": data, "links": {}, "meta": meta})

    async def _reset(self, request: web.Request) -> web.Response:
        self.resets += 1
        return web.Response(status=204)

    async def _login(self, request: web.Request) -> web.Response:
        asked = self.seen[-1].body
        account = self.accounts.get(asked["username"])
        uuid = next((one for one in self.servers if asked["username"].endswith("." + one[:8])), None)
        for name in ("session_id", "client_version"):
            base64.b64decode(asked[name], validate=True)  # as Go writes bytes
        if account is None or uuid is None or not account.has(asked["type"], asked["password"]):
            return _error(
                403, "HttpForbiddenException", "Authorization credentials were not correct, please try again."
            )
        if self.servers[uuid].settings["suspended"]:
            return _error(409, "ServerStateConflictException", "This server is currently suspended.")
        return _json({"server": uuid, "user": account.user, "permissions": account.permissions})

    async def _activity(self, request: web.Request) -> web.Response:
        self.activities += self.seen[-1].body["data"]
        return web.Response(status=204)


def _php(made: dict[str, Any]) -> dict[str, Any]:
    """PHP writes an empty map as `[]`."""
    shown = dict(made)
    for name in ("environment", "labels"):
        if shown.get(name) == {}:
            shown[name] = []
    if shown.get("allocations", {}).get("mappings") == {}:
        shown["allocations"] = {**shown["allocations"], "mappings": []}
    return shown


def _json(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)


def _error(status: int, code: str, detail: str = "", headers: dict[str, str] | None = None) -> web.Response:
    body = {"errors": [{"code": code, "status": str(status), "detail": detail or code}]}
    return web.json_response(body, status=status, headers=headers)
