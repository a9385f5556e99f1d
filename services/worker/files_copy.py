"""Copying one file: small ones by one read and one write, large ones inside the kernel, holes as holes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from infra import linux
from services.worker.files_compare import next_data, sparse

SMALL = 1 << 20
_WINDOW = 16 << 20
_BLOCK = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY)
_TRIES = 3


class Changing(OSError):
    """The file changed each time it was copied."""

    def __init__(self) -> None:
        super().__init__(errno.EBUSY, "the file kept changing while it was copied")


class Stopped(Exception):
    """A stop was asked for in the middle of a large file."""


def open_source(folder: int, name: bytes) -> int:
    """A plain file, never a link, never waiting for a FIFO. Raises OSError."""
    descriptor = os.open(name, _READ, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no longer a plain file")
    return descriptor


def open_new(folder: int, name: bytes, mode: int) -> int:
    return os.open(name, _NEW, mode & 0o777, dir_fd=folder)


def contents(source: int, target: int, moved: Callable[[int], bool]) -> tuple[os.stat_result, bytes | None]:
    """Copies what is in a file into an empty one. Returns the source's state, which did not change meanwhile, and
    the bytes of a small file. `moved` is told how many bytes were copied and says whether to stop. Raises OSError,
    Changing, Stopped."""
    for _ in range(_TRIES):
        before = os.fstat(source)
        data = None
        if before.st_size < SMALL:
            data = os.pread(source, before.st_size + 1, 0)
            write(target, data)
            copied = len(data)
            moved(copied)
        else:
            copied = _large(source, target, before.st_size, moved)
        after = os.fstat(source)
        if copied == after.st_size and _version(before) == _version(after):
            return after, data
        moved(-copied)
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
    raise Changing


def small(folder: int, name: bytes, size: int, mtime_ns: int) -> tuple[os.stat_result, bytes] | None:
    """A small file that is as it was when it was listed, by one read; None when it is not. Raises OSError."""
    descriptor = os.open(name, _READ, dir_fd=folder)
    try:
        data = os.pread(descriptor, size + 1, 0)
        st = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if len(data) == size == st.st_size and st.st_mtime_ns == mtime_ns and stat.S_ISREG(st.st_mode):
        return st, data
    return None


def _version(st: os.stat_result) -> tuple[int, int, int]:
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns


def write(target: int, data: bytes) -> None:
    written = os.write(target, data) if data else 0
    while written < len(data):
        written += os.write(target, data[written:])


def _large(source: int, target: int, size: int, moved: Callable[[int], bool]) -> int:
    """Window by window: while one is copied, the one before goes to disk and leaves the page cache, so that a large
    copy neither drives out what others use nor waits for all its writes at the end."""
    os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    previous: tuple[int, int] | None = None
    holes = size
    for start, until in _extents(source, size):
        at = start
        while at < until:
            count = _range(source, target, at, min(_WINDOW, until - at))
            if not count:
                return at  # it became shorter
            linux.begin_writeback(target, at, count)
            if previous is not None:
                _release(target, *previous)
            previous = (at, count)
            at += count
            if moved(count):
                raise Stopped
        holes -= until - start
    os.ftruncate(target, size)
    moved(holes)
    return size


def _release(target: int, at: int, count: int) -> None:
    linux.end_writeback(target, at, count)
    os.posix_fadvise(target, at, count, os.POSIX_FADV_DONTNEED)


def _extents(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is data."""
    if not sparse(source):
        yield 0, size
        return
    at = next_data(source, 0, size)
    while at < size:
        until = os.lseek(source, at, os.SEEK_HOLE)
        yield at, min(until, size)
        at = next_data(source, until, size)


def _range(source: int, target: int, at: int, count: int) -> int:
    try:
        copied = os.copy_file_range(source, target, count, at, at)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
        copied = 0
    if copied:
        return copied
    data = os.pread(source, min(count, _BLOCK), at)
    written = 0
    while written < len(data):
        written += os.pwrite(target, data[written:], at + written)
    return written


def copy_entry(folder: int, name: bytes, there: int, new: bytes) -> None:
    """Copies a file or link to another folder under a name that must be free, durable when it returns. Raises
    OSError, and then nothing is left."""
    st = os.stat(name, dir_fd=folder, follow_symlinks=False)
    times = (st.st_atime_ns, st.st_mtime_ns)
    if stat.S_ISLNK(st.st_mode):
        os.symlink(os.readlink(name, dir_fd=folder), new, dir_fd=there)
        os.utime(new, ns=times, dir_fd=there, follow_symlinks=False)
        os.fsync(there)
        return
    source = open_source(folder, name)
    try:
        target = open_new(there, new, 0o600)
        try:
            contents(source, target, lambda _: False)
            os.fchmod(target, stat.S_IMODE(st.st_mode) & 0o777)
            os.utime(target, ns=times)
            os.fsync(target)
        except BaseException:
            os.unlink(new, dir_fd=there)
            raise
        finally:
            os.close(target)
    finally:
        os.close(source)
    os.fsync(there)
