"""Plane as a source: its projects and all that is in them, list by list; what is missing is asked for by its id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec
from msgspec.structs import replace

from domain import errors
from domain.plans import plane
from services.worker.collecting import Context, Gone, Item, Outcome, Page
from services.worker.plane_client import Client, Denied
from services.worker.plane_list import Found, Listing

_AT_ONCE = 20
_RECONCILING = "reconciling_deletes"


class Plane:
    """One run. Lists come by project and entity, so that a run can go on from any page of any of them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._spec: plane.Spec = context.spec
        mark = None if context.mark is None else msgspec.convert(context.mark, plane.Mark)
        self._mark = mark if self._spec.mode == "incremental" else None
        self._place = plane.Place("")
        self._projects: list[str] = []
        self._there: set[str] = set()
        self._archived: set[str] = set()
        self._seen: dict[str, set[str]] = {entity: set() for entity in plane.ENTITIES}
        self._enumerated: set[tuple[str, str]] = set()
        self._rescans = self._kept = self._told = 0
        self._client = Client(context, self._spec)

    def observe(self, cursor: Any | None) -> Iterator[Page]:
        with self._client:
            began = self._client.check()
            self._place = plane.Place(began) if cursor is None else msgspec.convert(cursor, plane.Place)
            if self._spec.include_archived:
                self._context.log("info", "Archived work items that were never seen are shown by no list")
            yield from self._observe_projects()
            yield from self._observe_lists(self._place)
            if self._spec.mode == "full" and not self._context.resumed:
                yield from self._reconcile()

    def outcome(self) -> Outcome:
        whole = self._spec.mode != "selective"
        complete = whole and self._mark is None and self._place.complete
        listed = [project for project in self._projects if project not in self._place.skipped]
        result = plane.Result(
            projects=len(self._projects),
            skipped=len(self._place.skipped),
            requests=self._client.requests,
            rescans=self._rescans,
            archived=self._kept,
            complete=complete,
        )
        mark = msgspec.to_builtins(plane.mark(self._place.began, listed)) if whole else None
        return Outcome(mark, complete, result)

    # Listing.

    def _observe_projects(self) -> Iterator[Page]:
        """The projects. Those that are archived show nothing of what is in them."""
        rows: dict[str, plane.Row] = {}
        listing = Listing(self._client, self._spec, plane.PROJECTS)
        try:
            for found in listing.pages():
                rows |= {id: row for row in found.rows if (id := plane.item_id(plane.PROJECTS, row))}
        except Denied as denied:
            message = f"The API key may not read the workspace {self._spec.workspace}, or there is none of that name"
            raise errors.RemoteRefused(f"{message} ({denied.reason}); check config.workspace") from None
        self._note(listing, "", plane.PROJECTS)
        self._choose(rows)
        shown = self._projects + sorted(self._archived if self._spec.include_archived else ())
        self._seen[plane.PROJECTS].update(shown)
        if self._spec.wants(plane.PROJECTS):
            items = [_item(plane.PROJECTS, rows[id], None) for id in shown]
            yield Page(items, (), _builtins(self._place), "syncing_projects", 1)

    def _choose(self, rows: Mapping[str, plane.Row]) -> None:
        """Raises errors.Invalid for a project that is to be read and is not there."""
        for name in (*self._spec.within, *self._spec.projects):
            if not any(plane.is_named(row, (name,)) for row in rows.values()):
                raise errors.Invalid(f"The workspace shows no project {name:.80} to this API key")
        chosen = {id for id, row in rows.items() if self._spec.wants_project(row)}
        self._there = set(rows)
        self._archived = {id for id in chosen if plane.is_archived(rows[id])}
        self._projects = sorted(chosen - self._archived)

    def _observe_lists(self, start: plane.Place) -> Iterator[Page]:
        entities = [entity for entity in plane.INNER if self._spec.wants(entity)]
        for number, project in enumerate(self._projects):
            for entity in entities:
                if not plane.reached(start, project, entity):
                    continue
                done = number * len(plane.INNER) + plane.INNER.index(entity)
                if (project, entity) == (start.project, start.entity):
                    yield from self._observe_list(project, entity, done, start.scan, start.cursor)
                else:
                    yield from self._observe_list(project, entity, done, None, None)

    def _observe_list(
        self, project: str, entity: str, done: int, scan: plane.Scan | None, cursor: str | None
    ) -> Iterator[Page]:
        listing = Listing(self._client, self._spec, entity, project, self._since(project, entity))
        try:
            for found in listing.pages(scan if cursor else None, cursor):
                yield self._page(project, entity, done, found)
        except Denied as denied:
            self._skip(project, entity, denied)
        else:
            self._note(listing, project, entity)

    def _tell(self, entity: str, found: Found) -> None:
        """A line for each page at first, then one for every so many items, and for each list's end."""
        count = len(self._seen[entity])
        if entity == plane.WORK_ITEMS and found.rows and (found.done or count < 1000 or count >= self._told + 1000):
            self._told = count
            self._context.log("info", f"Processed {count} work items")

    def _page(self, project: str, entity: str, done: int, found: Found) -> Page:
        self._seen[entity].update(plane.item_id(entity, row, project) for row in found.rows)
        self._place = replace(
            self._place, project=project, entity=entity, cursor=found.cursor, scan=found.scan, done=found.done
        )
        self._tell(entity, found)
        part = found.scan.pages * self._spec.per_page / max(found.scan.last or 1, 1)
        items = [_item(entity, row, project) for row in found.rows]
        percent = plane.percent(done, len(self._projects), part)
        return Page(items, (), _builtins(self._place), f"syncing_{entity}", percent)

    def _note(self, listing: Listing, project: str, entity: str) -> None:
        self._rescans += listing.rescans
        if listing.complete:
            self._enumerated.add((project, entity))
            return
        self._context.log("warn", f"The list of {entity} changes faster than it can be read; nothing of it is deleted")
        self._leave(project, entity)

    def _skip(self, project: str, entity: str, denied: Denied) -> None:
        self._context.log("warn", f"The {entity} of project {project} cannot be read: {denied.reason}")
        self._leave(project, entity)

    def _leave(self, project: str, entity: str) -> None:
        """The next run reads the project's work items from the beginning; other lists always are."""
        more = {project: None} if entity == plane.WORK_ITEMS else {}
        skipped = tuple({**dict.fromkeys(self._place.skipped), **more})
        self._place = replace(self._place, skipped=skipped, complete=False)

    def _since(self, project: str, entity: str) -> str | None:
        """Down to when an incremental run looks: only work items can be had in the order of their changes."""
        if entity != plane.WORK_ITEMS or self._mark is None:
            return None
        known = self._context.known.ids(plane.PROJECTS)
        covered = self._mark.covers(project, known.__contains__)
        return plane.before(self._mark.at, self._spec.overlap) if covered else None

    # What no list shows.

    def _reconcile(self) -> Iterator[Page]:
        """Everything that the collection holds and no list has shown: gone only when its id says so."""
        gone = list(self._gone_projects())
        yield Page(gone=gone, stage=_RECONCILING, percent=95)
        projects = {one.id: one.reason for one in gone}
        for entity in plane.INNER:
            missing = self._context.known.ids(entity) - self._seen[entity]
            yield from self._reconcile_entity(entity, missing, projects)
        if self._kept:
            self._context.log("info", f"{self._kept} archived items are kept")

    def _gone_projects(self) -> Iterator[Gone]:
        if ("", plane.PROJECTS) not in self._enumerated:
            return
        for id in sorted(self._context.known.ids(plane.PROJECTS) - self._seen[plane.PROJECTS]):
            if id in self._archived:
                yield Gone(plane.PROJECTS, id, "archived")
            elif id not in self._there and self._look(plane.projects_url(self._spec, id)) is None:
                yield Gone(plane.PROJECTS, id)

    def _reconcile_entity(self, entity: str, missing: AbstractSet[str], projects: Mapping[str, str]) -> Iterator[Page]:
        where = self._where(entity, missing)
        items: list[Item] = []
        gone: list[Gone] = []
        for id in sorted(missing):
            project = where.get(id, "")
            if project in projects:
                gone.append(Gone(entity, id, projects[project]))
            elif (project, entity) in self._enumerated:
                found = self._confirm(entity, project, id)
                gone += [found] if isinstance(found, Gone) else []
                items += [found] if isinstance(found, Item) else []
            if len(items) + len(gone) >= _AT_ONCE:
                yield Page(items, gone, None, _RECONCILING, 95)
                items, gone = [], []
        yield Page(items, gone, None, _RECONCILING, 95)

    def _where(self, entity: str, missing: AbstractSet[str]) -> Mapping[str, str]:
        if entity == plane.MEMBERS:
            return {id: id.partition(":")[0] for id in missing}
        return self._context.known.projects(entity, missing)

    def _look(self, url: str) -> plane.Row | None:
        """One thing by its id, None when it is gone; empty where that is not to be had."""
        try:
            return self._client.row(url)
        except Denied as denied:
            self._context.log("warn", f"What no list shows cannot be asked for: {denied.reason}")
            return {}

    def _confirm(self, entity: str, project: str, id: str) -> Item | Gone | None:
        """What has become of an item that its list does not show; None when that cannot be known."""
        if entity == plane.MEMBERS:  # their list is one answer
            return Gone(entity, id)
        row = self._look(plane.inner_url(self._spec, project, entity, id))
        if row is None:
            return Gone(entity, id)
        if row.get("id") != id:
            return None
        if plane.is_archived(row):
            if not self._spec.include_archived:
                return Gone(entity, id, "archived")
            self._kept += 1
        return _item(entity, row, project)


def _item(entity: str, row: plane.Row, project: str | None) -> Item:
    return Item(entity, plane.item_id(entity, row, project), plane.content(entity, row, project), plane.revision(row))


def _builtins(place: plane.Place) -> Any:
    return msgspec.to_builtins(place)
