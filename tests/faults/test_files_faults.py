"""Folder syncs that are killed at any call, and folders that are swapped for links under them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from domain import errors
from domain.plans.files import Result
from domain.plans.patterns import TEMPORARY
from infra import linux
from tests.worker.test_files import World, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

_OS = ("rename", "mkdir", "write", "pwrite", "utime", "unlink", "link", "rmdir", "symlink", "open", "fchmod", "close")
_LINUX = ("rename", "syncfs")


def prepared(path: Path) -> World:
    """A pair that was in sync, and in which then everything happened that a sync can meet."""
    world = World(path)
    for number in range(60):
        world.write(f"{number % 4}/{number}", f"old {number}")
    world.write("was-dir/a/b", "b")
    world.write("was-file", "f")
    world.write("gone/1", "1")
    assert world.mirror(job="before").errors == ()
    for number in range(0, 60, 3):
        world.write(f"{number % 4}/{number}", f"newer {number}")
    for number in range(70):
        world.write(f"new/{number % 3}/{number}", f"new {number}")
    for name in ("was-dir/a/b", "was-file", "gone/1", "1/1"):
        (world.source / name).unlink()
    (world.source / "was-dir/a").rmdir()
    (world.source / "was-dir").rmdir()
    (world.source / "gone").rmdir()
    world.write("was-dir", "now a file")
    world.write("was-file/in/side", "now a folder")
    world.write("0/0", "edited in the target", where=world.target)
    world.write("3/3", "this too", where=world.target)
    (world.source / "2/2").chmod(0o600)
    return world


def alone(work: Callable[[], Result | None]) -> int:
    """Runs in a process of its own; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except errors.SyncFailed:
            os._exit(3)  # the second process was killed, which the first has noticed
        except BaseException:
            os._exit(9)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def deadly(world: World, job: str, at: int, second: bool) -> int:
    """A run in which one of the two processes is killed before its call number `at`."""

    def run() -> Result:
        first, calls = os.getpid(), [0]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                if (os.getpid() != first) == second:
                    calls[0] += 1
                    if calls[0] == at:
                        os.kill(os.getpid(), signal.SIGKILL)
                return real(*given, **named)

            return call

        for module, names in ((os, _OS), (linux, _LINUX)):
            for name in names:
                setattr(module, name, counted(getattr(module, name)))
        return world.mirror(job=job)

    return alone(run)


def patiently(run: Callable[[], Result]) -> Result:
    """The orphan of a killed process may take a moment to end."""
    for _ in range(200):
        try:
            return run()
        except errors.Conflict:
            time.sleep(0.02)
    return run()


def assert_old_or_new(world: World, before: dict[bytes, tuple[object, ...]]) -> None:
    new = {path: what[-1] for path, what in snapshot(world.source).items()}
    for path, what in snapshot(world.target).items():
        if not any(part.startswith(TEMPORARY) for part in path.split(b"/")):
            allowed = {new.get(path), before[path][-1] if path in before else new.get(path)}
            assert what[-1] in allowed, path
    for path in new.keys() & before.keys():  # and what is in both is there at every moment
        assert os.path.lexists(os.path.join(os.fsencode(world.target), path)), path


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_a_kill_at_any_call_loses_nothing(tmp_path: Path, second: bool) -> None:
    whole = prepared(tmp_path / "whole").mirror(job="job", force=True)
    assert whole.conflicts == 2
    kills = 0
    for at in (*range(1, 30, 5), *range(30, 300, 35), *range(300, 1200, 90)):
        world = prepared(tmp_path / f"at-{at}")
        before = snapshot(world.target)
        status = deadly(world, "job", at, second)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, 3)
        kills += status != 0
        assert_old_or_new(world, before)
        result = patiently(lambda world=world: world.mirror(job="job"))  # type: ignore[misc]
        assert result.errors == ()
        world.assert_same()
        done = (result.created, result.updated, result.deleted, result.conflicts)
        assert done == (whole.created, whole.updated, whole.deleted, whole.conflicts), at
        assert set(world.trashed("job").values()) >= {b"edited in the target", b"this too", b"1", b"b"}
        assert world.mirror(job="after").changes_applied == 0
    assert kills > 8


def test_a_resumed_job_does_not_compare_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    for number in range(1500):
        world.write(f"{number:04}", str(number))
    world.run(job="before")
    world.write("9999", "new")
    read: list[str] = []
    real = os.read

    def killed() -> Result:
        world.data.joinpath("reads").touch()

        def reading(descriptor: int, count: int) -> bytes:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
            if name.startswith(str(world.source)):
                with world.data.joinpath("reads").open("a") as file:
                    file.write(f"{name}\n")
            return real(descriptor, count)

        os.read = reading
        from services.worker import files_execute

        def die(*_: object) -> NoReturn:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        files_execute.Executor.run = die  # type: ignore[method-assign]
        return world.run(job="job")

    alone(killed)
    assert len(set(world.data.joinpath("reads").read_text().split())) == 1500

    def reading(descriptor: int, count: int) -> bytes:
        read.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return real(descriptor, count)

    monkeypatch.setattr(os, "read", reading)
    result = patiently(lambda: world.run(job="job"))
    monkeypatch.undo()
    assert result.created == 1
    assert [name for name in read if name.startswith(str(world.root))] == []
    (world.source / "0001").write_text("!")
    assert world.run(job="job").updated == 1  # but what has changed since is compared


def swapping(folder: Path, outside: Path) -> NoReturn:
    """Flips a folder and a link to the outside, as fast as it can."""
    aside, link = folder.with_name(".aside"), folder.with_name(".link")
    link.symlink_to(outside)
    os.chdir(folder.parent)
    parent = os.open(".", os.O_RDONLY)
    while True:
        try:
            linux.rename(os.fsencode(link.name), os.fsencode(folder.name), parent, parent, linux.RENAME_EXCHANGE)
        except OSError:
            if not os.path.lexists(aside) and not os.path.lexists(folder):
                os.mkdir(folder.name)
            if not os.path.lexists(link):
                os.symlink(outside, link.name)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_folder_swapped_for_a_link_leads_nowhere(tmp_path: Path, side: str) -> None:
    world = World(tmp_path)
    outside = tmp_path / "outside"
    world.write("secret", "secret", where=outside)
    world.write("deep/secret", "secret", where=outside)
    for number in range(40):
        world.write(f"sub/deep/{number}", "harmless")
        world.write(f"sub/{number}", "harmless")
    world.run()
    before = snapshot(outside)
    swapper = os.fork()
    if swapper == 0:
        try:
            swapping((world.source if side == "source" else world.target) / "sub", outside)
        finally:
            os._exit(1)
    try:
        until, runs = time.monotonic() + 2.0, 0
        while time.monotonic() < until or runs < 3:
            world.write(f"sub2/{runs}", str(runs))
            for number in range(0, 40, 7):
                path = (world.source if side == "target" else world.root / "more") / f"sub/deep/{number}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"harmless {runs}")
            world.mirror(force=True)
            runs += 1
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    assert snapshot(outside) == before
    copied = [path for path in world.target.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in copied if path.read_text() == "secret" and not _through_a_link(path, world.target)]


def _through_a_link(path: Path, top: Path) -> bool:
    return any(above.is_symlink() for above in path.parents if above.is_relative_to(top))


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "plain"])
@pytest.mark.parametrize("covers", [True, False], ids=["syncfs", "fsync"])
def test_nothing_gets_its_name_before_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covers: bool, verify: bool
) -> None:
    """The order of the calls of both processes: write, sync begun, sync ended, rename."""
    world = prepared(tmp_path)
    (world.source / "large").write_bytes(os.urandom(2 << 20))
    (world.source / "0/0").write_bytes(os.urandom(2 << 20))
    events = os.open(tmp_path / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write, real_sync = os.write, linux.syncfs

    def note(what: str, name: object = "") -> None:
        write(events, f"{os.getpid()} {what} {os.fsdecode(name) if isinstance(name, bytes) else name}\n".encode())

    def path(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def watch(module: Any, name: str, what: str, of: Callable[..., object]) -> None:
        real = getattr(module, name)

        def call(*given: Any, **named: Any) -> Any:
            note(what, of(*given))
            return real(*given, **named)

        monkeypatch.setattr(module, name, call)

    def syncfs(descriptor: int) -> None:
        note("begin")
        real_sync(descriptor)
        note("end")

    watch(os, "write", "write", lambda descriptor, _: path(descriptor))
    watch(os, "pwrite", "write", lambda descriptor, *rest: path(descriptor))
    watch(os, "copy_file_range", "write", lambda _, descriptor, *rest: path(descriptor))
    watch(os, "fsync", "fsync", path)
    watch(os, "rename", "rename", lambda name, _: name)
    watch(linux, "rename", "rename", lambda name, *_: name)
    monkeypatch.setattr(linux, "syncfs", syncfs)
    monkeypatch.setattr(linux, "syncfs_covers", lambda _: covers)
    world.mirror(force=True, verify_integrity=verify)
    monkeypatch.undo()
    os.close(events)
    assert _ordered((tmp_path / "events").read_text().splitlines(), covers) > 20


def _ordered(lines: list[str], covers: bool) -> int:
    """How many written files got a name, each after the sync that its last write went before."""
    written: dict[str, dict[str, int]] = {}
    named = 0
    for line in lines:
        process, what, name = line.split(" ", 2)
        files = written.setdefault(process, {})
        if what == "write" and ".undrift-tmp-" in name:
            files[name] = 0
        elif what == "fsync" and name in files:
            files[name] = 2
        elif what == "begin":
            files.update({name: 1 for name, state in files.items() if state == 0})
        elif what == "end" and covers:
            files.update({name: 2 for name, state in files.items() if state == 1})
        elif what == "rename" and name.startswith(".undrift-tmp-"):
            inside = [path for path in files if f"/{name}/" in path or path.endswith(f"/{name}")]
            assert all(files.pop(path) == 2 for path in inside), name
            named += len(inside)
    return named
