"""Observing two folders: their listings, what the pair's record says, and where contents differ.

The two trees are scanned by two processes, and contents are compared by two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec

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

_encode = msgspec.msgpack.Encoder().encode
_scanned = msgspec.msgpack.Decoder(Scanned).decode
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
        """Raises errors.SyncFailed when a root cannot be read, Invalid when one lies in the other after all."""
        pair = self._pair
        if pair.target is None:
            self._new("target").close()
            self.source = self._tree(pair.source, source=True, avoid=pair.target_identity, beat=self._pulse.beat)
        else:
            ours, theirs = paths.identity(pair.source), pair.target_identity
            target = pair.target
            second = Second(
                lambda: _encode(self._tree(target, source=False, avoid=ours, beat=lambda: self._board.stopped))
            )
            with ExitStack() as stack:
                stack.callback(second.kill)
                self.source = self._tree(pair.source, source=True, avoid=theirs, beat=self._pulse.beat)
                self.target = _scanned(second.answer(self._pulse.beat))
        self.source_listing, self.target_listing = self._listing("source"), self._listing("target")

    def _tree(self, root: int, *, source: bool, avoid: tuple[int, int] | None, beat: Callable[[], bool]) -> Scanned:
        with self._new("source" if source else "target") as out:
            try:
                return Scan(root, out, self._scope, source=source, avoid=avoid, beat=beat).run()
            except OSError as error:
                which = "Source" if source else "Target"
                raise errors.SyncFailed(f"{which} directory cannot be read: {error.strerror}") from None

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
