"""Paths that requests name stay beneath their roots, whatever they are made of and whoever moves things meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domain import errors
from infra import linux, paths
from infra.paths import Roots, Trail


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "file").write_text("x")
    (tmp_path / "outside" / "secret").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "a" / "inner").symlink_to("b")
    (root / "up").symlink_to("..")
    return root


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        "./a",
        "../a",
        "C:\\source",
        "\\\\server\\share",
        "/a/../b",
        "/a/..",
        "/./a",
        "/a\0b",
        "/a\nb",
        "/a\x7f",
        "/\ud800",
        "/" + "a" * 256,
        "/" + "a/" * 3000,
    ],
    ids=lambda path: repr(path[:20]),
)
def test_what_is_no_plain_absolute_path_is_refused(path: str) -> None:
    with pytest.raises(errors.Invalid):
        paths.absolute(path)


def test_slashes_are_forgiven() -> None:
    assert paths.absolute("//a///b/") == (b"a", b"b")


@pytest.mark.parametrize("name", ["%2e%2e", "\uff0e\uff0e", ". .", "..\u200b", "a\\..\\b", "~", " ", "...", "-"])
def test_odd_names_are_only_names(root: Path, name: str) -> None:
    (root / name).mkdir()
    os.close(Roots([root]).place(f"{root}/{name}").open())


@pytest.mark.parametrize("existing", [True, False])
def test_outside_the_roots_nothing_is_told(root: Path, tmp_path: Path, existing: bool) -> None:
    outside = tmp_path / ("outside" if existing else "nowhere")
    with pytest.raises(errors.Forbidden) as caught:
        Roots([root]).place(str(outside))
    assert str(caught.value) == "The path lies outside the folders that this key may touch"


def test_a_name_that_begins_like_a_root_is_outside(root: Path) -> None:
    with pytest.raises(errors.Forbidden):
        Roots([root]).place(f"{root}2/x")


def test_the_deepest_root_holds_a_path(root: Path) -> None:
    roots = Roots([root, root / "a"])
    assert roots.place(f"{root}/a/b") == (os.fsencode(root / "a"), (b"b",))
    assert roots.place(f"{root}/b") == (os.fsencode(root), (b"b",))


def test_a_root_may_be_named_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    roots = Roots([tmp_path / "alias"])
    for name in (f"{tmp_path}/alias/a", f"{root}/a"):
        os.close(roots.place(name).open())


@pytest.mark.parametrize("path", ["link", "link/secret", "a/inner", "up", "up/outside", "link/nothing"])
@pytest.mark.parametrize("resolve", [paths.beneath, paths.walk], ids=["openat2", "walk"])
def test_links_are_not_followed(root: Path, path: str, resolve: Callable[..., int]) -> None:
    descriptor = os.open(root, paths.FOLDER)
    try:
        with pytest.raises(errors.Forbidden):
            resolve(descriptor, os.fsencode(path).split(b"/"))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("resolve", [paths.beneath, paths.walk], ids=["openat2", "walk"])
def test_what_is_there_is_opened(root: Path, resolve: Callable[..., int]) -> None:
    descriptor = os.open(root, paths.FOLDER)
    try:
        found = resolve(descriptor, (b"a", b"b"))
        assert os.fstat(found).st_ino == (root / "a" / "b").stat().st_ino
        os.close(found)
        with pytest.raises(FileNotFoundError):
            resolve(descriptor, (b"a", b"c"))
        with pytest.raises(NotADirectoryError):
            resolve(descriptor, (b"file",))
    finally:
        os.close(descriptor)


def test_without_openat2_the_walk_takes_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(linux, "openat2", unknown)
    os.close(Roots([root]).place(f"{root}/a/b").open())
    with pytest.raises(errors.Forbidden):
        Roots([root]).place(f"{root}/link/secret").open()


def test_missing_folders_are_made_beneath_the_root(root: Path, tmp_path: Path) -> None:
    os.close(paths.make(Roots([root]).place(f"{root}/a/new/er")))
    assert (root / "a" / "new" / "er").is_dir()
    with pytest.raises(errors.Forbidden):
        paths.make(Roots([root]).place(f"{root}/link/new"))
    assert sorted(os.listdir(tmp_path / "outside")) == ["secret"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
@pytest.mark.parametrize("openat2", [True, False])
def test_folders_on_the_way_need_not_be_readable(root: Path, monkeypatch: pytest.MonkeyPatch, openat2: bool) -> None:
    if not openat2:
        monkeypatch.setattr(paths, "beneath", paths.walk)
    (root / "a").chmod(0o311)
    place = Roots([root]).place(f"{root}/a/b")
    try:
        for descriptor in (place.open(), paths.make(place), paths.nearest(place)):
            assert paths.identity(descriptor)[1] == (root / "a" / "b").stat().st_ino
            assert len(list(paths.above(descriptor))) > 2
            os.close(descriptor)
    finally:
        (root / "a").chmod(0o755)


def test_overlap_is_seen_by_inode(root: Path) -> None:
    opened = {name: os.open(root / name, paths.FOLDER) for name in ("", "a", "a/b")}
    (root / "c").mkdir()
    other = os.open(root / "c", paths.FOLDER)
    assert paths.overlap(opened["a"], opened["a/b"])
    assert paths.overlap(opened["a/b"], opened[""])
    assert paths.overlap(opened["a"], opened["a"])
    assert not paths.overlap(opened["a"], other)
    for descriptor in (*opened.values(), other):
        os.close(descriptor)


def test_a_mode_is_set_on_no_link(root: Path, tmp_path: Path) -> None:
    before = (tmp_path / "outside").stat().st_mode
    descriptor = os.open(root, paths.FOLDER)
    paths.chmod(descriptor, b"link", 0o700)
    paths.chmod(descriptor, b"file", 0o600)
    os.close(descriptor)
    assert (tmp_path / "outside").stat().st_mode == before
    assert (root / "file").stat().st_mode & 0o777 == 0o600


def deep(root: Path, depth: int) -> bytes:
    """A chain of folders far below what one path can name; returns its relative path."""
    name = b"n" * 100
    descriptor = os.open(root, paths.FOLDER)
    for _ in range(depth):
        os.mkdir(name, dir_fd=descriptor)
        following = os.open(name, paths.FOLDER, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = following
    os.mkdir(b"end", dir_fd=descriptor)
    os.close(descriptor)
    return b"/".join([name] * depth)


def test_a_trail_goes_deeper_than_any_path_with_few_descriptors(root: Path) -> None:
    depth = Trail.KEEP * 3
    path = deep(root, depth)
    top = os.open(root, paths.FOLDER)
    before = len(os.listdir("/proc/self/fd"))
    trail = Trail(top)
    assert os.listdir(trail.enter(path)) == ["end"]
    assert len(os.listdir("/proc/self/fd")) - before <= Trail.KEEP + 3
    middle = b"/".join(path.split(b"/")[:5])
    assert os.fstat(trail.enter(middle)).st_ino == os.stat(root / os.fsdecode(middle)).st_ino
    assert os.fstat(trail.enter(b"a")).st_ino == (root / "a").stat().st_ino
    trail.close()
    os.close(top)
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_trail_does_not_climb_into_a_moved_folder(root: Path, tmp_path: Path) -> None:
    path = deep(root, Trail.KEEP * 2)
    top = os.open(root, paths.FOLDER)
    trail = Trail(top)
    trail.enter(path)
    names = path.split(b"/")
    outside, above = os.open(tmp_path / "outside", paths.FOLDER), Trail(top)
    folder = above.enter(b"/".join(names[: Trail.KEEP // 2]))
    os.rename(names[0], b"away", src_dir_fd=folder, dst_dir_fd=outside)
    with pytest.raises(OSError, match="moved"):
        trail.enter(b"a")
    above.close()
    trail.close()
    for descriptor in (top, outside):
        os.close(descriptor)


def test_statistics_come_in_columns(root: Path) -> None:
    descriptor = os.open(root, paths.FOLDER)
    names = [b"a", b"file", b"link", b"none"]
    for by_stat in (False, True):
        stats = linux.Stats()
        if by_stat:
            stats._statx = None
        assert stats.read(descriptor, names) == [b"none"]
        for row, name in enumerate(names[:3]):
            st = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            seconds, nanos = (column[row] for column in stats.mtimes)
            changed, changed_nanos = (column[row] for column in stats.ctimes)
            found = (stats.modes[row], stats.sizes[row], stats.inodes[row], seconds * 10**9 + nanos)
            assert found == (st.st_mode, st.st_size, st.st_ino, st.st_mtime_ns)
            assert changed * 10**9 + changed_nanos == st.st_ctime_ns
            assert (stats.users[row], stats.groups[row], stats.device(row)) == (st.st_uid, st.st_gid, st.st_dev)
    os.close(descriptor)
