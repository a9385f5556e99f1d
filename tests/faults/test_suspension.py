"""Suspensions, again and again, with clients that come back as soon as they may: each time all of them are cut off.

TOGGLES (1000) and CLIENTS (30, as many as one server takes) make it shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import time

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.doubles import panel as double
from tests.journeys.nodes import ask, node, panel, settings, taken_over, untroubled
from tests.journeys.system import System

__all__ = ["node", "panel", "settings", "untroubled"]  # fixtures

TOGGLES = int(os.environ.get("TOGGLES", "1000"))
CLIENTS = int(os.environ.get("CLIENTS", "30"))


class Client:
    """Keeps a websocket open as long as it can; `open` while it is admitted, `closed_at` is when that ended last."""

    def __init__(self, url: str, origin: str, token: str) -> None:
        self._url, self._origin, self._token = url, origin, token
        self.open = False
        self.closed_at = 0.0
        self.refused = 0

    async def run(self) -> None:
        while True:
            with contextlib.suppress(WebSocketException, OSError, TimeoutError):
                async with connect(self._url, origin=self._origin, open_timeout=20, ping_interval=None) as socket:
                    await socket.send(json.dumps({"event": "auth", "args": [self._token]}))
                    try:
                        async for text in socket:
                            self.open = self.open or json.loads(text)["event"] == "auth success"
                    finally:
                        self.refused += socket.close_code == 4409
                        if self.open:
                            self.open, self.closed_at = False, time.perf_counter()
            await asyncio.sleep(0.02)


@pytest.fixture
def clients(node: System, panel: double.Panel) -> tuple[str, list[Client]]:
    uuid = taken_over(node, panel)
    url = node.ready["url"].replace("http", "ws") + f"/api/servers/{uuid}/ws"
    token = panel.token(uuid, lives_s=86_400)
    return uuid, [Client(url, panel.url, token) for _ in range(CLIENTS)]


async def everybody(clients: list[Client], open: bool) -> None:
    async with asyncio.timeout(60):
        while any(client.open != open for client in clients):
            await asyncio.sleep(0.001)


async def test_each_suspension_cuts_everybody_off(
    node: System, panel: double.Panel, clients: tuple[str, list[Client]]
) -> None:
    uuid, every = clients
    took: list[float] = []
    running = [asyncio.create_task(client.run()) for client in every]
    try:
        for _ in range(TOGGLES // 2):
            await everybody(every, True)
            began = time.perf_counter()
            assert await asyncio.to_thread(panel.toggle, node.ready["url"], uuid, suspend=True)
            answered = time.perf_counter()
            await everybody(every, False)
            took.append(max(client.closed_at for client in every) - answered)
            assert all(client.closed_at > began for client in every)
            agreed = ask(node, "GET", f"/api/servers/{uuid}").json()["is_suspended"]
            assert agreed == panel.servers[uuid].settings["suspended"] is True
            assert await asyncio.to_thread(panel.toggle, node.ready["url"], uuid, suspend=False)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    quantiles = statistics.quantiles(took, n=100)
    print(f"{TOGGLES} toggles, {CLIENTS} clients: p50 {quantiles[49]:.3f} s, p99 {quantiles[98]:.3f} s after the 204")
    assert sum(client.refused for client in every) > 0  # some came while it was suspended
