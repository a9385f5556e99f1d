"""Content-addressed blobs: BLAKE3 is the identity; a local directory holds them, or a store elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import blake3

from domain import errors

_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Missing(Exception):
    """No blob of that hash."""


class Opened(Protocol):
    """A blob that is being read; it stays as it is until `close`, whatever becomes of its name. Both block."""

    def pieces(self, first: int, last: int) -> Iterator[bytes]:
        """The bytes from one offset to another, that one included, in pieces of at most about 1 MiB. They end early
        where the blob does."""

    def close(self) -> None: ...


class Contents(Protocol):
    """Where blobs are kept. All methods block: call them in threads or child processes.

    They raise errors.StorageFull and errors.Unavailable where there is no room, or no answer.
    """

    def put(self, data: bytes) -> str:
        """Keeps bytes durably; answers their hash."""

    def adopt(self, source: Path, digest: str | None = None) -> str:
        """Keeps a file durably, and takes it away; answers its hash, or takes it as given."""

    def exists(self, digest: str) -> bool: ...

    def open(self, digest: str, size: int) -> Opened:
        """Raises Missing, also where it has another size."""

    def read(self, digest: str) -> bytes:
        """Raises Missing, also when the bytes do not have their hash any more."""

    def delete(self, digest: str) -> None:
        """What is not there is deleted."""


def key(digest: str) -> str:
    """`ab/cd…`. Raises Missing for what is no hash."""
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise Missing(digest)
    return f"{digest[:2]}/{digest[2:]}"


class Blobs:
    """Blobs below a directory, `ab/cd…` by hash."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, digest: str) -> Path:
        """Where a blob stands. Raises Missing."""
        path = self._place(digest)
        if not path.exists():
            raise Missing(digest)
        return path

    def exists(self, digest: str) -> bool:
        return self._place(digest).exists()

    def put(self, data: bytes) -> str:
        """Keeps bytes durably; answers their hash."""
        digest = blake3.blake3(data).hexdigest()
        target = self._place(digest)
        if not target.exists():
            with tempfile.NamedTemporaryFile(dir=self._parent(target), prefix=".", delete=False) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _settle(file.name, target)
        return digest

    def adopt(self, source: Path, digest: str | None = None) -> str:
        """Keeps a file durably, moving it where that is possible; answers its hash, or takes it as given."""
        digest = digest or file_hash(source)
        target = self._place(digest)
        if target.exists():
            source.unlink(missing_ok=True)
            return digest
        try:
            parent = self._parent(target)
            if source.stat().st_dev != parent.stat().st_dev:
                source = _copied(source, parent)
            with source.open("rb") as file:
                os.fsync(file.fileno())
            _settle(source, target)
        except FileNotFoundError:
            if not target.exists():  # where it is, somebody else has just adopted the same
                raise
        except OSError as error:
            raise errors.StorageFull() if error.errno in _FULL else error from None
        return digest

    def open(self, digest: str, size: int) -> Opened:
        """Raises Missing, also where it has another size."""
        try:
            descriptor = os.open(self._place(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Missing(digest) from None
        if os.fstat(descriptor).st_size != size:
            os.close(descriptor)
            raise Missing(digest)
        return _File(descriptor)

    def read(self, digest: str) -> bytes:
        """Raises Missing, also when the bytes do not have their hash any more."""
        data = self.path(digest).read_bytes()
        if blake3.blake3(data).hexdigest() != digest:
            raise Missing(digest)
        return data

    def delete(self, digest: str) -> None:
        """What is not there is deleted."""
        with contextlib.suppress(FileNotFoundError):
            self._place(digest).unlink()

    def _place(self, digest: str) -> Path:
        return self._directory / key(digest)

    def _parent(self, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return target.parent


class _File:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def pieces(self, first: int, last: int) -> Iterator[bytes]:
        while first <= last and (piece := os.pread(self._descriptor, min(_CHUNK, last + 1 - first), first)):
            yield piece
            first += len(piece)

    def close(self) -> None:
        os.close(self._descriptor)


def file_hash(path: Path) -> str:
    """BLAKE3 of a file, hexadecimal."""
    hasher = blake3.blake3()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _copied(source: Path, parent: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=parent, prefix=".", delete=False) as copy, source.open("rb") as other:
        try:
            shutil.copyfileobj(other, copy, _CHUNK)
        except OSError:
            Path(copy.name).unlink()
            raise
    source.unlink()
    return Path(copy.name)


def _settle(source: str | Path, target: Path) -> None:
    os.replace(source, target)
    for directory in (target.parent, target.parent.parent):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
