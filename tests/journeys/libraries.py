"""People with libraries and devices, for the journeys."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.journeys.system import ADMIN, Answer, System

PASSWORD = "correct horse battery"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Device:
    """One device; `cursor` is what it has been sent."""

    system: System
    id: str
    token: str
    cursor: str | None = None

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """Sees what anybody was answered before."""
        headers = {"Undrift-Min-Position": str(self.system.wrote), **more.pop("headers", {})}
        return self.system.call(method, path, body, token=self.token, headers=headers, **more)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self.call(method, path, body, **more)
        assert answer.status == 200, (method, path, answer, self.system.said()[-2000:])
        return answer.json()

    def report(self, *changes: dict[str, Any]) -> dict[str, Any]:
        said: dict[str, Any] = self.ok("POST", "/api/v1/sync/report", {"changes": list(changes)})
        return said

    def open(self, path: str, data: bytes, **more: Any) -> dict[str, Any]:
        wanted = {"target_path": path, "expected_hash": sha(data), "expected_size": len(data), "chunk_size": 65536}
        opened: dict[str, Any] = self.ok("POST", "/api/v1/sync/upload", wanted | more)
        return opened

    def chunk(self, upload: dict[str, Any], index: int, data: bytes, **headers: str) -> Answer:
        size = upload["chunk_size"]
        path = f"/api/v1/sync/upload/{upload['id']}/chunks/{index}"
        sent = {"Content-Type": "application/octet-stream", **headers}
        return self.call("PUT", path, data[index * size : (index + 1) * size], headers=sent)

    def upload(self, path: str, data: bytes) -> dict[str, Any]:
        opened = self.open(path, data)
        for index in range(opened["chunk_count"]):
            answer = self.chunk(opened, index, data)
            assert answer.status == 200, answer
        done: dict[str, Any] = self.ok("POST", f"/api/v1/sync/upload/{opened['id']}/complete")
        return done

    def changes(self, query: str = "") -> list[dict[str, Any]]:
        """What came since this device last asked."""
        found: list[dict[str, Any]] = []
        while True:
            at = "" if self.cursor is None else f"&cursor={self.cursor}"
            page = self.ok("GET", f"/api/v1/sync/changes?limit=1000{at}{query}")
            found += page["changes"]
            self.cursor = page["cursor"]
            if not page["has_more"]:
                return found

    def ack(self) -> Any:
        return self.ok("POST", "/api/v1/sync/ack", {"cursor": self.cursor})

    def follow(self) -> list[dict[str, Any]]:
        """Takes what came, and acknowledges it."""
        found = self.changes()
        self.ack()
        return found

    def files(self) -> dict[str, str]:
        """The library: path -> hash."""
        snapshot = self.ok("GET", "/api/v1/sync/snapshot")
        return {file["path"]: file["content_hash"] for file in snapshot["files"]}

    def download(self, path: str, **headers: str) -> Answer:
        return self.call("GET", "/api/v1/sync/download/" + path.replace(" ", "%20"), headers=headers)

    def conflicts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ok("GET", "/api/v1/sync/conflicts")
        return found


class Plain(Device):
    """As any client's: it says nothing of what others were answered."""

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        return self.system.call(method, path, body, token=self.token, **more)


@dataclass
class User:
    system: System
    name: str
    id: str
    token: str
    devices: list[Device] = field(default_factory=list)

    def device(self, name: str = "laptop") -> Device:
        wanted = {"name": name, "device_type": "desktop", "client_version": "1.0"}
        made = self.system.ok("POST", "/api/v1/sync/devices", wanted, token=self.token)
        self.devices.append(Device(self.system, made["device"]["id"], made["device_token"]))
        return self.devices[-1]

    def pair(self) -> Sequence[Device]:
        return self.device("laptop"), self.device("phone")

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        return self.system.call(method, path, body, token=self.token, **more)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        return self.system.ok(method, path, body, token=self.token, **more)


def login(system: System, name: str, password: str = PASSWORD) -> Answer:
    return system.post("/api/v1/auth/login", {"username": name, "password": password})


def user(system: System, name: str | None = None, **more: Any) -> User:
    """A new user, logged in."""
    name = name or f"user-{os.urandom(4).hex()}"
    made = system.ok("POST", "/api/v1/admin/users", {"username": name, "password": PASSWORD, **more}, token=ADMIN)
    answer = login(system, name)
    assert answer.status == 200, answer
    return User(system, name, made["id"], answer.json()["token"])


def created(path: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"path": path, "change_type": "created", "content_hash": sha(data), "file_size": len(data), **more}
