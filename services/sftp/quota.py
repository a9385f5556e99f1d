"""The disk limit of a server while its files are written: what a write adds is taken before it is written.

The server's own process writes too, so what is used is measured again from time to time, and before anybody is told
that there is no more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator

from infra import volumes
from services.sftp.tree import Tree

#: How old a measure may be: so many seconds, and so many times as long as it took.
_AGE_S, _SHARE = 10.0, 50
#: How often a measure is made for whoever is about to be refused, and where less than a part of the limit is left: then
#: what other processes write counts soon.
_AGAIN_S, _NEAR = 1.0, 10

Inode = tuple[int, int]


class _Open:
    """A file that is open here; its writes follow one another, so that each knows how long the file is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.descriptors: list[int] = []


class Quota:
    """Of one server in this process; `limit` is in bytes, 0 for none. Called from threads. Raises OSError, EDQUOT
    when a write would pass the limit."""

    def __init__(self, tree: Tree, limit: Callable[[], int]) -> None:
        self._tree, self._limit = tree, limit
        self._lock = threading.Lock()
        self._used: int | None = None
        self._pending = 0
        self._measured = self._due = 0.0
        self._open: dict[Inode, _Open] = {}

    # Files.

    def hold(self, descriptor: int) -> None:
        """A file is open; until `drop`."""
        with self._lock:
            self._open.setdefault(_inode(descriptor), _Open()).descriptors.append(descriptor)

    def drop(self, descriptor: int) -> None:
        """It will be closed; what has no name any more is free then."""
        there = os.fstat(descriptor)
        inode = there.st_dev, there.st_ino
        with self._lock:
            held = self._open[inode]
            held.descriptors.remove(descriptor)
            if not held.descriptors:
                del self._open[inode]
                if there.st_nlink == 0:
                    self._free(there.st_size)

    def write(self, descriptor: int, offset: int, data: bytes, *, append: bool) -> int:
        with self._growing(descriptor) as size:
            end = (size if append else offset) + len(data)
            with self._taken(descriptor, size, end):
                view = memoryview(data)
                while view:
                    done = os.pwrite(descriptor, view, offset)
                    view, offset = view[done:], offset + done
        return len(data)

    def truncate(self, descriptor: int, length: int) -> None:
        with self._growing(descriptor) as size:
            with self._taken(descriptor, size, length):
                os.ftruncate(descriptor, length)
            if length < size:
                with self._lock:
                    self._free(size - length)

    def unlinked(self, there: os.stat_result) -> None:
        """A name was removed, of a file that was so before: the last one frees what nobody has open."""
        with self._lock:
            if there.st_nlink == 1 and (there.st_dev, there.st_ino) not in self._open:
                self._free(there.st_size)

    # The whole.

    def usage(self) -> tuple[int, int]:
        """Bytes used and the limit."""
        with self._lock:
            limit = self._limit()
            if limit and (self._used is None or time.monotonic() > self._due):
                self._measure()
            return self._used or 0, limit

    @contextlib.contextmanager
    def _growing(self, descriptor: int) -> Iterator[int]:
        with self._lock:
            held = self._open[_inode(descriptor)]
        with held.lock:
            yield os.fstat(descriptor).st_size

    @contextlib.contextmanager
    def _taken(self, descriptor: int, size: int, end: int) -> Iterator[None]:
        """What a file grows by is taken; what came of it less is given back."""
        more = max(end - size, 0)
        self._take(more)
        try:
            yield
        finally:
            grown = max(os.fstat(descriptor).st_size - size, 0) if more else 0
            with self._lock:
                self._pending -= more
                self._free(more - grown)

    def _take(self, more: int) -> None:
        with self._lock:
            limit = self._limit()
            if not limit:
                self._used = None  # measured when there is one again
            elif more:
                now = time.monotonic()
                if self._used is None or now > self._due:
                    self._measure()
                assert self._used is not None
                if self._used + more > limit and now - self._measured > _AGAIN_S:
                    self._measure()
                if self._used + more > limit:
                    raise OSError(errno.EDQUOT, "The disk space of this server is used up")
                self._used += more
            self._pending += more

    def _free(self, size: int) -> None:
        if self._used is not None:
            self._used = max(self._used - size, 0)

    def _measure(self) -> None:
        """Whatever is being written at this moment may be counted twice; that is corrected by the next."""
        began = time.monotonic()
        found = volumes.measure(self._tree.root) + self._pending
        for held in self._open.values():
            there = os.fstat(held.descriptors[0])
            found += there.st_size if there.st_nlink == 0 else 0
        self._used, self._measured = found, time.monotonic()
        left = self._limit() - found
        age_s = _AGE_S if left > self._limit() // _NEAR else _AGAIN_S
        self._due = self._measured + max(age_s, _SHARE * (self._measured - began))


def _inode(descriptor: int) -> Inode:
    there = os.fstat(descriptor)
    return there.st_dev, there.st_ino
