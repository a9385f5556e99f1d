"""Files that grow by chunks: one sparse file for each upload, its chunks written in place in any order."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import blake3

from domain import errors
from infra.lanes import Work
from infra.straight import Straight
from infra.wholes import Growing, Wholes

_PIECE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WHOLES = Wholes()
#: Chunks of at least so many bytes go past the page cache: for smaller ones waiting for the disk takes too long.
_STRAIGHT = 1 << 20
_PIECES = 16


class Part:
    """A chunk on its way into a file. Its pieces are placed one behind the other. Then they are stored, in any order,
    and mixed in theirs, in threads: both block."""

    def __init__(self, file: Straight, offset: int, growing: Growing | None) -> None:
        self._file, self._offset, self._growing = file, offset, growing
        self._hasher = blake3.blake3()
        self._placed = self._hashed = 0
        self._stored: dict[int, int] = {}
        self._length = 0
        self._digests: deque[tuple[int, str]] = deque(maxlen=_PIECES)
        self._whole: Growing | None = None
        self._ended = False

    def place(self, data: memoryview, *, last: bool = False) -> tuple[Work, Work]:
        """How to store, and to mix, the next piece. Where another chunk follows, `last` says that this one ends here.
        Storing raises errors.StorageFull."""
        at, self._placed = self._placed, self._placed + len(data)
        return partial(self._store, data, at), partial(self._mix, data, last)

    def _store(self, data: memoryview, at: int) -> None:
        self._file.write(data, self._offset + at)
        self._stored[at] = len(data)

    def _mix(self, data: bytes | memoryview, last: bool) -> None:
        self._hasher.update(data)
        self._hashed += len(data)
        self._digests.append((self._hashed, self._hasher.hexdigest()))
        if self._growing is not None:
            self._growing.update(data)
            if last:
                self._whole = self._growing.copy()
        self._ended = last

    def recall(self, length: int) -> None:
        """So much of it is in the file already."""
        while self._length < length:
            piece = self._file.read(min(_PIECE, length - self._length), self._offset + self._length)
            if not piece:
                return
            self._mix(piece, False)
            self._length += len(piece)
        self._placed = self._length

    @property
    def over(self) -> bool:
        """Its last bytes were stored, and mixed."""
        return self._ended and self._reached() == self._placed

    def came(self) -> tuple[int, str]:
        """How many bytes are in the file, with their BLAKE3; somewhat fewer than there are, while more come."""
        length = self._reached()
        return next((one for one in reversed(list(self._digests)) if one[0] <= length), (0, ""))

    def _reached(self) -> int:
        while (more := self._stored.pop(self._length, None)) is not None:
            self._length += more
        return self._length

    def digest(self) -> str:
        """BLAKE3 of what was mixed, hexadecimal."""
        return self._hasher.hexdigest()

    def settle(self, path: Path) -> None:
        """All of the chunk has come; it is known that it stands in the file behind those that it was begun behind."""
        written_ns = self._file.settle(self._offset, self._placed)
        if self._growing is not None:
            whole = self._whole or self._growing
            whole.chunks = self._growing.chunks
            _WHOLES.grown(path, whole, self.digest(), written_ns)
            self._growing.chunks = whole.chunks


class Sink:
    """Where one chunk goes: in place, or beside it until it is whole. All methods block."""

    def __init__(self, path: Path, index: int, chunk_size: int, *, beside: Path | None = None) -> None:
        offset = index * chunk_size
        self._path, self._offset, self._beside = path, offset, beside
        flags = os.O_WRONLY if beside is None else os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self._file = Straight(beside or path, flags, straight=chunk_size >= _STRAIGHT)
        growing = _WHOLES.begin(path, index) if beside is None else None
        self._part = Part(self._file, offset if beside is None else 0, growing)
        self.place = self._part.place

    def digest(self) -> str:
        """BLAKE3 of what was written, hexadecimal."""
        return self._part.digest()

    def settle(self) -> None:
        """All of the chunk has come: what was written beside comes into place."""
        if self._beside is None:
            self._part.settle(self._path)
            return
        _WHOLES.forget(self._path)
        length, done = self._part.came()[0], 0
        with self._path.open("r+b") as target:
            while done < length:
                piece = self._file.read(_PIECE, done)
                os.pwrite(target.fileno(), piece, self._offset + done)
                done += len(piece)

    def close(self) -> None:
        self._file.close()
        if self._beside is not None:
            with contextlib.suppress(FileNotFoundError):
                self._beside.unlink()


class Busy(Exception):
    """Somebody else writes on."""


class Continuation:
    """Writes on where an upload's beginning ends, chunk by chunk; nobody else, in any process, does so meanwhile.
    Raises FileNotFoundError for an upload that is over, and Busy. All methods block but `after` and `skip`."""

    def __init__(self, path: Path, chunk_size: int) -> None:
        self._path, self._chunk_size = path, chunk_size
        self._file = Straight(path, os.O_RDWR, straight=chunk_size >= _STRAIGHT)
        self._growing: Growing | None = None
        if not self._file.alone():
            self._file.close()
            raise Busy

    def begin(self, index: int, came: int = 0) -> Part:
        """Goes to a chunk of which some bytes have come."""
        self._growing = _WHOLES.begin(self._path, index)
        part = self.after(index)
        part.recall(came)
        return part

    def after(self, index: int) -> Part:
        """The next chunk, which is not in the file yet; the one before it has been put to its end."""
        return Part(self._file, index * self._chunk_size, self._growing)

    def skip(self) -> None:
        """A chunk stays as it is in the file."""
        self._growing = None

    def settle(self, parts: Sequence[Part]) -> None:
        """These, one behind the other, have come whole."""
        for part in parts:
            part.settle(self._path)

    def close(self) -> None:
        if self._growing is not None:
            _WHOLES.written(self._path, self._growing.chunks, self._file.settle(0, 0))
        self._file.close()


class Uploads:
    """The files of uploads under a directory. All methods block: call them in threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, id: str) -> Path:
        return self._directory / id

    def make(self, id: str, size: int) -> None:
        """Raises errors.StorageFull where there is no room for all of it."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path(id), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if size:
                os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            self.remove(id)
            raise errors.StorageFull() if error.errno in _FULL else error from None
        finally:
            os.close(descriptor)

    def exists(self, id: str) -> bool:
        return self.path(id).exists()

    def sink(self, id: str, index: int, chunk_size: int, beside: str | None = None) -> Sink:
        """For a chunk. Raises FileNotFoundError for an upload that is over."""
        aside = None if beside is None else self._directory / f"{id}.{beside}"
        return Sink(self.path(id), index, chunk_size, beside=aside)

    def continuation(self, id: str, chunk_size: int) -> Continuation:
        return Continuation(self.path(id), chunk_size)

    def join(self, id: str, parts: Sequence[str], chunk_size: int) -> list[str]:
        """Copies parts one behind the other into an upload; answers the BLAKE3 of each of its chunks."""
        digests, hasher, room = [], blake3.blake3(), chunk_size
        with self.path(id).open("r+b") as whole:
            for part in parts:
                with self.path(part).open("rb") as file:
                    while piece := file.read(min(_PIECE, room)):
                        whole.write(piece)
                        hasher.update(piece)
                        room -= len(piece)
                        if not room:
                            digests.append(hasher.hexdigest())
                            hasher, room = blake3.blake3(), chunk_size
        return digests if room == chunk_size and digests else [*digests, hasher.hexdigest()]

    def hashes(self, id: str, chunks: Mapping[int, str]) -> tuple[tuple[str, str], bool]:
        """(BLAKE3, SHA-256) of the whole, hexadecimal, which has chunks of these BLAKE3, durable once this returns; and
        whether we saw all of it when it came, so that nothing can have become of the chunks meanwhile."""
        path = self.path(id)
        with path.open("rb") as file, ThreadPoolExecutor(2) as beside:
            durable = beside.submit(os.fsync, file.fileno())
            seen = _WHOLES.of(path, chunks)
            known = seen
            if known is None:
                first, second = blake3.blake3(), hashlib.sha256()
                while piece := file.read(_PIECE):
                    other = beside.submit(second.update, piece)
                    first.update(piece)
                    other.result()
                known = first.hexdigest(), second.hexdigest()
            durable.result()
        return known, seen is not None

    def damaged(self, id: str, chunk_size: int, digests: Mapping[int, str]) -> list[int]:
        """Chunks that are not any more what they were when they came."""
        found = []
        with self.path(id).open("rb") as file:
            for index, digest in sorted(digests.items()):
                if blake3.blake3(os.pread(file.fileno(), chunk_size, index * chunk_size)).hexdigest() != digest:
                    found.append(index)
        return found

    def remove(self, id: str) -> None:
        _WHOLES.forget(self.path(id))
        with contextlib.suppress(FileNotFoundError):
            self.path(id).unlink()
