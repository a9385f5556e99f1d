"""Stays beside one server: starts it, holds its input and output, keeps the last of it, writes down how it ended.

Run by shim.py, it gets one JSON document on its input, answers with one, and goes on by itself: nothing
that ends us ends it. It imports nothing of ours, so that it costs little memory. In its folder, mode 0700, are:

* `lock`, held while it lives: there is one shim, and one server, of a folder at a time;
* `state`, from before the server's first instruction: who runs, in which groups;
* `console` and `console.1`, the last lines; the first of each file says the number of its first line and whose it is;
* `socket`: `attach`, `took <n>`, `say <line>`, `signal <n>`, each a line; answered with lines;
* `end`, once it has ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False  # typing would cost each shim a megabyte
if TYPE_CHECKING:
    from typing import Any
if TYPE_CHECKING or __package__:
    from infra.runtimes.shim_console import Client, Console
    from infra.runtimes.shim_machine import (
        below,
        boot,
        enclose,
        kill_all,
        library,
        members,
        remove_groups,
        started,
        terminal,
        write,
    )
else:
    from shim_console import Client, Console
    from shim_machine import below, boot, enclose, kill_all, library, members, remove_groups, started, terminal, write

_CHUNK = 64 * 1024
_INPUT = 64 * 1024
_CLIENTS = 64
_LOCK_S = 2.0
_LOOK_MS = 5000
_SHELLS = ("sh", "dash", "bash", "ash", "busybox", "ksh", "zsh", "mksh")
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38


class Failed(Exception):
    """It could not be started; the message says why."""


class Shim:
    """One server from its start to its end."""

    def __init__(self, pid: int, ends: tuple[int, int], launch: dict[str, Any]) -> None:
        self.pid = pid
        self.started = started(pid) or 0
        self.places: list[dict[str, Any]] = launch["places"]
        self.groups: list[str] = [place["folder"] for place in self.places]
        self.grace_s = float(launch["grace_s"])
        self.code: int | None = None
        self.took = 0
        self.asked = False
        self.looked = time.monotonic()
        self.console = Console(f"{pid} {self.started}")
        self.source, self.sink = ends
        self.input = bytearray()
        self.clients: dict[int, Client] = {}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.poll = select.poll()

    def record(self) -> None:
        document = {"pid": self.pid, "started": self.started, "boot": boot(), "places": self.places}
        write("state", {**document, "shim": os.getpid(), "shim_started": started(os.getpid())})

    def listen(self) -> None:
        self.listener.bind("socket")
        self.listener.listen(_CLIENTS)
        self.listener.setblocking(False)

    def run(self) -> None:
        """Until it has ended, and all that it had started."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for descriptor in (woken, self.source, self.listener.fileno()):
            self.poll.register(descriptor, select.POLLIN)
        self._reap()
        until = 0.0
        while True:
            if self.code is not None:
                until = until or time.monotonic() + (self.grace_s if self.asked else 0.0)
                if time.monotonic() >= until or not self._others():
                    break
            for descriptor, events in self.poll.poll(_LOOK_MS if self.code is None else 50):
                self._serve(descriptor, events, woken)
            self._look()
            self._arrange()
        self._end()

    def _look(self) -> None:
        """Of whom there is no record nobody knows, and would start another: it ends."""
        now = time.monotonic()
        if self.code is None and now >= self.looked + _LOOK_MS / 1000:
            self.looked = now
            if not os.path.exists("state"):
                kill_all(self.groups, self._others)

    def _others(self) -> set[int]:
        return members(self.groups) if self.groups else below(os.getpid())

    def _serve(self, descriptor: int, events: int, woken: int) -> None:
        if descriptor == woken:
            with suppress(BlockingIOError):
                os.read(woken, _CHUNK)
            self._reap()
        elif descriptor == self.listener.fileno():
            self._accept()
        elif descriptor in self.clients:
            self._talk(self.clients[descriptor], events)
        else:
            if descriptor == self.source and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._hear()
            if descriptor == self.sink and events & select.POLLOUT:
                self._speak()

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.code = os.waitstatus_to_exitcode(status)

    def _hear(self) -> bool:
        try:
            data = os.read(self.source, _CHUNK)
        except OSError:
            return False
        self.console.feed(data)
        return bool(data)

    def _speak(self) -> None:
        with suppress(OSError):
            del self.input[: os.write(self.sink, self.input)]

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self.listener.accept()
            if len(self.clients) >= _CLIENTS:
                connection.close()
                return
            connection.setblocking(False)
            self.clients[connection.fileno()] = Client(connection)
            self.poll.register(connection, select.POLLIN)

    def _talk(self, client: Client, events: int) -> None:
        try:
            if events & select.POLLIN:
                data = client.connection.recv(_CHUNK)
                client.inbox += data
                if not data or len(client.inbox) > 2 * _CHUNK:
                    raise ConnectionError
                self._obey(client)
            elif events & (select.POLLHUP | select.POLLERR):
                raise ConnectionError
            client.take(self.console)
            if client.outbox:
                del client.outbox[: client.connection.send(client.outbox)]
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            descriptor = client.connection.fileno()
            self.poll.unregister(descriptor)
            del self.clients[descriptor]
            client.connection.close()

    def _obey(self, client: Client) -> None:
        while (end := client.inbox.find(b"\n")) >= 0:
            verb, _, rest = bytes(client.inbox[:end]).partition(b" ")
            del client.inbox[: end + 1]
            if verb == b"attach":
                client.next = self.took + 1
            elif verb == b"took":
                self.took = max(self.took, int(rest))
            elif verb == b"say":
                client.outbox += self._say(rest)
            elif verb == b"signal":
                self._signal(int(rest))
                client.outbox += b"ok\n"
            else:
                raise ValueError(verb)

    def _say(self, line: bytes) -> bytes:
        if len(self.input) + len(line) > _INPUT:
            return b"full\n"
        self.input += line + b"\n"
        self._speak()
        return b"ok\n"

    def _signal(self, signum: int) -> None:
        """To the server; where that is still the shell it was started by, to what this runs, too: as a terminal does,
        since a shell passes nothing on. What it runs may then end after it."""
        if self.code is not None:
            return
        try:
            shell = os.path.basename(os.readlink(f"/proc/{self.pid}/exe")) in _SHELLS
        except OSError:
            shell = True
        self.asked = self.asked or shell
        with suppress(OSError):
            (os.killpg if shell else os.kill)(self.pid, signum)

    def _arrange(self) -> None:
        """What is waited for next."""
        wanted = {self.source: select.POLLIN}
        if self.input:
            wanted[self.sink] = wanted.get(self.sink, 0) | select.POLLOUT
        elif self.sink != self.source:
            with suppress(KeyError):
                self.poll.unregister(self.sink)
        for descriptor, client in self.clients.items():
            wanted[descriptor] = select.POLLIN | (select.POLLOUT if client.waits(self.console) else 0)
        for descriptor, events in wanted.items():
            self.poll.register(descriptor, events)

    def _end(self) -> None:
        kill_all(self.groups, self._others)
        self._reap()
        for _ in range(1024):
            if not self._hear():
                break
        self.console.finish()
        with suppress(OSError):  # whoever finds none knows that nobody knows
            write("end", {"pid": self.pid, "started": self.started, "code": self.code, "took": self.took})
        remove_groups(self.groups)
        with suppress(OSError):
            os.unlink("socket")


def start(launch: dict[str, Any]) -> Shim:
    """The server stands before its first instruction until it is on record. Raises Failed."""
    ours, theirs = terminal(launch["ids"])
    held, go = os.pipe()
    failed, failure = os.pipe()
    shim = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        _become(launch, theirs, held, failure, shim)
    os.close(held)
    os.close(failure)
    made = Shim(pid, ours, launch)
    made.record()
    made.listen()
    os.write(go, b"1")
    os.close(go)
    problem = b""
    while piece := os.read(failed, 4096):
        problem += piece
    os.close(failed)
    if problem:
        os.waitpid(pid, 0)
        kill_all(made.groups)
        remove_groups(made.groups)
        for name in ("state", "socket"):
            os.unlink(name)
        raise Failed(problem.decode(errors="replace"))
    return made


def _become(launch: dict[str, Any], theirs: tuple[int, int], held: int, failure: int, shim: int) -> None:
    """In the child: the server. Never returns."""
    step = "its process"
    try:
        call = library()  # here, where its memory is given back at once
        os.setsid()
        for target, descriptor in zip((0, 1, 2), (theirs[0], theirs[1], theirs[1]), strict=True):
            os.dup2(descriptor, target)
        for signum in signal.valid_signals():
            with suppress(OSError, ValueError):
                signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(0o022)
        step = "its limits"
        _confine(launch)
        if not os.read(held, 1):
            os._exit(127)
        if launch["ids"] is not None:
            uid, gid = launch["ids"]
            step = "its folder"
            enclose(call, launch["home"], uid, gid)
            step = "its user"
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != shim:
            os._exit(127)
        step = "its folder"
        os.chdir(launch["home"])
        step = "its command"
        os.execve(launch["command"][0], launch["command"], launch["environment"])  # noqa: S606 - a shell it is
    except BaseException as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        os.write(failure, f"{step}: {reason}".encode())
    os._exit(127)


def _confine(launch: dict[str, Any]) -> None:
    for place in launch["places"]:
        with open(os.path.join(place["folder"], "cgroup.procs"), "w") as file:
            file.write("0")
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(launch["oom"]))
    for number, soft, hard in launch["rlimits"]:
        resource.setrlimit(number, (soft, hard))
    if launch["cores"]:
        os.sched_setaffinity(0, launch["cores"])


def main() -> None:
    launch = json.loads(sys.stdin.buffer.read())
    if os.fork():
        os._exit(0)
    os.setsid()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    os.umask(0o077)
    os.chdir(launch["folder"])
    try:
        shim = _begin(launch)
    except Failed as error:
        remove_groups([place["folder"] for place in launch["places"]])
        with suppress(OSError):
            os.write(1, json.dumps({"failed": str(error)}).encode())
        return
    launch.clear()
    try:
        os.write(1, json.dumps({"pid": shim.pid, "started": shim.started}).encode())
    except OSError:  # whoever wanted it is gone, and may have begun anew without knowing of this one
        os.kill(shim.pid, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    shim.run()


def _begin(launch: dict[str, Any]) -> Shim:
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Failed("it runs already") from None
            time.sleep(0.01)
    asked = select.poll()
    asked.register(1, 0)
    if asked.poll(0):
        raise Failed("whoever asked for it is gone")
    for name in ("state", "end", "console", "console.1", "socket"):
        with suppress(FileNotFoundError):
            os.unlink(name)
    if not launch["places"]:
        library()(
            "prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
        )  # what it leaves behind stays below us, where it is found
    same_user = launch["ids"] is None
    shim = start(launch)
    if same_user:
        library()("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    return shim
