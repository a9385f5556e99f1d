"""What somebody may do to files: nothing outside, nothing denied, nothing without the permission for it."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from asyncssh import SFTPAttrs

from infra import linux
from services.sftp import tree
from services.sftp.opened import How
from tests.sftp.someone import READ, WRITE, Someone, someone

APPEND = How(False, True, appends=True, creates=True)
NEW = How(False, True, creates=True, is_new=True)
UPDATE = How(True, True)


@pytest.fixture
def ann(tmp_path: Path) -> Someone:
    return someone(tmp_path)


@pytest.fixture(params=["openat2", "without"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it resolves paths itself."""
    if request.param == "openat2":
        return True

    def unknown(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(linux, "openat2", unknown)
    return False


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", ()),
        (b".", ()),
        (b"/", ()),
        (b"//a//b/", (b"a", b"b")),
        (b"a/../b", (b"b",)),
        (b"../../../etc/passwd", (b"etc", b"passwd")),
        (b"/..", ()),
        (b"a/./b\xff", (b"a", b"b\xff")),
    ],
)
def test_the_folder_is_the_root(path: bytes, expected: tree.Parts) -> None:
    assert tree.parts(path) == expected


@pytest.mark.parametrize("path", [b"a\0b", b"x" * 256, b"a/" * 3000])
def test_no_file_can_be_called_that(path: bytes) -> None:
    with pytest.raises(OSError, match=r"Invalid argument|name too long"):
        tree.parts(path)


OUTSIDE: list[Callable[[Someone, bytes], object]] = [
    lambda ann, path: ann.get(path),
    lambda ann, path: ann.put(path, b"x"),
    lambda ann, path: ann.put(path, b"x", APPEND),
    lambda ann, path: ann.put(path, b"x", NEW),
    lambda ann, path: ann.files.stat(path),
    lambda ann, path: ann.names(path),
    lambda ann, path: ann.files.setstat(path, SFTPAttrs(permissions=0o777, size=0)),
    lambda ann, path: ann.files.mkdir(path + b"/new", None),
    lambda ann, path: ann.files.remove(path + b"/secret"),
    lambda ann, path: ann.files.rmdir(path + b"/folder"),
    lambda ann, path: ann.files.lstat(path + b"/secret"),
    lambda ann, path: ann.files.readlink(path + b"/link"),
    lambda ann, path: ann.files.rename(path + b"/secret", b"mine", replaces=True),
    lambda ann, path: ann.files.rename(b"file", path + b"/mine", replaces=False),
    lambda ann, path: ann.files.symlink(b"file", path + b"/mine"),
    lambda ann, path: ann.put(path + b"/mine", b"x"),
]


@pytest.mark.parametrize("attempt", range(len(OUTSIDE)))
def test_links_to_what_is_outside_lead_nowhere(ann: Someone, kernel: bool, attempt: int) -> None:
    (ann.outside / "folder").mkdir()
    (ann.outside / "link").symlink_to("secret")
    before = {path: (path.lstat().st_mode, path.lstat().st_ctime_ns) for path in ann.outside.rglob("*")}
    up = os.path.relpath(ann.outside, ann.folder)
    links: dict[str, Path | str]
    links = {"absolute": ann.outside, "relative": up, "leaf": ann.outside / "secret", "up": f"{up}/secret", "root": "/"}
    for name, target in links.items():
        (ann.folder / name).symlink_to(target)
        for path in (name, f"{name}/.", f"/{name}", f"absolute/../{name}"):
            with pytest.raises((FileNotFoundError, FileExistsError, NotADirectoryError)):
                OUTSIDE[attempt](ann, path.encode())
    assert {path: (path.lstat().st_mode, path.lstat().st_ctime_ns) for path in ann.outside.rglob("*")} == before
    assert (ann.outside / "secret").read_text() == "secret"
    assert (ann.folder / "file").read_text() == "file"


def test_links_to_what_is_inside_are_followed(ann: Someone) -> None:
    (ann.folder / "a").mkdir()
    (ann.folder / "a" / "b").mkdir()
    (ann.folder / "a" / "b" / "up").symlink_to("../../file")
    (ann.folder / "to-a").symlink_to("a")
    assert ann.get(b"to-a/b/up") == b"file"
    ann.put(b"to-a/b/up", b"new")
    assert (ann.folder / "file").read_text() == "new"
    ann.files.remove(b"to-a/b/up")
    assert ann.get(b"file") == b"new"
    assert ann.noted == [("server:sftp.write", ("/file",)), ("server:sftp.delete", ("/a/b/up",))]


def test_without_the_kernels_help_no_link_is_followed(ann: Someone, kernel: bool) -> None:
    (ann.folder / "link").symlink_to("file")
    assert ann.get(b"file") == b"file"
    assert ann.names(b"/") == {b"file", b"link"}
    if kernel:
        assert ann.get(b"link") == b"file"
    else:
        with pytest.raises(FileNotFoundError):
            ann.get(b"link")


def test_a_link_that_a_client_makes_stays_inside(ann: Someone) -> None:
    ann.files.mkdir(b"a", None)
    ann.files.mkdir(b"a/b", None)
    ann.files.symlink(b"/file", b"a/b/absolute")
    assert ann.files.readlink(b"a/b/absolute") == b"../../file"
    assert ann.get(b"a/b/absolute") == b"file"
    ann.files.symlink(b"../../file", b"a/b/relative")
    assert ann.get(b"a/b/relative") == b"file"
    for target in (b"../../../outside/secret", b"../..//../x", b"x/../../../../y"):
        with pytest.raises(FileNotFoundError):
            ann.files.symlink(target, b"a/b/outside")
    ann.files.symlink(b"/etc/passwd", b"passwd")
    with pytest.raises(FileNotFoundError):
        ann.get(b"passwd")


def test_a_link_swapped_in_meanwhile_finds_nothing(ann: Someone) -> None:
    (ann.folder / "d").mkdir()
    (ann.folder / "d" / "secret").write_text("mine")
    (ann.folder / "other").symlink_to(ann.outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            linux.rename(b"d", b"other", folder, folder, linux.RENAME_EXCHANGE)

    folder = os.open(ann.folder, os.O_RDONLY)
    swapping = threading.Thread(target=swap)
    swapping.start()
    found: set[bytes] = set()
    try:
        for _ in range(2000):
            try:
                found.add(ann.get(b"d/secret"))
                ann.put(b"d/new", b"x")
            except FileNotFoundError:
                found.add(b"")
    finally:
        over.set()
        swapping.join()
        os.close(folder)
    assert found <= {b"", b"mine"}
    assert b"mine" in found
    assert [path.name for path in ann.outside.iterdir()] == ["secret"]


def test_what_is_no_file_is_never_opened(ann: Someone) -> None:
    os.mkfifo(ann.folder / "fifo")
    for how in (READ, WRITE, APPEND, UPDATE):
        with pytest.raises(PermissionError):
            ann.files.open(b"fifo", how, None)
        with pytest.raises(IsADirectoryError):
            ann.files.open(b"/", how, None)
    assert stat.S_ISFIFO(ann.files.stat(b"fifo").permissions or 0)
    ann.files.remove(b"fifo")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to give files to others")
def test_what_is_made_is_the_servers_users(ann: Someone) -> None:
    ann.put(b"new", b"x")
    ann.files.mkdir(b"folder", 0o4777)
    ann.files.symlink(b"new", b"link")
    for name in ("new", "folder", "link"):
        there = (ann.folder / name).lstat()
        assert (there.st_uid, there.st_gid) == (988, 988)
    assert (ann.folder / "folder").stat().st_mode & 0o7000 == 0


def test_attributes_are_set_and_whose_it_is_stays(ann: Someone) -> None:
    before = (ann.folder / "file").stat()
    ann.files.setstat(b"file", SFTPAttrs(permissions=0o106640, mtime=1000, atime=2000, uid=0, gid=0, size=2))
    after = (ann.folder / "file").stat()
    assert (after.st_mode & 0o7777, after.st_mtime, after.st_atime, after.st_size) == (0o640, 1000, 2000, 2)
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    (ann.folder / "link").symlink_to("file")
    ann.files.lsetstat(b"link", SFTPAttrs(mtime=5))
    assert ((ann.folder / "link").lstat().st_mtime, (ann.folder / "file").stat().st_mtime) == (5, 1000)


def test_how_files_are_opened(ann: Someone) -> None:
    with pytest.raises(FileNotFoundError):
        ann.files.open(b"none", How(False, True), None)
    with pytest.raises(FileExistsError):
        ann.files.open(b"file", NEW, None)
    ann.put(b"file", b"-more", APPEND)
    assert ann.get(b"file") == b"file-more"
    ann.put(b"file", b"FI", How(False, True))
    assert ann.get(b"file") == b"FIle-more"
    ann.put(b"file", b"end", offset=3)
    assert ann.get(b"file") == b"\0\0\0end"
    file = ann.files.open(b"file", READ, None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        ann.files.write(file, 0, b"x")
    ann.files.close(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        ann.files.read(file, 0, 1)
    with pytest.raises(OSError, match="File too large"):
        ann.put(b"file", b"x", UPDATE, offset=2**63 - 1)


def test_a_name_that_is_taken_is_only_replaced_by_who_says_so(ann: Someone) -> None:
    ann.put(b"other", b"other")
    with pytest.raises(FileExistsError):
        ann.files.rename(b"other", b"file", replaces=False)
    ann.files.rename(b"other", b"file", replaces=True)
    assert ann.get(b"file") == b"other"
    for source, target in ((b"/", b"x"), (b"file", b"/"), (b"file", b"a/..")):
        with pytest.raises(PermissionError):
            ann.files.rename(source, target, replaces=True)
    with pytest.raises(PermissionError):
        ann.files.rmdir(b"/")


NEEDED: list[tuple[str, Callable[[Someone], object]]] = [
    ("file.read", lambda ann: ann.names(b"/")),
    ("file.read", lambda ann: ann.files.stat(b"file")),
    ("file.read", lambda ann: ann.files.lstat(b"file")),
    ("file.read", lambda ann: ann.files.readlink(b"link")),
    ("file.read", lambda ann: ann.files.space()),
    ("file.read-content", lambda ann: ann.get(b"file")),
    ("file.create", lambda ann: ann.put(b"new", b"x")),
    ("file.create", lambda ann: ann.files.mkdir(b"folder", None)),
    ("file.create", lambda ann: ann.files.symlink(b"file", b"other")),
    ("file.update", lambda ann: ann.put(b"file", b"x")),
    ("file.update", lambda ann: ann.files.setstat(b"file", SFTPAttrs(permissions=0o600))),
    ("file.update", lambda ann: ann.files.lsetstat(b"file", SFTPAttrs(permissions=0o600))),
    ("file.update", lambda ann: ann.files.rename(b"file", b"other", replaces=False)),
    ("file.delete", lambda ann: ann.files.remove(b"file")),
    ("file.delete", lambda ann: ann.files.rmdir(b"empty")),
]


@pytest.mark.parametrize("number", range(len(NEEDED)))
def test_each_permission(tmp_path: Path, number: int) -> None:
    needed, act = NEEDED[number]
    every = {permission for permission, _ in NEEDED}
    for permissions in ((needed,), tuple(every - {needed})):
        ann = someone(tmp_path, *permissions)
        (ann.folder / "link").symlink_to("file")
        (ann.folder / "empty").mkdir()
        if needed in permissions:
            act(ann)
        else:
            with pytest.raises(PermissionError):
                act(ann)
            assert not ann.noted


def test_nobody_touches_what_is_denied(tmp_path: Path) -> None:
    ann = someone(tmp_path, denied=("*.jar", "/config/secret.yml", "!good.jar", "locked/", "[", ""))
    for folder in ("config", "locked", "a"):
        (ann.folder / folder).mkdir()
    for name in ("x.jar", "config/secret.yml", "locked/file", "a/y.jar"):
        (ann.folder / name).write_text("denied")
    (ann.folder / "link").symlink_to("x.jar")
    (ann.folder / "to-config").symlink_to("config")
    attempts: list[Callable[[], object]] = [
        lambda: ann.get(b"x.jar"),
        lambda: ann.get(b"link"),
        lambda: ann.get(b"to-config/secret.yml"),
        lambda: ann.get(b"locked/file"),
        lambda: ann.get(b"./a/../a/y.jar"),
        lambda: ann.put(b"x.jar", b"x"),
        lambda: ann.put(b"new.jar", b"x"),
        lambda: ann.put(b"locked/new", b"x"),
        lambda: ann.files.mkdir(b"x/../new.jar", None),
        lambda: ann.files.mkdir(b"a/locked", None),
        lambda: ann.files.remove(b"x.jar"),
        lambda: ann.files.remove(b"to-config/secret.yml"),
        lambda: ann.files.rename(b"x.jar", b"x.txt", replaces=False),
        lambda: ann.files.rename(b"file", b"file.jar", replaces=False),
        lambda: ann.files.rename(b"config", b"other", replaces=False),  # what is in it would have another name
        lambda: ann.files.rename(b"a", b"b", replaces=False),
        lambda: ann.files.setstat(b"x.jar", SFTPAttrs(size=0)),
        lambda: ann.files.lsetstat(b"x.jar", SFTPAttrs(mtime=0)),
        lambda: ann.files.symlink(b"file", b"y.jar"),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError):
            attempt()
    ann.put(b"good.jar", b"good")
    ann.put(b"config/other.yml", b"good")
    assert b"x.jar" in ann.names(b"/")
    ann.put(b"x/../locked.txt", b"good")


def test_what_is_denied_from_now_on_is_so_for_open_files_too(tmp_path: Path) -> None:
    ann = someone(tmp_path)
    file = ann.files.open(b"file", UPDATE, None)
    ann.files.write(file, 0, b"x")
    other = someone(tmp_path, denied=("file",))
    ann.room.state = other.room.state
    with pytest.raises(PermissionError):
        ann.files.write(file, 0, b"y")
    with pytest.raises(PermissionError):
        ann.files.read(file, 0, 1)
    ann.files.close(file)


def test_who_is_cut_off_does_nothing_any_more(tmp_path: Path) -> None:
    ended: list[bool] = []
    ann = someone(tmp_path, ended=lambda: ended.append(True))
    file, listing = ann.files.open(b"file", UPDATE, None), ann.files.list(b"/")
    ann.session.cut()
    ann.session.cut()
    assert ended == [True]
    attempts: list[Callable[[], object]] = [
        lambda: ann.files.write(file, 0, b"x"),
        lambda: ann.files.read(file, 0, 1),
        lambda: ann.files.fstat(file),
        lambda: ann.files.fsync(file),
        lambda: ann.files.page(listing),
        *(lambda act=act: act(ann) for _, act in NEEDED),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError):
            attempt()
    ann.files.close_all()
    assert (ann.folder / "file").read_text() == "file"


def test_so_many_files_are_open_and_no_more(ann: Someone) -> None:
    opened = [ann.files.open(b"file", READ, None) for _ in range(128)]
    with pytest.raises(OSError, match="Too many files"):
        ann.files.list(b"/")
    ann.files.close(opened[0])
    ann.files.open(b"file", READ, None)
    ann.files.close_all()
    with pytest.raises(OSError, match="Bad file descriptor"):
        ann.files.read(opened[1], 0, 1)
