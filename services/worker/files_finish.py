"""The last part of a plan, in its order and in one process: what goes to the trash, what takes the place of folders,
and at the very end the modes and times of folders."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial

from domain.plans.files import FINISHES, Action, Group, decode, frame, join
from infra import paths
from services.worker import files_copy as copying
from services.worker.files_context import Troubles
from services.worker.files_execute import FATAL, Executor, Site, settle, unlock
from services.worker.files_journal import FAILED, Journal, Put
from services.worker.files_trash import remove


class Finisher:
    def __init__(
        self, site: Site, deletions: Journal, replacements: Journal, troubles: Troubles, beat: Callable[[], bool]
    ) -> None:
        self._site, self._troubles, self._beat = site, troubles, beat
        self._deletions = deletions
        self._trail = paths.Trail(site.target)
        self._executor = Executor(site, replacements, replacements, beat)

    def clean(self, leftovers: list[bytes]) -> None:
        """Removes what a run that was killed left under temporary names."""
        for path in leftovers:
            above, _, name = path.rpartition(b"/")
            try:
                remove(self._trail.enter(above), name)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._troubles.add(path, error)

    def run(self) -> None:
        """Raises OSError when there is no use in going on."""
        try:
            for group in self._groups():
                if self._beat():
                    break
                self._group(group)
            self._executor.flush()
            for group in self._groups():
                if self._beat():
                    break
                if group.actions[-1].op == "settle":
                    self._settle(group.path, group.actions[-1])
        except copying.Stopped:
            pass

    def close(self) -> None:
        try:
            self._executor.close()
        finally:
            self._troubles.extend(self._executor.troubles.texts, self._executor.troubles.count)
            self._deletions.close()
            self._trail.close()

    def _groups(self) -> Iterator[Group]:
        at = 0
        while at < self._site.size:
            here = frame(self._site.plan, at)
            at = here.end
            if here.what & FINISHES:
                yield decode(self._site.plan, here)

    def _group(self, group: Group) -> None:
        deletions = [action for action in group.actions if action.op == "delete"]
        if deletions:
            self._delete(group.path, deletions)
        for action in group.actions:
            whole = join(group.path, action.name)
            if action.op == "blocked":
                self._trouble(whole, action.reason)
            elif action.op == "rmdir":
                self._guarded(whole, partial(self._rmdir, group.path, action.name))
            elif action.op == "replace":
                self._guarded(whole, partial(self._replace, group.path, action))

    def _guarded(self, path: bytes, do: Callable[[], None]) -> bool:
        try:
            try:
                do()
            except PermissionError:
                if not unlock(self._trail.enter(path.rpartition(b"/")[0])):
                    raise
                do()
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in FATAL:
                raise
            self._trouble(path, error)
            return False
        return True

    def _trouble(self, path: bytes, what: str | OSError) -> None:
        self._troubles.add(path, what)
        self._site.board.add("errors")
        self._site.board.add("processed")

    def _rmdir(self, path: bytes, name: bytes) -> None:
        os.rmdir(name, dir_fd=self._trail.enter(path))

    def _replace(self, path: bytes, action: Action) -> None:
        try:
            self._executor.put(path, action)
        except FileNotFoundError:
            raise OSError(errno.ESTALE, "it is no longer in the source") from None

    def _delete(self, path: bytes, actions: list[Action]) -> None:
        rows = [
            (path, Put(action.name, "delete", action.kind, 0, 0, 0, b"", 0, 0, conflict=action.conflict))
            for action in actions
        ]
        self._deletions.intent(rows)
        times = []
        for action in actions:
            whole = join(path, action.name)
            done = self._guarded(whole, partial(self._move, path, action))
            times.append(0 if done else FAILED)
            if done:
                self._site.board.add("deleted")
                self._site.board.add("processed")
        self._deletions.done(times)

    def _move(self, path: bytes, action: Action) -> None:
        folder = self._trail.enter(path)
        st = os.stat(action.name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(st.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a folder took the place of the file to be deleted")
        self._site.trash.move(folder, action.name, join(path, action.name))
        if action.conflict or (action.was is not None and (st.st_size, st.st_mtime_ns) != action.was[1:]):
            self._site.board.add("conflicts")

    def _settle(self, path: bytes, action: Action) -> None:
        try:
            try:
                settle(self._trail.enter(path), action)
            except PermissionError:  # a folder of ours that we may not open
                above, _, name = path.rpartition(b"/")
                folder = self._trail.enter(above)
                paths.chmod(folder, name, action.mode)
                times = (action.mtime_ns, action.mtime_ns)
                os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            pass  # it could not be made, which was told
        except OSError as error:
            self._trouble(path, error)
