"""Plane: what is asked of its REST API, and what the answers mean; pure, so that every rule can be tested by itself.

Its lists are pages by offset over rows that move: a row that is deleted while somebody pages makes the next page
skip one, a row that is inserted shows another twice. What a list does not show is not thereby deleted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from domain import errors

Mode = Literal["full", "incremental", "selective"]
Row = Mapping[str, Any]

PROJECTS, MEMBERS, WORK_ITEMS = "projects", "members", "work_items"
#: What is listed in each project, in this order.
INNER = ("states", "labels", MEMBERS, "cycles", "modules", WORK_ITEMS)
ENTITIES = (PROJECTS, *INNER)
SEGMENTS: Mapping[str, str] = {entity: entity.replace("_", "-") for entity in ENTITIES}
#: The names of entities in webhooks; what is not among them is none of ours.
EVENTS: Mapping[str, str] = {"project": PROJECTS, "issue": WORK_ITEMS, "cycle": "cycles", "module": "modules"}
#: The most that a page may hold, as the public documents have it.
PER_PAGE = 100

OLDEST_FIRST, LATEST_FIRST = "created_at", "-updated_at"
_ALIASES = {"issues": WORK_ITEMS, **{segment: entity for entity, segment in SEGMENTS.items()}}
#: What a request may call an entity.
NAMES = frozenset({*ENTITIES, *_ALIASES})
_COUNTS = {f"{kind}_issues" for kind in ("total", "cancelled", "completed", "started", "unstarted", "backlog")}
_ESTIMATES = {f"{kind}_estimates" for kind in ("total", "completed", "started")}
# What is not a fact about the item: numbers counted anew with every request, what belongs to whoever asks, and
# second forms of a field. They would make an update out of everything that happens around an item.
_LEFT_OUT: Mapping[str, frozenset[str]] = {
    PROJECTS: frozenset(
        {"total_members", "total_cycles", "total_modules", "is_member", "member_role", "sort_order", "is_deployed"}
        | {"members"}
    ),
    "cycles": frozenset(_COUNTS | _ESTIMATES | {"progress_snapshot", "view_props", "is_favorite"}),
    "modules": frozenset(_COUNTS | _ESTIMATES | {"view_props", "is_favorite", "link_module", "members_detail"}),
    WORK_ITEMS: frozenset(
        {"description_json", "description_stripped", "description_binary", "description", "cycle", "module"}
        | {"cycle_id", "module_ids", "sub_issues_count", "link_count", "attachment_count", "state_detail"}
    ),
}
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:?\d{2})")
_TIMES = ("_at", "_date")


class Spec(Struct, frozen=True, rename="camel"):
    """One run. `api_key` is a reference to a sealed secret. `within` are the projects of the configuration, `projects`,
    `entities` and `exclude` the choice of a selective run, by id, identifier or name of the entity; nothing stands for
    all. Times in seconds: `overlap` is looked at again before the mark, `patience` is how
    long a run waits for a remote that wants to be left alone."""

    base_url: str
    workspace: str
    api_key: str
    mode: Mode = "full"
    within: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include_archived: bool = False
    per_page: int = PER_PAGE
    overlap: float = 300.0
    patience: float = 120.0
    timeout: float = 60.0

    def wants(self, entity: str) -> bool:
        return (not self.entities or entity in self.entities) and entity not in self.exclude

    def wants_project(self, project: Row) -> bool:
        if any(chosen and not is_named(project, chosen) for chosen in (self.within, self.projects)):
            return False
        return not is_named(project, self.exclude)


def is_named(project: Row, names: Sequence[str]) -> bool:
    """Whether any of these is its id or its identifier."""
    own = {str(project.get("id")).lower(), str(project.get("identifier")).lower()}
    return any(name.lower() in own for name in names)


class Result(Struct, frozen=True):
    """What a run came to beside its counters; `complete` when everything there is was seen, the work items of `skipped`
    projects could not be read, `archived` items are kept although no list shows them."""

    projects: int = 0
    skipped: int = 0
    requests: int = 0
    rescans: int = 0
    archived: int = 0
    complete: bool = False


def entities(names: Sequence[str]) -> tuple[str, ...]:
    """Entities as a request may call them, `work-items` or `issues` too. Raises errors.Invalid."""
    found = tuple(_ALIASES.get(name, name) for name in names)
    for name, entity in zip(names, found, strict=True):
        if entity not in ENTITIES:
            raise errors.Invalid(f"Unknown entity {name:.40}; there are {', '.join(ENTITIES)}")
    return found


def base(url: str) -> str:
    """The address of an instance without its path `/api/v1`. Raises errors.Invalid."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        _ = parts.port
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise errors.Invalid("config.baseUrl is an address such as https://api.plane.so, without user and password")
    return url.rstrip("/").removesuffix("/api/v1").rstrip("/")


# Addresses. Every path ends in a slash.


def me_url(spec: Spec) -> str:
    return f"{spec.base_url}/api/v1/users/me/"


def projects_url(spec: Spec, project: str = "") -> str:
    path = f"{spec.base_url}/api/v1/workspaces/{quote(spec.workspace, safe='')}/projects/"
    return f"{path}{quote(project, safe='')}/" if project else path


def inner_url(spec: Spec, project: str, entity: str, id: str = "") -> str:
    path = f"{projects_url(spec, project)}{SEGMENTS[entity]}/"
    return f"{path}{quote(id, safe='')}/" if id else path


def paged(url: str, per_page: int, cursor: str | None, order: str = "") -> str:
    query = {"per_page": str(per_page), "cursor": cursor or f"{per_page}:0:0"}
    return f"{url}?{urlencode({**query, 'order_by': order} if order else query)}"


# Times.


def moment(value: Any) -> datetime | None:
    """A time of the API, whatever its offset, in UTC; None for what is none."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def stamp(at: datetime) -> str:
    """`YYYY-MM-DDTHH:MM:SS.ffffffZ`, comparable as text."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if at.year >= 1000 else ""


def revision(row: Row) -> str | None:
    at = moment(row.get("updated_at"))
    return None if at is None else stamp(at) or None


def before(mark: str, overlap_s: float) -> str | None:
    """The time down to which an incremental run looks; None for all of it."""
    at = moment(mark)
    try:
        return None if at is None else stamp(at - timedelta(seconds=overlap_s)) or None
    except OverflowError:
        return None


# Items.


def content(entity: str, row: Row, project: str | None = None) -> dict[str, Any]:
    """An item as it is kept, the same from a list, by its id and from a webhook: times in UTC (the API writes them in
    the zone of whoever asks), references as ids, without what is not a fact about it."""
    left_out = _LEFT_OUT.get(entity, frozenset())
    kept = {name: _plain(name, value) for name, value in row.items() if name not in left_out}
    return kept if project is None else {**kept, "project": project}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str) and name.endswith(_TIMES):
        at = moment(value)
        return (stamp(at) or value) if at is not None else value
    if isinstance(value, Mapping) and isinstance(value.get("id"), str):
        return value["id"]
    if isinstance(value, list):
        ids = [one["id"] if isinstance(one, Mapping) and isinstance(one.get("id"), str) else one for one in value]
        # Without an order of their own: the same people and labels are the same, however they are listed.
        return sorted(ids) if ids and all(isinstance(one, str) for one in ids) else ids
    return value


def item_id(entity: str, row: Row, project: str | None = None) -> str:
    """The id of an item; a member is one in each project. Empty where the row has none."""
    id = row.get("id")
    if not isinstance(id, str):
        return ""
    return f"{project}:{id}" if entity == MEMBERS and id else id


def is_archived(row: Row) -> bool:
    return bool(row.get("archived_at"))


# Pages.


class Envelope(Struct, frozen=True):
    """A page: `next` is where the next one begins, None at the end; `total` is only a claim."""

    rows: Sequence[Row]
    next: str | None
    total: int | None


def envelope(value: Any) -> Envelope:
    """Raises ValueError for what is not a page of Plane's; a bare list is one without a next."""
    if isinstance(value, list):
        return Envelope(_rows(value), None, None)
    if not isinstance(value, dict) or not isinstance(more := value.get("next_page_results"), bool):
        raise ValueError("no page")
    cursor, total = value.get("next_cursor"), value.get("total_count")
    if more and not (isinstance(cursor, str) and 0 < len(cursor) <= 200):
        raise ValueError("no cursor")
    counted = total if isinstance(total, int) and not isinstance(total, bool) else None
    return Envelope(_rows(value.get("results")), cursor if more else None, counted)


def _rows(value: Any) -> Sequence[Row]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise ValueError("no rows")
    return value


class Scan(Struct, frozen=True, array_like=True):
    """One pass over one list, and the signs of its having moved meanwhile. `began` is the remote's time, `since` the
    time down to which rows are wanted (then the latest come first)."""

    began: str
    since: str | None = None
    first: int | None = None
    last: int | None = None
    inserted: int = 0
    shrank: bool = False
    sorted: bool = True
    lowest: str | None = None
    pages: int = 0

    def after(self, page: Envelope) -> Scan:
        """With one more page."""
        total = page.total
        shrank = self.shrank or (total is not None and self.last is not None and total < self.last)
        made = [moment(row.get("created_at")) for row in page.rows]
        inserted = self.inserted + sum(at is not None and stamp(at) >= self.began for at in made)
        lowest, in_order = self.lowest, self.sorted
        for row in page.rows:
            at = revision(row)
            in_order = in_order and (at is None or lowest is None or at <= lowest)
            lowest = at if lowest is None or (at is not None and at < lowest) else lowest
        return replace(
            self,
            first=total if self.first is None else self.first,
            last=total if total is not None else self.last,
            inserted=inserted,
            shrank=shrank,
            sorted=in_order,
            lowest=lowest,
            pages=self.pages + 1,
        )

    @property
    def enough(self) -> bool:
        """Whether everything since has been seen. Rows that do not come in order prove nothing."""
        return self.since is not None and self.sorted and self.lowest is not None and self.lowest < self.since

    @property
    def moved(self) -> bool:
        """Whether a row may have been skipped: one was taken from what had been read already.

        The latest first: then there is one less. The oldest first: then there is one less than what was added, which
        comes at the end and is seen. A single page is one moment.
        """
        if self.pages <= 1:
            return False
        if self.first is None or self.last is None:
            return True  # it does not say
        if self.since is not None and self.sorted:
            return self.shrank
        return self.shrank or self.last - self.first != self.inserted


class Seen:
    """What one list has shown, over all passes: rows come twice, and only news count."""

    def __init__(self) -> None:
        self._revisions: dict[str, str | None] = {}

    def fresh(self, entity: str, rows: Sequence[Row], project: str | None = None) -> list[Row]:
        """The rows that were not seen yet, or not as late as this; a row without an id is always one."""
        found: dict[str, Row] = {}
        nameless: list[Row] = []
        for row in rows:
            id, at = item_id(entity, row, project), revision(row)
            if not id:
                nameless.append(row)
            elif id not in self._revisions or _later(at, self._revisions[id]):
                self._revisions[id] = at
                found[id] = row
        return [*found.values(), *nameless]

    def __contains__(self, id: str) -> bool:
        return id in self._revisions

    def __len__(self) -> int:
        return len(self._revisions)


def _later(at: str | None, kept: str | None) -> bool:
    return at is not None and (kept is None or at > kept)


# The mark, and the place in a run.


class Mark(Struct, frozen=True):
    """Every project of `projects` (the first digits of their ids) has been listed completely up to the time `at`; None
    where there are too many to name them."""

    at: str
    projects: tuple[str, ...] | None = ()

    def covers(self, project: str, known: Callable[[str], bool]) -> bool:
        return known(project) if self.projects is None else short(project) in self.projects


MOST_NAMED = 8000


def short(project: str) -> str:
    return project.replace("-", "")[:12]


def mark(at: str, projects: Sequence[str]) -> Mark:
    named = tuple(sorted({short(project) for project in projects}))
    return Mark(at, named if len(named) <= MOST_NAMED else None)


class Place(Struct, frozen=True):
    """Where a run goes on: at `cursor` of the list of an entity of a project, with the signs of its pass so far, or
    behind it when it is `done`. The work items of `skipped` projects could not be read."""

    began: str
    project: str = ""
    entity: str = ""
    cursor: str | None = None
    scan: Scan | None = None
    done: bool = False
    skipped: tuple[str, ...] = ()
    complete: bool = True


def reached(place: Place, project: str, entity: str) -> bool:
    """Whether a list is still to be read, of a run that goes on from `place`: projects come by id, entities as in
    INNER."""
    if project != place.project or place.entity not in INNER:
        return project >= place.project
    first = INNER.index(place.entity) + (1 if place.done else 0)
    return INNER.index(entity) >= first


def percent(done: int, projects: int, part: float) -> int:
    """Of the whole run: lists done, and the part of the present one that its own counts claim."""
    lists = max(projects, 1) * len(INNER)
    return min(95, int(95 * (done + min(max(part, 0.0), 0.99)) / lists))
