"""Files that are written past the page cache, where that is possible: nothing is copied, and little is left to be
written when all has come and is waited for."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domain import errors
from infra.buffers import PAGE

_DIRECT = getattr(os, "O_DIRECT", 0)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Straight:
    """A file that is open for writing, by several threads at once. Whole pages of `infra.buffers` that stand at whole
    pages of the file go straight to the disk, everything else through the cache. All methods block.

    Whoever gave up waiting for a write may close it: what is written from then on is dropped.
    """

    def __init__(self, path: Path, flags: int, *, straight: bool) -> None:
        """`flags` as of os.open, which raises."""
        self._cached = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self._direct = _directly(path, flags & os.O_ACCMODE) if straight and _DIRECT else None
        self._able = self._direct is not None
        self._news = threading.Condition()
        self._users = 0
        self._open = True  # the number of a closed file may soon be another's

    def write(self, data: memoryview, offset: int) -> None:
        """All of it. Raises errors.StorageFull."""
        with self._used() as is_open:
            try:
                while data and is_open:
                    written = self._write(data, offset)
                    data, offset = data[written:], offset + written
            except OSError as error:
                raise errors.StorageFull() if error.errno in _FULL else error from None

    def _write(self, data: memoryview, offset: int) -> int:
        whole = len(data) - len(data) % PAGE
        if not self._able or not whole or offset % PAGE or self._direct is None:
            return os.pwrite(self._cached, data, offset)
        try:
            return os.pwrite(self._direct, data[:whole], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._able = False  # other memory, or a file system that wants something else
            return 0

    def read(self, length: int, offset: int) -> bytes:
        return os.pread(self._cached, length, offset)

    def alone(self) -> bool:
        """Nobody else, in any process, has it so until it is closed; whether that is so."""
        try:
            fcntl.flock(self._cached, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def settle(self, offset: int, length: int) -> int:
        """Has the disk begin with what is still in the cache; answers when the file was changed last, in ns."""
        with self._used() as is_open:
            if not is_open:
                return 0
            if not self._able:
                _write_soon(self._cached, offset, length)
            return os.fstat(self._cached).st_mtime_ns

    def close(self) -> None:
        with self._news:
            self._open = False
            self._news.wait_for(lambda: not self._users)
        os.close(self._cached)
        if self._direct is not None:
            os.close(self._direct)

    @contextmanager
    def _used(self) -> Iterator[bool]:
        with self._news:
            is_open = self._open
            self._users += 1
        try:
            yield is_open
        finally:
            with self._news:
                self._users -= 1
                self._news.notify_all()


def _directly(path: Path, access: int) -> int | None:
    """None where the file system has no such thing."""
    with contextlib.suppress(OSError):
        return os.open(path, access | _DIRECT | os.O_CLOEXEC)
    return None


def _write_soon(descriptor: int, offset: int, length: int) -> None:
    """While more comes: what is left to be written in the end is waited for. Elsewhere than on Linux with glibc the end
    takes longer."""
    with contextlib.suppress(OSError, AttributeError):
        wide = ctypes.c_int64
        ctypes.CDLL(None).sync_file_range(descriptor, wide(offset), wide(length), _WRITE)
