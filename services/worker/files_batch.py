"""Batches: what was written under temporary names is made durable together, and only then gets its name.

A rename before the file is on disk can leave an empty file after a power cut, and an fsync for each small file costs
more than copying it. So files are written in batches, one syncfs() makes a whole batch durable while the next is being
written, and then the batch is put in its place; the slower the disk, the larger the batches. On filesystems whose
syncfs() is no promise each file gets its fsync. The final syncfs() of the job makes the renames durable. Written pages
leave the cache once they are on disk: whoever compares the copy later reads the disk, a large sync does not drive out
what others use, and the next files find memory that is warm.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from queue import SimpleQueue

from domain.plans.files import Action, join
from infra import linux, paths
from services.worker.files_context import Board, Troubles
from services.worker.files_journal import FAILED, Journal, Put
from services.worker.files_trash import Trash, remove

_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Stage:
    """A new folder that is built under a temporary name and renamed when all that is in it is there."""

    __slots__ = ("action", "name", "parent", "path", "rows", "temporary")

    def __init__(self, path: bytes, parent: int, temporary: bytes, action: Action) -> None:
        self.path, self.parent, self.temporary, self.action = path, parent, temporary, action
        self.name = path.rpartition(b"/")[2]
        self.rows: list[tuple[bytes, Put]] = []


class Item:
    """Something written that waits to be put in its place; `temporary` is its name until then, or None in a stage or
    for what is changed in place."""

    __slots__ = ("action", "failure", "fd", "folder", "path", "put", "stage", "temporary")

    def __init__(self, path: bytes, folder: int, action: Action, stage: Stage | None) -> None:
        self.path, self.folder, self.action, self.stage = path, folder, action, stage
        self.temporary: bytes | None = None
        self.fd = -1
        self.failure: str | None = None
        self.put: Put | None = None

    @property
    def name(self) -> bytes:
        """Its name on disk for now."""
        return self.temporary if self.temporary is not None else self.action.name


class Batch:
    """`bytes` were written for it, of which `untold` are not yet in the counters."""

    def __init__(self) -> None:
        self.entries: list[Item | Stage] = []
        self.folders: dict[bytes, int] = {}
        self.files = 0
        self.bytes = 0
        self.untold = 0

    def folder(self, path: bytes, descriptor: int) -> int:
        """A descriptor of a folder that lasts as long as the batch."""
        kept = self.folders.get(path)
        if kept is None:
            kept = self.folders[path] = os.dup(descriptor)
        return kept


class Syncer:
    """Runs syncfs beside the process's own work, one at a time."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.covers = linux.syncfs_covers(target)
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._said: SimpleQueue[OSError | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether no sync was begun, or the one that was has come to its end."""
        return not self._busy or not self._said.empty()

    def begin(self) -> None:
        self._busy = True
        if not self.covers:
            self._said.put(OSError(errno.EOPNOTSUPP, "syncfs"))
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        self._wanted.put(True)

    def end(self) -> OSError | None:
        """Waits for the sync that was begun."""
        said = self._said.get()
        self._busy = False
        return said

    def now(self) -> None:
        """Makes everything durable. Raises OSError."""
        if self.covers:
            linux.syncfs(self._target)
        else:
            os.sync()

    def close(self) -> None:
        if self._thread is not None:
            self._wanted.put(False)
            self._thread.join()
            self._thread = None

    def _serve(self) -> None:
        while self._wanted.get():
            try:
                linux.syncfs(self._target)
            except OSError as error:
                self._said.put(error)
            else:
                self._said.put(None)


class Finalizer:
    """Puts a batch that was written in its place."""

    def __init__(self, journal: Journal, swaps: Journal, trash: Trash, board: Board, troubles: Troubles) -> None:
        self._journal, self._swaps = journal, swaps
        self._trash, self._board, self._troubles = trash, board, troubles

    def finalize(self, batch: Batch, failed: OSError | None) -> None:
        """`failed` is why syncfs could not vouch for the batch; then each file is asked. What is on disk leaves the
        cache."""
        items = [entry for entry in batch.entries if isinstance(entry, Item)]
        for item in items:
            if item.fd < 0:
                self._describe(item)
            elif failed is not None:
                try:
                    os.fsync(item.fd)
                except OSError as error:
                    item.failure = error.strerror
            if item.failure is None and item.stage is not None and item.put is not None:
                item.stage.rows.append((item.path, item.put))
        self._publish(batch)
        for item in items:
            if item.fd >= 0:
                os.posix_fadvise(item.fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(item.fd)
        for descriptor in batch.folders.values():
            os.close(descriptor)

    def _describe(self, item: Item) -> None:
        """What the journal will say of a link, and of what is changed in place."""
        put = item.put
        assert put is not None
        try:
            st = os.stat(item.name, dir_fd=item.folder, follow_symlinks=False)
        except OSError as error:
            item.failure = error.strerror
            return
        put.inode, put.changed_ns = st.st_ino, st.st_ctime_ns
        if item.action.op == "attributes":
            put.size = st.st_size

    # Into its place.

    def _publish(self, batch: Batch) -> None:
        rows: list[tuple[bytes, Put]] = []
        for entry in batch.entries:
            if isinstance(entry, Stage):
                rows += entry.rows
            elif entry.stage is None and entry.failure is None and entry.put is not None:
                rows.append((entry.path, entry.put))
        if rows:
            self._journal.intent(rows)
        times: list[int] = []
        for entry in batch.entries:
            if isinstance(entry, Stage):
                times += self._stage(entry)
            elif entry.failure is not None:
                self._failed(entry)
            elif entry.stage is None:
                times.append(self._item(entry))
        if rows:
            self._journal.done(times)

    def _failed(self, item: Item) -> None:
        self._trouble(join(item.path, item.action.name), item.failure or "")
        if item.temporary is not None or (item.stage is not None and item.action.op != "attributes"):
            try:
                os.unlink(item.name, dir_fd=item.folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._troubles.add(join(item.path, item.name), error)

    def _trouble(self, path: bytes, what: str | OSError) -> None:
        self._troubles.add(path, what)
        self._board.add("errors")
        self._board.add("processed")

    def _stage(self, stage: Stage) -> list[int]:
        action = stage.action
        try:
            if action.was is not None:
                self.swap(stage)
            else:
                rename_new(stage.temporary, stage.name, stage.parent)
        except OSError as error:
            self._trouble(stage.path, error)
            for _ in stage.rows[1:]:
                self._board.add("errors")
                self._board.add("processed")
            try:
                remove(stage.parent, stage.temporary)
            except OSError as left:
                self._troubles.add(stage.path, left)
            return [FAILED] * len(stage.rows)
        finally:
            os.close(stage.parent)
        self._board.add("created", len(stage.rows))
        self._board.add("processed", len(stage.rows))
        return [put.changed_ns for _, put in stage.rows]

    def swap(self, stage: Stage) -> None:
        """Puts a folder in the place of a file or link, and notes that apart: it is not in the order of what is copied.
        Raises OSError."""
        action = stage.action
        put = Put(stage.name, "update", "dir", 0, action.mtime_ns, action.mode, b"", 0, 0, conflict=action.conflict)
        self._swaps.intent([(stage.path.rpartition(b"/")[0], put)])
        time = FAILED
        try:
            if action.conflict:
                self._save(stage.parent, stage.name, stage.path)
            exchange(stage.temporary, stage.name, stage.parent)
            time = put.changed_ns
        finally:
            self._swaps.done([time])
        self._board.add("updated")
        self._board.add("processed")

    def _item(self, item: Item) -> int:
        """Puts it in its place; returns its change time there."""
        action, put = item.action, item.put
        assert put is not None
        try:
            if action.op == "attributes":
                attributes(item.folder, action)
            elif action.op == "replace":
                exchange(item.name, action.name, item.folder)
            else:
                self._rename(item, put)
            st = os.stat(action.name, dir_fd=item.folder, follow_symlinks=False)
        except OSError as error:
            item.failure = error.strerror or type(error).__name__
            self._failed(item)
            return FAILED
        self._count(put)
        return st.st_ctime_ns

    def _rename(self, item: Item, put: Put) -> None:
        action, whole = item.action, join(item.path, item.action.name)
        if action.op == "create":
            try:
                rename_new(item.name, action.name, item.folder)
            except FileExistsError:  # somebody made it since the scan
                put.conflict = True
                self._save(item.folder, action.name, whole)
                os.rename(item.name, action.name, src_dir_fd=item.folder, dst_dir_fd=item.folder)
            return
        put.conflict = action.conflict or _moved_on(item.folder, action)
        if put.conflict:
            self._save(item.folder, action.name, whole)
        os.rename(item.name, action.name, src_dir_fd=item.folder, dst_dir_fd=item.folder)

    def _save(self, folder: int, name: bytes, path: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._trash.save(folder, name, path)
            self._board.add("conflicts")

    def _count(self, put: Put) -> None:
        self._board.add("updated" if put.op in ("update", "attributes") else "created")
        self._board.add("processed")


def _moved_on(folder: int, action: Action) -> bool:
    """Whether the target is no longer what the plan was made for."""
    try:
        st = os.stat(action.name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return action.was is not None and (st.st_size, st.st_mtime_ns) != action.was[1:]


def attributes(folder: int, action: Action) -> None:
    """Mode and time of a file or link, in place."""
    if action.kind == "file":
        paths.chmod(folder, action.name, action.mode)
    os.utime(action.name, ns=(action.mtime_ns, action.mtime_ns), dir_fd=folder, follow_symlinks=False)


def rename_new(name: bytes, new: bytes, folder: int) -> None:
    """Raises FileExistsError rather than replacing anything."""
    try:
        linux.rename(name, new, folder, folder, linux.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        try:
            os.stat(new, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(name, new, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None


def exchange(name: bytes, new: bytes, folder: int) -> None:
    """Puts something in the place of something of another kind, without a moment in which there is nothing where the
    filesystem can do that, and removes the old, which must not be a folder with anything in it."""
    try:
        linux.rename(name, new, folder, folder, linux.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (*_UNSUPPORTED, errno.ENOENT):
            raise
        _discard(new, folder)
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=folder)
        return
    try:
        _discard(name, folder)
    except OSError:
        linux.rename(name, new, folder, folder, linux.RENAME_EXCHANGE)
        raise


def _discard(name: bytes, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        os.rmdir(name, dir_fd=folder)
