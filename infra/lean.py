"""Libraries without the others that they take along wherever they find them, for what is never used here: those cost
each process more than ten megabytes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

#: structlog shows tracebacks in colours, NATS goes over websockets, uvicorn watches source files.
_UNUSED: Mapping[str, Sequence[str]] = {
    "structlog": ("rich",),
    "nats.aio.client": ("aiohttp",),
    "uvicorn": ("watchfiles",),
}


class _Absent:
    """Says of some libraries that they are not there."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname in self._names:
            raise ModuleNotFoundError(f"{fullname} is not needed here", name=fullname)


@contextmanager
def without(*names: str) -> Iterator[None]:
    """What is not loaded yet is not found while the block runs."""
    absent = _Absent(names)
    sys.meta_path.insert(0, absent)
    try:
        yield
    finally:
        sys.meta_path.remove(absent)


def load() -> None:
    """Loads them, each time without what it does not need; whoever needs that loads it later. What is loaded already
    stays as it is."""
    for library, unused in _UNUSED.items():
        with without(*unused):
            importlib.import_module(library)
