"""One folder kept in step with the library: scan, report, upload, download, acknowledge; over the public API only.

What a device has to remember is small: per path the hash that it and the library last agreed on (its base), and the
cursor up to which it has applied the feed. The order below is what makes a crash at any point harmless:

* the library judges a report by what the device has acknowledged, so a change is acknowledged only once it is applied
  here, and a file that was edited here is reported before the change that meets it counts as seen;
* what is about to be written is noted first, so a file that was written just before a crash is not taken for an edit;
* a local edit is never overwritten before the library holds its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, field

from domain.plans import device as plan
from domain.plans.device import Change, Local

PAGE = 500
REPORT = 500
_ROUNDS = 8


class Conflict(Struct, frozen=True):
    """A change of ours that the library did not take; `local_hash` None when we deleted."""

    id: str
    path: str
    local_hash: str | None


class Reported(Struct, frozen=True):
    """`accepted` says up to where in the feed each path is as we said; what the feed tells of it before is old."""

    accepted: Mapping[str, int]
    upload_required: Sequence[str]
    conflicts: Sequence[Conflict]
    rejected: Mapping[str, str]


class Page(Struct, frozen=True):
    changes: Sequence[Change]
    cursor: str
    has_more: bool


class Base(Struct, frozen=True):
    """What both sides last agreed on for a path (`hash` None: nothing is there), and where in the feed."""

    hash: str | None
    sequence: int = 0


NOTHING = Base(None)


class Changed(Exception):
    """The file is not any more as it was when it was looked at."""


class Blocked(Exception):
    """Something stands where a file or one of its folders is to be: its path."""


class Api(Protocol):
    """The library as a device sees it. Any call may raise, and may have been carried out all the same."""

    def ack(self, cursor: str) -> None: ...

    def report(self, items: Sequence[plan.Item]) -> Reported: ...

    def upload(self, path: str, entry: Local) -> int | Conflict:
        """Sends a file's bytes; where in the feed they are, or the conflict when the library has moved on meanwhile
        (it holds them all the same). Raises Changed."""

    def changes(self, cursor: str | None, limit: int) -> Page: ...

    def download(self, path: str, hash: str) -> object | None:
        """Fetches bytes to where `Tree.put` takes them from; None when the path has other ones by now."""

    def conflicts(self) -> Sequence[Conflict]:
        """Those of this device that nobody has resolved."""

    def resolve(self, conflict: str, resolution: str) -> None: ...


class Tree(Protocol):
    """The folder. Paths are those of the library."""

    def scan(self) -> Mapping[str, Local]: ...

    def look(self, path: str) -> Local | None: ...

    def put(self, path: str, fetched: object, change: Change, expected: Local | None) -> None:
        """Puts fetched bytes in place, if what stands there is what was expected. Raises Changed, Blocked."""

    def set_aside(self, path: str) -> None:
        """Gives what stands there another name beside it."""

    def remove(self, path: str, expected: Local) -> None:
        """Raises Changed."""


class State(Protocol):
    """What survives a crash; each method is durable when it returns, whole or not at all."""

    cursor: str | None

    def base(self, path: str) -> Base: ...

    def bases(self) -> Mapping[str, Base]: ...

    def spared(self, path: str) -> str | None:
        """The hash of local bytes that the library keeps elsewhere, so that they may be overwritten."""

    def intents(self) -> Mapping[str, Base]: ...

    def intend(self, bases: Mapping[str, Base]) -> None:
        """Notes what is about to be written; replaces the notes of before."""

    def agree(
        self, bases: Mapping[str, Base], *, spared: Mapping[str, str | None] | None = None, cursor: str | None = None
    ) -> None: ...


class Summary(Struct):
    """What one round did; `rejected` with the reasons."""

    reported: int = 0
    uploaded: int = 0
    downloaded: int = 0
    removed: int = 0
    conflicts: int = 0
    rejected: dict[str, str] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        return not (self.reported or self.uploaded or self.downloaded or self.removed or self.conflicts)


class Engine:
    """`round` brings both sides together once; raise anywhere in it, and the next one goes on."""

    def __init__(
        self, api: Api, tree: Tree, state: State, *, on_step: Callable[[str, str], None] = lambda step, path: None
    ) -> None:
        self._api, self._tree, self._state, self._on_step = api, tree, state, on_step

    def round(self) -> Summary:
        summary = Summary()
        self._recover()
        if self._state.cursor is not None:
            self._api.ack(self._state.cursor)
        self._push(self._dirty(self._tree.scan()), summary)
        for conflict in self._api.conflicts():  # found before a crash
            self._settle(conflict, summary)
        self._pull(summary)
        return summary

    def pending(self) -> Sequence[plan.Item]:
        """What a round would report."""
        return self._dirty(self._tree.scan())

    def _recover(self) -> None:
        """Files that were written before the last end are what the library has."""
        written = {
            path: base
            for path, base in self._state.intents().items()
            if (entry := self._tree.look(path)) is not None and entry.hash == base.hash
        }
        self._state.agree(
            {path: base for path, base in written.items() if base.sequence > self._state.base(path).sequence}
        )
        self._state.intend({})

    def _dirty(self, local: Mapping[str, Local]) -> list[plan.Item]:
        spared = {path for path, entry in local.items() if self._state.spared(path) == entry.hash}
        bases = {path: base.hash for path, base in self._state.bases().items() if base.hash is not None}
        return plan.reports(
            {path: hash for path, hash in bases.items() if path not in spared},
            {path: entry for path, entry in local.items() if path not in spared},
        )

    # Ours to the library.

    def _push(self, items: Sequence[plan.Item], summary: Summary) -> None:
        for start in range(0, len(items), REPORT):
            part = items[start : start + REPORT]
            self._take(part, self._api.report(part), summary)

    def _take(self, items: Sequence[plan.Item], said: Reported, summary: Summary) -> None:
        """What the answer to a report means for us."""
        by_path = {item.path: item for item in items}
        summary.reported += len(said.accepted)
        summary.rejected.update(said.rejected)
        wanted = set(said.upload_required)
        for path, sequence in said.accepted.items():
            if path not in wanted:
                self._state.agree(_agreed(by_path[path], sequence))
        for path in said.upload_required:
            self._upload(by_path[path], summary)
        for conflict in said.conflicts:
            self._settle(conflict, summary)

    def _upload(self, item: plan.Item, summary: Summary) -> None:
        entry = self._tree.look(item.path)
        if entry is None or entry.hash != item.hash:
            return  # it has changed since; the next round reports it
        self._on_step("upload", item.path)
        try:
            said = self._api.upload(item.path, entry)
        except Changed:
            return
        summary.uploaded += 1
        if isinstance(said, Conflict):
            self._settle(said, summary)
        else:
            self._state.agree({item.path: Base(item.hash, said)})

    def _settle(self, conflict: Conflict, summary: Summary) -> None:
        """Both sides are kept: the library gets our bytes, and keeps them beside its own."""
        summary.conflicts += 1
        self._on_step("conflict", conflict.path)
        if conflict.local_hash is None:  # we deleted what somebody else edited: the edit comes back
            self._api.resolve(conflict.id, "server_wins")
            self._state.agree({conflict.path: NOTHING})
            return
        entry = self._tree.look(conflict.path)
        if entry is None or entry.hash != conflict.local_hash:
            self._api.resolve(conflict.id, "manual")  # it was edited since, which is another change
            return
        try:
            self._api.upload(conflict.path, entry)
        except Changed:
            return
        self._api.resolve(conflict.id, "keep_both")
        self._state.agree({}, spared={conflict.path: conflict.local_hash})

    # The library's to us.

    def _pull(self, summary: Summary) -> None:
        while True:
            page = self._api.changes(self._state.cursor, PAGE)
            final = plan.final(page.changes)
            if self._apply(final, summary):
                self._state.agree({}, cursor=page.cursor)
                self._api.ack(page.cursor)
                if page.has_more:
                    continue
            return

    def _apply(self, final: Mapping[str, Change], summary: Summary) -> bool:
        """Whether all of it is applied; what is not comes again with the next round."""
        self._state.intend({path: Base(change.hash, change.sequence) for path, change in final.items()})
        left = [path for path in plan.order(final) if not self._follow(path, final[path], summary)]
        return not left

    def _follow(self, path: str, change: Change, summary: Summary) -> bool:
        for _ in range(_ROUNDS):
            base = self._state.base(path)
            if base.sequence >= change.sequence:
                return True  # agreed on something newer
            entry = self._tree.look(path)
            now = None if entry is None else entry.hash
            if now == change.hash:
                self._state.agree({path: Base(now, change.sequence)}, spared={path: None})
                return True
            if now != base.hash and (now is None or now != self._state.spared(path)):
                # An edit of ours, or a deletion, that the library has yet to judge, and before this is acknowledged.
                summary.rejected.pop(path, None)
                self._push(plan.reports(_only(path, base.hash), _entry(path, entry)), summary)
                if path in summary.rejected:
                    self._stand_back(path, change)
                continue
            try:
                self._replace(path, change, entry, summary)
            except Changed:
                continue
            except Blocked as blocked:
                self._tree.set_aside(str(blocked))
                continue
            return True
        return False

    def _stand_back(self, path: str, change: Change) -> None:
        """What the library will never take stands here in the way of what it has: a file in the place of a folder,
        a twin but for case."""
        if change.hash is None:
            self._state.agree({path: Base(None, change.sequence)})
        else:
            self._tree.set_aside(path)

    def _replace(self, path: str, change: Change, entry: Local | None, summary: Summary) -> None:
        if change.hash is None:
            assert entry is not None
            self._on_step("remove", path)
            self._tree.remove(path, entry)
            summary.removed += 1
        else:
            self._on_step("download", path)
            fetched = self._api.download(path, change.hash)
            if fetched is None:
                return  # something newer stands there, and a later change says so
            self._tree.put(path, fetched, change, entry)
            summary.downloaded += 1
        self._state.agree({path: Base(change.hash, change.sequence)}, spared={path: None})


def _agreed(item: plan.Item, sequence: int) -> dict[str, Base]:
    return {path: Base(hash, sequence) for path, hash in plan.agreed(item).items()}


def _only(path: str, hash: str | None) -> dict[str, str]:
    return {} if hash is None else {path: hash}


def _entry(path: str, entry: Local | None) -> dict[str, Local]:
    return {} if entry is None else {path: entry}
