"""The disk limit: what is written never passes it, whoever writes, and what is freed may be used again."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from asyncssh import SFTPAttrs

from infra import volumes
from services.sftp import quota
from services.sftp.opened import How
from tests.sftp.someone import WRITE, Someone, someone

MIB = 1 << 20
UPDATE = How(False, True, creates=True)


@pytest.fixture
def ann(tmp_path: Path) -> Someone:
    made = someone(tmp_path, disk=1)
    (made.folder / "file").unlink()
    return made


def used(ann: Someone) -> int:
    return ann.files.space()[0]


def full(ann: Someone, path: bytes = b"more", size: int = 1) -> None:
    with pytest.raises(OSError, match="used up"):
        ann.put(path, b"x" * size, UPDATE)


def test_no_byte_more_than_the_limit(ann: Someone) -> None:
    ann.put(b"a", b"x" * (MIB - 10))
    ann.put(b"b", b"x" * 10)
    full(ann)
    assert used(ann) == MIB
    ann.put(b"a", b"y" * 100, UPDATE)  # in its place, nothing is added
    with pytest.raises(OSError, match="used up"):
        ann.put(b"a", b"y" * 100, UPDATE, offset=MIB - 50)
    ann.files.remove(b"b")
    ann.put(b"c", b"x" * 10)
    full(ann)
    ann.put(b"a", b"")  # what is truncated is free
    ann.put(b"d", b"x" * (MIB - 10))
    assert used(ann) == volumes.measure(ann.room.files()[0].root) == MIB


def test_holes_and_lengths_count(ann: Someone) -> None:
    with pytest.raises(OSError, match="used up"):
        ann.put(b"hole", b"x", offset=MIB)
    ann.put(b"hole", b"x", offset=MIB - 1)
    full(ann)
    ann.files.setstat(b"hole", SFTPAttrs(size=10))
    assert used(ann) == 10
    with pytest.raises(OSError, match="used up"):
        ann.files.setstat(b"hole", SFTPAttrs(size=MIB + 1))
    ann.files.setstat(b"hole", SFTPAttrs(size=MIB))
    full(ann)


def test_what_was_removed_and_is_still_open_counts(ann: Someone) -> None:
    files = [ann.files.open(b"a", WRITE, None), ann.files.open(b"a", UPDATE, None)]
    ann.files.write(files[0], 0, b"x" * MIB)
    ann.files.remove(b"a")
    full(ann, b"b")
    ann.files.close(files[0])
    full(ann, b"b")
    ann.files.close(files[1])
    ann.put(b"b", b"x" * MIB)


def test_what_is_replaced_is_free(ann: Someone) -> None:
    ann.put(b"a", b"x" * (MIB // 2))
    ann.put(b"b", b"x" * (MIB // 2))
    ann.files.rename(b"a", b"b", replaces=True)
    ann.put(b"c", b"x" * (MIB // 2))
    full(ann)


def test_what_the_server_writes_and_removes_is_seen(ann: Someone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_AGE_S", 0.0)
    monkeypatch.setattr(quota, "_SHARE", 0)
    monkeypatch.setattr(quota, "_AGAIN_S", 0.0)
    ann.put(b"a", b"x")
    (ann.folder / "own").write_bytes(b"x" * MIB)
    full(ann)
    (ann.folder / "own").unlink()
    ann.put(b"b", b"x" * 1000)
    assert used(ann) == 1001


def test_many_at_once_pass_it_by_nothing(ann: Someone) -> None:
    written = [0] * 8
    piece = 7000

    def write(number: int) -> None:
        file = ann.files.open(b"%d" % number, WRITE, None)
        try:
            while True:
                written[number] += ann.files.write(file, written[number], b"x" * piece)
        except OSError:
            ann.files.close(file)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(written) == volumes.measure(ann.room.files()[0].root) == MIB // piece * piece


def test_without_a_limit_there_is_none_and_with_one_again_it_is_counted(tmp_path: Path) -> None:
    ann = someone(tmp_path)
    limited = someone(tmp_path, disk=1).room.state
    ann.put(b"a", b"x" * 2 * MIB)
    assert used(ann) == 0
    ann.room.state = limited
    full(ann)
    assert used(ann) == 2 * MIB + len("file")
    ann.files.remove(b"a")
    ann.put(b"b", b"x")


def test_a_write_that_fails_costs_nothing(ann: Someone, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(OSError, match="Input/output"):
            ann.put(b"a", b"x" * 1000)
    ann.put(b"b", b"x" * MIB)
