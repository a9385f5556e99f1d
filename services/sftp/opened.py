"""What a session has open: files and folders, each with a lock of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from asyncssh import SFTPName

from services.sftp.attributes import attributes, longname
from services.sftp.quota import Quota

#: Names read at once.
_PAGE = 256


class How(NamedTuple):
    """How a file is opened."""

    reads: bool
    writes: bool
    appends: bool = False
    creates: bool = False
    truncates: bool = False
    is_new: bool = False

    @property
    def flags(self) -> int:
        mode = os.O_RDWR if self.reads and self.writes else os.O_WRONLY if self.writes else os.O_RDONLY
        return mode | os.O_APPEND if self.appends else mode

    @property
    def changes(self) -> bool:
        return self.writes or self.creates or self.truncates


class File:
    """An open file. Calls and the end exclude each other, since another file may get its descriptor's number."""

    def __init__(self, descriptor: int, path: bytes, how: How, quota: Quota, is_made: bool) -> None:
        self.descriptor, self.path, self.how, self.is_made = descriptor, path, how, is_made
        self._quota, self._lock = quota, threading.Lock()
        quota.hold(descriptor)

    @contextlib.contextmanager
    def using(self) -> Iterator[int]:
        with self._lock:
            if self.descriptor < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            yield self.descriptor

    def seek(self, offset: int, whence: int) -> int:
        """Where data or a hole begins, for who asks which parts of a file there are."""
        with self.using() as descriptor:
            return os.lseek(descriptor, offset, whence)

    def close(self) -> None:
        with self._lock:
            if self.descriptor >= 0:
                descriptor, self.descriptor = self.descriptor, -1
                self._quota.drop(descriptor)
                os.close(descriptor)


class Listing:
    """A folder that is being read, a page at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._lock = descriptor, threading.Lock()
        self._entries = os.scandir(descriptor)

    def page(self) -> Sequence[SFTPName]:
        """The next names; none at the end."""
        found: list[SFTPName] = []
        with self._lock:
            if self._descriptor < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            for entry in self._entries:
                with contextlib.suppress(FileNotFoundError):
                    there = entry.stat(follow_symlinks=False)
                    name = os.fsencode(entry.name)
                    found.append(SFTPName(name, longname(name, there), attributes(there)))
                if len(found) == _PAGE:
                    break
        return found

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                self._entries.close()
                os.close(self._descriptor)
                self._descriptor = -1
