"""Scanning a tree into a listing: folder by folder, by descriptors, never through a symlink."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from typing import BinaryIO

from msgspec import Struct

from domain import errors
from domain.plans.files import SELF, join, show
from domain.plans.patterns import OWN_FOLDER, TEMPORARY, Scope
from infra import paths
from infra.linux import Stats
from services.worker.files_context import Troubles
from services.worker.files_listing import HEADER, HIDDEN, UNREADABLE

MAX_PATH = 65_536
"""Bytes of a relative path; what lies deeper is reported and left alone."""

_ENCODING = sys.getfilesystemencoding()
_PLAIN = 0xFC00  # the type, set-user-id and set-group-id
_FOLDERS_PER_BEAT = 64
_TRIES = 10


class Scanned(Struct):
    """What a scan saw. `leftovers` are temporary files and folders of an earlier run that was killed."""

    files: int = 0
    error_count: int = 0
    errors: list[str] = []
    notes: list[str] = []
    leftovers: list[bytes] = []

    def add(self, other: Scanned) -> None:
        """What another process saw of the same tree."""
        self.files += other.files
        self.error_count += other.error_count
        self.errors += other.errors
        self.notes += other.notes
        self.leftovers += other.leftovers


class Scan:
    """Writes the frames of one tree. `avoid` is the identity of the other root, which must not turn up inside.

    In the source, set-user-id and set-group-id are left out where the owner is not us: the copy would be ours, and
    would lend our rights to whoever runs it.
    """

    def __init__(
        self,
        root: int,
        out: BinaryIO,
        scope: Scope,
        *,
        source: bool,
        avoid: tuple[int, int] | None,
        beat: Callable[[], bool],
    ) -> None:
        self._trail = paths.Trail(root)
        self._out, self._scope, self._source, self._avoid, self._beat = out, scope, source, avoid, beat
        self._stats = Stats()
        self._troubles = Troubles()
        self._owner = (os.geteuid(), os.getegid())
        self._count = 0
        self.seen = Scanned()

    def run(self) -> Scanned:
        """All of the tree, or what was scanned when a stop was asked for."""
        for path in self.top():
            if not self.tree(path):
                break
        return self.end()

    def top(self) -> list[bytes]:
        """Scans the root itself; returns the paths of the folders in it. Raises OSError."""
        return self._one(b"")

    def tree(self, path: bytes) -> bool:
        """Scans a folder and all that is in it; False when a stop was asked for."""
        waiting = [path]
        while waiting:
            waiting.extend(reversed(self._one(waiting.pop())))
            self._count += 1
            if self._count % _FOLDERS_PER_BEAT == 0 and self._beat():
                return False
        return True

    def end(self) -> Scanned:
        self._trail.close()
        self.seen.errors, self.seen.error_count = self._troubles.texts, self._troubles.count
        return self.seen

    def _one(self, path: bytes) -> list[bytes]:
        try:
            folder = self._trail.enter(path)
            names = os.listdir(folder)
        except OSError as error:
            self._unreadable(path, error)
            return []
        return self._folder(path, folder, names)

    def _unreadable(self, path: bytes, error: OSError) -> None:
        if not path:
            raise error
        self._troubles.add(path, error)
        self._out.write(HEADER.pack(UNREADABLE, len(path), 0, 0, 0, 0) + path)

    def _folder(self, path: bytes, folder: int, listed: list[str]) -> list[bytes]:
        """Writes a folder's frame; returns the paths of the folders in it."""
        blob = "/".join(listed).encode(_ENCODING, "surrogateescape")
        names = blob.split(b"/") if listed else []
        flags = 0
        if OWN_FOLDER in blob or not self._scope.whole:
            names, flags = self._visible(path, names)
        if not path:
            names.append(SELF)
        names.sort()
        inner: list[bytes] = []
        links: list[bytes] = []
        kept: list[bytes] = []
        columns: list[list[bytes]] = []
        for start in range(0, len(names), Stats.ROWS):
            part = self._read(path, folder, names[start : start + Stats.ROWS])
            self._special(path, folder, part, inner, links)
            columns.append(self._stats.columns(len(part)))
            kept += part
        files = len(kept) - len(inner) - (not path)
        self.seen.files += files
        joined, targets = b"/".join(kept), b"\0".join(links)
        head = HEADER.pack(flags, len(path), len(joined), len(targets), len(kept), files)
        rest = columns[0] if len(columns) == 1 else [b"".join(column) for column in zip(*columns, strict=True)]
        self._out.write(b"".join((head, path, joined, targets, *rest)))
        return inner

    def _visible(self, path: bytes, names: list[bytes]) -> tuple[list[bytes], int]:
        temporary = [name for name in names if name.startswith(TEMPORARY)]
        self.seen.leftovers += [join(path, name) for name in temporary]
        seen = self._scope.visible(path, names)
        return seen, HIDDEN if len(seen) + len(temporary) < len(names) else 0

    def _read(self, path: bytes, folder: int, names: list[bytes]) -> list[bytes]:
        """Fills the buffer; returns the names that are still there and could be read."""
        tries = 0
        while failed := set(self._stats.read(folder, names)):
            tries += 1
            for name in tuple(failed):
                try:
                    os.stat(name, dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    pass  # deleted since the folder was listed
                except OSError as error:
                    self._troubles.add(join(path, name), error)
                else:  # it is there again
                    if tries < _TRIES:
                        failed.discard(name)
            names = [name for name in names if name not in failed]
        return names

    def _special(self, path: bytes, folder: int, names: list[bytes], inner: list[bytes], links: list[bytes]) -> None:
        """What is no plain file: folders are remembered, links read, the rest told once."""
        modes = self._stats.modes
        listed = modes[: len(names)].tolist()
        if listed and listed.count(listed[0]) == len(listed) and listed[0] & _PLAIN == stat.S_IFREG:
            return  # nothing but plain files of one mode, as in most folders
        for row, mode in enumerate(listed):
            if mode & _PLAIN == stat.S_IFREG:
                continue
            if stat.S_ISDIR(mode):
                self._inner(path, names[row], row, inner)
            elif stat.S_ISLNK(mode):
                try:
                    links.append(os.readlink(names[row], dir_fd=folder))
                except OSError as error:
                    links.append(b"")
                    self._troubles.add(join(path, names[row]), error)
                modes[row] = stat.S_IFLNK | 0o777
            elif stat.S_ISREG(mode):
                modes[row] = self._own(row, mode)
            else:
                self._stats.sizes[row] = 0
                if self._source:
                    self._note(join(path, names[row]), mode)

    def _inner(self, path: bytes, name: bytes, row: int, inner: list[bytes]) -> None:
        stats = self._stats
        if name != SELF:
            if self._avoid is not None and (stats.device(row), stats.inodes[row]) == self._avoid:
                raise errors.Invalid("The source and the target lie in each other")
            whole = join(path, name)
            if len(whole) > MAX_PATH:
                self._troubles.add(whole, "the path is too long")
            else:
                inner.append(whole)
        # What a filesystem says of a folder's size, inode and change time is nothing to compare.
        for column in (stats.sizes, stats.inodes, *stats.ctimes):
            column[row] = 0

    def _own(self, row: int, mode: int) -> int:
        if self._source:
            user, group = self._stats.users[row], self._stats.groups[row]
            if user != self._owner[0]:
                mode &= ~stat.S_ISUID
            if group != self._owner[1]:
                mode &= ~stat.S_ISGID
        return mode

    def _note(self, path: bytes, mode: int) -> None:
        what = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(mode), "a device")
        if len(self.seen.notes) < 100:
            self.seen.notes.append(f"skipped {what}: {show(path)}")
