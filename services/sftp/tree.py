"""What lies beneath one folder: the kernel resolves every path from a descriptor, and whatever leads outside is not
there. Links inside that stay inside are followed."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import weakref
from collections.abc import Iterator

from domain import errors
from infra import linux, paths

Parts = tuple[bytes, ...]

_RESOLVE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_MAGICLINKS
_HANDLE = os.O_PATH | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OUTSIDE = (errno.EXDEV, errno.ELOOP)
_UNKNOWN_CALL = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
#: How often a path is resolved anew that somebody changed meanwhile.
_TRIES = 32
#: More than any command's path in a link, and what Linux takes.
_MAX_PATH = 4096


def gone() -> OSError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def forbidden() -> OSError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def parts(path: bytes) -> Parts:
    """The names of a client's path, for which the folder is `/`. Raises OSError for what no file can be called."""
    if b"\0" in path:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    found = tuple(part for part in posixpath.normpath(b"/" + path).split(b"/") if part)
    if len(path) > _MAX_PATH or any(len(part) > paths.MAX_NAME for part in found):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return found


class Tree:
    """Owns the descriptor of the folder, until nobody has the tree any more: calls in other threads may outlive those
    who began them. Everything raises OSError; what is outside raises FileNotFoundError."""

    def __init__(self, root: int) -> None:
        self.root = root
        weakref.finalize(self, os.close, root)

    def open(self, path: Parts, flags: int) -> int:
        whole = b"/".join(path) or b"."
        for _ in range(_TRIES):
            try:
                return linux.openat2(self.root, whole, flags | os.O_CLOEXEC, _RESOLVE)
            except OSError as error:
                if error.errno == errno.EAGAIN:  # something was renamed while `..` in a link was looked at
                    continue
                if error.errno in _OUTSIDE:
                    break
                if error.errno in _UNKNOWN_CALL:
                    return self._walk(path, flags)
                raise
        raise gone()

    def _walk(self, path: Parts, flags: int) -> int:
        """Where the kernel cannot resolve, no link is followed, and none is there."""
        if not path:
            return os.open(b".", flags | os.O_CLOEXEC, dir_fd=self.root)
        try:
            found = paths.walk(self.root, path, flags | os.O_NOFOLLOW)
        except errors.Forbidden:
            raise gone() from None
        if stat.S_ISLNK(os.fstat(found).st_mode):
            os.close(found)
            raise gone()
        return found

    @contextlib.contextmanager
    def handle(self, path: Parts) -> Iterator[int]:
        """What is there, opened for nothing but to say what it is: not even a device notices."""
        descriptor = self.open(path, _HANDLE)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def parent(self, path: Parts) -> Iterator[tuple[int, bytes]]:
        """The folder that a name is in, and the name, for calls that do not follow it. The root has none."""
        if not path:
            raise forbidden()
        descriptor = self.open(path[:-1], _HANDLE | os.O_DIRECTORY)
        try:
            yield descriptor, path[-1]
        finally:
            os.close(descriptor)

    def folder(self, path: Parts) -> int:
        """A descriptor of a folder to list."""
        return self.open(path, _FOLDER)

    def where(self, descriptor: int) -> bytes:
        """Where something that is open lies by its own names, whichever links led there: relative, empty for the
        folder itself."""
        base = os.readlink(b"/proc/self/fd/%d" % self.root)
        here = os.readlink(b"/proc/self/fd/%d" % descriptor)
        if here == base:
            return b""
        if not here.startswith(base + b"/"):
            raise gone()
        return here[len(base) + 1 :]

    def inside(self, folder: int, name: bytes) -> bytes:
        """Where a name in a folder that is open lies."""
        above = self.where(folder)
        return above + b"/" + name if above else name


def reopen(handle: int, flags: int) -> int:
    """What a handle stands for, a file and nothing else, opened to be read or written."""
    mode = os.fstat(handle).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise forbidden()
    return os.open(b"/proc/self/fd/%d" % handle, flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
