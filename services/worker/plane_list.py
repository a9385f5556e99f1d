"""One list of Plane's, read until nothing of it can have been skipped, however it moves meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from domain import errors
from domain.plans import plane
from services.worker.plane_client import Client

#: How often a list is read because it moved while it was read.
_PASSES = 4
#: Pages that show nothing new, one after the other: a remote that repeats itself.
_STALE = 10


class Found(NamedTuple):
    """The rows of a page that are news, and where to go on behind it; `done` with the list's last page."""

    rows: Sequence[plane.Row]
    cursor: str | None
    scan: plane.Scan
    done: bool


class Listing:
    """`since` is the time down to which work items are wanted, then the latest come first. Afterwards `complete` says
    whether everything was seen, `rescans` how often it took another pass."""

    def __init__(
        self, client: Client, spec: plane.Spec, entity: str, project: str | None = None, since: str | None = None
    ) -> None:
        self._client, self._per_page = client, spec.per_page
        self._entity, self._project, self._since = entity, project, since
        self._url = plane.projects_url(spec) if project is None else plane.inner_url(spec, project, entity)
        oldest_first = plane.OLDEST_FIRST if entity == plane.WORK_ITEMS else ""
        self._order = plane.LATEST_FIRST if since else oldest_first
        self._seen = plane.Seen()
        self._fresh = 0
        self.complete = False
        self.rescans = 0

    def pages(self, scan: plane.Scan | None = None, cursor: str | None = None) -> Iterator[Found]:
        """From the beginning, or from a place in a pass. Raises Denied, errors.SyncFailed."""
        for number in range(_PASSES):
            before = self._fresh
            for found in self._pass(scan, cursor, number):
                settled = not found.scan.moved or (number > 0 and self._fresh == before)
                self.complete = found.cursor is None and settled
                yield found._replace(done=self.complete)
            if self.complete:
                return
            scan = cursor = None
            self.rescans += 1

    def _pass(self, scan: plane.Scan | None, cursor: str | None, number: int) -> Iterator[Found]:
        stale = 0
        while True:
            page, at = self._client.page(plane.paged(self._url, self._per_page, cursor, self._order))
            scan = (scan or plane.Scan(at, self._since)).after(page)
            rows = self._seen.fresh(self._entity, page.rows, self._project)
            self._fresh += len(rows)
            stale = 0 if rows else stale + 1
            cursor = None if scan.enough else page.next
            yield Found(rows, cursor, scan, done=False)
            if cursor is None:
                return
            if stale > _STALE + (self._pages(number)):
                raise errors.SyncFailed("The remote shows the same page again and again")

    def _pages(self, number: int) -> int:
        """How many pages without news another pass may have: as many as show what was seen."""
        return len(self._seen) // self._per_page + 1 if number else 0
