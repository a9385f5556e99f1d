"""A Docker Engine over a real unix socket, whose containers are processes of this machine.

In tests it runs in a thread: `with Engine(folder) as engine: engine.images.add("game")`; it answers at `engine.socket`.
`away()` and `back()` are its restart with live-restore: every connection breaks, the containers run on. What it accepts
and refuses, in which words, follows moby (API 1.43); a container's file system, user and network are this machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from tests.doubles import engine_rules as rules
from tests.doubles.engine_process import ENTRYPOINT, Process, stamp
from tests.doubles.engine_rules import Refusal

_POLL_S = 0.02
_PREFIX = re.compile(r"/v(\d+)\.(\d+)(/.*)")
_NEVER = "0001-01-01T00:00:00Z"
_WORDS = "[a-zA-Z0-9][a-zA-Z0-9_.-]"


@dataclass
class Container:
    id: str
    name: str
    config: dict[str, Any]
    host: dict[str, Any]
    process: Process | None = None
    updates: list[dict[str, Any]] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.code is None

    @property
    def status(self) -> str:
        if self.process is None:
            return "created"
        return "running" if self.running else "exited"


class Engine:
    """`asked` has method and path of each request, `registry` what can be pulled; `trouble(method, path)` refuses."""

    def __init__(self, folder: Path, api: str = rules.API, oldest: str = rules.OLDEST_API) -> None:
        self.socket = str(folder / "docker.sock")
        self.images: set[str] = set()
        self.registry: set[str] = set()
        self.networks: dict[str, dict[str, Any]] = {}
        self.containers: dict[str, Container] = {}
        self.asked: list[tuple[str, str]] = []
        self.hasty = False  # as podman is after a restart: everything has ended, it says
        self.trouble: Callable[[str, str], Refusal | None] = lambda method, path: None
        self._api, self._oldest = api, oldest
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._hijacked: set[asyncio.Transport] = set()

    def __enter__(self) -> Engine:
        self._thread.start()
        self.back()
        return self

    def __exit__(self, *_: object) -> None:
        for container in self.containers.values():
            if container.process is not None:
                container.process.signal(signal.SIGKILL)
                while container.running:
                    time.sleep(_POLL_S)
        self.away()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def away(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)

    def back(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def named(self, name: str) -> Container:
        return self._find(name)

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._each])
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.UnixSite(self._runner, self.socket).start()

    async def _stop(self) -> None:
        for transport in list(self._hijacked):
            transport.abort()
        await self._runner.cleanup()
        Path(self.socket).unlink(missing_ok=True)

    @web.middleware
    async def _each(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return web.json_response({"message": refusal.message}, status=refusal.status)
        except ConnectionResetError:  # who asked has left, or is to believe that we have
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if match := _PREFIX.fullmatch(path):
            path = match[3]
            self._check_version((int(match[1]), int(match[2])))
        self.asked.append((request.method, path))
        if refusal := self.trouble(request.method, path):
            raise refusal
        for method, pattern, answer in self._routes():
            if method == request.method and (found := re.fullmatch(pattern, path)):
                return await answer(request, *found.groups())
        raise Refusal(404, "page not found")

    def _check_version(self, wanted: tuple[int, int]) -> None:
        newest, oldest = (tuple(int(part) for part in text.split(".")) for text in (self._api, self._oldest))
        said = f"client version {wanted[0]}.{wanted[1]} is too"
        if wanted > newest:
            raise Refusal(400, f"{said} new. Maximum supported API version is {self._api}")
        if wanted < oldest:
            raise Refusal(
                400, f"{said} old. Minimum supported API version is {self._oldest}, please upgrade your client"
            )

    def _routes(self) -> list[tuple[str, str, Callable[..., Awaitable[web.StreamResponse]]]]:
        one = r"/containers/([^/]+)"
        return [
            ("GET", "/version", self._version),
            ("GET", "/info", self._info),
            ("GET", "/images/(.+)/json", self._image),
            ("POST", "/images/create", self._pull),
            ("GET", "/networks/([^/]+)", self._network),
            ("POST", "/networks/create", self._network_create),
            ("GET", "/containers/json", self._list),
            ("POST", "/containers/create", self._create),
            ("GET", f"{one}/json", self._inspect),
            ("POST", f"{one}/start", self._begin),
            ("POST", f"{one}/attach", self._attach),
            ("GET", f"{one}/logs", self._logs),
            ("POST", f"{one}/wait", self._wait),
            ("POST", f"{one}/kill", self._kill),
            ("POST", f"{one}/stop", self._end),
            ("POST", f"{one}/update", self._update),
            ("GET", f"{one}/stats", self._stats),
            ("DELETE", one, self._remove),
        ]

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"ApiVersion": self._api, "MinAPIVersion": self._oldest, "Version": "24.0.7", "Os": "linux"}
        )

    async def _info(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"MemTotal": rules.MEMORY, "NCPU": rules.CORES, "OomKillDisable": True, "CgroupVersion": "1"}
        )

    # Images and networks.

    async def _image(self, request: web.Request, name: str) -> web.StreamResponse:
        if name not in self.images:
            raise Refusal(404, f"No such image: {name}")
        return web.json_response({"Id": f"sha256:{name}", "Config": {"Entrypoint": ENTRYPOINT}})

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        name, tag = request.query["fromImage"], request.query.get("tag", "")
        whole = f"{name}:{tag}" if tag else name
        if whole not in self.registry:
            said = f"pull access denied for {name}, repository does not exist or may require 'docker login'"
            raise Refusal(404, f"{said}: denied: requested access to the resource is denied")
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        lines: list[dict[str, Any]] = [
            {"status": f"Pulling from {name}", "id": tag or "latest"},
            {
                "status": "Downloading",
                "progressDetail": {"current": 5, "total": 10},
                "progress": "[=>  ]",
                "id": "8d3f",
            },
            {"status": "Pull complete", "progressDetail": {}, "id": "8d3f"},
        ]
        if "broken" in name:
            lines[2:] = [{"errorDetail": {"message": "unexpected EOF"}, "error": "unexpected EOF"}]
        else:
            self.images |= {whole, name}
        for line in lines:
            await answer.write(json.dumps(line).encode() + b"\r\n")
        return answer

    async def _network(self, request: web.Request, name: str) -> web.StreamResponse:
        if name not in self.networks:
            raise Refusal(404, f"network {name} not found")
        return web.json_response(self.networks[name])

    async def _network_create(self, request: web.Request) -> web.StreamResponse:
        body = rules.known(await request.json(), {"Name", "Driver", "Options"}, "NetworkCreate")
        if body["Name"] in self.networks:
            raise Refusal(409, f"network with name {body['Name']} already exists")
        number = 18 + len(self.networks)
        addresses = {
            "Driver": "default",
            "Config": [{"Subnet": f"172.{number}.0.0/16", "Gateway": f"172.{number}.0.1"}],
        }
        self.networks[body["Name"]] = {**body, "Id": secrets.token_hex(32), "IPAM": addresses}
        return web.json_response({"Id": self.networks[body["Name"]]["Id"], "Warning": ""}, status=201)

    # Containers.

    def _find(self, name: str) -> Container:
        for container in self.containers.values():
            if container.name == name or container.id.startswith(name):
                return container
        raise Refusal(404, f"No such container: {name}")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        wanted = json.loads(request.query.get("filters", "{}")).get("label", [])
        every = request.query.get("all") in ("1", "true")
        shown = [
            {
                "Id": one.id,
                "Names": [f"/{one.name}"],
                "Labels": one.config.get("Labels", {}),
                "State": one.status,
                "Status": one.status,
            }
            for one in self.containers.values()
            if (every or one.running)
            and {f"{name}={value}" for name, value in one.config.get("Labels", {}).items()} >= set(wanted)
        ]
        return web.json_response(shown)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        config = rules.known(await request.json(), rules.CONFIG, "ContainerConfig")
        host = rules.known(config.pop("HostConfig", {}), rules.HOST, "HostConfig")
        name = request.query["name"]
        if not re.fullmatch(f"{_WORDS}+", name):
            raise Refusal(400, f"Invalid container name ({name}), only {_WORDS} are allowed")
        if config["Image"] not in self.images:
            raise Refusal(404, f"No such image: {config['Image']}")
        for one in config["Env"]:
            if not one or one.startswith("="):
                raise Refusal(400, f"invalid environment variable: {one}")
        for mount in host["Mounts"]:
            if not Path(mount["Source"]).exists():
                said = f'invalid mount config for type "bind": bind source path does not exist: {mount["Source"]}'
                raise Refusal(400, said)
        if host["NetworkMode"] not in {*self.networks, "bridge", "host", "none"}:
            raise Refusal(404, f"network {host['NetworkMode']} not found")
        for one in self.containers.values():
            if one.name == name:
                said = f'Conflict. The container name "/{name}" is already in use by container "{one.id}".'
                raise Refusal(
                    409, f"{said} You have to remove (or rename) that container to be able to reuse that name."
                )
        warnings = rules.limits(host, update=False)
        made = Container(secrets.token_hex(32), name, config, host)
        self.containers[made.id] = made
        return web.json_response({"Id": made.id, "Warnings": warnings}, status=201)

    async def _inspect(self, request: web.Request, name: str) -> web.StreamResponse:
        one = self._find(name)
        process = one.process
        state = {
            "Status": one.status,
            "Running": one.running,
            "Pid": process.pid if process is not None and one.running else 0,
            "ExitCode": process.code or 0 if process is not None else 0,
            "StartedAt": stamp(process.started) if process is not None else _NEVER,
        }
        shown = {"Id": one.id, "Name": f"/{one.name}", "State": state, "Config": one.config, "HostConfig": one.host}
        return web.json_response(shown)

    async def _begin(self, request: web.Request, name: str) -> web.StreamResponse:
        one = self._find(name)
        if one.running:
            return web.Response(status=304)
        taken = {port for other in self.containers.values() if other.running for port in _bound(other)}
        for ip, port in _bound(one) & taken:
            said = f"driver failed programming external connectivity on endpoint {one.name} ({one.id}): "
            raise Refusal(500, f"{said}Bind for {ip}:{port} failed: port is already allocated")
        environment = dict(line.partition("=")[::2] for line in one.config["Env"])
        environment.setdefault("PATH", os.environ["PATH"])
        home = next(mount["Source"] for mount in one.host["Mounts"] if mount["Target"] == "/home/container")
        one.process = Process(ENTRYPOINT, environment, home, lambda: None)
        return web.Response(status=204)

    async def _wait(self, request: web.Request, name: str) -> web.StreamResponse:
        one = self._find(name)
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        while (one.running or one.process is None) and not self.hasty:
            await asyncio.sleep(_POLL_S)
        code = one.process.code if one.process is not None else None
        await answer.write(json.dumps({"StatusCode": code or 0}).encode())
        return answer

    async def _kill(self, request: web.Request, name: str) -> web.StreamResponse:
        one = self._find(name)
        wanted = request.query.get("signal", "SIGKILL")
        if wanted not in signal.Signals.__members__:
            raise Refusal(400, f"Invalid signal: {wanted}")
        if not one.running or one.process is None:
            raise Refusal(409, f"cannot kill container: {name}: container {one.id} is not running")
        one.process.signal(signal.Signals[wanted])
        if wanted == "SIGKILL":
            await self._gone(one)
        return web.Response(status=204)

    async def _end(self, request: web.Request, name: str) -> web.StreamResponse:
        one = self._find(name)
        if not one.running or one.process is None:
            return web.Response(status=304)
        one.process.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone(one), int(request.query.get("t", "10")))
        one.process.signal(signal.SIGKILL)
        await self._gone(one)
        return web.Response(status=204)

    async def _gone(self, one: Container) -> None:
        while one.running:
            await asyncio.sleep(_POLL_S)

    async def _update(self, request: web.Request, name: str) -> web.StreamResponse:
        body = rules.known(await request.json(), rules.UPDATE, "UpdateConfig")
        one = self._find(name)
        try:
            warnings = rules.limits(body, update=True)
            rules.updated(one.host, body)
        except Refusal as refusal:
            raise Refusal(refusal.status, f"Cannot update container {one.id}: {refusal.message}") from None
        one.updates.append(body)
        return web.json_response({"Warnings": warnings})

    async def _stats(self, request: web.Request, name: str) -> web.StreamResponse:
        one = self._find(name)
        if request.query.get("stream") != "false" or request.query.get("one-shot") != "true":
            raise Refusal(400, "only one-shot statistics are asked for here")
        if one.process is None or not one.running:
            return web.json_response({"memory_stats": {}, "cpu_stats": {"cpu_usage": {"total_usage": 0}}})
        return web.json_response(one.process.stats())

    async def _remove(self, request: web.Request, name: str) -> web.StreamResponse:
        one = self._find(name)
        if one.running and request.query.get("force") != "1":
            said = f"You cannot remove a running container {one.id}."
            raise Refusal(409, f"{said} Stop the container before attempting removal or force remove")
        del self.containers[one.id]
        return web.Response(status=204)

    # Its console.

    async def _logs(self, request: web.Request, name: str) -> web.StreamResponse:
        one, query = self._find(name), request.query
        lines = one.process.lines if one.process is not None else []
        seconds, _, nanos = query.get("since", "0").partition(".")
        since = int(seconds) * 10**9 + int(nanos.ljust(9, "0"))
        sent = max(len(lines) - int(query["tail"]), 0) if "tail" in query else 0
        answer = web.StreamResponse(headers={"Content-Type": "application/vnd.docker.raw-stream"})
        await answer.prepare(request)
        while True:
            over = not one.running
            for at, line in lines[sent:]:
                sent += 1
                if at >= since:
                    await answer.write((stamp(at).encode() + b" " if query.get("timestamps") == "1" else b"") + line)
            if over or query.get("follow") != "1":
                return answer
            await asyncio.sleep(_POLL_S)

    async def _attach(self, request: web.Request, name: str) -> web.StreamResponse:
        one = self._find(name)
        process = one.process
        if process is None or request.headers.get("Upgrade") != "tcp":
            raise Refusal(400, "only the input of a running container is attached to here")
        transport = request.transport
        assert transport is not None
        self._hijacked.add(transport)
        transport.write(
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
            b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        request.protocol.set_parser(cast(Any, _Input(process)))
        try:
            while one.running and not transport.is_closing():
                await asyncio.sleep(_POLL_S)
        finally:
            self._hijacked.discard(transport)
            transport.close()
        return web.Response()


class _Input:
    """What comes over a connection that was taken over."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._process.write(data)
        return False, b""

    def feed_eof(self) -> None: ...

    def set_exception(self, *_: object) -> None: ...


def _bound(one: Container) -> set[tuple[str, str]]:
    bindings = one.host.get("PortBindings") or {}
    return {(each["HostIp"], each["HostPort"]) for some in bindings.values() for each in some}
