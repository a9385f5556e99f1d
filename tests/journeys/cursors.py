"""Every kind of place in a history that a client can hold, and what becomes of them in another one."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

from tests.journeys import libraries
from tests.journeys.libraries import Device
from tests.journeys.sse import follow
from tests.journeys.system import ADMIN, System

#: What each place is answered in another epoch. An acknowledgement, which asks for nothing, is simply wrong.
GONE = dict.fromkeys(("feed", "changes", "webhook", "feed stream", "job stream", "changes stream"), 410) | {"ack": 400}
HOOK = {"url": "https://hooks.example.org/undrift", "events": ["*"]}


@dataclass
class Cursors:
    """What clients were given in the epoch in which this was made."""

    system: System
    device: Device = field(init=False)
    job: str = field(init=False)
    last: str = field(init=False)
    webhook: str = field(init=False)
    position: int = field(init=False)
    epoch: int = field(init=False)

    def __post_init__(self) -> None:
        system = self.system
        self.webhook = system.ok("POST", "/api/v1/webhooks/subscribe", HOOK, token=ADMIN)["subscriptionId"]
        self.device = libraries.user(system).device()
        self.device.upload("file", b"file")
        self.device.follow()
        name = f"job-{os.urandom(4).hex()}"
        system.integration(name, system.folder(a="1"), system.place())
        self.job = system.queue(name)
        system.wait(self.job)
        with follow(system, f"/api/sync/jobs/{self.job}/events") as stream:
            self.last = next(iter(stream)).id
        self.position = system.head() - 1
        self.epoch = system.ok("GET", "/api/v1/feeds/events?after=0&limit=1", token=ADMIN)["epoch"]

    def answers(self) -> dict[str, tuple[int, Any]]:
        """What each of them is answered now: the status, and where it says to begin again."""
        system, device = self.system, self.device
        asked = {
            "feed": system.get(f"/api/v1/feeds/events?after={self.position}&epoch={self.epoch}", token=ADMIN),
            "changes": device.call("GET", f"/api/v1/sync/changes?cursor={device.cursor}"),
            "ack": device.call("POST", "/api/v1/sync/ack", {"cursor": device.cursor}),
            "webhook": system.get(f"/api/v1/webhooks/{self.webhook}/events?after=0&epoch={self.epoch}", token=ADMIN),
        }
        found = {name: (answer.status, _resync(answer.json())) for name, answer in asked.items()}
        streams = {
            "feed stream": ("/api/v1/feeds/events", f"{self.epoch}.{self.position}", ADMIN),
            "job stream": (f"/api/sync/jobs/{self.job}/events", self.last, ADMIN),
            "changes stream": ("/api/v1/sync/changes", str(device.cursor), device.token),
        }
        for name, (path, last, token) in streams.items():
            with follow(system, path, last=last, token=token, timeout=10) as stream:
                found[name] = stream.status, _resync(stream.body()) if stream.status == 410 else None
        return found


def _resync(body: Any) -> Any:
    with contextlib.suppress(TypeError):
        for holder in (body, body.get("context") or {}, body.get("error") or {}, body.get("details") or {}):
            if isinstance(holder, dict) and "resync" in holder:
                return holder["resync"]
    return None
