"""What waits for one endpoint: the part of it that is in memory, and what may be sent now.

Of each stream one message at a time: the next begins when the one before was delivered or given up. What waits behind
one that failed is not kept in memory but read again when its turn comes.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence

from services.notifying.rows import Row

#: Messages in memory, and streams that may be held up by one that failed, of one endpoint.
WINDOW = 1000
BLOCKED = 1000


class Queue:
    """Numbers up to `seen` were taken into memory or are found by their stream; `last` is the highest there is."""

    def __init__(self, seen: int = 0, last: int = 0) -> None:
        self.seen, self.last = seen, max(seen, last)
        self._rows: dict[int, Row] = {}
        self._streams: dict[str, deque[Row]] = {}
        self._ready: deque[Row] = deque()
        self._waiting: list[tuple[float, int]] = []
        self._due: dict[int, float] = {}
        #: Streams that are not wholly in memory: the first number that is not, and the last.
        self._hidden: dict[str, tuple[int, int]] = {}
        #: Streams whose turn it is to be read.
        self.turns: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def wants_more(self) -> bool:
        """Whether to read the next page of what waits."""
        return self.seen < self.last and len(self._rows) * 2 <= WINDOW and len(self._due) < BLOCKED

    def offer(self, rows: Sequence[Row]) -> None:
        """What was just made; what does not fit is read later."""
        fits = rows[0].seq == self.seen + 1 and len(self._rows) + len(rows) <= WINDOW and len(self._due) < BLOCKED
        self.last = max(self.last, rows[-1].seq)
        if fits:
            self.load(rows, rows[-1].seq)

    def load(self, rows: Sequence[Row], until: int, due: Callable[[Row], float | None] = lambda _: None) -> None:
        """What was read behind `seen`, all that waits to `until`; `due` says when, where that is not now."""
        for row in rows:
            if row.seq > self.seen and row.stream in self._hidden:
                self._hide(row)
            elif row.seq > self.seen:
                self.add(row, due(row))
        self.seen = max(self.seen, until)
        self.last = max(self.last, until)

    def add(self, row: Row, due: float | None = None) -> None:
        """Takes one into memory, at the end of its stream; to be tried at `due` on the loop's clock, or at once."""
        if row.seq in self._rows:
            return None
        if row.stream in self._hidden and row.seq >= self._hidden[row.stream][0]:
            return self._hide(row)
        stream = self._streams.setdefault(row.stream, deque())
        self._rows[row.seq] = row
        if due is not None and not stream:
            self._wait(row, due)
        elif not stream:
            self._ready.append(row)
        elif stream[0].seq in self._due and row.seq > stream[0].seq:
            del self._rows[row.seq]
            return self._hide(row)
        stream.append(row)
        return None

    def ready(self, now: float) -> int:
        """How many may be sent now."""
        while self._waiting and self._waiting[0][0] <= now:
            due, seq = heapq.heappop(self._waiting)
            if self._due.get(seq) == due:
                del self._due[seq]
                self._ready.append(self._rows[seq])
        return len(self._ready)

    def next(self, now: float) -> Row | None:
        """What may be sent now; it is under way then."""
        return self._ready.popleft() if self.ready(now) else None

    def skip(self, until: int) -> None:
        """Nothing waits to that number."""
        self.seen, self.last = max(self.seen, until), max(self.last, until)

    @property
    def next_due(self) -> float | None:
        """When something that waits may be tried again."""
        return self._waiting[0][0] if self._waiting else None

    def done(self, row: Row) -> None:
        """Delivered or given up: the next of its stream may go."""
        stream = self._streams[row.stream]
        stream.popleft()
        del self._rows[row.seq]
        if stream:
            self._ready.append(stream[0])
        elif row.stream in self._hidden:
            self.turns.append(row.stream)
        else:
            del self._streams[row.stream]

    def hidden(self, stream: str) -> int:
        """From which number on a stream is to be read."""
        return self._hidden[stream][0] if stream in self._hidden else self.last + 1

    def turn(self, stream: str, rows: Sequence[Row], begin: int, until: int, *, more: bool) -> None:
        """What was read of a stream that was held up, of the numbers `begin` to `until`; `more` when there is more."""
        if stream not in self._hidden:
            return  # read already: its turn had come twice
        waiting = self._streams[stream]
        first, last = self._hidden[stream]
        if first >= begin:
            self._take(waiting, rows)
            first = rows[-1].seq + 1 if more else until + 1
        # Else something that comes before left the memory meanwhile: it is read again from there.
        if first <= last:
            self._hidden[stream] = (first, last)
        else:
            del self._hidden[stream]
        if not waiting and first <= last:
            self.turns.append(stream)
        elif not waiting:
            del self._streams[stream]

    def _take(self, waiting: deque[Row], rows: Sequence[Row]) -> None:
        fresh = [row for row in rows if row.seq not in self._rows]
        for row in fresh:
            self._rows[row.seq] = row
        if not waiting and fresh:
            self._ready.append(fresh[0])
        waiting.extend(fresh)

    def retry(self, row: Row, due: float) -> None:
        """It failed: again at `due`. What waits behind it leaves the memory."""
        stream = self._streams[row.stream]
        stream.popleft()
        older = [behind for behind in stream if behind.seq < row.seq]
        for behind in stream:
            if behind.seq > row.seq:
                del self._rows[behind.seq]
                self._hide(behind)
        self._streams[row.stream] = deque([row, *older])
        self._wait(row, due)

    def again(self, row: Row) -> None:
        """It was not sent after all: first of all once more."""
        self._ready.appendleft(row)

    def hurry(self, seqs: Sequence[int] | None = None) -> None:
        """What waits after a failure, or some of it, may be tried at once."""
        for seq in list(self._due) if seqs is None else seqs:
            if self._due.pop(seq, None) is not None:
                self._ready.append(self._rows[seq])

    def _hide(self, row: Row) -> None:
        first, last = self._hidden.get(row.stream, (row.seq, row.seq))
        self._hidden[row.stream] = (min(row.seq, first), max(row.seq, last))

    def _wait(self, row: Row, due: float) -> None:
        self._due[row.seq] = due
        heapq.heappush(self._waiting, (due, row.seq))
