"""`undrift up`: one command, ready when everything answers, whole again after any death, gone when it is told to go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import nats
import pytest

from infra import processes

SMALL = str(Path(__file__).with_name("small_up.py"))
NAMES = {"postgres", "nats", "gateway", "core", "worker-now", "worker"}
QUICK = "[up]\nsilence_s = 1.5\nbackoff_s = 0.02\nbackoff_max_s = 0.5\nstop_s = 4\n"


class Up:
    """`undrift up` in a process of its own, with what it says on the way."""

    def __init__(
        self, directory: Path, port: int = 0, settings: str = QUICK, small: bool = True, **environment: str
    ) -> None:
        self.directory = directory
        directory.parent.mkdir(parents=True, exist_ok=True)
        file = directory.with_suffix(".toml")
        file.write_text(settings)
        self.errors = directory.with_suffix(".log")
        with open(self.errors, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, SMALL, "up", directory, str(port), file]
                if small
                else [sys.executable, "-m", "services.up", *options(directory, port, file)],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ready(self) -> dict[str, Any]:
        """What ready.json says, once it is there."""
        assert until(lambda: self._read() or self.process.poll() is not None), self.errors.read_text()
        found = self._read()
        assert found, self.errors.read_text()
        return found

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.directory / "ready.json").read_bytes())
            return found
        return {}

    def changed(self, name: str, pid: int) -> dict[str, Any]:
        """What ready.json says once `name` has another process than `pid`, and everything runs again."""
        assert until(lambda: self._read()["processes"].get(name, pid) != pid), self.errors.read_text()
        assert until(lambda: set(self._read()["processes"]) == NAMES), self.errors.read_text()
        return self._read()

    def order(self, name: str, text: str = "") -> None:
        (self.directory / "files" / name).write_text(text)

    def lines(self, message: str) -> list[dict[str, Any]]:
        """The log lines with that message."""
        found = [json.loads(line) for line in self.errors.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["message"] == message]

    def end(self, signum: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code and what it printed."""
        self.process.send_signal(signum)
        printed, _ = self.process.communicate(timeout=30)
        return self.process.returncode, printed

    def kill(self) -> None:
        """As a crash would end it; also what tidies up after a test."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def options(directory: Path, port: int, file: Path) -> list[str]:
    return ["--data-dir", str(directory), "--port", str(port), "--config", str(file)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def begin(name: str = "data", **options: Any) -> Up:
        started.append(Up(tmp_path / name, **options))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


def until(true: Callable[[], object], patience_s: float = 30.0) -> bool:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return bool(true())


def all_gone(pids: dict[str, int]) -> bool:
    return until(lambda: not any(processes.alive(pid) for pid in pids.values()))


async def test_it_says_when_it_is_ready_and_ends_everything_in_order(start: Callable[..., Up]) -> None:
    up = start()
    found = up.ready()
    assert set(found) == {"url", "nats_url", "database_url", "admin_token", "version", "processes"}
    assert set(found["processes"]) == NAMES
    assert all(processes.alive(pid) for pid in found["processes"].values())
    assert stat.S_IMODE((up.directory / "ready.json").stat().st_mode) == 0o600
    assert found["admin_token"] == (up.directory / "secrets" / "admin.token").read_text().strip()
    connection = await asyncpg.connect(found["database_url"])
    assert await connection.fetchval("SELECT count(*) FROM undrift.events") >= 0
    await connection.close()
    await (await nats.connect(found["nats_url"])).close()
    code, printed = up.end()
    assert code == 0
    assert found["url"] in printed
    assert str(up.directory / "secrets" / "admin.token") in printed
    assert found["admin_token"] not in printed
    assert all_gone(found["processes"])
    assert not (up.directory / "ready.json").exists()
    ends = (up.directory / "files" / "ends").read_text().split()
    assert (ends[0], set(ends[1:3]), ends[3]) == ("gateway", {"worker-now", "worker"}, "core")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_end_it_too(start: Callable[..., Up], signum: int) -> None:
    before = signal.signal(signum, signal.SIG_DFL)  # what we were started to ignore, a program of ours would as well
    try:
        up = start()
    finally:
        signal.signal(signum, before)
    found = up.ready()
    assert up.end(signum)[0] == 0
    assert all_gone(found["processes"])


def test_a_signal_while_it_starts_leaves_nothing(start: Callable[..., Up]) -> None:
    up = start()
    assert until(lambda: (up.directory / "postgres" / "data.new").exists())
    assert up.end()[0] == 0
    assert not [pid for pid in os.listdir("/proc") if pid.isdecimal() and mentions(pid, up.directory)]
    assert set(start().ready()["processes"]) == NAMES


def mentions(pid: str, directory: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.fsencode(directory) in Path(f"/proc/{pid}/cmdline").read_bytes() and processes.alive(int(pid))
    return False


async def test_whatever_is_killed_comes_back_under_the_same_addresses(start: Callable[..., Up]) -> None:
    up = start()
    found = before = up.ready()
    for name in sorted(NAMES):
        killed = found["processes"][name]
        os.kill(killed, signal.SIGKILL)
        found = up.changed(name, killed)
        others = NAMES - {name}
        assert {each: found["processes"][each] for each in others} == {
            each: before["processes"][each] for each in others
        }
        before = found
        assert {key: found[key] for key in ("url", "nats_url", "database_url")} == {
            key: before[key] for key in ("url", "nats_url", "database_url")
        }
    assert await answer(found["database_url"]) == 1
    assert up.end()[0] == 0
    assert all_gone(found["processes"])


async def answer(url: str) -> object:
    """What Postgres says, once it has recovered."""
    while True:
        try:
            connection = await asyncpg.connect(url)
        except (asyncpg.CannotConnectNowError, ConnectionError):
            await asyncio.sleep(0.05)
        else:
            try:
                return await connection.fetchval("SELECT 1")
            finally:
                await connection.close()


def test_the_sigkill_of_up_leaves_no_orphan_and_the_next_one_starts(start: Callable[..., Up]) -> None:
    up = start()
    found = up.ready()
    up.order("worker.child")
    assert until(lambda: list((up.directory / "files").glob("worker.child-*")))
    child = int(next((up.directory / "files").glob("worker.child-*")).name.partition("-")[2])
    up.kill()
    again = start().ready()
    assert all_gone({**found["processes"], "child": child})
    assert {key: again[key] for key in ("nats_url", "database_url", "admin_token")} == {
        key: found[key] for key in ("nats_url", "database_url", "admin_token")
    }


def test_what_a_killed_process_had_started_ends_with_it(start: Callable[..., Up]) -> None:
    up = start()
    found = up.ready()
    up.order("worker.child")
    assert until(lambda: list((up.directory / "files").glob("worker.child-*")))
    child = int(next((up.directory / "files").glob("worker.child-*")).name.partition("-")[2])
    os.kill(found["processes"]["worker"], signal.SIGKILL)
    up.changed("worker", found["processes"]["worker"])
    assert all_gone({"child": child})


def test_a_process_whose_beat_stopped_is_killed_and_started_again(start: Callable[..., Up]) -> None:
    up = start()
    deaf = up.ready()["processes"]["core"]
    up.order("core.deaf")
    assert until(lambda: up.lines("killed a process whose beat stopped"))
    (up.directory / "files" / "core.deaf").unlink()
    up.changed("core", deaf)
    assert {line["program"] for line in up.lines("killed a process whose beat stopped")} == {"core"}
    assert not processes.alive(deaf)


def test_the_pause_before_a_restart_grows_to_its_limit(start: Callable[..., Up]) -> None:
    up = start()
    up.ready()
    up.order("worker.exit", "7")
    assert until(lambda: len(up.lines("a process ended")) >= 7)
    ends = up.lines("a process ended")[:7]
    assert {(line["program"], line["code"]) for line in ends} == {("worker", 7)}
    assert [line["restart_in_s"] for line in ends] == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]


def test_a_process_that_can_never_run_ends_it_all_with_a_word(start: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "data" / "files").mkdir(parents=True)
    (tmp_path / "data" / "files" / "gateway.exit").write_text("2")
    up = start()
    up.process.communicate(timeout=30)
    assert up.process.returncode == 1
    assert "undrift up: gateway ended with code 2 before it was ready" in up.errors.read_text()
    assert not (tmp_path / "data" / "ready.json").exists()


def test_a_process_that_does_not_want_to_end_is_killed(start: Callable[..., Up], tmp_path: Path) -> None:
    (tmp_path / "data" / "files").mkdir(parents=True)
    (tmp_path / "data" / "files" / "core.stubborn").touch()
    up = start()
    found = up.ready()
    assert up.end()[0] == 0
    assert all_gone(found["processes"])
    assert set((tmp_path / "data" / "files" / "ends").read_text().split()) == {"gateway", "worker-now", "worker"}


def test_a_second_up_in_the_same_directory_is_refused(start: Callable[..., Up]) -> None:
    up = start()
    found = up.ready()
    second = start()
    second.process.communicate(timeout=30)
    assert second.process.returncode == 1
    assert f"{up.directory} is in use by another process (pid {up.process.pid})" in second.errors.read_text()
    assert up.ready() == found


def test_a_port_that_is_taken_is_named_before_anything_starts(start: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        up = start(port=port)
        up.process.communicate(timeout=30)
    assert up.process.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken; choose another with --port" in up.errors.read_text()
    assert not (up.directory / "postgres").exists()


def test_two_run_side_by_side(start: Callable[..., Up]) -> None:
    first, second = start("one"), start("two")
    addresses = [(up.ready()["url"], up.ready()["nats_url"], up.ready()["database_url"]) for up in (first, second)]
    assert all(one != two for one, two in zip(*addresses, strict=True))
    assert [up.end()[0] for up in (first, second)] == [0, 0]


def test_no_secret_is_in_a_process_list_or_in_the_log(start: Callable[..., Up]) -> None:
    up = start()
    found = up.ready()
    secrets = [path.read_bytes().strip() for path in (up.directory / "secrets").iterdir()]
    assert len(secrets) >= 3
    for pid in [up.process.pid, *found["processes"].values()]:
        for name in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not [secret for secret in secrets if secret in text]
    os.kill(found["processes"]["postgres"], signal.SIGKILL)
    up.changed("postgres", found["processes"]["postgres"])
    up.end()
    logs = b"".join(path.read_bytes() for path in [up.errors, *up.directory.glob("*.log")])
    assert not [secret for secret in secrets if secret in logs]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in up.directory.iterdir() if path.is_file()}
    assert modes == dict.fromkeys(modes, 0o600)


def test_servers_of_ones_own_replace_the_embedded_ones(start: Callable[..., Up], database: str, nats_url: str) -> None:
    up = start(UNDRIFT_DATABASE_URL=database, UNDRIFT_NATS_URL=nats_url)
    found = up.ready()
    assert set(found["processes"]) == NAMES - {"postgres", "nats"}
    assert (found["database_url"], found["nats_url"]) == (database, nats_url)
    up.end()
    assert not (up.directory / "postgres").exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["--root", "/no/such/folder"], {}, "files.roots (--root): expected a folder, got '/no/such/folder'"),
        (["--port", "70000"], {}, "gateway.port: expected int <= 65535, got 70000"),
        ([], {"UNDRIFT_GATEWAY_PROT": "1"}, "UNDRIFT_GATEWAY_PROT is not a setting"),
        (["--config", "/no/such.toml"], {}, "/no/such.toml: No such file or directory"),
    ],
)
def test_a_wrong_option_is_named(
    arguments: list[str], environment: dict[str, str], expected: str, data_dir: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.up", "--data-dir", data_dir, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert expected in done.stderr


def test_the_real_processes_answer_again_after_each_of_them_was_killed(start: Callable[..., Up]) -> None:
    up = start(small=False, settings="")
    found = up.ready()
    url = found["url"] + "/readyz"
    for name in sorted(NAMES):
        family = descendants(found["processes"][name])
        os.kill(found["processes"][name], signal.SIGKILL)
        found = up.changed(name, found["processes"][name])
        assert all_gone({str(pid): pid for pid in family})
        assert until(lambda: answers(url), patience_s=60), up.errors.read_text()
    everything = [up.process.pid, *found["processes"].values()]
    family = [*everything, *(pid for each in everything for pid in descendants(each))]
    assert len(family) > len(everything)
    up.kill()
    assert all_gone({str(pid): pid for pid in family})
    again = start(small=False, settings="")
    assert until(lambda: answers(again.ready()["url"] + "/readyz"), patience_s=60)
    assert again.end()[0] == 0


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


def descendants(pid: int) -> list[int]:
    """The processes that it has started, and theirs."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found += [child, *descendants(child)]
    return found
