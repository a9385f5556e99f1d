"""How often background work looks again: at once after a pause, less often the more a look takes."""

from __future__ import annotations

import asyncio

#: A turn and the rest behind it take at least so many times what the turn took: the rest is others' time.
_SHARE = 3.0
#: Turns less than this apart belong to one stretch of work.
_STRETCH_S = 0.1


class Pace:
    """Turns of work that follow one another begin at least `shortest` seconds apart, and more when the machine is
    so busy that each takes long: then there are fewer, and each has more to do at once. Never more than `longest`
    apart, and not at all where a turn left work undone: what has fallen behind gets on.

    In a stretch of work a turn waits `gather` seconds for what is about to come with what has come.
    """

    def __init__(self, shortest: float, gather: float = 0.0, longest: float = 0.05) -> None:
        self._shortest, self._gather, self._longest = shortest, gather, max(shortest, longest)
        self._began = self._took = 0.0
        self._behind = False

    async def begin(self) -> None:
        """Waits for the next turn."""
        loop = asyncio.get_running_loop()
        since = loop.time() - self._began
        if since < _STRETCH_S and not self._behind:
            apart = min(max(self._shortest, _SHARE * self._took), self._longest)
            await asyncio.sleep(max(apart - since, self._gather))
        self._began = loop.time()

    def end(self, behind: bool = False) -> None:
        """The turn is over; `behind` when it left work undone."""
        self._took = asyncio.get_running_loop().time() - self._began
        self._behind = behind
