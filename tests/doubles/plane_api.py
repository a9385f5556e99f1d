"""The views of the Plane double: what each path of the API v1 answers, in Plane's own shapes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from tests.doubles.plane_world import FIELDS, GROUPS, PRIORITIES, SINGULAR, Key, Record, World

THROTTLED = {"error_code": 5900, "error_message": "RATE_LIMIT_EXCEEDED"}
MAX_PER_PAGE = 1000
_MISSING = {"error": "The requested resource does not exist."}
_FORBIDDEN = {"detail": "You do not have permission to perform this action."}
_NO_METHOD = {"detail": 'Method "{}" not allowed.'}
_PATHS = {
    "states": "states",
    "labels": "labels",
    "cycles": "cycles",
    "modules": "modules",
    "work-items": "work_items",
    "issues": "work_items",
}
_ORDERS = ("created_at", "updated_at", "name", "sequence_id", "sort_order", "priority", "state__name", "state__group")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def answer(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class Api:
    """One request of one key."""

    def __init__(
        self,
        world: World,
        key: Key,
        query: Mapping[str, str],
        body: bytes,
        *,
        archived_by_id: bool = True,
        edits: Sequence[Callable[[dict[str, Any]], dict[str, Any]]] = (),
    ) -> None:
        self._world, self._key, self._query, self._raw = world, key, query, body
        self._zone = ZoneInfo(key.timezone)
        self._archived_by_id, self._edits = archived_by_id, edits

    def serve(self, method: str, path: str) -> Answer:
        parts = path.removeprefix("/api/v1/").strip("/").split("/")
        try:
            match parts:
                case ["users", "me"]:
                    return answer(200, self._world.users[self._key.user])
                case ["workspaces", slug, *rest]:
                    if slug != self._world.slug:
                        return answer(403, _FORBIDDEN)  # there is no membership of what does not exist
                    return self._workspace(method, rest)
                case _:
                    return Answer(404, b"<h1>Not Found</h1>", {"Content-Type": "text/html"})
        except Refused as refused:
            return refused.answer

    def _workspace(self, method: str, parts: list[str]) -> Answer:
        match parts:
            case ["members"] if method == "GET":
                return answer(200, [{**user, "role": 20} for user in self._world.users.values()])
            case ["projects"]:
                return self._collection(method, "projects", None)
            case ["projects", project]:
                return self._one(method, "projects", project, None)
            case ["projects", project, "archive"]:
                return self._archive(method, "projects", self._existing("projects", project, None)["id"])
            case ["projects", project, *rest]:
                return self._project(method, project, rest)
            case ["work-items" | "issues", name] if method == "GET":
                return self._by_name(name)
            case _:
                return Answer(404, b"<h1>Not Found</h1>", {"Content-Type": "text/html"})

    def _project(self, method: str, project: str, parts: list[str]) -> Answer:
        if self._key.user not in self._world.members.get(project, ()):
            return answer(403, _FORBIDDEN)
        match parts:
            case ["members" | "project-members"] if method == "GET":
                return answer(200, [self._world.users[id] for id in self._world.members[project]])
            case [kind] if kind in _PATHS:
                return self._collection(method, _PATHS[kind], project)
            case [kind, id] if kind in _PATHS:
                return self._one(method, _PATHS[kind], id, project)
            case ["work-items" | "issues", id, "archive"]:
                return self._archive(method, "work_items", self._existing("work_items", id, project)["id"])
            case _:
                return Answer(404, b"<h1>Not Found</h1>", {"Content-Type": "text/html"})

    def _by_name(self, name: str) -> Answer:
        identifier, _, number = name.rpartition("-")
        for one in self._world.records["work_items"].values():
            project = self._world.records["projects"][one["project"]]
            if project["identifier"] == identifier and str(one["sequence_id"]) == number:
                return answer(200, self._shown("work_items", one))
        return answer(404, _MISSING)

    def _collection(self, method: str, kind: str, project: str | None) -> Answer:
        if method == "POST":
            return self._create(kind, project)
        if method != "GET":
            return answer(405, {"detail": _NO_METHOD["detail"].format(method)})
        if self._query.get("pql") or self._query.get("filters"):
            return answer(400, {"pql": "PQL and structured filters are not supported on this Plane edition."})
        if self._query.get("external_id") and self._query.get("external_source"):
            found = self._external(kind, project, self._query["external_id"], self._query["external_source"])
            return answer(404, _MISSING) if found is None else answer(200, self._shown(kind, found))
        return self._page(kind, self._ordered(kind, self._world.listed(kind, project)))

    def _ordered(self, kind: str, found: list[Record]) -> list[Record]:
        by = self._query.get("order_by", "") if kind in ("work_items", "projects") else ""
        name = by.removeprefix("-")
        if name not in _ORDERS:  # what is not allowed falls back to the default
            by, name = {"projects": ("sort_order",) * 2, "states": ("sequence",) * 2}.get(
                kind, ("-created_at", "created_at")
            )
        ranks = {"priority": PRIORITIES, "state__name": GROUPS, "state__group": GROUPS}.get(name)

        def rank(one: Record) -> Any:
            if ranks is None:
                return one[name]
            if name == "priority":
                return ranks.index(one["priority"])
            return ranks.index(self._world.records["states"][one["state"]]["group"])

        newest_first = sorted(found, key=lambda one: one["created_at"], reverse=True)
        return sorted(newest_first, key=rank, reverse=by.startswith("-"))

    def _page(self, kind: str, found: list[Record]) -> Answer:
        limit, page = self._window()
        start = page * limit
        shown = [self._shown(kind, one) for one in found[start : start + limit]]
        more = start + limit < len(found)
        envelope = {
            "grouped_by": None,
            "sub_grouped_by": None,
            "total_count": len(found),
            "next_cursor": f"{limit}:{page + 1}:0",
            "prev_cursor": f"{limit}:{page - 1}:1",
            "next_page_results": more,
            "prev_page_results": page > 0,
            "count": len(shown),
            "total_pages": math.ceil(len(found) / limit) if found else 0,
            "total_results": len(found),
            "extra_stats": None,
            "results": shown,
        }
        for edit in self._edits:
            envelope = edit(envelope)
        return answer(200, envelope)

    def _window(self) -> tuple[int, int]:
        try:
            limit = int(self._query.get("per_page", MAX_PER_PAGE))
        except ValueError:
            raise Refused(answer(400, {"detail": "Invalid per_page parameter."})) from None
        if limit > MAX_PER_PAGE:
            raise Refused(answer(400, {"detail": f"Invalid per_page value. Cannot exceed {MAX_PER_PAGE}."}))
        try:
            _, page, _ = map(int, self._query.get("cursor", f"{limit}:0:0").split(":"))
        except ValueError:
            raise Refused(answer(400, {"detail": "Invalid cursor parameter."})) from None
        if page < 0 or limit < 1:
            raise Refused(answer(400, {"detail": "Error in parsing"}))
        return limit, page

    def _one(self, method: str, kind: str, id: str, project: str | None) -> Answer:
        record = self._existing(kind, id, project)
        if method == "GET":
            hidden = kind == "work_items" and record["archived_at"] is not None and not self._archived_by_id
            return answer(404, _MISSING) if hidden else answer(200, self._shown(kind, record))
        if method == "PATCH":
            return self._update(kind, record, project)
        if method != "DELETE":
            return answer(405, {"detail": _NO_METHOD["detail"].format(method)})
        if kind == "states" and record["default"]:
            return answer(400, {"error": "Default state cannot be deleted"})
        if kind == "states" and any(one["state"] == id for one in self._world.of("work_items", project)):
            return answer(400, {"error": "The state is not empty, only empty states can be deleted"})
        self._world.remove(kind, id)
        return Answer(204, b"")

    def _existing(self, kind: str, id: str, project: str | None) -> Record:
        record = self._world.records[kind].get(id)
        if record is None or (project is not None and record["project"] != project):
            raise Refused(answer(404, _MISSING))
        return record

    def _archive(self, method: str, kind: str, id: str) -> Answer:
        if method == "POST":
            self._world.archive(kind, id)
        elif method == "DELETE":
            self._world.change(kind, id, archived_at=None)
        else:
            return answer(405, {"detail": _NO_METHOD["detail"].format(method)})
        return Answer(204, b"")

    # Writing.

    def _create(self, kind: str, project: str | None) -> Answer:
        asked = self._body(kind, project, partial=False)
        self._check_external(kind, project, asked, None)
        if kind == "projects":
            taken = {one["identifier"] for one in self._world.records["projects"].values()}
            if asked["identifier"] in taken:
                return answer(409, {"identifier": "The project identifier is already taken"})
            id = self._world.project(asked.pop("name"), self._key.user, **asked)
        else:
            id = self._world.add(kind, project, self._key.user, **asked)
        status = 200 if kind == "states" else 201
        return answer(status, self._shown(kind, self._world.records[kind][id]))

    def _update(self, kind: str, record: Record, project: str | None) -> Answer:
        asked = self._body(kind, project, partial=True)
        self._check_external(kind, project, {**record, **asked}, record["id"])
        changed = self._world.change(kind, record["id"], updated_by=self._key.user, **asked)
        return answer(200, self._shown(kind, changed))

    def _body(self, kind: str, project: str | None, *, partial: bool) -> Record:
        try:
            asked = json.loads(self._raw)
        except ValueError as error:
            raise Refused(answer(400, {"detail": f"JSON parse error - {error}"})) from None
        known = FIELDS[kind].keys() | {"external_id", "external_source", "id"}
        asked = {name: value for name, value in asked.items() if name in known and name != "is_triage"}
        if faults := dict(self._faults(kind, project, asked, partial)):
            raise Refused(answer(400, faults))
        return asked

    def _faults(self, kind: str, project: str | None, asked: Record, partial: bool) -> list[tuple[str, list[str]]]:
        """As Django's serializers list them."""
        found: list[tuple[str, list[str]]] = []
        required = {"projects": ("name", "identifier"), "states": ("name", "color")}.get(kind, ("name",))
        for name in required:
            if name not in asked and not partial:
                found.append((name, ["This field is required."]))
            elif name in asked and asked[name] in ("", None):
                found.append((name, ["This field may not be blank."]))
        for name, allowed in (("priority", PRIORITIES), ("group", GROUPS)):
            if name in asked and asked[name] not in allowed:
                found.append((name, [f'"{asked[name]}" is not a valid choice.']))
        for name in ("state", "parent", "owned_by", "lead"):
            if asked.get(name) is not None and not _UUID.fullmatch(str(asked[name])):
                found.append((name, [f'"{asked[name]}" is not a valid UUID.']))
        states = {one["id"] for one in self._world.of("states", project)}
        if not found and kind == "work_items" and asked.get("state") and asked["state"] not in states:
            found.append(("non_field_errors", ["State is not valid please pass a valid state_id"]))
        return found

    def _external(self, kind: str, project: str | None, id: str, source: str) -> Record | None:
        for one in self._world.of(kind, project):
            if (str(one["external_id"]), one["external_source"]) == (id, source):
                return one
        return None

    def _check_external(self, kind: str, project: str | None, asked: Record, own: str | None) -> None:
        if asked.get("external_id") and asked.get("external_source"):
            found = self._external(kind, project, str(asked["external_id"]), asked["external_source"])
            if found is not None and found["id"] != own:
                text = f"{SINGULAR[kind]} with the same external id and external source already exists"
                raise Refused(answer(409, {"error": text, "id": found["id"]}))

    # Showing.

    def _shown(self, kind: str, record: Record) -> Record:
        shown = {name: self._text(value) for name, value in record.items()}
        for name in self._query.get("expand", "").split(","):
            if name in ("state", "labels", "assignees", "project"):
                shown[name] = self._expand(name, record.get(name))
        wanted = [name for name in self._query.get("fields", "").split(",") if name]
        return {name: shown[name] for name in wanted if name in shown} if wanted else shown

    def expanded(self, kind: str, record: Record) -> Record:
        """As webhooks show it."""
        shown = self._shown(kind, record)
        if kind == "work_items":
            for name in ("state", "labels", "assignees"):
                shown[name] = self._expand(name, record[name])
            shown |= {"cycle": None, "module": None}
        return {name: value for name, value in shown.items() if not name.endswith("_issues")}

    def _expand(self, name: str, value: Any) -> Any:
        records = self._world.records
        if name == "assignees":
            return [self._world.users[id] for id in value or ()]
        if name == "labels":
            return [
                _pick(records["labels"][id], "id", "name", "color") for id in value or () if id in records["labels"]
            ]
        if name == "state":
            found = records["states"].get(value)
            return None if found is None else _pick(found, "id", "name", "color", "group")
        return _pick(records["projects"][value], "id", "identifier", "name") if value in records["projects"] else value

    def _text(self, value: Any) -> Any:
        """Times in the zone of the key's owner, as Django REST framework writes them."""
        if isinstance(value, datetime):
            text = value.astimezone(self._zone).isoformat()
            return f"{text[:-6]}Z" if text.endswith("+00:00") else text
        return value.isoformat() if isinstance(value, date) else value


def _pick(record: Record, *names: str) -> Record:
    return {name: record[name] for name in names}
