"""Undoing what a job did: what to look for, and what became of it."""

from __future__ import annotations

from msgspec import Struct

#: How many conflicts a result lists; all are counted.
LISTED = 100


class Spec(Struct, frozen=True):
    """The job to undo, and what it changed: a collection, or a folder by the plan that it carried out."""

    job: str
    collection: str | None = None
    target_directory: str | None = None
    plan: str | None = None


class Conflict(Struct, frozen=True):
    """What was left alone: an item as `<entity>/<id>`, or a path in the target."""

    path: str
    reason: str


class Result(Struct, frozen=True, rename="camel"):
    """`reverted` counts what was put back as it was; what is so already is not counted."""

    reverted: int = 0
    conflict_count: int = 0
    conflicts: tuple[Conflict, ...] = ()


class Conflicts(Struct):
    """Gathers them."""

    count: int = 0
    first: list[Conflict] = []

    def add(self, path: str, reason: str) -> None:
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(Conflict(path[:300], reason))

    def result(self, reverted: int) -> Result:
        return Result(reverted, self.count, tuple(self.first))
