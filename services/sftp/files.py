"""What a session does to files, each call in a thread: who may do it, whether the file is denied, what it takes."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence

from asyncssh import SFTPAttrs, SFTPName

from infra import linux, paths
from services.sftp.attributes import attributes, times
from services.sftp.opened import File, How, Listing
from services.sftp.quota import Quota
from services.sftp.rooms import Session
from services.sftp.tree import Parts, Tree, forbidden, gone, parts, reopen

#: Files and folders open at once, names looked at below a folder that is to be renamed, and how often a file is opened
#: anew that comes and goes.
_MOST_OPEN, _MOST_LOOKED_AT, _TRIES = 128, 100_000, 16
_UNKNOWN_FLAG = (errno.EINVAL, errno.ENOSYS)
_READ, _CONTENT, _CREATE, _UPDATE, _DELETE = (
    "file.read",
    "file.read-content",
    "file.create",
    "file.update",
    "file.delete",
)


class Files:
    """Of one session. Everything blocks, and raises OSError."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._opened: set[File | Listing] = set()
        self._lock = threading.Lock()

    @property
    def _tree(self) -> Tree:
        return self._session.room.files()[0]

    @property
    def _quota(self) -> Quota:
        return self._session.room.files()[1]

    def _admit(self, path: bytes, is_folder: bool = False) -> None:
        """Raises PermissionError for a file that nobody may touch."""
        if self._session.room.denied()(path, is_folder):
            raise forbidden()

    def _note(self, event: str, *files: bytes | tuple[bytes, bytes]) -> None:
        shown = [(_shown(file[0]), _shown(file[1])) if isinstance(file, tuple) else _shown(file) for file in files]
        self._session.note(f"server:sftp.{event}", *shown)

    # What is open.

    def _keep(self, one: File | Listing) -> None:
        with self._lock:
            if len(self._opened) < _MOST_OPEN and not self._session.is_cut:
                self._opened.add(one)
                return
        one.close()
        raise OSError(errno.EMFILE, "Too many files are open in this session")

    def close(self, one: File | Listing) -> None:
        with self._lock:
            self._opened.discard(one)
        one.close()

    def close_all(self) -> None:
        with self._lock:
            opened, self._opened = list(self._opened), set()
        for one in opened:
            one.close()

    # Files.

    def open(self, path: bytes, how: How, mode: int | None) -> File:
        self._session.check()
        wanted = parts(path)
        for _ in range(_TRIES):
            try:
                with self._tree.handle(wanted) as handle:
                    made = self._open_there(handle, how)
            except FileNotFoundError:
                if not how.creates:
                    self._session.need(_UPDATE if how.changes else _CONTENT)
                    raise
                try:
                    made = self._make(wanted, how, mode)
                except FileExistsError:
                    if how.is_new or self._is_name(wanted):
                        raise
                    continue  # somebody made it in between
            self._keep(made)
            if how.changes:
                self._note("create" if made.is_made else "write", b"/" + made.path)
            return made
        raise gone()

    def _open_there(self, handle: int, how: How) -> File:
        if how.changes:
            self._session.need(_UPDATE)
        if how.reads:
            self._session.need(_CONTENT)
        if how.creates and how.is_new:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        path = self._tree.where(handle)
        self._admit(path)
        file = File(reopen(handle, how.flags), path, how, self._quota, is_made=False)
        if how.truncates:
            try:
                self._quota.truncate(file.descriptor, 0)
            except BaseException:
                file.close()
                raise
        return file

    def _make(self, wanted: Parts, how: How, mode: int | None) -> File:
        self._session.need(_CREATE)
        with self._tree.parent(wanted) as (folder, name):
            path = self._tree.inside(folder, name)
            self._admit(path)
            flags = how.flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o644 if mode is None else mode & 0o777, dir_fd=folder)
        self._session.room.volumes.give(descriptor)
        return File(descriptor, path, how, self._quota, is_made=True)

    def _is_name(self, wanted: Parts) -> bool:
        """Whether a name is there that leads nowhere, such as a link to what is outside."""
        with self._tree.parent(wanted) as (folder, name):
            try:
                return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            except FileNotFoundError:
                return False

    def read(self, file: File, offset: int, size: int) -> bytes:
        self._session.need(_CONTENT)
        self._admit(file.path)
        with file.using() as descriptor:
            found = os.pread(descriptor, size, _offset(offset, size))
        self._session.read += len(found)
        return found

    def write(self, file: File, offset: int, data: bytes) -> int:
        self._session.need(_CREATE if file.is_made else _UPDATE)
        self._admit(file.path)
        with file.using() as descriptor:
            self._session.written += len(data)
            return self._quota.write(descriptor, _offset(offset, len(data)), data, append=file.how.appends)

    def fsync(self, file: File) -> None:
        self._session.check()
        with file.using() as descriptor:
            os.fsync(descriptor)

    def fstat(self, file: File) -> SFTPAttrs:
        self._session.check()
        with file.using() as descriptor:
            return attributes(os.fstat(descriptor))

    def fsetstat(self, file: File, attrs: SFTPAttrs) -> None:
        self._session.need(_CREATE if file.is_made else _UPDATE)
        self._admit(file.path)
        with file.using() as descriptor:
            if attrs.size is not None:
                if not file.how.writes:
                    raise forbidden()
                self._quota.truncate(descriptor, _offset(attrs.size, 0))
            _set(descriptor, attrs)

    # Names.

    def stat(self, path: bytes) -> SFTPAttrs:
        self._session.need(_READ)
        with self._tree.handle(parts(path)) as handle:
            return attributes(os.fstat(handle))

    def lstat(self, path: bytes) -> SFTPAttrs:
        self._session.need(_READ)
        wanted = parts(path)
        if not wanted:
            return self.stat(path)
        with self._tree.parent(wanted) as (folder, name):
            return attributes(os.stat(name, dir_fd=folder, follow_symlinks=False))

    def setstat(self, path: bytes, attrs: SFTPAttrs) -> None:
        """Of what a link points to."""
        self._session.need(_UPDATE)
        with self._tree.handle(parts(path)) as handle:
            self._change(handle, attrs)

    def lsetstat(self, path: bytes, attrs: SFTPAttrs) -> None:
        """Of a link itself, which has times and nothing else to set."""
        self._session.need(_UPDATE)
        with self._tree.parent(parts(path)) as (folder, name):
            self._admit(self._tree.inside(folder, name))
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                there = os.fstat(handle)
                if not stat.S_ISLNK(there.st_mode):
                    self._change(handle, attrs)
                elif (wanted := times(attrs, there)) is not None:
                    os.utime(name, ns=wanted, dir_fd=folder, follow_symlinks=False)
            finally:
                os.close(handle)

    def _change(self, handle: int, attrs: SFTPAttrs) -> None:
        path = self._tree.where(handle)
        self._admit(path, stat.S_ISDIR(os.fstat(handle).st_mode))
        if attrs.size is not None:
            file = File(reopen(handle, os.O_WRONLY), path, How(False, True), self._quota, is_made=False)
            try:
                self._quota.truncate(file.descriptor, _offset(attrs.size, 0))
            finally:
                file.close()
        _set(handle, attrs)

    def list(self, path: bytes) -> Listing:
        self._session.need(_READ)
        descriptor = self._tree.folder(parts(path))
        found = Listing(descriptor)
        self._keep(found)
        return found

    def page(self, listing: Listing) -> Sequence[SFTPName]:
        self._session.need(_READ)
        return listing.page()

    def readlink(self, path: bytes) -> bytes:
        self._session.need(_READ)
        with self._tree.parent(parts(path)) as (folder, name):
            return os.readlink(name, dir_fd=folder)

    def mkdir(self, path: bytes, mode: int | None) -> None:
        self._session.need(_CREATE)
        with self._tree.parent(parts(path)) as (folder, name):
            there = self._tree.inside(folder, name)
            self._admit(there, is_folder=True)
            os.mkdir(name, 0o755 if mode is None else mode & 0o777, dir_fd=folder)
            self._give(folder, name)
        self._note("create-directory", b"/" + there)

    def rmdir(self, path: bytes) -> None:
        self._remove(path, os.rmdir, is_folder=True)

    def remove(self, path: bytes) -> None:
        self._remove(path, os.unlink, is_folder=False)

    def _remove(self, path: bytes, call: Callable[..., None], is_folder: bool) -> None:
        self._session.need(_DELETE)
        with self._tree.parent(parts(path)) as (folder, name):
            there = self._tree.inside(folder, name)
            self._admit(there, is_folder)
            was = os.stat(name, dir_fd=folder, follow_symlinks=False)
            call(name, dir_fd=folder)
            if stat.S_ISREG(was.st_mode):
                self._quota.unlinked(was)
        self._note("delete", b"/" + there)

    def rename(self, source: bytes, target: bytes, *, replaces: bool) -> None:
        self._session.need(_UPDATE)
        with (
            self._tree.parent(parts(source)) as (old_folder, old),
            self._tree.parent(parts(target)) as (new_folder, new),
        ):
            before, after = self._tree.inside(old_folder, old), self._tree.inside(new_folder, new)
            is_folder = stat.S_ISDIR(os.stat(old, dir_fd=old_folder, follow_symlinks=False).st_mode)
            self._admit(before, is_folder)
            self._admit(after, is_folder)
            if is_folder:
                self._admit_below(old_folder, old, before, after)
            if replaces:
                self._replace(old_folder, old, new_folder, new)
            else:
                _rename_new(old_folder, old, new_folder, new)
        self._note("rename", (b"/" + before, b"/" + after))

    def _replace(self, old_folder: int, old: bytes, new_folder: int, new: bytes) -> None:
        try:
            there = os.stat(new, dir_fd=new_folder, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)
        if there is not None and stat.S_ISREG(there.st_mode):
            self._quota.unlinked(there)

    def _admit_below(self, folder: int, name: bytes, before: bytes, after: bytes) -> None:
        """Whoever may not touch a file may not touch it by another name of the folder that it is in."""
        denied, looked_at = self._session.room.denied(), 0
        if not denied.any:
            return
        root = os.open(name, paths.FOLDER, dir_fd=folder)
        trail, waiting = paths.Trail(root), [b""]
        try:
            while waiting:
                path = waiting.pop()
                with os.scandir(trail.enter(path)) as entries:
                    for entry in entries:
                        below = path + b"/" + os.fsencode(entry.name) if path else os.fsencode(entry.name)
                        is_folder = entry.is_dir(follow_symlinks=False)
                        looked_at += 1
                        if looked_at > _MOST_LOOKED_AT or any(
                            denied(above + b"/" + below, is_folder) for above in (before, after)
                        ):
                            raise forbidden()
                        if is_folder:
                            waiting.append(below)
        finally:
            trail.close()
            os.close(root)

    def symlink(self, target: bytes, path: bytes) -> None:
        """To what is inside; a target from the root is written as one from where the link is."""
        self._session.need(_CREATE)
        with self._tree.parent(parts(path)) as (folder, name):
            there = self._tree.inside(folder, name)
            self._admit(there)
            os.symlink(_inside(target, there), name, dir_fd=folder)
            self._give(folder, name)
        self._note("create", b"/" + there)

    def _give(self, folder: int, name: bytes) -> None:
        owner = self._session.room.volumes.owner
        if owner is not None:
            os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)

    def space(self) -> tuple[int, int, os.statvfs_result]:
        """Bytes used, the limit, and what the file system says."""
        self._session.need(_READ)
        return (*self._quota.usage(), os.statvfs(self._tree.root))


def _rename_new(old_folder: int, old: bytes, new_folder: int, new: bytes) -> None:
    try:
        linux.rename(old, new, old_folder, new_folder, linux.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _UNKNOWN_FLAG:
            raise
        try:
            os.stat(new, dir_fd=new_folder, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None


def _inside(target: bytes, link: bytes) -> bytes:
    """Raises FileNotFoundError for a target outside."""
    above = [part for part in link.split(b"/")[:-1] if part]
    if target.startswith(b"/"):
        return b"/".join([b".."] * len(above) + list(parts(target))) or b"."
    depth = len(above)
    for part in target.split(b"/"):
        depth += -1 if part == b".." else 0 if part in (b"", b".") else 1
        if depth < 0:
            raise gone()
    if b"\0" in target or not target:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return target


def _set(descriptor: int, attrs: SFTPAttrs) -> None:
    """Mode and times; whose a file is stays as it is."""
    through = b"/proc/self/fd/%d" % descriptor
    if attrs.permissions is not None:
        os.chmod(through, attrs.permissions & 0o777)
    wanted = times(attrs, os.fstat(descriptor))
    if wanted is not None:
        os.utime(through, ns=wanted)


def _offset(offset: int, size: int) -> int:
    if offset + size >= 1 << 63:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return offset


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "replace")
