"""Digests of what comes in order, and what makes them worth nothing."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import blake3
import pytest

from infra.uploads import Sink, Uploads
from infra.wholes import Wholes

CHUNK = 1000
PARTS = [os.urandom(CHUNK), os.urandom(CHUNK), os.urandom(10)]


def give(sink: Sink, data: bytes) -> None:
    """As threads do it."""
    store, mix = sink.place(memoryview(data))
    mix()
    store()


def send(uploads: Uploads, wholes: Sequence[tuple[int, bytes]], beside: str | None = None) -> dict[int, str]:
    """Writes chunks as they come; answers their digests."""
    found = {}
    for index, data in wholes:
        sink = uploads.sink("up", index, CHUNK, beside)
        for start in range(0, len(data), 300):
            give(sink, data[start : start + 300])
        sink.settle()
        sink.close()
        found[index] = sink.digest()
    return found


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    made = Uploads(tmp_path)
    made.make("up", sum(map(len, PARTS)))
    return made


def of(parts: Sequence[bytes]) -> tuple[str, str]:
    whole = b"".join(parts)
    return blake3.blake3(whole).hexdigest(), hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1)])
def test_whatever_the_order_the_digests_are_those_of_the_file(uploads: Uploads, order: tuple[int, ...]) -> None:
    chunks = send(uploads, [(index, PARTS[index]) for index in order])
    assert uploads.hashes("up", chunks)[0] == of(PARTS)


def test_a_chunk_that_breaks_off_and_comes_again_counts_once(uploads: Uploads) -> None:
    chunks = send(uploads, [(0, PARTS[0])])
    sink = uploads.sink("up", 1, CHUNK)
    give(sink, b"something else")
    sink.close()
    chunks |= send(uploads, [(1, PARTS[1]), (2, PARTS[2])])
    assert uploads.hashes("up", chunks)[0] == of(PARTS)


def test_what_is_replaced_is_read_again(uploads: Uploads) -> None:
    chunks = send(uploads, list(enumerate(PARTS)))
    other = os.urandom(CHUNK)
    chunks |= send(uploads, [(1, other)], beside="1.x")
    assert uploads.hashes("up", chunks)[0] == of([PARTS[0], other, PARTS[2]])


def test_what_another_process_replaces_while_a_chunk_comes_is_read_again(uploads: Uploads) -> None:
    chunks = send(uploads, list(enumerate(PARTS[:2])))
    sink = uploads.sink("up", 2, CHUNK)
    other = os.urandom(CHUNK)
    with uploads.path("up").open("r+b") as file:
        file.write(other)
    chunks[0] = blake3.blake3(other).hexdigest()
    give(sink, PARTS[2])
    sink.settle()
    sink.close()
    chunks[2] = sink.digest()
    assert uploads.hashes("up", chunks)[0] == of([other, *PARTS[1:]])


def test_what_is_damaged_is_read_again(uploads: Uploads) -> None:
    chunks = send(uploads, list(enumerate(PARTS)))
    time.sleep(0.02)  # the clock of a file system ticks
    with uploads.path("up").open("r+b") as file:
        file.write(b"x" * CHUNK)
    assert uploads.hashes("up", chunks)[0] == of([b"x" * CHUNK, *PARTS[1:]])


def test_only_so_many_are_known(tmp_path: Path) -> None:
    wholes = Wholes()
    first = tmp_path / "first"
    first.write_bytes(b"1")
    for number in range(1001):
        path = first if number == 0 else tmp_path / str(number)
        growing = wholes.begin(path, 0)
        assert growing is not None
        growing.update(b"1")
        wholes.grown(path, growing, "digest", first.stat().st_mtime_ns)
    assert wholes.of(first, {0: "digest"}) is None
    assert wholes.begin(first, 1) is None
