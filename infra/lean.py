"""Libraries without the others that they take along wherever they find them, for what is never used here: those cost
each process more than ten megabytes, and a third of the time it takes to begin."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

#: structlog shows tracebacks in colours, NATS goes over websockets, uvicorn watches source files.
_UNUSED: Mapping[str, Sequence[str]] = {
    "structlog": ("rich",),
    "nats": ("aiohttp",),
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


class _Loader(importlib.abc.Loader):
    """Another's, without what its library does not need."""

    def __init__(self, loader: Any, unused: Sequence[str]) -> None:
        self._loader, self._unused = loader, unused

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        with without(*self._unused):
            self._loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Lean:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _UNUSED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = _Loader(spec.loader, _UNUSED[fullname])
        return spec


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def later(name: str) -> ModuleType:
    """A library that is loaded when something of it is used for the first time, by any thread."""
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _Later(name)


def begin() -> None:
    """From now on each of them is loaded without what it does not need; whoever needs that loads it all the same. What
    is loaded already stays as it is."""
    if not any(isinstance(one, _Lean) for one in sys.meta_path):
        sys.meta_path.insert(0, _Lean())
