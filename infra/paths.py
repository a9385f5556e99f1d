"""Paths that requests name, resolved beneath allow-listed roots by directory descriptors, never through a symlink.

Whether a path lies under a root is decided by its text alone, before anything is looked up, so that nobody learns what
exists outside. Beneath the root the kernel resolves it (openat2) or, where it cannot, a walk component by component.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from domain import errors
from infra import linux

MAX_PATH = 4096
MAX_NAME = 255

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
THROUGH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""For folders on the way, which need not be readable, as they need not be for the kernel."""
_RESOLVE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_SYMLINKS
_LINK = (errno.ELOOP, errno.EXDEV)
_UNKNOWN_CALL = (errno.ENOSYS, errno.EPERM, errno.EINVAL)


@functools.lru_cache(maxsize=4096)
def absolute(path: str) -> tuple[bytes, ...]:
    """The components of an absolute POSIX path; repeated slashes and a final one are allowed. Raises errors.Invalid."""
    if not path.startswith("/"):
        raise errors.Invalid("A path must be absolute and start with '/'")
    try:
        whole = path.encode()
    except UnicodeEncodeError:
        raise errors.Invalid("A path is not valid text") from None
    if len(whole) > MAX_PATH:
        raise errors.Invalid(f"A path is longer than {MAX_PATH} bytes")
    if any(byte < 32 or byte == 127 for byte in whole):
        raise errors.Invalid("A path holds a NUL or another control character")
    parts = tuple(part for part in whole.split(b"/") if part)
    if any(part in (b".", b"..") for part in parts):
        raise errors.Invalid("A path must not hold '.' or '..'")
    if any(len(part) > MAX_NAME for part in parts):
        raise errors.Invalid(f"A name in a path is longer than {MAX_NAME} bytes")
    return parts


class Place(NamedTuple):
    """A path beneath a root; it need not exist."""

    root: bytes
    parts: tuple[bytes, ...]

    @property
    def path(self) -> bytes:
        return os.path.join(self.root, *self.parts)

    def open_root(self) -> int:
        """The root itself is the administrator's word: links in it are followed. Only to go on from. Raises OSError."""
        return os.open(self.root, THROUGH & ~os.O_NOFOLLOW)

    def open(self) -> int:
        """A descriptor of the folder. Raises FileNotFoundError, NotADirectoryError, PermissionError; errors.Forbidden
        when a symlink lies on the way."""
        root = self.open_root()
        try:
            return beneath(root, self.parts)
        finally:
            os.close(root)


class Roots:
    """The folders that a request may touch. Raises errors.Invalid for one that is not an absolute path."""

    def __init__(self, roots: Iterable[str | os.PathLike[str]]) -> None:
        self._roots: dict[tuple[bytes, ...], bytes] = {}
        for root in roots:
            text = os.fspath(root)
            for name in (text, os.path.realpath(text)):
                self._roots.setdefault(absolute(name), os.fsencode(text))

    def place(self, path: str) -> Place:
        """Beneath the deepest root that holds it. Raises errors.Invalid, and errors.Forbidden outside all roots,
        whether or not the path exists."""
        parts = absolute(path)
        for depth in range(len(parts), -1, -1):
            root = self._roots.get(parts[:depth])
            if root is not None:
                return Place(root, parts[depth:])
        raise errors.Forbidden("The path lies outside the folders that this key may touch")


def beneath(root: int, parts: Sequence[bytes], flags: int = FOLDER) -> int:
    """Opens a path beneath a descriptor. Raises OSError; errors.Forbidden when a symlink lies on the way."""
    if not parts:
        return os.open(b".", flags, dir_fd=root)
    try:
        return linux.openat2(root, b"/".join(parts), flags, _RESOLVE)
    except OSError as error:
        if error.errno in _LINK:
            raise errors.Forbidden("The path leads through a symbolic link") from None
        if error.errno not in (*_UNKNOWN_CALL, errno.ENOTDIR):  # ENOTDIR: a file, or a link in the last place
            raise
    return walk(root, parts, flags)


def walk(root: int, parts: Sequence[bytes], flags: int = FOLDER) -> int:
    """The same as `beneath`, component by component, for kernels and sandboxes without openat2."""
    current = os.dup(root)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            following = _step(current, part, (flags if last else THROUGH) | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _step(folder: int, name: bytes, flags: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and is_link(folder, name):
            raise errors.Forbidden("The path leads through a symbolic link") from None
        raise


def is_link(folder: int, name: bytes) -> bool:
    try:
        os.readlink(name, dir_fd=folder)
    except OSError:
        return False
    return True


def chmod(folder: int, name: bytes, mode: int) -> None:
    """Sets the mode of exactly the inode that has the name, never of what a link points to. Raises OSError."""
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISLNK(os.fstat(descriptor).st_mode):
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def make(place: Place) -> int:
    """The folder at a place, made with its missing parents. Raises OSError, errors.Forbidden."""
    current = place.open_root()
    try:
        for part in place.parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=current)
            following = _step(current, part, THROUGH)
            os.close(current)
            current = following
        return os.open(b".", FOLDER, dir_fd=current)
    finally:
        os.close(current)


def nearest(place: Place) -> int:
    """The deepest folder that exists on the way to a place, or the place itself; only to go on from."""
    current = place.open_root()
    for part in place.parts:
        try:
            following = _step(current, part, THROUGH)
        except FileNotFoundError:
            break
        except BaseException:
            os.close(current)
            raise
        os.close(current)
        current = following
    return current


def identity(descriptor: int) -> tuple[int, int]:
    """Device and inode."""
    st = os.fstat(descriptor)
    return st.st_dev, st.st_ino


def above(descriptor: int) -> Iterable[tuple[int, int]]:
    """The identities of a folder and of all folders above it."""
    current = os.dup(descriptor)
    try:
        here = identity(current)
        while True:
            yield here
            following = os.open(b"..", THROUGH, dir_fd=current)
            os.close(current)
            current = following
            there = identity(current)
            if there == here:
                return
            here = there
    finally:
        os.close(current)


def overlap(one: int, other: int) -> bool:
    """Whether two folders are the same or one lies in the other, whatever paths lead there."""
    first, second = identity(one), identity(other)
    return first in above(other) or second in above(one)


class Trail:
    """A cursor in a tree: descriptors of one folder and of the folders above it, opened one name at a time.

    Only the deepest `KEEP` are held; a folder above those is found again by `..`, and only if it is still the same
    inode. `alias` gives folders whose name on disk is not the one in their path.
    """

    KEEP = 48

    def __init__(self, root: int) -> None:
        self._parts: list[bytes] = []
        self._descriptors: list[int | None] = [os.dup(root)]
        self._identities: dict[int, tuple[int, int]] = {}
        self.alias: dict[bytes, bytes] = {}
        self._path = b""

    def enter(self, path: bytes) -> int:
        """The descriptor of a folder, valid until the next call. Raises OSError."""
        if path == self._path:
            return self._top()
        parts = path.split(b"/") if path else []
        common = 0
        for ours, theirs in zip(self._parts, parts, strict=False):
            if ours != theirs:
                break
            common += 1
        while len(self._parts) > common:
            self._up()
        for name in parts[common:]:
            self._down(name)
        return self._top()

    def _top(self) -> int:
        top = self._descriptors[-1]
        assert top is not None
        return top

    def _down(self, name: bytes) -> None:
        path = self._path + b"/" + name if self._parts else name
        self._descriptors.append(os.open(self.alias.get(path, name), FOLDER, dir_fd=self._top()))
        self._parts.append(name)
        self._path = path
        old = len(self._descriptors) - 1 - self.KEEP
        if old >= 0 and (descriptor := self._descriptors[old]) is not None:
            self._identities[old] = identity(descriptor)
            os.close(descriptor)
            self._descriptors[old] = None

    def _up(self) -> None:
        upper = len(self._descriptors) - 2
        if self._descriptors[upper] is None:
            descriptor = os.open(b"..", FOLDER, dir_fd=self._top())
            if identity(descriptor) != self._identities[upper]:
                os.close(descriptor)
                raise OSError(errno.ESTALE, "A folder was moved while it was read")
            self._descriptors[upper] = descriptor
        os.close(self._top())
        self._descriptors.pop()
        self._path = self._path[: -len(self._parts.pop())].removesuffix(b"/")

    def close(self) -> None:
        for descriptor in self._descriptors:
            if descriptor is not None:
                os.close(descriptor)
        self._descriptors = []
