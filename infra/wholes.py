"""Digests of files that grow by chunks, kept as far as the chunks come one behind the other: who has seen every byte
on its way need not read the file again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blake3

_MOST = 1000


class Growing:
    """BLAKE3 and SHA-256 of the beginning of a file, up to some byte of its next chunk."""

    def __init__(self, first: Any = None, second: Any = None, chunks: tuple[str, ...] = ()) -> None:
        self._first, self._second = first or blake3.blake3(), second or hashlib.sha256()
        self.chunks = chunks
        self.written_ns = 0

    def copy(self) -> Growing:
        return Growing(self._first.copy(), self._second.copy(), self.chunks)

    def update(self, data: bytes | memoryview) -> None:
        self._first.update(data)
        self._second.update(data)

    def digests(self) -> tuple[str, str]:
        return self._first.hexdigest(), self._second.hexdigest()


class Wholes:
    """What is known of some files. The times are those of the last change of each file: whoever else changes it makes
    what is known here worth nothing."""

    def __init__(self) -> None:
        self._found: OrderedDict[Path, Growing] = OrderedDict()
        self._turn = threading.Lock()

    def begin(self, path: Path, index: int) -> Growing | None:
        """To be fed with a chunk; None where that is not the next one, or somebody else has changed the file."""
        if index == 0:
            return Growing()
        with self._turn:
            known = self._found.get(path)
        if known is None or len(known.chunks) != index or path.stat().st_mtime_ns != known.written_ns:
            return None
        return known.copy()

    def grown(self, path: Path, growing: Growing, digest: str, written_ns: int) -> None:
        """The chunk with which it was fed stands in the file."""
        growing.chunks = (*growing.chunks, digest)
        growing.written_ns = written_ns
        with self._turn:
            self._found[path] = growing
            self._found.move_to_end(path)
            while len(self._found) > _MOST:
                self._found.popitem(last=False)

    def written(self, path: Path, chunks: tuple[str, ...], written_ns: int) -> None:
        """It was we who changed the file, behind these chunks."""
        with self._turn:
            known = self._found.get(path)
            if known is not None and known.chunks == chunks:
                known.written_ns = written_ns

    def forget(self, path: Path) -> None:
        with self._turn:
            self._found.pop(path, None)

    def of(self, path: Path, chunks: Mapping[int, str]) -> tuple[str, str] | None:
        """(BLAKE3, SHA-256) of a file with these chunks, hexadecimal; None where it is to be read for that."""
        with self._turn:
            known = self._found.get(path)
        if known is None or dict(enumerate(known.chunks)) != dict(chunks):
            return None
        return known.digests() if path.stat().st_mtime_ns == known.written_ns else None
