"""`undrift device`: two folders on one library end equal, whatever happens on the way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.journeys.conftest import UNDRIFT, Ran, environment
from tests.journeys.libraries import PASSWORD, User, user
from tests.journeys.system import System, until


def run(*arguments: object, stdin: str = "") -> Ran:
    done = subprocess.run(
        [UNDRIFT, "device", *map(str, arguments)],
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def link(owner: User, folder: Path, name: str) -> Path:
    url = owner.system.ready["url"]
    ran = run("link", folder, "--url", url, "--user", owner.name, "--name", name, "--password-stdin", stdin=PASSWORD)
    assert ran.code == 0, ran
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".undrift" not in path.parts
    }


@pytest.fixture
def pair(system: System, tmp_path: Path) -> tuple[Path, Path]:
    ann = user(system)
    return link(ann, tmp_path / "a", "alpha"), link(ann, tmp_path / "b", "beta")


def sync(folder: Path) -> str:
    ran = run("sync", folder, "--once")
    assert ran.code == 0, ran
    return ran.out


def test_what_is_in_one_folder_comes_to_the_other(pair: tuple[Path, Path]) -> None:
    a, b = pair
    (a / "d").mkdir()
    (a / "d" / "ünïcode.txt").write_bytes(b"1")
    (a / "empty").write_bytes(b"")
    (a / "link").symlink_to("empty")
    assert "2 uploaded" in sync(a)
    assert "2 downloaded" in sync(b)
    assert files(b) == {"d/ünïcode.txt": b"1", "empty": b""}
    assert abs((b / "empty").stat().st_mtime - (a / "empty").stat().st_mtime) < 0.0015  # kept in milliseconds
    (b / "d" / "ünïcode.txt").rename(b / "moved")
    (b / "empty").unlink()
    sync(b)
    sync(a)
    assert files(a) == {"moved": b"1"}
    assert not (a / "d").exists()
    assert "In step" in sync(a)


def test_two_edits_stay_in_both_forms(pair: tuple[Path, Path]) -> None:
    a, b = pair
    (a / "notes.txt").write_bytes(b"base")
    sync(a)
    sync(b)
    (a / "notes.txt").write_bytes(b"of alpha")
    (b / "notes.txt").write_bytes(b"of beta")
    sync(a)
    assert "1 kept in both forms" in sync(b)
    sync(a)
    assert files(a) == files(b)
    assert sorted(files(a).values()) == [b"of alpha", b"of beta"]
    assert files(a)["notes.txt"] == b"of alpha"


def test_an_edit_beats_a_deletion(pair: tuple[Path, Path]) -> None:
    a, b = pair
    (a / "x").write_bytes(b"base")
    sync(a)
    sync(b)
    (a / "x").write_bytes(b"edited")
    (b / "x").unlink()
    sync(a)
    sync(b)
    assert files(b) == {"x": b"edited"}


def test_a_folder_that_cannot_be_read_is_not_taken_for_deleted(pair: tuple[Path, Path]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    a, b = pair
    (a / "d").mkdir()
    (a / "d" / "x").write_bytes(b"1")
    sync(a)
    (a / "d").chmod(0)
    try:
        assert run("sync", a, "--once").code == 1
    finally:
        (a / "d").chmod(0o755)
    sync(b)
    assert files(b) == {"d/x": b"1"}


def test_it_says_what_is_wrong(system: System, pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, _ = pair
    assert "not linked" in run("sync", tmp_path, "--once").err
    assert "linked to" in run("link", a, "--url", "http://127.0.0.1:1", "--user", "x", "--password-stdin").err
    wrong = run("link", tmp_path / "c", "--url", system.ready["url"], "--user", "nobody", "--password-stdin", stdin="x")
    assert (wrong.code, "name or the password" in wrong.err) == (5, True)
    (a / "con").write_bytes(b"1")
    assert "is reserved" in run("sync", a, "--once").err
    status = run("status", a, "--json").json()
    assert (status["name"], status["changedHere"], status["changedThere"]) == ("alpha", 0, 0)
    for path in (a / ".undrift").iterdir():
        assert path.name not in ("device.json",) or path.stat().st_mode & 0o077 == 0


def test_it_follows_changes_here_and_there(pair: tuple[Path, Path]) -> None:
    a, b = pair
    programs = [
        subprocess.Popen([UNDRIFT, "device", "sync", str(folder)], env=environment(), stdout=subprocess.DEVNULL)
        for folder in pair
    ]
    try:
        assert until(lambda: all((folder / ".undrift" / "state.db").exists() for folder in pair))
        (a / "one").write_bytes(b"1")
        assert until(lambda: files(b) == {"one": b"1"})
        (b / "two").write_bytes(b"2")
        assert until(lambda: files(a) == {"one": b"1", "two": b"2"})
        assert run("sync", a, "--once").code == 1  # one at a time
    finally:
        for program in programs:
            program.send_signal(signal.SIGINT)
        assert [program.wait(20) for program in programs] == [130, 130]


def killed(folders: tuple[Path, Path], kills: int, edits: int, seed: int) -> None:
    """Edits both folders while their clients are killed again and again; then lets them finish."""
    chance = random.Random(seed)
    running: dict[Path, subprocess.Popen[bytes]] = {}
    for number in range(kills):
        folder = folders[number % 2]
        running[folder] = subprocess.Popen(
            [UNDRIFT, "device", "sync", str(folder), "--once"],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(edits):
            edit(chance, folders[chance.randrange(2)])
        time.sleep(chance.uniform(0.3, 1.5))
        running[folder].kill()
        running[folder].wait()
    for _ in range(4):
        for folder in folders:
            sync(folder)


def edit(chance: random.Random, folder: Path) -> None:
    found = sorted(files(folder))
    action = chance.random()
    if action < 0.15 and found:
        (folder / chance.choice(found)).unlink(missing_ok=True)
    elif action < 0.3 and found:
        target = folder / f"moved-{chance.randrange(1000)}"
        if not target.exists():
            (folder / chance.choice(found)).rename(target)
    else:
        path = folder / f"d{chance.randrange(4)}" / f"f{chance.randrange(10)}"
        if not path.parent.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(chance.randbytes(chance.randrange(20_000)))


def test_clients_that_are_killed_end_equal(pair: tuple[Path, Path]) -> None:
    a, b = pair
    for number in range(30):
        (a / f"start-{number}").write_bytes(os.urandom(1000))
    killed(pair, kills=8, edits=3, seed=1)
    assert files(a) == files(b)
    assert run("status", a, "--json").json()["conflicts"] == 0
