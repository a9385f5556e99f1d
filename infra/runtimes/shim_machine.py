"""What the shim of a server asks of the machine, and we with it; nothing of ours is imported here."""

from __future__ import annotations

import json
import os
import signal
import termios
import time
import tty
from collections.abc import Callable
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KILL_S = 10.0
_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18


def started(pid: int) -> int | None:
    """When that process began, in clock ticks since boot; None when there is none, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot() -> str:
    """Which run of the machine this is: ticks and process ids begin anew with each."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


def write(path: str, document: dict[str, Any]) -> None:
    """Whole or not at all."""
    with open(path + ".new", "w") as file:
        json.dump(document, file)
    os.replace(path + ".new", path)


def below(pid: int) -> set[int]:
    """All that it has started, and they, as far as they are still below it."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        with suppress(OSError, IndexError):
            if name.isdecimal():
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    parents.setdefault(int(parent), []).append(int(name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def session(pid: int, since: int) -> set[int]:
    """Who is in the session that process began, at `since` or later: what it left behind without a shim or group."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        with suppress(OSError, IndexError):
            if name.isdecimal():
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                if int(fields[3]) == pid and fields[0] not in (b"Z", b"X") and int(fields[19]) >= since:
                    found.add(int(name))
    return found


def members(groups: list[str]) -> set[int]:
    """Who is in those control groups or below them."""
    found: set[int] = set()
    for group in groups:
        for folder, _, _ in os.walk(group):
            with suppress(OSError), open(os.path.join(folder, "cgroup.procs")) as file:
                found.update(int(line) for line in file)
    return found


def kill_all(groups: list[str], others: Callable[[], set[int]] = set, patience_s: float = _KILL_S) -> bool:
    """Kills who is in the groups, and those `others`, until nobody is. Whether that is so."""
    deadline = time.monotonic() + patience_s
    for group in groups:  # what cannot multiply any more is soon gone
        for name, text in (("pids.max", "0"), ("cgroup.kill", "1")):
            with suppress(OSError), open(os.path.join(group, name), "r+") as file:
                file.write(text)
    while pids := members(groups) | others():
        if time.monotonic() > deadline:
            return False
        for signum in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, signum)
        time.sleep(0.01)
    return True


def remove_groups(groups: list[str]) -> None:
    """Those in which nobody is; whoever has just ended may be in them a moment longer."""
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            for _ in range(50):
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    break
                except OSError:
                    if members([folder]):
                        break
                    time.sleep(0.01)
                else:
                    break


def terminal(ids: list[int] | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Our ends (from it, to it), and its own. A terminal, since many programs hold back what they say to a pipe; one
    that changes nothing on the way, and that is not its controlling one: with the end of a shell that would hang up on
    what still ends in its own time. Pipes where the machine has no terminals to give."""
    try:
        master, slave = os.openpty()
        tty.setraw(slave, termios.TCSANOW)
        ours, theirs = (master, master), (slave, slave)
    except (OSError, termios.error):
        (source, out), (into, sink) = os.pipe(), os.pipe()
        ours, theirs = (source, sink), (into, out)
    for descriptor in theirs:
        if ids is not None:  # it may open /dev/stdout by its name
            os.fchown(descriptor, *ids)
    for descriptor in ours:
        os.set_blocking(descriptor, False)
    return ours, theirs


def library() -> Callable[..., None]:
    """Calls of the C library by their names, with numbers and bytes; raises OSError. Loaded only where it is needed,
    since it costs memory."""
    import ctypes

    loaded = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: int | bytes | None) -> None:
        given = [ctypes.c_ulong(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
        if getattr(loaded, name)(*given) != 0:
            raise OSError(ctypes.get_errno(), name)

    return call


def enclose(call: Callable[..., None], home: str, uid: int, gid: int) -> None:
    """Of this process only, which root must be: `home` becomes reachable for that user under its usual path, whatever
    lies on the way, and nothing else there, such as homes of others, stays. So nothing on the way need be opened to
    anybody. Nothing is done where root may not do that. Raises OSError.
    """
    parents = [path for path in _parents(os.path.realpath(home)) if path != "/"]
    if not parents:
        return
    cover = next((path for path in parents if _closed(path, uid, gid)), parents[-1])
    os.close(os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))  # if it is not there, that is why
    try:
        call("unshare", _CLONE_NEWNS)
        call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        descriptor = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        call("mount", b"none", os.fsencode(cover), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0711,size=64k")
    except OSError:  # a container without the right to mount: where the way is open, all goes well without
        return
    os.makedirs(os.path.realpath(home), 0o711)
    call("mount", f"/proc/self/fd/{descriptor}".encode(), os.fsencode(os.path.realpath(home)), None, _MS_BIND, None)
    os.close(descriptor)


def _parents(path: str) -> list[str]:
    """All that lies above it, from the top."""
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found[::-1]


def _closed(folder: str, uid: int, gid: int) -> bool:
    """Whether that user cannot go through it."""
    st = os.stat(folder)
    return not st.st_mode & (0o100 if st.st_uid == uid else 0o010 if st.st_gid == gid else 0o001)
