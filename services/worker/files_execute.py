"""Carrying out the first part of a plan, by two processes: what is to be copied, linked, made or touched.

Each takes a stretch of the plan at a time. A new folder that lies in one stretch with all that is in it is built under
a temporary name and renamed once; one that goes on in the next stretch is made under its own name before that stretch
is given to anybody, and files are put into it one by one, as into folders that were there.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from domain.plans.files import COPIES, Action, Buffer, Frame, Group, decode, frame, join
from domain.plans.patterns import TEMPORARY
from infra import paths
from services.worker import files_copy as copying
from services.worker.files_batch import Batch, Finalizer, Item, Stage, Syncer
from services.worker.files_context import Board, Troubles
from services.worker.files_journal import Journal, Put
from services.worker.files_trash import Trash

FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_BATCH_FILES, _BATCH_FILES_MOST = 1024, 2048
_BATCH_BYTES, _BATCH_BYTES_MOST = 16 << 20, 64 << 20
_STRETCHES = 32
_STRETCH_MIN, _STRETCH_MAX = 32, 1024
_WEIGHT = 128 << 10


@dataclass
class Site:
    """What the processes of a job work on: the roots, where the plan lies, and what they share."""

    source: int
    target: int
    plan: Buffer
    size: int
    board: Board
    trash: Trash
    verify: bool
    actions: int
    bytes: int

    def sync(self) -> None:
        """Makes all that was done durable. Raises OSError."""
        Syncer(self.target).now()


@dataclass
class Stretch:
    """Groups that follow one another, and the new folders among them that later stretches go on with."""

    groups: list[Group]
    shared: list[tuple[bytes, Action]]


class Queue:
    """Hands out the plan in stretches."""

    def __init__(self, site: Site) -> None:
        self._site = site
        weight = (site.actions + site.bytes // _WEIGHT) // _STRETCHES
        self._limit = min(max(weight, _STRETCH_MIN), _STRETCH_MAX)

    def take(self, make: Callable[[bytes, Action], None]) -> list[Group]:
        """The next stretch, or nothing. `make` is called for the folders that must be there before anybody gets the
        stretch after it."""
        with self._site.board.queue() as heads:
            stretch, end = self._cut(int(heads[0]))
            for path, action in stretch.shared:
                make(path, action)
            heads[0] = end
        return stretch.groups

    def _cut(self, at: int) -> tuple[Stretch, int]:
        plan, size = self._site.plan, self._site.size
        groups: list[Group] = []
        made: dict[bytes, Action] = {}
        weight = 0
        while at < size:
            here: Frame = frame(plan, at)
            if weight >= self._limit and here.what & COPIES:
                break
            at = here.end
            if not here.what:
                continue
            group = decode(plan, here)
            groups.append(group)
            weight += len(group.actions) + sum(action.size for action in group.actions) // _WEIGHT
            first, last = group.actions[0], group.actions[-1]
            if first.op == "mkdir":
                made[group.path] = first
            if last.op == "settle":
                made.pop(group.path, None)
        return Stretch(groups, list(made.items())), at


class Executor:
    """One process's part."""

    def __init__(self, site: Site, journal: Journal, swaps: Journal, beat: Callable[[], bool]) -> None:
        self._site, self._beat = site, beat
        self._ours, self._theirs = paths.Trail(site.source), paths.Trail(site.target)
        self.troubles = Troubles()
        self.fatal: OSError | None = None
        self._syncer = Syncer(site.target)
        self._journals = (journal, swaps)
        self._finalizer = Finalizer(journal, swaps, site.trash, site.board, self.troubles)
        self._batch = Batch()
        self._flying: Batch | None = None
        self._stage: Stage | None = None
        self._shared: set[bytes] = set()
        self._token = secrets.token_hex(4).encode()
        self._names = 0
        self._most = _batch_files()
        self._enough = min(_BATCH_FILES, self._most)

    def run(self) -> None:
        """Works the queue off, or until a stop; what was written by then is put in its place."""
        queue = Queue(self._site)
        try:
            while not self._beat() and (groups := queue.take(self._share)):
                for group in groups:
                    self.group(group)
                self._leave_stage()
        except copying.Stopped:
            pass
        except OSError as error:
            if error.errno not in FATAL:
                raise
            self.fatal = error
            self._site.board.stop()
        self.close()

    def close(self) -> None:
        """Puts everything in its place that is not yet."""
        try:
            self._leave_stage()
            self.flush()
        finally:
            self._syncer.close()
            self._ours.close()
            self._theirs.close()
            for journal in self._journals:
                journal.close()
            for descriptor in self._batch.folders.values():
                os.close(descriptor)

    def group(self, group: Group) -> None:
        """Raises OSError only when there is no use in going on, and Stopped."""
        for action in group.actions:
            if self._beat():
                raise copying.Stopped
            try:
                try:
                    self._action(group.path, action)
                except PermissionError:
                    if not unlock(self._enter(group.path)):
                        raise
                    self._action(group.path, action)
            except OSError as error:
                if error.errno in FATAL:
                    raise
                self._trouble(join(group.path, action.name), error)

    def _action(self, path: bytes, action: Action) -> None:
        match action.op:
            case "mkdir":
                self._mkdir(path, action)
            case "create" | "update":
                self.put(path, action)
            case "attributes":
                folder = self._enter(path)
                self._add(Item(path, self._batch.folder(path, folder), action, None), _put(action, 0o777))
            case "settle" if self._stage is not None and _within(path, self._stage.path):
                settle(self._theirs.enter(path), action)
            case _:  # comes when all is copied
                pass

    def _trouble(self, path: bytes, what: OSError) -> None:
        self.troubles.add(path, what)
        self._site.board.add("errors")
        self._site.board.add("processed")

    # Folders.

    def _enter(self, path: bytes) -> int:
        if self._stage is not None and not _within(path, self._stage.path):
            self._leave_stage()
        return self._theirs.enter(path)

    def _share(self, path: bytes, action: Action) -> None:
        """A folder that both processes may have to put something into, made under its own name."""
        self._shared.add(path)
        if not path:
            return
        above, _, name = path.rpartition(b"/")
        try:
            folder = self._enter(above)
            if action.was is None:
                os.mkdir(name, action.mode | 0o700, dir_fd=folder)
                return
            temporary = self._temporary()
            os.mkdir(temporary, action.mode | 0o700, dir_fd=folder)
            self._finalizer.swap(Stage(path, folder, temporary, action))
        except FileExistsError:
            pass  # a run before this one made it
        except OSError as error:
            if error.errno in FATAL:
                raise
            self._trouble(path, error)

    def _mkdir(self, path: bytes, action: Action) -> None:
        if not path or path in self._shared:
            self._shared.discard(path)
            return
        above, _, name = path.rpartition(b"/")
        folder = self._enter(above)
        if self._stage is not None:
            os.mkdir(name, action.mode | 0o700, dir_fd=folder)
            return
        temporary = self._temporary()
        os.mkdir(temporary, action.mode | 0o700, dir_fd=folder)
        self._stage = Stage(path, os.dup(folder), temporary, action)
        self._theirs.alias[path] = temporary

    def _leave_stage(self) -> None:
        if self._stage is not None:
            del self._theirs.alias[self._stage.path]
            self._batch.entries.append(self._stage)
            self._stage = None

    # Files and links.

    def put(self, path: bytes, action: Action) -> None:
        """Writes a file or link, to be put in its place with its batch. Raises OSError, Stopped."""
        folder = self._enter(path)
        item = Item(path, self._batch.folder(path, folder), action, self._stage)
        if self._stage is None:
            item.temporary = self._temporary()
        if action.kind == "link":
            os.symlink(action.link, item.name, dir_fd=folder)
            os.utime(item.name, ns=(action.mtime_ns, action.mtime_ns), dir_fd=folder, follow_symlinks=False)
            self._add(item, _put(action, 0o777))
            return
        try:
            self._add(item, self._file(item, folder, self._ours.enter(path)))
        except BaseException:
            if item.put is None:  # it is not in the batch
                self._undo(item, folder)
            raise

    def _file(self, item: Item, folder: int, ours: int) -> Put:
        """Copies; what was listed as small and has not changed since by one read, everything else with care."""
        action, verify = item.action, self._site.verify
        if action.size < copying.SMALL:
            read = copying.small(ours, action.name, action.size, action.mtime_ns)
            if read is not None:
                item.fd = copying.open_new(folder, item.name, action.mode)
                copying.write(item.fd, read[1], verify)
                self._batch.untold += action.size
                return _describe(item, read[0])
        source = copying.open_source(ours, action.name)
        try:
            item.fd = copying.open_new(folder, item.name, action.mode)
            return _describe(item, copying.contents(source, item.fd, self._moved, verify))
        finally:
            os.close(source)

    def _moved(self, count: int) -> bool:
        """Whether to stop."""
        self._site.board.add("bytes", count)
        return self._beat()

    def _undo(self, item: Item, folder: int) -> None:
        if item.fd >= 0:
            os.close(item.fd)
            os.unlink(item.name, dir_fd=folder)

    def _temporary(self) -> bytes:
        self._names += 1
        return b"%s%s-%x" % (TEMPORARY, self._token, self._names)

    # Batches.

    def _add(self, item: Item, put: Put) -> None:
        item.put = put
        batch = self._batch
        batch.entries.append(item)
        batch.files += 1
        batch.bytes += put.moved
        enough = batch.files >= self._enough or batch.bytes >= _BATCH_BYTES
        most = batch.files >= self._most or batch.bytes >= _BATCH_BYTES_MOST
        if most or (enough and self._syncer.idle):  # while one batch is synced, the next grows
            self._submit()

    def _submit(self) -> None:
        """Has this batch made durable; meanwhile the one before is put in its place."""
        if not self._batch.entries:
            return
        batch, self._batch = self._batch, Batch()
        self._site.board.add("bytes", batch.untold)
        before, failed = self._flying, self._synced()
        self._syncer.begin()
        self._flying = batch
        if before is not None:
            self._finalizer.finalize(before, failed)

    def _synced(self) -> OSError | None:
        """Why the batch that was to be made durable is not; nothing is on its way any more."""
        if self._flying is None:
            return None
        self._flying = None
        return self._syncer.end()

    def flush(self) -> None:
        """All that was written is in its place when this returns."""
        self._submit()
        before, failed = self._flying, self._synced()
        if before is not None:
            self._finalizer.finalize(before, failed)


def _describe(item: Item, st: os.stat_result) -> Put:
    """Gives a file that was written its mode and the source's time; returns what the journal will say: the inode that
    is about to get the name."""
    action, mode = item.action, item.action.mode
    if mode & 0o7000:
        os.fchmod(item.fd, mode)
    os.utime(item.fd, ns=(st.st_atime_ns, st.st_mtime_ns))
    new = os.fstat(item.fd)
    if new.st_mode & 0o7777 != mode:  # a default ACL, or bits that a write clears
        os.fchmod(item.fd, mode)
        new = os.fstat(item.fd)
    facts = (st.st_size, st.st_mtime_ns, mode, action.link, new.st_ino, new.st_ctime_ns, st.st_ino, st.st_ctime_ns)
    return Put(action.name, action.op, action.kind, *facts, st.st_size, action.conflict)


def _put(action: Action, mode: int) -> Put:
    bits = 0o777 if action.kind == "link" else mode if action.op != "attributes" else action.mode
    times = (action.size, action.mtime_ns, bits, action.link, 0, 0)
    return Put(action.name, action.op, action.kind, *times, conflict=action.conflict)


def _within(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder + b"/")


def settle(folder: int, action: Action) -> None:
    """The mode and time of a folder. Raises OSError."""
    st = os.fstat(folder)
    if st.st_mode & 0o7777 != action.mode:
        os.fchmod(folder, action.mode)
    if st.st_mtime_ns != action.mtime_ns:
        os.utime(folder, ns=(st.st_atime_ns, action.mtime_ns))


def unlock(folder: int) -> bool:
    """Lets us write to a folder of ours whose mode does not, until it is settled; whether that helped."""
    st = os.fstat(folder)
    if st.st_uid != os.geteuid() or st.st_mode & 0o300 == 0o300:
        return False
    os.fchmod(folder, st.st_mode & 0o7777 | 0o700)
    return True


def _batch_files() -> int:
    """How many files a batch may hold open: two batches, their folders, and room for the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8 * _BATCH_FILES_MOST + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return _BATCH_FILES_MOST if soft == resource.RLIM_INFINITY else max(min(_BATCH_FILES_MOST, (soft - 256) // 8), 8)
