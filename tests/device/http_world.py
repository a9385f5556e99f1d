"""The same histories over HTTP: the devices are in memory, the library is a running instance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import blake3

from domain.plans import device as plan
from domain.plans.device import Change, Local
from services.device.engine import Changed, Conflict, Page, Reported
from tests.device.world import Crash, Log, World
from tests.journeys import libraries
from tests.journeys.system import Answer, System

_BASE = "/api/v1/sync"
_PATIENCE = 60


@lru_cache(maxsize=100_000)
def hash_of(content: str) -> str:
    """In memory contents stand for their own hash; over the wire they have one."""
    return blake3.blake3(content.encode()).hexdigest()


class Taken(Log):
    """What the library has said it holds: in the answer to an upload, to a report, or in its feed. An answer may be
    lost, and then one of the others says so."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[str] = set()

    def kept(self) -> set[str]:
        return self.taken


class HttpWire:
    """A device's calls, of which some fail before, some after they were carried out, and some are made twice."""

    def __init__(self, world: HttpWorld, name: str, device: libraries.Device) -> None:
        self._world, self._name, self._device = world, name, device
        self._plain = libraries.Plain(device.system, device.id, device.token)  # what it says waits for nothing

    def _fail(self) -> None:
        if self._world.random.random() < self._world.trouble:
            raise Crash

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        self._fail()
        said = self._ask(method, path, body)
        if method != "GET" and self._world.random.random() < self._world.trouble:
            said = self._ask(method, path, body)
        self._fail()
        assert said.status < 500, (self._world.seed, path, said)
        return said

    def _ask(self, method: str, path: str, body: Any) -> Answer:
        """As a client does, which is asked to come again by a busy machine."""
        for _ in range(_PATIENCE):
            said = (self._device if method == "GET" else self._plain).call(method, path, body)
            if said.status != 503:
                break
            time.sleep(float(said.headers["retry-after"]))
        return said

    def ack(self, cursor: str) -> None:
        assert self._call("POST", f"{_BASE}/ack", {"cursor": cursor}).status == 200

    def report(self, items: Sequence[plan.Item]) -> Reported:
        said = self._call("POST", f"{_BASE}/report", {"changes": [_item(item) for item in items]}).json()
        wanted = set(said["upload_required"])
        self._world.ledger.taken |= {
            item.hash for item in items if item.hash and item.path in said["sequences"] and item.path not in wanted
        }
        told = [*said["accepted"], *(one["path"] for one in (*said["conflicts"], *said["rejected"]))]
        assert sorted(told) == sorted(item.path for item in items)
        return Reported(
            said["sequences"],
            said["upload_required"],
            [self._conflict(one) for one in said["conflicts"]],
            {one["path"]: one["reason"] for one in said["rejected"]},
        )

    def upload(self, path: str, entry: Local) -> int | Conflict:
        if self._world.disks[self._name].look(path) != entry:
            raise Changed
        data = entry.hash.encode()
        wanted = {"target_path": path, "expected_hash": hash_of(entry.hash), "expected_size": len(data)}
        opened = self._call("POST", f"{_BASE}/upload", wanted).json()
        self._call("PUT", f"{_BASE}/upload/{opened['id']}/chunks/0", data)
        answer = self._call("POST", f"{_BASE}/upload/{opened['id']}/complete")
        if answer.status == 400:
            raise Changed
        done = answer.json()
        self._world.ledger.taken.add(entry.hash)
        return Conflict(done["conflict_id"], path, entry.hash) if done["conflict_id"] else int(done["sequence"])

    def changes(self, cursor: str | None, limit: int) -> Page:
        limit = self._world.random.choice([1, 2, 5, limit])
        said = self._call("GET", f"{_BASE}/changes?limit={limit}" + (f"&cursor={cursor}" if cursor else "")).json()
        return Page([self._change(one) for one in said["changes"]], said["cursor"], said["has_more"])

    def download(self, path: str, hash: str) -> object | None:
        answer = self._call("GET", f"{_BASE}/download/{path.replace(' ', '%20')}")
        found = answer.body.decode() if answer.status == 200 else None
        return found if found == hash else None

    def conflicts(self) -> Sequence[Conflict]:
        return [self._conflict(one) for one in self._call("GET", f"{_BASE}/conflicts?mine=true").json()]

    def resolve(self, conflict: str, resolution: str) -> None:
        answer = self._call("POST", f"{_BASE}/conflicts/{conflict}/resolve", {"resolution": resolution})
        assert answer.status in (200, 400), answer

    def _conflict(self, said: dict[str, Any]) -> Conflict:
        hash = said["local_hash"]
        return Conflict(said["id"], said["path"], None if hash is None else self._world.content(hash))

    def _change(self, said: dict[str, Any]) -> Change:
        hash = said["content_hash"]
        known = None if hash is None else self._world.content(hash)
        if known is not None:
            self._world.ledger.taken.add(known)
        return Change(said["path"], known, said["sequence"], old_path=said.get("old_path"))


def _item(item: plan.Item) -> dict[str, Any]:
    said: dict[str, Any] = {"path": item.path, "change_type": item.change}
    if item.old_path is not None:
        said["old_path"] = item.old_path
    if item.hash is not None:
        said |= {"content_hash": hash_of(item.hash), "file_size": len(item.hash)}
    if isinstance(item.mtime, datetime):
        said["local_mtime"] = item.mtime.isoformat()
    return said


class HttpWorld(World):
    """A new user with a library, on a running instance."""

    def __init__(self, system: System, seed: int, *, devices: int = 3, trouble: float = 0.05) -> None:
        self.ledger = Taken()
        super().__init__(seed, devices=devices, trouble=trouble, log=self.ledger)
        self._contents: dict[str, str] = {}
        self._system, self._began = system, system.head()
        owner = libraries.user(system)
        self._devices = {name: owner.device(name) for name in self.disks}
        self.wires = {name: HttpWire(self, name, device) for name, device in self._devices.items()}  # type: ignore[misc]

    def _content(self) -> str:
        made = super()._content()
        self._contents[hash_of(made)] = made
        return made

    def content(self, hash: str) -> str:
        return self._contents[hash]

    def check(self) -> None:
        some = next(iter(self._devices.values()))
        library = {path: self.content(hash) for path, hash in some.files().items()}
        for name, disk in self.disks.items():
            assert disk.files == library, f"seed {self.seed}: device {name} differs"
        assert some.conflicts() == [], f"seed {self.seed}: conflicts stay open"
        kept: set[str] = set()
        for event in self._system.events(self._began):
            kept |= {str(event["data"].get("local_hash")), str((event["data"].get("content") or {}).get("hash"))}
        lost = {content for content in self.ledger.taken if hash_of(content) not in kept}
        assert not lost, f"seed {self.seed}: bytes that were taken are nowhere"
