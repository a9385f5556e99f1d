"""A gigabyte over tus by the published clients, unchanged, through broken connections and a gateway's death."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tusclient.client import TusClient

from tests.doubles.wire import Wire, wire
from tests.journeys.libraries import Device, user
from tests.journeys.system import System, system

__all__ = ["system"]  # a fixture

MIB = 1 << 20
MANY = int(os.environ.get("UNDRIFT_TUS_MIB", "1024"))
EVERY_S = 0.8
BASE = "/api/v1/sync/tus"
SCRIPT = Path(__file__).parents[1] / "doubles" / "tus_client.mjs"
#: A folder whose node_modules hold tus-js-client.
PACKAGES = Path(os.environ.get("UNDRIFT_NODE_PACKAGES", str(Path(__file__).parents[2])))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file and its SHA-256."""
    path, digest = tmp_path_factory.mktemp("large") / "large", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(MANY):
            digest.update(piece := os.urandom(MIB))
            file.write(piece)
    return path, digest.hexdigest()


def port(system: System) -> int:
    try:
        return urlsplit(system.ready["url"]).port or 0
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


@contextlib.contextmanager
def trouble(system: System, line: Wire, most: int = 1000) -> Iterator[list[int]]:
    """Cuts all connections again and again, and kills the gateway at the third time; answers how often they broke."""
    over, broke = threading.Event(), [0]

    def cut() -> None:
        rounds = 0
        while rounds < most and not over.wait(EVERY_S):
            rounds += 1
            if rounds == 3:
                system.kill("gateway")
                broke[0] += 1
            else:
                broke[0] += line.cut() > 0

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        yield broke
    finally:
        over.set()
        thread.join()


def digest(device: Device, path: str) -> str:
    """The SHA-256 of what a download says, not kept in memory."""
    address = urlsplit(device.system.ready["url"])
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    try:
        sent = {"Authorization": f"Bearer {device.token}", "Undrift-Min-Position": str(device.system.head())}
        connection.request("GET", f"/api/v1/sync/download/{path}", headers=sent)
        answer = connection.getresponse()
        assert answer.status == 200
        found = hashlib.sha256()
        while piece := answer.read(MIB):
            found.update(piece)
        return found.hexdigest()
    finally:
        connection.close()


def test_tuspy(system: System, large: tuple[Path, str]) -> None:
    device = user(system).device()
    with wire(lambda: port(system)) as line:
        client = TusClient(f"http://127.0.0.1:{line.port}{BASE}", headers={"Authorization": f"Bearer {device.token}"})
        with large[0].open("rb") as file, trouble(system, line) as broke:
            uploader = client.uploader(
                file_stream=file, chunk_size=48 * MIB, metadata={"filename": "large/tuspy"}, retries=1000, retry_delay=1
            )
            uploader.upload()
    system.whole()
    print(f"{MANY} MiB through {broke[0]} breaks")
    assert broke[0] >= 3
    assert digest(device, "large/tuspy") == large[1]


@pytest.mark.parametrize("parts", [1, 3])
def test_tus_js_client(system: System, large: tuple[Path, str], parts: int) -> None:
    node = shutil.which("node")
    if node is None or not (PACKAGES / "node_modules" / "tus-js-client").exists():
        pytest.skip("tus-js-client is not installed: npm install tus-js-client, and UNDRIFT_NODE_PACKAGES names where")
    device = user(system).device()
    with wire(lambda: port(system)) as line:
        url, target = f"http://127.0.0.1:{line.port}{BASE}", f"large/js/{parts}"
        command: list[str | Path] = [node, SCRIPT, PACKAGES, url, device.token, large[0], target, str(parts)]
        # This client joins its parts with one request that it does not repeat.
        with trouble(system, line, most=1000 if parts == 1 else 4) as broke:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    system.whole()
    print(f"{MANY} MiB through {broke[0]} breaks, in {parts} parts")
    assert digest(device, f"large/js/{parts}") == large[1]
