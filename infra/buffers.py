"""Memory that bytes pass through on their way to the disk: whole pages, lent and given back, so that it is not asked of
the system again and again, and so that it stays little however many want some."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence

PAGE = 4096

_LARGE, _LARGE_COUNT = 1 << 20, 4
_SMALL, _SMALL_COUNT = 256 * 1024, 2
#: How many large sets are out at most; whoever comes then has a small one.
_MOST_LARGE = 4
#: How many of each size wait for the next who wants one.
_KEPT = {_LARGE: 1, _SMALL: 2}


class Set:
    """Some buffers of the same size, each of whole pages, for one user at a time."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        whole = memoryview(mmap.mmap(-1, size * count))
        self.buffers: Sequence[memoryview] = [whole[at * size : (at + 1) * size] for at in range(count)]


class Pool:
    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._waiting: dict[int, list[Set]] = {_LARGE: [], _SMALL: []}
        self._large = 0

    def lend(self, length: int) -> Set:
        """For so many bytes; large ones need no more than four of them and some pages."""
        with self._turn:
            large = length > _SMALL * _SMALL_COUNT and self._large < _MOST_LARGE
            self._large += large
            size, count = (_LARGE, _LARGE_COUNT) if large else (_SMALL, _SMALL_COUNT)
            waiting = self._waiting[size]
            return waiting.pop() if waiting else Set(size, count)

    def give_back(self, lent: Set) -> None:
        with self._turn:
            self._large -= lent.size == _LARGE
            if len(self._waiting[lent.size]) < _KEPT[lent.size]:
                self._waiting[lent.size].append(lent)


POOL = Pool()
