"""System calls of Linux that the standard library does not offer."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from itertools import repeat
from typing import Any, Final

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

_OPENAT2 = 437  # the same number on every architecture
_NOFOLLOW, _BASIC = repeat(0x100), repeat(0x7FF)  # AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS
_PR_SET_PDEATHSIG = 1
_SYNC_WAIT_BEFORE, _SYNC_WRITE, _SYNC_WAIT_AFTER = 1, 2, 4

# ext, xfs, btrfs, tmpfs, f2fs, overlayfs, bcachefs, zfs: one syncfs() makes all that was written there durable.
_EXT = 0xEF53
_SYNCFS_COVERS = {_EXT, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010, 0x794C7630, 0xCA451A4E, 0x2FC12FC1}

_libc = ctypes.CDLL(None, use_errno=True)
# Without releasing the GIL: a scan is alone in its process, and a call of a microsecond costs less so.
_quick = ctypes.PyDLL(None)


def _failed(what: str | bytes | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def _function(name: str) -> Any:
    return getattr(_libc, name, None)


def openat2(folder: int, path: bytes, flags: int, resolve: int) -> int:
    """Raises OSError; ENOSYS where the kernel or a sandbox does not know the call."""
    how = struct.pack("=QQQ", flags, 0, resolve)
    descriptor = _libc.syscall(ctypes.c_long(_OPENAT2), folder, path, how, ctypes.c_size_t(len(how)))
    if descriptor < 0:
        raise _failed(path)
    return int(descriptor)


_renameat2 = _function("renameat2")


def rename(source: bytes, target: bytes, source_folder: int, target_folder: int, flags: int) -> None:
    """renameat2. Raises OSError; EINVAL or ENOSYS where the filesystem does not know the flags."""
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _renameat2(source_folder, source, target_folder, target, flags) < 0:
        raise _failed(source)


def syncfs(descriptor: int) -> None:
    """Raises OSError when anything on that filesystem could not be written since the descriptor was opened."""
    if _libc.syncfs(descriptor) < 0:
        raise _failed()


def syncfs_covers(descriptor: int) -> bool:
    """Whether syncfs() makes files durable there and says when it could not (Linux 5.8, local filesystems)."""
    release = os.uname().release.split(".")
    if (int(release[0]), int("".join(filter(str.isdigit, release[1])))) < (5, 8):
        return False
    return _filesystem(descriptor) in _SYNCFS_COVERS


def prefers_direct(descriptor: int) -> bool:
    """Whether large files are best written past the page cache there: where blocks can neither be shared between files
    nor copied by a server."""
    return _filesystem(descriptor) == _EXT


def _filesystem(descriptor: int) -> int:
    """Its magic number; 0 when it does not say."""
    buffer = ctypes.create_string_buffer(512)
    if _libc.fstatfs(descriptor, buffer) < 0:
        return 0
    return int.from_bytes(buffer.raw[:4], "little")


_sync_file_range = _function("sync_file_range")
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def begin_writeback(descriptor: int, offset: int, size: int) -> None:
    """Starts writing a range to disk. A hint: errors come from the sync that follows."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, size, _SYNC_WRITE)


def end_writeback(descriptor: int, offset: int, size: int) -> None:
    """Waits until a range is written. A hint: errors come from the sync that follows."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, size, _SYNC_WAIT_BEFORE | _SYNC_WRITE | _SYNC_WAIT_AFTER)


def die_with_parent(parent: int) -> None:
    """In a child, right after the fork: SIGKILL when the parent ends, however it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class Stats:
    """What statx says of many names at once, column by column.

    A Python object per field of each file would cost as much as the system call; the kernel writes into one buffer
    instead, and a strided view of it is a column. `modes`, `sizes` and the others are these views, to be changed, too.
    """

    ROWS: Final = 1024
    _WIDTH = 256

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(self._WIDTH * self.ROWS)
        view = memoryview(self._buffer).cast("B")
        words, ints, shorts = view.cast("Q"), view.cast("I"), view.cast("H")
        self._slots = [ctypes.byref(self._buffer, self._WIDTH * row) for row in range(self.ROWS)]
        self._statx = getattr(_quick, "statx", None)
        self.modes, self.sizes, self.inodes = shorts[14::128], words[5::32], words[4::32]
        self.mtimes = words[14::32], ints[30::64]
        self.ctimes = words[12::32], ints[26::64]
        self.users, self.groups = ints[5::64], ints[6::64]
        self._majors, self._minors = ints[34::64], ints[35::64]
        self._columns = (self.modes, self.sizes, *self.mtimes, *self.ctimes, self.inodes)

    def read(self, folder: int, names: list[bytes]) -> list[bytes]:
        """Fills a row for each of at most ROWS names, never following a link; returns those that it could not."""
        statx = self._statx or self._by_stat
        # Without a step of the interpreter between two calls, which would cost as much as a tenth of a call.
        said = list(map(statx, repeat(folder), names, _NOFOLLOW, _BASIC, self._slots))
        return [name for name, failed in zip(names, said, strict=True) if failed] if any(said) else []

    def columns(self, rows: int) -> list[bytes]:
        """Modes, sizes, mtimes and ctimes (each as seconds in two's complement and nanoseconds), inodes."""
        return [column[:rows].tobytes() for column in self._columns]

    def device(self, row: int) -> int:
        return os.makedev(self._majors[row], self._minors[row])

    def _by_stat(self, folder: int, name: bytes, flags: int, mask: int, slot: Any) -> int:
        """The same from stat(), where the C library has no statx."""
        try:
            st = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return -1
        row = bytearray(self._WIDTH)
        struct.pack_into("=IIHxxQQ", row, 20, st.st_uid, st.st_gid, st.st_mode, st.st_ino, st.st_size)
        for offset, time_ns in ((96, st.st_ctime_ns), (112, st.st_mtime_ns)):
            struct.pack_into("=qI", row, offset, time_ns // 1_000_000_000, time_ns % 1_000_000_000)
        struct.pack_into("=II", row, 136, os.major(st.st_dev), os.minor(st.st_dev))
        ctypes.memmove(slot, bytes(row), self._WIDTH)
        return 0
