"""The protocol of a connector, and the one loop in which every kind of work runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from services.worker import child

P = TypeVar("P")
A = TypeVar("A")


class Connector(Protocol[P, A]):
    """One run of one job, as a context manager.

    `observe` yields what is there in pages, from where the last checkpoint left off; `plan` decides what to do about
    a page, and raises errors.Held when a guard trips; `apply` does it; `checkpoint` makes the next run begin behind
    it. `result` is asked once, after the last page or a stop.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def observe(self) -> Iterator[P]: ...

    def plan(self, page: P, /) -> A: ...

    def apply(self, actions: A, /) -> None: ...

    def checkpoint(self, page: P, /) -> None: ...

    def result(self) -> child.Done: ...


def drive(connector: Connector[P, A], stopped: Callable[[], bool]) -> child.Done:
    """Page by page to the end, or until a stop is asked for. Raises what the connector raises."""
    with connector:
        for page in connector.observe():
            if stopped():
                break
            connector.apply(connector.plan(page))
            connector.checkpoint(page)
        return connector.result()
