"""The trash: what a sync deletes or overwrites after a conflict is kept here, one generation for each job.

Where the target lies beneath its root, the generation is `<root>/.undrift/trash/<job>`, on the same filesystem, so
that keeping a file is a rename or a link. Where the target is the root itself, nothing may be put into it, and the
generation lies in the data directory. Below a generation each file has its path in the target.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from domain import errors
from domain.plans.files import key
from domain.plans.patterns import OWN_FOLDER
from infra import linux, paths
from services.worker.files_copy import copy_entry

_FOLDER = b"trash"
_UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_TRIES = 1000


class Trash:
    """One generation, made when the first file goes there."""

    def __init__(self, target: paths.Place, elsewhere: Path, job: str) -> None:
        self._target, self._elsewhere, self._job = target, elsewhere, os.fsencode(job)
        self._base: int | None = None

    def _open(self) -> int:
        if self._base is None:
            self._base = self._beside() if self._target.parts else self._away()
        return self._base

    def _beside(self) -> int:
        root = self._target.open_root()
        try:
            return _descend(root, [OWN_FOLDER, _FOLDER, self._job])
        except (errors.Forbidden, PermissionError, NotADirectoryError):
            return self._away()
        finally:
            os.close(root)

    def _away(self) -> int:
        self._elsewhere.mkdir(parents=True, exist_ok=True, mode=0o700)
        base = os.open(self._elsewhere, paths.FOLDER)
        try:
            return _descend(base, [self._job])
        finally:
            os.close(base)

    def move(self, folder: int, name: bytes, path: bytes) -> None:
        """Takes an entry of the target away. Raises OSError, and then it is where it was."""

        def move(there: int, new: bytes) -> None:
            try:
                _rename_new(name, new, folder, there)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                copy_entry(folder, name, there, new)
                os.unlink(name, dir_fd=folder)

        self._place(path, move)

    def save(self, folder: int, name: bytes, path: bytes) -> None:
        """Keeps an entry of the target that is about to be overwritten; it stays where it is. Raises OSError."""

        def link(there: int, new: bytes) -> None:
            try:
                os.link(name, new, src_dir_fd=folder, dst_dir_fd=there, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _UNLINKABLE:
                    raise
                copy_entry(folder, name, there, new)

        self._place(path, link)

    def _place(self, path: bytes, put: Callable[[int, bytes], None]) -> None:
        """Finds a free name for a path: its own, or one with a number behind it."""
        above, _, name = path.rpartition(b"/")
        for attempt in range(_TRIES):
            suffix = b"~%d" % attempt if attempt else b""
            try:
                there = _descend(self._open(), above.split(b"/") if above else [], suffix)
            except (NotADirectoryError, errors.Forbidden):
                continue  # an earlier file of that name lies where a folder is needed
            try:
                put(there, name[: paths.MAX_NAME - len(suffix)] + suffix)
            except FileExistsError:
                continue
            finally:
                os.close(there)
            return
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    def close(self) -> None:
        if self._base is not None:
            os.close(self._base)
            self._base = None


class Generation:
    """What one job put into the trash, to be looked through; false where nothing is left of it."""

    def __init__(self, target: paths.Place, elsewhere: Path, job: str) -> None:
        self._trails: list[paths.Trail] = []
        self._look(os.fsdecode(target.root), [OWN_FOLDER, _FOLDER, os.fsencode(job)])
        self._look(str(elsewhere), [os.fsencode(job)])

    def _look(self, root: str, parts: list[bytes]) -> None:
        with contextlib.suppress(OSError, errors.Forbidden):
            above = os.open(root, paths.THROUGH & ~os.O_NOFOLLOW)
            try:
                base = paths.beneath(above, parts)
            finally:
                os.close(above)
            self._trails.append(paths.Trail(base))
            os.close(base)

    def __bool__(self) -> bool:
        return bool(self._trails)

    def find(self, path: bytes) -> tuple[int, bytes] | None:
        """Folder, by a descriptor that is valid until the next call, and name of what had a path in the target."""
        above, _, name = path.rpartition(b"/")
        for trail in self._trails:
            with contextlib.suppress(OSError):
                folder = trail.enter(above)
                os.stat(name, dir_fd=folder, follow_symlinks=False)
                return folder, name
        return None

    def close(self) -> None:
        for trail in self._trails:
            trail.close()


def _descend(base: int, parts: list[bytes], suffix: bytes = b"") -> int:
    """Makes and opens the folders below a descriptor; `suffix` goes to the first of them."""
    current = os.dup(base)
    try:
        for index, part in enumerate(parts):
            name = part[: paths.MAX_NAME - len(suffix)] + suffix if index == 0 else part
            try:
                following = os.open(name, paths.FOLDER, dir_fd=current)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):  # the other process was first
                    os.mkdir(name, 0o700, dir_fd=current)
                following = os.open(name, paths.FOLDER, dir_fd=current)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _rename_new(name: bytes, new: bytes, folder: int, there: int) -> None:
    """Renames without ever replacing what has the new name."""
    try:
        linux.rename(name, new, folder, there, linux.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        try:
            os.stat(new, dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=there)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None


def remove(folder: int, name: bytes) -> None:
    """Removes a file, or a folder with all that is in it, of any depth, never following a link. Raises OSError."""
    st = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISDIR(st.st_mode):
        os.unlink(name, dir_fd=folder)
        return
    _open_up(folder, name, st.st_mode)
    root = os.open(name, paths.FOLDER, dir_fd=folder)
    trail = paths.Trail(root)
    found, waiting = [b""], [b""]
    try:
        while waiting:
            path = waiting.pop()
            inner = trail.enter(path)
            for entry in map(os.fsencode, os.listdir(inner)):
                below = path + b"/" + entry if path else entry
                mode = os.stat(entry, dir_fd=inner, follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    _open_up(inner, entry, mode)
                    found.append(below)
                    waiting.append(below)
                else:
                    os.unlink(entry, dir_fd=inner)
        for path in sorted(found[1:], key=key, reverse=True):
            above, _, last = path.rpartition(b"/")
            os.rmdir(last, dir_fd=trail.enter(above))
    finally:
        trail.close()
        os.close(root)
    os.rmdir(name, dir_fd=folder)


def _open_up(folder: int, name: bytes, mode: int) -> None:
    if mode & 0o700 != 0o700:
        paths.chmod(folder, name, 0o700)


def sweep(roots: Iterable[str], elsewhere: Path, days: float) -> int:
    """Empties the trash of generations that nothing was put into for so many days; returns how many."""
    removed, before = 0, time.time() - days * 86_400
    for base in (*(os.path.join(os.fsencode(root), OWN_FOLDER, _FOLDER) for root in roots), os.fsencode(elsewhere)):
        try:
            folder = os.open(base, paths.FOLDER)
        except OSError:
            continue
        try:
            for name in map(os.fsencode, os.listdir(folder)):
                if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < before:
                    remove(folder, name)
                    removed += 1
        finally:
            os.close(folder)
    return removed
