"""A container as a process of this machine on a terminal of its own: a real console, real signals, a real end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

#: As the engine cuts long lines.
_PIECE = 16 * 1024

#: What the images of servers do with `STARTUP`: placeholders become variables, and a shell evaluates it.
ENTRYPOINT = ["/bin/sh", "-c", 'eval "$(echo "$STARTUP" | sed -e "s/{{/\\${/g" -e "s/}}/}/g")"']


def stamp(at: int) -> str:
    return datetime.fromtimestamp(at // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{at % 10**9:09d}Z"


def _heed() -> None:
    """In a container nothing of what we were started to ignore is ignored."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Process:
    """`lines` are the log: when, and what, with its end unless it is a piece. Threads read and wait; `changed` is
    called from them."""

    def __init__(
        self, command: list[str], environment: dict[str, str], folder: str, changed: Callable[[], None]
    ) -> None:
        self.lines: list[tuple[int, bytes]] = []
        self.code: int | None = None
        self.started = time.time_ns()
        self._changed = changed
        self._terminal, theirs = os.openpty()
        self._popen = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=folder,
            start_new_session=True,
            process_group=None,
            preexec_fn=_heed,
        )
        os.close(theirs)
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._wait, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._terminal, data)

    def signal(self, number: int) -> None:
        """To the first process; SIGKILL ends all, as it does with the first of a namespace."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def stats(self) -> dict[str, Any]:
        """As the control groups of this machine's version 1 tell, from /proc."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            fields = [b"0"] * 30
        ticks = os.sysconf("SC_CLK_TCK")
        used = (int(fields[11]) + int(fields[12])) * 10**9 // ticks
        resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/stat", "rb") as file:
            system = sum(int(part) for part in file.readline().split()[1:9]) * 10**9 // ticks
        return {
            "cpu_stats": {
                "cpu_usage": {"total_usage": used},
                "system_cpu_usage": system,
                "online_cpus": os.cpu_count(),
            },
            "memory_stats": {
                "usage": resident + 4096,
                "stats": {"total_inactive_file": 4096, "active_anon": resident},
                "limit": 1 << 62,
            },
            "networks": {"eth0": {"rx_bytes": 11, "tx_bytes": 7}, "eth1": {"rx_bytes": 100, "tx_bytes": 50}},
        }

    def _read(self) -> None:
        buffer = b""
        while True:
            try:
                data = os.read(self._terminal, 65536)
            except OSError:  # nobody has the other side any more
                data = b""
            buffer = self._cut(buffer + data)
            if not data:
                break
            self._changed()
        if buffer:
            self.lines.append((time.time_ns(), buffer))
        self._changed()

    def _cut(self, buffer: bytes) -> bytes:
        while True:
            end = buffer.find(b"\n", 0, _PIECE)
            if end < 0 and len(buffer) < _PIECE:
                return buffer
            size = _PIECE if end < 0 else end + 1
            self.lines.append((time.time_ns(), buffer[:size]))
            buffer = buffer[size:]

    def _wait(self) -> None:
        code = self._popen.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # with the first process its namespace ends
        self._threads[0].join()
        os.close(self._terminal)
        self.code = 128 - code if code < 0 else code
        self._changed()
