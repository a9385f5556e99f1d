"""Observing two folders: their listings, what the pair's record says, and where contents differ.

The two trees are scanned by two processes, and contents are compared by two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from domain import errors
from domain.plans.files import Contents, Step, steps
from domain.plans.patterns import Scope
from infra import paths
from services.worker import files_record as records
from services.worker.files_compare import Comparer, Earlier, Queue, write
from services.worker.files_context import Board, Context, Pulse
from services.worker.files_journal import Journals
from services.worker.files_listing import Listing
from services.worker.files_pair import Pair
from services.worker.files_processes import Second
from services.worker.files_scan import Scan, Scanned


class _Told(Struct):
    """What the second process saw: of the target, and of the source, and where the parts of the latter end."""

    target: Scanned
    source: Scanned
    ends: list[int]


@contextmanager
def _readable(which: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.SyncFailed(f"{which} directory cannot be read: {error.strerror}") from None


_encode = msgspec.msgpack.Encoder().encode
_told = msgspec.msgpack.Decoder(_Told).decode
_BUFFER = 1 << 17


class Observer:
    def __init__(self, pair: Pair, scope: Scope, context: Context, board: Board, pulse: Pulse) -> None:
        self._pair, self._scope, self._context, self._board, self._pulse = pair, scope, context, board, pulse
        self._compared: list[Path] = []
        self.source = self.target = Scanned()
        self.record = records.Record(records.Head())
        self._listings: list[Listing] = []

    def close(self) -> None:
        self.record.close()
        for one in self._listings:
            one.close()

    def scan(self) -> None:
        """Raises errors.SyncFailed when a root cannot be read, Invalid when one lies in the other after all.

        One process scans the source from its first folder on; the other one the target, and then what is left of the
        source, from its last folder on.
        """
        pair, board = self._pair, self._board
        board.rewind()
        with self._new("source") as out:
            ours = self._tree(pair.source, out, source=True, beat=self._pulse.beat)
            with _readable("Source"):
                tops = ours.top()
            second = Second(lambda: _encode(self._other(tops)))
            with ExitStack() as stack:
                stack.callback(second.kill)
                with _readable("Source"):
                    while (index := self._take(len(tops), 0)) is not None and ours.tree(tops[index]):
                        pass
                self.source = ours.end()
                told: _Told = _told(second.answer(self._pulse.beat))
            self.target = told.target
            self.source.add(told.source)
            self._append(out, told.ends)
        self.source_listing, self.target_listing = self._listing("source"), self._listing("target")

    def _other(self, tops: list[bytes]) -> _Told:
        def beat() -> bool:
            return self._board.stopped

        told = _Told(Scanned(), Scanned(), [])
        with self._new("target") as out:
            if self._pair.target is not None:
                with _readable("Target"):
                    told.target = self._tree(self._pair.target, out, source=False, beat=beat).run()
        with self._new("source-rest") as out, _readable("Source"):
            ours = self._tree(self._pair.source, out, source=True, beat=beat)
            while (index := self._take(len(tops), 1)) is not None and ours.tree(tops[index]):
                told.ends.append(out.tell())
            told.source = ours.end()
        return told

    def _take(self, count: int, side: int) -> int | None:
        """The next of the source's folders from one of its ends."""
        with self._board.queue() as heads:
            if heads[0] + heads[1] >= count:
                return None
            heads[side] += 1
            return count - int(heads[1]) if side else int(heads[0]) - 1

    def _append(self, out: BinaryIO, ends: list[int]) -> None:
        """What the other process scanned, the last folder first."""
        rest = self._context.work / "source-rest"
        with rest.open("rb") as file:
            for start, end in zip(reversed([0, *ends][:-1]), reversed(ends), strict=True):
                file.seek(start)
                while start < end:
                    part = file.read(min(_BUFFER, end - start))
                    start += len(part)
                    out.write(part)
        rest.unlink()

    def _tree(self, root: int, out: BinaryIO, *, source: bool, beat: Callable[[], bool]) -> Scan:
        avoid = self._pair.target_identity if source else paths.identity(self._pair.source)
        return Scan(root, out, self._scope, source=source, avoid=avoid, beat=beat)

    def _new(self, name: str) -> BinaryIO:
        return (self._context.work / name).open("wb", buffering=_BUFFER)

    def _listing(self, name: str) -> Listing:
        with (self._context.work / name).open("rb") as file:
            listing = Listing(file)
        self._listings.append(listing)
        return listing

    @property
    def errors(self) -> list[str]:
        return [*self.source.errors, *self.target.errors]

    @property
    def error_count(self) -> int:
        return self.source.error_count + self.target.error_count

    # What earlier runs left.

    def remember(self, into: Path | None) -> None:
        """Loads the pair's record, and folds in the journals of runs that were killed; the result goes to `into`."""
        path = self._context.record
        self.record = records.load(path, self._context.log)
        journals = Journals.beside(path)
        if not journals or into is None:
            return
        head = self.record.head
        begins = journals.begins()
        generation = max((generation for generation, _ in begins), default=0)
        if generation > head.generation:
            ours = any(job == self._context.job for _, job in begins)
            carried = head.carried if ours and head.carried.job == self._context.job else None
            head.carried = carried or records.Carried(self._context.job if ours else "")
            head.generation = generation
            self._fold(into, journals, head, ours)
            self.record.close()
            self.record = records.load(into, self._context.log)
        if into == path:
            journals.drop()

    def _fold(self, into: Path, journals: Journals, head: records.Head, ours: bool) -> None:
        body = into.with_name(f"{into.name}.folding")
        copied = self._context.work / ("compared-0-0" if ours else "copied")
        file = os.open(copied, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        into.parent.mkdir(parents=True, exist_ok=True)
        try:
            with body.open("wb", buffering=_BUFFER) as out:
                listed = steps((), self.target_listing, self.record.folders)
                records.fold(listed, journals, head.carried, out.write, lambda found: write(file, [found]))
        finally:
            os.close(file)
        writer = records.Writer(into, head)
        with body.open("rb") as folded:
            while part := folded.read(_BUFFER):
                writer.write(part)
        writer.finish()
        body.unlink()

    # Contents.

    def compare(self) -> None:
        """Compares every pair of files of one size."""
        work = self._context.work
        before = sorted(work.glob("compared-*"))
        attempt = 1 + max((int(path.name.split("-")[1]) for path in before), default=0)
        self._compared = [work / f"compared-{attempt}-{number}" for number in (0, 1)]
        if self._pair.target is None:
            return
        roots = (self._pair.source, self._pair.target)
        self._board.rewind()
        queue = Queue(self._board, self.source_listing, self.target_listing)

        def work_off(number: int, beat: Callable[[], bool]) -> bytes:
            return Comparer(roots, queue, self._board, Earlier(before), self._compared[number], beat).run()

        def second() -> bytes:
            self._board.second()
            return work_off(1, lambda: self._board.stopped)

        helper = Second(second)
        with ExitStack() as stack:
            stack.callback(helper.kill)
            work_off(0, self._pulse.beat)
            helper.answer(self._pulse.beat)

    def forget(self) -> None:
        """At the end of a job: another one compares for itself."""
        for path in self._context.work.glob("compared-*"):
            path.unlink()

    def steps(self) -> Iterator[Step]:
        return steps(self.source_listing, self.target_listing, self.record.folders)

    def contents(self) -> Contents | None:
        """To be asked once, in order; None when contents were not compared."""
        if not self._compared:
            return None
        return Earlier(path for path in self._compared if path.exists()).verdicts
