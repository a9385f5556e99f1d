"""What SFTP says of a file, and what it wants to be said."""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
import time

from asyncssh import SFTPAttrs, constants

_TYPES = {
    stat.S_IFREG: constants.FILEXFER_TYPE_REGULAR,
    stat.S_IFDIR: constants.FILEXFER_TYPE_DIRECTORY,
    stat.S_IFLNK: constants.FILEXFER_TYPE_SYMLINK,
    stat.S_IFSOCK: constants.FILEXFER_TYPE_SOCKET,
    stat.S_IFCHR: constants.FILEXFER_TYPE_CHAR_DEVICE,
    stat.S_IFBLK: constants.FILEXFER_TYPE_BLOCK_DEVICE,
    stat.S_IFIFO: constants.FILEXFER_TYPE_FIFO,
}
_SECOND = 1_000_000_000
_HALF_A_YEAR_S = 365 * 86_400 / 2


@functools.lru_cache(maxsize=256)
def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@functools.lru_cache(maxsize=256)
def group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def attributes(there: os.stat_result) -> SFTPAttrs:
    atime, atime_ns = divmod(there.st_atime_ns, _SECOND)
    mtime, mtime_ns = divmod(there.st_mtime_ns, _SECOND)
    ctime, ctime_ns = divmod(there.st_ctime_ns, _SECOND)
    return SFTPAttrs(
        type=_TYPES.get(stat.S_IFMT(there.st_mode), constants.FILEXFER_TYPE_SPECIAL),
        size=there.st_size,
        uid=there.st_uid,
        gid=there.st_gid,
        owner=user(there.st_uid),
        group=group(there.st_gid),
        permissions=there.st_mode,
        atime=atime,
        atime_ns=atime_ns,
        mtime=mtime,
        mtime_ns=mtime_ns,
        crtime=mtime,
        crtime_ns=mtime_ns,
        ctime=ctime,
        ctime_ns=ctime_ns,
        nlink=there.st_nlink,
    )


def longname(name: bytes, there: os.stat_result) -> bytes:
    """As `ls -l` shows it, times in UTC."""
    when = time.gmtime(there.st_mtime)
    recent = time.time() - _HALF_A_YEAR_S < there.st_mtime <= time.time()
    shown = time.strftime("%b %e %H:%M" if recent else "%b %e  %Y", when)
    mode, who = stat.filemode(there.st_mode), f"{user(there.st_uid):8} {group(there.st_gid):8}"
    return f"{mode} {there.st_nlink:>4} {who} {there.st_size:>8} {shown} ".encode() + name


def times(attrs: SFTPAttrs, there: os.stat_result) -> tuple[int, int] | None:
    """When it was read and changed, in nanoseconds, where that is to be set."""
    if attrs.atime is None and attrs.mtime is None:
        return None
    atime = there.st_atime_ns if attrs.atime is None else attrs.atime * _SECOND + (attrs.atime_ns or 0)
    mtime = there.st_mtime_ns if attrs.mtime is None else attrs.mtime * _SECOND + (attrs.mtime_ns or 0)
    return atime, mtime
