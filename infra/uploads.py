"""Files that grow by chunks: one sparse file for each upload, its chunks written in place in any order."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3

from domain import errors
from infra.wholes import Wholes

_PIECE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WHOLES = Wholes()
_WRITE = 2  # SYNC_FILE_RANGE_WRITE


def _write_soon(descriptor: int, offset: int, length: int) -> None:
    """Has the disk begin with it, while more comes: what is left to be written in the end is waited for. Elsewhere
    than on Linux with glibc the end takes longer."""
    with contextlib.suppress(OSError, AttributeError):
        wide = ctypes.c_int64
        ctypes.CDLL(None).sync_file_range(descriptor, wide(offset), wide(length), _WRITE)


class Sink:
    """Where one chunk goes: in place, or beside it until it is whole. All methods block."""

    def __init__(self, path: Path, index: int, chunk_size: int, *, beside: Path | None = None) -> None:
        offset = index * chunk_size
        self._path, self._offset, self._beside = path, offset, beside
        self._growing = _WHOLES.begin(path, index) if beside is None else None
        flags = os.O_WRONLY if beside is None else os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self._descriptor = os.open(beside or path, flags | os.O_CLOEXEC, 0o600)
        self._at = offset if beside is None else 0
        self._hasher = blake3.blake3()
        self._open = True
        self._turn = (
            threading.Lock()
        )  # whoever gave up waiting for a write closes; its number may be another file's by then
        self.length = 0

    def write(self, data: bytes) -> None:
        """Raises errors.StorageFull. What comes after the end is dropped."""
        view = memoryview(data)
        with self._turn:
            if not self._open:
                return
            self._hasher.update(data)
            if self._growing is not None:
                self._growing.update(data)
            try:
                while view:
                    written = os.pwrite(self._descriptor, view, self._at + self.length)
                    self.length += written
                    view = view[written:]
            except OSError as error:
                raise errors.StorageFull() if error.errno in _FULL else error from None

    def digest(self) -> str:
        """BLAKE3 of what was written, hexadecimal."""
        return self._hasher.hexdigest()

    def settle(self) -> None:
        """All of the chunk has come: what was written beside comes into place."""
        if self._beside is None:
            self._settled()
            return
        _WHOLES.forget(self._path)
        with self._path.open("r+b") as target:
            done = 0
            while done < self.length:
                piece = os.pread(self._descriptor, _PIECE, done)
                os.pwrite(target.fileno(), piece, self._offset + done)
                done += len(piece)

    def _settled(self) -> None:
        with self._turn:
            if not self._open:
                return
            if self._growing is not None:
                written_ns = os.fstat(self._descriptor).st_mtime_ns
                _WHOLES.grown(self._path, self._growing, self.digest(), written_ns)
            _write_soon(self._descriptor, self._offset, self.length)

    def close(self) -> None:
        with self._turn:
            self._open = False
            os.close(self._descriptor)
        if self._beside is not None:
            with contextlib.suppress(FileNotFoundError):
                self._beside.unlink()


class Busy(Exception):
    """Somebody else writes on."""


class Continuation:
    """Writes on where an upload's beginning ends, chunk by chunk; nobody else, in any process, does so meanwhile.
    Raises FileNotFoundError for an upload that is over, and Busy. All methods block."""

    def __init__(self, path: Path, chunk_size: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise Busy from None
        self._writing = threading.Lock()
        self._chunk_size = chunk_size
        self._hasher = blake3.blake3()
        self._at = 0

    def begin(self, index: int, came: int = 0) -> str:
        """Goes to a chunk of which some bytes have come; answers their BLAKE3."""
        self._hasher = blake3.blake3()
        self._at = index * self._chunk_size
        end = self._at + came
        while self._at < end and (piece := os.pread(self._descriptor, min(_PIECE, end - self._at), self._at)):
            self._hasher.update(piece)
            self._at += len(piece)
        return self._hasher.hexdigest()

    def write(self, data: memoryview) -> str:
        """Answers the BLAKE3 of what has come of the chunk. Raises errors.StorageFull."""
        with self._writing:
            self._hasher.update(data)
            try:
                while data:
                    written = os.pwrite(self._descriptor, data, self._at)
                    self._at += written
                    data = data[written:]
            except OSError as error:
                raise errors.StorageFull() if error.errno in _FULL else error from None
            return self._hasher.hexdigest()

    def close(self) -> None:
        with self._writing:  # whoever was told to stop may still be at it
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


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

    def hashes(self, id: str, chunks: Mapping[int, str]) -> tuple[str, str]:
        """(BLAKE3, SHA-256) of the whole, hexadecimal, which has chunks of these BLAKE3; durable once this returns."""
        path = self.path(id)
        with path.open("rb") as file, ThreadPoolExecutor(2) as beside:
            durable = beside.submit(os.fsync, file.fileno())
            known = _WHOLES.of(path, chunks)
            if known is None:
                first, second = blake3.blake3(), hashlib.sha256()
                while piece := file.read(_PIECE):
                    other = beside.submit(second.update, piece)
                    first.update(piece)
                    other.result()
                known = first.hexdigest(), second.hexdigest()
            durable.result()
        return known

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
