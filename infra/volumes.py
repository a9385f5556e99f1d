"""The folders of servers: made with their owner, opened by descriptor, measured and removed without following a link.

All of it blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from domain import errors
from infra import config, paths

#: Whoever owns files and processes of servers where we are root, as with the real Wings.
_USER = (988, 988)
_MODE = 0o750
#: How old a measure of a folder may be.
_AGE_S = 10.0
#: How often folders may be moved while they are measured.
_MOVED = 1000
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Volumes:
    """Raises config.InvalidSetting for a user that there is not; each call errors.Invalid for what is no uuid."""

    def __init__(self, settings: config.Settings) -> None:
        chosen = settings.servers.directory
        self.base = Path(os.path.abspath(chosen)) if chosen else settings.directory / "servers"
        self.owner = owner(settings.servers.user)
        self._measured: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()
        self._walking: dict[str, threading.Lock] = {}

    def folder(self, uuid: str) -> Path:
        if not _UUID.fullmatch(uuid):
            raise errors.Invalid("That is no uuid of a server")
        return self.base / uuid

    def make(self, uuid: str) -> Path:
        """The folder, made where it is missing, with its owner. Raises OSError."""
        path = self.folder(uuid)
        if not self.base.is_dir():
            self.base.mkdir(mode=0o711, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=_MODE)
        descriptor = os.open(path, paths.FOLDER)
        try:
            self.give(descriptor)
        finally:
            os.close(descriptor)
        return path

    def open(self, uuid: str) -> int:
        """A descriptor of the folder, made where it is missing, to go on from with infra.paths and infra.linux.
        Raises OSError."""
        return os.open(self.make(uuid), paths.FOLDER)

    def give(self, descriptor: int) -> None:
        """What is open becomes the servers' user's. Raises OSError."""
        if self.owner is not None:
            there = os.fstat(descriptor)
            if (there.st_uid, there.st_gid) != self.owner:
                os.fchown(descriptor, *self.owner)

    def usage(self, uuid: str, age_s: float = _AGE_S) -> int:
        """Bytes in its files, at most `age_s` old; 0 where there is no folder. Who asks meanwhile waits for the same
        walk. Raises OSError."""
        path = self.folder(uuid)
        with self._lock:
            walking = self._walking.setdefault(uuid, threading.Lock())
        with walking:
            at, size = self._measured.get(uuid, (-age_s, 0))
            if time.monotonic() - at < age_s:
                return size
            try:
                descriptor = os.open(path, paths.FOLDER)
            except FileNotFoundError:
                return 0
            try:
                size = measure(descriptor)
            finally:
                os.close(descriptor)
            self._measured[uuid] = (time.monotonic(), size)
            return size

    def remove(self, uuid: str) -> None:
        """The folder and all that is in it; nothing where there is none. Raises OSError."""
        path = self.folder(uuid)
        self._measured.pop(uuid, None)
        try:
            base = os.open(self.base, paths.FOLDER & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            remove(base, os.fsencode(path.name))
        finally:
            os.close(base)


def owner(user: str) -> tuple[int, int] | None:
    """User and group by name or number, `user` or `user:group`; None for whoever runs us.

    Raises config.InvalidSetting.
    """
    if not user:
        return _USER if os.geteuid() == 0 else None
    name, _, group = user.partition(":")
    try:
        if name.isdecimal():
            uid, gid = int(name), int(name)
        else:
            known = pwd.getpwnam(name)
            uid, gid = known.pw_uid, known.pw_gid
        if group:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise config.InvalidSetting(f"servers.user: there is no such user or group, got {user!r}") from None
    return (uid, gid) if os.geteuid() == 0 else None


def measure(root: int) -> int:
    """The bytes of all files beneath a folder, one with several names counted once. What vanishes meanwhile does not
    count. Raises OSError where a folder cannot be read."""
    size, device = 0, os.fstat(root).st_dev
    seen: set[int] = set()
    for entry in _files(root):
        try:
            there = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(there.st_mode) and there.st_dev == device and there.st_ino not in seen:
            size += there.st_size
            if there.st_nlink > 1:
                seen.add(there.st_ino)
    return size


def _files(root: int) -> Iterator[os.DirEntry[str]]:
    """What is no folder, beneath a folder."""
    trail, waiting, moved = paths.Trail(root), [b""], 0
    try:
        while waiting:
            path = waiting.pop()
            try:
                folder = trail.enter(path)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                moved += 1
                if error.errno != errno.ESTALE or moved > _MOVED:
                    raise
                trail.close()  # somebody moved a folder above: from the root again, or it is gone
                trail = paths.Trail(root)
                waiting.append(path)
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        name = os.fsencode(entry.name)
                        waiting.append(path + b"/" + name if path else name)
                    else:
                        yield entry
    finally:
        trail.close()


def remove(folder: int, name: bytes) -> None:
    """A file, or a folder with all that is in it, of any depth; nothing where there is none. Raises OSError."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        _unlink(name, folder)
        return
    root = os.open(name, paths.FOLDER, dir_fd=folder)
    try:
        _empty(root)
    finally:
        os.close(root)
    _rmdir(name, folder)


def _empty(root: int) -> None:
    trail, waiting = paths.Trail(root), [b""]
    found: list[bytes] = []
    try:
        while waiting:
            path = waiting.pop()
            inner = trail.enter(path)
            for name in map(os.fsencode, os.listdir(inner)):
                if stat.S_ISDIR(os.stat(name, dir_fd=inner, follow_symlinks=False).st_mode):
                    paths.chmod(inner, name, 0o700)
                    waiting.append(path + b"/" + name if path else name)
                    found.append(waiting[-1])
                else:
                    _unlink(name, inner)
        for path in sorted(found, key=lambda path: path.count(b"/"), reverse=True):
            above, _, last = path.rpartition(b"/")
            _rmdir(last, trail.enter(above))
    finally:
        trail.close()


def _unlink(name: bytes, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _rmdir(name: bytes, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=folder)
