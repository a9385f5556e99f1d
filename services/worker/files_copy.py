"""Copying one file: small ones by one read and one write, large ones by the disk from the pages of the source where
that can be done, holes as holes. A copy that is to be checked is read back as soon as it is written."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator

from infra import linux
from services.worker.files_compare import next_data, sparse

SMALL = 1 << 20
_WINDOW = 32 << 20
_BLOCK = 256 << 10  # two of them stay in the cache of a core
_ALIGNED = max(4096, mmap.ALLOCATIONGRANULARITY)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY)
_NO_DIRECT = (errno.EINVAL, errno.EFAULT, errno.ENODEV, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENOMEM)
_TRIES = 3
_blocks = bytearray(_BLOCK), bytearray(_BLOCK)


class Changing(OSError):
    """The file changed each time it was copied."""

    def __init__(self) -> None:
        super().__init__(errno.EBUSY, "the file kept changing while it was copied")


class Differs(OSError):
    """A copy is not what was written."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the copy that was read back differs")


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


def contents(source: int, target: int, moved: Callable[[int], bool], check: bool) -> os.stat_result:
    """Copies what is in a file into an empty one. Returns the source's state, which did not change meanwhile. `moved`
    is told how many bytes were copied and says whether to stop; `check` has them read back. Raises OSError, Changing,
    Differs, Stopped."""
    for _ in range(_TRIES):
        before = os.fstat(source)
        if before.st_size < SMALL:
            data = os.pread(source, before.st_size + 1, 0)
            write(target, data, check)
            copied = len(data)
            moved(copied)
        else:
            copied = _large(source, target, before.st_size, moved, check)
        after = os.fstat(source)
        if copied == after.st_size and _version(before) == _version(after):
            return after
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


def write(target: int, data: bytes, check: bool) -> None:
    """Into an empty file. Raises OSError, Differs."""
    written = os.write(target, data) if data else 0
    while written < len(data):
        written += os.write(target, data[written:])
    if check and os.pread(target, len(data) + 1, 0) != data:
        raise Differs


def _large(source: int, target: int, size: int, moved: Callable[[int], bool], check: bool) -> int:
    """Window by window: while one is copied, the one before goes to disk and leaves the page cache, so that a large
    copy neither drives out what others use nor waits for all its writes at the end."""
    os.posix_fadvise(source, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    way = _checked if check else _direct if linux.prefers_direct(target) else _range
    previous: tuple[int, int] | None = None
    holes = size
    for start, until in _extents(source, size):
        at = start
        while at < until:
            count = way(source, target, at, min(_WINDOW, until - at))
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


def _direct(source: int, target: int, at: int, count: int) -> int:
    """The disk takes whole blocks from where the source's pages are, so that nothing is copied in memory, and no
    memory is needed for a second one of each; meanwhile the next window is read. The rest goes through the cache."""
    whole = count - count % _ALIGNED
    if whole and not at % _ALIGNED:
        os.posix_fadvise(source, at + whole, _WINDOW, os.POSIX_FADV_WILLNEED)
        try:
            with mmap.mmap(source, whole, prot=mmap.PROT_READ, offset=at) as pages:
                fcntl.fcntl(target, fcntl.F_SETFL, os.O_DIRECT)
                return os.pwrite(target, pages, at)
        except ValueError:  # it became shorter
            return 0
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise
        finally:
            fcntl.fcntl(target, fcntl.F_SETFL, 0)
    return _range(source, target, at, count)


def _range(source: int, target: int, at: int, count: int) -> int:
    """Inside the kernel."""
    try:
        copied = os.copy_file_range(source, target, count, at, at)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
        copied = 0
    if copied:
        return copied
    return _through(source, target, at, min(count, _BLOCK))


def _checked(source: int, target: int, at: int, count: int) -> int:
    """Block by block, each read back while it is in the cache of the core."""
    copied = 0
    while copied < count:
        there = at + copied
        more = _through(source, target, there, min(count - copied, _BLOCK))
        if not more:
            break
        ours, theirs = _blocks
        if os.preadv(target, [memoryview(theirs)[:more]], there) != more:
            raise Differs
        if ours != theirs if more == _BLOCK else ours[:more] != theirs[:more]:
            raise Differs
        copied += more
    return copied


def _through(source: int, target: int, at: int, count: int) -> int:
    """One block, through the first of ours."""
    block = memoryview(_blocks[0])[: os.preadv(source, [memoryview(_blocks[0])[:count]], at)]
    written = 0
    while written < len(block):
        written += os.pwrite(target, block[written:], at + written)
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
            contents(source, target, lambda _: False, False)
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
