"""Content-addressed blobs: BLAKE3 is the identity, a local directory the default store."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import blake3

_CHUNK = 1 << 20


class Missing(Exception):
    """No blob of that hash."""


class Blobs:
    """Blobs below a directory, `ab/cd…` by hash. All methods block: call them in threads or child processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, digest: str) -> Path:
        """Where a blob stands. Raises Missing."""
        path = self._place(digest)
        if not path.exists():
            raise Missing(digest)
        return path

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
            source.unlink()
            return digest
        parent = self._parent(target)
        if source.stat().st_dev != parent.stat().st_dev:
            with tempfile.NamedTemporaryFile(dir=parent, prefix=".", delete=False) as copy, source.open("rb") as other:
                shutil.copyfileobj(other, copy, _CHUNK)
            source.unlink()
            source = Path(copy.name)
        with source.open("rb") as file:
            os.fsync(file.fileno())
        _settle(source, target)
        return digest

    def read(self, digest: str) -> bytes:
        """Raises Missing, also when the bytes do not have their hash any more."""
        data = self.path(digest).read_bytes()
        if blake3.blake3(data).hexdigest() != digest:
            raise Missing(digest)
        return data

    def _place(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise Missing(digest)
        return self._directory / digest[:2] / digest[2:]

    def _parent(self, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return target.parent


def file_hash(path: Path) -> str:
    """BLAKE3 of a file, hexadecimal."""
    hasher = blake3.blake3()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _settle(source: str | Path, target: Path) -> None:
    os.replace(source, target)
    for directory in (target.parent, target.parent.parent):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
