"""What starting programs and owning a directory need: a death signal, liveness, locks, private files, ports."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NONE = ctypes.c_ulong(0)


class InUse(Exception):
    """Another process owns the directory; the message names it."""


def follow_parent(signum: int) -> Callable[[], None]:
    """A `preexec_fn`: the program gets `signum` when the *thread* that starts it ends, so start from the main one.

    Credentials must already be final: changing them clears the signal.
    """
    parent = os.getpid()

    def prepare() -> None:
        if sys.platform == "linux":
            _LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(int(signum)), _NONE, _NONE, _NONE)
        if os.getppid() != parent:  # it ended before the request was made
            os._exit(127)

    return prepare


def enter_user_namespace(uid: int, gid: int) -> None:
    """Become `uid` and `gid` in a user namespace of this process only; files keep their owner. OSError if refused."""
    clone_newuser = 0x10000000
    real_uid, real_gid = os.geteuid(), os.getegid()
    if _LIBC.unshare(clone_newuser) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {real_uid} 1"),
        ("gid_map", f"{gid} {real_gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def alive(pid: int) -> bool:
    """Whether a process of that id runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[:1] != [b"Z"]
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def working_in(directory: Path, program: str) -> list[int]:
    """Ids of running processes of `program` whose working directory is `directory`. Empty where there is no /proc."""
    found = []
    for pid in _process_ids():
        with contextlib.suppress(OSError):
            if (
                os.readlink(f"/proc/{pid}/cwd") == str(directory)
                and os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)") == program
                and alive(pid)
            ):
                found.append(pid)
    return found


def _process_ids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                yield int(name)


def lock(path: Path, what: str) -> IO[str]:
    """Own `path` until the returned file is closed or this process ends. InUse names who holds it."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = file.read().strip() or "unknown"
        file.close()
        raise InUse(f"{what} is in use by another process (pid {holder})") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def private_directory(path: Path) -> Path:
    """The directory, made with mode 0700 where it is missing."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Put `data` there whole or not at all, durable, mode 0600."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def secret(path: Path, make: Callable[[], str] = lambda: secrets.token_hex(32)) -> str:
    """The secret kept in `path` (mode 0600, its folder 0700), 32 random bytes as hex unless `make` says otherwise.

    Made on first use, durably: of several processes that make it at once one wins, and all read the same.
    """
    private_directory(path.parent)
    if not path.exists():
        candidate = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        write_private(candidate, make().encode() + b"\n")
        with contextlib.suppress(FileExistsError):
            os.link(candidate, path)
        candidate.unlink()
        sync_directory(path.parent)
        sync_directory(path.parent.parent)
    return path.read_text().strip()


def port_is_free(port: int) -> bool:
    """Whether 127.0.0.1 can be listened on at `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_port() -> int:
    """A free port below the range for outgoing connections.

    Inside that range a client that reconnects to a dead server can be given the server's own port and keep it.
    """
    lowest = 32768
    with contextlib.suppress(OSError, ValueError, IndexError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if lowest > 12_000:
        for _ in range(200):
            port = random.randrange(10_240, lowest)
            if port_is_free(port):
                return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kept_port(path: Path) -> int:
    """The port kept in `path`; chosen and kept anew where there is none or it is taken."""
    with contextlib.suppress(OSError, ValueError):
        port = int(path.read_text())
        if 0 < port < 65536 and port_is_free(port):
            return port
    port = choose_port()
    write_private(path, f"{port}\n".encode())
    return port


def adopt_orphans() -> None:
    """Become the parent of what our children leave behind, so that it can be reaped. Linux only."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), _NONE, _NONE, _NONE)
