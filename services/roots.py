"""Which folders a request may touch, judged by names alone: before anything is recorded or looked up."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from domain import errors
from infra.config import Settings
from infra.paths import Roots, absolute

#: The one root that is there without being configured, inside the data dir.
OWN = "files"


def configured(settings: Settings) -> tuple[str, ...]:
    return (*settings.files.roots, f"{settings.data_dir}/{OWN}")


def allowed(settings: Settings, own: Sequence[str]) -> tuple[str, ...]:
    """The configured roots, or those of `own` (a key's) that lie beneath one of them."""
    every = configured(settings)
    if not own:
        return every
    roots = _known(every)
    return tuple(root for root in own if _holds(roots, root))


@functools.lru_cache(maxsize=1000)
def _known(roots: tuple[str, ...]) -> Roots:
    """Resolving the roots' own names touches the disk, so it is done once."""
    return Roots(roots)


def _holds(roots: Roots, path: str) -> bool:
    try:
        roots.place(path)
    except errors.Error:
        return False
    return True


def check(settings: Settings, own: Sequence[str], *paths: str) -> None:
    """Raises errors.Invalid for a path that is none, and for one that lies in another; errors.Forbidden outside the
    roots."""
    roots = _known(allowed(settings, own))
    for path in paths:
        roots.place(path)
    parts = sorted(absolute(path) for path in paths)
    for first, second in itertools.pairwise(parts):
        if second[: len(first)] == first:
            raise errors.Invalid("Source and target must be different folders, and neither may lie in the other")
