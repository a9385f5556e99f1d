"""Keeps servers and programs running: restarts what ended or fell silent, and ends everything in order."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from infra import config, log, processes
from infra.servers import Failed, Server
from services import supervised

_TICK_S = 0.2
_TRIM_S = 60.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ATTEMPTS = 5  # before anything was ready: later there is no giving up


class Stopped(BaseException):
    """A signal asked us to end while we were starting."""


class CannotRun(Exception):
    """A program could not be started at all; the message names it."""


@dataclass(frozen=True)
class Program:
    """A process to keep: those of the lowest `stage` are asked to end first, by `farewell`, the next when they have.

    One whose farewell is not SIGTERM has something of its own to end. It starts with that signal blocked, so that none
    comes before it can be heard, and is started for it where it is not there.
    """

    name: str
    arguments: Sequence[str]
    stage: int = 0
    farewell: int = signal.SIGTERM


class _Pause:
    """The time between an end and the next start: longer each time, short again after a good run."""

    def __init__(self, settings: config.Up) -> None:
        self._settings = settings
        self._length = 0.0
        self.over = 0.0

    def begin(self, now: float, lasted_s: float) -> float:
        shortest, longest = self._settings.backoff_s, self._settings.backoff_max_s
        good = lasted_s > longest or not self._length
        self._length = shortest if good else max(shortest, min(self._length * 2, longest))
        self.over = now + self._length
        return self._length


class _Running:
    """A program: its process, the pipe it speaks through, and when it last did."""

    def __init__(self, program: Program, settings: config.Up) -> None:
        self.program = program
        self.settings = settings
        self.pause = _Pause(settings)
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe = -1
        self.since = self.heard = 0.0
        self.served: float | None = None
        self.spoke = self.ready = False
        self.text = b""

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    @property
    def _says_farewell(self) -> bool:
        return self.program.farewell != signal.SIGTERM

    def spawn(self, environment: Mapping[str, str], now: float) -> None:
        pipe, theirs = os.pipe()
        try:
            self.process = subprocess.Popen(
                self.program.arguments,
                env={**environment, supervised.FD: str(theirs)},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs,),
                start_new_session=True,
                preexec_fn=self._prepare(processes.follow_parent(signal.SIGKILL)),
            )
        except BaseException:
            os.close(pipe)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(pipe, False)
        self.pipe, self.text = pipe, b""
        self.since = self.heard = now
        self.served = None
        self.spoke = self.ready = False

    def _prepare(self, follow: Callable[[], None]) -> Callable[[], None]:
        def prepare() -> None:
            follow()
            if self._says_farewell:
                signal.pthread_sigmask(signal.SIG_BLOCK, {self.program.farewell})

        return prepare

    def say_farewell(self, environment: Mapping[str, str], had_run: bool) -> None:
        is_there = self.process is not None and self.ended() is None
        if not is_there and self._says_farewell and had_run:
            with contextlib.suppress(OSError, subprocess.SubprocessError):  # then the next `up` ends what it left
                self.spawn(environment, time.monotonic())
        self.signal(self.program.farewell)

    def listen(self, now: float) -> bool:
        """Take in what it said; whether it has become ready by that."""
        with contextlib.suppress(BlockingIOError):
            while said := os.read(self.pipe, 65536):
                self.text, self.heard, self.spoke = self.text + said, now, True
        *lines, self.text = self.text.split(b"\n")
        news = any(line.startswith(supervised.READY) for line in lines)
        self.ready = self.ready or news
        self.served = now if news else self.served
        return news

    def is_silent(self, now: float) -> bool:
        return now - self.heard > (self.settings.silence_s if self.spoke else self.settings.start_s)

    def ended(self) -> int | None:
        """Its exit code once it has ended; what it had started ends too, while its id is still its own."""
        if self.process is None:
            return None
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self.signal(signal.SIGKILL)
        code = self.process.wait()
        self.process, self.ready = None, False
        os.close(self.pipe)
        return code

    def signal(self, signum: int) -> None:
        """To the process; SIGKILL to all that it has started as well."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if signum == signal.SIGKILL else os.kill)(self.process.pid, signum)


class _Serving:
    """A server, and whether it answers."""

    def __init__(self, server: Server, settings: config.Up) -> None:
        self.server = server
        self.pause = _Pause(settings)
        self.since = self.trimmed = 0.0
        self.ready = self.down = False


class Supervisor:
    """Runs `servers`, then `programs`, until SIGTERM, SIGINT or SIGHUP; a second signal ends all at once.

    `changed` is called when a program has become ready and whenever a process id has changed. It belongs in the
    main thread of a process of its own: all it starts ends with that thread, and all orphans below it are reaped.
    """

    def __init__(
        self,
        settings: config.Up,
        servers: Sequence[Server],
        programs: Sequence[Program],
        environment: Mapping[str, str],
        changed: Callable[[Supervisor], None],
    ) -> None:
        self._settings = settings
        self._environment = dict(environment)
        self._changed = changed
        self._serving = [_Serving(server, settings) for server in servers]
        self._running = [_Running(program, settings) for program in programs]
        self._selector = selectors.DefaultSelector()
        self._published: dict[str, int] = {}
        self._attempts = 0
        self._was_ready = False
        self._asked = 0
        self._starting = True
        self._log = log.get(process="up")

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of everything that runs now, by name."""
        found = [(each.server.name, each.server.pid) for each in self._serving]
        found += [(each.program.name, each.pid) for each in self._running]
        return {name: pid for name, pid in found if pid is not None}

    @property
    def all_ready(self) -> bool:
        """Whether every server and program has said that it is ready."""
        return all(each.ready for each in self._serving) and all(each.ready for each in self._running)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Take the signals that end us; before `run` they raise Stopped."""
        kept = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []  # as nohup wants it
        before: dict[int, Any] = {
            signum: signal.signal(signum, self._on_signal) for signum in _SIGNALS if signum not in kept
        }
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._asked += 1
        if self._starting:
            raise Stopped

    def start_servers(self) -> None:
        """Start the servers and wait until they answer. Raises servers.Failed, processes.InUse."""
        for each in self._serving:
            each.since = time.monotonic()
            each.server.start()
            each.ready = True

    def run(self) -> None:
        """Start the programs and keep everything running until asked to end. Raises CannotRun."""
        processes.adopt_orphans()
        ours, wake = socket.socketpair()
        with ours, wake, self._selector:
            for end in (ours, wake):
                end.setblocking(False)
            self._selector.register(ours, selectors.EVENT_READ)
            before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
            try:
                self._starting = False
                self._loop(ours)
            finally:
                signal.set_wakeup_fd(before)

    def _loop(self, signalled: socket.socket) -> None:
        latest = time.monotonic()
        while not self._asked:
            now = time.monotonic()
            self._excuse(now - latest)
            latest = now
            news = [self._keep_running(each, now) for each in self._running]
            for serving in self._serving:
                self._keep_serving(serving, now)
            self._reap_orphans()
            if any(news) or self.pids != self._published:
                self._published = self.pids
                self._was_ready = self._was_ready or self.all_ready
                self._changed(self)
            self._selector.select(_TICK_S)
            with contextlib.suppress(BlockingIOError):
                signalled.recv(4096)

    def _excuse(self, gap_s: float) -> None:
        """When we were held up, or the machine was, the others had no chance to be heard."""
        if gap_s > 5 * _TICK_S:
            for each in self._running:
                each.heard += gap_s

    def _keep_running(self, each: _Running, now: float) -> bool:
        """Start it, hear it, end it when it is silent. Whether it has become ready."""
        if each.process is None:
            if now >= each.pause.over:
                each.spawn(self._environment, now)
                self._selector.register(each.pipe, selectors.EVENT_READ)
            return False
        news = each.listen(now)
        pipe = each.pipe
        if each.is_silent(now):
            self._log.error("killed a process whose beat stopped", program=each.program.name, pid=each.pid)
            each.signal(signal.SIGKILL)
            each.heard = now
        code = each.ended()
        if code is not None:
            self._selector.unregister(pipe)
            self._after_end(each, code, now)
        return news and each.ready

    def _after_end(self, each: _Running, code: int, now: float) -> None:
        pause_s = each.pause.begin(now, 0.0 if each.served is None else now - each.served)
        self._log.warning("a process ended", program=each.program.name, code=code, restart_in_s=pause_s)
        if not self._was_ready:
            self._attempts += 1
            if code == supervised.CANNOT_RUN or self._attempts >= _ATTEMPTS:
                raise CannotRun(f"{each.program.name} ended with code {code} before it was ready")

    def _keep_serving(self, each: _Serving, now: float) -> None:
        """Start it again when it has ended, under its old address."""
        try:
            if each.server.pid is None:
                if not each.down:
                    raise Failed(f"{each.server.name} has ended")
                if now >= each.pause.over:
                    each.since, each.down = now, False
                    each.server.spawn()
            elif not each.ready:
                each.ready = each.server.ready()
            elif now - each.trimmed > _TRIM_S:
                each.trimmed = now
                each.server.trim_log()
        except (Failed, processes.InUse, OSError) as error:
            each.ready, each.down = False, True
            pause_s = each.pause.begin(now, now - each.since)
            self._log.warning("a server ended", server=each.server.name, reason=str(error), restart_in_s=pause_s)

    def _reap_orphans(self) -> None:
        """What our children left behind comes to us, as to an init process."""
        own = set(self.pids.values())
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in own:
                    return
                os.waitpid(found.si_pid, 0)

    def end(self) -> None:
        """End the programs stage by stage, then the servers, within `stop_s`; what does not end is killed."""
        begun = time.monotonic()
        stages = sorted({each.program.stage for each in self._running})
        for left, stage in zip(range(len(stages) - 1, -1, -1), stages, strict=True):
            members = [each for each in self._running if each.program.stage == stage]
            for each in members:
                each.say_farewell(self._environment, had_run=self._was_ready and self._asked == 1)
            self._await(members, begun + (0.8 - 0.2 * left) * self._settings.stop_s)
        for each in self._running:
            each.signal(signal.SIGKILL)
        self._await(self._running, time.monotonic() + 1.0, hurry=False)
        for left, serving in zip(range(len(self._serving), 0, -1), reversed(self._serving), strict=True):
            rest_s = 0.0 if self._asked > 1 else begun + self._settings.stop_s - time.monotonic()
            serving.server.stop(max(0.3, rest_s / left))

    def _await(self, members: Sequence[_Running], deadline: float, hurry: bool = True) -> None:
        waiting = [each for each in members if each.process is not None]
        while waiting and time.monotonic() < deadline and not (hurry and self._asked > 1):
            waiting = [each for each in waiting if each.ended() is None]
            time.sleep(0.01)
