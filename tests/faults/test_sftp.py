"""SFTP under attack and at its limits: swapped links, silent and greedy clients, two processes, kills, throughput.

SECONDS (20) is how long links are swapped, TOGGLES (100) how often a server is suspended or let in again with CLIENTS
(50) clients on two processes, MEGABYTES (512) what is sent for the figures, NONSENSE (20000) how many requests make no
sense, by a SEED (1).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from aiohttp import web

from infra import processes
from tests.doubles import panel as double
from tests.journeys.nodes import ask, panel, settings, sftp, sftp_address, taken_over, untroubled
from tests.journeys.sftp_clients import LOST, OPENSSH, OpenSsh, build, folder, listens, refused, suspend
from tests.journeys.system import System, until

__all__ = ["panel", "untroubled"]  # fixtures

SECONDS = float(os.environ.get("SECONDS", "20"))
TOGGLES = int(os.environ.get("TOGGLES", "100"))
CLIENTS = int(os.environ.get("CLIENTS", "50"))
MEGABYTES = int(os.environ.get("MEGABYTES", "512"))
NONSENSE, SEED = int(os.environ.get("NONSENSE", "20000")), int(os.environ.get("SEED", "1"))
MIB = 1 << 20
LOGIN_S = 3.0
#: Puts links in the place of a folder and a file, and back, as fast as it can.
SWAP = """
import os, sys
from infra import linux
folder = os.open(sys.argv[1], os.O_RDONLY)
while True:
    linux.rename(b"d", b"swapped", folder, folder, linux.RENAME_EXCHANGE)
    linux.rename(b"f", b"g", folder, folder, linux.RENAME_EXCHANGE)
"""


@pytest.fixture(scope="module")
def node(panel: double.Panel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = settings(panel).replace("[sftp]\n", f"[sftp]\nlogin_s = {LOGIN_S}\n")
    system = System(tmp_path_factory.mktemp("node"), settings=made)
    try:
        yield system.start()
    finally:
        system.stop()


@pytest.fixture
def uuid(node: System, panel: double.Panel) -> str:
    return taken_over(node, panel, build=build(disk_space=0))


@pytest.fixture
def ann(panel: double.Panel, uuid: str) -> str:
    return panel.account(uuid, "ann", "secret", "*")


def resident(pid: int) -> int:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0


async def test_links_swapped_in_meanwhile_find_nothing(node: System, uuid: str, ann: str, tmp_path: Path) -> None:
    there, outside = folder(node, uuid), tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_text("secret")
    (there / "d").mkdir()
    (there / "d" / "data").write_text("mine")
    (there / "swapped").symlink_to(outside)
    (there / "f").write_text("mine")
    (there / "g").symlink_to(outside / "data")
    swapping = subprocess.Popen([sys.executable, "-c", SWAP, there])
    read: dict[object, int] = {}
    tried = failed = 0
    try:
        async with sftp(node, ann, "secret") as client:
            until_ = time.monotonic() + SECONDS
            while time.monotonic() < until_:
                for attempt in (
                    lambda: _read(client, "d/data", read),
                    lambda: _read(client, "f", read),
                    lambda: _write(client, "d/new"),
                    lambda: _write(client, "f"),
                    lambda: client.mkdir("d/made"),
                    lambda: client.chmod("d/data", 0o777),
                    lambda: client.rename("d/new", "d/renamed"),
                    lambda: client.remove("d/renamed"),
                    lambda: client.rmdir("d/made"),
                    lambda: client.listdir("d"),
                ):
                    tried += 1
                    try:
                        await attempt()
                    except asyncssh.SFTPError:
                        failed += 1
    finally:
        swapping.kill()
        swapping.wait()
    print(f"{tried} calls, {failed} found nothing; read {read}")
    assert set(read) <= {b"mine"}
    assert 0 < failed < tried
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"data": "secret"}
    assert (outside / "data").stat().st_mode & 0o777 == 0o644


async def _read(client: asyncssh.SFTPClient, name: str, read: dict[object, int]) -> None:
    async with client.open(name, "rb") as file:
        found: object = await file.read()
    read[found] = read.get(found, 0) + 1


async def _write(client: asyncssh.SFTPClient, name: str) -> None:
    async with client.open(name, "rb+") as file:
        await file.write(b"mine", 0)


@contextlib.contextmanager
def another(node: System) -> Iterator[int]:
    """A second SFTP process of the installation; its port."""
    port = processes.choose_port()
    own = {name: text for name, text in os.environ.items() if not name.startswith("UNDRIFT_")}
    command = [sys.executable, "-P", "-m", "services.sftp", "--config", str(node.directory / "settings.json")]
    with open(node.log, "ab") as log:
        child = subprocess.Popen(command, env={**own, "UNDRIFT_SFTP_PORT": str(port)}, stdout=log, stderr=log)
    try:
        assert until(lambda: listens("127.0.0.1", port)), node.said()
        yield port
    finally:
        child.terminate()
        assert child.wait(20) == 0


class Client:
    """Writes as long as it may, and comes again; `closed_at` is when that ended last."""

    def __init__(self, port: int, username: str) -> None:
        self._port, self._username = port, username
        self.writes = False
        self.closed_at = 0.0
        self.refused = 0

    async def run(self, number: int) -> None:
        while True:
            try:
                async with self._connected() as client, client.open(f"{number}", "wb") as file:
                    while True:
                        await file.write(b"x" * 1000, 0)
                        self.writes = True
                        await asyncio.sleep(0.05)
            except asyncssh.PermissionDenied:
                self.refused += 1
            except (*LOST, TimeoutError):
                pass
            if self.writes:
                self.writes, self.closed_at = False, time.monotonic()
            await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncssh.SFTPClient]:
        options: dict[str, Any] = {"known_hosts": None, "config": None, "client_keys": None, "agent_path": None}
        async with (
            asyncssh.connect(
                "127.0.0.1", self._port, username=self._username, password="secret", login_timeout=20, **options
            ) as connection,
            connection.start_sftp_client() as client,
        ):
            yield client


async def _everybody(clients: list[Client], writes: bool) -> None:
    async with asyncio.timeout(120):
        while any(client.writes != writes for client in clients):
            await asyncio.sleep(0.001)


async def test_suspended_again_and_again_on_two_processes(
    node: System, panel: double.Panel, uuid: str, ann: str
) -> None:
    took: list[float] = []
    with another(node) as port:
        clients = [Client(port if n % 2 else sftp_address(node)[1], ann) for n in range(CLIENTS)]
        running = [asyncio.create_task(client.run(number)) for number, client in enumerate(clients)]
        try:
            for _ in range(TOGGLES // 2):
                await _everybody(clients, True)
                answered = await asyncio.to_thread(suspend, node, panel, uuid)
                await _everybody(clients, False)
                took.append(max(client.closed_at for client in clients) - answered)
                assert ask(node, "GET", f"/api/servers/{uuid}").json()["is_suspended"]
                await asyncio.sleep(0.4)  # some come meanwhile
                assert not any(client.writes for client in clients)
                await asyncio.to_thread(suspend, node, panel, uuid, False)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    took.sort()
    print(f"{TOGGLES} toggles, {CLIENTS} clients: p50 {statistics.median(took):.3f} s, worst {took[-1]:.3f} s")
    assert sum(client.refused for client in clients) > 0


async def test_who_says_nothing_takes_no_place_for_long(node: System, ann: str) -> None:
    address = sftp_address(node)
    with contextlib.ExitStack() as stack:
        silent = []
        for number in range(120):  # of 200 places
            one = stack.enter_context(socket.create_connection(address, timeout=20))
            if number % 2:
                one.sendall(b"SSH-2.0-x\r\n")
            silent.append(one)
        elsewhere = [asyncio.to_thread(_hello, address, "127.0.0.2") for _ in range(5)]
        assert all(line.startswith(b"SSH-2.0-") for line in await asyncio.gather(*elsewhere))
        assert not (await asyncio.to_thread(_hello, address, "127.0.0.1"))
        began = time.monotonic()
        for one in silent:
            one.settimeout(LOGIN_S + 10)
            with contextlib.suppress(ConnectionError):
                while await asyncio.to_thread(one.recv, 65536):
                    pass
        print(f"120 silent clients were gone after {time.monotonic() - began:.1f} s")
    async with sftp(node, ann, "secret") as client:
        assert await client.listdir() == []


def _hello(address: tuple[str, int], source: str) -> bytes:
    """What the server says first; nothing when it does not listen to this address."""
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(address, timeout=20, source_address=(source, 0)) as connection,
    ):
        return connection.recv(100)
    return b""


async def test_who_guesses_is_not_listened_to(node: System, panel: double.Panel, ann: str) -> None:
    asked = len([seen for seen in panel.seen if seen.path.endswith("/sftp/auth")])

    async def guess(number: int) -> None:
        with contextlib.suppress(*LOST):
            async with sftp(node, ann, f"guess {number}", local_addr=("127.0.0.3", 0)):
                pytest.fail("it was guessed")

    for number in range(60):
        await guess(number)
    assert len([seen for seen in panel.seen if seen.path.endswith("/sftp/auth")]) - asked == 30
    async with sftp(node, ann, "secret") as client:
        assert await client.listdir() == []


def _packet(kind: int, *parts: bytes) -> bytes:
    body = bytes([kind]) + b"".join(parts)
    return struct.pack(">I", len(body)) + body


def _text(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


async def test_who_takes_no_answers_costs_no_memory(node: System, uuid: str, ann: str) -> None:
    """Gigabytes are asked for, in requests of a few bytes each, and nothing of the answers is taken."""
    (folder(node, uuid) / "large").write_bytes(b"x" * 16 * MIB)
    pid = node.pids["sftp"]
    before = resident(pid)
    host, port = sftp_address(node)
    options: dict[str, Any] = {"known_hosts": None, "config": None, "client_keys": None, "agent_path": None}
    async with asyncssh.connect(host, port, username=ann, password="secret", **options) as connection:
        writer, _, _ = await connection.open_session(subsystem="sftp", encoding=None)
        begin = _packet(1, struct.pack(">I", 3)) + _packet(
            3, struct.pack(">I", 0), _text(b"large"), b"\0\0\0\1", b"\0" * 4
        )
        reads = (_packet(5, struct.pack(">I", n), _text(b"\0" * 4), struct.pack(">QI", 0, MIB)) for n in range(5000))
        writer.write(begin + b"".join(reads))
        most = before
        for _ in range(50):
            await asyncio.sleep(0.1)
            most = max(most, resident(pid))
        print(f"resident {before} MiB, at most {most} MiB with 5 GB asked for and not taken")
        assert most - before < 64
        connection.abort()


NAMES = [
    b"",
    b"/",
    b"..",
    b"a",
    b"a/b",
    b"link",
    b"x" * 300,
    b"\0",
    b"\xff\xfe",
    b"../../../etc/passwd",
    b"a" + b"/a" * 900,
]
NUMBERS = [0, 1, 2, 0x1A, 0x3F, 0o777, 1 << 31, (1 << 32) - 1]
EXTENSIONS = [
    b"posix-rename@openssh.com",
    b"hardlink@openssh.com",
    b"fsync@openssh.com",
    b"lsetstat@openssh.com",
    b"limits@openssh.com",
    b"copy-data",
    b"ranges@asyncssh.com",
    b"statvfs@openssh.com",
    b"fstatvfs@openssh.com",
]


def _nonsense(dice: random.Random) -> bytes:
    """A request of some kind with something in it."""
    parts: list[bytes] = []
    for _ in range(dice.randrange(6)):
        match dice.randrange(5):
            case 0 | 1:
                parts.append(_text(dice.choice(NAMES)))
            case 2:
                parts.append(_text(struct.pack(">I", dice.randrange(20))))  # a handle
            case 3:
                parts.append(struct.pack(">I", dice.choice(NUMBERS)))
            case _:
                parts.append(struct.pack(">Q", dice.choice([0, 5, 1 << 62, 1 << 63, (1 << 64) - 1])))
    kind = dice.choice([*range(3, 24), 200, 200])
    if kind == 200:
        parts.insert(0, _text(dice.choice(EXTENSIONS)))
    return _packet(kind, struct.pack(">I", dice.randrange(1 << 32)), *parts)


@pytest.mark.parametrize("version", [3, 6])
async def test_nonsense_is_answered(node: System, uuid: str, ann: str, version: int) -> None:
    dice, host_port = random.Random(SEED), sftp_address(node)
    (folder(node, uuid) / "link").symlink_to("../../secrets")
    secrets = {path.name: path.read_bytes() for path in (node.directory / "secrets").iterdir()}
    pid = node.pids["sftp"]
    options: dict[str, Any] = {"known_hosts": None, "config": None, "client_keys": None, "agent_path": None}
    async with asyncssh.connect(*host_port, username=ann, password="secret", **options) as connection:
        sent = answered = 0
        while sent < NONSENSE:
            writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None)
            writer.write(_packet(1, struct.pack(">I", version)))
            wanted = 1 + dice.randrange(2000)
            for _ in range(wanted):
                writer.write(_nonsense(dice))
            writer.write_eof()
            sent += wanted
            async with asyncio.timeout(120):
                while size := await reader.read(4):
                    size += await reader.readexactly(4 - len(size)) if len(size) < 4 else b""
                    await reader.readexactly(struct.unpack(">I", size)[0])
                    answered += 1
            writer.close()
    print(f"version {version}: {sent} requests, {answered} answers")
    assert answered >= sent
    assert node.pids["sftp"] == pid
    assert "error of ours" not in node.said()
    assert {path.name: path.read_bytes() for path in (node.directory / "secrets").iterdir()} == secrets


async def _go_on(node: System, username: str, data: bytes, until_: int) -> int:
    """Sends what is not there yet, and kills the process; how much was acknowledged."""
    async with sftp(node, username, "secret") as client:
        there = (await client.stat("large")).size or 0
        with contextlib.suppress(*LOST):
            async with client.open("large", "r+b") as file:
                while there < len(data):
                    await file.write(data[there : there + 32_768], there)
                    there += len(data[there : there + 32_768])
                    if there >= until_:
                        node.kill("sftp")
                        until_ = len(data) + 1
        return there


async def test_killed_in_an_upload(node: System, uuid: str, ann: str) -> None:
    """What the client was told is there, and it goes on from that."""
    data, sent = os.urandom(8 * MIB), 0
    (folder(node, uuid) / "large").touch()
    for number in range(1, 6):
        pid = node.pids["sftp"]
        with contextlib.suppress(*LOST):
            sent = await _go_on(node, ann, data, len(data) * number // 5 if number < 5 else len(data) + 1)
        if number < 5:
            assert await asyncio.to_thread(until, lambda pid=pid: node.pids.get("sftp", pid) != pid)
            assert await asyncio.to_thread(until, lambda: listens(*sftp_address(node)))
        assert (folder(node, uuid) / "large").stat().st_size >= sent
    assert (folder(node, uuid) / "large").read_bytes() == data


async def test_a_slow_panel_keeps_nobody_waiting_who_is_in(node: System, panel: double.Panel, ann: str) -> None:
    over = False

    async def slowly(request: web.Request) -> None:
        while request.path.endswith(("/sftp/auth", "/activity")) and not over:
            await asyncio.sleep(0.05)

    async with sftp(node, ann, "secret") as client:
        panel.trouble = slowly
        coming = [asyncio.create_task(refused(node, ann, "secret")) for _ in range(20)]
        try:
            for number in range(100):
                async with client.open(f"{number % 7}", "wb") as file:
                    await file.write(b"x")
            ended = await asyncio.gather(*coming, return_exceptions=True)
            assert all(isinstance(one, asyncssh.Error) or one for one in ended)
        finally:
            over = True


async def test_without_postgres_nobody_comes_in_and_who_is_in_stays(node: System, ann: str) -> None:
    assert node.process is not None
    async with sftp(node, ann, "secret") as client:
        pid = node.pids["postgres"]
        node.process.send_signal(signal.SIGSTOP)  # nobody starts it again
        try:
            node.kill("postgres")
            assert await refused(node, ann, "secret")
            assert await client.listdir() == []
        finally:
            node.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(node.replaced, "postgres", pid)
    async with sftp(node, ann, "secret") as client:
        assert await client.listdir() == []
    assert "Traceback" not in node.said()


async def test_a_process_that_is_to_end_ends_with_clients_on_it(node: System, ann: str) -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(another(node))
        writing = asyncio.create_task(Client(port, ann).run(0))
        quiet = asyncio.create_task(asyncio.to_thread(_hello, ("127.0.0.1", port), "127.0.0.1"))
        assert (await quiet).startswith(b"SSH-2.0-")
        await asyncio.to_thread(stack.close)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


@OPENSSH
async def test_how_much_goes_through(node: System, uuid: str, ann: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(MIB) * MEGABYTES)
    size = MEGABYTES * MIB / 1e6
    figures: dict[str, float] = {}
    openssh = OpenSsh(node, ann, tmp_path)
    for name, command in (("OpenSSH put", "put large"), ("OpenSSH get", "get large back")):
        began = time.monotonic()
        code, said = await asyncio.to_thread(openssh, command, password="secret")
        figures[name] = size / (time.monotonic() - began)
        assert code == 0, said
    async with sftp(node, ann, "secret") as client:
        began = time.monotonic()
        await client.put(str(tmp_path / "large"), "again")
        figures["asyncssh put"] = size / (time.monotonic() - began)
        began = time.monotonic()
        await client.get("again", str(tmp_path / "again"))
        figures["asyncssh get"] = size / (time.monotonic() - began)
    print("; ".join(f"{name} {figure:.0f} MB/s" for name, figure in figures.items()))
    expected = (tmp_path / "large").read_bytes()
    assert expected == (tmp_path / "back").read_bytes() == (tmp_path / "again").read_bytes()
