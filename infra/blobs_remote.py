"""Blobs in a store elsewhere, by `obstore`: S3, Azure, Google Cloud, or a directory.

Only its synchronous half is used, in threads: what it leaves of an event loop can abort a process at its exit.
Who may write there is told by the provider's own environment variables, never by our settings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import blake3
import obstore
import structlog
from obstore import exceptions
from obstore.store import from_url

from domain import errors
from infra import blobs
from infra.blobs import Blobs, Contents, Missing, Opened, file_hash
from infra.config import InvalidSetting

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

log = structlog.get_logger("blobs")

_SCHEMES = ("s3", "az", "gs", "file")
_PIECE = 1 << 20
_WINDOW = 4 << 20
_PART = 8 << 20
_AT_ONCE = 4
_RETRY: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


def check(url: str) -> None:
    """Raises InvalidSetting for a `blobs.url` that is none; what it says holds nothing of a secret."""
    if not url:
        return
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise InvalidSetting(f"blobs.url begins with one of {', '.join(f'{one}://' for one in _SCHEMES)}")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidSetting("blobs.url holds no credentials; they come from the provider's environment variables")
    if (parts.scheme == "file") == bool(parts.netloc):
        raise InvalidSetting("blobs.url is like s3://bucket/prefix, az://container/prefix, gs://bucket, file:///folder")


def contents(url: str, directory: Path) -> Contents:
    """The store of a `blobs.url`; the directory where it is empty. Raises InvalidSetting."""
    return Remote(url) if url else Blobs(directory)


def _opened(url: str) -> ObjectStore:
    if url.startswith("file:"):
        return from_url(url, mkdir=True)
    # Options for its client would take the place of those that the environment has.
    return from_url(url, retry_config=_RETRY)


class Remote:
    """Blobs below the prefix of a URL, `ab/cd…` by hash."""

    def __init__(self, url: str) -> None:
        check(url)
        try:
            self._store = _opened(url)
        except (exceptions.BaseError, ValueError) as error:
            raise InvalidSetting(f"blobs.url cannot be opened ({type(error).__name__})") from None

    def put(self, data: bytes) -> str:
        digest = blake3.blake3(data).hexdigest()
        if not self.exists(digest):
            with _named():
                obstore.put(self._store, blobs.key(digest), data)
        return digest

    def adopt(self, source: Path, digest: str | None = None) -> str:
        digest = digest or file_hash(source)
        if not self.exists(digest):
            with _named():  # in parts that are read one after the other; it is visible once it is whole
                obstore.put(self._store, blobs.key(digest), source, chunk_size=_PART, max_concurrency=_AT_ONCE)
        source.unlink(missing_ok=True)
        return digest

    def exists(self, digest: str) -> bool:
        try:
            self._head(digest)
        except Missing:
            return False
        return True

    def open(self, digest: str, size: int) -> Opened:
        if self._head(digest)["size"] != size:
            raise Missing(digest)
        return _Object(self._store, digest)

    def read(self, digest: str) -> bytes:
        with _named(digest):
            data = obstore.get(self._store, blobs.key(digest)).bytes().to_bytes()
        if blake3.blake3(data).hexdigest() != digest:
            raise Missing(digest)
        return data

    def delete(self, digest: str) -> None:
        with contextlib.suppress(Missing), _named(digest):
            obstore.delete(self._store, blobs.key(digest))

    def _head(self, digest: str) -> Any:
        with _named(digest):
            return obstore.head(self._store, blobs.key(digest))


class _Object:
    """An object is immutable, and so is what its name is."""

    def __init__(self, store: Any, digest: str) -> None:
        self._store, self._digest = store, digest

    def pieces(self, first: int, last: int) -> Iterator[bytes]:
        while first <= last:  # no request lasts as long as the slowest reader
            end = min(first + _WINDOW, last + 1)
            with _named(self._digest):
                found = obstore.get_range(self._store, blobs.key(self._digest), start=first, end=end)
            view = memoryview(found)
            for at in range(0, len(view), _PIECE):
                yield bytes(view[at : at + _PIECE])
            if len(view) < end - first:
                return
            first = end

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _named(digest: str = "") -> Iterator[None]:
    """A store's failures in our words: its own may repeat addresses and headers."""
    try:
        yield
    except FileNotFoundError:
        raise Missing(digest) from None
    except (exceptions.BaseError, OSError) as error:
        log.warning("the store of blobs failed", error=type(error).__name__)
        raise errors.Unavailable("The store of blobs does not answer", retry_after=5) from None
