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
from functools import lru_cache
from itertools import chain
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
_FORMAT, _MODE = 0o170000, 0o7777


@lru_cache(1024)
def columns(count: int) -> str:
    """The struct format of the columns: mode, size, mtime, change time (seconds and nanoseconds each), inode."""
    return "=" + "".join(f"{count}{code}" for code in _COLUMNS)


class Folder:
    """A frame in a mapped file, decoded when it is asked for entries."""

    __slots__ = ("_at", "_body", "_data", "_end", "_entries", "_names", "_rest", "count", "files", "flags", "path")

    def __init__(self, data: bytes | mmap.mmap, at: int) -> None:
        self.count: int
        self.files: int
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
    def folders(self) -> int:
        return self.count - self.files

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

    def _columns(self) -> tuple[list[bytes], list[tuple[int, ...]]]:
        """Names, and the columns in their order."""
        count = self.count
        length = HEADER.unpack_from(self._data, self._at)[2]
        names = self._data[self._names : self._names + length].split(b"/")
        values = struct.unpack_from(columns(count), self._data, self._rest)
        return names, [values[start : start + count] for start in range(0, len(_COLUMNS) * count, count)]

    def sizes(self) -> tuple[int, ...]:
        return struct.unpack_from(f"={self.count}Q", self._data, self._rest + 2 * self.count)

    def inodes(self) -> list[tuple[bytes, Kind, int, int, int, int]]:
        """Of each entry: name, kind, size, inode, and seconds and nanoseconds of its change time."""
        if not self.count:
            return []
        names, (modes, sizes, _, _, changed, changed_nanos, inodes) = self._columns()
        kinds = [_KINDS.get(mode & _FORMAT, "other") for mode in modes]
        return list(zip(names, kinds, sizes, inodes, changed, changed_nanos, strict=True))

    def _decode(self) -> Iterator[Entry]:
        if not self.count:
            return
        names, (modes, sizes, seconds, nanos, changed, changed_nanos, inodes) = self._columns()
        links = HEADER.unpack_from(self._data, self._at)[3]
        targets = iter(self._data[self._rest - links : self._rest].split(b"\0"))
        for row, name in enumerate(names):
            mode = modes[row]
            kind = _KINDS.get(mode & _FORMAT, "other")
            yield Entry(
                name,
                kind,
                sizes[row],
                seconds[row] * _NS + nanos[row],
                mode & _MODE,
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
    modes = [_FORMATS[entry.kind] | entry.mode for entry in entries]
    sizes = [entry.size for entry in entries]
    modified = [divmod(entry.mtime_ns, _NS) for entry in entries]
    changed = [divmod(entry.changed_ns, _NS) for entry in entries]
    inodes = [entry.inode for entry in entries]
    times = [*zip(*modified, strict=True), *zip(*changed, strict=True)]
    values = struct.pack(columns(count), *chain(modes, sizes, *times, inodes))
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
