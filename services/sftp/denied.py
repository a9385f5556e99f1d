"""Files of a server that nobody may touch, by patterns as in a .gitignore."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pathspec import GitIgnoreSpec


class Denied:
    """What git would ignore is denied, with all that lies below it. A pattern that git could not read denies
    nothing."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._spec = GitIgnoreSpec.from_lines(_readable(patterns))
        self.any = bool(self._spec.patterns)

    def __call__(self, path: bytes, is_folder: bool = False) -> bool:
        """`path` is relative to the server's folder."""
        if not self.any or not path:
            return False
        text = path.decode("utf-8", "surrogateescape")
        return self._spec.match_file(text + "/" if is_folder else text)


@functools.lru_cache(maxsize=256)
def denied(patterns: tuple[str, ...]) -> Denied:
    return Denied(patterns)


def _readable(patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError:
            continue
        yield pattern
