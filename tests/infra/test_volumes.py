"""Folders of servers: whose they are, how large, and that nothing outside is touched."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from domain import errors
from infra import config, paths, volumes

UUID = str(uuid.UUID(int=7))


@pytest.fixture
def made(tmp_path: Path) -> volumes.Volumes:
    return volumes.Volumes(config.Settings(data_dir=str(tmp_path / "data")))


def test_a_folder_is_made_once_and_is_the_servers_users(made: volumes.Volumes) -> None:
    folder = made.make(UUID)
    (folder / "kept").write_text("kept")
    assert made.make(UUID) == folder == made.folder(UUID)
    assert (folder / "kept").exists()
    there = folder.stat()
    assert (there.st_uid, there.st_gid) == (made.owner or (os.geteuid(), os.getegid()))
    assert there.st_mode & 0o777 == 0o750


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", UUID + "/x", UUID + "\n", "x" * 36])
def test_nothing_but_a_uuid_names_one(made: volumes.Volumes, name: str) -> None:
    with pytest.raises(errors.Invalid):
        made.folder(name)


def test_a_link_in_its_place_is_not_followed(made: volumes.Volumes, tmp_path: Path) -> None:
    made.base.mkdir(parents=True)
    (made.base / UUID).symlink_to(tmp_path)
    with pytest.raises(OSError, match="Not a directory"):
        made.open(UUID)


def test_bytes_are_counted_once_and_nothing_outside_is(made: volumes.Volumes, tmp_path: Path) -> None:
    folder = made.make(UUID)
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    (folder / "a").mkdir()
    (folder / "a" / "file").write_bytes(b"x" * 1000)
    os.link(folder / "a" / "file", folder / "again")
    (folder / "link").symlink_to(tmp_path / "large")
    (folder / "folder-link").symlink_to(tmp_path)
    os.mkfifo(folder / "fifo")
    deep = os.open(folder, paths.FOLDER)
    for _ in range(300):  # deeper than descriptors may stay open, and than a path may be long
        os.mkdir("d" * 50, dir_fd=deep)
        below = os.open("d" * 50, paths.FOLDER, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=deep))
    written = os.open("file", os.O_WRONLY, dir_fd=deep)
    os.write(written, b"x" * 500)
    os.close(written)
    os.close(deep)
    assert made.usage(UUID) == 1500
    (folder / "more").write_bytes(b"x" * 10)
    assert made.usage(UUID) == 1500
    assert made.usage(UUID, age_s=0) == 1510
    assert made.usage(str(uuid.UUID(int=8))) == 0


def test_removed_with_all_that_is_in_it_and_nothing_else(made: volumes.Volumes, tmp_path: Path) -> None:
    made.remove(UUID)
    folder, outside = made.make(UUID), tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (folder / "link").symlink_to(outside)
    (folder / "closed").mkdir()
    (folder / "closed" / "file").write_text("file")
    (folder / "closed").chmod(0)
    deep = os.open(folder, paths.FOLDER)
    for _ in range(300):
        os.mkdir("d" * 50, dir_fd=deep)
        below = os.open("d" * 50, paths.FOLDER, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    made.remove(UUID)
    assert not folder.exists()
    assert (outside / "kept").read_text() == "kept"
    made.remove(UUID)


def test_whose_the_files_are() -> None:
    is_root = os.geteuid() == 0
    assert volumes.owner("12:34") == ((12, 34) if is_root else None)
    assert volumes.owner("root") == ((0, 0) if is_root else None)
    assert volumes.owner("") == ((988, 988) if is_root else None)
    with pytest.raises(config.InvalidSetting):
        volumes.owner("nobody-of-this-name")
