"""Suspensions, again and again, as the Panel does them, with clients that come back as soon as they may: each time all
of them are cut off, what they were writing ends there, and the Panel and this node say the same.

TOGGLES (1000), WEBSOCKETS (30, as many as one server takes) and TRANSFERS (20, over SFTP) make it shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import time
from pathlib import Path

import asyncssh
import pytest
from aiohttp import web
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Origin

from tests.doubles import panel as double
from tests.journeys.nodes import ask, node, panel, settings, sftp_address, taken_over, untroubled
from tests.journeys.system import System

__all__ = ["node", "panel", "settings", "untroubled"]  # fixtures

TOGGLES = int(os.environ.get("TOGGLES", "1000"))
WEBSOCKETS = int(os.environ.get("WEBSOCKETS", "30"))
TRANSFERS = int(os.environ.get("TRANSFERS", "20"))
#: Of so many suspensions one fails, because the Panel does not answer the node.
FAILS = 10
PASSWORD = "secret"


class Client:
    """Keeps something open as long as it can; `open` while it is admitted, `closed_at` is when that ended last, and
    `refused` how often it came while nobody was let in."""

    def __init__(self) -> None:
        self.open = False
        self.closed_at = 0.0
        self.refused = 0

    async def run(self) -> None:
        while True:
            with contextlib.suppress(WebSocketException, asyncssh.Error, OSError, TimeoutError, EOFError):
                await self.once()
            await asyncio.sleep(random.uniform(0.1, 0.3))

    async def once(self) -> None:
        raise NotImplementedError

    def ended(self) -> None:
        if self.open:
            self.open, self.closed_at = False, time.perf_counter()


class Page(Client):
    """A websocket that listens."""

    def __init__(self, url: str, origin: str, token: str) -> None:
        super().__init__()
        self._url, self._origin, self._token = url, origin, token

    async def once(self) -> None:
        async with connect(self._url, origin=Origin(self._origin), open_timeout=20, ping_interval=None) as socket:
            try:
                await socket.send(json.dumps({"event": "auth", "args": [self._token]}))
                async for text in socket:
                    self.open = self.open or json.loads(text)["event"] == "auth success"
            finally:
                self.ended()
                self.refused += socket.close_code == 4409


class Transfer(Client, asyncssh.SSHClient):
    """An SFTP session that writes all the time; `wrote` is how much it was told has been."""

    def __init__(self, address: tuple[str, int], username: str, name: str) -> None:
        super().__init__()
        self._address, self._username, self.name = address, username, name
        self.wrote = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended()

    async def once(self) -> None:
        host, port = self._address
        try:
            connection, _ = await asyncssh.create_connection(
                lambda: self,
                host,
                port,
                username=self._username,
                password=PASSWORD,
                client_keys=None,
                agent_path=None,
                known_hosts=None,
                config=None,
            )
        except asyncssh.PermissionDenied:
            self.refused += 1
            return
        async with connection, connection.start_sftp_client() as client:
            self.open = True
            async with client.open(self.name, "wb") as file:
                self.wrote = 0
                while True:
                    await file.write(b"x" * 4096)
                    self.wrote += 4096
                    await asyncio.sleep(0.05)


class Crowd:
    """All clients of one server, and what the Panel and the node say of it."""

    def __init__(self, node: System, panel: double.Panel) -> None:
        self.node, self.panel = node, panel
        self.uuid = taken_over(node, panel, build={**double.settings("")["build"], "disk_space": 0})
        url = node.ready["url"].replace("http", "ws") + f"/api/servers/{self.uuid}/ws"
        token = panel.token(self.uuid, lives_s=86_400)
        username = panel.account(self.uuid, "ann", PASSWORD, "file.read", "file.create", "file.update", "file.delete")
        self.pages = [Page(url, panel.url, token) for _ in range(WEBSOCKETS)]
        address = sftp_address(node) if TRANSFERS else ("", 0)
        self.transfers = [Transfer(address, username, f"file-{number}") for number in range(TRANSFERS)]
        self.every: list[Client] = [*self.pages, *self.transfers]

    async def wait(self, open: bool) -> None:
        async with asyncio.timeout(60):
            while any(client.open != open for client in self.every):
                await asyncio.sleep(0.001)

    async def toggle(self, suspend: bool) -> bool:
        """As the Panel does it; afterwards both say the same."""
        done = await asyncio.to_thread(self.panel.toggle, self.node.ready["url"], self.uuid, suspend=suspend)
        wanted = self.panel.servers[self.uuid].settings["suspended"]
        assert wanted == (suspend if done else not suspend)
        answer = await asyncio.to_thread(ask, self.node, "GET", f"/api/servers/{self.uuid}")
        assert answer.json()["is_suspended"] == wanted
        return done

    def sizes(self) -> dict[str, int]:
        folder: Path = self.node.directory / "servers" / self.uuid
        return {path.name: path.stat().st_size for path in folder.glob("file-*")}


@pytest.fixture
def crowd(node: System, panel: double.Panel) -> Crowd:
    return Crowd(node, panel)


async def suspended(crowd: Crowd) -> float:
    """Seconds from the 204 until the last client had been cut off."""
    began = time.perf_counter()
    assert await asyncio.to_thread(crowd.panel.toggle, crowd.node.ready["url"], crowd.uuid, suspend=True)
    answered = time.perf_counter()
    await crowd.wait(False)
    assert all(client.closed_at > began for client in crowd.every)
    return max(client.closed_at for client in crowd.every) - answered


def report(took: list[float], failed: int) -> None:
    if len(took) < 2:
        return
    quantiles = statistics.quantiles(took, n=100, method="inclusive")
    print(f"{2 * len(took)} toggles and {failed} that failed, {WEBSOCKETS} websockets, {TRANSFERS} SFTP sessions")
    print(f"from 204 to the last closed: p50 {quantiles[49]:.3f} s, p99 {quantiles[98]:.3f} s, most {max(took):.3f} s")


async def test_each_suspension_cuts_everybody_off(node: System, panel: double.Panel, crowd: Crowd) -> None:
    took: list[float] = []
    failed = 0
    running = [asyncio.create_task(client.run()) for client in crowd.every]
    try:
        for number in range(TOGGLES // 2):
            await crowd.wait(True)
            if number % FAILS == FAILS - 1:  # the Panel takes it back, and nobody notices
                panel.trouble = lambda request: web.Response(status=403) if "servers" in request.path else None
                assert not await crowd.toggle(True)
                panel.trouble = None
                failed += 1
                assert all(client.open for client in crowd.every)
            took.append(await suspended(crowd))
            before = crowd.sizes()
            assert await crowd.toggle(True)  # said again it changes nothing
            await asyncio.sleep(random.uniform(0, 0.3))
            assert crowd.sizes() == before
            assert not [type(client).__name__ for client in crowd.every if client.open]
            assert await crowd.toggle(False)
    finally:
        report(took, failed)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if TOGGLES >= 10:  # some came while it was suspended
        assert sum(client.refused for client in crowd.pages) > 0
