"""Undoing a folder sync by the plan that it carried out: what it made goes to the trash, what it put there comes back.

Everything is looked at as it is now: what is not as the sync left it has moved since, and is left alone. What is as it
was before the sync is undone already, so a run that was cut short, or a second one, does the rest or nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

import msgspec

from domain import errors, jobs
from domain.plans import files as plans
from domain.plans import reverts
from domain.plans.files import SELF, Action, Group, join, show
from infra import linux, paths
from infra.blobs import Blobs, Missing
from services.worker import child, connectors
from services.worker.files_copy import copy_entry
from services.worker.files_pair import lock
from services.worker.files_trash import Generation, Trash

_MOVED = "it has changed since"
_LOST = "what was there before is not in the trash"

Phase = Literal["take", "unmake", "make", "give"]
_PHASES: tuple[Phase, ...] = ("take", "unmake", "make", "give")


def run(told: child.Task, parent: child.Parent) -> child.Done:
    """`record` of the task is the folder of blobs.

    Raises errors.Forbidden (outside the roots), Conflict (somebody writes to that folder), SyncFailed (neither plan nor
    trash are there any more).
    """
    spec = msgspec.json.decode(told.spec, type=reverts.Spec)
    return connectors.drive(Revert(spec, told, parent), parent.stop_asked)


class Step(NamedTuple):
    """What to do about one name: take it away, give back what was there, set its time, make or remove a folder."""

    do: Literal["take", "give", "swap", "time", "make", "unmake"]
    action: Action


class Steps(NamedTuple):
    path: bytes
    steps: list[Step]


class Page(NamedTuple):
    phase: Phase
    group: Group
    percent: int


class Revert:
    def __init__(self, spec: reverts.Spec, told: child.Task, parent: child.Parent) -> None:
        assert spec.target_directory is not None
        self._spec, self._told, self._parent = spec, told, parent
        self._place = paths.Roots(told.roots).place(spec.target_directory)
        self._conflicts = reverts.Conflicts()
        self._counts = {"created": 0, "updated": 0, "deleted": 0}
        self._seen = 0
        self._ended = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._plan = self._read_plan()
            for descriptor in lock(self._place):
                stack.callback(os.close, descriptor)
            target = self._open_target()
            stack.callback(os.close, target)
            self._target = paths.Trail(target)
            stack.callback(self._target.close)
            elsewhere = Path(self._told.trash)
            self._kept = Generation(self._place, elsewhere, self._spec.job)
            stack.callback(self._kept.close)
            self._trash = Trash(self._place, elsewhere, self._told.job)
            stack.callback(self._trash.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _read_plan(self) -> bytes:
        try:
            return Blobs(Path(self._told.record)).read(self._spec.plan or "")
        except Missing:
            raise errors.SyncFailed("The plan of that job is not kept any more, so it cannot be undone") from None

    def _open_target(self) -> int:
        try:
            return self._place.open()
        except OSError as error:
            raise errors.SyncFailed(f"Target directory cannot be opened: {error.strerror}") from None

    # Observing.

    def observe(self) -> Iterator[Page]:
        """The plan's groups, once for each phase: what is in the way goes first."""
        if not self._kept and self._needs_trash():
            raise errors.SyncFailed("The trash of that job is gone, so what it deleted or replaced cannot be put back")
        for number, phase in enumerate(_PHASES):
            groups = list(self._groups())
            if phase == "unmake":
                groups.reverse()  # from the deepest folders up
            for index, group in enumerate(groups):
                yield Page(phase, group, 100 * (number * len(groups) + index) // (len(_PHASES) * len(groups)))
        self._ended = True

    def _groups(self) -> Iterator[Group]:
        at = 0
        while at < len(self._plan):
            here = plans.frame(self._plan, at)
            at = here.end
            if here.what:
                yield plans.decode(self._plan, here)

    def _needs_trash(self) -> bool:
        """Whether anything that only the trash could give back is missing."""
        for group in self._groups():
            for action in group.actions:
                if action.op == "delete" and self._stat(group.path, action.name) is None:
                    return True
        return False

    def _stat(self, path: bytes, name: bytes) -> os.stat_result | None:
        try:
            if name == SELF:
                path, _, name = path.rpartition(b"/")
            return os.stat(name or b".", dir_fd=self._target.enter(path), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise

    # Planning.

    def plan(self, page: Page) -> Steps:
        steps = [self._judge(page, action) for action in page.group.actions]
        return Steps(page.group.path, [step for step in steps if step is not None])

    def _judge(self, page: Page, action: Action) -> Step | None:
        path, phase = page.group.path, page.phase
        match action.op:
            case "create" | "update" | "replace" | "attributes" if phase == "take":
                return self._put(path, action)
            case "mkdir" if phase == "unmake":
                return Step("unmake", action) if action.was is None or self._kept.find(path) else None
            case "rmdir" | "replace" if phase == "make" and (action.op == "rmdir" or _was_folder(action)):
                return Step("make", action) if self._stat(path, action.name) is None else None
            case "delete" if phase == "give":
                return self._deleted(path, action)
            case "mkdir" if phase == "give" and action.was is not None:
                return self._deleted(path, action)
            case _:
                return None

    def _put(self, path: bytes, action: Action) -> Step | None:
        """What the sync put there is taken away, or what was there before takes its place."""
        there = self._stat(path, action.name)
        if there is None:
            return None if action.op in ("create", "replace") else self._leave(path, action, _MOVED)
        if not _is_as_left(there, action):
            before = action.was is not None and _is_as_before(there, action)
            return None if before or stat.S_ISDIR(there.st_mode) else self._leave(path, action, _MOVED)
        if action.op == "attributes":
            return Step("time", action) if action.was is not None and action.was[2] != action.mtime_ns else None
        if self._kept.find(join(path, action.name)) is not None:
            return Step("swap", action)
        return self._leave(path, action, _LOST) if action.op == "update" else Step("take", action)

    def _deleted(self, path: bytes, action: Action) -> Step | None:
        there = self._stat(path, action.name)
        if there is not None:
            return None if _is_as_before(there, action) else self._leave(path, action, "something else is there now")
        if self._kept.find(join(path, action.name)) is None:
            return self._leave(path, action, _LOST)
        return Step("give", action)

    def _leave(self, path: bytes, action: Action, reason: str) -> Step | None:
        """Nothing is done about it, and somebody is told why."""
        self._conflicts.add(show(join(path, action.name)) or ".", reason)
        return None

    # Applying.

    def apply(self, actions: Steps) -> None:
        for step in actions.steps:
            self._seen += 1
            try:
                self._do(actions.path, step)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._leave(actions.path, step.action, error.strerror or type(error).__name__)

    def _do(self, path: bytes, step: Step) -> None:
        action, whole = step.action, join(path, step.action.name)
        match step.do:
            case "take":
                self._trash.move(self._target.enter(path), action.name, whole)
                self._counts["deleted"] += 1
            case "give":
                above, _, name = whole.rpartition(b"/")
                self._give(self._folder(above), name, whole)
                self._counts["created"] += 1
            case "swap":
                self._trash.move(self._target.enter(path), action.name, whole)
                self._give(self._target.enter(path), action.name, whole)
                self._counts["updated"] += 1
            case "time":
                assert action.was is not None
                times = (action.was[2], action.was[2])
                os.utime(action.name, ns=times, dir_fd=self._target.enter(path), follow_symlinks=False)
                self._counts["updated"] += 1
            case "make":
                self._folder(whole)
            case "unmake":
                self._unmake(path)

    def _give(self, folder: int, name: bytes, whole: bytes) -> None:
        """Raises FileNotFoundError when the trash does not hold it, FileExistsError."""
        found = self._kept.find(whole)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, _LOST)
        try:
            linux.rename(found[1], name, found[0], folder, linux.RENAME_NOREPLACE)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS):
                raise
            copy_entry(found[0], found[1], folder, name)
            os.unlink(found[1], dir_fd=found[0])

    def _folder(self, path: bytes) -> int:
        """Made with its parents where it is not there."""
        try:
            return self._target.enter(path)
        except FileNotFoundError:
            above, _, name = path.rpartition(b"/")
            os.mkdir(name, 0o755, dir_fd=self._folder(above))
            return self._target.enter(path)

    def _unmake(self, path: bytes) -> None:
        """A folder that the sync made and that holds nothing any more; the target itself stays."""
        above, _, name = path.rpartition(b"/")
        if not name:
            return
        try:
            os.rmdir(name, dir_fd=self._target.enter(above))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def checkpoint(self, page: Page) -> None:
        self._parent.say(child.Report("reverting", page.percent, self._counters()))

    def _counters(self) -> jobs.Counters:
        return jobs.Counters(processed=self._seen, **self._counts)

    def result(self) -> child.Done:
        result = self._conflicts.result(sum(self._counts.values()))
        return child.Done(msgspec.json.encode(result), self._counters(), stopped=not self._ended)


def _is_as_left(there: os.stat_result, action: Action) -> bool:
    """Whether something is what the sync put there."""
    kind = _kind(there)
    if kind != action.kind or there.st_mtime_ns != action.mtime_ns:
        return False
    return kind != "file" or (there.st_size, stat.S_IMODE(there.st_mode)) == (action.size, action.mode)


def _is_as_before(there: os.stat_result, action: Action) -> bool:
    if action.was is None:
        return False
    kind, size, mtime_ns = action.was
    return _kind(there) == kind and there.st_mtime_ns == mtime_ns and (kind != "file" or there.st_size == size)


def _was_folder(action: Action) -> bool:
    return action.was is not None and action.was[0] == "dir"


def _kind(there: os.stat_result) -> plans.Kind:
    if stat.S_ISREG(there.st_mode):
        return "file"
    if stat.S_ISDIR(there.st_mode):
        return "dir"
    return "link" if stat.S_ISLNK(there.st_mode) else "other"
