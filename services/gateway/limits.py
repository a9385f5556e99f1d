"""How many requests a credential, or else an address, has left in the last minute, whichever gateway it asks."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from infra import config
from services.gateway import dialects, headers
from services.gateway.headers import Pair
from services.gateway.limits_shared import Shared

WINDOW_S = 60
_CROWDED = 10_000  # callers remembered before the idle ones are forgotten
_STEPS_PER_S = 10
_FORWARDED = b"x-forwarded-for"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


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


class Window:
    """What one caller was let through in the last minute, as far as this process knows: moments, rounded up to tenths
    of a second, and how many then. Counted for all gateways and not used yet are `spare`; `left` is what all of them
    together had left then."""

    __slots__ = ("full_until", "left", "moments", "spare", "spared_at", "total")

    def __init__(self) -> None:
        self.moments: deque[list[float]] = deque()
        self.total = 0
        self.spare = self.left = 0
        self.spared_at = 0.0
        self.full_until = 0.0

    def expire(self, now: float) -> None:
        while self.moments and self.moments[0][0] <= now - WINDOW_S:
            self.total -= int(self.moments.popleft()[1])
        if self.spared_at <= now - WINDOW_S:
            self.spare = 0

    def add(self, now: float) -> None:
        moment = math.ceil(now * _STEPS_PER_S) / _STEPS_PER_S
        if self.moments and self.moments[-1][0] == moment:
            self.moments[-1][1] += 1
        else:
            self.moments.append([moment, 1])
        self.total += 1

    def reset_s(self, now: float) -> int:
        return math.ceil(self.moments[0][0] + WINDOW_S - now) if self.moments else 0


_UNHEARD = Window()


class Limiter:
    """A sliding minute: never more than `limit` in any 60 s, whoever asks. Refused requests are not counted.

    With `shared` all gateways count together. Large limits are drawn on in portions of a hundredth, so that few
    requests wait for Postgres; what nobody may have any more is refused without it; and where it does not answer, each
    gateway counts for itself.
    """

    def __init__(
        self, limit: int, clock: Callable[[], float] = time.monotonic, shared: Shared | None = None, name: str = ""
    ) -> None:
        self._limit, self._clock, self._shared, self._name = limit, clock, shared, name
        self._portion = max(1, limit // 100)
        self._callers: dict[str, Window] = {}

    async def take(self, caller: str) -> Allowance:
        now = self._clock()
        window = self._window(caller, now)
        if self._shared is None:
            return self._alone(window, now)
        if window.spare:
            window.spare -= 1
            window.left -= 1
            return self._let_through(window, now, max(window.left, 0))
        if now < window.full_until:
            return Allowance(self._limit, 0, math.ceil(window.full_until - now), True)
        said = await self._shared.take(f"{self._name} {caller}", self._portion, self._limit)
        now = self._clock()
        if said is None:
            return self._alone(window, now)
        if said.granted:
            window.spare, window.spared_at, window.left = window.spare + said.spare, now, said.remaining
            return self._let_through(window, now, said.remaining)
        window.full_until = now + said.reset_s
        return Allowance(self._limit, 0, math.ceil(said.reset_s), True)

    def known(self, caller: str) -> Allowance:
        """What this process knows of a caller, without counting anything."""
        now, window = self._clock(), self._callers.get(caller, _UNHEARD)
        window.expire(now)
        full = now < window.full_until
        remaining = 0 if full else max(self._limit - window.total, 0)
        return Allowance(self._limit, remaining, window.reset_s(now), full)

    def _alone(self, window: Window, now: float) -> Allowance:
        window.expire(now)
        if window.total >= self._limit:
            return Allowance(self._limit, 0, window.reset_s(now), True)
        return self._let_through(window, now, self._limit - window.total - 1)

    def _let_through(self, window: Window, now: float, remaining: int) -> Allowance:
        window.add(now)
        return Allowance(self._limit, remaining, window.reset_s(now), False)

    def _window(self, caller: str, now: float) -> Window:
        window = self._callers.get(caller)
        if window is None:
            if len(self._callers) >= _CROWDED:
                self._forget_idle(now)
            window = self._callers[caller] = Window()
        window.expire(now)
        return window

    def _forget_idle(self, now: float) -> None:
        for caller, window in list(self._callers.items()):
            window.expire(now)
            if not window.total and now >= window.full_until:
                del self._callers[caller]


class Limits:
    """The limits of all families, and whom a request is counted for where it shows no credential."""

    def __init__(
        self, settings: config.Limits, clock: Callable[[], float] = time.monotonic, shared: Shared | None = None
    ) -> None:
        per_minute = (0, settings.family1, settings.family2, settings.family3, settings.family4, settings.family5)
        self._limiters = {
            family: Limiter(limit, clock, shared, f"family {family}")
            for family, limit in enumerate(per_minute)
            if limit
        }
        self._proxies = [ipaddress.ip_network(one) for one in settings.trusted_proxies]
        self._shared = shared
        #: Whether anything but family 3 is counted, which has a prefix of its own.
        self.widely = bool(self._limiters.keys() - {3})

    def counts(self, family: int) -> bool:
        return family in self._limiters

    async def take(self, family: int, caller: str) -> Allowance | None:
        """Counts a request; None where its family has no limit."""
        limiter = self._limiters.get(family)
        return None if limiter is None else await limiter.take(caller)

    def address(self, scope: Any) -> str:
        """The caller to count where there is no credential: the socket's address, whatever headers say; behind a proxy
        that is trusted, the last address that no trusted one stands for. Of IPv6 the network, which one host has
        whole."""
        client = scope.get("client")
        found = _parsed(client[0]) if client else None
        if found is None:
            return "address unknown"
        if self._proxies and self._trusted(found):
            found = self._behind(found, headers.of(scope).get(_FORWARDED, b""))
        if isinstance(found, ipaddress.IPv6Address) and not found.is_loopback:
            return f"address {ipaddress.ip_network((found, 64), strict=False)}"
        return f"address {found}"

    def _behind(self, proxy: Address, said: bytes) -> Address:
        found = proxy
        for part in reversed(said.decode("latin-1").split(",")):
            before = _parsed(part.strip())
            if before is None:
                break
            found = before
            if not self._trusted(found):
                break
        return found

    def _trusted(self, address: Address) -> bool:
        return any(address in network for network in self._proxies)

    def told(self, path: str, client: Any) -> Sequence[Pair]:
        """What is left of its address, as far as this process knows, for a request that cannot even be read."""
        limiter = self._limiters.get(dialects.by_path(path).family)
        return () if limiter is None else limiter.known(self.address({"client": client, "headers": ()})).headers()

    async def run(self) -> None:
        """Serves until cancelled: forgets callers that were not heard of."""
        if self._shared is None or not self._limiters:
            return
        while True:
            await asyncio.sleep(WINDOW_S)
            await self._shared.sweep(2 * WINDOW_S)


def _parsed(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address
