"""A large file up and down again, over one connection, beside @tus/server, nginx, and uvicorn and Starlette doing the
bare minimum.

No peer hashes anything. Ours includes the completion: the digests of the whole, the disk, and the library's event."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import statistics
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks import library_peers
from tests.journeys.libraries import Device
from tests.journeys.system import System

SECTION = "a large file, up and down"
MIB = 1 << 20
CHUNK = 8 * MIB
FULL, QUICK = 1024 * MIB, 128 * MIB


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

    def up(self, number: int) -> float:
        """Seconds until the library has the file."""
        wanted = {"target_path": f"large-{number}", "expected_hash": self.sha256, "expected_size": self.size}
        opened = self.device.ok("POST", "/api/v1/sync/upload", {**wanted, "chunk_size": CHUNK})
        headers = {"Authorization": f"Bearer {self.device.token}"}
        base = f"/api/v1/sync/upload/{opened['id']}"
        began = time.perf_counter()
        self._put(self.system.ready["url"], f"{base}/chunks/", headers)
        done = self.device.ok("POST", f"{base}/complete", timeout=600)
        assert done["file_size"] == self.size
        return time.perf_counter() - began

    def up_bare(self, url: str) -> float:
        began = time.perf_counter()
        self._send(url, "PUT", "/up", {})
        return time.perf_counter() - began

    def up_over_tus(self, number: int) -> float:
        """The same by our own face of tus."""
        named = b64encode(f"large-{number}".encode()).decode()
        said = f"filename {named},sha256 {b64encode(self.sha256.encode()).decode()}"
        token = {"Authorization": f"Bearer {self.device.token}"}
        url, base = self.system.ready["url"], "/api/v1/sync/tus"
        return self._tus(url, base, token, {"Upload-Metadata": said})[0]

    def up_tus(self, url: str) -> float:
        took, place = self._tus(url, "/files", {}, {})
        self._ask(url, "DELETE", place, {"Tus-Resumable": "1.0.0"})
        return took

    def _tus(self, url: str, base: str, more: dict[str, str], opening: dict[str, str]) -> tuple[float, str]:
        """Seconds, and the place; one request with all of it, as tus clients do by default."""
        version = {"Tus-Resumable": "1.0.0", **more}
        began = time.perf_counter()
        made = self._ask(url, "POST", base, {**version, **opening, "Upload-Length": str(self.size)})
        place = urlsplit(made).path
        headers = {**version, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        self._send(url, "PATCH", place, headers)
        return time.perf_counter() - began, place

    def _ask(self, url: str, method: str, path: str, headers: dict[str, str]) -> str:
        """The Location of the answer to a request without a body."""
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        assert answer.status < 300, answer.read()
        connection.close()
        return answer.headers.get("Location", "")

    def _send(self, url: str, method: str, path: str, headers: dict[str, str]) -> None:
        """All in one request."""
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        connection.putrequest(method, path)
        for name, value in {**headers, "Content-Length": str(self.size)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        for _, data in self.chunks():
            connection.send(data)
        answer = connection.getresponse()
        assert answer.status < 300, answer.read()
        answer.read()
        connection.close()

    def _put(self, url: str, path: str, headers: dict[str, str]) -> None:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        for index, data in self.chunks():
            put(connection, f"{path}{index}", data, headers)
        connection.close()

    def down(self, number: int) -> float:
        url = f"{self.system.ready['url']}/api/v1/sync/download/large-{number}"
        return get(url, {"authorization": f"Bearer {self.device.token}"}, self.size)


def run(system: System, device: Device, quick: bool) -> list[dict[str, Any]]:
    """Each in turn; both sides go through the same file system's cache."""
    size, rounds = (QUICK, 2) if quick else (FULL, 5)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="undrift-bench-", dir=system.base))
        transfers = Transfers(system, device, size)
        with open(f"{folder}/down", "wb") as file:
            for _, data in transfers.chunks():
                file.write(data)
        bare = stack.enter_context(library_peers.bare(folder))
        tus = stack.enter_context(library_peers.tus(folder))
        nginx = stack.enter_context(library_peers.nginx(folder))
        ups = [Side("uvicorn + Starlette, no hash", bare.pid, lambda: transfers.up_bare(bare.url))]
        peers = [] if tus is None else [Side("@tus/server, no hash", tus.pid, lambda: transfers.up_tus(tus.url))]
        downs = [Side("Starlette's FileResponse", bare.pid, lambda: get(f"{bare.url}/down", {}, size))]
        if nginx is not None:
            downs.append(Side("nginx, sendfile", nginx.pid, lambda: get(f"{nginx.url}/down", {}, size)))
        gateway = system.pids["gateway"]
        up = Measured(Side("", gateway, lambda: transfers.up(0)), [*ups, *peers], rounds)
        again = [Side(peer.name, peer.pid, peer.run_once) for peer in peers]
        tus_up = Measured(Side("", gateway, lambda: transfers.up_over_tus(0)), again, rounds if peers else 0)
        down = Measured(Side("", gateway, lambda: transfers.down(0)), downs, rounds)
    what = f"of {size // MIB} MiB"
    return [
        *up.rows(f"upload {what}, BLAKE3 and SHA-256 checked", size, ">= 1.25 x @tus/server; <= 100 MB"),
        *tus_up.rows(f"upload {what} over tus, likewise", size, ">= 1.25 x @tus/server"),
        *down.rows(f"download {what}", size, ">= 0.65 x nginx; <= 100 MB"),
    ]


class Side:
    """A server, and how its work is run; what it took of the clock and of the processor."""

    def __init__(self, name: str, pid: int, run: Callable[[], float]) -> None:
        self.name, self.run_once, self._stat = name, run, Path(f"/proc/{pid}/stat")
        self.pid = pid
        self.seconds: list[float] = []
        self.cpu_s: list[float] = []

    def _cpu_s(self) -> float:
        fields = self._stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self) -> None:
        before = self._cpu_s()
        self.seconds.append(self.run_once())
        self.cpu_s.append(self._cpu_s() - before)


class Measured:
    """Ours and every peer's, in rotation; the first round, in which files get their pages, does not count."""

    def __init__(self, ours: Side, peers: Sequence[Side], rounds: int) -> None:
        self.ours, self.peers = ours, peers
        with Peak(ours.pid) as self.peak:
            for number in range(rounds + 1):
                for side in (ours, *peers) if number % 2 else (*reversed(peers), ours):
                    side.run()
        for side in (ours, *peers):
            del side.seconds[0], side.cpu_s[0]

    def rows(self, what: str, size: int, must: str) -> list[dict[str, Any]]:
        return [
            {
                "section": SECTION,
                "what": what,
                "MiB/s": _rate(size, self.ours.seconds),
                "cpu_s": f"{statistics.median(self.ours.cpu_s):.2f}",
                "peer": peer.name,
                "peer_MiB/s": _rate(size, peer.seconds),
                "peer_cpu_s": f"{statistics.median(peer.cpu_s):.2f}",
                "ratio": _ratio(self.ours.seconds, peer.seconds),
                "peak_MB": f"{self.peak.most:.0f}",
                "before_MB": f"{self.peak.before:.0f}",
                "must": must,
            }
            for peer in self.peers
        ]


def _rate(size: int, seconds: list[float]) -> str:
    return f"{size / MIB / statistics.median(seconds):.0f}"


def _ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{statistics.median(b / a for a, b in zip(ours, theirs, strict=True)):.2f}"
