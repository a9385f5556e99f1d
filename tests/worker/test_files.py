"""Folder syncs on real trees: everything that can be in a folder, everything that can go wrong in one."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from domain import errors
from domain.plans.files import Guards, Result, Spec, Summary
from infra import linux
from services.worker import files, files_batch, files_context, files_trash
from services.worker.files_context import Context, Progress

# Python 3.12 warns of a fork beside other threads; here no other thread holds anything that the engine needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

as_user = pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")


class World:
    """A root with a source and a target, and what a worker gives its engine."""

    def __init__(self, path: Path) -> None:
        self.root, self.data = path / "root", path / "data"
        self.source, self.target = self.root / "source", self.root / "target"
        self.source.mkdir(parents=True)
        self.data.mkdir()
        self.jobs = 0
        self.lines: list[tuple[str, str]] = []
        self.progress: list[Progress] = []

    def spec(self, **options: Any) -> Spec:
        paths = {"source_directory": str(self.source), "target_directory": str(self.target)}
        return Spec(**{**paths, **options})

    def context(self, job: str | None = None, **options: Any) -> Context:
        self.jobs += job is None
        job = job or f"job-{self.jobs}"
        given: dict[str, Any] = {
            "roots": [str(self.root)],
            "job": job,
            "work": self.data / "work" / job,
            "trash": self.data / "trash",
            "record": self.data / "records" / "pair",
            "log": lambda level, message: self.lines.append((level, message)),
            "emit": self.progress.append,
        }
        return Context(**{**given, **options})

    def run(self, job: str | None = None, context: dict[str, Any] | None = None, **options: Any) -> Result:
        return files.run(self.spec(**options), self.context(job, **context or {}))

    def mirror(self, **options: Any) -> Result:
        return self.run(delete_missing_in_target=True, **options)

    def plan(self, **options: Any) -> Summary:
        return files.plan(self.spec(**options), self.context())

    def write(self, name: str, data: bytes | str = "x", where: Path | None = None, age: int = 0) -> Path:
        path = (where or self.source) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        if age:
            stamp = 1_700_000_000_000_000_000 - age * 1_000_000_000 + 123_456_789
            os.utime(path, ns=(stamp, stamp))
        return path

    def trashed(self, job: str | None = None) -> dict[str, bytes]:
        base = self.root / ".undrift" / "trash" / (job or f"job-{self.jobs}")
        return {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()}

    def assert_same(self) -> None:
        assert snapshot(self.source) == snapshot(self.target)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def snapshot(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Kind, mode, time, content or link target of everything in a tree; modes of links say nothing."""
    found: dict[bytes, tuple[object, ...]] = {}
    base = os.fsencode(root)
    for folder, names, others in os.walk(base):
        for name in (b".", *names, *others):
            path = os.path.join(folder, name)
            st = os.lstat(path)
            what: object = None
            if stat.S_ISLNK(st.st_mode):
                what = os.readlink(path)
            elif stat.S_ISREG(st.st_mode):
                with open(path, "rb") as file:
                    what = file.read()
            mode = stat.S_IMODE(st.st_mode) if not stat.S_ISLNK(st.st_mode) else 0
            found[os.path.relpath(path, base)] = (stat.S_IFMT(st.st_mode), mode, st.st_mtime_ns, what)
    return found


def rich(world: World) -> None:
    """A tree with everything that a sync keeps."""
    world.write("plain.txt", "hello", age=10)
    world.write("empty", b"")
    world.write("sub/deeper/file", os.urandom(5000), age=1000)
    world.write("sub/old", "before the epoch")
    os.utime(world.source / "sub/old", ns=(-1_500_000_001, -1_500_000_001))
    (world.source / "hollow").mkdir(mode=0o750)
    world.write("modes/secret", "s").chmod(0o600)
    world.write("modes/none", "s").chmod(0o444)
    world.write("modes/run", "s").chmod(0o755)
    for name in ("to-file", "dangling", "absolute"):
        target = {"to-file": "plain.txt", "dangling": "nowhere", "absolute": "/etc/passwd"}[name]
        (world.source / name).symlink_to(target)
        os.utime(world.source / name, ns=(5, 1_234_567_890_123_456_789), follow_symlinks=False)
    (world.source / "to-folder").symlink_to("sub")
    os.link(world.source / "plain.txt", world.source / "hard")
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b" ", b"a\\b", b"*", "ü".encode(), "u\u0308".encode(), b"n" * 255):
        with open(os.path.join(os.fsencode(world.source), name), "wb") as file:
            file.write(name)
    os.utime(world.source / "sub/deeper", ns=(7, 1_111_111_111_111_111_111))
    (world.source / "sub").chmod(0o775)


def rsync(world: World) -> str:
    """What rsync would still change."""
    program = shutil.which("rsync")
    if program is None:
        pytest.skip("the package rsync is not installed")
    order = [program, "-rlptn", "--checksum", "--delete", "--itemize-changes", f"{world.source}/", f"{world.target}/"]
    return subprocess.run(order, check=True, capture_output=True, timeout=60).stdout.decode("utf-8", "replace")


# What is copied.


@pytest.mark.parametrize("verify", [True, False])
def test_a_copy_is_like_its_source_and_a_second_run_changes_nothing(world: World, verify: bool) -> None:
    rich(world)
    first = world.mirror(verify_integrity=verify)
    world.assert_same()
    assert (first.error_count, first.errors, first.conflicts, first.stopped) == (0, (), 0, False)
    assert first.changes_applied == first.created == first.processed > 20
    second = world.mirror(verify_integrity=verify)
    assert (second.changes_applied, second.error_count, second.processed) == (0, 0, first.processed)
    assert {one.stage for one in world.progress} >= {"scan", "copy", "finish"}


def test_rsync_finds_nothing_to_do(world: World) -> None:
    rich(world)
    world.write("extra/in/target", where=world.target)
    world.mirror(force=True)
    assert rsync(world) == ""


def test_changes_are_followed(world: World) -> None:
    rich(world)
    world.mirror()
    world.write("plain.txt", "hello again")
    world.write("sub/deeper/new", "n")
    world.write("fresh/a/b/c", "n")
    (world.source / "modes/secret").chmod(0o640)
    os.utime(world.source / "empty", ns=(9, 9))
    (world.source / "to-file").unlink()
    (world.source / "to-file").symlink_to("empty")
    (world.source / "hollow").chmod(0o700)
    (world.source / "-rf").unlink()
    shutil.rmtree(world.source / "sub/deeper")
    result = world.mirror()
    world.assert_same()
    assert rsync(world) == ""
    # plain.txt and its other name are two files in the target
    assert (result.created, result.updated, result.deleted) == (1, 5, 2)
    assert world.mirror().changes_applied == 0


def test_kinds_change_into_each_other(world: World) -> None:
    for old, new in (
        ("file", "dir"),
        ("dir", "file"),
        ("link", "dir"),
        ("dir", "link"),
        ("file", "link"),
        ("link", "file"),
    ):
        for where, kind in ((world.target, old), (world.source, new)):
            path = where / f"{old}-{new}"
            where.mkdir(exist_ok=True)
            if kind == "file":
                path.write_text(kind)
            elif kind == "link":
                path.symlink_to("x")
            else:
                world.write(f"{old}-{new}/in/side", "d", where=where)
    (world.target / "fifo").mkdir()
    os.mkfifo(world.target / "was-fifo")
    world.write("was-fifo")
    world.write("fifo")
    result = world.mirror(force=True)
    assert result.errors == ()
    world.assert_same()
    assert world.mirror().changes_applied == 0


@pytest.mark.parametrize("inside", [(), ("in/side",), ("a", "b", "in/side")])
def test_a_file_that_becomes_a_folder_is_a_change_and_may_be_a_conflict(world: World, inside: tuple[str, ...]) -> None:
    world.write("thing")
    world.write("stays")
    world.mirror()
    (world.source / "thing").unlink()
    (world.source / "thing").mkdir()
    for name in inside:
        world.write(f"thing/{name}")
    world.write("thing", "edited", where=world.target)
    planned = world.plan()
    result = world.run()
    world.assert_same()
    for one in (planned, result):
        assert (one.created, one.updated, one.conflicts) == (len(inside), 1, 1)
    assert result.changes_applied == len(inside) + 1
    again = world.run()
    assert (again.changes_applied, again.conflicts) == (0, 0)


def test_a_plan_says_whether_all_of_it_is_listed(world: World) -> None:
    for number in range(100):
        world.write(f"folder/{number:03}")
    assert (world.plan().action_count, world.plan().truncated) == (102, True)
    for number in range(2):
        (world.source / "folder" / f"{number:03}").unlink()
    plan = world.plan()
    assert (plan.action_count, len(plan.actions), plan.truncated) == (100, 100, False)


def test_what_is_no_file_is_skipped_and_told(world: World) -> None:
    os.mkfifo(world.source / "fifo")
    world.write("file")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(world.source / "socket"))
        result = world.run()
    assert sorted(os.listdir(world.target)) == ["file"]
    assert (result.skipped, result.error_count) == (2, 0)
    assert ("info", "skipped a FIFO: fifo") in world.lines
    world.write("fifo", "not touched", where=world.target)
    assert world.mirror().changes_applied == 0


def test_large_and_sparse_files(world: World) -> None:
    world.write("large", os.urandom(40 << 20))
    with open(world.source / "sparse", "wb") as file:
        file.truncate(1 << 30)
        file.seek(300 << 20)
        file.write(b"data" * 1000)
    with open(world.source / "hole", "wb") as file:
        file.truncate(100 << 20)
    world.run()
    for name in ("large", "sparse", "hole"):
        ours, theirs = (world.source / name).stat(), (world.target / name).stat()
        assert (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)
        assert abs(theirs.st_blocks - ours.st_blocks) <= 16
    assert (world.source / "large").read_bytes() == (world.target / "large").read_bytes()
    with open(world.target / "sparse", "rb") as file:
        file.seek((300 << 20) - 4)
        assert file.read(4008) == b"\0" * 4 + b"data" * 1000 + b"\0" * 4
    assert world.run().changes_applied == 0


@pytest.mark.parametrize("way", ["direct", "cached", "checked"])
def test_large_files_of_any_length(world: World, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    megabyte = 1 << 20
    for size in (megabyte, megabyte + 1, 2 * megabyte - 1, 3 * megabyte + 4096, (33 << 20) + 5000, 64 << 20):
        world.write(str(size), os.urandom(size))
    with open(world.source / "holes", "wb") as file:
        for at in (1, 2 * megabyte - 3, 5 * megabyte + 4095, 40 * megabyte):
            file.seek(at)
            file.write(os.urandom(70_000))
        file.truncate(41 * megabyte + 17)
    if way == "cached":
        monkeypatch.setattr(linux, "prefers_direct", lambda _: False)
    result = world.run(verify_integrity=way == "checked")
    assert result.errors == ()
    assert result.bytes == sum(path.stat().st_size for path in world.source.iterdir())
    for path in world.source.iterdir():
        assert (world.target / path.name).read_bytes() == path.read_bytes(), path.name
    ours, theirs = (world.source / "holes").stat(), (world.target / "holes").stat()
    assert theirs.st_blocks <= ours.st_blocks + 16
    assert world.run().changes_applied == 0


def test_a_tree_deeper_than_any_path(world: World) -> None:
    descriptor = os.open(world.source, os.O_RDONLY)
    for _ in range(60):
        os.mkdir(b"d" * 200, dir_fd=descriptor)
        following = os.open(b"d" * 200, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = following
    file = os.open(b"end", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.write(file, b"deep")
    os.close(file)
    os.unlink(b"end", dir_fd=descriptor) if world.run().created != 1 else None
    os.close(descriptor)
    assert world.run().changes_applied == 0
    for where in (world.source, world.target):
        top = os.open(where, os.O_RDONLY)
        files_trash.remove(top, b"d" * 200)
        os.close(top)
        assert os.listdir(where) == []


def test_a_folder_with_more_names_than_a_stretch(world: World) -> None:
    for number in range(2500):
        world.write(f"many/{number:05}", str(number))
    assert world.run().created == 2500
    world.assert_same()
    assert world.run().changes_applied == 0
    for number in (5, 700, 2400):
        path = world.target / f"many/{number:05}"
        st = path.stat()
        path.write_bytes(b"!" * st.st_size)
        os.utime(path, ns=(st.st_mtime_ns, st.st_mtime_ns))
    (world.target / "many/01000").unlink()
    result = world.run()
    assert (result.created, result.updated, result.conflicts) == (1, 3, 3)
    world.assert_same()


def test_setuid_is_kept_for_the_same_owner_only(world: World) -> None:
    world.write("mine").chmod(0o4755)
    if os.geteuid() == 0:
        theirs = world.write("theirs")
        os.chown(theirs, 12345, 12345)
        theirs.chmod(0o6755)
    world.run()
    assert stat.S_IMODE((world.target / "mine").stat().st_mode) == 0o4755
    if os.geteuid() == 0:
        assert stat.S_IMODE((world.target / "theirs").stat().st_mode) == 0o755
    assert world.run().changes_applied == 0


def test_no_descriptor_is_left_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rich(world)
    before = sorted(os.listdir("/proc/self/fd"))
    world.run()
    world.write("plain.txt", "longer than before")
    world.plan()
    world.run()
    monkeypatch.setattr(os, "write", _full)
    world.write("plain.txt", "even longer than before")
    with pytest.raises(errors.StorageFull):
        world.run()
    assert sorted(os.listdir("/proc/self/fd")) == before


_write = os.write


def _full(descriptor: int, data: bytes) -> int:
    if data == b"even longer than before":
        raise OSError(28, "No space left on device")
    return _write(descriptor, data)


# What decides.


def test_verification_finds_what_size_and_time_hide(world: World) -> None:
    path = world.write("file", "right")
    world.run()
    st = path.stat()
    (world.target / "file").write_text("wrong")
    os.utime(world.target / "file", ns=(st.st_mtime_ns, st.st_mtime_ns))
    assert world.run(mode="incremental").changes_applied == 0
    assert world.run(verify_integrity=False).changes_applied == 0
    result = world.run()
    assert (result.updated, result.conflicts) == (1, 1)
    assert (world.target / "file").read_text() == "right"
    assert world.trashed() == {"file": b"wrong"}


def test_a_copy_that_reads_back_wrong_is_not_published(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back from two files is not what was written."""
    world.write("good", "1")
    world.write("bad", "bad")
    world.write("large", os.urandom(3 << 20))
    real, real_parts = os.pread, os.preadv

    def lying(descriptor: int, count: int, offset: int) -> bytes:
        data = real(descriptor, count, offset)
        if data == b"bad" and os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(world.target)):
            return b"BAD"
        return data

    def parts(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = real_parts(descriptor, buffers, offset)
        if offset == 2 << 20 and os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(world.target)):
            buffers[0][count - 1] ^= 1
        return count

    monkeypatch.setattr(os, "pread", lying)
    monkeypatch.setattr(os, "preadv", parts)
    result = world.run()
    assert sorted(os.listdir(world.target)) == ["good"]
    assert sorted(result.errors) == [f"{name}: the copy that was read back differs" for name in ("bad", "large")]
    assert result.created == 1


def test_excluded_names_are_neither_copied_nor_deleted(world: World) -> None:
    for name in ("keep", "skip.log", "cache/a", "docs/draft", "docs/final", "node_modules/deep/er"):
        world.write(name, "s")
    for name in ("old.log", "cache/b", "gone/inside.log", "gone/away", "node_modules/mine"):
        world.write(name, "t", where=world.target)
    excluded = ("*.log", "cache", "docs/draft", "node_modules/*")
    result = world.mirror(exclude_patterns=excluded, force=True)
    found = {str(path.relative_to(world.target)) for path in world.target.rglob("*") if path.is_file()}
    assert found == {"keep", "docs/final", "old.log", "cache/b", "gone/inside.log", "node_modules/mine"}
    assert (result.created, result.deleted) == (2, 1)
    assert world.mirror(exclude_patterns=excluded).changes_applied == 0


def test_a_selective_sync_touches_nothing_else(world: World) -> None:
    for name in ("a/one", "a/two", "b/three", "top"):
        world.write(name, "s")
    world.write("b/old", "t", where=world.target)
    world.write("a/old", "t", where=world.target)
    result = world.mirror(mode="selective", entities=("a", "nowhere/x"), force=True)
    assert (result.created, result.deleted) == (2, 1)
    assert sorted(os.listdir(world.target)) == ["a", "b"]
    assert os.listdir(world.target / "b") == ["old"]
    assert world.mirror(mode="selective", entities=("a",)).changes_applied == 0


def test_without_deletion_extra_files_stay(world: World) -> None:
    world.write("file")
    world.write("extra", where=world.target)
    assert world.run().deleted == 0
    assert sorted(os.listdir(world.target)) == ["extra", "file"]


# Conflicts and the trash.


def test_a_target_edited_between_runs_is_a_conflict_and_kept(world: World) -> None:
    world.write("sub/file", "one")
    world.write("other", "one")
    assert world.run().conflicts == 0
    world.write("sub/file", "edited", where=world.target)
    world.write("sub/file", "two!")
    world.write("other", "two")
    result = world.run()
    assert (result.conflicts, result.updated, result.changes_applied) == (1, 2, 2)
    assert world.trashed() == {"sub/file": b"edited"}
    world.assert_same()
    world.write("sub/file", "three")
    assert world.run().conflicts == 0


def test_deletions_go_to_the_trash(world: World) -> None:
    for name in ("a", "b", "c"):
        world.write(name, name)
    world.write("sub/d", "d", age=50)
    world.mirror()
    (world.source / "a").unlink()
    shutil.rmtree(world.source / "sub")
    result = world.mirror()
    assert (result.deleted, result.conflicts) == (2, 0)
    assert world.trashed() == {"a": b"a", "sub/d": b"d"}
    assert (world.root / f".undrift/trash/job-{world.jobs}/sub/d").stat().st_mtime_ns % 10**9 == 123_456_789
    assert rsync(world) == ""


def test_a_target_that_is_the_root_has_its_trash_elsewhere(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.target = tmp_path / "other"
    roots = {"roots": [str(world.root), str(world.target)]}
    world.write("keep")
    world.write("gone", "old", where=world.target)
    result = world.mirror(context=roots, force=True)
    assert result.deleted == 1
    assert (world.data / "trash" / "job-1" / "gone").read_text() == "old"
    world.assert_same()


def test_old_generations_are_swept(world: World) -> None:
    for job in ("old", "new"):
        world.write(f".undrift/trash/{job}/deep/file", where=world.root)
    world.write("trash/older/file", where=world.data)
    for path in (world.root / ".undrift/trash/old", world.data / "trash/older"):
        os.utime(path, (time.time() - 31 * 86_400,) * 2)
    assert files_trash.sweep([str(world.root)], world.data / "trash", 30) == 2
    assert os.listdir(world.root / ".undrift/trash") == ["new"]


def test_the_same_name_twice_in_one_generation(world: World) -> None:
    for text in ("1", "2", "3"):
        world.write("a", "new" + text)
        world.run(job="one")
        world.write("a", text, where=world.target)
    world.write("a", "end")
    world.run(job="one")
    assert world.trashed("one") == {"a": b"1", "a~1": b"2", "a~2": b"3"}


# Guards.


def test_a_missing_source_changes_nothing(world: World) -> None:
    world.write("file")
    world.mirror()
    before = snapshot(world.target)
    shutil.rmtree(world.source)
    with pytest.raises(errors.SyncFailed) as caught:
        world.mirror(force=True)
    assert caught.value.message == "Source directory not found"
    assert snapshot(world.target) == before


def held(world: World, **options: Any) -> errors.Held:
    before = snapshot(world.target)
    with pytest.raises(errors.Held) as caught:
        world.mirror(**options)
    assert snapshot(world.target) == before
    return caught.value


def test_an_emptied_source_is_held(world: World) -> None:
    world.write("file")
    world.mirror()
    (world.source / "file").unlink()
    assert "held 1 files at the last sync" in held(world).message
    assert world.mirror(force=True).deleted == 1


def test_many_deletions_are_held_until_their_plan_is_confirmed(world: World) -> None:
    for number in range(10):
        world.write(f"{number}")
    world.mirror()
    for number in range(6):
        (world.source / f"{number}").unlink()
    error = held(world)
    assert error.details["deleted"] == 6
    plan = error.details["plan"]
    assert world.plan(delete_missing_in_target=True).plan_hash == plan
    assert world.mirror(plan_hash=plan).deleted == 6


def test_a_count_of_deletions_is_held(world: World) -> None:
    for number in range(10):
        world.write(f"{number}")
    world.mirror()
    for number in range(3):
        (world.source / f"{number}").unlink()
    held(world, context={"guards": Guards(max_delete_count=2)})
    assert world.mirror(context={"guards": Guards(max_delete_count=3)}).deleted == 3


def test_a_source_on_another_device_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write("file")
    world.mirror()
    from services.worker import files_pair

    class Elsewhere(files_pair.Pair):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.device += 1

    monkeypatch.setattr(files, "Pair", Elsewhere)
    assert "another device" in held(world).message


def test_a_source_without_its_marker_is_not_synced(world: World) -> None:
    world.write("file")
    guards = {"guards": Guards(marker=".mounted")}
    with pytest.raises(errors.SyncFailed):
        world.run(context=guards)
    assert not world.target.exists()
    world.write(".mounted")
    assert world.run(context=guards).created == 2


@as_user
def test_what_cannot_be_read_disables_deletions(world: World) -> None:
    world.write("shut/file")
    world.write("open")
    world.write("gone")
    world.mirror()
    (world.source / "gone").unlink()
    (world.source / "shut").chmod(0)
    try:
        result = world.mirror()
    finally:
        (world.source / "shut").chmod(0o755)
    assert result.deleted == 0
    assert result.errors == ("shut: Permission denied",)
    assert ("warn", "Not everything could be read, so nothing will be deleted") in world.lines
    assert world.mirror().errors == ("shut: Permission denied",)  # now the target's, which is opened in this run
    assert world.mirror().errors == ()
    world.assert_same()


@as_user
def test_a_file_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    world.write("a").chmod(0)
    world.write("b")
    result = world.run()
    assert (result.created, result.errors) == (1, ("a: Permission denied",))


@as_user
def test_a_folder_without_write_permission_is_still_brought_up_to_date(world: World) -> None:
    world.write("sub/a")
    world.write("other")
    (world.source / "sub").chmod(0o555)
    world.mirror()
    (world.source / "sub").chmod(0o755)
    world.write("sub/b")
    (world.source / "sub/a").unlink()
    (world.source / "sub").chmod(0o555)
    result = world.mirror()
    assert (result.created, result.deleted, result.errors) == (1, 1, ())
    world.assert_same()
    for where in (world.source, world.target):
        (where / "sub").chmod(0o755)


def test_a_plan_applies_only_as_long_as_it_holds(world: World) -> None:
    world.write("file")
    made = world.plan()
    assert (made.created, made.action_count, made.held) == (1, 2, None)
    assert [(one.action, one.path) for one in made.actions] == [("mkdir", "."), ("create", "file")]
    assert not world.target.exists()
    world.write("more")
    with pytest.raises(errors.PlanChanged):
        world.run(plan_hash=made.plan_hash)
    assert not world.target.exists()
    context = world.context(plan_out=world.data / "plan")
    result = files.run(world.spec(plan_hash=world.plan().plan_hash), context)
    assert result.created == 2
    assert blake3((world.data / "plan").read_bytes()).hexdigest() == result.plan_hash


# Folders that are refused.


def test_folders_that_overlap_are_refused(world: World) -> None:
    world.write("sub/file")
    alias = world.root / "alias"
    for source, target in (
        ("source", "source"),
        ("source", "source/sub"),
        ("source/sub", "source"),
        ("source", "source/new"),
    ):
        with pytest.raises(errors.Invalid):
            world.run(source_directory=f"{world.source}{source}", target_directory=f"{world.source}{target}")
    alias.symlink_to("source")
    with pytest.raises(errors.Forbidden):
        world.run(target_directory=str(alias))
    assert sorted(os.listdir(world.source)) == ["sub"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("b", "a"), ("a/sub", "b"), ("a", "b/new"), ("a", "b/x/y")])
def test_folders_that_overlap_by_another_path_are_refused(world: World, source: str, target: str) -> None:
    world.write("a/sub/x/file", where=world.root)
    (world.root / "b").mkdir()
    mounted = subprocess.run(["mount", "--bind", str(world.root / "a/sub"), str(world.root / "b")], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(errors.Invalid):
            world.run(source_directory=str(world.root / source), target_directory=str(world.root / target))
    finally:
        subprocess.run(["umount", str(world.root / "b")], check=True)


def test_folders_outside_the_roots_are_refused(world: World, tmp_path: Path) -> None:
    for options in ({"source_directory": "/etc"}, {"target_directory": str(tmp_path / "new")}):
        with pytest.raises(errors.Forbidden):
            world.run(**options)
    assert not (tmp_path / "new").exists()


def test_one_sync_at_a_time_writes_to_a_target(world: World) -> None:
    world.write("sub/file")
    world.run()
    for busy in (world.target, world.target / "sub", world.root):
        descriptor = os.open(busy, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX if busy != world.target / "sub" else fcntl.LOCK_SH)
        if busy == world.target / "sub":
            assert world.run().changes_applied == 0  # a sync into a folder of it would hold the target itself, shared
        else:
            with pytest.raises(errors.Conflict):
                world.run()
        os.close(descriptor)
    shared = os.open(world.target, os.O_RDONLY)
    fcntl.flock(shared, fcntl.LOCK_SH)
    with pytest.raises(errors.Conflict):
        world.run()
    os.close(shared)
    assert world.run().changes_applied == 0


# Stops, records, filesystems.


def test_a_stop_leaves_whole_files_and_the_next_run_the_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(600):
        world.write(f"{number % 30:02}/{number:03}", str(number) * 10)
    monkeypatch.setattr(files_context, "_POLL_S", 0)  # asked before each file
    polls = iter(range(10**9))

    def should_stop() -> bool:
        return any(one.stage == "copy" for one in world.progress) and next(polls) > 100

    first = world.run(job="one", context={"should_stop": should_stop})
    assert first.stopped
    for path in world.target.rglob("[0-9][0-9][0-9]"):
        assert path.read_bytes() == (world.source / path.relative_to(world.target)).read_bytes()
    second = world.run(job="one")
    assert not second.stopped
    assert second.created == 600  # its counters go on where the first run's ended
    assert second.conflicts == 0
    world.assert_same()


def test_a_stop_before_anything_is_done_changes_nothing(world: World) -> None:
    world.write("file")
    result = world.run(context={"should_stop": lambda: True})
    assert (result.stopped, result.changes_applied) == (True, 0)
    assert not world.target.exists()
    with pytest.raises(errors.TimedOut):
        files.plan(world.spec(), world.context(should_stop=lambda: True))


def test_a_damaged_record_is_no_record(world: World) -> None:
    world.write("file", "1")
    world.run()
    path = world.data / "records/pair"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    world.write("file", "edited", where=world.target)
    assert (world.run().conflicts, world.lines[-1][0]) == (0, "warn")
    world.write("file", "edited again", where=world.target)
    assert world.run().conflicts == 1


def test_the_record_follows_what_selective_and_excluding_runs_leave_alone(world: World) -> None:
    for name in ("a/file", "b/file", "c.log"):
        world.write(name, "1")
    world.run()
    world.write("a/file", "2")
    world.run(mode="selective", entities=("a",), exclude_patterns=("*.log",))
    for name in ("a/file", "b/file", "c.log"):
        world.write(name, "33")
    assert world.run().conflicts == 0
    world.write("b/file", "edited", where=world.target)
    world.run(mode="selective", entities=("a",))
    world.write("b/file", "4444")
    assert world.run().conflicts == 1


def test_what_no_sync_has_seen_is_no_conflict(world: World) -> None:
    for name in ("a/file", "b/file", "c.log"):
        world.write(name, "new")
        world.write(name, "old!", where=world.target)
    assert world.run(mode="selective", entities=("a",)).conflicts == 0
    assert world.run(exclude_patterns=("*.log",)).conflicts == 0
    assert world.run().conflicts == 0
    world.write("c.log", "edited", where=world.target)
    assert world.run().conflicts == 1


def test_without_syncfs_each_file_is_synced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rich(world)
    monkeypatch.setattr(files_batch.linux, "syncfs_covers", lambda _: False)
    world.mirror()
    world.assert_same()


def test_without_renameat2_the_old_ways_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(files_batch.linux, "rename", unknown)
    test_kinds_change_into_each_other(world)
    world.write("new/file")
    world.write("file-dir/in/side", "edited", where=world.target)
    world.write("file-dir/in/side", "newer")
    assert (world.mirror().conflicts, world.mirror().changes_applied) == (1, 0)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second filesystem")
def test_from_one_filesystem_to_another(world: World) -> None:
    other = Path("/dev/shm") / f"undrift-test-{os.getpid()}"
    other.mkdir()
    try:
        world.target = other
        roots = {"roots": [str(world.root), str(other)]}
        rich(world)
        world.write("large", os.urandom(3 << 20))
        world.write("gone", "old", where=other)
        world.mirror(context=roots, force=True)
        world.assert_same()
        assert (world.data / "trash" / "job-1" / "gone").read_text() == "old"
        assert world.mirror(context=roots).changes_applied == 0
    finally:
        shutil.rmtree(other)


def test_a_file_that_keeps_changing_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = world.write("busy", "1")
    world.write("calm", "1")
    real: Callable[..., bytes] = os.pread
    changes = iter(range(10**9))

    def changing(descriptor: int, count: int, offset: int) -> bytes:
        data = real(descriptor, count, offset)
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(busy):
            busy.write_text(str(next(changes)))
        return data

    monkeypatch.setattr(os, "pread", changing)
    result = world.run()
    assert result.created == 1
    assert result.errors == ("busy: the file kept changing while it was copied",)
    assert os.listdir(world.target) == ["calm"]
    changes = iter([])
    monkeypatch.undo()
    assert world.run().created == 1


def test_a_full_disk_ends_the_run_and_leaves_whole_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        world.write(f"{number:02}", str(number))
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if data == b"13":
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(errors.StorageFull):
        world.run()
    monkeypatch.undo()
    for path in world.target.iterdir():
        assert path.read_text() == str(int(path.name))
    result = world.run()
    assert result.conflicts == 0
    world.assert_same()
