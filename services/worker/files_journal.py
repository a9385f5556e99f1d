"""What a job did to the target, written as it is done, so that the record is right even after a kill.

Before anything is put in its place, the journal says what will be there (an intent); afterwards, that it is (done). A
later run takes an intent without its done by looking at the target: the inode says whether it is ours.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from domain.plans.files import Entry, Kind, key

COPIES, DELETIONS, REPLACEMENTS, SWAPS = (0, 1), 2, 3, (4, 5)
"""The journals of a run: one of each copying process, those of what is done in the end, and of each copying process
the folders that it put in the place of files."""

_UNORDERED = tuple(f"-{number}" for number in (REPLACEMENTS, *SWAPS))

FAILED = -1
"""Instead of a change time: it could not be put in its place."""


class Put(Struct, array_like=True):
    """What is at a name after an operation, and which inode of the source it was copied from. `op` is that of the
    action; `delete` leaves nothing. `bytes` is how much was moved."""

    name: bytes
    op: str
    kind: Kind
    size: int
    mtime_ns: int
    mode: int
    link: bytes
    inode: int
    changed_ns: int
    source_inode: int = 0
    source_changed_ns: int = 0
    moved: int = 0
    conflict: bool = False

    def entry(self) -> Entry:
        return Entry(self.name, self.kind, self.size, self.mtime_ns, self.mode, self.link, self.changed_ns, self.inode)

    def is_at(self, found: Entry) -> bool:
        """Whether an entry of the target is what this put there."""
        if self.op == "attributes" and self.mode != found.mode:
            return False
        if self.kind == "dir":
            return found.kind == "dir"  # a file was there
        ours = (self.kind, self.inode, self.size, self.mtime_ns)
        return ours == (found.kind, found.inode, found.size, found.mtime_ns)


class _Begin(Struct, array_like=True, tag=0):
    generation: int
    job: str


class _Intent(Struct, array_like=True, tag=1):
    """Folders and what is put there, in the order of the plan."""

    folders: list[tuple[bytes, list[Put]]]


class _Done(Struct, array_like=True, tag=2):
    """The change times of the intent before, in its order."""

    times: list[int]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Begin | _Intent | _Done).decode


class Journal:
    """One process's journal, made with the first entry."""

    def __init__(self, path: Path | None, generation: int, job: str) -> None:
        self._path, self._begin = path, _Begin(generation, job)
        self._file = -1

    def intent(self, rows: Sequence[tuple[bytes, Put]]) -> None:
        """What will be put in its place next: (folder, put)."""
        folders: list[tuple[bytes, list[Put]]] = []
        for folder, put in rows:
            if not folders or folders[-1][0] != folder:
                folders.append((folder, []))
            folders[-1][1].append(put)
        self._write(_Intent(folders))

    def done(self, times: list[int]) -> None:
        self._write(_Done(times))

    def _write(self, entry: _Intent | _Done) -> None:
        if self._path is None:
            return
        data = _framed(entry)
        if self._file < 0:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            data = _framed(self._begin) + data
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _framed(entry: _Begin | _Intent | _Done) -> bytes:
    data = _encode(entry)
    return len(data).to_bytes(4, "little") + data


def _entries(path: Path) -> Iterator[_Begin | _Intent | _Done]:
    """Without a torn end."""
    with path.open("rb") as file:
        while True:
            size = int.from_bytes(file.read(4), "little")
            data = file.read(size)
            if not size or len(data) < size:
                return
            yield _decode(data)


Rows = tuple[bytes, list[tuple[Put, bool]]]
"""A folder, what was put there, and of each whether that is known to be done."""


def _rows(path: Path) -> Iterator[Rows]:
    pending: list[tuple[bytes, list[Put]]] = []
    for entry in _entries(path):
        if isinstance(entry, _Done):
            times = iter(entry.times)
            for folder, puts in pending:
                yield folder, [(put, True) for put in puts if _date(put, next(times))]
        else:
            yield from _unsure(pending)
        pending = entry.folders if isinstance(entry, _Intent) else []
    yield from _unsure(pending)


def _date(put: Put, time: int) -> bool:
    """Whether it was put in its place, and when."""
    put.changed_ns = time
    return time != FAILED


def _unsure(pending: list[tuple[bytes, list[Put]]]) -> Iterator[Rows]:
    return ((folder, [(put, False) for put in puts]) for folder, puts in pending)


def _order(rows: Rows) -> bytes:
    return key(rows[0])


class Journals:
    """All journals beside a record, read as one stream in the order of plans."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [path for path in paths if path.exists()]
        self._stream: Iterator[Rows] = iter(())
        self._head: Rows | None = None
        self.rewind()

    @classmethod
    def beside(cls, record: Path | None) -> Journals:
        return cls([] if record is None else sorted(record.parent.glob(f"{record.name}.journal-*")))

    def __bool__(self) -> bool:
        return bool(self._paths)

    def rewind(self) -> None:
        streams = []
        for path in self._paths:
            rows = _rows(path)
            # Replaced folders are noted after what lay in them, and such as replace with that; there are few.
            streams.append(iter(sorted(rows, key=_order)) if path.name.endswith(_UNORDERED) else rows)
        self._stream = heapq.merge(*streams, key=_order)
        self._head = next(self._stream, None)

    def folder(self, path: bytes) -> dict[bytes, tuple[Put, bool]]:
        """What was done in a folder; folders are asked for in the order of `key`."""
        for _ in self.until(path):
            pass
        found: dict[bytes, tuple[Put, bool]] = {}
        while self._head is not None and self._head[0] == path:
            found.update({put.name: (put, done) for put, done in self._head[1]})
            self._head = next(self._stream, None)
        return found

    def until(self, path: bytes | None) -> Iterator[Put]:
        """What was done in the folders that come before one, or in all that remain."""
        wanted = None if path is None else key(path)
        while self._head is not None and (wanted is None or key(self._head[0]) < wanted):
            yield from (put for put, _ in self._head[1])
            self._head = next(self._stream, None)

    def begins(self) -> list[tuple[int, str]]:
        """Generation and job of each."""
        heads = [next(_entries(path), None) for path in self._paths]
        return [(head.generation, head.job) for head in heads if isinstance(head, _Begin)]

    def drop(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths = []
        self.rewind()


def path_of(record: Path | None, number: int) -> Path | None:
    return None if record is None else record.with_name(f"{record.name}.journal-{number}")
