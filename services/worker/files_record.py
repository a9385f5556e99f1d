"""The record of a pair of folders: what the target looked like when their last sync ended.

A file of listing frames behind a header, with a BLAKE3 at its end; replaced whole, by rename.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

import msgspec
from blake3 import blake3
from msgspec import Struct

from domain.plans.files import Contents, Entry, Folder, Last, Step, join
from domain.plans.patterns import Scope
from services.worker import files_listing as listing
from services.worker.files_compare import Found
from services.worker.files_journal import Journals, Put

_MAGIC = b"undrift1"
_HASH = 32
_NS = 1_000_000_000


class Carried(Struct):
    """What earlier runs of a job did, should it be taken up again."""

    job: str = ""
    created: int = 0
    updated: int = 0
    deleted: int = 0
    bytes: int = 0
    conflicts: int = 0

    def count(self, put: Put) -> None:
        if put.op == "delete":
            self.deleted += 1
        elif put.op in ("create", "replace"):
            self.created += 1
        else:
            self.updated += 1
        self.bytes += put.moved
        self.conflicts += put.conflict


class Head(Struct):
    """`last` is what the last sync of everything that came to its end saw of the source, and `excluded` what it left
    out; `target` the identity of the target's root (a moved or restored one has other change times); `generation`
    counts the runs."""

    generation: int = 0
    last: Last | None = None
    excluded: tuple[str, ...] = ()
    target: tuple[int, int] = (0, 0)
    carried: Carried = msgspec.field(default_factory=Carried)

    def saw(self, excluded: Sequence[str]) -> bool:
        """Whether the last sync saw everything that one with these patterns sees: what is not in the record was made
        since."""
        return self.last is not None and set(self.excluded) <= set(excluded)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Head).decode


class Record:
    """A record as it is on disk, or an empty one."""

    def __init__(self, head: Head, frames: listing.Listing | None = None) -> None:
        self.head = head
        self._frames = frames

    @property
    def folders(self) -> Iterable[listing.Folder]:
        return self._frames if self._frames is not None else ()

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()


def load(path: Path | None, log: Callable[[str, str], None]) -> Record:
    """An empty record when there is none; a damaged one is told of and taken as none."""
    try:
        file = path.open("rb") if path is not None else None
    except FileNotFoundError:
        file = None
    if file is None:
        return Record(Head())
    with file:
        start = len(_MAGIC) + 4
        prefix = file.read(start)
        size = int.from_bytes(prefix[len(_MAGIC) :], "little")
        head = file.read(size)
        found = listing.Listing(file, start + size, _HASH)
    if found.size < start or prefix[: len(_MAGIC)] != _MAGIC or not _intact(found):
        found.close()
        log("warn", "The record of this pair of folders is damaged: changes made in the target are not told apart")
        return Record(Head())
    return Record(_decode(head), found)


def _intact(found: listing.Listing) -> bool:
    with memoryview(found.data) as whole, whole[: found.size] as content, whole[found.size :] as digest:
        return blake3(content).digest() == digest


class Writer:
    """Writes a record beside the old one and puts it in its place at the end."""

    def __init__(self, path: Path, head: Head) -> None:
        self._path, self._new = path, path.with_name(f"{path.name}.new")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self._new.open("wb", buffering=1 << 20)
        self._hash = blake3()
        encoded = _encode(head)
        self.write(_MAGIC + len(encoded).to_bytes(4, "little") + encoded)

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> None:
        self._file.write(self._hash.digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._new.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def fold(
    steps: Iterable[Step],
    journals: Journals,
    carried: Carried,
    write: Callable[[bytes], object],
    equal: Callable[[Found], None],
) -> None:
    """The record as it would be had the runs that were killed written it: with what the target shows they had put.

    `steps` are the target's listing and the record's; `carried` counts what those runs did, `equal` is told of files
    they had copied.
    """
    for step in steps:
        for put in journals.until(step.path):
            _gone(put, carried)
        rows = journals.folder(step.path)
        if rows:
            _fold_folder(step, rows, carried, write, equal)
        elif step.record is not None:
            write(_frame(step.record))
    for put in journals.until(None):
        _gone(put, carried)


def _gone(put: Put, carried: Carried) -> None:
    if put.op == "delete":
        carried.count(put)


def _fold_folder(
    step: Step,
    rows: dict[bytes, tuple[Put, bool]],
    carried: Carried,
    write: Callable[[bytes], object],
    equal: Callable[[Found], None],
) -> None:
    entries, found = _named(step.record), _named(step.target)
    copied = Found(step.path, {}, [])
    for name, (put, _) in rows.items():
        there = found.get(name)
        if there is None:
            _gone(put, carried)
            entries.pop(name, None)
        elif put.op != "delete" and put.is_at(there):
            entries[name] = there
            carried.count(put)
            if there.kind == "dir":
                continue
            ours, theirs = divmod(put.source_changed_ns, _NS), divmod(there.changed_ns, _NS)
            copied.equal.append((name, put.source_inode, *ours, there.inode, *theirs))
    write(listing.frame(step.path, [entries[name] for name in sorted(entries)]))
    equal(copied)


def _named(folder: Folder | None) -> dict[bytes, Entry]:
    return {entry.name: entry for entry in folder.entries()} if folder is not None else {}


def _frame(folder: Folder) -> bytes:
    return folder.frame if isinstance(folder, listing.Folder) else listing.frame(folder.path, folder.entries())


def build(
    steps: Iterable[Step],
    journals: Journals,
    scope: Scope,
    contents: Contents | None,
    write: Callable[[bytes], object],
    *,
    moved: bool = False,
) -> None:
    """The record after a run: what it put, what was right already, and for the rest what was recorded before.

    Where contents were not compared, a file that changed in place but kept its size and time may be somebody's edit:
    what was recorded of it stays. Not in a target that was `moved`, where everything has other change times.
    """
    sure = contents is not None or moved
    for step in steps:
        source, target, record = step.source, step.target, step.record
        if source is None and target is None:
            if record is not None and not scope.covers(step.path):
                write(_frame(record))
            continue
        if target is not None and target.unreadable:
            if record is not None:
                write(_frame(record))
            continue
        rows = journals.folder(step.path)
        different = contents(step.path) if contents is not None and source is not None and target is not None else {}
        if target is not None and not rows and not different:
            known = record is not None and record.state == target.state
            plain = record is None or (sure and not target.hidden)
            if known or (plain and source is not None and source.body == target.body):
                write(_frame(target))
                continue
        entries = _merged(step, rows, different.keys(), scope, sure)
        if entries or target is not None or source is not None:
            write(listing.frame(step.path, entries))


def _merged(
    step: Step, rows: dict[bytes, tuple[Put, bool]], different: Iterable[bytes], scope: Scope, sure: bool
) -> list[Entry]:
    if step.target is None and step.record is None and step.source is not None:
        new = [entry for entry in step.source.entries() if entry.kind == "dir"] if step.source.folders else []
        new += [put.entry() for put, done in rows.values() if done and put.op != "delete"]
        return sorted(new, key=_name)
    wanted, found, then = _named(step.source), _named(step.target), _named(step.record)
    unequal = set(different)
    entries = []
    for name in sorted(found.keys() | then.keys() | wanted.keys() | rows.keys()):
        put, done = rows.get(name, (None, False))
        entry = put.entry() if put is not None and done else None
        if put is not None and done and put.op == "delete":
            continue
        if entry is None:
            entry = _untouched(wanted.get(name), found.get(name), then.get(name), name in unequal, sure)
        if entry is None and name in then and name not in found and not scope.covers(join(step.path, name)):
            entry = then[name]
        if entry is not None:
            entries.append(entry)
    return entries


def _untouched(
    wanted: Entry | None, found: Entry | None, then: Entry | None, unequal: bool, sure: bool
) -> Entry | None:
    """The entry of a name that this run did not touch."""
    if wanted is not None and wanted.kind == "dir" and (found is None or found.kind == "dir"):
        return wanted
    if found is None:
        return None
    if wanted is None:
        return then if then is not None else found
    if unequal or _said(wanted) != _said(found):
        return then
    return found if sure or then is None or _said(then) != _said(found) else then


_name = attrgetter("name")


def _said(entry: Entry) -> tuple[object, ...]:
    return (entry.kind, entry.size, entry.mtime_ns, entry.link)
