"""What two runs did to the same things, side by side."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

Op = Literal["created", "updated", "deleted", "none", "blocked"]


class Spec(Struct, frozen=True):
    """The plans of two folder syncs, by their hashes; `after` is the key of the last path that was shown, in hex.
    The root's own is empty."""

    left: str
    right: str
    after: str | None = None
    limit: int = 100


class Done(Struct, frozen=True):
    """What a run did to one thing: to a file its `size` then, to an item the `hash` of its content then."""

    op: Op
    kind: str | UnsetType = UNSET
    size: int | UnsetType = UNSET
    hash: str | UnsetType = UNSET


class Pair(Struct, frozen=True):
    """One thing, and what each run did to it, where it did anything."""

    name: str
    left: Done | None
    right: Done | None


class Counts(Struct, frozen=True):
    """Things to which both did the same, or something different, and those that only one of them touched."""

    same: int
    different: int
    only_left: int
    only_right: int


class Page(Struct, frozen=True):
    """`after` is for the page behind it, None on the last."""

    counts: Counts
    pairs: list[Pair]
    after: str | None
