"""A device's folder: scanned by signature, read when that has changed, written so that a file is old or new."""

from __future__ import annotations

import contextlib
import os
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import blake3

from domain.plans import library as rules
from domain.plans.device import Change, Local
from services.device.engine import Blocked, Changed
from services.device.state import Signature, SqliteState

OWN = ".undrift"
_PIECE = 1 << 20
#: A file that was changed so short a time ago may change again within the same tick of its clock.
_RACY_NS = 50_000_000


class Folder:
    """`services.device.engine.Tree` over a real folder. Links and special files are left alone, and so is `.undrift`.

    `note` hears of what is left out, with the reason.
    """

    def __init__(self, root: Path, state: SqliteState, name: str, note: Callable[[str, str], None]) -> None:
        self.root, self._state, self._name, self._note = root, state, name, note
        self._looked = state.looked()
        self.temporary = root / OWN / "tmp"
        self.temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.temporary.iterdir():
            left.unlink()

    # Looking.

    def scan(self) -> Mapping[str, Local]:
        found: dict[str, Local] = {}
        fresh: list[tuple[str, Signature, str]] = []
        for path, status in self._walk("", self.root):
            known = self._looked.get(path)
            signature = _signature(status)
            if known is not None and known[0] == signature:
                hash = known[1]
            else:
                entry = self._read(path)
                if entry is None:
                    continue
                hash, signature, status = entry
                if time.time_ns() - status.st_mtime_ns > _RACY_NS:
                    fresh.append((path, signature, hash))
            found[path] = _local(hash, status)
        gone = [path for path in self._looked if path not in found]
        self._state.look(fresh, gone)
        for path, signature, hash in fresh:
            self._looked[path] = (signature, hash)
        for path in gone:
            del self._looked[path]
        return found

    def _walk(self, prefix: str, folder: Path) -> Iterator[tuple[str, os.stat_result]]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            # What cannot be read must not be taken for gone.
            raise PermissionError(error.errno, error.strerror, str(folder)) from None
        for entry in entries:
            if not prefix and entry.name == OWN:
                continue
            path = unicodedata.normalize("NFC", prefix + entry.name)
            try:
                rules.check_path(path)
            except rules.BadPath as bad:
                self._note(prefix + entry.name, str(bad))
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(path + "/", Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False)
                else:
                    self._note(path, "links and special files are not synced")

    def look(self, path: str) -> Local | None:
        try:
            status = self._place(path).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        known = self._looked.get(path)
        if known is not None and known[0] == _signature(status):
            return _local(known[1], status)
        entry = self._read(path)
        return None if entry is None else _local(entry[0], entry[2])

    def _read(self, path: str) -> tuple[str, Signature, os.stat_result] | None:
        """Hash and status of a file that did not change while it was read."""
        while True:
            try:
                descriptor = os.open(self._place(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            with open(descriptor, "rb") as file:
                before = os.fstat(descriptor)
                hasher = blake3.blake3()
                while piece := file.read(_PIECE):
                    hasher.update(piece)
                after = os.fstat(descriptor)
            if _signature(before) == _signature(after):
                return hasher.hexdigest(), _signature(after), after

    def _place(self, path: str) -> Path:
        """Where a path of the library is here, as it is spelled here."""
        place = self.root / path
        if place.exists() or path.isascii():
            return place
        return _spelled(self.root, path)

    def open(self, path: str) -> int:
        """A descriptor to read from. Raises Changed when there is no file."""
        try:
            return os.open(self._place(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            raise Changed from None

    # Writing.

    def put(self, path: str, fetched: object, change: Change, expected: Local | None) -> None:
        assert isinstance(fetched, Path)
        target = self._place(path)
        self._make_room(target)
        if change.mtime is not None:
            at = round(change.mtime.timestamp() * 1e9)
            os.utime(fetched, ns=(at, at))
        if self.look(path) != expected:
            raise Changed
        fetched.replace(target)
        _sync(target.parent)

    def _make_room(self, target: Path) -> None:
        """The folders above a file. Raises Blocked with what stands in their place, or in the file's."""
        for folder in reversed(target.relative_to(self.root).parents):
            place = self.root / folder
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise Blocked(folder.as_posix())
            place.mkdir(exist_ok=True)
        if target.is_symlink() or target.is_dir():
            raise Blocked(target.relative_to(self.root).as_posix())

    def set_aside(self, path: str) -> None:
        place = self._place(path)
        today = datetime.now(UTC).date().isoformat()
        for number in range(1000):
            other = self.root / rules.conflict_name(path, self._name, today, number)
            if not os.path.lexists(other):
                place.rename(other)
                return

    def remove(self, path: str, expected: Local) -> None:
        if self.look(path) != expected:
            raise Changed
        place = self._place(path)
        place.unlink()
        for folder in place.parents:
            if folder == self.root:
                break
            try:
                folder.rmdir()
            except OSError:  # something else is in it
                break


def _spelled(root: Path, path: str) -> Path:
    """Names that are in another form of Unicode here."""
    place = root
    for name in path.split("/"):
        if not os.path.lexists(place / name) and place.is_dir():
            for other in os.listdir(place):
                if unicodedata.normalize("NFC", other) == name:
                    name = other
                    break
        place = place / name
    return place


def _signature(status: os.stat_result) -> Signature:
    return Signature(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


def _local(hash: str, status: os.stat_result) -> Local:
    at = datetime.fromtimestamp(status.st_mtime_ns // 1_000_000 / 1000, UTC)
    return Local(hash, status.st_size, at)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
