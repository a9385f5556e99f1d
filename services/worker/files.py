"""Folder syncs: observe, plan, check the guards, carry out, verify, record.

`run` and `plan` are synchronous and want a process of their own, without other threads and without an event loop: they
fork a second process to share the work with. What one run needs of another lies beside the record of the pair (what the
target looked like, and the journal of a run that was killed) and in the job's scratch folder (what it had compared).

Kept are contents, modes, times in nanoseconds (of folders and links, too), links as links, holes as holes, any name.
Hard links become files of their own; FIFOs, sockets and devices are skipped with a line in the log; owners, ACLs and
extended attributes are not looked at. Filesystems are crossed.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec
from msgspec import Struct

from domain import errors, jobs
from domain.plans import files as plans
from domain.plans.files import Counts, Result, Shown, Spec, Summary, show
from domain.plans.files_planner import Planner, shown
from infra import paths
from services.worker import child, connectors
from services.worker import files_record as records
from services.worker.files_context import Board, Context, Progress, Pulse, Troubles, bounded
from services.worker.files_execute import Executor, Site
from services.worker.files_finish import Finisher
from services.worker.files_journal import DELETIONS, REPLACEMENTS, SWAPS, Journal, Journals, path_of
from services.worker.files_observe import Observer
from services.worker.files_pair import Pair
from services.worker.files_processes import Second
from services.worker.files_trash import Trash

__all__ = ["Context", "Progress", "plan", "run", "sync"]

_SHOWN = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)
_COLLECT_EVERY = 50_000


def run(spec: Spec, context: Context) -> Result:
    """Brings the target to the source's state; a stop asked for on the way gives a partial result.

    Raises errors.Invalid (paths that overlap, wrong patterns), Forbidden (outside the roots), Conflict (another sync
    of that target runs), SyncFailed (no source, for one), Held (a guard; `plan` and the counts in its details),
    PlanChanged, StorageFull.
    """
    job = _Job(spec, context)
    connectors.drive(job, job.stopped)
    return job.outcome


def sync(spec: Spec, context: Context) -> child.Done:
    """As `run`, for whom a worker's child answers."""
    job = _Job(spec, context)
    return connectors.drive(job, job.stopped)


def plan(spec: Spec, context: Context) -> Summary:
    """What `run` would do, and the hash of that plan; changes nothing. Raises what `run` raises before it changes
    anything, except Held, and TimedOut when a stop was asked for."""
    with _Job(spec, context) as job:
        return job.foresee()


class _Planned(NamedTuple):
    """`current`: the record says what the target looks like; `moved`: the target is another folder than it was."""

    counts: Counts
    hash: str
    held: str | None
    current: bool
    moved: bool
    first: tuple[Shown, ...]
    told: int


class _Done(Struct):
    """What the second process tells at its end; `fatal` is an errno."""

    errors: list[str]
    error_count: int
    fatal: int = 0


_encode = msgspec.msgpack.Encoder().encode
_done = msgspec.msgpack.Decoder(_Done).decode


class _Job:
    """The connector of this kind; what it does is remembered beside the record and needs no cursor."""

    def __init__(self, spec: Spec, context: Context) -> None:
        self._spec, self._context = spec, context
        self._scope = spec.scope()
        self._roots = paths.Roots(context.roots)
        self._troubles = Troubles()
        self._stack = ExitStack()
        self._made: _Planned | None = None
        self._fatal = 0
        self.outcome: Result

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            pair = Pair(self._roots, self._spec.source_directory, self._spec.target_directory)
            stack.callback(pair.close)
            self._context.work.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._board = Board(self._context.work)
            stack.callback(self._board.close)
            thresholds = gc.get_threshold()  # what a scan makes is many, short-lived and without cycles
            gc.set_threshold(_COLLECT_EVERY)
            stack.callback(gc.set_threshold, *thresholds)
            self._pair = pair
            self._pulse = Pulse(self._context, self._board)
            self._observer = Observer(pair, self._scope, self._context, self._board, self._pulse)
            stack.callback(self._observer.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # The two ways through.

    def foresee(self) -> Summary:
        self._observe(self._context.work / "record")
        made = None if self.stopped() else self._make_plan()
        if made is None or self.stopped():
            raise errors.TimedOut("The plan was not made in time")
        counts = made.counts
        return Summary(
            plan_hash=made.hash,
            action_count=made.told,
            created=counts.created,
            updated=counts.updated,
            deleted=counts.deleted,
            conflicts=counts.conflicts,
            bytes=counts.bytes,
            actions=made.first,
            truncated=made.told > len(made.first),
            held=made.held,
            errors=tuple(self._observer.errors[: plans.MAX_ERRORS]),
        )

    def observe(self) -> Iterator[Observer]:
        """One page: the two folders as they are."""
        self._pair.lock()
        self._observe(self._context.record)
        yield self._observer

    def plan(self, page: Observer) -> _Planned:
        made = self._make_plan()
        if not self.stopped():
            self._confirm(made)
        return made

    def apply(self, actions: _Planned) -> None:
        if self.stopped():
            return
        self._made = made = actions
        self._recall()
        self._board.add("processed", made.counts.same + made.counts.skipped)
        self._board.add("skipped", made.counts.skipped)
        if made.counts.actions or self._observer.target.leftovers:
            self._fatal = self._carry_out(made)

    def checkpoint(self, page: Observer) -> None:
        """What became of the target is remembered, also where the work could not go on."""
        made = self._made
        if made is None:
            return
        if not made.current or made.counts.actions:
            self._write_record(made)
        if self._fatal:
            raise errors.StorageFull() if self._fatal in _FULL else errors.SyncFailed(os.strerror(self._fatal))
        if not self.stopped():
            page.forget()

    def result(self) -> child.Done:
        self.outcome = found = self._result("" if self._made is None else self._made.hash)
        counters = jobs.Counters(
            found.processed, found.created, found.updated, found.deleted, found.error_count, found.bytes
        )
        return child.Done(bounded(found), counters, found.stopped)

    def stopped(self) -> bool:
        return self._board.stopped

    # Observing and planning.

    def _observe(self, folded: os.PathLike[str] | None) -> None:
        context, observer = self._context, self._observer
        marker = context.guards.marker
        if marker and not self._pair.marked(marker):
            raise errors.SyncFailed(f"The source lacks its marker {marker}")
        scan_ends = 4 if self._spec.by_content else 10
        self._pulse.stage("scan", 0, scan_ends, lambda: 0.0)
        observer.scan()
        for note in observer.source.notes:
            context.log("info", note)
        self._troubles.extend(observer.errors, observer.error_count)
        self._board.add("errors", observer.error_count)
        if observer.error_count and self._spec.delete_missing_in_target:
            context.log("warn", "Not everything could be read, so nothing will be deleted")
        if self.stopped():
            return
        observer.remember(None if folded is None else Path(folded))
        if self._spec.by_content:
            files = max(min(observer.source.files, observer.target.files), 1)
            self._pulse.stage("compare", scan_ends, 45, lambda: self._board.total("compared") / files)
            observer.compare()

    def _make_plan(self) -> _Planned:
        """Spools the plan; its hash is that of the file."""
        observer, spec = self._observer, self._spec
        head = observer.record.head
        moved = self._pair.target is None or head.target != self._pair.target_identity
        planner = Planner(
            spec,
            observer.contents(),
            safe=not observer.error_count,
            recorded=head.saw(spec.exclude_patterns),
            moved=moved,
        )
        digest = plans.Digest(spec)
        first: list[Shown] = []
        told = 0
        with self._plan_path.open("wb", buffering=1 << 20) as out:
            out.write(digest.header)
            for group in planner.groups(observer.steps()):
                out.write(digest.group(group))
                told += sum(action.op != "settle" for action in group.actions)
                if len(first) < _SHOWN:
                    first += [Shown(a.op, show(path) or ".", a.reason, a.conflict) for path, a in shown(group)]
                if self._pulse.beat():
                    break
        held = plans.holds(spec, self._context.guards, planner.counts, self._pair.device, head.last)
        return _Planned(planner.counts, digest.hexdigest(), held, planner.current, moved, tuple(first[:_SHOWN]), told)

    @property
    def _plan_path(self) -> Path:
        return self._context.plan_out or self._context.work / "plan"

    def _confirm(self, made: _Planned) -> None:
        """The guards, and the hash that somebody has seen."""
        asked = self._spec.plan_hash
        if asked is not None and asked != made.hash:
            raise errors.PlanChanged(plan=made.hash)
        if made.held is None or asked is not None or self._spec.force:
            return
        counts = made.counts
        raise errors.Held(
            f"Held: {made.held}",
            plan=made.hash,
            reason=made.held,
            created=counts.created,
            updated=counts.updated,
            deleted=counts.deleted,
            files=counts.files,
            target_files=counts.target_files,
        )

    # Carrying out.

    def _recall(self) -> None:
        """What earlier runs of this job did counts as its own."""
        carried = self._observer.record.head.carried
        if carried.job == self._context.job:
            for name in ("created", "updated", "deleted", "bytes", "conflicts"):
                self._board.add(name, getattr(carried, name))

    def _carry_out(self, made: _Planned) -> int:
        """Returns the errno of what made it pointless to go on, or 0."""
        record, generation = self._context.record, self._observer.record.head.generation + 1
        if record is not None:
            record.parent.mkdir(parents=True, exist_ok=True)

        def journal(number: int) -> Journal:
            return Journal(path_of(record, number), generation, self._context.job)

        with ExitStack() as stack:
            site = stack.enter_context(self._site(made))
            before, moved = self._board.total("processed"), self._board.total("bytes")
            files = made.counts.created + made.counts.updated + made.counts.deleted
            size = made.counts.bytes

            def done() -> float:
                part = (self._board.total("processed") - before) / max(files, 1)
                return (part + (self._board.total("bytes") - moved) / size) / 2 if size else part

            self._pulse.stage("copy", 45 if self._spec.by_content else 10, 95, done)
            finisher = Finisher(site, journal(DELETIONS), journal(REPLACEMENTS), self._troubles, self._pulse.beat)
            stack.callback(finisher.close)
            finisher.clean(self._observer.target.leftovers)
            fatal = self._copy(site, journal) if made.counts.actions else 0
            self._pulse.stage("finish", 95, 99, done)
            try:
                if not fatal:
                    finisher.run()
                site.sync()
            except OSError as error:
                fatal = fatal or error.errno or errno.EIO
        return fatal

    @contextmanager
    def _site(self, made: _Planned) -> Iterator[Site]:
        target = self._pair.make_target()
        umask = os.umask(0)  # modes are those of the source
        trash = Trash(self._pair.target_place, self._context.trash, self._context.job)
        try:
            with self._plan_path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as spooled:
                self._board.rewind()
                yield Site(
                    source=self._pair.source,
                    target=target,
                    plan=spooled,
                    size=len(spooled),
                    board=self._board,
                    trash=trash,
                    verify=self._spec.verify_integrity,
                    actions=made.counts.actions,
                    bytes=made.counts.bytes,
                )
        finally:
            os.umask(umask)
            trash.close()

    def _copy(self, site: Site, journal: Callable[[int], Journal]) -> int:
        def work_off(number: int, beat: Callable[[], bool]) -> _Done:
            executor = Executor(site, journal(number), journal(SWAPS[number]), beat)
            executor.run()
            fatal = executor.fatal.errno if executor.fatal is not None else 0
            return _Done(executor.troubles.texts, executor.troubles.count, fatal or 0)

        def second() -> bytes:
            self._board.second()
            return _encode(work_off(1, lambda: self._board.stopped))

        helper = Second(second)
        with ExitStack() as stack:
            stack.callback(helper.kill)
            ends = [work_off(0, self._pulse.beat), _done(helper.answer(self._pulse.beat))]
        for end in ends:
            self._troubles.extend(end.errors, end.error_count)
        return max(end.fatal for end in ends)

    # The end.

    def _write_record(self, made: _Planned) -> None:
        path, observer, total = self._context.record, self._observer, self._board.total
        if path is None:
            return
        whole = not self._board.stopped and self._spec.mode != "selective"
        old, target = observer.record.head, self._pair.target
        carried = records.Carried(
            self._context.job,
            *(total(name) for name in ("created", "updated", "deleted", "bytes", "conflicts")),
        )
        head = records.Head(
            generation=old.generation + 1,
            last=plans.Last(made.counts.files, self._pair.device) if whole else old.last,
            excluded=self._spec.exclude_patterns if whole else old.excluded,
            target=(0, 0) if target is None else paths.identity(target),
            carried=carried,
        )
        journals = Journals.beside(path)
        writer = records.Writer(path, head)
        contents = observer.contents()
        records.build(observer.steps(), journals, self._scope, contents, writer.write, moved=made.moved)
        writer.finish()
        journals.drop()

    def _result(self, hash: str) -> Result:
        total = self._board.total
        created, updated, deleted = total("created"), total("updated"), total("deleted")
        return Result(
            processed=total("processed"),
            created=created,
            updated=updated,
            deleted=deleted,
            bytes=total("bytes"),
            conflicts=total("conflicts"),
            changes_applied=created + updated + deleted,
            error_count=self._troubles.count,
            errors=tuple(self._troubles.texts),
            skipped=total("skipped"),
            plan_hash=hash,
            stopped=self._board.stopped,
        )
