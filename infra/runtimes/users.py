"""Whose the processes of servers are."""

from __future__ import annotations

import grp
import os
import pwd

from msgspec import Struct

from infra import config

_USUAL = 988


class User(Struct, frozen=True):
    """`change` says whether a process must become it, since we are somebody else."""

    uid: int
    gid: int
    name: str
    change: bool


def chosen(user: str) -> User:
    """From the setting `servers.user`. Raises config.InvalidSetting for one that there is not, or that we may not
    be."""
    uid, gid = _numbers(user)
    change = (uid, gid) != (os.geteuid(), os.getegid())
    if change and os.geteuid() != 0:
        raise config.InvalidSetting(f"servers.user: only root can run servers as {user!r}")
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "server"
    return User(uid, gid, name, change)


def _numbers(user: str) -> tuple[int, int]:
    if not user:
        return (_USUAL, _USUAL) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    name, _, group = user.partition(":")
    try:
        entry = None if name.isdecimal() else pwd.getpwnam(name)
        uid = int(name) if entry is None else entry.pw_uid
        if group:
            return uid, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        return uid, uid if entry is None else entry.pw_gid
    except KeyError:
        raise config.InvalidSetting(f"servers.user: there is no {user!r} on this machine") from None
