"""What the Plane double knows: workspaces with projects and all that is in them, as Plane's own database has it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Record = dict[str, Any]
Listener = Callable[[str, str, Record], None]

PRIORITIES = ("urgent", "high", "medium", "low", "none")
GROUPS = ("backlog", "unstarted", "started", "completed", "cancelled")
DEFAULT_STATES = (
    ("Backlog", "#60646C", 15000.0, "backlog"),
    ("Todo", "#60646C", 25000.0, "unstarted"),
    ("In Progress", "#F59E0B", 35000.0, "started"),
    ("Done", "#46A758", 45000.0, "completed"),
    ("Cancelled", "#9AA4BC", 55000.0, "cancelled"),
)
_COUNTS = dict.fromkeys(
    [f"{kind}_issues" for kind in ("total", "cancelled", "completed", "started", "unstarted", "backlog")], 0
)

#: What a record of each kind holds beside the fields that all have.
FIELDS: Mapping[str, Record] = {
    "projects": {
        "name": "",
        "description": "",
        "identifier": "",
        "network": 2,
        "emoji": None,
        "icon_prop": None,
        "module_view": True,
        "cycle_view": True,
        "issue_views_view": True,
        "page_view": True,
        "intake_view": False,
        "cover_image": None,
        "archive_in": 0,
        "close_in": 0,
        "logo_props": {},
        "archived_at": None,
        "timezone": "UTC",
        "project_lead": None,
        "default_assignee": None,
        "default_state": None,
        "estimate": None,
        "sort_order": 65535.0,
        "is_member": True,
        "member_role": 20,
        "is_deployed": False,
        "total_members": 1,
        "total_cycles": 0,
        "total_modules": 0,
    },
    "states": {
        "name": "",
        "description": "",
        "color": "",
        "slug": "",
        "sequence": 65535.0,
        "group": "backlog",
        "is_triage": False,
        "default": False,
    },
    "labels": {"name": "", "description": "", "color": "", "sort_order": 65535.0, "parent": None},
    "cycles": {
        **_COUNTS,
        "name": "",
        "description": "",
        "start_date": None,
        "end_date": None,
        "view_props": {},
        "sort_order": 65535.0,
        "progress_snapshot": {},
        "archived_at": None,
        "logo_props": {},
        "timezone": "UTC",
        "version": 1,
        "owned_by": None,
    },
    "modules": {
        **_COUNTS,
        "name": "",
        "description": "",
        "description_text": None,
        "description_html": None,
        "start_date": None,
        "target_date": None,
        "status": "planned",
        "view_props": {},
        "sort_order": 65535.0,
        "archived_at": None,
        "logo_props": {},
        "lead": None,
    },
    "work_items": {
        "point": None,
        "name": "",
        "description_html": "<p></p>",
        "description_binary": None,
        "priority": "none",
        "start_date": None,
        "target_date": None,
        "sequence_id": 0,
        "sort_order": 65535.0,
        "completed_at": None,
        "archived_at": None,
        "is_draft": False,
        "parent": None,
        "state": None,
        "estimate_point": None,
        "type": None,
        "type_id": None,
        "assignees": [],
        "labels": [],
    },
}
#: The name of a kind in messages and webhooks.
SINGULAR = {
    "projects": "Project",
    "states": "State",
    "labels": "Label",
    "cycles": "Cycle",
    "modules": "Module",
    "work_items": "Issue",
}
EVENTS = {"projects": "project", "cycles": "cycle", "modules": "module", "work_items": "issue"}


@dataclass
class Key:
    """An API key: whose it is, in which time zone its owner lives, how many requests a minute it may make."""

    token: str
    user: str
    timezone: str = "UTC"
    per_minute: int | None = None


@dataclass
class World:
    """`lock` is held while a request is served; hold it (`with world.still():`) to change several things at once."""

    slug: str = "acme"
    workspace: str = field(default_factory=lambda: str(uuid.uuid4()))
    users: dict[str, Record] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    records: dict[str, dict[str, Record]] = field(default_factory=lambda: {kind: {} for kind in FIELDS})
    members: dict[str, list[str]] = field(default_factory=dict)
    listeners: list[Listener] = field(default_factory=list)
    version: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
    _last: datetime = datetime(2020, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """The time here; never the same twice."""
        self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
        return self._last

    @contextmanager
    def still(self) -> Iterator[None]:
        with self.lock:
            yield

    def user(self, name: str) -> str:
        id = str(uuid.uuid4())
        with self.lock:
            self.users[id] = {
                "id": id,
                "first_name": name,
                "last_name": "Doe",
                "email": f"{name.lower()}@example.com",
                "avatar": "",
                "avatar_url": None,
                "display_name": name.lower(),
            }
            self.version += 1
        return id

    def key(self, user: str, token: str | None = None, **more: Any) -> Key:
        made = Key(token or f"plane_api_{uuid.uuid4().hex}", user, **more)
        self.keys[made.token] = made
        return made

    def project(self, name: str, user: str, **fields: Any) -> str:
        """A project with its five states and its maker as the only member."""
        identifier = "".join(c for c in name.upper() if c.isalnum())[:12]
        with self.lock:
            id = self.add("projects", None, user, **{"name": name, "identifier": identifier, **fields})
            self.members[id] = [user]
            for title, color, sequence, group in DEFAULT_STATES:
                default = group == "backlog"
                self.add(
                    "states", id, user, name=title, color=color, sequence=sequence, group=group, default=default,
                    slug=title.lower().replace(" ", "-"),
                )  # fmt: skip
        return id

    def add(self, kind: str, project: str | None, user: str, **fields: Any) -> str:
        """A new record; its id."""
        id = str(fields.pop("id", None) or uuid.uuid4())
        with self.lock:
            at = self.now()
            made: Record = {
                "id": id,
                "created_at": at,
                "updated_at": at,
                "deleted_at": None,
                "created_by": user,
                "updated_by": None,
                "workspace": self.workspace,
                "external_source": None,
                "external_id": None,
                **{name: _copy(value) for name, value in FIELDS[kind].items()},
            }
            if project is not None:
                made["project"] = project
            if kind == "work_items":
                made["sequence_id"] = 1 + max((one["sequence_id"] for one in self.of("work_items", project)), default=0)
                made["state"] = self._default_state(project)
            made.update(fields)
            self.records[kind][id] = made
            self._tell(kind, "created", made)
        return id

    def items(self, project: str, user: str, count: int, prefix: str = "Item") -> list[str]:
        """Many work items at once."""
        with self.lock:
            first = 1 + max((one["sequence_id"] for one in self.of("work_items", project)), default=0)
            state = self._default_state(project)
            made = []
            for n in range(first, first + count):
                made.append(self._quick(project, user, {"name": f"{prefix} {n}", "sequence_id": n, "state": state}))
        return made

    def _quick(self, project: str, user: str, fields: Record) -> str:
        id, at = str(uuid.uuid4()), self.now()
        base = {"id": id, "created_at": at, "updated_at": at, "deleted_at": None, "created_by": user}
        rest = {"updated_by": None, "workspace": self.workspace, "external_source": None, "external_id": None}
        self.records["work_items"][id] = {**base, **rest, **FIELDS["work_items"], "project": project, **fields}
        self.version += 1
        return id

    def change(self, kind: str, id: str, **fields: Any) -> Record:
        with self.lock:
            record = self.records[kind][id]
            record.update({"updated_at": self.now(), **fields})
            self._tell(kind, "updated", record)
            return record

    def remove(self, kind: str, id: str) -> None:
        with self.lock:
            record = self.records[kind].pop(id)
            if kind == "projects":
                self.members.pop(id, None)
                for each in FIELDS.keys() - {"projects"}:
                    self.records[each] = {n: one for n, one in self.records[each].items() if one["project"] != id}
            self._tell(kind, "deleted", record)

    def archive(self, kind: str, id: str) -> None:
        at: Any = self.now() if kind == "projects" else self.now().date()
        self.change(kind, id, archived_at=at)

    def of(self, kind: str, project: str | None) -> list[Record]:
        """Every record of a kind in a project."""
        return [one for one in self.records[kind].values() if project is None or one.get("project") == project]

    def listed(self, kind: str, project: str | None) -> list[Record]:
        """What a list shows: nothing archived, no drafts, nothing of an archived project."""
        if project is not None and self.records["projects"][project]["archived_at"] is not None:
            return []
        found = self.of(kind, project)
        if kind in ("work_items", "cycles", "modules"):
            found = [one for one in found if one["archived_at"] is None]
        if kind == "work_items":
            found = [one for one in found if not one["is_draft"]]
        return found

    def _default_state(self, project: str | None) -> str | None:
        return next((one["id"] for one in self.of("states", project) if one["default"]), None)

    def _tell(self, kind: str, action: str, record: Record) -> None:
        self.version += 1
        for listener in self.listeners:
            listener(kind, action, record)


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list) else value
