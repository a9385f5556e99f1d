"""The library over HTTP, as a device uses it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import blake3

from domain.plans import device as plan
from domain.plans.device import Change, Local
from services.client import Client, Refused, Unreachable
from services.device.engine import Changed, Conflict, Page, Reported
from services.device.tree import Folder

_PIECE = 1 << 20
_BASE = "/api/v1/sync"


class HttpApi:
    """`services.device.engine.Api`. Raises client.Unreachable and client.Refused."""

    def __init__(self, client: Client, tree: Folder) -> None:
        self._client, self._tree = client, tree

    def ack(self, cursor: str) -> None:
        self._client.post(f"{_BASE}/ack", {"cursor": cursor})

    def report(self, items: Sequence[plan.Item]) -> Reported:
        said = self._client.post(f"{_BASE}/report", {"changes": [_item(item) for item in items]}).body
        return Reported(
            accepted=said["sequences"],
            upload_required=said["upload_required"],
            conflicts=[_conflict(one) for one in said["conflicts"]],
            rejected={one["path"]: one["reason"] for one in said["rejected"]},
        )

    def upload(self, path: str, entry: Local) -> int | Conflict:
        descriptor = self._tree.open(path)
        try:
            wanted = {"target_path": path, "expected_hash": entry.hash, "expected_size": entry.size}
            if entry.mtime is not None:
                wanted["local_mtime"] = entry.mtime.isoformat()
            opened = self._client.post(f"{_BASE}/upload", wanted).body
            self._send(opened, descriptor)
            done = self._client.post(f"{_BASE}/upload/{opened['id']}/complete").body
        except Refused as error:
            if error.status == 400:  # the file has changed under our hands, or its place was taken
                raise Changed from None
            raise
        finally:
            os.close(descriptor)
        if done["conflict_id"] is not None:
            return Conflict(done["conflict_id"], path, entry.hash)
        return int(done["sequence"])

    def _send(self, opened: dict[str, Any], descriptor: int) -> None:
        size = opened["chunk_size"]
        for index in sorted(set(range(opened["chunk_count"])) - set(opened["received_chunks"])):
            chunk = os.pread(descriptor, size, index * size)
            path = f"{_BASE}/upload/{opened['id']}/chunks/{index}"
            self._client.raw("PUT", path, chunk, {"Content-Type": "application/octet-stream"}, timeout_s=120)

    def changes(self, cursor: str | None, limit: int, wait_s: int = 0) -> Page:
        query = f"limit={limit}" + (f"&cursor={cursor}" if cursor else "") + (f"&wait={wait_s}" if wait_s else "")
        said = self._client.get(f"{_BASE}/changes?{query}", timeout_s=60 + wait_s).body
        return Page([_change(one) for one in said["changes"]], said["cursor"], said["has_more"])

    def download(self, path: str, hash: str) -> object | None:
        """A file beside the others, complete and checked."""
        address = f"{_BASE}/download/{quote(path)}"
        with self._client.stream(address, {"If-Match": f'"{hash}"'}) as response:
            if response.status == 404 or response.headers.get("etag") != f'"{hash}"':
                return None
            if response.status != 200:
                raise Unreachable(f"{path} cannot be fetched: status {response.status}")
            hasher = blake3.blake3()
            with tempfile.NamedTemporaryFile(dir=self._tree.temporary, delete=False) as file:
                os.fchmod(file.fileno(), 0o644)
                while piece := response.read(_PIECE):
                    hasher.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        if hasher.hexdigest() != hash:
            Path(file.name).unlink()
            raise Unreachable(f"{path} did not arrive whole")
        return Path(file.name)

    def conflicts(self) -> Sequence[Conflict]:
        _, _, raw = self._client.raw("GET", f"{_BASE}/conflicts?mine=true")
        return [_conflict(one) for one in json.loads(raw)]

    def resolve(self, conflict: str, resolution: str) -> None:
        try:
            self._client.post(f"{_BASE}/conflicts/{conflict}/resolve", {"resolution": resolution})
        except Refused as error:
            if error.status != 400:  # somebody else has resolved it otherwise
                raise


def _item(item: plan.Item) -> dict[str, Any]:
    said: dict[str, Any] = {"path": item.path, "change_type": item.change}
    if item.old_path is not None:
        said["old_path"] = item.old_path
    if item.hash is not None:
        said |= {"content_hash": item.hash, "file_size": item.size}
    if item.mtime is not None:
        said["local_mtime"] = item.mtime.isoformat()
    return said


def _conflict(said: dict[str, Any]) -> Conflict:
    return Conflict(said["id"], said["path"], said["local_hash"])


def _change(said: dict[str, Any]) -> Change:
    mtime = None if said["mtime"] is None else datetime.fromisoformat(said["mtime"])
    return Change(said["path"], said["content_hash"], said["sequence"], said["file_size"], mtime, said.get("old_path"))
