"""SFTP's requests, as calls in threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import asyncssh
import structlog
from asyncssh import constants as sftp

from domain import errors
from services.sftp.files import Files
from services.sftp.opened import File, How, Listing
from services.sftp.rooms import Session
from services.sftp.tree import parts

log = structlog.get_logger("sftp")

#: Answers that a client does not take: nothing more is done for it meanwhile.
_BEHIND, _LOOK_S = 4 * 1024 * 1024, 0.01
#: What one read answers at most.
_READ = 4 * 1024 * 1024
_BLOCK = 4096

T = TypeVar("T")


class Server(asyncssh.SFTPServer):
    """One channel of a session. The methods are asyncssh's."""

    def __init__(
        self, channel: asyncssh.SSHServerChannel[bytes], session: Session, files: Files, pool: ThreadPoolExecutor
    ) -> None:
        super().__init__(channel)
        self._session, self._files, self._pool = session, files, pool

    async def _do(self, call: Callable[..., T], *arguments: object) -> T:
        await self._taken()
        async with self._session.room.turns:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)
            except (OverflowError, ValueError):
                raise asyncssh.SFTPFailure("A number is out of range") from None
            except errors.Error as error:
                raise asyncssh.SFTPFailure(error.message) from None
            except (OSError, asyncssh.Error):
                raise
            except Exception as error:
                log.error("an SFTP call ended in an error of ours", call=call.__name__, error=repr(error))
                raise asyncssh.SFTPFailure("Something went wrong") from None

    async def _taken(self) -> None:
        """Waits until the client takes what it asked for."""
        channel = self.channel
        while channel.get_write_buffer_size() > _BEHIND and not (self._session.is_cut or channel.is_closing()):
            await asyncio.sleep(_LOOK_S)

    # Files.

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        writes = bool(pflags & (sftp.FXF_WRITE | sftp.FXF_APPEND))
        how = How(
            reads=bool(pflags & sftp.FXF_READ) or not writes,
            writes=writes,
            appends=bool(pflags & sftp.FXF_APPEND),
            creates=bool(pflags & sftp.FXF_CREAT),
            truncates=bool(pflags & sftp.FXF_TRUNC),
            is_new=bool(pflags & sftp.FXF_EXCL),
        )
        return await self._do(self._files.open, path, how, attrs.permissions)

    async def open56(self, path: bytes, desired_access: int, flags: int, attrs: asyncssh.SFTPAttrs) -> object:
        disposition = flags & sftp.FXF_ACCESS_DISPOSITION
        appends = bool(desired_access & sftp.ACE4_APPEND_DATA or flags & sftp.FXF_APPEND_DATA)
        writes = appends or bool(desired_access & sftp.ACE4_WRITE_DATA)
        how = How(
            reads=bool(desired_access & sftp.ACE4_READ_DATA) or not writes,
            writes=writes,
            appends=appends,
            creates=disposition in (sftp.FXF_CREATE_NEW, sftp.FXF_CREATE_TRUNCATE, sftp.FXF_OPEN_OR_CREATE),
            truncates=disposition in (sftp.FXF_CREATE_TRUNCATE, sftp.FXF_TRUNCATE_EXISTING),
            is_new=disposition == sftp.FXF_CREATE_NEW,
        )
        return await self._do(self._files.open, path, how, attrs.permissions)

    async def close(self, file_obj: object) -> None:
        assert isinstance(file_obj, File)
        await self._do(self._files.close, file_obj)

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        return await self._do(self._files.read, file_obj, offset, min(size, _READ))

    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        return await self._do(self._files.write, file_obj, offset, data)

    async def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        return await self._do(self._files.fstat, file_obj)

    async def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        await self._do(self._files.fsetstat, file_obj, attrs)

    async def fsync(self, file_obj: object) -> None:
        await self._do(self._files.fsync, file_obj)

    # Names.

    async def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return await self._do(self._files.lstat, path)

    async def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return await self._do(self._files.stat, path)

    async def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        await self._do(self._files.setstat, path, attrs)

    async def lsetstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        await self._do(self._files.lsetstat, path, attrs)

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        listing: Listing = await self._do(self._files.list, path)
        try:
            while page := await self._do(self._files.page, listing):
                for name in page:
                    yield name
        finally:
            with contextlib.suppress(RuntimeError):  # at the end of the process
                self._pool.submit(self._files.close, listing)

    async def remove(self, path: bytes) -> None:
        await self._do(self._files.remove, path)

    async def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        await self._do(self._files.mkdir, path, attrs.permissions)

    async def rmdir(self, path: bytes) -> None:
        await self._do(self._files.rmdir, path)

    async def realpath(self, path: bytes) -> bytes:
        self._session.check()
        return b"/" + b"/".join(parts(path))

    async def rename(self, oldpath: bytes, newpath: bytes) -> None:
        await self._do(self._rename, oldpath, newpath, False)

    async def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        await self._do(self._rename, oldpath, newpath, True)

    def _rename(self, oldpath: bytes, newpath: bytes, replaces: bool) -> None:
        self._files.rename(oldpath, newpath, replaces=replaces)

    async def readlink(self, path: bytes) -> bytes:
        return await self._do(self._files.readlink, path)

    async def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        await self._do(self._files.symlink, oldpath, newpath)

    async def link(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPOpUnsupported("A file has one name here")

    async def statvfs(self, path: bytes) -> asyncssh.SFTPVFSAttrs:
        return await self._do(self._space)

    async def fstatvfs(self, file_obj: object) -> asyncssh.SFTPVFSAttrs:
        return await self._do(self._space)

    def _space(self) -> asyncssh.SFTPVFSAttrs:
        """A server with a disk limit sees that, as far as the disk itself has so much."""
        used, limit, disk = self._files.space()
        if not limit:
            return asyncssh.SFTPVFSAttrs.from_local(disk)
        free = min(max(limit - used, 0), disk.f_bavail * disk.f_frsize) // _BLOCK
        return asyncssh.SFTPVFSAttrs(
            bsize=_BLOCK,
            frsize=_BLOCK,
            blocks=limit // _BLOCK,
            bfree=free,
            bavail=free,
            files=disk.f_files,
            ffree=disk.f_ffree,
            favail=disk.f_favail,
            fsid=0,
            flags=0,
            namemax=disk.f_namemax,
        )
