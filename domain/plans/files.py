"""Plans that bring one folder to the state of another: listings in, actions out, guards before anything is changed.

Paths are bytes, relative to the two roots and without a slash at either end; the root itself is `b""`. Listings are
streams of folders in depth-first order with sorted names (`key`), so a plan needs the memory of one folder and of the
folders above it. Three streams are read side by side: the source, the target, and the record of what the target looked
like when the last sync of this pair ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, SupportsIndex, overload

import msgspec
from blake3 import blake3
from msgspec import Struct

from domain import errors
from domain.plans import patterns

Kind = Literal["file", "dir", "link", "other"]
Mode = Literal["full", "incremental", "selective"]
Verdict = Literal["differs", "source", "target"]
"""What comparing two files of one size found: other content, or the side that could not be read."""

SELF = b"."
"""The name under which the root's own mode and time stand in the listing of the root."""

VERSION = 1
MAX_ERRORS = 1000
_GROUP_ACTIONS = 512
_GROUP_BYTES = 32 * 1024 * 1024


class Spec(Struct, frozen=True, kw_only=True):
    """What to sync. `plan_hash` applies exactly the plan of that hash; `force` overrides the deletion guards.

    `full` and `selective` compare contents when `verify_integrity` is set, and sizes and times when it is not;
    `incremental` always compares sizes and times. With `verify_integrity` each copy is read back. `entities` are the
    sub-paths of a selective sync.
    """

    source_directory: str
    target_directory: str
    delete_missing_in_target: bool = False
    verify_integrity: bool = True
    exclude_patterns: tuple[str, ...] = ()
    mode: Mode = "full"
    entities: tuple[str, ...] = ()
    force: bool = False
    plan_hash: str | None = None

    @property
    def by_content(self) -> bool:
        return self.verify_integrity and self.mode != "incremental"

    def scope(self) -> patterns.Scope:
        """What this sync may see. Raises errors.Invalid."""
        if self.mode == "selective" and not self.entities:
            raise errors.Invalid("A selective sync needs the sub-paths to sync")
        return patterns.Scope(self.exclude_patterns, self.entities)


class Entry(Struct, frozen=True):
    """One name in a folder. `mode` is the permission bits; `changed_ns` and `inode` are 0 where unknown. Folders have
    size 0, and neither `changed_ns` nor `inode`."""

    name: bytes
    kind: Kind
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0
    link: bytes = b""
    changed_ns: int = 0
    inode: int = 0


class Folder(Protocol):
    """One folder of a listing. `body` is equal where names, kinds, sizes, times, modes and link targets are; `state`
    also tells apart what changed in place. `folders` counts the entries that are folders, `files` the others. `hidden`
    says that something in it is out of the sync's scope, `unreadable` that it could not be listed."""

    @property
    def path(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...
    @property
    def state(self) -> bytes: ...
    @property
    def files(self) -> int: ...
    @property
    def folders(self) -> int: ...
    @property
    def hidden(self) -> bool: ...
    @property
    def unreadable(self) -> bool: ...

    def entries(self) -> Sequence[Entry]:
        """Sorted by name."""


class Buffer(Protocol):
    """Bytes, or a mapped file."""

    @overload
    def __getitem__(self, at: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, at: slice, /) -> bytes: ...


Contents = Callable[[bytes], Mapping[bytes, Verdict]]
"""For the path of a folder, asked in order: what the comparison found of the files in it that are not equal."""


class Action(Struct, frozen=True, array_like=True):
    """One thing to do to a name in a folder of the target; `was` is the kind, size and time found there before.

    mkdir, settle (mode and time, when all else is done) act on the folder itself; replace puts a file or link where a
    folder was, once that is empty; blocked is what cannot be done, and is only reported.
    """

    op: Literal["create", "update", "attributes", "mkdir", "delete", "rmdir", "replace", "settle", "blocked"]
    name: bytes
    reason: str
    kind: Kind = "file"
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0
    link: bytes = b""
    conflict: bool = False
    was: tuple[Kind, int, int] | None = None


class Group(Struct, frozen=True, array_like=True):
    """Actions in one folder. Deletions come in depth-first order, removals and settles of folders behind what lies in
    them."""

    path: bytes
    actions: list[Action]


class Counts(Struct):
    """What a plan holds. `files` are the source's entries that are no folders, `target_files` the target's."""

    files: int = 0
    target_files: int = 0
    same: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0
    folders: int = 0
    kept: int = 0
    skipped: int = 0
    blocked: int = 0
    conflicts: int = 0
    bytes: int = 0
    actions: int = 0


class Guards(Struct, frozen=True):
    """Limits of what a sync may delete without confirmation. `marker` is a path that must exist in the source."""

    max_delete_fraction: float = 0.5
    max_delete_count: int | None = None
    marker: str = ""


class Last(Struct, frozen=True):
    """What the last sync of the pair saw: files in the source, and the source's device."""

    files: int = 0
    device: int = 0


class Result(Struct, frozen=True, kw_only=True):
    """How a sync ended. `errors` are the first of `error_count`; `stopped` when it was asked to stop before its end."""

    processed: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0
    bytes: int = 0
    conflicts: int = 0
    changes_applied: int = 0
    error_count: int = 0
    errors: tuple[str, ...] = ()
    skipped: int = 0
    plan_hash: str = ""
    stopped: bool = False


class Shown(Struct, frozen=True):
    """An action as a person reads it."""

    action: str
    path: str
    reason: str
    conflict: bool = False


class Summary(Struct, frozen=True, kw_only=True):
    """A plan as it is answered; `actions` are the first of `action_count`, `truncated` where there are more, `held` is
    why a guard would hold it."""

    plan_hash: str
    action_count: int
    created: int
    updated: int
    deleted: int
    conflicts: int
    bytes: int
    actions: tuple[Shown, ...]
    truncated: bool = False
    held: str | None = None
    errors: tuple[str, ...] = ()


def key(path: bytes) -> bytes:
    """Sorting by it is depth-first order: no name holds a NUL, and every name sorts behind it."""
    return path.replace(b"/", b"\0")


def join(folder: bytes, name: bytes) -> bytes:
    if name == SELF:
        return folder
    return folder + b"/" + name if folder else name


def show(path: bytes, limit: int = 300) -> str:
    """A path for a person: one line, without control or direction characters, whatever bytes it holds."""
    text = path.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[:limit]}…"


class Step(Struct, frozen=True):
    """One folder of the three streams, where they have it."""

    path: bytes
    source: Folder | None
    target: Folder | None
    record: Folder | None


def steps(source: Iterable[Folder], target: Iterable[Folder], record: Iterable[Folder] = ()) -> Iterator[Step]:
    """The three streams side by side, each in the order of `key`."""
    streams = (iter(source), iter(target), iter(record))
    ours, theirs, then = (next(stream, None) for stream in streams)
    while ours is not None or theirs is not None or then is not None:
        if ours and theirs and then and ours.path == theirs.path == then.path:
            yield Step(ours.path, ours, theirs, then)  # as nearly always
            ours, theirs, then = (next(stream, None) for stream in streams)
            continue
        path = min((head.path for head in (ours, theirs, then) if head is not None), key=key)
        step = Step(
            path,
            ours if ours is not None and ours.path == path else None,
            theirs if theirs is not None and theirs.path == path else None,
            then if then is not None and then.path == path else None,
        )
        yield step
        if step.source is not None:
            ours = next(streams[0], None)
        if step.target is not None:
            theirs = next(streams[1], None)
        if step.record is not None:
            then = next(streams[2], None)


def changed_since(now: Entry, then: Entry, moved: bool = False) -> bool:
    """Whether an entry of the target is not what the record says. Change times count, except in a target that was
    `moved`."""
    if (now.kind, now.size, now.mtime_ns, now.link) != (then.kind, then.size, then.mtime_ns, then.link):
        return True
    return not moved and bool(then.changed_ns and now.changed_ns) and now.changed_ns != then.changed_ns


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Group).decode

COPIES, FINISHES = 1, 2
"""What a group is for: what is copied first, in any order, and what is done in order when all of that is there."""

_COPYING = frozenset(("create", "update", "attributes", "mkdir"))


class Digest:
    """The encoding of a plan and, in the end, its hash: BLAKE3 over everything that was encoded.

    A frame is the length of what follows the fifth byte, what the group is for, and the group as msgpack.
    """

    def __init__(self, spec: Spec) -> None:
        self._hash = blake3()
        asked = (VERSION, spec.source_directory, spec.target_directory, spec.mode, spec.delete_missing_in_target)
        self.header = self._frame(0, _encode((*asked, spec.verify_integrity, spec.exclude_patterns, spec.entities)))

    def group(self, group: Group) -> bytes:
        what = 0
        for action in group.actions:
            what |= COPIES if action.op in _COPYING else FINISHES
        return self._frame(what, _encode(group))

    def _frame(self, what: int, data: bytes) -> bytes:
        framed = len(data).to_bytes(4, "little") + bytes((what,)) + data
        self._hash.update(framed)
        return framed

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class Frame(NamedTuple):
    """Where a group of an encoded plan lies, and what it is for (0: the header)."""

    start: int
    end: int
    what: int


def frame(plan: Buffer, at: int) -> Frame:
    """The frame at an offset."""
    start = at + 5
    return Frame(start, start + int.from_bytes(plan[at : at + 4], "little"), plan[at + 4])


def decode(plan: Buffer, frame: Frame) -> Group:
    return _decode(plan[frame.start : frame.end])


def split(path: bytes, actions: list[Action]) -> Iterator[Group]:
    """Groups small enough to be shared between processes."""
    start = weight = 0
    for index, action in enumerate(actions):
        if index > start and (index - start >= _GROUP_ACTIONS or weight + action.size > _GROUP_BYTES):
            yield Group(path, actions[start:index])
            start, weight = index, 0
        weight += action.size
    if start < len(actions):
        yield Group(path, actions[start:])


def holds(spec: Spec, guards: Guards, counts: Counts, device: int, last: Last | None) -> str | None:
    """Why the plan needs somebody's confirmation, or None."""
    reasons = []
    if last is not None and last.files and not counts.files and spec.mode != "selective":
        reasons.append(f"the source is empty, and held {last.files} files at the last sync")
    if last is not None and last.device and last.device != device:
        reasons.append("the source lies on another device than at the last sync")
    if counts.deleted > guards.max_delete_fraction * counts.target_files:
        reasons.append(f"{counts.deleted} of {counts.target_files} files in the target would be deleted")
    elif guards.max_delete_count is not None and counts.deleted > guards.max_delete_count:
        reasons.append(f"{counts.deleted} files would be deleted, more than the {guards.max_delete_count} allowed")
    return "; ".join(reasons) or None
