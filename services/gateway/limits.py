"""How many requests a credential, or else an address, has left in the last minute."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from services.gateway.headers import Pair

WINDOW_S = 60
_CROWDED = 10_000  # callers remembered before the idle ones are forgotten


class Allowance(Struct, frozen=True):
    """`remaining` after this request; `reset_s` until the oldest counted one leaves the window."""

    limit: int
    remaining: int
    reset_s: int
    exceeded: bool

    def headers(self) -> list[Pair]:
        return [
            (b"x-ratelimit-limit", b"%d" % self.limit),
            (b"x-ratelimit-remaining", b"%d" % self.remaining),
            (b"x-ratelimit-reset", b"%d" % self.reset_s),
        ]


class _Counts:
    """Requests per second of the window, oldest first, and their sum."""

    __slots__ = ("seconds", "total")

    def __init__(self) -> None:
        self.seconds: deque[list[int]] = deque()
        self.total = 0

    def expire(self, now: int) -> None:
        while self.seconds and self.seconds[0][0] <= now - WINDOW_S:
            self.total -= self.seconds.popleft()[1]

    def add(self, now: int) -> None:
        if self.seconds and self.seconds[-1][0] == now:
            self.seconds[-1][1] += 1
        else:
            self.seconds.append([now, 1])
        self.total += 1


class Limiter:
    """A sliding minute in steps of a second: never more than `limit` in any 60 s, whoever asks.

    It counts within one process. Refused requests are not counted.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._callers: dict[str, _Counts] = {}

    def take(self, caller: str) -> Allowance:
        now = math.floor(self._clock())
        counts = self._callers.get(caller)
        if counts is None:
            if len(self._callers) >= _CROWDED:
                self._forget_idle(now)
            counts = self._callers[caller] = _Counts()
        counts.expire(now)
        exceeded = counts.total >= self._limit
        if not exceeded:
            counts.add(now)
        reset_s = counts.seconds[0][0] + WINDOW_S - now + 1 if counts.seconds else 0
        return Allowance(self._limit, self._limit - counts.total, reset_s, exceeded)

    def _forget_idle(self, now: int) -> None:
        for caller, counts in list(self._callers.items()):
            counts.expire(now)
            if not counts.total:
                del self._callers[caller]
