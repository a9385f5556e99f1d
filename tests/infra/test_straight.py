"""Bytes past the page cache stand where they belong, whatever their place and length; memory is lent, and little."""

from __future__ import annotations

import errno
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from domain import errors
from infra.buffers import PAGE, Pool
from infra.lanes import Lane
from infra.straight import Straight

SIZE = 3_000_001


@pytest.mark.parametrize("straight", [True, False])
def test_every_byte_stands_in_its_place(tmp_path: Path, straight: bool) -> None:
    wanted, rng = bytearray(SIZE), random.Random(1)
    lent = Pool().lend(SIZE)
    file = Straight(tmp_path / "file", os.O_RDWR | os.O_CREAT, straight=straight)
    os.truncate(tmp_path / "file", SIZE)
    for number in range(60):
        buffer = lent.buffers[number % len(lent.buffers)]
        start = rng.choice((0, 0, PAGE, rng.randrange(PAGE)))
        offset = rng.randrange(0, SIZE - 600_000, PAGE) + rng.choice((start, start, 7))
        length = rng.choice((1, 100, PAGE, 100_001, 65_536, 500_000))
        buffer[start : start + length] = os.urandom(length)
        wanted[offset : offset + length] = buffer[start : start + length]
        file.write(buffer[start : start + length], offset)
    assert file.read(SIZE, 0) == wanted
    file.close()
    assert (tmp_path / "file").read_bytes() == wanted


def test_many_write_at_once_and_nothing_after_the_end(tmp_path: Path) -> None:
    lent = Pool().lend(8 << 20)
    for number, buffer in enumerate(lent.buffers):
        buffer[:] = bytes([number + 1]) * len(buffer)
    file = Straight(tmp_path / "file", os.O_WRONLY | os.O_CREAT, straight=True)
    with ThreadPoolExecutor(4) as threads:
        for at in range(32):
            threads.submit(file.write, lent.buffers[at % 4], at << 20)
    file.close()
    file.write(lent.buffers[0], 32 << 20)
    assert (tmp_path / "file").read_bytes() == b"".join(bytes(lent.buffers[at % 4]) for at in range(32))


def test_a_full_disk_says_so() -> None:
    file = Straight(Path("/dev/full"), os.O_WRONLY, straight=False)
    with pytest.raises(errors.StorageFull):
        file.write(memoryview(b"x"), 0)
    file.close()


def test_what_the_disk_says_otherwise_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = Straight(tmp_path / "file", os.O_RDONLY, straight=False)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        file.write(memoryview(b"x"), 0)
    file.close()


def test_large_sets_are_few_and_come_back() -> None:
    pool = Pool()
    out = [pool.lend(1 << 30) for _ in range(6)]
    assert [len(one.buffers) * one.size >> 10 for one in out] == [4096] * 4 + [512] * 2
    pool.give_back(out[0])
    assert pool.lend(1 << 30) is out[0]
    assert pool.lend(100_000).size * 2 == 512 * 1024


def test_a_lane_keeps_its_order() -> None:
    lane, last = Lane(), threading.Event()
    found: list[int] = []
    for number in range(1000):
        lane.put(partial(found.append, number))
    lane.put(last.set)
    assert last.wait(20)
    assert found == list(range(1000))
