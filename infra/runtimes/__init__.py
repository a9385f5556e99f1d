"""What runs servers on this machine: one port, with an adapter for processes and one for containers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import Struct

from domain.server_config import Allocations, Limits, Mount, Stop


class Launch(Struct, frozen=True):
    """What is started: `invocation` still holds its `{{PLACEHOLDERS}}`, which stand for variables of `environment`.
    `folder` is the server's own, its home and where it begins."""

    uuid: str
    folder: str
    image: str
    invocation: str
    environment: dict[str, str]
    limits: Limits
    mounts: tuple[Mount, ...] = ()
    allocations: Allocations = Allocations(False, None, {})
    labels: dict[str, str] = {}
    oom_disabled: bool = True


class Identity(Struct, frozen=True):
    """Which process it is: `started`, in clock ticks since boot, tells it from a later one of the same number."""

    pid: int
    started: int


class Usage(Struct, frozen=True):
    """Bytes; `cpu_absolute` in percent of one core since the last time it was asked."""

    memory_bytes: int = 0
    cpu_absolute: float = 0.0
    rx_bytes: int = 0
    tx_bytes: int = 0
    uptime_ms: int = 0


class Running(Protocol):
    """A server that runs, or has just ended. Every call but `ended` returns soon."""

    @property
    def identity(self) -> Identity: ...

    def output(self) -> AsyncIterator[bytes]:
        """Its lines, without their ends, from the first that nobody was given yet; over when it has ended. Lines are
        dropped, never held up, when nobody takes them; one line is at most 16 KiB."""
        ...

    async def recent(self, lines: int) -> Sequence[bytes]:
        """The last of its lines, at most so many."""
        ...

    async def say(self, line: str) -> None:
        """A line on its input."""
        ...

    async def limit(self, limits: Limits) -> None:
        """From now on. Raises errors.SyncFailed where the machine does not let us."""
        ...

    async def stop(self, how: Stop) -> None:
        """Asks it to end."""
        ...

    async def kill(self) -> None:
        """Ends it and all it has started."""
        ...

    async def ended(self) -> int | None:
        """Waits for its end: the exit code, negative for a signal; None when nobody knows."""
        ...

    async def usage(self) -> Usage: ...


class Runtime(Protocol):
    """To be closed at the end; servers run on. Raises errors.SyncFailed with what is wrong, errors.Unavailable where
    nothing can be started at present."""

    async def start(self, launch: Launch) -> Running: ...

    async def adopt(self) -> dict[str, Running]:
        """What runs already, from before we began: by uuid. What ended meanwhile is in it as well, once."""
        ...

    async def remove(self, uuid: str) -> None:
        """What is kept of one that does not run; never its files."""
        ...

    async def close(self) -> None: ...
