"""Listings of folder trees on disk: one frame per folder, column by column, in the order that plans read.

A frame is a header, the path, the names, the link targets, and columns of modes, sizes and times; equal folders have
equal bytes there, so that two trees are compared folder by folder without looking at single files. Behind it follow
what identifies an inode in its state: change times and inode numbers.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from domain.plans.files import Entry, Kind

HEADER = struct.Struct("=IIIIII")
"""Flags; lengths of path, names and links; entries; how many of these are no folders."""

HIDDEN, UNREADABLE = 1, 2
_BODY_ROW = 2 + 8 + 8 + 4
_STATE_ROW = 8 + 4 + 8
_COLUMNS = "HQqIqIQ"
_FLAGS = 4
_KINDS: dict[int, Kind] = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
_FORMATS: dict[Kind, int] = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "other": stat.S_IFIFO}
_NS = 1_000_000_000


def columns(count: int) -> str:
    """The struct format of the columns: mode, size, mtime, change time (seconds and nanoseconds each), inode."""
    return "=" + "".join(f"{count}{code}" for code in _COLUMNS)


class Folder:
    """A frame in a mapped file, decoded when it is asked for entries."""

    __slots__ = ("_at", "_body", "_data", "_end", "_entries", "_names", "_rest", "count", "files", "flags", "path")

    def __init__(self, data: bytes | mmap.mmap, at: int) -> None:
        self.flags, path, names, links, self.count, self.files = HEADER.unpack_from(data, at)
        self._data, self._at = data, at
        self._names = at + HEADER.size + path
        self._rest = self._names + names + links
        self._body = self._rest + self.count * _BODY_ROW
        self._end: int = self._body + self.count * _STATE_ROW
        self.path = data[at + HEADER.size : self._names]
        self._entries: list[Entry] | None = None

    @property
    def body(self) -> bytes:
        return self._data[self._at + _FLAGS : self._body]

    @property
    def state(self) -> bytes:
        return self._data[self._at + _FLAGS : self._end]

    @property
    def hidden(self) -> bool:
        return bool(self.flags & HIDDEN)

    @property
    def unreadable(self) -> bool:
        return bool(self.flags & UNREADABLE)

    @property
    def frame(self) -> bytes:
        return self._data[self._at : self._end]

    @property
    def end(self) -> int:
        return self._end

    def entries(self) -> Sequence[Entry]:
        if self._entries is None:
            self._entries = list(self._decode())
        return self._entries

    def _decode(self) -> Iterator[Entry]:
        count = self.count
        if not count:
            return
        _, _, length, links, _, _ = HEADER.unpack_from(self._data, self._at)
        names = self._data[self._names : self._names + length].split(b"/")
        targets = iter(self._data[self._rest - links : self._rest].split(b"\0"))
        values = struct.unpack_from(columns(count), self._data, self._rest)
        modes, sizes, seconds, nanos, changed, changed_nanos, inodes = (
            values[index * count : (index + 1) * count] for index in range(len(_COLUMNS))
        )
        for row, name in enumerate(names):
            kind = _KINDS.get(stat.S_IFMT(modes[row]), "other")
            yield Entry(
                name,
                kind,
                sizes[row],
                seconds[row] * _NS + nanos[row],
                stat.S_IMODE(modes[row]),
                next(targets) if kind == "link" else b"",
                changed[row] * _NS + changed_nanos[row],
                inodes[row],
            )


def frame(path: bytes, entries: Sequence[Entry], flags: int = 0) -> bytes:
    """The frame of entries that are sorted by name."""
    count = len(entries)
    names = b"/".join(entry.name for entry in entries)
    links = b"\0".join(entry.link for entry in entries if entry.kind == "link")
    files = sum(entry.kind != "dir" for entry in entries)
    values = struct.pack(
        columns(count),
        *(_FORMATS[entry.kind] | entry.mode for entry in entries),
        *(entry.size for entry in entries),
        *(entry.mtime_ns // _NS for entry in entries),
        *(entry.mtime_ns % _NS for entry in entries),
        *(entry.changed_ns // _NS for entry in entries),
        *(entry.changed_ns % _NS for entry in entries),
        *(entry.inode for entry in entries),
    )
    head = HEADER.pack(flags, len(path), len(names), len(links), count, files)
    return b"".join((head, path, names, links, values))


class Listing:
    """A file of frames, mapped; they lie between `start` and `size`."""

    def __init__(self, file: BinaryIO, start: int = 0, behind: int = 0) -> None:
        self.start = start
        whole = os.fstat(file.fileno()).st_size
        self.size = whole - behind
        self.data: bytes | mmap.mmap = mmap.mmap(file.fileno(), whole, prot=mmap.PROT_READ) if whole else b""

    def folder(self, at: int) -> Folder:
        return Folder(self.data, at)

    def __iter__(self) -> Iterator[Folder]:
        at = self.start
        while at < self.size:
            found = Folder(self.data, at)
            yield found
            at = found.end

    def close(self) -> None:
        """Its folders cannot be read any more."""
        if isinstance(self.data, mmap.mmap):
            self.data.close()
