"""Which names a plan may see: exclude patterns matched in linear time, chosen sub-paths, and no names of our own.

Patterns are those of `fnmatch` (`*`, `?`, `[...]`; `*` also crosses `/`), matched against the relative POSIX path and
against its last component. All patterns together are one automaton: a set of positions held as the bits of an integer,
stepped once per character and remembered per (set, character), so that no pattern can make a name cost more than its
length.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from domain import errors

MAX_PATTERNS = 100
MAX_LENGTH = 256
MAX_WILDCARDS = 16
MAX_ENTITIES = 10_000
MAX_PATH = 4096

OWN_FOLDER = b".undrift"
TEMPORARY = b".undrift-tmp-"

_REMEMBERED = 10_000


class _State(dict[str, "_State"]):
    """A set of positions; as a mapping, where each character seen so far leads."""

    __slots__ = ("_automaton", "bits", "final")

    def __init__(self, automaton: _Automaton, bits: int) -> None:
        super().__init__()
        self._automaton = automaton
        self.bits = bits
        self.final = bool(bits & automaton.finals)

    def __missing__(self, character: str) -> _State:
        return self._automaton.advance(self, character)


class _Automaton:
    """`computed` counts the transitions worked out so far; the others were remembered."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.finals = 0
        self.computed = 0
        self._stars = 0
        self._any = 0
        self._literals: dict[str, int] = {}
        self._sets: list[tuple[re.Pattern[str], int]] = []
        self._accepts: dict[str, int] = {}
        first, begins = 1, 0
        for pattern in patterns:
            begins |= first
            first = self._add(pattern, first)
        self._states: dict[int, _State] = {}
        self._begins = begins
        self.start = self._state(begins)

    def _add(self, pattern: str, bit: int) -> int:
        """The positions of one pattern from `bit` on; returns the first bit behind them."""
        for token in _tokens(pattern):
            if token == "*":  # noqa: S105
                self._stars |= bit
                continue
            if token == "?":  # noqa: S105
                self._any |= bit
            elif len(token) == 1:
                self._literals[token] = self._literals.get(token, 0) | bit
            else:
                self._sets.append((re.compile(fnmatch.translate(token)), bit))
            bit <<= 1
        self.finals |= bit
        return bit << 1

    def _state(self, bits: int) -> _State:
        state = self._states.get(bits)
        if state is None:
            state = self._states[bits] = _State(self, bits)
        return state

    def advance(self, state: _State, character: str) -> _State:
        """The state after one more character: a few operations on integers of at most 25,700 bits."""
        self.computed += 1
        if self.computed % _REMEMBERED == 0:  # forget, so that memory stays bounded whatever the names are
            self._states.clear()
            self._accepts.clear()
            self.start = self._state(self._begins)
        accepts = self._accepts.get(character)
        if accepts is None:
            accepts = self._any | self._literals.get(character, 0)
            for single, bit in self._sets:
                if single.match(character):
                    accepts |= bit
            self._accepts[character] = accepts
        bits = ((state.bits & accepts) << 1) | (state.bits & self._stars)
        following = state[character] = self._state(bits)
        return following


def _tokens(pattern: str) -> Iterable[str]:
    """A star, a question mark, a literal character, or a bracket expression, which ends where fnmatch says."""
    at, end = 0, len(pattern)
    while at < end:
        token = pattern[at]
        at += 1
        if token == "[":  # noqa: S105
            close = at + 1 if pattern[at : at + 1] == "!" else at
            close = pattern.find("]", close + 1)
            if close >= 0:
                yield pattern[at - 1 : close + 1]
                at = close + 1
                continue
        yield token


class Patterns:
    """Raises errors.Invalid for more or longer patterns than are allowed."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        if len(patterns) > MAX_PATTERNS:
            raise errors.Invalid(f"There are more than {MAX_PATTERNS} exclude patterns")
        for pattern in patterns:
            _check(pattern)
        self._patterns = patterns
        self.any = bool(patterns)

    @cached_property
    def _automaton(self) -> _Automaton:
        """Made when it is first needed: many a list of patterns is only checked."""
        return _Automaton(self._patterns)

    @property
    def computed(self) -> int:
        """Transitions worked out so far, never more than characters seen."""
        return self._automaton.computed

    def match(self, path: str) -> bool:
        """Whether the path itself, whatever lies above it, matches as a whole or by its last component."""
        folder, slash, name = path.rpartition("/")
        return bool(self.among(folder + slash, [name]))

    def among(self, prefix: str, names: Iterable[str]) -> set[str]:
        """Which of the names in a folder match; `prefix` is the folder's path with its final slash, or empty."""
        state = self._automaton.start
        for character in prefix:
            state = state[character]
        found = set()
        for name in names:
            whole = state
            for character in name:
                whole = whole[character]
            if not whole.final and prefix:
                whole = self._automaton.start
                for character in name:
                    whole = whole[character]
            if whole.final:
                found.add(name)
        return found


def _check(pattern: str) -> None:
    if len(pattern) > MAX_LENGTH:
        raise errors.Invalid(f"An exclude pattern is longer than {MAX_LENGTH} characters")
    if sum(map(pattern.count, "*?[")) > MAX_WILDCARDS:
        raise errors.Invalid(f"An exclude pattern has more than {MAX_WILDCARDS} wildcards")
    if "\0" in pattern or any("\ud800" <= character <= "\udfff" for character in pattern):
        raise errors.Invalid("An exclude pattern holds a character that no name can have")


_Chosen = dict[bytes, "_Chosen | None"]


class Scope:
    """What a sync may see: the chosen sub-paths (all when there are none) without what the patterns match.

    Paths are bytes, relative, without a slash at either end. Raises errors.Invalid.
    """

    def __init__(self, patterns: Sequence[str] = (), entities: Sequence[str] = ()) -> None:
        self._patterns = Patterns(patterns)
        self._chosen = _choose(entities)
        self.whole = not self._patterns.any and self._chosen is None

    def visible(self, folder: bytes, names: list[bytes]) -> list[bytes]:
        """The names of a visible folder that may be seen, in the given order."""
        seen = [name for name in names if name != OWN_FOLDER and not name.startswith(TEMPORARY)]
        chosen = self._chosen_in(folder)
        if chosen is not None:
            seen = [name for name in seen if name in chosen]
        if not self._patterns.any:
            return seen
        prefix = _text(folder) + "/" if folder else ""
        texts = [_text(name) for name in seen]
        excluded = self._patterns.among(prefix, texts)
        return [name for name, text in zip(seen, texts, strict=True) if text not in excluded]

    def covers(self, path: bytes) -> bool:
        """Whether a path may be seen: it and every folder above it."""
        parts = path.split(b"/")
        return all(self.visible(b"/".join(parts[:depth]), [name]) for depth, name in enumerate(parts))

    def _chosen_in(self, folder: bytes) -> _Chosen | None:
        """The names chosen in a folder above a chosen path; None when all of the folder is."""
        chosen = self._chosen
        for part in folder.split(b"/") if folder else ():
            if chosen is None:
                return None
            chosen = chosen.get(part, {})
        return chosen


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _choose(entities: Sequence[str]) -> _Chosen | None:
    if not entities:
        return None
    if len(entities) > MAX_ENTITIES:
        raise errors.Invalid(f"There are more than {MAX_ENTITIES} sub-paths")
    chosen: _Chosen = {}
    for entity in sorted(entities, key=len):
        parts, level = relative(entity), chosen
        for part in parts[:-1]:
            deeper = level.setdefault(part, {})
            if deeper is None:
                break
            level = deeper
        else:
            level[parts[-1]] = None
    return chosen


def relative(entity: str) -> list[bytes]:
    """The components of a relative POSIX path. Raises errors.Invalid for anything else."""
    try:
        path = entity.encode()
    except UnicodeEncodeError:
        raise errors.Invalid("A sub-path is not valid text") from None
    parts = path.removesuffix(b"/").split(b"/")
    if any(part in (b"", b".", b"..") or len(part) > 255 for part in parts) or len(path) > MAX_PATH:
        raise errors.Invalid("A sub-path is relative, without empty, '.' or '..' components")
    if any(byte < 32 or byte == 127 for byte in path):
        raise errors.Invalid("A sub-path holds control characters")
    return parts
