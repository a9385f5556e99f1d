"""Servers in containers of the Docker Engine: one for each, named by its uuid and made anew for each start."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from typing import Any

import msgspec
from msgspec import Struct, field

from domain import errors
from domain.server_config import Allocations
from infra import config, volumes
from infra.runtimes import Launch, Running, docker_spec
from infra.runtimes.docker_api import Engine, Refused, container, filters
from infra.runtimes.docker_console import Place
from infra.runtimes.docker_container import Container, Inspected, warn
from infra.runtimes.docker_kept import Kept, Note

#: The bridge between servers of this machine; whoever made it already may have made it as he likes.
NETWORK = "undrift"

_PULL_S = 900.0
_START_S = 60.0
_NAME = re.compile(r"[a-zA-Z0-9][\w.-]*(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@\w+:[0-9a-fA-F]+)?", re.ASCII)

_RUNS = "The server's container runs"

#: Is told of a server's pull, line by line, while it goes on.
Heard = Callable[[str, bytes], None]


class _Listed(Struct):
    id: str = field(name="Id")
    labels: dict[str, str] | None = field(name="Labels", default=None)
    state: str = field(name="State", default="")


class _Config(Struct):
    labels: dict[str, str] | None = field(name="Labels", default=None)


class _Owned(Inspected):
    config: _Config = field(name="Config", default_factory=_Config)


class _Made(Struct):
    id: str = field(name="Id")
    warnings: list[str] | None = field(name="Warnings", default=None)


class _Pulling(Struct):
    status: str = ""
    progress: str = ""
    id: str = ""
    error: str = ""


class _Subnet(Struct):
    subnet: str = field(name="Subnet", default="")
    gateway: str = field(name="Gateway", default="")


class _Addresses(Struct):
    config: list[_Subnet] | None = field(name="Config", default=None)


class _Network(Struct):
    driver: str = field(name="Driver", default="")
    addresses: _Addresses = field(name="IPAM", default_factory=_Addresses)


class Docker:
    """The runtime of infra.runtimes over `servers.docker_socket`. What an image's pull says goes to `heard`, or else
    comes as the first lines of the server's output."""

    def __init__(self, settings: config.Settings, heard: Heard | None = None) -> None:
        self._settings = settings.servers
        self._engine = Engine(settings.servers.docker_socket)
        self._kept = Kept(settings.directory / "containers")
        self._heard = heard
        self._running: list[Container] = []

    async def start(self, launch: Launch) -> Running:
        found = await self._present(launch.uuid)
        if found is not None and found.state.runs:
            return await self._found_running(launch.uuid, found)
        await self._clear(launch.uuid, found)
        said = await self._bring(launch)
        network, interface = await self._network(launch.allocations)
        body = docker_spec.container(
            launch,
            owner=volumes.owner(self._settings.user) or (os.geteuid(), os.getegid()),
            installation=await self._kept.installation(),
            network=network,
            interface=interface,
            pids=self._settings.pids,
            machine=await self._engine.machine(),
        )
        try:
            made = await self._make(launch.uuid, body)
        except Refused as refused:
            raise Refused(refused.status, _redacted(refused.said, launch)) from None
        running = self._container(launch.uuid, made, Place())
        running.before(said)
        return running

    async def adopt(self) -> dict[str, Running]:
        ours = f"{docker_spec.INSTALLATION}={await self._kept.installation()}"
        query = {"all": "1", **filters(label=[ours])}
        found: dict[str, Running] = {}
        for one in await self._engine.ask("GET", "/containers/json", query, kind=list[_Listed]):
            uuid = (one.labels or {}).get(docker_spec.SERVER, "")
            if not uuid:
                continue
            if one.state == "created":  # we ended between its making and its start
                await self._drop(one.id)
            elif (adopted := await self._adopted(uuid, one)) is not None:
                found[uuid] = adopted
        return found

    async def remove(self, uuid: str) -> None:
        found = await self._present(uuid)
        if found is not None and found.state.runs:
            raise errors.SyncFailed(_RUNS)
        await self._clear(uuid, found)

    async def close(self) -> None:
        for running in self._running:
            await running.close()
        self._running.clear()
        await self._engine.close()

    async def interface(self) -> str:
        """This machine's address in the network of servers, as `{{config.docker.interface}}` stands for it."""
        return (await self._network(Allocations(False, None, {})))[1]

    # Containers.

    async def _present(self, uuid: str) -> _Owned | None:
        """The container of an earlier start. Raises errors.SyncFailed for one that is not ours."""
        try:
            found = await self._engine.ask("GET", container(uuid, "/json"), kind=_Owned)
        except Refused as refused:
            if refused.status != 404:
                raise
            return None
        if (found.config.labels or {}).get(docker_spec.INSTALLATION) != await self._kept.installation():
            raise errors.SyncFailed("A container of the server's name is there and belongs to somebody else")
        return found

    async def _clear(self, uuid: str, found: _Owned | None) -> None:
        if found is not None:
            await self._drop(found.id)
        await self._kept.forget(uuid)

    async def _drop(self, name: str) -> None:
        try:
            await self._engine.tell("DELETE", container(name), {"v": "1"})
        except Refused as refused:
            if refused.status != 404:
                raise

    async def _found_running(self, uuid: str, found: _Owned) -> Container:
        """What the engine has started without being able to tell us: it went away meanwhile."""
        if any(one.id == found.id for one in self._running):
            raise errors.SyncFailed(_RUNS)
        note = await self._kept.read(uuid)
        return self._container(uuid, found, Place() if note is None or note.container != found.id else note.place)

    async def _make(self, uuid: str, body: dict[str, Any]) -> Inspected:
        made = await self._engine.ask("POST", "/containers/create", {"name": uuid}, body, kind=_Made)
        warn(uuid, made.warnings)
        try:
            await self._engine.tell("POST", container(made.id, "/start"), within_s=_START_S)
            return await self._engine.ask("GET", container(made.id, "/json"), kind=Inspected)
        except Refused:
            await self._drop(made.id)
            raise

    async def _adopted(self, uuid: str, one: _Listed) -> Container | None:
        """What runs, or has ended and nobody was told so."""
        note = await self._kept.read(uuid)
        if note is None or note.container != one.id:
            note = Note(one.id)
        if note.ended:
            return None
        try:
            found = await self._engine.ask("GET", container(one.id, "/json"), kind=Inspected)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return self._container(uuid, found, note.place)

    def _container(self, uuid: str, found: Inspected, place: Place) -> Container:
        made = Container(
            self._engine,
            self._kept,
            uuid,
            found,
            pids=self._settings.pids,
            stop_s=self._settings.stop_s,
            place=place,
        )
        self._running = [one for one in self._running if not one.over]
        self._running.append(made)
        return made

    # Images.

    async def _bring(self, launch: Launch) -> Sequence[bytes]:
        """Pulls the image where it is missing."""
        name = docker_spec.image(launch)
        if not _NAME.fullmatch(name) or ".." in name:
            raise errors.SyncFailed("The image's name is not one of an image")
        try:
            await self._engine.tell("GET", f"/images/{name}/json")
        except Refused as refused:
            if refused.status != 404:
                raise
            if launch.image.startswith("~"):
                raise errors.SyncFailed(f"The image {name} is to be of this machine and is not here") from None
            return await self._pull(launch.uuid, name)
        return []

    async def _pull(self, uuid: str, name: str) -> Sequence[bytes]:
        said: list[bytes] = []
        query = {"fromImage": name}
        if ":" not in name.rpartition("/")[2] and "@" not in name:
            query["tag"] = "latest"  # without one, all of them are pulled
        try:
            async with self._engine.stream("POST", "/images/create", query, within_s=_PULL_S) as answer:
                async for raw in answer:
                    if line := _progress(raw, name):
                        said.append(line)
                        if self._heard is not None:
                            self._heard(uuid, line)
        except Refused as refused:
            raise errors.SyncFailed(f"The image {name} could not be pulled: {refused.said}") from None
        return said if self._heard is None else []

    # Networks.

    async def _network(self, allocations: Allocations) -> tuple[str, str]:
        """The network a server is in, made where it is missing, and the address that stands in for 127.0.0.1."""
        found = await self._ensure(NETWORK, {})
        name = docker_spec.outgoing(allocations)
        if name is not None and allocations.default is not None:
            await self._ensure(name, {"com.docker.network.host_ipv4": allocations.default.ip})
        return name or NETWORK, _gateway(found)

    async def _ensure(self, name: str, options: dict[str, str]) -> _Network:
        try:
            return await self._engine.ask("GET", f"/networks/{name}", kind=_Network)
        except Refused as refused:
            if refused.status != 404:
                raise
        body = {"Name": name, "Driver": "bridge", "Options": options}
        try:
            await self._engine.tell("POST", "/networks/create", None, body)
        except Refused as refused:
            if refused.status != 409:  # somebody was faster
                raise
        return await self._engine.ask("GET", f"/networks/{name}", kind=_Network)


def _gateway(network: _Network) -> str:
    for one in network.addresses.config or []:
        if one.gateway and ":" not in one.gateway:
            return one.gateway.partition("/")[0]
        if one.subnet and ":" not in one.subnet:
            return str(ip_network(one.subnet, strict=False)[1])
    return "127.0.0.1"


def _progress(raw: bytes, name: str) -> bytes:
    """A line of a pull, for people. Raises errors.SyncFailed for the one that says why it failed."""
    try:
        said = msgspec.json.decode(raw, type=_Pulling)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""
    if said.error:
        raise errors.SyncFailed(f"The image {name} could not be pulled: {said.error}")
    parts = (f"{said.id}:" if said.id else "", said.status, said.progress)
    return " ".join(part for part in parts if part).encode()


def _redacted(said: str, launch: Launch) -> str:
    """The engine may quote what it was given: values of the environment are secrets."""
    values = {*launch.environment.values(), launch.invocation}
    for value in sorted(values, key=len, reverse=True):
        if len(value) > 2:
            said = said.replace(value, "…")
    return said
