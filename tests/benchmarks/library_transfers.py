"""A large file up and down again, over one connection, beside uvicorn and Starlette doing the bare minimum.

The peers stand in for @tus/server and nginx: a sink that writes the same chunks to a file without hashing anything, and
Starlette's FileResponse. `done_s` of ours includes the completion, which hashes the whole twice and publishes it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra import processes
from tests.journeys.libraries import Device
from tests.journeys.system import System

SECTION = "a large file, up and down"
MIB = 1 << 20
CHUNK = 8 * MIB
FULL, QUICK = 1024 * MIB, 128 * MIB

PEER = """
import os, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response
from starlette.routing import Route

folder = sys.argv[2]

async def put(request):
    if request.path_params["index"] == "0":
        os.unlink(os.path.join(folder, "up"))
        open(os.path.join(folder, "up"), "wb").close()
    with open(os.path.join(folder, "up"), "r+b") as file:
        file.seek(int(request.path_params["index"]) * int(sys.argv[3]))
        async for piece in request.stream():
            file.write(piece)
    return Response()

async def get(request):
    return FileResponse(os.path.join(folder, "down"))

open(os.path.join(folder, "up"), "wb").close()
app = Starlette(routes=[Route("/up/{index}", put, methods=["PUT"]), Route("/down", get)])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
"""


class Peak(threading.Thread):
    """The largest resident memory of a process while the block runs, in MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self.before = self.most = self._rss()

    def _rss(self) -> float:
        return float(self._status.read_text().partition("VmRSS:")[2].split()[0]) / 1000

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, self._rss())

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def put(connection: http.client.HTTPConnection, path: str, data: memoryview, headers: dict[str, str]) -> None:
    connection.request("PUT", path, data, {"Content-Type": "application/octet-stream", **headers})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()


def get(url: str, headers: dict[str, str], size: int) -> float:
    """Seconds until all has come; what comes is not kept."""
    address = urlsplit(url)
    lines = [f"GET {address.path} HTTP/1.1", f"host: {address.netloc}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    room = bytearray(MIB)
    began, got = time.perf_counter(), 0
    with socket.create_connection((address.hostname or "", address.port or 80)) as wire:
        wire.sendall("\r\n".join([*lines, "", ""]).encode())
        while count := wire.recv_into(room):
            got += count
    assert size <= got < size + 2000
    return time.perf_counter() - began


class Transfers:
    def __init__(self, system: System, device: Device, size: int) -> None:
        self.system, self.device, self.size = system, device, size
        block = os.urandom(64 * MIB)
        self._block = memoryview(block)
        digest = hashlib.sha256()
        for _ in range(size // len(block)):
            digest.update(block)
        self.sha256 = digest.hexdigest()

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        for index in range(self.size // CHUNK):
            start = index * CHUNK % len(self._block)
            yield index, self._block[start : start + CHUNK]

    def up(self, number: int) -> tuple[float, float]:
        """Seconds for the chunks alone, and until the library has the file."""
        wanted = {"target_path": f"large-{number}", "expected_hash": self.sha256, "expected_size": self.size}
        opened = self.device.ok("POST", "/api/v1/sync/upload", {**wanted, "chunk_size": CHUNK})
        headers = {"Authorization": f"Bearer {self.device.token}"}
        base = f"/api/v1/sync/upload/{opened['id']}"
        began = time.perf_counter()
        self._put(self.system.ready["url"], f"{base}/chunks/", headers)
        sent = time.perf_counter() - began
        done = self.device.ok("POST", f"{base}/complete", timeout=600)
        assert done["file_size"] == self.size
        return sent, time.perf_counter() - began

    def up_peer(self, url: str) -> float:
        began = time.perf_counter()
        self._put(url, "/up/", {})
        return time.perf_counter() - began

    def _put(self, url: str, path: str, headers: dict[str, str]) -> None:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        for index, data in self.chunks():
            put(connection, f"{path}{index}", data, headers)
        connection.close()

    def down(self, number: int) -> float:
        url = f"{self.system.ready['url']}/api/v1/sync/download/large-{number}"
        return get(url, {"authorization": f"Bearer {self.device.token}"}, self.size)


@contextlib.contextmanager
def _peer(folder: str) -> Iterator[tuple[str, int]]:
    port = processes.choose_port()
    program = subprocess.Popen([sys.executable, "-c", PEER, str(port), folder, str(CHUNK)])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", program.pid
    finally:
        program.kill()
        program.wait(10)


def run(system: System, device: Device, quick: bool) -> list[dict[str, Any]]:
    """Each in turn; both sides go through the same file system's cache."""
    size, rounds = (QUICK, 2) if quick else (FULL, 3)
    with tempfile.TemporaryDirectory(prefix="undrift-bench-", dir=system.base) as folder, _peer(folder) as (url, _):
        transfers = Transfers(system, device, size)
        with open(f"{folder}/down", "wb") as file:
            for _, data in transfers.chunks():
                file.write(data)
        ups: list[tuple[float, float, float]] = []
        downs: list[tuple[float, float]] = []
        with Peak(system.pids["gateway"]) as up_peak:
            for _ in range(rounds):
                ups.append((*transfers.up(0), transfers.up_peer(url)))
        with Peak(system.pids["gateway"]) as down_peak:
            for _ in range(rounds):
                downs.append((transfers.down(0), get(f"{url}/down", {}, size)))
    return [_up_row(size, ups, up_peak), _down_row(size, downs, down_peak)]


def _rate(size: int, seconds: list[float]) -> str:
    return f"{size / MIB / statistics.median(seconds):.0f}"


def _up_row(size: int, found: list[tuple[float, float, float]], peak: Peak) -> dict[str, Any]:
    return {
        "section": SECTION,
        "what": f"upload of {size // MIB} MiB, BLAKE3 and SHA-256 checked",
        "MiB/s": _rate(size, [done for _, done, _ in found]),
        "chunks alone": _rate(size, [sent for sent, _, _ in found]),
        "peer": "uvicorn + Starlette, no hash",
        "peer_MiB/s": _rate(size, [peer for _, _, peer in found]),
        "ratio": f"{statistics.median(peer / done for _, done, peer in found):.2f}",
        "peak_MB": f"{peak.most:.0f}",
        "before_MB": f"{peak.before:.0f}",
        "must": ">= 1.25 x @tus/server; <= 100 MB",
    }


def _down_row(size: int, found: list[tuple[float, float]], peak: Peak) -> dict[str, Any]:
    return {
        "section": SECTION,
        "what": f"download of {size // MIB} MiB",
        "MiB/s": _rate(size, [ours for ours, _ in found]),
        "peer": "Starlette's FileResponse",
        "peer_MiB/s": _rate(size, [peer for _, peer in found]),
        "ratio": f"{statistics.median(peer / ours for ours, peer in found):.2f}",
        "peak_MB": f"{peak.most:.0f}",
        "before_MB": f"{peak.before:.0f}",
        "must": ">= 0.65 x nginx; <= 100 MB",
    }
