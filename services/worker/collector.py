"""The connector behind every source: what is new, changed or gone goes up to the worker and from there into the log."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from domain import errors, items, jobs, kinds
from services.worker import child, connectors
from services.worker.collecting import Context, Gone, Item, Known, Make, Page, Remote, Source, Stopped, hold

#: What one frame, and so one append, holds at most.
FRAME_ITEMS = 1000
FRAME_BYTES = 4 * 1024 * 1024

#: Changes on their way into the log while the next page is fetched.
_AHEAD = 2
#: A page without news is remembered as the place to go on from so often.
_CHECKPOINT_S = 1.0
_TOLD = 100
_FEW = 10
_PATIENCE = 10
_WRONG = (errors.Invalid, errors.TooLarge, msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
#: What a source stumbles over when an answer is not what it should be.
_GARBAGE = (msgspec.MsgspecError, LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)

_json = msgspec.json.Encoder(order="sorted").encode


def run(told: child.Task, parent: child.Parent, make: Make) -> child.Done:
    """Raises errors.Held, errors.PlanChanged, errors.SyncFailed, and what the source raises."""
    collect = told.collect
    assert collect is not None
    counts = Counts(collect)
    deadline = None if collect.seconds is None else time.monotonic() + collect.seconds
    context = Context(
        spec=msgspec.json.decode(told.spec, type=kinds.kind(collect.kind).spec),
        options=msgspec.json.decode(collect.options, type=kinds.Options),
        secrets=collect.secrets,
        mark=None if collect.mark is None else msgspec.json.decode(collect.mark),
        resumed=collect.cursor is not None,
        known=Known(Path(collect.known)),
        log=lambda level, message: parent.say(child.Line(level, message)),
        stopped=parent.stop_asked,
        deadline=deadline,
        remote=Remote(parent, deadline),
        work=Path(told.work),
        job=told.job,
        collection=collect.collection,
        counters=counts.read,
        confirm=partial(_confirm, collect),
    )
    return connectors.drive(Collector(make(context), context, counts, parent, collect), parent.stop_asked)


class Cursor(Struct, frozen=True):
    """Where a job goes on: the source's own cursor, and what had been read up to there."""

    at: Raw
    processed: int
    errors: int
    bytes: int


class Counts:
    """What the job came to: what it read up to here, and what the log says it changed in all of its runs. What was
    read does not become less when a job begins anew."""

    def __init__(self, collect: child.Collect) -> None:
        self._floor = before = collect.counters
        self.cursor = None if collect.cursor is None else msgspec.json.decode(collect.cursor, type=Cursor)
        self.processed = self.errors = self.bytes = 0
        if self.cursor is not None:
            self.processed, self.errors, self.bytes = self.cursor.processed, self.cursor.errors, self.cursor.bytes
        self.created, self.updated, self.deleted = before.created, before.updated, before.deleted

    def add(self, applied: child.Applied) -> None:
        self.created += applied.created
        self.updated += applied.updated
        self.deleted += applied.deleted

    def behind(self, at: Any) -> bytes:
        return _json(Cursor(Raw(_json(at)), self.processed, self.errors, self.bytes))

    def read(self) -> jobs.Counters:
        processed, size = max(self.processed, self._floor.processed), max(self.bytes, self._floor.bytes)
        return jobs.Counters(processed, self.created, self.updated, self.deleted, self.errors, size)


def _confirm(collect: child.Collect, plan: str, reason: str, details: Mapping[str, Any]) -> None:
    if collect.force or collect.confirm == plan:
        return
    if collect.confirm is not None:
        raise errors.PlanChanged(plan=plan)
    hold(plan, reason, details)


class Actions(NamedTuple):
    puts: Sequence[child.Put]
    removes: Sequence[child.Remove] = ()
    cursor: bytes | None = None


class Collector:
    """Compares what a source says with what the collection holds, and knows what this run has said already."""

    def __init__(
        self, source: Source, context: Context, counts: Counts, parent: child.Parent, collect: child.Collect
    ) -> None:
        self._source, self._context, self._counts = source, context, counts
        self._parent, self._collect = parent, collect
        self._atomic = bool(getattr(source, "atomic", False))
        self._guarded = bool(getattr(source, "guarded", False))
        self._seen: dict[str, dict[str, bytes]] = {}
        self._gone: dict[tuple[str, str], Gone] = {}
        self._rows = self._fresh_pages = self._stale_pages = 0
        self._waiting = 0
        self._checkpointed = time.monotonic()
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    # Observing.

    def observe(self) -> Iterator[Page]:
        """The source's pages; then, in one more, what is gone."""
        cursor = self._counts.cursor
        last = Page()
        try:
            for page in self._source.observe(None if cursor is None else msgspec.json.decode(cursor.at)):
                for one in page.gone:
                    self._gone[one.entity, one.id] = one
                last = page
                yield page._replace(gone=())
        except Stopped:
            return
        except _GARBAGE as error:  # of the source's own reading: what we do with a page is not raised in here
            raise errors.RemoteUnavailable(f"The remote sends what cannot be understood ({_brief(error)})") from error
        if self._gone:
            yield Page(gone=self._really_gone(), stage="reconciling_deletes", percent=last.percent)
        self._finished = True

    def _really_gone(self) -> Sequence[Gone]:
        """Of what the source misses: what the collection holds and this run has not met."""
        if self._context.resumed:
            self._context.log("info", "The run was resumed, so nothing is deleted; the next complete one will")
            return ()
        known = self._context.known
        return [
            one
            for name, one in sorted(self._gone.items())
            if known.hash(*name) is not None and one.id not in self._seen.get(one.entity, ())
        ]

    # Planning.

    def plan(self, page: Page) -> Actions:
        """Raises errors.SyncFailed for more rows than allowed and for pages that come again and again, errors.Held
        and errors.PlanChanged for deletions."""
        self._rows += len(page.items)
        if self._rows > self._collect.max_items:
            raise errors.SyncFailed(f"The remote sends more than {self._collect.max_items} items")
        news = [self._judge(item) for item in page.items]
        self._suspect(page, news)
        if page.gone and not self._guarded:
            self._guard(page.gone)
        cursor = None if page.cursor is None else self._counts.behind(page.cursor)
        removes = [child.Remove(one.entity, one.id, one.reason) for one in page.gone]
        return Actions([put for _, put in news if put is not None], removes, cursor)

    def _judge(self, item: Item) -> tuple[bool, child.Put | None]:
        """Whether this run meets the item for the first time as it is, and what to put into the log."""
        self._counts.processed += 1
        seen = self._seen.setdefault(item.entity, {})
        before = seen.get(item.id)
        try:
            content = items.canonical(item.content)
            items.check(item.entity, item.id, len(content))
        except _WRONG as error:
            self._wrong(item, error)
            seen[item.id] = before or b""  # it is there, so it is not gone
            return before is None, None
        self._counts.bytes += len(content)
        digest = hashlib.sha256(content)
        if before == digest.digest():
            return False, None
        seen[item.id] = digest.digest()
        hash = digest.hexdigest()
        if not before and self._context.known.hash(item.entity, item.id) == hash:
            return True, None
        return True, child.Put(item.entity, item.id, content, hash, item.revision)

    def _wrong(self, item: Item, error: Exception) -> None:
        self._counts.errors += 1
        if self._counts.errors <= _TOLD:
            reason = error.message if isinstance(error, errors.Error) else str(error)
            self._context.log("warn", f"{item.entity:.80} {item.id!r:.80} is left out: {reason:.500}")

    def _suspect(self, page: Page, news: Sequence[tuple[bool, child.Put | None]]) -> None:
        """A remote may repeat some pages, even all of them once, but not for ever."""
        if not page.items:
            return
        if any(new for new, _ in news):
            self._fresh_pages += 1
            self._stale_pages = 0
            return
        self._stale_pages += 1
        if self._stale_pages > self._fresh_pages + _PATIENCE:
            raise errors.SyncFailed("The remote sends the same pages again and again")

    def _guard(self, gone: Sequence[Gone]) -> None:
        plan = plan_hash(gone)
        reason = self._suspicion(gone)
        if reason is not None:
            self._context.confirm(plan, reason, {"deleted": len(gone)})

    def _suspicion(self, gone: Sequence[Gone]) -> str | None:
        """Why so many deletions need a person: of everything, or of one entity, which may have been listed empty."""
        known, part = self._context.known, self._collect.max_delete_fraction
        counts: dict[str, int] = {}
        for one in gone:
            counts[one.entity] = counts.get(one.entity, 0) + 1
        scopes = [("items", len(gone), known.count())]
        scopes += [(entity, count, known.count(entity)) for entity, count in sorted(counts.items())]
        for name, count, held in scopes:
            if count > _FEW and count > part * held:
                return f"{count} of {held} {name} would be deleted"
        return None

    # Applying.

    def apply(self, actions: Actions) -> None:
        """Sends it up in frames; the cursor goes with the last."""
        frames = list(_frames(actions))
        quiet = not (actions.puts or actions.removes)
        if quiet and (actions.cursor is None or time.monotonic() < self._checkpointed + _CHECKPOINT_S):
            return
        for changes in frames[:-1]:
            self._send(changes)
        self._send(replace(frames[-1], cursor=actions.cursor))
        if actions.cursor is not None:
            self._checkpointed = time.monotonic()

    def _send(self, changes: child.Changes) -> None:
        if self._atomic:
            self._counts.add(self._foreseen(changes))
            self._parent.say(replace(changes, cursor=None, keep=True))
            return
        self._parent.say(replace(changes, counters=self._counts.read()))
        self._waiting += 1
        self._settle(_AHEAD)

    def _foreseen(self, changes: child.Changes) -> child.Applied:
        """What will be in the log once it is there."""
        known = self._context.known
        created = sum(known.hash(put.entity, put.item) is None for put in changes.puts)
        return child.Applied(created, len(changes.puts) - created, len(changes.removes))

    def _settle(self, ahead: int) -> None:
        while self._waiting > ahead:
            self._counts.add(self._parent.hear(child.Applied))
            self._waiting -= 1

    def checkpoint(self, page: Page) -> None:
        self._parent.say(child.Report(page.stage, page.percent, self._counts.read()))

    # The end.

    def result(self) -> child.Done:
        self._settle(0)
        if not self._finished:
            return child.Done(b"", self._counts.read(), stopped=True)
        outcome = self._source.outcome()
        mark = None if outcome.mark is None else _json(outcome.mark)
        seen = child.Seen(mark, outcome.complete and not self._context.resumed)
        return child.Done(msgspec.json.encode(outcome.result), self._counts.read(), seen=seen)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def plan_hash(gone: Iterable[Gone]) -> str:
    """What names a plan of deletions."""
    text = b"".join(_json((one.entity, one.id, "delete")) + b"\n" for one in sorted(gone))
    return hashlib.sha256(text).hexdigest()


def _frames(actions: Actions) -> Iterator[child.Changes]:
    """At least one."""
    puts: list[child.Put] = []
    size = 0
    for put in actions.puts:
        if puts and (len(puts) >= FRAME_ITEMS or size + len(put.content) > FRAME_BYTES):
            yield child.Changes(puts)
            puts, size = [], 0
        puts.append(put)
        size += len(put.content)
    removes = actions.removes
    while len(removes) > FRAME_ITEMS:
        yield child.Changes(puts, removes[:FRAME_ITEMS])
        puts, removes = [], removes[FRAME_ITEMS:]
    yield child.Changes(puts, removes)
