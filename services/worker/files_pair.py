"""The two folders of a sync: resolved beneath the roots, opened, told apart, locked."""

from __future__ import annotations

import contextlib
import fcntl
import os

from domain import errors
from domain.plans import patterns
from infra import paths

_BUSY = "Another sync is writing to the target"


class Pair:
    """Descriptors of both folders; `target` is None as long as it does not exist, and then `target_identity` is that
    of the deepest folder on the way to it."""

    def __init__(self, roots: paths.Roots, source: str, target: str) -> None:
        self.source_place, self.target_place = roots.place(source), roots.place(target)
        ours, theirs = paths.absolute(source), paths.absolute(target)
        shorter = min(len(ours), len(theirs))
        if ours[:shorter] == theirs[:shorter]:
            raise errors.Invalid("The source and the target lie in each other")
        self._locks: list[int] = []
        self.target: int | None = None
        self.source = self._open_source()
        try:
            self.target = self._open_target()
            self._tell_apart()
        except BaseException:
            self.close()
            raise
        self.device = os.fstat(self.source).st_dev

    def _open_source(self) -> int:
        try:
            return self.source_place.open()
        except FileNotFoundError:
            raise errors.SyncFailed("Source directory not found") from None
        except NotADirectoryError:
            raise errors.SyncFailed("The source is not a directory") from None
        except OSError as error:
            raise errors.SyncFailed(f"Source directory cannot be read: {error.strerror}") from None

    def _open_target(self) -> int | None:
        try:
            return self.target_place.open()
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise errors.SyncFailed("The target is not a directory") from None
        except OSError as error:
            raise errors.SyncFailed(f"Target directory cannot be opened: {error.strerror}") from None

    def _tell_apart(self) -> None:
        if self.target is not None:
            self.target_identity = paths.identity(self.target)
            together = paths.overlap(self.source, self.target)
        else:
            near = self._nearest()
            try:
                self.target_identity = paths.identity(near)
                together = paths.identity(self.source) in paths.above(near)
            finally:
                os.close(near)
        if together:
            raise errors.Invalid("The source and the target lie in each other")

    def _nearest(self) -> int:
        try:
            return paths.nearest(self.target_place)
        except OSError as error:
            raise errors.SyncFailed(f"Target directory cannot be made: {error.strerror}") from None

    def marked(self, marker: str) -> bool:
        """Whether the marker, a relative path, is in the source. Raises errors.Invalid for another kind of path."""
        *above, name = patterns.relative(marker)
        try:
            folder = paths.beneath(self.source, above)
        except (OSError, errors.Forbidden):
            return False
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return False
        finally:
            os.close(folder)
        return True

    def lock(self) -> None:
        """As `lock`, until `close`."""
        self._locks = lock(self.target_place)

    def make_target(self) -> int:
        """The target, made if need be; locked. Raises OSError, errors.Conflict when somebody else made it."""
        if self.target is None:
            self.target = paths.make(self.target_place)
            self._locks.append(os.dup(self.target))
            _flock(self._locks[-1], alone=True)
            if os.listdir(self.target):
                raise errors.Conflict("Somebody else made the target since it was looked at")
        return self.target

    def close(self) -> None:
        for descriptor in (*self._locks, self.source, self.target):
            if descriptor is not None:
                os.close(descriptor)
        self._locks, self.target = [], None


def lock(place: paths.Place) -> list[int]:
    """As long as these descriptors are open nobody else writes to a target, to a folder in it, or to one that it lies
    in. A target that is not there yet is locked once it is made. Raises errors.Conflict."""
    locks: list[int] = []
    try:
        current = place.open_root()
        locks.append(current)
        for index, part in enumerate((*place.parts, b"")):
            with contextlib.suppress(PermissionError):  # what we may not read, no sync of ours can write to
                descriptor = os.open(b".", paths.FOLDER, dir_fd=current)
                locks.append(descriptor)
                _flock(descriptor, alone=index == len(place.parts))
            if not part:
                break
            current = paths.beneath(current, (part,), paths.THROUGH)
            locks.append(current)
    except FileNotFoundError:
        pass
    except BaseException:
        for descriptor in locks:
            os.close(descriptor)
        raise
    return locks


def _flock(descriptor: int, *, alone: bool) -> None:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise errors.Conflict(_BUSY) from None
