"""Work that is done in its order, off the event loop: a lane uses a thread only while it has some."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Work = Callable[[], object]

_THREADS = ThreadPoolExecutor(8, "lane")


class Lane:
    """What is put here is done one after the other; it must not raise."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._waiting: deque[Work] = deque()
        self._running = False

    def put(self, work: Work) -> None:
        with self._turn:
            self._waiting.append(work)
            if self._running:
                return
            self._running = True
        _THREADS.submit(self._run)

    def _run(self) -> None:
        while True:
            with self._turn:
                if not self._waiting:
                    self._running = False
                    return
                work = self._waiting.popleft()
            work()
