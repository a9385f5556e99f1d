"""An outside world for connectors: a list of pages in a file, served by a source of the kind `outside`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from domain import jobs, kinds
from services.worker import child, collecting, sources

KIND = "outside"


class Spec(Struct, frozen=True):
    """`world` is the file in which the world stands."""

    world: str


class Result(Struct, frozen=True):
    pages: int
    created: int
    updated: int
    deleted: int


class World(Struct):
    """What is outside, page by page, as entity, id, content and revision. A `complete` one says what is gone; the last
    page comes again `repeats` times. Before the pages `dies_at` the source ends its process, once each; before page
    `stands_at` it waits for an hour, in page `garbage_at` it finds something else; before all it asks for a permit of
    the remote `asks`, whose limits end at `resets_at`."""

    pages: list[list[tuple[str, str, dict[str, Any], str | None]]]
    complete: bool = True
    atomic: bool = False
    cursors: bool = True
    repeats: int = 0
    dies_at: list[int] = []
    asks: str | None = None
    stands_at: int | None = None
    garbage_at: int | None = None
    resets_at: float | None = None


class Outside:
    def __init__(self, context: collecting.Context) -> None:
        self._context = context
        self._world = msgspec.json.decode(Path(context.spec.world).read_bytes(), type=World)
        self.atomic = self._world.atomic
        self._met: dict[str, set[str]] = {}
        self._pages = 0
        context.log("info", f"mark {context.mark!r}, resumed {context.resumed}")

    def observe(self, cursor: Any | None) -> Iterator[collecting.Page]:
        world, first = self._world, 0 if cursor is None else int(cursor["page"])
        pages = world.pages + world.pages[-1:] * world.repeats
        for number, rows in enumerate(pages[first:], start=first):
            self._mishaps(number)
            self._pages += 1
            for entity, id, _, _ in rows:
                self._met.setdefault(entity, set()).add(id)
            yield collecting.Page(
                items=[collecting.Item(*row) for row in rows],
                cursor={"page": number + 1} if world.cursors else None,
                stage="fetching",
                percent=100 * (number + 1) // len(pages),
            )
        if world.complete:
            yield collecting.Page(gone=list(self._gone()), stage="fetching", percent=100)

    def _mishaps(self, number: int) -> None:
        world = self._world
        if world.asks is not None:
            self._context.remote.permit(world.asks)
            self._context.remote.learn(world.asks, reset_at=world.resets_at)
        if number in world.dies_at:
            world.dies_at.remove(number)
            Path(self._context.spec.world).write_bytes(msgspec.json.encode(world))
            os.kill(os.getpid(), signal.SIGKILL)
        if number == world.garbage_at:
            msgspec.json.decode(b"<html>")
        if number == world.stands_at:
            self._context.remote.sleep(3600)

    def _gone(self) -> Iterator[collecting.Gone]:
        for entity in ("things", "people"):
            for id in self._context.known.ids(entity) - self._met.get(entity, set()):
                yield collecting.Gone(entity, id)

    def outcome(self) -> collecting.Outcome:
        counters = self._context.counters()
        result = Result(self._pages, counters.created, counters.updated, counters.deleted)
        return collecting.Outcome({"pages": self._pages}, self._world.complete, result)


def _make(config: Spec, type: jobs.Type, options: kinds.Options) -> Spec:
    return config


KINDS: Mapping[str, kinds.Kind] = {
    **kinds.KINDS,
    KIND: kinds.Kind(Spec, Result, Spec, _make, target=lambda _: None),
}
SOURCES: Mapping[str, Callable[[collecting.Context], collecting.Source]] = {KIND: Outside}


def main() -> None:
    """A worker's child that knows this kind."""
    kinds.KINDS = KINDS
    sources.SOURCES = SOURCES
    child.main(int(sys.argv[1]))


if __name__ == "__main__":
    main()
