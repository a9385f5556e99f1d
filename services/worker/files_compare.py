"""Comparing contents: every pair of files of one size, whatever their times say, by two processes.

Each process appends what it found to a file of its own, so that a job that was killed does not read again what it had
compared: a pair is taken as equal when neither inode has changed since.
"""

from __future__ import annotations

import errno
import heapq
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from domain.plans.files import Verdict, key
from infra import paths
from services.worker.files_context import Board
from services.worker.files_listing import Folder, Listing

_SMALL = 1 << 20
_BLOCK = 1 << 20
_CHUNK_FILES = 256
_AHEAD = 32
_COLD_S = 60e-6  # a file that is in the cache takes a quarter of it
_CHUNK_BYTES = 32 << 20
_PARTS = 8
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Known = tuple[bytes, int, int, int, int, int, int]
"""A pair found equal: its name, and on both sides the inode, and seconds and nanoseconds of its change time."""


class Found(Struct, array_like=True):
    """Of files in one folder: which are not equal, and which are."""

    path: bytes
    verdicts: dict[bytes, Verdict]
    equal: list[Known]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Found).decode


def write(file: int, found: Iterable[Found]) -> None:
    """Appends, in one call, so that a kill leaves at most one torn end."""
    frames = [_encode(one) for one in found]
    data = memoryview(b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames))
    while data:
        data = data[os.write(file, data) :]


def read(path: Path) -> Iterator[Found]:
    """What a process wrote, in the order of `key`, without a torn end."""
    with path.open("rb") as file:
        while True:
            size = int.from_bytes(file.read(4), "little")
            data = file.read(size)
            if not size or len(data) < size:
                return
            yield _decode(data)


class Earlier:
    """What earlier runs of this job found, asked in the order of `key`, of a folder as often as it is wanted."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._stream = heapq.merge(*map(read, files), key=lambda found: key(found.path))
        self._head = next(self._stream, None)
        self._last: tuple[bytes, list[Found]] | None = None

    def folder(self, path: bytes) -> list[Found]:
        if self._last is not None and self._last[0] == path:
            return self._last[1]
        wanted, here = key(path), list[Found]()
        while self._head is not None and key(self._head.path) <= wanted:
            if self._head.path == path:
                here.append(self._head)
            self._head = next(self._stream, None)
        self._last = path, here
        return here

    def verdicts(self, path: bytes) -> Mapping[bytes, Verdict]:
        """What is not equal in a folder: the contents that a plan asks for."""
        found: dict[bytes, Verdict] = {}
        for one in self.folder(path):
            found.update(one.verdicts)
        return found

    def equal(self, path: bytes) -> dict[bytes, Known]:
        return {pair[0]: pair for one in self.folder(path) for pair in one.equal}


class Task(NamedTuple):
    """Rows of a folder of the source, to be compared with those of the same names in the target."""

    source: Folder
    target: Folder
    start: int
    stop: int

    def pairs(self) -> list[tuple[int, Known]]:
        """Files of one size: that size, and what identifies them."""
        ours, theirs = self.source.inodes()[self.start : self.stop], self.target.inodes()
        if self.source.body == self.target.body:
            theirs = theirs[self.start : self.stop]
        else:
            there = {row[0]: row for row in theirs}
            ours = [row for row in ours if row[0] in there]
            theirs = [there[row[0]] for row in ours]
        return [
            (one[2], (one[0], *one[3:], *other[3:]))
            for one, other in zip(ours, theirs, strict=True)
            if one[2] == other[2] and one[1] == other[1] == "file"
        ]


class Queue:
    """Hands out rows in order, to whichever process asks next; a folder of many or large files in several parts."""

    def __init__(self, board: Board, source: Listing, target: Listing) -> None:
        self._board, self._source, self._target = board, source, target

    def take(self) -> list[Task]:
        """About as much as keeps a process busy for a while; nothing when all is taken."""
        tasks: list[Task] = []
        files = size = 0
        with self._board.queue() as heads:
            ours, theirs, row = (int(heads[index]) for index in range(3))
            while ours < self._source.size and theirs < self._target.size:
                source, target = self._source.folder(ours), self._target.folder(theirs)
                if source.path != target.path:
                    first = key(source.path) < key(target.path)
                    ours, theirs = (source.end, theirs) if first else (ours, target.end)
                    continue
                if files >= _CHUNK_FILES or size >= _CHUNK_BYTES:
                    break
                until, more = _part(source, row)
                if source.files and target.files:
                    tasks.append(Task(source, target, row, until))
                    files, size = files + until - row, size + more
                row = until
                if row >= source.count:
                    ours, theirs, row = source.end, target.end, 0
            heads[0], heads[1], heads[2] = ours, theirs, row
        return tasks


def _part(source: Folder, row: int) -> tuple[int, int]:
    """The end of a part of a folder that begins at a row, and its bytes. A part has some share of the folder's rows,
    since each costs reading all of them."""
    sizes = source.sizes()
    until = min(row + max(_CHUNK_FILES, source.count // _PARTS), source.count)
    size = sum(sizes[row:until])
    if size > _CHUNK_BYTES:
        size, until = 0, row
        while until < source.count and size < _CHUNK_BYTES:
            size += sizes[until]
            until += 1
    return until, size


class Comparer:
    """Works the queue off in one process."""

    def __init__(
        self, roots: tuple[int, int], queue: Queue, board: Board, earlier: Earlier, out: Path, beat: Callable[[], bool]
    ) -> None:
        self._ours, self._theirs = paths.Trail(roots[0]), paths.Trail(roots[1])
        self._queue, self._board, self._earlier, self._beat = queue, board, earlier, beat
        self._out = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._blocks = bytearray(_BLOCK), bytearray(_BLOCK)
        self._cold = False

    def run(self) -> bytes:
        while not self._beat() and (tasks := self._queue.take()):
            found = []
            for task in tasks:
                one = self._folder(task)
                if one is None:
                    break
                found.append(one)
            write(self._out, found)
        os.close(self._out)
        self._ours.close()
        self._theirs.close()
        return b""

    def _folder(self, task: Task) -> Found | None:
        """None when a stop was asked for on the way."""
        path = task.source.path
        before = self._earlier.equal(path)
        found = Found(path, {}, [])
        ours, theirs = folders = self._enter(self._ours, path), self._enter(self._theirs, path)
        pairs = task.pairs()
        if before:
            found.equal = [pair for _, pair in pairs if before.get(pair[0]) == pair]
            pairs = [(size, pair) for size, pair in pairs if before.get(pair[0]) != pair]
        for start in range(0, len(pairs), _AHEAD):
            began = time.monotonic()
            some = pairs[start : start + _AHEAD]
            warm = not self._cold and all(size < _SMALL for size, _ in some)
            if warm and ours is not None and theirs is not None:
                stopped = self._read(ours, theirs, some, found)
            else:
                stopped = self._compare([_open(*folders, size, pair) for size, pair in some], found)
            if stopped:
                return None
            self._cold = time.monotonic() - began > len(some) * _COLD_S
        self._board.add("compared", len(pairs))
        return found

    def _enter(self, trail: paths.Trail, path: bytes) -> int | None:
        try:
            return trail.enter(path)
        except OSError:
            return None

    def _read(self, ours: int, theirs: int, pairs: list[tuple[int, Known]], found: Found) -> bool:
        """As `_compare`, of small files that are probably in the cache: one pair after the other."""
        for size, pair in pairs:
            try:
                data = _contents(ours, pair[0], size)
            except OSError:
                found.verdicts[pair[0]] = "source"
                continue
            try:
                same = _contents(theirs, pair[0], size) == data
            except OSError:
                found.verdicts[pair[0]] = "target"
                continue
            if same:
                found.equal.append(pair)
            else:
                found.verdicts[pair[0]] = "differs"
        return self._beat()

    def _compare(self, opened: list[_Pair], found: Found) -> bool:
        """Compares and closes; whether a stop was asked for. Where the last files had to come from disk, these are
        all asked for before the first is waited for."""
        if self._cold:
            for one in opened:
                for descriptor in one.descriptors:
                    os.posix_fadvise(descriptor, 0, _SMALL, os.POSIX_FADV_WILLNEED)
        stopped = False
        for one in opened:
            verdict = one.failed
            if verdict is None and not stopped:
                verdict = self._descriptors(one.descriptors[0], one.descriptors[1], one.size)
                stopped = self._beat()
            for descriptor in one.descriptors:
                os.close(descriptor)
            if verdict is None:
                found.equal.append(one.pair)
            else:
                found.verdicts[one.pair[0]] = verdict
        return stopped

    def _descriptors(self, one: int, other: int, size: int) -> Verdict | None:
        try:
            if size < _SMALL:
                data = os.read(one, size + 1)
            else:
                os.posix_fadvise(one, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError:
            return "source"
        try:
            if size < _SMALL:
                return None if os.read(other, size + 1) == data else "differs"
            os.posix_fadvise(other, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            return None if equal(one, other, size, self._blocks, lambda _: self._beat()) else "differs"
        except OSError:
            return "target"


def _contents(folder: int, name: bytes, size: int) -> bytes:
    """Of a small file; one byte more than `size` where it has grown."""
    descriptor = os.open(name, _READ, dir_fd=folder)
    try:
        return os.read(descriptor, size + 1)
    finally:
        os.close(descriptor)


class _Pair(NamedTuple):
    """Two files, open, or the side that could not be opened."""

    descriptors: tuple[int, ...]
    failed: Verdict | None
    size: int
    pair: Known


def _open(ours: int | None, theirs: int | None, size: int, pair: Known) -> _Pair:
    if ours is None:
        return _Pair((), "source", size, pair)
    try:
        one = os.open(pair[0], _READ, dir_fd=ours)
    except OSError:
        return _Pair((), "source", size, pair)
    try:
        if theirs is None:
            raise FileNotFoundError
        return _Pair((one, os.open(pair[0], _READ, dir_fd=theirs)), None, size, pair)
    except OSError:
        os.close(one)
        return _Pair((), "target", size, pair)


def equal(one: int, other: int, size: int, blocks: tuple[bytearray, bytearray], read: Callable[[int], bool]) -> bool:
    """Whether two files have the same `size` bytes. `read` is told how far it is and says whether to stop; a stop
    answers False, and then nobody asks for the answer."""
    first, second = blocks
    skipping = sparse(one) and sparse(other)
    at = 0
    while at < size:
        if skipping:
            at = min(next_data(one, at, size), next_data(other, at, size))
            if at >= size:
                break
        count = os.preadv(one, [first], at)
        if count != os.preadv(other, [second], at) or not count:
            return False
        if first != second if count == len(first) else first[:count] != second[:count]:
            return False
        at += count
        if read(at):
            return False
    return at >= size


def sparse(descriptor: int) -> bool:
    st = os.fstat(descriptor)
    return st.st_blocks * 512 < st.st_size


def next_data(descriptor: int, at: int, size: int) -> int:
    """Where the next data begins; the size when there is only a hole."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else at
