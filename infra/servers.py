"""A server program of ours: a directory of its own, a port it keeps, an end that never leaves an orphan."""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from infra import processes

LOG_BYTES = 10 * 1024 * 1024


class Failed(Exception):
    """A server could not be started; the message has the end of its log."""


class Server(abc.ABC):
    """A program of ours: `start` and `stop`; and `spawn` and `ready`, which do not wait, for a supervisor."""

    name: str
    _stop_signals: Sequence[int]

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).absolute()
        self.home = self.directory / self.name
        self.port = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def pid(self) -> int | None:
        """The running server's process id."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Where clients connect, with user and password; the same after a restart."""

    def start(self, timeout_s: float = 60.0) -> str:
        """Start and wait until connections are answered; the URL. Failed when it ends or takes longer."""
        first = self._lock is None
        try:
            try:
                self._wait(timeout_s)
            except Failed:
                if not first or self.port == 0 or processes.port_is_free(self.port):
                    raise
                self.port = 0  # somebody took the port in between
                self._wait(timeout_s)
        except BaseException:
            self.kill()
            if first:
                self._release()
            raise
        return self.url

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self.spawn()
        while not self.ready():
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} did not answer within {timeout_s:g} s\n{self._log_end()}")
            time.sleep(0.005)

    def spawn(self) -> None:
        """Start without waiting. A restart keeps the port; what a killed predecessor left is ended first.

        Raises processes.InUse when another process owns the directory.
        """
        if self.pid is not None:
            return
        if self._lock is None:
            processes.private_directory(self.directory)
            self._lock = processes.lock(self.directory / f"{self.name}.lock", f"{self.name} in {self.directory}")
        processes.private_directory(self.home)
        self._end_predecessor()
        if self.port == 0:
            self.port = processes.kept_port(self.directory / f"{self.name}.port")
        self._child = self._launch()

    def ready(self) -> bool:
        """Whether connections are answered. Failed when the server has ended."""
        if self._child is None or self._child.poll() is not None:
            code = None if self._child is None else self._child.returncode
            raise Failed(f"{self.name} ended with code {code}\n{self._log_end()}")
        return self._answers(self._child.pid)

    def stop(self, timeout_s: float = 8.0) -> None:
        """End it in order, with force after `timeout_s`, and give the directory back."""
        child = self._child
        if child is not None and child.poll() is None:
            for signum in self._stop_signals:
                child.send_signal(signum)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout_s / len(self._stop_signals))
                    break
        self.kill()
        self._release()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self.port = 0

    @abc.abstractmethod
    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the program."""

    @abc.abstractmethod
    def _answers(self, pid: int) -> bool:
        """Whether the running program says that it accepts connections."""

    @abc.abstractmethod
    def _end_predecessor(self) -> None:
        """End what a killed process of ours left running."""

    @property
    def _log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def trim_log(self) -> None:
        """Put a log that has grown large aside, also while the server appends to it. One earlier is kept."""
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LOG_BYTES:
                shutil.copyfile(self._log, self._log.with_suffix(".log.1"))
                self._log.with_suffix(".log.1").chmod(0o600)
                os.truncate(self._log, 0)

    def _open_log(self) -> IO[bytes]:
        self.trim_log()
        handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(handle, "ab")

    def _log_end(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-15:])
        return ""


def end_all(left: Callable[[], Sequence[int]], leader: int, force: int, patience_s: float = 10.0) -> None:
    """Wait until `left` finds no process any more. `leader` is told by `force` after `patience_s`, then killed.

    Without their leader the others have nothing left to do and are killed at once. Failed when one stays.
    """
    begun = time.monotonic()
    while found := left():
        waited = time.monotonic() - begun
        if waited > patience_s + 10:
            raise Failed(f"processes of an earlier start cannot be ended: {', '.join(map(str, found))}")
        if leader not in found or waited > patience_s + 3:
            _tell(found, signal.SIGKILL)
        elif waited > patience_s:
            _tell([leader], force)
        time.sleep(0.01)


def _tell(pids: Sequence[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
