"""What waits for an endpoint: whatever fails, whenever it is read, each message goes once at a time and in order."""

from __future__ import annotations

import random

import pytest

from services.notifying import queue as module
from services.notifying.queue import Queue
from services.notifying.rows import Row

_PAGE = 4


class Table:
    """The rows of one endpoint as the database has them, and a queue that reads them as a courier does."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.queue = Queue()
        self.streams: dict[int, str] = {}
        self.pending: set[int] = set()
        self.under_way: dict[str, Row] = {}
        self.finished: list[int] = []
        self.now = 0.0
        #: Rows that somebody wanted once more after they were done.
        self.wanted: set[int] = set()

    def row(self, seq: int) -> Row:
        return Row(seq, seq, "name", self.streams[seq], f"msg_{seq}")

    def make(self) -> None:
        first = len(self.streams) + 1
        made = range(first, first + self.chance.randint(1, 6))
        for seq in made:
            self.streams[seq] = f"s{self.chance.randint(0, 3)}"
            self.pending.add(seq)
        self.queue.offer([self.row(seq) for seq in made])

    def read(self) -> None:
        while self.queue.turns:
            stream = self.queue.turns[0]
            first, until = self.queue.hidden(stream), self.queue.seen
            found = [seq for seq in sorted(self.pending) if first <= seq <= until and self.streams[seq] == stream]
            page = [self.row(seq) for seq in found[:_PAGE]]
            self.queue.turn(stream, page, first, until, more=len(page) >= _PAGE)
            self.queue.turns.popleft()
        if self.queue.wants_more:
            last = self.queue.last
            page = [self.row(seq) for seq in sorted(self.pending) if seq > self.queue.seen][:_PAGE]
            self.queue.load(page, last if len(page) < _PAGE else page[-1].seq)

    def begin(self) -> None:
        row = self.queue.next(self.now)
        if row is None:
            return
        assert row.stream not in self.under_way, "two of one stream at once"
        assert row.seq in self.pending, "what was done is sent again"
        if row.seq not in self.wanted:
            before = [seq for seq in self.pending if seq < row.seq and self.streams[seq] == row.stream]
            assert set(before) <= self.wanted, "one that comes first still waits"
        self.under_way[row.stream] = row

    def end(self, fails: float) -> None:
        if not self.under_way:
            return
        row = self.under_way.pop(self.chance.choice(sorted(self.under_way)))
        if self.chance.random() < fails:
            self.queue.retry(row, self.now + self.chance.uniform(0, 5))
        else:
            self.pending.discard(row.seq)
            self.finished.append(row.seq)
            self.wanted.discard(row.seq)
            self.queue.done(row)

    def want(self) -> None:
        """Somebody wants one once more that is done, or does not want to wait any longer."""
        if self.streams:
            seq = self.chance.randint(1, len(self.streams))
            if seq in self.finished and seq not in self.pending:
                self.wanted.add(seq)
                self.pending.add(seq)
            if seq in self.pending:
                self.queue.hurry([seq])
                if seq <= self.queue.seen:
                    self.queue.add(self.row(seq))


@pytest.mark.parametrize("seed", range(200))
def test_each_goes_once_and_in_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 12)
    monkeypatch.setattr(module, "BLOCKED", 3)
    table = Table(seed)
    wants = seed % 2 == 1
    for _ in range(400):
        table.now += table.chance.uniform(0, 0.5)
        act = table.chance.choices(["make", "read", "begin", "end", "want"], [1, 4, 5, 5, 1 if wants else 0])[0]
        if act == "end":
            table.end(fails=0.4)
        else:
            getattr(table, act)()
    for _ in range(20_000):
        if not table.pending:
            break
        table.now += 1
        table.read()
        table.begin()
        table.end(fails=0.1)
    assert table.pending == set()
    assert set(table.finished) == set(table.streams)
    assert len(table.queue) == 0
    if not wants:
        assert len(table.finished) == len(table.streams)
        for stream in set(table.streams.values()):
            mine = [seq for seq in table.finished if table.streams[seq] == stream]
            assert mine == sorted(mine)
